"""N4 on a volume whose bias field is known."""

import nibabel as nib
import numpy as np
import pytest

from scp_models.data.bias import correct_bias, correct_file
from scp_models.errors import UserError
from tests.support.tiny_data import affine_for, save


@pytest.fixture(scope="module")
def volumes():
    """A head of two tissues without and with a field that falls by half along the first axis."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (64, 56, 12)), indexing="ij")
    radius = np.sqrt(x**2 + y**2)
    clean = np.where(radius < 0.45, 150.0, 100.0) * (radius < 0.85)
    clean += np.random.default_rng(0).uniform(0, 2, clean.shape)
    return clean.astype(np.float32), (clean * np.exp(0.35 * x + 0.1 * z)).astype(np.float32), radius


def variation(volume, where):
    return volume[where].std() / volume[where].mean()


def test_the_field_is_removed(volumes):
    _, biased, radius = volumes
    corrected = correct_bias(biased)
    assert corrected.dtype == np.float32 and corrected.shape == biased.shape
    for tissue in (radius < 0.4, (radius > 0.5) & (radius < 0.8)):
        assert variation(biased, tissue) > 0.08
        assert variation(corrected, tissue) < 0.25 * variation(biased, tissue)


def test_files_keep_their_grid(volumes, tmp_path):
    save(tmp_path / "FLAIR.nii.gz", volumes[1], affine_for(("L", "P", "S")))
    correct_file(tmp_path / "FLAIR.nii.gz", tmp_path / "out" / "FLAIR.nii.gz")
    source, written = nib.load(tmp_path / "FLAIR.nii.gz"), nib.load(tmp_path / "out" / "FLAIR.nii.gz")
    assert np.array_equal(source.affine, written.affine) and written.get_data_dtype() == np.float32
    assert np.allclose(written.get_fdata(), correct_bias(volumes[1]), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.zeros((8, 8, 8)), -np.ones((8, 8, 8)), np.full((8, 8, 8), np.nan)])
def test_what_has_no_field_is_refused(bad, tmp_path):
    with pytest.raises(ValueError, match="expected finite intensities"):
        correct_bias(bad)
    save(tmp_path / "a.nii.gz", bad.astype(np.float32), np.eye(4))
    with pytest.raises(UserError, match=r"a\.nii\.gz: volume: expected finite"):
        correct_file(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    assert not (tmp_path / "b.nii.gz").exists()
    with pytest.raises(UserError, match=r"a\.mha: expected a NIfTI file"):
        correct_file(tmp_path / "a.mha", tmp_path / "b" / "a.mha")
    with pytest.raises(ValueError, match="three axes"):
        correct_bias(np.ones((4, 4)))
