"""Frames: what positions in the patient are measured in.

A frame maps mm in the patient (RAS+) to a position p in [0, extent], with an axis to the right, to the front and to the
top. A voxel's position is that of its centre: index i of a grid has its centre at i, and the grid ends at −0.5 and
n − 0.5, so that p = 0 and p = extent are the outer borders of what the frame is made of. With
``S = (p, extent − p)``, what :class:`scp_kernels.FusedSCP` is told, a mirrored patient has mirrored positions.

``slice`` is no such frame: there p is the pixel's index in the slice that the network sees, and extent the slice's
size, as the paper counts. Its two axes know nothing of the patient.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scp_models.data.subjects import Subject
from scp_models.data.tasks import SLICE_FRAME, Task
from scp_models.data.transforms import read_transform, transform_path


@dataclass(frozen=True)
class VolumeGeometry:
    """Where the slices that the network sees lie, and what frames are made of."""

    affine: NDArray[np.float64]
    """``[4, 4]``: indices ``(h, w, z)`` of what the network sees to mm in the patient, RAS+."""
    canonical_affine: NDArray[np.float64]
    """``[4, 4]``: voxel indices of the whole canonical volume to mm."""
    canonical_shape: tuple[int, int, int]
    foreground: NDArray[np.float64] | None
    """``[2, 3]``: lower and upper corner of the foreground's box in mm; None if it was not asked for."""

    def as_lists(self) -> dict[str, Any]:
        """For JSON."""
        return {name: None if value is None else np.array(value).tolist() for name, value in vars(self).items()}

    @classmethod
    def from_lists(cls, values: Mapping[str, Any]) -> "VolumeGeometry":
        """Of what :meth:`as_lists` gave."""
        x, y, z = values["canonical_shape"]
        foreground = None if values["foreground"] is None else np.array(values["foreground"])
        return cls(np.array(values["affine"]), np.array(values["canonical_affine"]), (x, y, z), foreground)


@dataclass(frozen=True)
class Frame:
    """A map from the patient to positions."""

    affine: NDArray[np.float64]
    """``[3, 4]``: mm in the patient, RAS+, to p."""
    extent: NDArray[np.float64]
    """``[3]``: upper end of p."""

    def positions(self, affine: NDArray[np.float64]) -> NDArray[np.float64]:
        """``[3, 4]``: indices of a volume with this ``affine`` ``[4, 4]`` to p."""
        return self.affine @ affine


@dataclass(frozen=True)
class SlicePositions:
    """What the network is told about where slices lie."""

    affine: Tensor
    """``[Z, 3, 3]`` float32: pixel ``(h, w, 1)`` to p, per slice."""
    extent: Tensor
    """``[Z, 3]`` float32."""

    def of(self, part: slice | int) -> dict[str, Tensor]:
        """The arguments of the network for some of the slices."""
        return {"affine": self.affine[part], "extent": self.extent[part]}


def image_frame(affine: NDArray[np.float64], shape: Iterable[int]) -> Frame:
    """A grid of voxels: p in voxels from its first border.

    Args:
        affine: ``[4, 4]``, voxel indices to mm.
        shape: of the grid.
    """
    to_index = np.linalg.inv(affine)[:3].astype(np.float64)
    to_index[:, 3] += 0.5
    return Frame(to_index, np.array(list(shape), float))


def box_frame(box: NDArray[np.float64], to_space: NDArray[np.float64] | None = None) -> Frame:
    """A box: p in mm from its lower corner.

    Args:
        box: ``[2, 3]``, lower and upper corner in mm.
        to_space: ``[4, 4]``, from mm in the patient to the space that the box is in; None: the patient's own.
    """
    to_box = (np.eye(4) if to_space is None else to_space)[:3].copy()
    to_box[:, 3] -= box[0]
    return Frame(to_box, box[1] - box[0])


def frame_of(task: Task, subject: Subject, geometry: VolumeGeometry) -> Frame | None:
    """The task's frame of one subject; None if it is ``slice``.

    Raises:
        UserError: the subject's transform is missing, unreadable or not affine.
    """
    if task.frame == SLICE_FRAME:
        return None
    if task.frame == "image":
        return image_frame(geometry.canonical_affine, geometry.canonical_shape)
    if task.frame == "foreground":
        assert geometry.foreground is not None
        return box_frame(geometry.foreground)
    to_template = np.linalg.inv(read_transform(transform_path(task.frame, subject))).astype(np.float64)
    return box_frame(np.array(task.frame_box).reshape(2, 3), to_template)


def slice_positions(task: Task, subject: Subject, geometry: VolumeGeometry) -> SlicePositions | None:
    """Positions of all slices ``[H, W]`` of a volume; None where the network counts from the slice's own borders.

    Raises:
        UserError: see :func:`frame_of`.
    """
    frame = frame_of(task, subject, geometry)
    if frame is None:
        return None
    volume = frame.positions(geometry.affine)
    slices = geometry.canonical_shape[2]
    affine = np.repeat(volume[None, :, [0, 1, 3]], slices, axis=0)
    affine[:, :, 2] += np.arange(slices)[:, None] * volume[:, 2]
    extent = np.repeat(frame.extent[None], slices, axis=0)
    return SlicePositions(torch.from_numpy(affine).float(), torch.from_numpy(extent).float())
