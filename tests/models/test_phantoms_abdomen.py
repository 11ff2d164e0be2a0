"""The abdomen phantoms: LiTS's layout on disk, one seed for every byte, and what the scans contain."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage as ndi

from scp_models.phantoms import generate_lits, lits
from scp_models.phantoms.abdomen import make_abdomen
from scp_models.phantoms.writing import RECORD, subject_seed
from tests.support.digests import digests

# One process makes what they share.
pytestmark = pytest.mark.xdist_group("phantoms_abdomen")

TINY_CT = (64, 64, 16)


@pytest.fixture(scope="module")
def lits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lits")
    generate_lits(out, 30, seed=3, size=TINY_CT, progress=False)
    return out


def scan(folder: Path, number: int) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    path = folder / lits.volume_path(number)
    return nib.load(path), nib.load(lits.segmentation_path(path))


def test_lits_layout_and_types(lits_folder: Path) -> None:
    expected = {
        f"Training Batch {1 if number < 28 else 2}/{kind}-{number}.nii"
        for number in range(30)
        for kind in ("volume", "segmentation")
    }
    assert set(digests(lits_folder)) == expected | {RECORD}
    for number in range(30):
        volume, label = scan(lits_folder, number)
        assert volume.get_data_dtype() == np.int16
        assert label.get_data_dtype() == np.uint8
        assert volume.shape == label.shape == TINY_CT
        np.testing.assert_array_equal(volume.affine, label.affine)
        hu = np.asarray(volume.dataobj)
        assert hu.min() >= -1024
        assert hu.max() <= 3071


def test_lits_tumours_are_hypodense_liver_and_some_scans_have_none(lits_folder: Path) -> None:
    free = 0
    for number in range(30):
        volume, label = (np.asarray(image.dataobj) for image in scan(lits_folder, number))
        assert {0, 1} <= set(np.unique(label)) <= {0, 1, 2}
        assert 50 < volume[label == 1].mean() < 170
        if not (label == 2).any():
            free += 1
            continue
        core = ndi.binary_erosion(label == 2)
        if core.any():
            assert volume[core].mean() < volume[label == 1].mean() - 15
        # A tumour touches liver, and never the background alone.
        touched = ndi.binary_dilation(label == 2) & (label == 1)
        assert touched.any()
    assert 1 <= free <= 8  # 30 draws at 0.1


def test_lits_liver_lies_on_the_right_of_the_patient(lits_folder: Path) -> None:
    for number in range(28):  # later ones have no usable header
        _, label = scan(lits_folder, number)
        canonical = nib.as_closest_canonical(label)
        liver = np.argwhere(np.asarray(canonical.dataobj) > 0).mean(axis=0)
        assert liver[0] > TINY_CT[0] * 0.52
        assert liver[1] > TINY_CT[1] * 0.42


def test_lits_orientations_are_mixed_in_the_plane(lits_folder: Path) -> None:
    codes = ["".join(nib.aff2axcodes(scan(lits_folder, number)[0].affine)) for number in range(28)]
    assert len(set(codes)) >= 3
    assert {code[2] for code in codes} == {"S"}


@pytest.mark.parametrize("number", [28, 47])
def test_lits_headers_without_orientation(tmp_path: Path, number: int) -> None:
    lits._write_scan(tmp_path, 0, TINY_CT, False, False, number)
    for image in scan(tmp_path, number):
        np.testing.assert_array_equal(image.affine, np.eye(4))
        assert image.header.get_zooms() == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("number", [27, 48, 53])
def test_lits_headers_with_orientation(tmp_path: Path, number: int) -> None:
    lits._write_scan(tmp_path, 0, TINY_CT, False, False, number)
    volume, label = scan(tmp_path, number)
    assert volume.header.get_zooms()[2] == pytest.approx(11.0)
    assert np.array_equal(volume.affine, label.affine) == (number != 53)
    # Whatever the header says, the arrays belong together: the labelled voxels are soft tissue.
    hu = np.asarray(volume.dataobj)[np.asarray(label.dataobj) > 0]
    assert 60 < np.median(hu) < 160


def test_lits_confounders_are_dark_and_unlabelled() -> None:
    """As dark as tumours, within the abdomen, outside the label: gall bladder, kidneys' pelves, stomach, cysts."""
    abdomen = make_abdomen((128, 128, 24), (3.1, 3.1, 7.3), subject_seed(5, 1, 0))
    dark = ndi.binary_opening((abdomen.volume > -20) & (abdomen.volume < 60), iterations=1)
    near_liver = ndi.binary_dilation(abdomen.label > 0, iterations=4) & (abdomen.label == 0)
    assert (dark & near_liver).sum() > 100
    assert (abdomen.volume > 200).sum() > 1000  # bone
    assert (abdomen.volume < -700)[40:88, 40:88].any()  # gas or lung


@pytest.mark.parametrize("number", range(6))
def test_lits_sizes(number: int) -> None:
    shape, spacing = lits._grid("full", np.random.default_rng(number))
    assert shape[:2] == (512, 512)
    assert 41 <= shape[2] <= 128
    assert 512 * spacing[0] < 380 or 512 * spacing[0] < 450
    assert lits._grid("small", np.random.default_rng(number))[0] == (128, 128, 24)


def test_lits_bytes_depend_on_the_seed_alone(lits_folder: Path, tmp_path: Path) -> None:
    reference = digests(lits_folder)
    generate_lits(tmp_path, 3, seed=3, size=TINY_CT, progress=False)
    fewer = digests(tmp_path)
    assert len(fewer) == 6 + 1
    assert fewer == {name: reference[name] for name in fewer}


def test_an_interrupted_run_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0
    original = Path.write_bytes

    def fail_late(self: Path, data: bytes) -> int:
        nonlocal written
        written += 1
        if written == 4:
            original(self, data[: len(data) // 2])
            raise KeyboardInterrupt
        return original(self, data)

    monkeypatch.setattr(lits, "available_cores", lambda: 1)
    monkeypatch.setattr(Path, "write_bytes", fail_late)
    with pytest.raises(KeyboardInterrupt):
        generate_lits(tmp_path, 5, 0, size=TINY_CT, progress=False)
    monkeypatch.undo()
    # What was running may finish; what had not started never does, and what was interrupted is not there.
    files = sorted(p.name for p in tmp_path.rglob("*") if p.is_file())
    assert {"segmentation-0.nii", "segmentation-1.nii", "volume-0.nii"} <= set(files)
    assert not {"volume-1.nii", "volume-4.nii"} & set(files)
    assert all(name.startswith(("volume-", "segmentation-")) for name in files if name != RECORD)
    for path in tmp_path.rglob("*.nii"):
        assert nib.load(path).get_fdata().shape == TINY_CT
