"""Exclusive classes: how they are said, and what readers make of labels in every layout."""

import json
import logging

import nibabel as nib
import numpy as np
import pytest
import torch

from scp_models.data import SegmentationDataModule, VolumeReader, find_subjects, get_task
from scp_models.data.classes import parse_classes, resolve_classes
from scp_models.data.description import task_of_data_set
from scp_models.errors import UserError
from tests.support.tiny_data import affine_for, save, write_classes, write_lits, write_wmh

LABELS = {"background": (0,), "left": (1,), "right": (2,), "both": (3, 4)}


# How they are said


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("all", {"left": [1], "right": [2], "both": [3, 4], "background": []}),
        (["right", "left"], {"right": [2], "left": [1], "background": [3, 4]}),
        ([2, 1], {"right": [2], "left": [1], "background": [3, 4]}),
        ([1, "both"], {"left": [1], "both": [3, 4], "background": [2]}),
        ([1, 7], {"left": [1], "7": [7], "background": [2, 3, 4]}),
        ({"a": 1, "b": [2, 9]}, {"a": [1], "b": [2, 9], "background": [3, 4]}),
        ({"a": 1, "b": "2", "background": [5]}, {"a": [1], "b": [2], "background": [5]}),
    ],
)
def test_classes_by_value_by_name_and_all(given, expected):
    resolved = resolve_classes(given, LABELS, "dataset.json")
    assert resolved == expected and list(resolved) == list(expected)
    # What is kept in a checkpoint is read again as it is, whatever the preset's labels are.
    assert resolve_classes(resolved, {"liver": (1,), "other": (8,)}, "task") == resolved


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["left", "middle"], "classes: expected names among those of dataset.json (left, right, both), got 'middle'"),
        ([1], "classes: expected at least two, got left (one alone is the target: --data.target"),
        ([1, 1], "classes: expected each class once, got 'left' twice"),
        ({"a": [1, 2], "b": [2, 3]}, "classes: expected each label value in one class, got 2 in 'a' and 'b'"),
        ({"a": 0, "b": 1}, "classes: expected label values of 1 or more for 'a', got [0]"),
        ({"a": [], "b": 1}, "classes: expected label values of 1 or more for 'a', got []"),
        ([1, -2], "classes: expected label values of 1 or more, got -2"),
        ({"a": True, "b": 1}, "classes: expected label values of 1 or more, got True"),
        ("left", "classes: expected 'all', a list of label values or names, or values by name, got 'left'"),
        ([str(k) for k in range(1, 256)], "classes: expected fewer than 255, got 255"),
    ],
)
def test_what_makes_no_classes(given, message):
    with pytest.raises(UserError) as error:
        resolve_classes(given, LABELS, "dataset.json")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_regions_that_overlap_are_no_exclusive_classes(tmp_path):
    content = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "whole": [1, 2], "core": [2]}}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"dataset.json: classes: expected each label value in one class, got 2 in"):
        task_of_data_set(tmp_path, "wmh", classes="all")
    with pytest.raises(UserError, match=r"task wmh: classes: expected|classes: expected labels by name"):
        resolve_classes("all", {}, "somewhere")


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (["all"], "all"),
        (["1", "tumour"], [1, "tumour"]),
        (["liver=1", "tumour=2,3"], {"liver": ["1"], "tumour": ["2", "3"]}),
    ],
)
def test_classes_of_a_command_line(items, expected):
    assert parse_classes(items) == expected


@pytest.mark.parametrize("items", [["liver=1", "2"], ["liver=1", "liver=2"]])
def test_classes_of_a_command_line_that_contradict_themselves(items):
    with pytest.raises(UserError, match="--classes: expected"):
        parse_classes(items)


def test_target_and_ignored_beside_classes():
    with pytest.raises(UserError, match="target: expected without classes"):
        get_task("wmh", None, {"classes": [1, 3], "target": [1]})
    with pytest.raises(UserError, match="ignored: expected other labels"):
        get_task("wmh", None, {"classes": [1, 3], "ignored": [3]})
    task = get_task("wmh", None, {"classes": {"a": 1, "b": [3, 5]}, "ignored": [4]})
    assert task.classes == (("a", (1,)), ("b", (3, 5))) and task.class_names == ("a", "b")
    assert (task.num_outputs, task.ignored_label, task.ignored) == (3, 255, (4,))
    assert "classes a = 1, b = 3+5, ignored [4];" in task.describe()


# In every layout


@pytest.mark.parametrize("layout", ["nnunet", "datalist"])
def test_names_of_dataset_json(tmp_path, layout):
    root = write_classes(tmp_path, 3, layout=layout)
    task, options = task_of_data_set(root, "wmh", classes="all")
    assert task.classes == (("left", (1,)), ("right", (2,)), ("middle", (300,)))
    assert task.modalities == ("MRI",) and task.ignored == () and task.labels == (0, 1, 2, 300)
    assert options["classes"] == {"left": [1], "right": [2], "middle": [300], "background": []}
    # A checkpoint has these options, and no dataset.json beside it.
    assert get_task("wmh", None, options) == task
    subject = find_subjects(root, task)[1]
    label = VolumeReader(task).read_label(subject)
    import nibabel as nib

    stored = np.asarray(nib.load(subject.label).dataobj)
    expected = np.select([stored == 1, stored == 2, stored == 300], [1, 2, 3], 0)
    np.testing.assert_array_equal(label, expected)
    volume = VolumeReader(task).read(subject)
    assert set(np.unique(volume.label)) == {0, 1, 2, 3} and volume.crop_loss.target == (expected > 0).sum()


def test_a_part_of_the_labels_leaves_the_rest_to_the_background(tmp_path):
    root = write_classes(tmp_path, 3)
    task, options = task_of_data_set(root, "lits", classes=["middle", 1])
    assert options["classes"] == {"middle": [300], "left": [1], "background": [2]}
    label = VolumeReader(task).read_label(find_subjects(root, task)[0])
    assert set(np.unique(label)) == {0, 1, 2} and (label == 2).sum() == 4 * 5 * 4


def test_liver_and_tumour_in_the_layout_of_lits(tmp_path):
    root = write_lits(tmp_path, numbers=(1, 2))
    for given in ("all", ["liver", "tumour"], [1, 2]):
        task, _ = task_of_data_set(root, "lits", classes=given)
        assert task.classes == (("liver", (1,)), ("tumour", (2,)))
    subject = find_subjects(root, task)[0]
    assert set(np.unique(VolumeReader(task).read_label(subject))) == {0, 1, 2}


def test_the_layout_of_wmh_and_its_ignored_label(tmp_path):
    root = write_wmh(tmp_path, 3, other=True)
    task, _ = task_of_data_set(root, "wmh", classes=["wmh", "other"])
    assert task.ignored == ()
    subject = find_subjects(root, task)[0]
    assert set(np.unique(VolumeReader(task).read_label(subject))) == {0, 1, 2}
    task, _ = task_of_data_set(root, "wmh", classes={"wmh": 1, "rare": 5})
    assert set(np.unique(VolumeReader(task).read_label(subject))) == {0, 1, 255}


def test_the_ignored_label_of_nnunet(tmp_path):
    root = write_classes(tmp_path, 3)
    described = json.loads((root / "dataset.json").read_text())
    described["labels"] = {"background": 0, "left": 1, "right": 2, "ignore": 300}
    (root / "dataset.json").write_text(json.dumps(described))
    task, _ = task_of_data_set(root, "wmh", classes="all")
    assert task.class_names == ("left", "right") and task.ignored == (300,)
    volume = VolumeReader(task).read(find_subjects(root, task)[0])
    assert set(np.unique(volume.label)) == {0, 1, 2, 255} and volume.crop_loss.target == 2 * 4 * 5 * 4


def test_unknown_label_values_are_refused_in_one_line(tmp_path):
    root = write_classes(tmp_path, 3)
    task, _ = task_of_data_set(root, "wmh", classes={"left": 1, "right": 2, "background": []})
    subject = find_subjects(root, task)[0]
    with pytest.raises(UserError) as error:
        VolumeReader(task).read(subject)
    assert str(error.value) == (
        f"{subject.label}: expected labels (0, 1, 2), got also [300.0] (--data.classes may name them as background, "
        "--data.ignored as ignored)"
    )
    task, _ = task_of_data_set(root, "wmh", classes={"left": 1, "right": 2, "background": [300]})
    assert set(np.unique(VolumeReader(task).read_label(subject))) == {0, 1, 2}


@pytest.mark.parametrize("slope", [1 / 100, 1 / 3, 0.1])
def test_label_maps_of_classes_with_a_slope(tmp_path, slope):
    """Values a little beside their integers are the classes they stand for; what lies further away is none."""
    root = write_classes(tmp_path, 3)
    task, _ = task_of_data_set(root, "wmh", classes="all")
    subject = find_subjects(root, task)[0]
    expected = VolumeReader(task).read_label(subject)
    stored = nib.load(subject.label)
    scaled = np.rint(np.asarray(stored.dataobj) / slope).astype(np.int32)
    for shift in (0, 1):
        values = (scaled + shift * (scaled == scaled.max())).astype(np.int32)
        image = nib.Nifti1Image(values, stored.affine)
        image.header.set_slope_inter(np.float32(slope), 0)
        nib.save(image, subject.label)
        if shift:
            with pytest.raises(
                UserError, match=rf"{subject.label.name}: expected labels \(0, 1, 2, 300\), got also \[30"
            ):
                VolumeReader(task).read_label(subject)
        else:
            reread = np.unique(nib.load(subject.label).get_fdata())
            assert not np.array_equal(reread, np.rint(reread))
            assert np.array_equal(VolumeReader(task).read_label(subject), expected)


# What training sees


def module_of(root, tmp_path, **options):
    data = SegmentationDataModule(str(root), roi_size=(16, 24), cache_dir=str(tmp_path / "cache"), **options)
    data.prepare_data()
    data.setup()
    return data


def test_batches_hold_the_classes_numbers(tmp_path):
    data = module_of(write_classes(tmp_path / "data"), tmp_path, classes="all")
    labels = torch.cat([batch["label"] for batch in data.train_dataloader()])
    assert labels.dtype == torch.uint8 and set(labels.unique().tolist()) == {0, 1, 2, 3}
    dataset = data.val_dataloader().dataset
    dataset.length += 1
    assert (dataset[dataset.length - 1]["label"] == 255).all()


def test_what_augmentation_moves_in_is_ignored(tmp_path):
    data = module_of(write_classes(tmp_path / "data"), tmp_path, classes="all", augment="spatial", frame="foreground")
    labels = torch.cat([batch["label"] for batch in data.train_dataloader()])
    assert set(labels.unique().tolist()) == {0, 1, 2, 3, 255}
    assert (data.val_dataloader().dataset[0]["label"] != 255).all()


def test_a_class_that_no_training_subject_has_is_noted(tmp_path, caplog):
    root = write_classes(tmp_path / "data")
    described = json.loads((root / "dataset.json").read_text())
    described["labels"]["nowhere"] = 9
    (root / "dataset.json").write_text(json.dumps(described))
    with caplog.at_level(logging.WARNING, "scp_models"):
        module_of(root, tmp_path, classes="all")
    notes = [record.getMessage() for record in caplog.records if "nowhere" in record.getMessage()]
    assert notes == [
        f"note: {root}: the class nowhere = 9 has no voxel in any of 4 training subjects: it cannot be learnt"
    ]
    # Of two classes that nobody has nothing can be learnt.
    for path in (root / "labelsTr").iterdir():
        save(path, np.zeros((20, 24, 6), np.uint8), affine_for("RAS"))
    for path in (root / "imagesTr").iterdir():
        save(path, np.random.default_rng(0).random((20, 24, 6), np.float32), affine_for("RAS"))
    with pytest.raises(UserError, match=r"expected the target label .* found none; .*\(--data.classes chooses\)"):
        module_of(root, tmp_path, classes="all")


def test_the_cache_tells_classes_from_a_target(tmp_path):
    root = write_lits(tmp_path / "data", numbers=(1, 2, 3))
    subject = find_subjects(root, get_task("lits"))[0]
    options = dict(resize=False, cache_dir=str(tmp_path / "cache"), roi_size=(24, 20))
    binary = SegmentationDataModule(str(root), "lits", **options)
    several = SegmentationDataModule(str(root), "lits", classes="all", **options)
    for data, expected in ((binary, {0, 1}), (several, {0, 1, 2})):
        data.cache.prepare(subject)
        assert set(np.unique(data.cache.open(subject)[1])) == expected
    assert binary.cache.paths(subject) != several.cache.paths(subject)
