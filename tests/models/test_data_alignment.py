"""Every file in the grid of its subject's first image, by its own affine."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scp_models.data import Subject, VolumeReader, get_task
from scp_models.data.geometry import TOLERANCE
from scp_models.errors import UserError
from scp_models.evaluation.predictions import PredictionFiles
from scp_models.evaluation.scores import evaluate
from scp_models.inference.predictor import predict
from tests.support.brightness import predictor
from tests.support.tiny_data import AXIS_CODES, affine_for, blobs, save, turned

SHAPE = (20, 24, 12)


def head(shape=SHAPE, seed=0):
    """A bright ellipsoid in the dark, brighter to the left, in front and at the top, with lesions: image, mask."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    inside = (grid**2).sum(0) < 0.8
    mask = blobs(shape, seed) & inside
    image = inside * (100 + 20 * grid[0] + 10 * grid[1] + 5 * grid[2]) + 80 * mask
    return image.astype(np.float32), mask.astype(np.uint8)


def moved(affine, voxels):
    return affine @ nib.affines.from_matvec(np.eye(3), voxels)


class Files:
    """Two modalities and a label of one subject, each rewritten at will."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.affine = affine_for("RAS", (1.0, 1.2, 3.0))
        self.image, self.mask = head()
        for name in ("T1", "FLAIR"):
            save(folder / f"{name}.nii.gz", self.image, self.affine)
        save(folder / "label.nii.gz", self.mask, self.affine)

    def write(self, name, data, affine):
        save(self.folder / f"{name}.nii.gz", data, affine)

    @property
    def subject(self):
        return Subject("s", (self.folder / "T1.nii.gz", self.folder / "FLAIR.nii.gz"), self.folder / "label.nii.gz")


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def task(**options):
    return get_task("wmh", (20, 24), options)


@pytest.mark.parametrize("codes", AXIS_CODES, ids="".join)
@pytest.mark.parametrize("name", ["T1", "FLAIR", "label"])
def test_turned_axes_are_turned_back_exactly(files, codes, name, caplog):
    reader = VolumeReader(task())
    before = reader.read(files.subject)
    files.write(name, *turned(files.mask if name == "label" else files.image, files.affine, codes))
    after = reader.read(files.subject)
    assert np.allclose(before.image, after.image, atol=1e-5) and np.array_equal(before.label, after.label)
    stored = nib.load(files.subject.images[0])
    expected = nib.as_closest_canonical(stored)
    assert np.allclose(after.affine, expected.affine, atol=1e-4)
    in_source = turned(files.mask, files.affine, nib.aff2axcodes(stored.affine))[0]
    assert np.array_equal(reader.read_label(files.subject), in_source)
    assert caplog.text == ""


@pytest.mark.parametrize("codes", AXIS_CODES, ids="".join)
def test_perfect_predictions_of_turned_modalities_score_one(files, codes, tmp_path):
    files.write("FLAIR", *turned(files.image, files.affine, codes))
    files.write("label", *turned(files.mask, files.affine, ("P", "L", "S")))
    model = predictor(files.subject)
    assert evaluate(model, [files.subject])[0]["dice"] == 1.0
    (path,) = predict(model, [files.subject], tmp_path / "out")
    written = nib.load(path)
    assert np.array_equal(written.affine, nib.load(files.subject.images[0]).affine)
    assert np.array_equal(written.dataobj, files.mask)
    masks = PredictionFiles(tmp_path / "out", [files.subject], task())
    assert evaluate(masks, [files.subject])[0]["dice"] == 1.0


def test_a_shifted_modality_is_read_where_it_lies(files, caplog):
    """Cut out of a larger volume: whole voxels away, so that nothing is interpolated."""
    before = VolumeReader(task()).read(files.subject)
    files.write("FLAIR", np.pad(files.image, ((2, 1), (0, 3), (1, 0))), moved(files.affine, (-2, 0, -1)))
    after = VolumeReader(task()).read(files.subject)
    assert np.allclose(before.image, after.image, atol=1e-4)
    assert "FLAIR.nii.gz: has another grid (23, 27, 13) than" in caplog.text and "resampled linearly" in caplog.text
    assert any("resampled linearly" in line for line in after.notes)


def test_another_spacing_and_rotation_are_resampled(files):
    """A linear ramp is resampled without error wherever the file covers."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in (40, 48, 30)), indexing="ij"), axis=-1)
    turn = nib.eulerangles.euler2mat(z=np.deg2rad(20), x=np.deg2rad(26))
    affine = nib.affines.from_matvec(turn @ np.diag([0.9, 0.8, 1.7]), (-10.0, -2.0, -5.0))
    ramp = nib.affines.apply_affine(affine, index) @ (1.0, 0.5, 0.25)
    files.write("FLAIR", ramp.astype(np.float32), affine)
    volume = VolumeReader(task()).read(files.subject)
    places = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1)
    expected = nib.affines.apply_affine(files.affine, places) @ (1.0, 0.5, 0.25)
    inverse = nib.affines.apply_affine(np.linalg.inv(affine) @ files.affine, places)
    covered = np.all((inverse >= 0) & (inverse <= np.array((40, 48, 30)) - 1), axis=-1)
    assert covered.mean() > 0.6
    slope, offset = np.polyfit(expected[covered], volume.image[1][covered], 1)
    assert np.allclose(volume.image[1][covered], slope * expected[covered] + offset, atol=1e-3) and slope > 0


def test_a_modality_elsewhere_is_refused(files):
    files.write("FLAIR", files.image, moved(files.affine, (12, 0, 0)))
    with pytest.raises(UserError, match=r"FLAIR.nii.gz: expected shape .* covers 40% of it by their affines"):
        VolumeReader(task()).read(files.subject)


def test_a_modality_without_orientation_is_taken_voxel_by_voxel(files, caplog):
    before = VolumeReader(task()).read(files.subject)
    nib.save(nib.Nifti1Image(files.image, None), files.folder / "FLAIR.nii.gz")
    after = VolumeReader(task()).read(files.subject)
    assert np.array_equal(before.image, after.image)
    assert "FLAIR.nii.gz has no orientation" in caplog.text
    nib.save(nib.Nifti1Image(files.image[1:], None), files.folder / "FLAIR.nii.gz")
    with pytest.raises(UserError, match=r"FLAIR.nii.gz: expected shape \(20, 24, 12\) as .*, got \(19, 24, 12\)"):
        VolumeReader(task()).read(files.subject)


def test_a_label_on_another_grid_is_taken_where_it_lies(files, caplog):
    """Cropped to its lesions, as 3D Slicer writes segmentations."""
    low = np.argwhere(files.mask).min(0)
    files.write("label", files.mask[tuple(slice(n, None) for n in low)], moved(files.affine, low))
    assert np.array_equal(VolumeReader(task()).read_label(files.subject), files.mask)
    assert "label.nii.gz: has another grid" in caplog.text and "100% of it lies on the foreground" in caplog.text


def test_a_label_with_a_wrong_affine_is_taken_by_its_voxels(files, caplog):
    files.write("label", files.mask, np.diag([-1.0, -1, 1, 1]))
    assert np.array_equal(VolumeReader(task()).read_label(files.subject), files.mask)
    assert "lies on the foreground by its affine, 100% by its indices): taken voxel by voxel" in caplog.text


def test_a_label_that_lies_nowhere_is_refused(files):
    files.write("label", np.roll(files.mask, 11, axis=0)[:, ::-1], np.diag([-1.0, -1, 1, 1]))
    with pytest.raises(UserError, match=r"label.nii.gz: expected shape .* --data.label_affine, for evaluate --label-a"):
        VolumeReader(task()).read_label(files.subject)
    assert VolumeReader(task(label_affine="image")).read_label(files.subject).any()
    assert not VolumeReader(task(label_affine="header")).read_label(files.subject).any()


def test_label_affine_decides(files, caplog):
    """Two voxels aside both places are plausible: the affine counts unless the option says otherwise."""
    files.write("label", files.mask, moved(files.affine, (2, 0, 0)))
    aside = np.roll(files.mask, 2, axis=0)
    for options in ({}, {"label_affine": "header"}):
        assert np.array_equal(VolumeReader(task(**options)).read_label(files.subject), aside)
    assert np.array_equal(VolumeReader(task(label_affine="image")).read_label(files.subject), files.mask)
    assert "(label_affine: image)" in caplog.text
    files.write("label", *turned(files.mask, files.affine, ("L", "A", "S")))
    assert np.array_equal(VolumeReader(task(label_affine="image")).read_label(files.subject), files.mask[::-1])
    files.write("label", files.mask[1:], files.affine)
    with pytest.raises(UserError, match=r"label.nii.gz: expected shape \(20, 24, 12\) as .*, got \(19, 24, 12\)"):
        VolumeReader(task(label_affine="image")).read_label(files.subject)
    with pytest.raises(UserError, match="label_affine: expected one of"):
        task(label_affine="sform")


def test_an_empty_label_elsewhere(files):
    files.write("label", np.zeros(SHAPE, np.uint8), moved(files.affine, (1, 0, 0)))
    assert not VolumeReader(task()).read_label(files.subject).any()
    files.write("label", np.zeros(SHAPE, np.uint8), moved(files.affine, (200, 0, 0)))
    with pytest.raises(UserError, match=r"label.nii.gz: expected shape .*mm elsewhere"):
        VolumeReader(task()).read_label(files.subject)


@pytest.mark.parametrize("roi", [(12, 16), (28, 30)], ids=str)
@pytest.mark.parametrize("options", [{}, {"resize": True}, {"spacing": 0.7}], ids=["crop", "resize", "spacing"])
@pytest.mark.parametrize("codes", [("R", "A", "S"), ("P", "S", "R")], ids="".join)
def test_every_volume_carries_its_affine(tmp_path, roi, options, codes):
    """Intensities that are a place in mm: what the network sees lies where its affine says."""
    affine = affine_for(codes, (1.0, 1.2, 3.0))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1)
    places = nib.affines.apply_affine(affine, index).astype(np.float32)
    save(tmp_path / "a.nii.gz", places, affine)
    plain = {"modalities": ["x", "y", "z"], "window": [-1000, 1000], **options}
    reader = VolumeReader(get_task("wmh", roi, plain))
    volume = reader.read(Subject("a", (tmp_path / "a.nii.gz",), None), with_label=False)
    h, w, z = volume.image.shape[1:]
    seen = np.stack(np.meshgrid(np.arange(h), np.arange(w), np.arange(z), indexing="ij"), axis=-1)
    expected = nib.affines.apply_affine(volume.affine, seen)
    # Padding is no place, and at the border an interpolated slice repeats its last pixel.
    inside = np.all(volume.image != 0, axis=0)
    inside &= nib.affines.apply_affine(np.linalg.inv(affine), expected).min(-1) >= 0
    last = np.array(SHAPE) - 1
    inside &= np.all(nib.affines.apply_affine(np.linalg.inv(affine), expected) <= last + 1e-6, axis=-1)
    shrinks = "resize" in options and roi[0] < SHAPE[0]
    if shrinks:
        # The filter that prevents aliasing is cut off at the border.
        inside[[0, 1, -2, -1]] = inside[:, [0, 1, -2, -1]] = False
    assert inside.mean() > 0.2
    result = volume.image.transpose(1, 2, 3, 0)[inside] * 1000
    # Inside it is symmetric up to its sampling: a small part of a voxel.
    assert np.abs(result - expected[inside]).max() < (TOLERANCE if shrinks else 1e-3)
