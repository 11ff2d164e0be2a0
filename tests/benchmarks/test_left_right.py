"""The table of docs/nnunet.md is of the record, and the record of what the script would do."""

import itertools
import json

import nibabel
import numpy as np
import pytest

from benchmarks import left_right


def test_no_number_of_the_document_is_typed():
    text = left_right.PAGE.read_text()
    assert text.count(left_right.TABLE_BEGIN) == text.count(left_right.TABLE_END) == 1
    assert left_right.document(text, left_right.read()) == text


def test_the_record_is_whole_and_of_this_setting():
    result = json.loads(left_right.RUNS_FILE.read_text())
    assert result["setting"] == left_right.setting()
    runs = sorted((run["configuration"], run["trainer"], run["seed"]) for run in result["runs"])
    assert runs == sorted(itertools.product(left_right.PATCHES, left_right.TRAINERS, left_right.SEEDS))


def test_scores(tmp_path):
    """Of 4 voxels on the left one is found on the right and one not at all; one of 2 on the right is found."""
    reference, prediction = np.zeros((2, 10), np.uint8)
    reference[:6], prediction[:6] = [1, 1, 1, 1, 2, 2], [1, 1, 2, 0, 2, 0]
    for name, label in (("reference", reference), ("prediction", prediction)):
        (tmp_path / name).mkdir()
        nibabel.save(nibabel.Nifti1Image(label.reshape(10, 1, 1), np.eye(4)), tmp_path / name / "a.nii.gz")
    result = left_right.score_sides(tmp_path / "prediction", tmp_path / "reference")
    expected = {"dice_left": 4 / 6, "dice_right": 2 / 4, "wrong_side": 1 / 4, "found": 4 / 6, "cases": 1}
    assert result == pytest.approx(expected)
