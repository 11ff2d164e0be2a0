"""The one way in which a volume comes from disk: image, further modality, label or prediction, in any format.

Whatever the format says of units and axes, a :class:`VolumeFile` has three spatial axes ``[x, y, z]`` and an affine
from voxel indices to millimetres in the patient, x to the right, y to the front, z to the top (RAS+).
"""

import glob
import gzip
import math
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from scp_models.data.geometry import TOLERANCE, corner_distance
from scp_models.data.itk_files import open_dicom, open_itk
from scp_models.data.volume import VolumeFile, checked, is_clutter
from scp_models.errors import UserError

NIFTI_ENDINGS = (".nii.gz", ".nii")
ITK_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
ENDINGS = (*NIFTI_ENDINGS, *ITK_ENDINGS)

_MILLIMETRES = {1: 1000.0, 2: 1.0, 3: 0.001}
"""Per unit of NIfTI's ``xyzt_units``; an unknown unit is a millimetre."""
_NIFTI_ERRORS = (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, nib.wrapstruct.WrapStructError)


def open_volume(path: Path) -> VolumeFile:
    """Open a volume in any of the formats: NIfTI, NRRD, MHA or MHD, or a folder of DICOM slices.

    Axes past the third that have length 1 are dropped; at most one other axis, of channels, is allowed.

    Raises:
        UserError: no such file, another format, corrupt, not three axes, voxels that are not numbers, or an affine
            that places no volume; or SimpleITK is needed and is not installed.
    """
    if path.is_dir():
        return open_dicom(path)
    if path.name.endswith(ITK_ENDINGS):
        return open_itk(path)
    return _open_nifti(path)


def millimetres_per_unit(xyzt_units: int) -> float:
    """Of the unit that a NIfTI header's field says, in which its affine is."""
    return _MILLIMETRES.get(xyzt_units & 7, 1.0)


def volume_stem(path: Path) -> str:
    """The file's name without its ending; a folder's name as it is."""
    if not path.is_dir():
        for ending in ENDINGS:
            if path.name.endswith(ending):
                return path.name.removesuffix(ending)
    return path.name or path.absolute().name


def files_of(path: Path) -> list[Path]:
    """All files that a volume consists of: a folder's slices, a header's data beside it.

    Raises:
        OSError: the folder cannot be listed.
    """
    if path.is_dir():
        return [file for file in sorted(path.iterdir()) if not is_clutter(file)]
    if path.suffix in (".mhd", ".nhdr"):
        return sorted({path, *path.parent.glob(f"{glob.escape(path.stem)}.*")})
    return [path]


def _open_nifti(path: Path) -> VolumeFile:
    """A compressed file is decompressed whole: slices would decompress it anew each time, and only at its end does
    gzip's checksum show whether it is intact.
    """
    try:
        if path.suffix == ".gz":
            content = gzip.decompress(path.read_bytes())
            _check_header(path, content, len(content))
            image: Any = _image_class(content).from_bytes(content)
        else:
            with path.open("rb") as stream:
                _check_header(path, stream.read(540), path.stat().st_size)
            image = nib.load(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: expected a NIfTI file, there is none") from error
    except (*_NIFTI_ERRORS, OSError, EOFError, ValueError, OverflowError, KeyError, zlib.error) as error:
        raise UserError(f"{path}: expected a NIfTI file, it cannot be read ({error})") from error
    header = image.header
    scale = millimetres_per_unit(int(header["xyzt_units"]))
    affine = np.diag([scale, scale, scale, 1.0]) @ np.asarray(image.affine, dtype=float)
    file = VolumeFile(
        path,
        tuple(int(n) for n in image.shape[:3]),  # type: ignore[arg-type]
        affine,
        image.dataobj,
        header,
        np.asarray(image.affine, dtype=float),
        oriented=bool(int(header["sform_code"]) or int(header["qform_code"])),
        scaled=(image.dataobj.slope, image.dataobj.inter) != (1.0, 0.0),
    )
    file = checked(file)
    return replace(file, notes=_disagreement(file, scale))


def _image_class(content: bytes) -> Any:
    nifti2 = content[:4] in (struct.pack("<i", 540), struct.pack(">i", 540))
    return nib.Nifti2Image if nifti2 else nib.Nifti1Image


def _check_header(path: Path, content: bytes, file_size: int) -> None:
    """Refuse what nibabel would read in a way that the file does not say: it takes a voxel size of 0 for 1, and the
    header for voxels where they begin at 0; and what is larger than its file, before memory is asked for it.
    """
    header_class = _image_class(content).header_class
    size = header_class.template_dtype.itemsize
    if len(content) < size:
        raise EOFError(f"{len(content)} bytes")
    # nibabel guesses the byte order from the number of axes, and takes another one where that is negative.
    order = {struct.pack(f"{sign}i", size): sign for sign in "<>"}.get(content[:4])
    header = header_class(content[:size], endianness=order, check=False)
    axes = int(header["dim"][0])
    if not 1 <= axes <= 7:
        if order is None:
            return  # nibabel says what it is
        raise UserError(f"{path}: expected a 3-D volume, got {axes} axes")
    shape = tuple(int(n) for n in header.get_data_shape())
    if min(shape) < 1:
        raise UserError(f"{path}: expected a 3-D volume, got shape {shape}")
    sizes = [float(size) for size in header["pixdim"][1:4]]
    if not all(np.isfinite(sizes)) or 0.0 in sizes[: len(shape)]:
        raise UserError(f"{path}: expected voxel sizes other than 0 in pixdim, got {sizes}")
    dtype = header.get_data_dtype()
    if dtype.fields is not None or dtype.kind not in "iuf":
        kind = "".join(dtype.names) if dtype.names else dtype.name
        raise UserError(f"{path}: expected one real number per voxel, got {kind}")
    offset, length = int(header["vox_offset"]), math.prod(shape) * dtype.itemsize
    if offset < size:
        raise UserError(f"{path}: expected voxels after the header's {size} bytes, got vox_offset {offset}")
    if file_size < offset + length:
        raise UserError(
            f"{path}: expected a whole NIfTI file, it is truncated or corrupt (expected {offset + length} bytes, got "
            f"{file_size})"
        )


def _disagreement(file: VolumeFile, scale: float) -> tuple[str, ...]:
    """A note where sform and qform both count and place the voxels elsewhere."""
    if not (int(file.header["sform_code"]) and int(file.header["qform_code"])):
        return ()
    try:
        other = np.diag([scale, scale, scale, 1.0]) @ file.header.get_qform()
    except _NIFTI_ERRORS:
        return ()
    distance = corner_distance(file.affine, other, file.shape)
    if distance <= TOLERANCE * file.spacing.min():
        return ()
    return (f"{file.path}: sform and qform place voxels up to {distance:.3g} mm apart; the sform counts",)
