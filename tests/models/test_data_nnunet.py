"""Finding subjects in nnU-Net's raw folders, and what else is called like them."""

import json

import numpy as np
import pytest

from scp_models.data import find_subjects, get_task
from scp_models.data.description import read_description
from scp_models.data.splits import split_subjects
from scp_models.errors import UserError
from tests.support.tiny_data import affine_for, save, write_empty_nnunet, write_wmh, write_wmh_subject

WMH, ONE = get_task("wmh"), get_task("wmh", None, {"modalities": ["MR"]})


def test_nnunet(tmp_path):
    affine = affine_for("RAS")
    for case in ("brain_001", "brain_002"):
        for channel in range(2):
            save(tmp_path / "imagesTr" / f"{case}_{channel:04d}.nii.gz", np.zeros((4, 4, 2), np.float32), affine)
    save(tmp_path / "labelsTr" / "brain_001.nii.gz", np.zeros((4, 4, 2), np.uint8), affine)
    description = {"channel_names": {"0": "T1", "1": "FLAIR"}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    first, second = find_subjects(tmp_path, WMH)
    assert first.name == "brain_001" and len(first.images) == 2 and first.label is not None
    assert second.label is None
    for channel in range(2):
        save(tmp_path / "imagesTs" / f"brain_001_{channel:04d}.nii.gz", np.zeros((4, 4, 2), np.float32), affine)
    names = [subject.name for subject in find_subjects(tmp_path, WMH)]
    assert names == ["imagesTr_brain_001", "imagesTr_brain_002", "imagesTs_brain_001"]
    (tmp_path / "imagesTr" / "brain_002_0001.nii.gz").unlink()
    with pytest.raises(UserError, match="brain_002_0001"):
        find_subjects(tmp_path, WMH)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_nnunet_endings(tmp_path, ending):
    subjects = find_subjects(write_empty_nnunet(tmp_path, ending=ending), ONE)
    assert [(s.name, s.label.name) for s in subjects] == [("c0", f"c0{ending}"), ("c1", f"c1{ending}")]


def test_what_is_no_case(tmp_path, caplog):
    write_empty_nnunet(tmp_path)
    for folder in ("imagesTr", "labelsTr"):
        for name in ("._c0_0000.nii.gz", "._c7_0000.nii.gz", ".DS_Store", "Thumbs.db", "c0_0000.nii.gz.txt"):
            (tmp_path / folder / name).touch()
    assert [s.name for s in find_subjects(tmp_path, ONE)] == ["c0", "c1"] and caplog.text == ""
    listing = {"test": ["imagesTr/._c0_0000.nii.gz", "imagesTr/c0_0000.nii.gz"]}
    (tmp_path / "list.json").write_text(json.dumps(listing))
    assert [s.name for s in find_subjects(tmp_path / "list.json", ONE)] == ["c0_0000"]
    with pytest.raises(UserError, match=r"\._c0_0000.nii.gz: expected a NIfTI file"):
        find_subjects(tmp_path / "imagesTr" / "._c0_0000.nii.gz", ONE)
    write_wmh(tmp_path / "wmh", 1)
    write_wmh_subject(tmp_path / "wmh" / ".Trash" / "0", seed=0)
    write_wmh_subject(tmp_path / "wmh" / "__MACOSX" / "0", seed=0)
    assert len(find_subjects(tmp_path / "wmh", WMH)) == 1


def test_a_training_case_without_its_label_is_told(tmp_path, caplog):
    write_empty_nnunet(tmp_path)
    (tmp_path / "labelsTr" / "c0.nii.gz").unlink()
    first, second = find_subjects(tmp_path, ONE)
    assert first.label is None and second.label is not None
    assert f"{tmp_path}: 1 of 2 subjects have no label: c0" in caplog.text
    (tmp_path / "labelsTr" / "c0_0000.nii.gz").touch()
    caplog.clear()
    assert find_subjects(tmp_path, ONE)[0].label.name == "c0_0000.nii.gz" and caplog.text == ""


def test_volumes_that_make_no_case_are_told(tmp_path, caplog):
    """A case that is there by half or under another ending vanishes else, and its label with it."""
    write_empty_nnunet(tmp_path, cases=("c0", "c1", "c2", "c3"))
    (tmp_path / "imagesTr" / "c1_0000.nii.gz").rename(tmp_path / "imagesTr" / "c1_0001.nii.gz")
    (tmp_path / "imagesTr" / "c2_0000.nii.gz").rename(tmp_path / "imagesTr" / "c2_0000.nii")
    (tmp_path / "labelsTr" / "c3.nii.gz").rename(tmp_path / "labelsTr" / "c3.nii")
    assert [s.name for s in find_subjects(tmp_path, ONE)] == ["c0", "c3"]
    assert (
        f"{tmp_path}/imagesTr: 2 volumes are no image of a case (<case>_0000.nii.gz) and are left out: c1_0001.nii.gz, "
        "c2_0000.nii\n"
    ) in caplog.text
    assert (
        f"{tmp_path}/labelsTr: 3 volumes are no label of a case that has images (<case>.nii.gz) and are left out: "
        "c1.nii.gz, c2.nii.gz, c3.nii\n"
    ) in caplog.text
    caplog.clear()
    folder = write_empty_nnunet(tmp_path / "other") / "imagesTr"
    (folder / "c1_0000.nii.gz").rename(folder / "c1_0000.mha")
    (tmp_path / "other" / "dataset.json").unlink()
    assert [s.name for s in find_subjects(folder, ONE)] == ["c0"] and "left out: c1_0000.mha" in caplog.text


def test_published_parts_without_labels_are_told(tmp_path, caplog):
    write_empty_nnunet(tmp_path, cases=("c0", "c1", "c2", "c3"))
    (tmp_path / "imagesTs").mkdir()
    for case in ("d0", "d1"):
        (tmp_path / "imagesTs" / f"{case}_0000.nii.gz").touch()
    split_subjects(find_subjects(tmp_path, ONE), (2, 1, 1), 0, str(tmp_path))
    assert f"{tmp_path}: 2 of 2 test subjects have no label: d0, d1" in caplog.text


def test_subjects_that_are_called_like_a_channel(tmp_path):
    for k in range(2):
        write_wmh_subject(tmp_path / f"p_{k:04d}", seed=k)
    assert [s.name for s in find_subjects(tmp_path, WMH)] == ["p_0000", "p_0001"]


@pytest.mark.parametrize(("name", "where"), [("datalist.json", "."), ("dataset.json", "imagesTr")])
def test_a_datalist_of_images_that_are_called_like_channels(tmp_path, name, where):
    """What it lists counts, labels and parts too."""
    entries = []
    for k in range(2):
        paths = [tmp_path / where / f"p_{k:04d}.nii.gz", tmp_path / "labels" / f"p_{k:04d}.nii.gz"]
        for path in paths:
            save(path, np.zeros((4, 4, 2), np.float32), affine_for("RAS"))
        entries.append(dict(zip(("image", "label"), (str(p.relative_to(tmp_path)) for p in paths), strict=True)))
    content = {"modality": {"0": "MR"}, "labels": {"0": "background", "1": "lesion"}, "training": entries}
    (tmp_path / name).write_text(json.dumps(content))
    subjects = find_subjects(tmp_path, ONE)
    assert [(s.name, s.partition, s.label is not None) for s in subjects] == [
        ("p_0000", "training", True),
        ("p_0001", "training", True),
    ]


def test_nnunets_first_version_lists_images_without_their_channel(tmp_path):
    entries = [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in ("c0", "c1")]
    subjects = find_subjects(write_empty_nnunet(tmp_path, training=entries), ONE)
    assert [(s.name, s.images[0].name) for s in subjects] == [("c0", "c0_0000.nii.gz"), ("c1", "c1_0000.nii.gz")]


@pytest.mark.parametrize("folder", ["input", "scans"])
def test_a_folder_of_images_of_any_name_has_no_labels(tmp_path, folder):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "a_0000.nii.gz").touch()
    (subject,) = find_subjects(tmp_path / folder, ONE)
    assert (subject.name, subject.label, subject.partition) == ("a", None, None)


def test_nnunet_lists_its_cases(tmp_path, monkeypatch):
    """Version 2's key ``dataset``: names of their own, files anywhere."""
    write_empty_nnunet(tmp_path / "elsewhere")
    monkeypatch.setenv("SCANS", "elsewhere/imagesTr")
    cases = {
        "left": {"images": ["$SCANS/c0_0000.nii.gz"], "label": "elsewhere/labelsTr/c0.nii.gz"},
        "right": {"images": [str(tmp_path / "elsewhere/imagesTr/c1_0000.nii.gz")], "label": None},
    }
    content = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "lesion": 1}, "dataset": cases}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    left, right = find_subjects(tmp_path, ONE)
    assert (left.name, left.partition, left.label.is_file()) == ("left", "training", True)
    assert right.name == "right" and right.label is None and right.images[0].is_file()
    for entry, message in (
        ({"images": []}, r"dataset\['left'\] expected a list 'images' of 1 paths"),
        ([], r"dataset\['left'\] expected a list 'images' of 1 paths"),
        ({"images": ["a.nii"], "label": ["b"]}, r"dataset\['left'\] expected a 'label' that is one path"),
        ({"images": ["a.nii"]}, r"a.nii: expected a file, as .*dataset.json says"),
    ):
        (tmp_path / "dataset.json").write_text(json.dumps({**content, "dataset": {"left": entry}}))
        with pytest.raises(UserError, match=message):
            find_subjects(tmp_path, ONE)


def test_channel_names_that_are_no_numbers(tmp_path, caplog):
    assert read_description(write_empty_nnunet(tmp_path, channel_names=["MR"])).channels == ("MR",)
    assert [s.name for s in find_subjects(tmp_path, ONE)] == ["c0", "c1"]
    for names in ({"first": "MR"}, "MR", [1]):
        description = read_description(write_empty_nnunet(tmp_path, channel_names=names))
        assert description.channels == () and description.foreground == {"lesion": (3,)}
        assert f"dataset.json: channel_names cannot be read ({json.dumps(names)})" in caplog.text
        with pytest.raises(UserError, match=r"dataset.json: expected 'channel_names' by number"):
            find_subjects(tmp_path, ONE)
    description = read_description(write_empty_nnunet(tmp_path, labels=["lesion"]))
    assert description.channels == ("MR",) and description.labels == {}
    assert 'dataset.json: labels cannot be read (["lesion"])' in caplog.text


@pytest.mark.parametrize("case", ["../left", "site/left", "/left"])
def test_a_case_with_folders_in_its_name_is_refused(tmp_path, case):
    """Its prediction would be written outside of its folder."""
    write_empty_nnunet(tmp_path, dataset={case: {"images": ["imagesTr/c0_0000.nii.gz"]}})
    with pytest.raises(UserError, match=r"dataset\['.*'\] expected a case's name without folders"):
        find_subjects(tmp_path, ONE)
