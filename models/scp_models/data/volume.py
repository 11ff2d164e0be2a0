"""An open volume, whatever format it comes from: three spatial axes and an affine to millimetres."""

import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from scp_models.errors import UserError


@dataclass(frozen=True)
class VolumeFile:
    """An open file, or one channel of it; its voxels are read on demand where the format allows it."""

    path: Path
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    """``[4, 4]``: voxel indices to millimetres, RAS+."""
    data: Any
    """Array or nibabel's proxy of one: ``[x, y, z]``, then axes of length 1 and at most one axis of channels."""
    header: Any
    """NIfTI header of results on this grid."""
    stored_affine: NDArray[np.float64]
    """As ``header`` has it, in the header's own units."""
    oriented: bool = True
    """Whether the file says where its voxels lie; otherwise it has their sizes alone."""
    scaled: bool = False
    """Whether stored integers go through a slope: rounding leaves labels a little beside their integers."""
    channels: int = 1
    channel: int = 0
    notes: tuple[str, ...] = field(default=())

    @property
    def spacing(self) -> NDArray[np.float64]:
        """Voxel size in mm along the file's axes."""
        return nib.affines.voxel_sizes(self.affine)

    def read(self, index: tuple[slice, ...] = (slice(None),) * 3) -> NDArray[Any]:
        """Voxels ``[x, y, z]`` of the chosen channel.

        Raises:
            UserError: the file is truncated or corrupt.
        """
        tail = tuple(0 if n == 1 else self.channel for n in self.data.shape[3:])
        try:
            return np.asarray(self.data[(*index, *tail)])
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise UserError(
                f"{self.path}: expected a whole NIfTI file, it is truncated or corrupt ({error})"
            ) from error

    def per_channel(self) -> list["VolumeFile"]:
        return [replace(self, channel=k) for k in range(self.channels)]


def is_clutter(path: Path) -> bool:
    """Whether a file is none of the data: macOS's ``._`` companions, ``.DS_Store``, thumbnails."""
    return path.name.startswith(".") or path.name.lower() in ("thumbs.db", "desktop.ini", "__macosx")


def checked(file: VolumeFile) -> VolumeFile:
    """``file``, or an error that says in one line what no reader can use.

    Raises:
        UserError: not three axes (beside one of channels), or an affine that places no volume.
    """
    shape = tuple(int(n) for n in file.data.shape)
    if len(shape) < 3 or min(shape) < 1 or sum(n > 1 for n in shape[3:]) > 1:
        raise UserError(f"{file.path}: expected a 3-D volume, got shape {shape}")
    if not np.isfinite(file.affine).all() or np.isnan(io_orientation(file.affine)).any():
        raise UserError(f"{file.path}: expected an affine that maps three axes, got one without full rank")
    return replace(file, channels=max(shape[3:], default=1))
