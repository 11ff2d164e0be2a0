"""From files to the network's grid and back, with the faults that real files have."""

import gzip
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scp_models.data import SegmentationDataModule, SourceGrid, Subject, VolumeReader, find_subjects, get_task
from scp_models.data.volume import VolumeFile
from scp_models.errors import UserError
from tests.support.tiny_data import AXIS_CODES, affine_for, save, write_lits, write_wmh_subject


def subject_at(folder, **options) -> Subject:
    write_wmh_subject(folder, seed=3, **options)
    return find_subjects(folder, get_task("wmh"))[0]


@pytest.mark.parametrize("codes", AXIS_CODES, ids="".join)
@pytest.mark.parametrize("roi", [(14, 18), (31, 27), (16, 40)], ids=str)
def test_restore_undoes_orientation_and_crop_exactly(tmp_path, codes, roi):
    subject = subject_at(tmp_path / "1", shape=(21, 24, 7), codes=codes)
    reader = VolumeReader(get_task("wmh", roi))
    volume = reader.read(subject)
    assert volume.image.shape[:3] == (2, *roi) and volume.label.shape == volume.image.shape[1:]
    restored = volume.restore(volume.label)
    reference = reader.read_label(subject)
    assert restored.shape == nib.load(subject.label).shape
    kept = volume.restore(np.ones_like(volume.label)).astype(bool)
    assert np.array_equal(restored[kept], reference[kept])
    assert not restored[~kept].any()
    canonical = nib.as_closest_canonical(nib.load(subject.label)).get_fdata()
    if all(r >= n for r, n in zip(roi, canonical.shape, strict=False)):
        assert np.array_equal(restored, reference)


def test_canonical_axes_are_left_right_and_back_front(tmp_path):
    """The same brain stored in two orientations is the same image to the network."""
    task = get_task("wmh", (20, 24))
    data = np.random.default_rng(0).random((20, 24, 6)).astype(np.float32)
    images = []
    for codes in (("R", "A", "S"), ("L", "P", "S"), ("P", "S", "R")):
        source = nib.Nifti1Image(data, affine_for("RAS"))
        target = nib.orientations.axcodes2ornt(codes)
        turned = source.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(source.affine), target))
        folder = tmp_path / "".join(codes)
        for name in ("T1", "FLAIR"):
            (folder / "pre").mkdir(parents=True, exist_ok=True)
            nib.save(turned, folder / "pre" / f"{name}.nii.gz")
        images.append(VolumeReader(task).read(find_subjects(folder, task)[0], with_label=False).image)
    assert np.allclose(images[0], images[1]) and np.allclose(images[0], images[2])
    z = (data - data.mean()) / data.std()
    assert np.allclose(images[0][1], z, atol=1e-5)


def test_wmh_crops_or_pads_and_scores_z(tmp_path):
    subject = subject_at(tmp_path / "1", shape=(13, 40, 5), other=True)
    volume = VolumeReader(get_task("wmh", (16, 32))).read(subject)
    assert volume.image.shape == (2, 16, 32, 5)
    assert np.allclose(volume.image.mean((1, 2, 3)), 0, atol=1e-5)
    assert np.allclose(volume.image.std((1, 2, 3)), 1, atol=1e-4)
    assert set(np.unique(volume.label)) <= {0, 1, 2} and (volume.label == 1).any()
    assert VolumeReader(get_task("wmh", (16, 40))).read(subject).label.max() == 2


def test_lits_window_resize_and_target(tmp_path):
    write_lits(tmp_path, (0, 1))
    free, tumour = find_subjects(tmp_path, get_task("lits"))
    reader = VolumeReader(get_task("lits", (12, 10)))
    volume = reader.read(tumour)
    assert volume.image.shape == (1, 12, 10, 5)
    assert volume.image.min() == -1.0 and volume.image.max() <= 1.0
    assert set(np.unique(reader.read_label(tumour))) == {0, 1}
    assert np.array_equal(reader.read_label(tumour) == 1, nib.load(tumour.label).get_fdata() == 2)
    assert not reader.read(free).label.any()
    # Linear interpolation of a constant is that constant, whatever the sizes and the orientation.
    assert np.allclose(volume.restore(np.full((12, 10, 5), 0.25, np.float32)), 0.25)
    assert volume.restore(np.zeros((12, 10, 5), np.float32)).shape == (24, 20, 5)


def test_resizing_takes_the_mean_of_intensities_and_the_middle_of_labels():
    file = VolumeFile(Path(), (36, 36, 1), np.eye(4), None, None, np.eye(4))
    grid = SourceGrid(file, get_task("lits", (12, 12)))
    stripes = np.zeros((36, 36, 1), np.float32)
    stripes[::3] = 1
    # Every third column; without antialiasing none of them would be seen.
    assert np.allclose(grid.fit(stripes)[2:-2], 1 / 3, atol=0.05)
    assert grid.fit(np.roll(stripes, 1, axis=0).astype(np.uint8)).all()
    # A mask is what exceeds the threshold: a dead network's logit of exactly 0 is no lesion.
    assert not grid.restore(np.full((12, 12, 1), 0.5, np.float32), 0.5).any()


def test_lits_headers_that_lie(tmp_path):
    write_lits(tmp_path, (28, 53))
    identity, mismatch = find_subjects(tmp_path, get_task("lits"))
    reader = VolumeReader(get_task("lits", (24, 20)))
    assert np.array_equal(reader.grid(identity).affine, np.eye(4))
    assert reader.grid(identity).canonical_shape == (24, 20, 5)
    before = reader.read(mismatch)
    stored = np.array(nib.load(mismatch.label).dataobj)
    save(mismatch.label, stored, np.diag([2.0, -3.0, 1.0, 1.0]))
    after = reader.read(mismatch)
    assert np.array_equal(before.label, after.label)
    assert np.array_equal(before.grid.affine, after.grid.affine)


@pytest.mark.parametrize("codes", [("L", "P", "S"), ("L", "P", "I")], ids="".join)
def test_long_volumes_are_read_in_chunks(tmp_path, monkeypatch, codes):
    import scp_models.data.alignment as alignment

    write_lits(tmp_path, (1,), shape=(16, 12, 23))
    (subject,) = find_subjects(tmp_path, get_task("lits"))
    for file in (*subject.images, subject.label):
        save(file, nib.load(file).get_fdata().astype(np.int16), affine_for(codes))
    reader = VolumeReader(get_task("lits", (16, 12)))
    whole = reader.read(subject)
    seen = []
    plain = alignment.apply_orientation
    monkeypatch.setattr(alignment, "CHUNK", 4)
    monkeypatch.setattr(alignment, "apply_orientation", lambda a, o: seen.append(a.shape) or plain(a, o))
    chunked = reader.read(subject)
    assert np.array_equal(whole.image, chunked.image) and np.array_equal(whole.label, chunked.label)
    # Six chunks of the image, of its foreground and of the label.
    assert max(shape[2] for shape in seen) == 4 and len(seen) == 18


def test_one_file_with_all_modalities(tmp_path):
    data = np.random.default_rng(0).random((20, 24, 6, 2)).astype(np.float32)
    save(tmp_path / "image.nii.gz", data, affine_for("LPS"))
    task = get_task("wmh", (20, 24))
    volume = VolumeReader(task).read(Subject("x", (tmp_path / "image.nii.gz",), None), with_label=False)
    first = data[::-1, ::-1, :, 0]
    assert np.allclose(volume.image[0], (first - first.mean()) / first.std(), atol=1e-5)
    save(tmp_path / "three.nii.gz", np.zeros((4, 4, 2, 3), np.float32), np.eye(4))
    with pytest.raises(UserError, match=r"three.nii.gz: expected 2 modalities along axis 4, got 3"):
        VolumeReader(task).read(Subject("x", (tmp_path / "three.nii.gz",), None), with_label=False)


def corrupt(path, how):
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif how == "short":
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-500]))
    elif how == "flipped":
        content = bytearray(path.read_bytes())
        for k in range(len(content) // 2, 3 * len(content) // 4):
            content[k] ^= 0xFF
        path.write_bytes(content)
    elif how == "text":
        path.write_text("this is not an image")
    elif how == "empty":
        path.write_bytes(b"")


@pytest.mark.parametrize("how", ["truncated", "short", "flipped", "text", "empty"])
@pytest.mark.parametrize("which", ["image", "label"])
def test_corrupt_files(tmp_path, how, which):
    subject = subject_at(tmp_path / "1")
    path = subject.images[1] if which == "image" else subject.label
    corrupt(path, how)
    with pytest.raises(UserError, match=rf"{path.name}: expected a (whole )?NIfTI file"):
        VolumeReader(get_task("wmh", (16, 16))).read(subject)


def test_truncated_uncompressed_file(tmp_path):
    write_lits(tmp_path, (1,))
    (subject,) = find_subjects(tmp_path, get_task("lits"))
    corrupt(subject.images[0], "truncated")
    with pytest.raises(UserError, match=r"volume-1.nii: expected a whole NIfTI file"):
        VolumeReader(get_task("lits", (16, 16))).read(subject)


def test_wrong_content(tmp_path):
    reader = VolumeReader(get_task("wmh", (16, 16)))
    subject = subject_at(tmp_path / "labels")
    label = np.zeros((20, 24, 6), np.float32)
    label[3, 3, 3] = 3
    label[4, 4, 4] = 0.5
    save(subject.label, label, np.eye(4))
    with pytest.raises(UserError, match=r"wmh.nii.gz: expected labels \(0, 1, 2\), got also \[0.5, 3.0\]"):
        reader.read(subject)
    save(subject.label, label[:10], np.eye(4))
    with pytest.raises(
        UserError, match=r"wmh.nii.gz: expected shape \(20, 24, 6\) as .*T1.nii.gz has, got \(10, 24, 6\)"
    ):
        reader.read(subject)
    subject = subject_at(tmp_path / "shape")
    save(subject.images[1], np.zeros((20, 24, 5), np.float32), np.eye(4))
    with pytest.raises(UserError, match=r"FLAIR.nii.gz: expected shape \(20, 24, 6\) as .*T1.nii.gz has"):
        reader.read(subject)
    subject = subject_at(tmp_path / "nan")
    save(subject.images[0], np.full((20, 24, 6), np.nan, np.float32), affine_for("RAS"))
    with pytest.raises(UserError, match=r"T1.nii.gz: expected intensities, every voxel is NaN"):
        reader.read(subject)
    subject = subject_at(tmp_path / "infinite")
    save(subject.images[0], np.full((20, 24, 6), np.inf, np.float32), affine_for("RAS"))
    with pytest.raises(UserError, match=r"T1.nii.gz: expected finite intensities, got infinity"):
        reader.read(subject)
    subject = subject_at(tmp_path / "unlabelled")
    with pytest.raises(UserError, match="expected a reference segmentation for this image, there is none"):
        reader.read(Subject("x", subject.images, None))


@pytest.mark.parametrize("task", ["wmh", "lits"])
def test_nan_outside_of_the_brain_is_background(tmp_path, task):
    def volume(folder, outside):
        values = np.random.default_rng(0).normal(40, 20, (20, 24, 6)).astype(np.float32)
        values[:3], values[:, -2:] = outside, outside
        save(path := tmp_path / folder / "volume-0.nii.gz", values, affine_for("LPS"))
        reader = VolumeReader(replace(get_task(task), modalities=("one",)))
        return reader.read(Subject("0", (path,), None), with_label=False)

    expected = volume("filled", 0.0 if task == "wmh" else get_task("lits").window[0])
    result = volume("spm", np.nan)
    assert np.array_equal(result.image, expected.image) and repr(result.geometry) == repr(expected.geometry)
    (line,) = result.notes
    share = 1 - 17 / 20 * 22 / 24
    assert line.endswith(f"volume-0.nii.gz: {share:.2%} of the voxels are NaN, read as {0 if task == 'wmh' else -200}")


@pytest.mark.parametrize("slope", [1 / 255, 1 / 3, 0.1, 1e-4], ids=str)
def test_labels_with_a_slope(tmp_path, slope):
    """Scaled integers are a little beside the labels that they stand for."""
    subject = subject_at(tmp_path / "1", other=True)
    before = VolumeReader(get_task("wmh", (20, 24))).read_label(subject)
    stored = nib.load(subject.label)
    image = nib.Nifti1Image(np.rint(np.asarray(stored.dataobj) / slope).astype(np.int16), stored.affine)
    image.header.set_slope_inter(np.float32(slope), 0)
    nib.save(image, subject.label)
    reread = np.asarray(nib.load(subject.label).dataobj)
    assert slope == 1e-4 or not np.array_equal(reread, np.rint(reread))
    assert np.array_equal(VolumeReader(get_task("wmh", (20, 24))).read_label(subject), before)


@pytest.mark.parametrize("value", [0.9999, 1 / 3, 2 / 3, 1.0005, np.inf, np.nan])
def test_interpolated_labels_stay_errors(tmp_path, value):
    subject = subject_at(tmp_path / "1")
    stored = nib.load(subject.label)
    label = np.asarray(stored.dataobj)
    save(subject.label, np.where(label == 1, value, 0).astype(np.float32), stored.affine)
    with pytest.raises(UserError, match=r"wmh.nii.gz: expected labels \(0, 1, 2\), got also \["):
        VolumeReader(get_task("wmh", (20, 24))).read_label(subject)
    with pytest.raises(UserError, match=r"wmh.nii.gz: expected labels that are integers, got also \["):
        VolumeReader(get_task("wmh", (20, 24), {"target": [1]})).read_label(subject)
    # What a slope of 1/255 reads, stored again in single precision.
    save(subject.label, (label * np.float32(1.00000006)).astype(np.float32), stored.affine)
    assert VolumeReader(get_task("wmh", (20, 24))).read_label(subject).any()


def test_an_interpolated_label_with_a_slope(tmp_path):
    subject = subject_at(tmp_path / "1")
    stored = nib.load(subject.label)
    image = nib.Nifti1Image((170 * np.asarray(stored.dataobj)).astype(np.uint8), stored.affine)
    image.header.set_slope_inter(1 / 255, 0)
    nib.save(image, subject.label)
    with pytest.raises(UserError, match=r"expected labels \(0, 1, 2\), got also \[0.66"):
        VolumeReader(get_task("wmh", (20, 24))).read_label(subject)


@pytest.mark.parametrize(("value", "dtype"), [(255, np.uint8), (65535, np.uint16), (255, np.float32)])
def test_masks_of_another_value(tmp_path, value, dtype):
    subject = subject_at(tmp_path / "1")
    before = VolumeReader(get_task("wmh", (20, 24))).read_label(subject)
    stored = nib.load(subject.label)
    save(subject.label, (np.asarray(stored.dataobj) * value).astype(dtype), stored.affine)
    with pytest.raises(UserError, match=rf"\(a mask of 0 and {value}: --data.target {value}\)"):
        VolumeReader(get_task("wmh", (20, 24))).read_label(subject)
    task = SegmentationDataModule(str(tmp_path), target=value, roi_size=(20, 24)).task
    assert np.array_equal(VolumeReader(task).read_label(subject), before)


def test_unknown_task():
    with pytest.raises(UserError, match="task: expected one of"):
        get_task("brats")
