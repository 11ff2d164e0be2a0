"""Removal of the MR bias field from raw volumes by N4 (Tustison et al. 2010), through SimpleITK.

The WMH challenge's ``pre/`` folders were corrected by their publishers and need none of this; raw volumes do.
"""

from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from scp_models.data.volume_files import NIFTI_ENDINGS, open_volume
from scp_models.errors import UserError
from scp_models.files import atomic_path
from scp_models.optional import simpleitk


def correct_bias(volume: NDArray[np.floating], shrink: tuple[int, int, int] = (4, 4, 2)) -> NDArray[np.float32]:
    """N4 bias field correction: the volume divided by its estimated smooth multiplicative field.

    Args:
        volume: intensities ``[X, Y, Z]``, not negative; the field is fitted where Otsu's threshold finds tissue.
        shrink: the field is fitted on every so many voxels of each axis, and applied at full resolution.

    Raises:
        UserError: SimpleITK is not installed (``pip install "scp_kernels[n4]"``).
        ValueError: not three axes, negative or non-finite intensities, or no contrast at all.
    """
    sitk = simpleitk("bias correction", "n4")
    if volume.ndim != 3:
        raise ValueError(f"volume: expected three axes, got shape {volume.shape}")
    if not np.isfinite(volume).all() or volume.min() < 0 or volume.min() == volume.max():
        raise ValueError("volume: expected finite intensities from 0 up, not all alike")
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.T, dtype=np.float32))
    tissue = sitk.OtsuThreshold(image, 0, 1, 200)
    factors = [max(1, min(f, n // 4)) for f, n in zip(shrink, volume.shape, strict=True)]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.Execute(sitk.Shrink(image, factors), sitk.Shrink(tissue, factors))
    field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).T
    return (volume / np.exp(field)).astype(np.float32)


def correct_file(source: Path, target: Path) -> None:
    """Correct one NIfTI file and write it as float32 in the same grid and affine.

    Raises:
        UserError: the source cannot be read or corrected, or the target cannot be written.
    """
    if not target.name.endswith(NIFTI_ENDINGS):
        raise UserError(f"{source}: expected a NIfTI file, whose name the result keeps")
    file = open_volume(source)
    if file.channels != 1:
        raise UserError(f"{source}: expected a 3-D volume, got shape {tuple(file.data.shape)}")
    volume = file.read().astype(np.float32)
    try:
        corrected = correct_bias(volume)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error
    image_class = nib.Nifti2Image if isinstance(file.header, nib.Nifti2Header) else nib.Nifti1Image
    header = file.header.copy()
    header.set_data_dtype(np.float32)
    header.set_slope_inter(1, 0)
    header.set_data_shape(corrected.shape)
    with atomic_path(target) as path:
        nib.save(image_class(corrected, file.stored_affine, header), path)
