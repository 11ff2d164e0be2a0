"""What nobody says: several labels in a data set's description are its classes, but for those of the published data."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from scp_models.checkpoints import load_model
from scp_models.data import SegmentationDataModule, VolumeReader, find_subjects, get_task
from scp_models.data.description import read_description, task_of_data_set
from scp_models.errors import UserError
from tests.support.commands import fit_arguments, refused
from tests.support.tiny_data import save, write_classes


def described(folder, labels, channels=("MRI",)):
    """A folder with a description of nnU-Net's and nothing else."""
    content = {"channel_names": {str(k): name for k, name in enumerate(channels)}, "labels": labels}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


# The task


@pytest.mark.parametrize("preset", ["wmh", "lits"])
@pytest.mark.parametrize("layout", ["nnunet", "datalist"])
def test_labels_are_the_classes(tmp_path, caplog, layout, preset):
    root = write_classes(tmp_path, 3, layout=layout)
    task, options = task_of_data_set(root, preset)
    assert (task, options) == task_of_data_set(root, preset, classes="all")
    assert task.classes == (("left", (1,)), ("right", (2,)), ("middle", (300,))) and task.ignored == ()
    # A checkpoint has these options, and no dataset.json beside it.
    assert get_task(preset, None, options) == task
    assert set(np.unique(VolumeReader(task).read_label(find_subjects(root, task)[0]))) == {0, 1, 2, 3}
    notes = [record.getMessage() for record in caplog.records if "its labels are" in record.getMessage()]
    assert notes == [
        f"note: {root}/dataset.json: its labels are the classes left = 1, right = 2, middle = 300 (--data.target N for "
        "one of them, for evaluate --target N)"
    ]


def test_a_target_or_classes_that_are_given_count(tmp_path, caplog):
    write_classes(tmp_path, 1)
    for target in ([2], [1, 2]):
        task, _ = task_of_data_set(tmp_path, "wmh", target=target)
        assert task.target == tuple(target) and task.classes == () and task.ignored == ()
    assert task_of_data_set(tmp_path, "wmh", classes=["left", "middle"])[0].class_names == ("left", "middle")
    assert "its labels are" not in caplog.text


def test_ignored_labels_are_no_classes(tmp_path):
    labels = {"background": 0, "left": 1, "right": 2, "implant": 3, "ignore": 4}
    described(tmp_path, labels)
    task, _ = task_of_data_set(tmp_path, "wmh")
    assert task.class_names == ("left", "right", "implant") and task.ignored == (4,)
    for given in (None, "all"):
        task, _ = task_of_data_set(tmp_path, "wmh", ignored=[3, 4], classes=given)
        assert task.class_names == ("left", "right") and task.ignored == (3, 4)
    # One that is left is a target.
    task, _ = task_of_data_set(tmp_path, "wmh", ignored=[1, 3, 4])
    assert task.classes == () and task.target == (2,) and task.ignored == (1, 3, 4)


def test_many_classes_are_a_short_note(tmp_path, caplog):
    described(tmp_path, {"background": 0, **{f"organ_{k}": k for k in range(1, 105)}})
    assert len(task_of_data_set(tmp_path, "lits")[0].classes) == 104
    assert "organ_5 = 5, ... (--data.target N" in caplog.text and "organ_6" not in caplog.text


def test_labels_by_number_may_share_a_name(tmp_path):
    labels = {"0": "background", "1": "liver", "2": "tumour", "3": "tumour", "4": "vessel"}
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "CT"}, "labels": labels}))
    assert task_of_data_set(tmp_path, "lits")[0].classes == (("liver", (1,)), ("tumour", (2, 3)), ("vessel", (4,)))


def test_background_of_several_values_is_no_class(tmp_path):
    labels = {"0": "background", "1": "background", "2": "organ"}
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}, "labels": labels}))
    task, _ = task_of_data_set(tmp_path, "wmh")
    assert task.target == (2,) and task.classes == ()
    labels["3"] = "vessel"
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}, "labels": labels}))
    assert dict(task_of_data_set(tmp_path, "wmh")[0].classes) == {"organ": (2,), "vessel": (3,)}


def test_labels_that_are_no_integers_are_not_rounded(tmp_path, caplog):
    for value in (1.5, True):
        described(tmp_path, {"background": 0, "left": value, "right": 2})
        assert task_of_data_set(tmp_path, "wmh")[0].classes == ()
        assert "dataset.json: labels cannot be read" in caplog.text
        caplog.clear()
    described(tmp_path, {"background": 0.0, "left": 1.0, "right": 2.0})
    assert task_of_data_set(tmp_path, "wmh")[0].class_names == ("left", "right")


@pytest.mark.parametrize("preset", ["wmh", "lits"])
def test_regions_that_overlap_are_refused_in_one_line(tmp_path, preset):
    described(tmp_path, {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3})
    with pytest.raises(UserError) as error:
        task_of_data_set(tmp_path, preset)
    assert str(error.value) == (
        f"{tmp_path}/dataset.json: classes: expected each label value in one class, got 2 in 'whole' and 'core' "
        "(overlapping regions are no exclusive classes): give --data.target '[VALUES]' for one of them, or "
        "--data.classes '{NAME: VALUES, ...}' for classes of your own (for evaluate --target N, again for more, "
        "--classes NAME=VALUES)"
    )
    assert task_of_data_set(tmp_path, preset, target=[2, 3])[0].target == (2, 3)
    parts = {"edema": 1, "core": [2, 3]}
    assert task_of_data_set(tmp_path, preset, classes=parts)[0].class_names == ("edema", "core")
    # Regions that do not are classes.
    described(tmp_path, {"background": 0, "edema": 1, "core": [2, 3]})
    assert task_of_data_set(tmp_path, preset)[0].classes == (("edema", (1,)), ("core", (2, 3)))


# The published data


@pytest.mark.parametrize(
    ("preset", "channels", "names"),
    [
        ("lits", ["CT"], ("liver", "tumour")),
        ("lits", ["CT"], ("liver", "cancer")),  # the Decathlon's
        ("lits", ["CT"], ("Liver", "Liver_Tumor")),
        ("lits", ["CT"], ("LIVER", "lesions")),
        ("wmh", ["T1", "FLAIR"], ("wmh", "other")),
        ("wmh", ["T1", "FLAIR"], ("WMH", "Other pathology")),
        ("wmh", ["T1", "FLAIR"], ("White matter hyperintensities", "other-pathologies")),
        ("wmh", ["T1", "FLAIR"], ("lesion", "other")),
        ("wmh", ["T1", "FLAIR"], ("WM lesions", "others")),
        ("wmh", ["T1", "FLAIR"], ("WM_hyperintensities", "Other lesions")),
    ],
)
def test_published_labels_keep_the_presets_target(tmp_path, caplog, preset, channels, names):
    described(tmp_path, {"background": 0, **{name: k for k, name in enumerate(names, start=1)}}, channels)
    task, options = task_of_data_set(tmp_path, preset)
    assert task == get_task(preset) and options is None
    target, as_in = {"lits": (2, ", as"), "wmh": (1, " and [2] is ignored, as")}[preset]
    assert (
        f"dataset.json: of its labels {names[0]} = 1, {names[1]} = 2 the target is [{target}]{as_in} task {preset} has "
        "it (--data.classes all for each of them"
    ) in caplog.text
    task, _ = task_of_data_set(tmp_path, preset, classes="all")
    assert task.class_names == names and task.ignored == ()
    # The other preset knows nothing of them.
    other = {"lits": "wmh", "wmh": "lits"}[preset]
    assert task_of_data_set(tmp_path, other)[0].class_names == names


@pytest.mark.parametrize(
    "labels",
    [
        {"liver": 2, "tumour": 1},
        {"liver": 1, "tumour": 2, "vessel": 3},
        {"pancreas": 1, "cancer": 2},
        {"Vessel": 1, "Tumour": 2},
        {"liver": 1, "tumours of bone": 2},
    ],
)
def test_labels_that_are_alike_are_others(tmp_path, labels):
    described(tmp_path, {"background": 0, **labels}, ["CT"])
    assert dict(task_of_data_set(tmp_path, "lits")[0].classes) == {name: (value,) for name, value in labels.items()}


def test_other_pathology_stays_ignored(tmp_path):
    """As in the published data, with another value to ignore or a target that is given too."""
    described(tmp_path, {"background": 0, "wmh": 1, "other": 2, "ignore": 3}, ["T1", "FLAIR"])
    task, _ = task_of_data_set(tmp_path, "wmh")
    assert task.target == (1,) and sorted(task.ignored) == [2, 3]
    described(tmp_path, {"background": 0, "wmh": 1, "other": 2}, ["T1", "FLAIR"])
    assert task_of_data_set(tmp_path, "wmh", target=[1])[0].ignored == (2,)
    assert task_of_data_set(tmp_path, "wmh", target=[2])[0].ignored == ()
    assert task_of_data_set(tmp_path, "wmh", target=[1], ignored=[])[0].ignored == ()
    assert task_of_data_set(tmp_path, "wmh", ignored=[])[0].ignored == ()
    task, _ = task_of_data_set(tmp_path, "wmh", classes={"wmh": 1, "rare": 5})
    assert task.class_names == ("wmh", "rare") and task.ignored == (2,)


# Caches and checkpoints


def test_the_cache_is_that_of_the_same_classes(tmp_path):
    root = write_classes(tmp_path / "data", 3)
    options = dict(roi_size=(16, 24), cache_dir=str(tmp_path / "cache"))
    told, untold = (SegmentationDataModule(str(root), classes=classes, **options) for classes in ("all", None))
    target = SegmentationDataModule(str(root), target=1, **options)
    subject = find_subjects(root, told.task)[0]
    assert told.cache.paths(subject) == untold.cache.paths(subject) != target.cache.paths(subject)
    # Of published data, and where dataset.json says nothing of labels, it is what it was.
    described(root, {"background": 0, "wmh": 1, "other": 2}, ["T1", "FLAIR"])
    plain = SegmentationDataModule(str(root), **options)
    assert plain.task_options is None and repr(plain.task) == repr(get_task("wmh", (16, 24)))


def test_a_run_goes_on_with_what_it_was_trained_with(run, succeed, tmp_path, caplog):
    root, out = write_classes(tmp_path / "data", 5, layout="datalist"), tmp_path / "run"
    path = out / "checkpoints" / "last.ckpt"

    # One from before labels were classes: its options say nothing of a target.
    succeed(*fit_arguments(root, out, 1, "--data.target", 1))
    old = torch.load(path, weights_only=True)
    assert "classes" not in old["hyper_parameters"]["task_options"]
    del old["hyper_parameters"]["task_options"]["target"]
    torch.save(old, path)
    assert load_model(path).task.target == (1,)
    for epochs in (2, 3):
        succeed(*fit_arguments(root, out, epochs, "--ckpt_path", "last"))
        assert load_model(path).task.classes == () and load_model(path).task.target == (1,)
    refused(run(*fit_arguments(root, out, 4, "--data.classes", "all", "--ckpt_path", "last")), "with task_options")

    # A new one has classes, told or not, in their order.
    out = tmp_path / "classes"
    path = out / "checkpoints" / "last.ckpt"
    succeed(*fit_arguments(root, out, 1))
    assert load_model(path).task.class_names == ("left", "right", "middle")
    assert "task wmh: MRI; classes left = 1, right = 2, middle = 300; z-score" in caplog.text
    succeed(*fit_arguments(root, out, 2, "--data.classes", "all", "--ckpt_path", "last"))
    content = json.loads((root / "dataset.json").read_text())
    content["labels"] = dict(reversed(content["labels"].items()))
    (root / "dataset.json").write_text(json.dumps(content))
    assert list(read_description(root).foreground) == ["middle", "right", "left"]
    refused(run(*fit_arguments(root, out, 3, "--data.classes", "all", "--ckpt_path", "last")), "with task_options")
    refused(run(*fit_arguments(root, out, 3, "--data.target", 1, "--ckpt_path", "last")), "with task_options")
    succeed(*fit_arguments(root, out, 3, "--ckpt_path", "last"))
    assert load_model(path).task.class_names == ("left", "right", "middle")

    # Scores and predictions are the checkpoint's, whatever the data set says now.
    succeed("evaluate", path, "--data", root, "--split", "all", "--out", tmp_path / "scores")
    assert list(json.loads((tmp_path / "scores/summary.json").read_text())["classes"]) == ["left", "right", "middle"]
    succeed("predict", path, root, "--out", tmp_path / "out")
    predicted = np.asarray(nib.load(tmp_path / "out" / "case_0.nii.gz").dataobj)
    assert predicted.dtype == np.int16 and set(np.unique(predicted)) <= {0, 1, 2, 300}


def test_a_run_keeps_its_classes_where_labels_are_one_or_published(run, succeed, tmp_path):
    root, out = write_classes(tmp_path / "data", 5, values=(1, 2, 3), layout="datalist"), tmp_path / "run"
    task = ("--data.task", "lits", "--data.resize", "false")
    succeed(*fit_arguments(root, out, 1, *task))
    content = json.loads((root / "dataset.json").read_text())
    for epochs, names in ((2, ["left"]), (3, ["liver", "tumour"])):
        content["labels"] = {"background": 0, **{name: k for k, name in enumerate(names, start=1)}}
        (root / "dataset.json").write_text(json.dumps(content))
        succeed(*fit_arguments(root, out, epochs, *task, "--ckpt_path", "last"))
        assert load_model(out / "checkpoints" / "last.ckpt").task.class_names == ("left", "right", "middle")
    # What differs is said, and no other options.
    result = run(*fit_arguments(root, out, 4, *task, "--ckpt_path", "last", "--data.ignored", "[7]"))
    refused(result, "expected a checkpoint of this run, with task_options.ignored = [7]; got None")


# Finished predictions


def predictions(root, folder, change):
    for path in (root / "labelsTr").iterdir():
        image = nib.load(path)
        save(folder / path.name, change(np.asarray(image.dataobj)), image.affine)
    return folder


@pytest.fixture
def score(run, tmp_path):
    def score(folder, root, *more):
        """The command's result, and the mean Dice of each class, or of the target."""
        out = tmp_path / "scores"
        result = run("evaluate", "--predictions", folder, "--data", root, "--split", "all", "--out", out, *more)
        if result[0]:
            return result, None
        summary = json.loads((out / "summary.json").read_text())
        means = {name: scores["dice"]["mean"] for name, scores in summary.get("classes", {}).items()}
        return result, means or summary["dice"]["mean"]

    return score


@pytest.mark.parametrize("layout", ["nnunet", "datalist"])
def test_label_maps_are_scored_by_class(tmp_path, score, layout):
    root = write_classes(tmp_path / "data", 3, layout=layout)
    result, dice = score(root / "labelsTr", root)
    assert dice == {"left": 1.0, "right": 1.0, "middle": 1.0}, result
    _, dice = score(root / "labelsTr", root, "--target", 2)
    assert dice == 1.0
    # What found nothing is no mask of anything.
    result, dice = score(predictions(root, tmp_path / "nothing", lambda label: 0 * label), root)
    assert dice == {"left": 0.0, "right": 0.0, "middle": 0.0}, result


@pytest.mark.parametrize("white", [1, 255])
def test_masks_beside_several_labels_have_to_be_told(tmp_path, score, white):
    root = write_classes(tmp_path / "data", 3)
    masks = predictions(root, tmp_path / "masks", lambda label: np.uint8(white) * (label == 2))
    result, _ = score(masks, root)
    message = f"{masks}: expected label maps of left = 1, right = 2, middle = 300, got masks (--target N says of which"
    refused(result, message + (" label, --classes all for label maps)" if white == 1 else " label)"))
    _, dice = score(masks, root, "--target", 2)
    assert dice == 1.0
    # As label maps they are of the label 1.
    result, dice = score(masks, root, "--classes", "all")
    if white == 1:
        assert dice == {"left": 0.0, "right": 0.0, "middle": 0.0}
    else:
        assert result[0] == 2 and "expected labels (0, 1, 2, 300), got also [255.0]" in result[2]


def test_probabilities_beside_several_labels_have_to_be_told(tmp_path, score):
    root = write_classes(tmp_path / "data", 3)
    folder = predictions(root, tmp_path / "p", lambda label: np.where(label == 2, 0.7, 0.2).astype(np.float32))
    result, _ = score(folder, root)
    refused(result, "expected label maps of left = 1, right = 2, middle = 300, got probabilities (--target N says of")
    _, dice = score(folder, root, "--target", 2)
    assert dice == 1.0


def test_masks_of_published_data_are_those_of_its_target(tmp_path, score):
    root = write_classes(tmp_path / "data", 3, values=(1, 2, 3))
    predictions(root, root / "labelsTr", lambda label: np.where(label == 3, 0, label).astype(np.uint8))
    described(root, {"background": 0, "liver": 1, "cancer": 2}, ["CT"])
    masks = predictions(root, tmp_path / "masks", lambda label: (label == 2).astype(np.uint8))
    for folder in (masks, root / "labelsTr"):
        _, dice = score(folder, root, "--task", "lits")
        assert dice == 1.0
    _, dice = score(root / "labelsTr", root, "--task", "lits", "--classes", "all")
    assert dice == {"liver": 1.0, "cancer": 1.0}
