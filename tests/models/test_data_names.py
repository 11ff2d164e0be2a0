"""One subject under the names that different folders give it."""

import csv
import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from scp_models.data import find_subjects, get_task
from scp_models.data.names import match_names
from scp_models.data.splits import read_split
from scp_models.data.transforms import transform_path
from scp_models.errors import UserError
from scp_models.evaluation.metrics import METRICS
from scp_models.evaluation.predictions import PredictionFiles
from scp_models.evaluation.scores import evaluate, paired_scores
from scp_models.evaluation.selection import held_out
from tests.support.tiny_data import save, write_wmh_subject

WMH = get_task("wmh")


@pytest.mark.parametrize(
    ("wanted", "present", "expected"),
    [
        (["a", "b"], ["b", "a"], {"a": "a", "b": "b"}),
        (["training_T_7"], ["7"], {"training_T_7": "7"}),
        (["7"], ["training_T_7", "training_T_17"], {"7": "training_T_7"}),
        (["T_7"], ["T_17", "x7"], {}),
        (["7"], ["T_7", "U_7"], {}),
        (["T_7", "U_7"], ["7"], {}),
        (["T_7", "7"], ["T_7", "U_7"], {"T_7": "T_7", "7": "U_7"}),
    ],
)
def test_matches(wanted, present, expected):
    assert match_names(wanted, present, "here") == expected


@pytest.fixture
def root(tmp_path):
    for site, number in (("TabrizB", "104252"), ("TabrizB", "105074"), ("OpenMS", "patient07")):
        write_wmh_subject(tmp_path / "training" / site / number, seed=len(number))
    return tmp_path / "training"


def predictions(subjects, folder, ending=".nii.gz"):
    for subject in subjects:
        label = nib.load(subject.label)
        save(folder / f"{subject.name}{ending}", np.asarray(label.dataobj), label.affine)
    return folder


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
@pytest.mark.parametrize(("made", "scored"), [("TabrizB", ".."), ("..", "TabrizB"), (".", "TabrizB/104252")])
def test_predictions_from_another_folder_are_found(root, tmp_path, made, scored, ending, caplog):
    folder = predictions(find_subjects(root / made, WMH), tmp_path / "out", ending)
    subjects = [s for s in find_subjects(root / scored, WMH) if "patient" not in s.name]
    rows = list(evaluate(PredictionFiles(folder, subjects, WMH), subjects))
    assert [row["dice"] for row in rows] == [1.0] * len(subjects)
    assert f"{folder}: {len(subjects)} subjects are matched by the ends of their names" in caplog.text


def test_a_split_from_another_folder_is_found(root, tmp_path):
    everyone = find_subjects(root / "..", WMH)
    split = {"training": ["patient07"], "validation": ["104252"], "test": ["training_TabrizB_105074"]}
    (chosen,) = held_out(everyone, split, "validation", tmp_path / "a.ckpt", root)
    assert chosen.name == "training_TabrizB_104252"
    (tmp_path / "split.json").write_text(json.dumps(split))
    division = read_split(tmp_path / "split.json", everyone)
    assert division["training"][0].name == "training_OpenMS_patient07"
    split["test"] = ["105074", "training_TabrizB_105074"]
    (tmp_path / "split.json").write_text(json.dumps(split))
    with pytest.raises(UserError, match=r"split.json: expected names of subjects with a reference, got '105074'"):
        read_split(tmp_path / "split.json", everyone)


def test_tables_of_different_folders_are_compared(tmp_path):
    for name, subjects in (("a", ("T_1", "T_2")), ("b", ("2", "1")), ("c", ("1", "3"))):
        rows = [{**dict.fromkeys(METRICS, ""), "subject": s, "dice": f"0.{s[-1]}"} for s in subjects]
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["subject", *METRICS])
            writer.writeheader()
            writer.writerows(rows)
    assert paired_scores(tmp_path / "a.csv", tmp_path / "b.csv", "dice") == ([0.1, 0.2], [0.1, 0.2])
    with pytest.raises(UserError, match="expected the subjects of"):
        paired_scores(tmp_path / "a.csv", tmp_path / "c.csv", "dice")


@pytest.mark.parametrize(("made", "read"), [(".", "TabrizB/104252"), ("TabrizB", "TabrizB/104252"), ("..", "..")])
def test_transforms_from_another_folder_are_found(root, tmp_path, made, read):
    for name in (subject.name for subject in find_subjects(root / made, WMH)):
        (tmp_path / f"to_{name}").mkdir()
        (tmp_path / f"to_{name}" / f"{name}.tfm").touch()
    pattern = str(tmp_path / "to_{subject}" / "{subject}.tfm")
    (subject, *_) = find_subjects(root / read, WMH)
    path = transform_path(pattern, subject)
    assert path.is_file() and path.stem.endswith("104252" if read != ".." else subject.name)


def test_transforms_of_several_subjects_with_the_same_end(root, tmp_path):
    for name in ("TabrizB_104252", "OpenMS_104252"):
        (tmp_path / f"{name}.tfm").touch()
    (subject,) = find_subjects(root / "TabrizB" / "104252", WMH)
    with pytest.raises(UserError, match=r"104252.tfm: expected one transform, OpenMS_104252.tfm, TabrizB_104252.tfm"):
        transform_path(str(tmp_path / "{subject}.tfm"), subject)
    # Whose file a shorter name is cannot be known, unless it lies with the subject.
    whole = replace(subject, name="training_TabrizB_104252")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "104252.tfm").touch()
    assert not transform_path(str(tmp_path / "here" / "{subject}.tfm"), whole).is_file()
    own = subject.images[0].parent / "104252.tfm"
    own.touch()
    assert transform_path("{folder}/{subject}.tfm", whole) == own
    assert transform_path(str(tmp_path / "x[1]" / "{subject}.tfm"), subject) == tmp_path / "x[1]" / "104252.tfm"
