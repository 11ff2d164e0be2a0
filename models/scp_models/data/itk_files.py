"""NRRD, MHA, MHD and folders of DICOM slices, through SimpleITK, an optional extra."""

import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from scp_models.data.geometry import LPS_TO_RAS
from scp_models.data.volume import VolumeFile, checked, is_clutter
from scp_models.errors import UserError
from scp_models.optional import simpleitk

# Gaps between DICOM slices may differ by this share of their median: positions are printed in decimals.
_GAP_TOLERANCE = 0.02
# Of compressed voxels at a time.
_CHECKED_BYTES = 1 << 20
# NRRD's spaces that are the patient's; others, or none, leave the voxels' sizes.
_PATIENT_SPACES = (
    "right-anterior-superior",
    "left-anterior-superior",
    "left-posterior-superior",
    "right-anterior-superior-time",
    "left-anterior-superior-time",
    "left-posterior-superior-time",
    *("RAS", "LAS", "LPS", "RAST", "LAST", "LPST"),
)
_MILLIMETRES = {
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), 1.0),
    **dict.fromkeys(("um", "µm", "micron", "microns", "micrometer", "micrometers"), 1e-3),
    **dict.fromkeys(("cm", "centimeter", "centimeters"), 10.0),
    **dict.fromkeys(("m", "meter", "meters"), 1000.0),
}
"""Per unit of length, by the names that headers have for it."""


def open_itk(path: Path) -> VolumeFile:
    """A file that ITK reads.

    Raises:
        UserError: SimpleITK is not installed, or the file cannot be read, or it is no volume of real numbers.
    """
    sitk = simpleitk(f"{path}: reading it", "itk")
    if not path.is_file():
        raise UserError(f"{path}: expected a volume, there is none")
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise UserError(f"{path}: expected a whole volume, it cannot be read ({_reason(error)})") from error
    fields = _header_fields(path)
    _check_compressed(path, fields)
    oriented = fields.keys() & {"transformmatrix", "rotation", "orientation"} or fields.get("space") in _PATIENT_SPACES
    return _volume(sitk, path, image, bool(oriented), _millimetres_per_unit(path, fields))


def is_dicom_folder(folder: Path) -> bool:
    """Whether a folder itself holds DICOM files, by the mark that starts them."""
    if not folder.is_dir():
        return False
    return any(_has_dicom_mark(file) for file in _files(folder))


def open_dicom(folder: Path) -> VolumeFile:
    """The one series of slices in a folder.

    Raises:
        UserError: SimpleITK is not installed, no series or several, slices that are missing or cannot be read.
    """
    if not is_dicom_folder(folder):
        raise UserError(f"{folder}: expected a folder of DICOM slices, it has none")
    sitk = simpleitk(f"{folder}: reading it", "itk")
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise UserError(f"{folder}: expected one series of DICOM slices, got {len(series)} (one folder per series)")
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
    names = [name for name in names if not is_clutter(Path(name))]
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(names)
    try:
        if len(names) > 1:
            _check_gaps(folder, [_position(sitk, name) for name in names])
        image = reader.Execute()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{folder}: expected whole DICOM slices, they cannot be read ({_reason(error)})") from error
    return _volume(sitk, folder, image)


def _header_fields(path: Path) -> dict[str, str]:
    """The fields of a header of NRRD or MetaImage, which is text: ITK does not give all of them."""
    fields = {}
    with path.open("rb") as file:
        for line in file:
            text = line.decode("latin-1").strip()
            # NRRD's ``key:=value`` is the user's own; a comment or the first line is no field.
            key, separator, value = text.partition("=" if path.suffix in (".mha", ".mhd") else ": ")
            if separator:
                fields[key.strip().lower()] = value.strip()
            if not text or key.strip().lower() == "elementdatafile":
                break
    return fields


def _check_compressed(path: Path, fields: Mapping[str, str]) -> None:
    """Compare the checksum of compressed voxels, which ITK does not.

    Raises:
        UserError: it is that of others.
    """
    is_nrrd = path.suffix in (".nrrd", ".nhdr")
    compressed = (
        fields.get("encoding", "").lower() in ("gz", "gzip") if is_nrrd else fields.get("compresseddata") == "True"
    )
    beside = fields.get("data file", fields.get("datafile", fields.get("elementdatafile", "LOCAL")))
    file = path if beside == "LOCAL" else path.parent / beside
    if not compressed or not file.is_file():
        return  # a list of files, one per slice
    content = file.read_bytes()
    if file == path:
        end = re.search(rb"\r?\n\r?\n" if is_nrrd else rb"ElementDataFile[^\n]*\n", content)
        content = content[end.end() :] if end else content
    try:
        stream = zlib.decompressobj(wbits=47)  # zlib's or gzip's
        for start in range(0, len(content), _CHECKED_BYTES):
            stream.decompress(content[start : start + _CHECKED_BYTES])
    except zlib.error as error:
        raise UserError(f"{file}: expected a whole volume, it is corrupt ({error})") from error
    if not stream.eof:
        raise UserError(f"{file}: expected a whole volume, it is truncated")


def _millimetres_per_unit(path: Path, fields: Mapping[str, str]) -> float:
    """Of the one unit that the header says; 1 where it says none.

    Raises:
        UserError: a unit that is no length, or several.
    """
    if "distanceunits" in fields:
        units = [fields["distanceunits"]]
    else:
        units = re.findall('"([^"]*)"', fields.get("space units", fields.get("units", "")))
    units = [unit.strip() for unit in units if unit.strip().lower() not in ("", "?", "???", "none")][:3]
    scales = {_MILLIMETRES.get(unit.lower()) for unit in units} or {1.0}
    (scale, *others) = scales
    if scale is None or others:
        raise UserError(f"{path}: expected one unit of length for all axes (mm, um, cm, m), got {', '.join(units)}")
    return scale


def _volume(sitk: Any, path: Path, image: Any, oriented: bool = True, scale: float = 1.0) -> VolumeFile:
    """ITK's axes are left, back, top in the patient; its arrays have the first axis last.

    Args:
        sitk: SimpleITK.
        path: of the file.
        image: its content.
        oriented: whether the file says where its voxels lie.
        scale: millimetres per unit of its affine.
    """
    if image.GetNumberOfComponentsPerPixel() != 1 or "complex" in image.GetPixelIDTypeAsString():
        raise UserError(f"{path}: expected one real number per voxel, got {image.GetPixelIDTypeAsString()}")
    dimension = image.GetDimension()
    data = sitk.GetArrayFromImage(image).T
    affine = np.eye(4)
    axes = min(dimension, 3)
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)[:axes, :axes]
    affine[:axes, :axes] = direction * np.array(image.GetSpacing())[:axes]
    affine[:axes, 3] = np.array(image.GetOrigin())[:axes]
    affine = LPS_TO_RAS @ np.diag([scale, scale, scale, 1.0]) @ affine
    header = nib.Nifti1Header()
    header.set_xyzt_units("mm")
    shape = tuple(int(n) for n in data.shape[:3])
    return checked(VolumeFile(path, shape, affine, data, header, affine, oriented))  # type: ignore[arg-type]


def _files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if file.is_file() and not is_clutter(file)]


def _has_dicom_mark(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _position(sitk: Any, name: str) -> NDArray[np.float64]:
    """``[3, 3]``: where a slice lies, and the directions of its rows and columns."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(name)
    reader.ReadImageInformation()
    values = [*reader.GetMetaData("0020|0032").split("\\"), *reader.GetMetaData("0020|0037").split("\\")]
    return np.array([float(value) for value in values]).reshape(3, 3)


def _check_gaps(folder: Path, positions: list[NDArray[np.float64]]) -> None:
    """A missing slice would shift all that follow, and ITK only warns of it."""
    steps = np.diff([position[0] for position in positions], axis=0)
    normal = np.cross(positions[0][1], positions[0][2])
    gaps = np.abs(steps @ normal)
    usual = float(np.median(gaps))
    sideways = np.linalg.norm(steps - (steps @ normal)[:, None] * normal, axis=1)
    if usual == 0 or np.abs(gaps - usual).max() > _GAP_TOLERANCE * usual:
        raise UserError(
            f"{folder}: expected slices at equal distances, got {gaps.min():.3g} to {gaps.max():.3g} mm: some are "
            "missing, or there are several series"
        )
    if sideways.max() > _GAP_TOLERANCE * usual:
        raise UserError(f"{folder}: expected slices above one another, got a tilted stack")


def _reason(error: Exception) -> str:
    """The last line that ITK says of a file, but for its "Reason": what the system said last, whatever that was of."""
    lines = str(error).strip().splitlines()
    line = next(line for line in reversed(lines) if not line.startswith("Reason:") or line is lines[0])
    return re.sub(r"^ITK ERROR: \w+\(0x\w+\): ", "", line.strip())[:200]
