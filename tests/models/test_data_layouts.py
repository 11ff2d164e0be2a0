"""Finding subjects: both releases of WMH, LiTS, datalists, nnU-Net's raw folders."""

import gzip
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from scp_models.data import SegmentationDataModule, VolumeReader, find_subjects, get_task, subject_of_images
from scp_models.errors import UserError
from tests.support.tiny_data import (
    affine_for,
    save,
    write_dicom,
    write_empty_nnunet,
    write_itk,
    write_lits,
    write_wmh,
    write_wmh_subject,
)

WMH, LITS = get_task("wmh"), get_task("lits")
ONE = get_task("wmh", None, {"modalities": ["MR"]})


def test_wmh_current_release_with_its_odd_names(tmp_path):
    write_wmh(tmp_path, 3)
    write_wmh_subject(tmp_path / "test" / "Amsterdam" / "Philips_VU .PETMR_01." / "7", seed=9)
    (tmp_path / "test" / "Amsterdam" / "Philips_VU .PETMR_01." / "7" / "wmh.nii.gz").unlink()
    extra = tmp_path / "additional_annotations" / "observer_o3" / "training" / "Utrecht" / "0"
    write_wmh_subject(extra, seed=1)
    subjects = {s.name: s for s in find_subjects(tmp_path, WMH)}
    assert sorted(subjects) == [
        "test_Amsterdam_Philips_VU_PETMR_01_7",
        "training_Amsterdam_GE3T_2",
        "training_Singapore_1",
        "training_Utrecht_0",
    ]
    philips = subjects["test_Amsterdam_Philips_VU_PETMR_01_7"]
    assert philips.label is None and philips.partition == "test"
    assert philips.site == "Amsterdam/Philips_VU .PETMR_01."
    utrecht = subjects["training_Utrecht_0"]
    assert [p.name for p in utrecht.images] == ["T1.nii.gz", "FLAIR.nii.gz"]
    assert {p.parent.name for p in utrecht.images} == {"pre"} and utrecht.label.name == "wmh.nii.gz"


def test_wmh_older_zips_and_a_single_subject(tmp_path):
    write_wmh_subject(tmp_path / "Utrecht" / "11", seed=0)
    write_wmh_subject(tmp_path / "GE3T" / "100", seed=1)
    assert [s.name for s in find_subjects(tmp_path, WMH)] == ["GE3T_100", "Utrecht_11"]
    (only,) = find_subjects(tmp_path / "Utrecht" / "11", WMH)
    assert only.name == "Utrecht_11" and only.label is not None


@pytest.mark.parametrize("below", [".", "training", "training/Amsterdam", "training/Amsterdam/GE3T/2"])
def test_a_wmh_subject_is_called_the_same_from_any_folder(tmp_path, below, monkeypatch):
    write_wmh(tmp_path / "test" / "wmh", 3)  # a folder of that name further up is no part of the data set
    monkeypatch.chdir(tmp_path / "test" / "wmh" / below)
    for root in (tmp_path / "test" / "wmh" / below, "."):
        subjects = {s.name: s for s in find_subjects(root, WMH)}
        subject = subjects["training_Amsterdam_GE3T_2"]
        assert subject.partition == "training" and subject.site == "Amsterdam/GE3T"


def test_wmh_sites_of_other_names(tmp_path):
    write_wmh_subject(tmp_path / "training" / "Bern" / "1", seed=0)
    (only,) = find_subjects(tmp_path, WMH)
    assert (only.name, only.partition, only.site) == ("training_Bern_1", "training", "Bern")


def test_wmh_subjects_that_are_there_twice(tmp_path):
    for folder in ("old", "new"):
        write_wmh_subject(tmp_path / folder / "Utrecht" / "0", seed=0)
    with pytest.raises(UserError, match=r"old/.*: expected every subject once, .*new/.* same name \(Utrecht_0\)"):
        find_subjects(tmp_path, WMH)


def test_wmh_missing_modality(tmp_path):
    write_wmh(tmp_path, 2)
    missing = tmp_path / "training" / "Singapore" / "1" / "pre" / "T1.nii.gz"
    missing.unlink()
    with pytest.raises(UserError, match=r"T1.nii.gz: expected the modalities T1, FLAIR in pre/, this one is missing"):
        find_subjects(tmp_path, WMH)


def test_lits_by_number_and_a_single_volume(tmp_path):
    write_lits(tmp_path, (0, 2, 10, 28))
    subjects = find_subjects(tmp_path, LITS)
    assert [s.name for s in subjects] == ["volume-0", "volume-2", "volume-10", "volume-28"]
    assert [s.label.name for s in subjects] == [f"segmentation-{n}.nii" for n in (0, 2, 10, 28)]
    (only,) = find_subjects(tmp_path / "Training Batch 2" / "volume-28.nii", LITS)
    assert only.label.name == "segmentation-28.nii"


def test_lits_segmentations_in_a_folder_of_their_own(tmp_path):
    write_lits(tmp_path / "volumes", (0, 2))
    (tmp_path / "segmentations").mkdir()
    for label in sorted((tmp_path / "volumes").rglob("segmentation-*")):
        label.rename(tmp_path / "segmentations" / label.name)
    subjects = find_subjects(tmp_path, LITS)
    assert [s.label for s in subjects] == [tmp_path / "segmentations" / f"segmentation-{n}.nii" for n in (0, 2)]
    again = tmp_path / "more" / "segmentation-2.nii"
    again.parent.mkdir()
    again.write_bytes(subjects[1].label.read_bytes())
    with pytest.raises(UserError, match=r"volume-2.nii: expected one segmentation, got .*more/segmentation-2.nii"):
        find_subjects(tmp_path, LITS)


def test_lits_test_set_keeps_its_names(tmp_path):
    for name in ("test-volume-10.nii", "test-volume-2.nii", "volume-2.nii", "segmentation-2.nii"):
        save(tmp_path / name, np.zeros((4, 4, 2), np.uint8), np.eye(4))
    subjects = find_subjects(tmp_path, LITS)
    assert [s.name for s in subjects] == ["volume-2", "test-volume-2", "test-volume-10"]
    assert [s.label is None for s in subjects] == [False, True, True]
    (only,) = find_subjects(tmp_path / "test-volume-2.nii", LITS)
    assert only.name == "test-volume-2" and only.label is None and only.partition == "test"


@pytest.mark.parametrize("task", [WMH, LITS], ids=["wmh", "lits"])
def test_any_volume_of_ones_own(tmp_path, task):
    save(tmp_path / "my scan.nii.gz", np.zeros((4, 4, 2), np.uint8), np.eye(4))
    (only,) = find_subjects(tmp_path / "my scan.nii.gz", task)
    assert only.name == "my scan" and only.label is None
    for name in ("notes.txt", "notes.gz"):
        (tmp_path / name).write_text("")
        with pytest.raises(UserError, match=rf"{name}: expected a NIfTI file"):
            find_subjects(tmp_path / name, task)


def test_decathlon(tmp_path):
    """Images called ``_0`` and no ``_0000``: not nnU-Net's, though folder and description have the same names."""
    for k in range(2):
        save(tmp_path / "imagesTr" / f"case_{k}.nii.gz", np.zeros((4, 4, 2), np.float32), np.eye(4))
        save(tmp_path / "labelsTr" / f"case_{k}.nii.gz", np.zeros((4, 4, 2), np.uint8), np.eye(4))
    content = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "lesion"},
        "training": [
            {"image": f"./imagesTr/case_{k}.nii.gz", "label": f"./labelsTr/case_{k}.nii.gz"} for k in range(2)
        ],
        "test": [],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    subjects = find_subjects(tmp_path, LITS)
    assert [s.name for s in subjects] == ["case_0", "case_1"] and subjects[0].label.is_file()
    (tmp_path / "dataset.json").rename(tmp_path / "datalist.json")
    assert find_subjects(tmp_path, LITS) == subjects
    (tmp_path / "datalist.json").unlink()
    with pytest.raises(UserError, match=rf"{tmp_path.name}: expected a datalist, datalist.json or dataset.json"):
        find_subjects(tmp_path, LITS, "datalist")
    (tmp_path / "dataset.json").write_text('{"channel_names": {"0": "CT"}}')
    with pytest.raises(UserError, match=r"dataset.json: expected a datalist with a list .* end in _0000"):
        find_subjects(tmp_path, LITS)


def test_datalist(tmp_path):
    for name in ("a_t1", "a_flair", "a_label", "b_t1", "b_flair"):
        save(tmp_path / "files" / f"{name}.nii.gz", np.zeros((4, 4, 2), np.float32), np.eye(4))
    save(tmp_path / "files" / "c.nii.gz", np.zeros((4, 4, 2, 2), np.float32), np.eye(4))
    listing = {
        "training": [
            {"image": ["files/a_t1.nii.gz", "files/a_flair.nii.gz"], "label": "files/a_label.nii.gz"},
            {"image": ["files/b_t1.nii.gz", "files/b_flair.nii.gz"]},
        ],
        "test": ["files/c.nii.gz"],
    }
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps(listing))
    a, b, c = find_subjects(path, WMH)
    assert (a.name, a.partition, len(a.images)) == ("a_t1", "training", 2) and a.label.is_file()
    assert b.label is None
    assert (c.name, c.partition, len(c.images)) == ("c", "test", 1)


def test_datalist_with_the_same_names_in_folders(tmp_path):
    for k in range(2):
        save(tmp_path / f"s{k}" / "ct.nii.gz", np.zeros((4, 4, 2), np.float32), np.eye(4))
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"test": [f"s{k}/ct.nii.gz" for k in range(2)]}))
    assert [s.name for s in find_subjects(path, LITS)] == ["s0_ct", "s1_ct"]
    for k in range(2):
        save(tmp_path / f"s{k}" / "scan" / "ct.nii.gz", np.zeros((4, 4, 2), np.float32), np.eye(4))
    path.write_text(json.dumps({"test": [f"s{k}/scan/ct.nii.gz" for k in range(2)]}))
    assert [s.name for s in find_subjects(path, LITS)] == ["s0_scan_ct", "s1_scan_ct"]


@pytest.mark.parametrize(("task", "write"), [(WMH, write_wmh), (LITS, write_lits)], ids=["wmh", "lits"])
def test_linked_folders_are_followed(tmp_path, task, write):
    write(tmp_path / "real")
    (tmp_path / "data").mkdir()
    for part in (tmp_path / "real").iterdir():
        (tmp_path / "data" / part.name).symlink_to(part)
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data")
    names = [s.name for s in find_subjects(tmp_path / "real", task)]
    assert names and [s.name for s in find_subjects(tmp_path / "data", task)] == names


def test_subjects_that_are_there_twice(tmp_path):
    """They would train and test at once."""
    write_lits(tmp_path, (1, 2))
    volume = tmp_path / "Training Batch 1" / "volume-1.nii"
    volume.with_name("volume-1.nii.gz").write_bytes(gzip.compress(volume.read_bytes()))
    with pytest.raises(UserError, match=r"volume-1.nii.gz: expected every subject once, .*volume-1.nii has the same"):
        find_subjects(tmp_path, LITS)
    path = tmp_path / "list.json"
    path.write_text(json.dumps({part: [str(volume)] for part in ("training", "validation")}))
    with pytest.raises(UserError, match=r"volume-1.nii: expected every subject once"):
        find_subjects(path, LITS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON"),
        ("[]", "expected a JSON object, got list"),
        ("{}", "expected a datalist with a list"),
        ('{"training": [{"label": "x"}]}', r"training\[0\] expected an 'image'"),
        ('{"training": [{"image": {"path": "a.nii"}}]}', r"training\[0\] expected an 'image' .*, got {"),
        ('{"training": [{"image": 3}]}', r"training\[0\] expected an 'image' .*, got 3"),
        ('{"training": [{"image": [""]}]}', r"training\[0\] expected an 'image'"),
        (
            '{"training": [{"image": "a.nii", "label": ["s.nii"]}]}',
            r"\[0\] expected a 'label' that is one path, got \[",
        ),
        (
            '{"training": [{"image": "a.nii", "label": {"path": "s.nii"}}]}',
            r"expected a 'label' that is one path, got {",
        ),
        ('{"training": [{"image": "a.nii", "label": 3}]}', r"expected a 'label' that is one path, got 3"),
        ('{"training": [{"image": "a.nii", "label": false}]}', r"expected a 'label' that is one path, got false"),
        ('{"test": ["nowhere.nii"]}', r"nowhere.nii: expected a file, as .*list.json says; there is none"),
    ],
)
def test_bad_datalists(tmp_path, text, message):
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        find_subjects(path, LITS)


def test_labels_without_images_are_told_in_every_layout(tmp_path, caplog):
    write_wmh(tmp_path / "wmh", 2)
    shutil.rmtree(tmp_path / "wmh/training/Utrecht/0/pre")
    shutil.rmtree(tmp_path / "wmh/training/Utrecht/0/orig")
    assert len(find_subjects(tmp_path / "wmh", WMH)) == 1
    assert "1 folders have a wmh.nii.gz but no images in pre/ and are left out: " in caplog.text
    write_lits(tmp_path / "lits", (0, 1))
    (tmp_path / "lits" / "Training Batch 1" / "volume-1.nii").unlink()
    assert len(find_subjects(tmp_path / "lits", LITS)) == 1
    assert "1 segmentations have no volume and are left out: segmentation-1.nii" in caplog.text


def test_clutter_makes_no_folder_of_images(tmp_path):
    """macOS leaves it beside the folders of any layout."""
    write_wmh(tmp_path, 2)
    (tmp_path / "._x_0000.nii.gz").touch()
    (tmp_path / "notes_0000.txt").touch()
    assert len(find_subjects(tmp_path, WMH)) == 2


def test_dicom_folders(tmp_path):
    """As one subject, as a channel of nnU-Net's layout, and in a datalist."""
    values = np.random.default_rng(0).integers(0, 900, (8, 9, 4)).astype(np.int16)
    scan = write_dicom(tmp_path / "nn" / "imagesTr" / "c2_0000", values, affine_for("LPS"))
    (only,) = find_subjects(scan, ONE)
    assert only.name == "c2_0000" and only.images == (scan,)
    assert subject_of_images([scan], ONE).images == (scan,)
    write_empty_nnunet(tmp_path / "nn", ("c0",))
    assert [s.name for s in find_subjects(tmp_path / "nn", ONE)] == ["c0", "c2"]
    (tmp_path / "list.json").write_text(json.dumps({"test": ["nn/imagesTr/c2_0000"]}))
    (only,) = find_subjects(tmp_path / "list.json", ONE)
    assert only.name == "c2_0000" and VolumeReader(ONE).read(only, with_label=False).image.shape == (1, 160, 224, 4)


def test_nnunet_of_another_format_trains(tmp_path):
    write_empty_nnunet(tmp_path, (), ending=".mha", labels={"background": 0, "lesion": 1})
    mask = np.zeros((12, 10, 4), np.uint8)
    mask[4:6, 4:6, 1:3] = 1
    for k in range(3):
        image = (100 * np.random.default_rng(k).random(mask.shape) + 200 * mask).astype(np.float32)
        write_itk(tmp_path / "imagesTr" / f"c{k}_0000.mha", image, affine_for("LPS"))
        write_itk(tmp_path / "labelsTr" / f"c{k}.mha", mask, affine_for("LPS"))
    data = SegmentationDataModule(str(tmp_path), roi_size=(12, 10), cache_dir=str(tmp_path / "cache"))
    data.prepare_data()
    data.setup("fit")
    _, label = data.cache.open(data.train_subjects[0])
    assert np.array_equal(label[:].transpose(1, 2, 0), mask[::-1, ::-1])


def test_lits_knows_its_wrong_affines(tmp_path):
    write_lits(tmp_path, (27, 28, 47, 48, 53))
    rules = {s.name: s.label_affine for s in find_subjects(tmp_path, LITS)}
    wrong = {"volume-28": "image", "volume-47": "image", "volume-53": "image"}
    assert rules == {**wrong, "volume-27": None, "volume-48": None}
    # The segmentation's own affine would be plausible, two voxels aside.
    (subject,) = find_subjects(tmp_path / "Training Batch 2" / "volume-53.nii", LITS)
    stored = nib.load(subject.label)
    save(subject.label, np.asarray(stored.dataobj), stored.affine @ (np.eye(4) + 2 * np.eye(4, k=3)))
    assert np.array_equal(VolumeReader(LITS).read_label(subject) == 1, np.asarray(stored.dataobj) == 2)


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="expected a data set, there is nothing"):
        find_subjects(tmp_path / "nowhere", WMH)
    with pytest.raises(UserError, match=r"found none \(looked for"):
        find_subjects(tmp_path, WMH)
