"""Pixel sizes: slices resampled to a spacing, and what a crop in voxels cuts off."""

import nibabel as nib
import numpy as np
import pytest

from scp_models.data import SegmentationDataModule, Subject, VolumeReader, find_subjects, get_task
from scp_models.errors import UserError
from scp_models.evaluation.scores import evaluate
from scp_models.inference.predictor import predict
from scp_models.notes import note
from tests.support.brightness import predictor
from tests.support.tiny_data import affine_for, save, write_wmh_subject


@pytest.fixture(autouse=True)
def _say_again():
    note.cache_clear()


def ellipsoid(shape, spacing, radius):
    """Bright within so many mm of the middle."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    distance = np.sqrt(sum(a**2 for a in np.meshgrid(*axes, indexing="ij")))
    return (distance < radius).astype(np.float32)


def at(path, data, spacing, codes=("R", "A", "S")):
    save(path, data, affine_for(codes, spacing))
    return path


def one(**options):
    return {"modalities": ["MR"], **options}


@pytest.mark.parametrize("codes", [("R", "A", "S"), ("P", "S", "R"), ("L", "P", "I")], ids="".join)
def test_the_same_head_at_any_pixel_size(tmp_path, codes):
    """It is as large to the network, whatever its voxels, once there is a spacing."""
    areas = []
    for k, (n, size) in enumerate(((40, 1.0), (80, 0.5), (28, 10 / 7))):
        path = at(tmp_path / f"{k}.nii.gz", ellipsoid((n, n, n), (size,) * 3, 12.0), (size,) * 3, codes)
        reader = VolumeReader(get_task("wmh", (36, 44), one(spacing=1.0)))
        volume = reader.read(Subject("s", (path,), None), with_label=False)
        assert np.allclose(np.linalg.norm(volume.affine[:3, :2], axis=0), 1.0)
        middle = volume.image[0, ..., n // 2]
        areas.append(float((middle > (middle.min() + middle.max()) / 2).sum()))
    assert max(areas) / min(areas) < 1.06 and areas[0] > 400


def test_a_spacing_of_the_files_own_changes_nothing(tmp_path):
    write_wmh_subject(tmp_path / "7", seed=1)
    (subject,) = find_subjects(tmp_path / "7", get_task("wmh"))
    plain, same = (VolumeReader(get_task("wmh", (16, 28), o)).read(subject) for o in ({}, {"spacing": [1, 1]}))
    assert np.array_equal(plain.image, same.image) and np.array_equal(plain.label, same.label)


@pytest.mark.parametrize("codes", [("R", "A", "S"), ("A", "S", "R")], ids="".join)
@pytest.mark.parametrize("spacing", [[1.0], [0.8, 1.3]], ids=str)
def test_predictions_come_back_in_the_sources_grid(tmp_path, codes, spacing):
    shape, size = (36, 40, 38), (0.5, 0.6, 0.55)
    image = ellipsoid(shape, size, 7.0)
    path = at(tmp_path / "a.nii.gz", image, size, codes)
    label = at(tmp_path / "l.nii.gz", image.astype(np.uint8), size, codes)
    subject = Subject("a", (path,), label)
    model = predictor(subject, roi_size=(30, 32), task_options=one(spacing=spacing))
    mask, probabilities = predict(model, [subject], tmp_path / "out", probabilities=True)
    for result in map(nib.load, (mask, probabilities)):
        assert result.shape == shape and np.array_equal(result.affine, nib.load(path).affine)
    overlap = np.asarray(nib.load(mask).dataobj) * image
    assert 2 * overlap.sum() / (np.asarray(nib.load(mask).dataobj).sum() + image.sum()) > 0.9
    assert evaluate(model, [subject])[0]["dice"] > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spacing": [1, 2, 3]}, "spacing: expected one or two positive numbers"),
        ({"spacing": [0]}, "spacing: expected one or two positive numbers"),
        ({"spacing": 1.0, "resize": True}, "spacing: expected without resize"),
    ],
)
def test_spacings_that_make_no_task(options, message):
    with pytest.raises(UserError, match=message):
        get_task("lits", None, options)


def test_a_spacing_replaces_a_presets_resizing():
    task = get_task("lits", None, {"spacing": 1.5})
    assert task.spacing == (1.5, 1.5) and not task.resize
    assert "resampled to 1.5 × 1.5 mm, cropped or padded" in task.describe()


def subjects(root, count=4, size=(0.5, 0.5, 6.0)):
    """Heads of 18 mm in small voxels, with a lesion in the middle and one at the left border of the head."""
    shape = (44, 44, 4)
    for k in range(count):
        head = ellipsoid(shape, (0.5, 0.5, 0.5), 9.0)
        label = np.zeros(shape, np.uint8)
        label[21:23, 21:23, 1:3] = 1
        label[6:8, 20:24, 1:3] = 1
        # Nobody is there twice.
        image = (head + 2 * label + 0.001 * k).astype(np.float32)
        for name in ("T1", "FLAIR"):
            at(root / "Utrecht" / str(k) / "pre" / f"{name}.nii.gz", image, size)
        at(root / "Utrecht" / str(k) / "wmh.nii.gz", label, size)
    return root


def test_fit_says_what_the_crop_cuts_off(tmp_path, caplog):
    root = subjects(tmp_path / "data")

    def prepare(**options):
        note.cache_clear()
        caplog.clear()
        SegmentationDataModule(str(root), cache_dir=str(tmp_path / "cache"), **options).prepare_data()
        return caplog.text

    # 28 voxels of 0.5 mm are 14 of the head's 18 mm; of the lesion at its border nothing is left.
    text = prepare(roi_size=(28, 36))
    assert f"{root}: the crop to 28 × 36 voxels cuts off" in text and "48 of 72 target voxels (66.7%)" in text
    assert "of 3 subjects" in text and "--data.spacing" in text
    share = float(text.split("cuts off ")[1].split("%")[0])
    head = ellipsoid((44, 44, 4), (0.5, 0.5, 0.5), 9.0) > 0
    assert share == pytest.approx(100 * (1 - head[8:36, 4:40].sum() / head.sum()), abs=0.1) and share > 5
    assert prepare(roi_size=(28, 36)) == text  # from the cache
    assert prepare(roi_size=(28, 36), spacing=1.0) == ""
    assert prepare(roi_size=(28, 36), resize=True) == ""


def test_predict_says_what_the_crop_cuts_off(tmp_path, caplog):
    everyone = find_subjects(subjects(tmp_path / "data"), get_task("wmh"))
    list(predict(predictor(everyone[0], roi_size=(28, 36)), everyone, tmp_path / "out"))
    assert "the crop to 28 × 36 voxels cuts off" in caplog.text and "of the foreground of 4 subjects" in caplog.text
    caplog.clear()
    list(predict(predictor(everyone[0], roi_size=(44, 44)), everyone, tmp_path / "all"))
    assert caplog.text == ""
