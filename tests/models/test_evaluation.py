"""Scores of predictions, on the source's grid and on disk."""

import csv
import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from scp_models.data import Subject, VolumeReader, find_subjects, get_task
from scp_models.errors import UserError
from scp_models.evaluation.metrics import METRICS
from scp_models.evaluation.predictions import PredictionFiles
from scp_models.evaluation.scores import evaluate, read_scores, write_scores
from scp_models.evaluation.selection import held_out
from scp_models.inference.predictor import predict
from tests.support.brightness import predictor
from tests.support.tiny_data import AXIS_CODES, affine_for, save, turned, write_lits, write_wmh_subject


def test_what_is_cropped_away_is_background_and_counts_as_missed(tmp_path):
    write_wmh_subject(tmp_path / "7", seed=1)
    (subject,) = find_subjects(tmp_path / "7", get_task("wmh"))
    (whole,) = evaluate(predictor(subject), [subject])
    assert whole["dice"] == 1.0 and whole["subject"] == "7"
    cropped = predictor(subject, roi_size=(8, 8))
    segmentation = cropped.segment(subject)
    inside = np.zeros((20, 24, 6), bool)
    inside[6:14, 8:16] = True
    assert not segmentation.mask()[~inside].any()
    (row,) = evaluate(cropped, [subject])
    assert row["reference_ml"] == whole["reference_ml"] and row["dice"] < 1


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
    source = predictor(subjects[0], roi_size=(16, 16))
    list(predict(source, subjects, tmp_path / "out"))
    assert score_files(tmp_path / "out", subjects, get_task("wmh")) == list(evaluate(source, subjects))
    save(tmp_path / "out" / "Utrecht_0.nii.gz", np.zeros((3, 3, 3), np.uint8), np.eye(4))
    with pytest.raises(UserError, match=r"Utrecht_0.nii.gz: expected shape \(20, 24, 6\)"):
        score_files(tmp_path / "out", subjects, get_task("wmh"))
    (tmp_path / "out" / "Utrecht_0.nii.gz").unlink()
    write_wmh_subject(tmp_path / "data" / "Utrecht" / "1", seed=1)
    with pytest.raises(UserError, match=r"out: expected .* all are missing: Utrecht_0.nii.gz, Utrecht_1.nii.gz"):
        score_files(tmp_path / "out", find_subjects(tmp_path / "data", get_task("wmh")), get_task("wmh"))


def score_files(folder, subjects, task):
    return list(evaluate(PredictionFiles(folder, subjects, task), subjects))


def predictions_of(subjects, folder, change):
    """The references, changed, as predictions."""
    for subject in subjects:
        image = nib.load(subject.label)
        save(folder / f"{subject.name}.nii.gz", *change(np.asarray(image.dataobj), image.affine))


def dice(folder, subjects, task):
    return [row["dice"] for row in score_files(folder, subjects, task)]


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("label maps", lambda label: label),
        ("masks", lambda label: (label == 2).astype(np.uint8)),
        ("masks of 255", lambda label: 255 * (label == 2).astype(np.uint8)),
        ("probabilities", lambda label: np.where(label == 2, 0.7, 0.2).astype(np.float32)),
        ("label maps in floating point", lambda label: label.astype(np.float32)),
        ("label maps with a fourth axis", lambda label: label[..., None]),
    ],
)
def test_what_predictions_hold_is_told_from_all_of_them(tmp_path, what, change):
    """Liver is no tumour, not even in a label map that has no other label (scan 0)."""
    subjects = find_subjects(write_lits(tmp_path / "data", (0, 1, 2)), get_task("lits"))
    predictions_of(subjects, tmp_path / "out", lambda label, affine: (change(label), affine))
    assert dice(tmp_path / "out", subjects, get_task("lits")) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("target", [1, 2, 255])
def test_masks_of_1_and_of_255_are_told_file_by_file(tmp_path, target):
    """Some tools write 255 for 1; a set may be put together of two tools' files."""
    subjects = find_subjects(write_lits(tmp_path / "data", (1, 2, 3)), get_task("lits"))
    for subject in subjects:
        image = nib.load(subject.label)
        save(subject.label, np.where(np.asarray(image.dataobj) == 2, target, 0).astype(np.uint8), image.affine)
    task = get_task("lits", None, {"target": [target]})
    whites = iter((1, 255, 65535))
    change = lambda label, affine: ((label == target).astype(np.uint16) * next(whites), affine)  # noqa: E731
    predictions_of(subjects, tmp_path / "out", change)
    assert dice(tmp_path / "out", subjects, task) == [1.0, 1.0, 1.0]


def test_a_mask_of_255_beside_label_maps(tmp_path):
    """It can be nothing else; unless a label map has a label 255 too."""
    subjects = find_subjects(write_lits(tmp_path / "data", (0, 1, 2)), get_task("lits"))
    whites = iter((1, 1, 255))

    def change(label, affine):
        white = next(whites)
        return (label if white == 1 else (label == 2) * np.uint8(255)), affine

    predictions_of(subjects, tmp_path / "out", change)
    assert dice(tmp_path / "out", subjects, get_task("lits")) == [1.0, 1.0, 1.0]
    image = nib.load(tmp_path / "out" / "volume-1.nii.gz")
    values = np.asarray(image.dataobj).copy()
    values[0, 0, 0] = 255
    save(tmp_path / "out" / "volume-1.nii.gz", values, image.affine)
    task = get_task("lits", None, {"target": [2]})
    assert dice(tmp_path / "out", subjects, task) == [1.0, 1.0, 0.0]


def test_label_maps_with_labels_that_no_reference_may_have_are_refused(tmp_path):
    subjects = find_subjects(write_lits(tmp_path / "data", (1, 2)), get_task("lits"))
    predictions_of(subjects, tmp_path / "out", lambda label, affine: ((label == 2) * np.uint8(3), affine))
    with pytest.raises(UserError, match=r"volume-1.nii.gz: expected labels \(0, 1, 2\), or a mask .* got also \[3.0\]"):
        dice(tmp_path / "out", subjects, get_task("lits"))


def test_label_maps_without_the_target_are_noted(tmp_path, caplog):
    """Where any label may be, a mask of 0 and 3 is a label map without the target, and scores as nothing."""
    subjects = find_subjects(write_lits(tmp_path / "data", (1, 2)), get_task("lits"))
    task = get_task("lits", None, {"target": [2]})
    predictions_of(subjects, tmp_path / "out", lambda label, affine: ((label == 2) * np.uint8(3), affine))
    assert dice(tmp_path / "out", subjects, task) == [0.0, 0.0]
    said = "2 of 2 predictions have labels [3.0] and not the target's [2]: nothing counts of volume-1.nii.gz, volume-2"
    assert said in caplog.text
    caplog.clear()
    subjects = find_subjects(write_lits(tmp_path / "others", (0, 1)), get_task("lits"))
    predictions_of(subjects, tmp_path / "whole", lambda label, affine: (label, affine))
    assert dice(tmp_path / "whole", subjects, task) == [1.0, 1.0] and "predictions have" not in caplog.text


@pytest.mark.parametrize("classes", [False, True])
def test_integers_of_label_maps_are_those_of_references(tmp_path, classes):
    """With a slope they are a little beside; without one 1.9996 comes from interpolation."""
    subjects = find_subjects(write_lits(tmp_path / "data", (1,)), get_task("lits"))
    task = get_task("lits", None, {"classes": ["liver", "tumour"]} if classes else {})
    image = nib.load(subjects[0].label)
    values, path = np.asarray(image.dataobj), tmp_path / "out" / "volume-1.nii.gz"
    scaled = nib.Nifti1Image(127 * values, image.affine)
    scaled.header.set_slope_inter(1 / 127, 0)
    path.parent.mkdir()
    nib.save(scaled, path)
    assert nib.load(path).get_fdata().max() != 2
    scores = [row["dice"] for row in score_files(tmp_path / "out", subjects, task)]
    assert scores == ([1.0, 1.0] if classes else [1.0])
    for factor in (0.9998, 1.0002):
        save(path, (values * factor).astype(np.float32), image.affine)
        with pytest.raises(UserError, match=r"volume-1.nii.gz: expected labels, or prob.* got values from 0 to [12]"):
            score_files(tmp_path / "out", subjects, task)


def test_fractions_among_label_maps_of_classes_are_one_files(tmp_path):
    subjects = find_subjects(write_lits(tmp_path / "data", (1, 2)), get_task("lits"))
    task = get_task("lits", None, {"classes": ["liver", "tumour"]})
    predictions_of(subjects, tmp_path / "out", lambda label, affine: (label, affine))
    image = nib.load(tmp_path / "out" / "volume-2.nii.gz")
    save(tmp_path / "out" / "volume-2.nii.gz", (np.asarray(image.dataobj) == 2) * np.float32(0.9996), image.affine)
    masks = PredictionFiles(tmp_path / "out", subjects, task)
    assert [row["dice"] for row in evaluate(masks, subjects[:1])] == [1.0, 1.0]
    with pytest.raises(UserError, match=r"volume-2.nii.gz: expected labels of liver = 1, tumour = 2, got fractions"):
        list(evaluate(masks, subjects[1:]))


def test_predictions_that_are_neither_labels_nor_probabilities(tmp_path):
    subjects = find_subjects(write_lits(tmp_path / "data", (1,)), get_task("lits"))
    for change in (lambda label: label - 3.5, lambda label: label + 0.5):
        predictions_of(subjects, tmp_path / "out", lambda label, affine, c=change: (c(label), affine))
        with pytest.raises(UserError, match=r"volume-1.nii.gz: expected labels, or probabilities from 0 to 1, got val"):
            dice(tmp_path / "out", subjects, get_task("lits"))


def test_labels_among_probabilities_are_refused(tmp_path):
    subjects = find_subjects(write_lits(tmp_path / "data", (1, 2)), get_task("lits"))
    predictions_of(subjects[:1], tmp_path / "out", lambda label, affine: (label, affine))
    predictions_of(subjects[1:], tmp_path / "out", lambda label, affine: (label * np.float32(0.4), affine))
    with pytest.raises(UserError, match=r"out: expected all predictions as labels or all as probabilities, got both"):
        dice(tmp_path / "out", subjects, get_task("lits"))


@pytest.mark.parametrize("codes", AXIS_CODES, ids="".join)
def test_predictions_with_turned_axes_are_turned_back(tmp_path, codes):
    write_wmh_subject(tmp_path / "Utrecht" / "0", seed=0, codes=("L", "P", "S"))
    subjects = find_subjects(tmp_path, get_task("wmh"))
    source = nib.load(subjects[0].label)
    turn = nib.orientations.ornt_transform(nib.io_orientation(source.affine), nib.orientations.axcodes2ornt(codes))
    turned = source.as_reoriented(turn)
    save(tmp_path / "out" / "Utrecht_0.nii.gz", np.asarray(turned.dataobj), turned.affine)
    assert dice(tmp_path / "out", subjects, get_task("wmh")) == [1.0]


@pytest.mark.parametrize("classes", [None, {"a": [1], "b": [2]}])
@pytest.mark.parametrize("zooms", [(1.0, 1.0, 3.0), (2.5, 1.0, 1.0), (1.0, 1.0, 1.0)])
def test_scores_do_not_depend_on_how_files_are_stored(tmp_path, zooms, classes):
    """HD95 takes boundaries within slices, which lie across the third axis of some files alone."""
    rng = np.random.default_rng(0)
    label, mask = (ndimage.gaussian_filter(rng.random((20, 24, 16)), 1.5) > 0.5 for _ in range(2))
    task = get_task("wmh", None, {"modalities": ["MR"], **({"classes": classes} if classes else {})})
    rows = []
    for codes in AXIS_CODES:
        folder = tmp_path / "".join(codes)
        for name, data in (("image", label.astype(np.float32)), ("label", label.astype(np.uint8))):
            save(folder / f"{name}.nii.gz", *turned(data, affine_for("RAS", zooms), codes))
        save(folder / "masks" / "a.nii.gz", *turned(mask.astype(np.uint8), affine_for("RAS", zooms), codes))
        subject = Subject("a", (folder / "image.nii.gz",), folder / "label.nii.gz")
        rows.append(evaluate(PredictionFiles(folder / "masks", [subject], task), [subject])[0])
    assert rows[0]["hd95_mm"] > 0
    for row in rows[1:]:
        assert row == pytest.approx(rows[0], nan_ok=True)


def test_predictions_on_another_grid_are_brought_to_the_images(tmp_path, caplog):
    """Shifted by whole voxels and larger, as other tools write them; one that lies elsewhere is refused."""
    write_wmh_subject(tmp_path / "Utrecht" / "0", seed=0)
    subjects = find_subjects(tmp_path, get_task("wmh"))
    shift = np.eye(4)
    shift[:3, 3] = (-2, -1, -3)
    predictions_of(
        subjects, tmp_path / "out", lambda label, affine: (np.pad(label, ((2, 4), (1, 0), (3, 1))), affine @ shift)
    )
    assert dice(tmp_path / "out", subjects, get_task("wmh")) == [1.0]
    assert "Utrecht_0.nii.gz: has another grid (26, 25, 10)" in caplog.text
    # One voxel aside the mask lies on other voxels: it is scored where it says that it is.
    predictions_of(subjects, tmp_path / "out", lambda label, affine: (label, affine @ (np.eye(4) + np.eye(4, k=3))))
    assert 0 < dice(tmp_path / "out", subjects, get_task("wmh"))[0] < 1
    for values in (1, 0):
        save(tmp_path / "out" / "Utrecht_0.nii.gz", np.full((20, 24, 5), values, np.uint8), np.diag([-1.0, -1, -1, 1]))
        with pytest.raises(UserError, match=r"Utrecht_0.nii.gz: expected shape \(20, 24, 6\) as .*mm elsewhere"):
            dice(tmp_path / "out", subjects, get_task("wmh"))
    save(tmp_path / "out" / "Utrecht_0.nii.gz", np.full((20, 24, 5), 0.3, np.float32), np.diag([-1.0, -1, -1, 1]))
    with pytest.raises(UserError, match=r"Utrecht_0.nii.gz: expected shape \(20, 24, 6\) as .*covers 0%"):
        dice(tmp_path / "out", subjects, get_task("wmh"))


def test_headers_without_orientation_say_nothing(tmp_path):
    """Scan 28 has an identity for an affine; the prediction of scan 1 has none at all."""
    subjects = find_subjects(write_lits(tmp_path / "data", (1, 28)), get_task("lits"))
    predictions_of(subjects, tmp_path / "out", lambda label, affine: (label, np.diag([-2.0, 3.0, 1.0, 1.0])))
    path = tmp_path / "out" / "volume-1.nii.gz"
    image = nib.Nifti1Image(np.asarray(nib.load(path).dataobj), None)
    assert not image.header["sform_code"] and not image.header["qform_code"]
    nib.save(image, path)
    assert dice(tmp_path / "out", subjects, get_task("lits")) == [1.0, 1.0]


def test_reading_labels_needs_no_image_voxels(tmp_path):
    write_wmh_subject(tmp_path / "7", seed=1, codes=("L", "P", "S"))
    (subject,) = find_subjects(tmp_path / "7", get_task("wmh"))
    stored = nib.load(subject.label).get_fdata()
    assert np.array_equal(VolumeReader(get_task("wmh")).read_label(subject), stored)


def test_the_checkpoints_own_split_is_scored(tmp_path):
    for k in range(4):
        write_wmh_subject(tmp_path / "Utrecht" / str(k), seed=k)
    subjects = find_subjects(tmp_path, get_task("wmh"))
    split = {"training": ["Utrecht_0"], "validation": ["Utrecht_1"], "test": ["Utrecht_3", "Utrecht_2"]}
    chosen = held_out(subjects, split, "test", tmp_path / "a.ckpt", tmp_path)
    assert [s.name for s in chosen] == ["Utrecht_3", "Utrecht_2"]
    with pytest.raises(UserError, match=r"'Utrecht_2' is not there"):
        held_out([s for s in subjects if s.name != "Utrecht_2"], split, "test", tmp_path / "a.ckpt", tmp_path)
    with pytest.raises(UserError, match=r"with references, 'Utrecht_3' is not there"):
        held_out([replace(s, label=None) for s in subjects], split, "test", tmp_path / "a.ckpt", tmp_path)
    with pytest.raises(UserError, match=r"a.ckpt: expected a record of the subjects"):
        held_out(subjects, None, "test", tmp_path / "a.ckpt", tmp_path)
