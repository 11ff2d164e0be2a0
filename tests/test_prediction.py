"""Predictions on the source's grid, and their scores."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from scp_models.data import VolumeReader, find_subjects, get_task
from scp_models.errors import UserError
from scp_models.evaluation import evaluate, read_scores, score_files, write_scores
from scp_models.metrics import METRICS
from scp_models.prediction import Predictor, predict, write_segmentation
from scp_models.training import SegmentationModule
from tiny_data import AXIS_CODES, save, write_lits, write_wmh_subject


class Brightness(torch.nn.Module):
    """A network whose logit is the last channel's brightness above a level: what it finds is known beforehand."""

    def __init__(self, level):
        super().__init__()
        self.level = level

    def forward(self, image):
        return 20 * (image[:, -1:] - self.level)


def predictor(subject, task="wmh", roi_size=(20, 24), **options):
    """Finds exactly the lesions of ``subject`` inside ``roi_size``: in the tiny data nothing else is as bright."""
    module = SegmentationModule(task=task, roi_size=roi_size, capacity=16, levels=1)
    volume = VolumeReader(module.task).read(subject)
    lesion, rest = volume.image[-1][volume.label == 1], volume.image[-1][volume.label != 1]
    module.network = Brightness((lesion.min() + rest.max()) / 2 if lesion.size else rest.max() + 1)
    return Predictor(module, device="cpu", **options)


@pytest.mark.parametrize("codes", AXIS_CODES, ids="".join)
def test_predictions_lie_where_the_lesions_do(tmp_path, codes):
    write_wmh_subject(tmp_path / "7", seed=1, shape=(18, 20, 22), codes=codes)
    (subject,) = find_subjects(tmp_path / "7", get_task("wmh"))
    source, reference = nib.load(subject.images[0]), nib.load(subject.label)
    mask_path, probability_path = predict(
        predictor(subject, roi_size=(30, 30)), [subject], tmp_path / "out", probabilities=True
    )
    mask, probabilities = nib.load(mask_path), nib.load(probability_path)
    assert mask_path.name == "7.nii.gz" and probability_path.name == "7_probabilities.nii.gz"
    assert mask.get_data_dtype() == np.uint8 and probabilities.get_data_dtype() == np.float32
    for image in (mask, probabilities):
        assert np.array_equal(image.affine, source.affine) and image.shape == source.shape
        assert image.header.get_zooms() == source.header.get_zooms()
    assert np.array_equal(mask.get_fdata() == 1, reference.get_fdata() == 1)
    assert np.array_equal(probabilities.get_fdata() > 0.5, mask.get_fdata() == 1)


def test_what_is_cropped_away_is_background_and_counts_as_missed(tmp_path):
    write_wmh_subject(tmp_path / "7", seed=1)
    (subject,) = find_subjects(tmp_path / "7", get_task("wmh"))
    whole = evaluate(predictor(subject), [subject])[0]
    assert whole["dice"] == 1.0 and whole["subject"] == "7"
    cropped = predictor(subject, roi_size=(8, 8))
    segmentation = cropped.segment(subject)
    inside = np.zeros((20, 24, 6), bool)
    inside[6:14, 8:16] = True
    assert not segmentation.mask()[~inside].any()
    row = evaluate(cropped, [subject])[0]
    assert row["reference_ml"] == whole["reference_ml"] and row["dice"] < 1


def test_lits_masks_have_the_sources_resolution(tmp_path):
    write_lits(tmp_path, (1, 28), shape=(40, 36, 40))
    subjects = find_subjects(tmp_path, get_task("lits"))
    for subject in subjects:
        found = predictor(subject, "lits", roi_size=(20, 18), threshold=0.3)
        segmentation = found.segment(subject)
        mask = segmentation.mask()
        assert mask.shape == (40, 36, 40) and mask.dtype == np.uint8
        assert np.array_equal(mask, segmentation.source_probabilities() > 0.3)
        paths = write_segmentation(segmentation, tmp_path / "out")
        assert np.array_equal(nib.load(paths[0]).affine, nib.load(subject.images[0]).affine)


def test_batches_do_not_matter(tmp_path):
    write_wmh_subject(tmp_path / "7", seed=1)
    (subject,) = find_subjects(tmp_path / "7", get_task("wmh"))
    torch.manual_seed(0)
    module = SegmentationModule(roi_size=(20, 24), capacity=32, levels=2)
    a, b = (Predictor(module, batch_size=size, device="cpu").segment(subject).probabilities for size in (1, 4))
    assert np.allclose(a, b, atol=1e-5) and a.std() > 0


def test_unwritable_output(tmp_path):
    write_wmh_subject(tmp_path / "7", seed=1)
    (subject,) = find_subjects(tmp_path / "7", get_task("wmh"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"7.nii.gz: cannot write there"):
        predict(predictor(subject), [subject], tmp_path / "file" / "out")


def test_scores_on_disk(tmp_path):
    for k in range(3):
        write_wmh_subject(tmp_path / "data" / "Utrecht" / str(k), seed=k, other=k == 1)
    nothing = tmp_path / "data" / "Utrecht" / "2" / "wmh.nii.gz"
    save(nothing, np.zeros((20, 24, 6), np.float32), nib.load(nothing).affine)
    subjects = find_subjects(tmp_path / "data", get_task("wmh"))
    rows = [row for subject in subjects[:2] for row in evaluate(predictor(subject), [subject])]
    rows += evaluate(predictor(subjects[0]), subjects[2:])
    summary = write_scores(rows, tmp_path / "scores", {"of": "a test"})
    with (tmp_path / "scores" / "scores.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["subject"] for row in table] == ["Utrecht_0", "Utrecht_1", "Utrecht_2"]
    assert list(table[0]) == ["subject", "site", *METRICS] and table[0]["site"] == "Utrecht"
    assert [float(row["dice"]) for row in table] == [1.0, 1.0, 0.0]
    assert table[2]["hd95_mm"] == "" and float(table[0]["hd95_mm"]) == 0
    stored = json.loads((tmp_path / "scores" / "summary.json").read_text())
    assert stored == summary and stored["of"] == "a test"
    assert stored["subjects"] == 3 and stored["dice"]["mean"] == pytest.approx(2 / 3)
    assert stored["hd95_mm"]["n"] == 2
    again = read_scores(tmp_path / "scores" / "scores.csv")
    assert again["Utrecht_1"]["dice"] == 1.0 and "hd95_mm" not in again["Utrecht_2"]
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"other.csv: expected a scores.csv"):
        read_scores(tmp_path / "other.csv")


def test_finished_predictions_are_scored_alike(tmp_path):
    write_wmh_subject(tmp_path / "data" / "Utrecht" / "0", seed=0)
    subjects = find_subjects(tmp_path / "data", get_task("wmh"))
    found = predictor(subjects[0], roi_size=(16, 16))
    predict(found, subjects, tmp_path / "out")
    assert score_files(tmp_path / "out", subjects, get_task("wmh")) == evaluate(found, subjects)
    save(tmp_path / "out" / "Utrecht_0.nii.gz", np.zeros((3, 3, 3), np.uint8), np.eye(4))
    with pytest.raises(UserError, match=r"Utrecht_0.nii.gz: expected shape \(20, 24, 6\)"):
        score_files(tmp_path / "out", subjects, get_task("wmh"))
    (tmp_path / "out" / "Utrecht_0.nii.gz").unlink()
    with pytest.raises(UserError, match=r"Utrecht_0.nii.gz: expected a NIfTI file, there is none"):
        score_files(tmp_path / "out", subjects, get_task("wmh"))


def test_reading_labels_needs_no_image_voxels(tmp_path):
    write_wmh_subject(tmp_path / "7", seed=1, codes=("L", "P", "S"))
    (subject,) = find_subjects(tmp_path / "7", get_task("wmh"))
    stored = nib.load(subject.label).get_fdata()
    assert np.array_equal(VolumeReader(get_task("wmh")).read_label(subject), stored)
