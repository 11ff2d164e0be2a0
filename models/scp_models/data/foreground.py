"""Where a volume holds a patient and not air, coarsely: to see whether a label lies on it, what a crop cuts off, and
where the patient's own borders are.

It is sought along the canonical axes, nibabel's closest to RAS+, whatever the axes of the volume: a head has one box,
be it stored in another order, turned by a pipeline, or transposed by nnU-Net.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from nibabel.affines import apply_affine
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray
from scipy import ndimage

from scp_models.data.geometry import Orientation, field_of_view, turned_shape
from scp_models.data.tasks import ForegroundSettings


@dataclass(frozen=True)
class CoarseGrid:
    """Every so many voxels of a volume: the same ones in whatever axes it is stored."""

    affine: NDArray[np.float64]
    """``[4, 4]``: indices of the volume to mm, RAS+."""
    shape: tuple[int, int, int]
    """Of the volume."""
    settings: ForegroundSettings

    @cached_property
    def to_canonical(self) -> Orientation:
        """From the volume's axes to those closest to RAS+."""
        return io_orientation(self.affine)

    @cached_property
    def canonical_shape(self) -> tuple[int, int, int]:
        """Of the volume, not of the chosen voxels."""
        return turned_shape(self.shape, self.to_canonical)

    @cached_property
    def from_canonical(self) -> NDArray[np.float64]:
        """``[4, 4]``: canonical indices to those of the volume."""
        return inv_ornt_aff(self.to_canonical, self.shape)

    @cached_property
    def steps(self) -> tuple[int, int, int]:
        """Every which voxel is looked at, along each canonical axis."""
        x, y, z = (-(-n // self.settings.resolution) for n in self.canonical_shape)
        return x, y, z

    @property
    def centres(self) -> tuple[NDArray[np.intp], ...]:
        """Canonical indices of the chosen voxels, along each axis."""
        sizes = zip(self.canonical_shape, self.steps, strict=True)
        return tuple(np.arange(step // 2, n, step) for n, step in sizes)

    @property
    def chosen(self) -> tuple[slice, slice, slice]:
        """The chosen voxels along the volume's own axes, from its first voxel on."""
        slices = []
        for n, (axis, direction) in zip(self.shape, self.to_canonical, strict=True):
            step = self.steps[int(axis)]
            first = step // 2 if direction > 0 else (n - 1 - step // 2) % step
            slices.append(slice(first, None, step))
        return slices[0], slices[1], slices[2]


@dataclass(frozen=True)
class Foreground:
    """The foreground of a volume, on a coarse grid."""

    mask: NDArray[np.bool_]
    """Along the canonical axes."""
    grid: CoarseGrid

    def contains(self, index: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Whether indices ``[N, 3]`` of the volume lie in the foreground; what is outside the volume does not."""
        canonical = apply_affine(np.linalg.inv(self.grid.from_canonical), index)
        coarse = np.floor((canonical + 0.5) / self.grid.steps).astype(int)
        inside = np.all((coarse >= 0) & (coarse < self.mask.shape), axis=1)
        result = np.zeros(len(index), bool)
        result[inside] = self.mask[tuple(coarse[inside].T)]
        return result


def find_foreground(coarse: NDArray[np.floating], grid: CoarseGrid) -> Foreground:
    """The largest connected part above a threshold, with the holes of each axial slice filled.

    Args:
        coarse: intensities of the grid's chosen voxels, in the volume's own axes.
        grid: of the volume.
    """
    values = apply_orientation(coarse, grid.to_canonical)
    filled = _planes_of_one_value(values)
    if filled.all():
        return Foreground(np.zeros(values.shape, bool), grid)
    dark, bright = np.percentile(values[~filled], [1, 99])
    mask = (values > dark + grid.settings.threshold * (bright - dark)) & ~filled
    parts, count = ndimage.label(mask)
    if count > 1:
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        mask = parts == sizes.argmax()
    mask = np.stack([ndimage.binary_fill_holes(mask[..., k]) for k in range(mask.shape[2])], axis=2)
    return Foreground(mask, grid)


def _planes_of_one_value(values: NDArray[Any]) -> NDArray[np.bool_]:
    """What a scanner or a program filled in, black or saturated: along any axis, as a scan has its slices along any."""
    result = np.zeros(values.shape, bool)
    for across in ((1, 2), (0, 2), (0, 1)):
        result |= values.min(axis=across, keepdims=True) == values.max(axis=across, keepdims=True)
    return result


def bounding_box(area: Foreground) -> NDArray[np.float64] | None:
    """``[2, 3]``: lower and upper corner in mm of all but thin protrusions; None where there is nothing."""
    grid, settings = area.grid, area.grid.settings
    index = np.argwhere(area.mask)
    if not len(index):
        return None
    affine = grid.affine @ grid.from_canonical
    sizes = np.linalg.norm(affine[:3, :3], axis=0) * grid.steps
    parts = [np.arange(0.5, count) / count for count in np.ceil(sizes / settings.part).clip(1, 16)]
    within = np.stack(np.meshgrid(*parts, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    points = (index + within) * grid.steps - 0.5
    places = points.reshape(-1, 3) @ affine[:3, :3].T + affine[:3, 3]
    low, high = np.quantile(places, [settings.outside, 1 - settings.outside], axis=0)
    if settings.max_height is not None:
        low[2] = max(low[2], high[2] - settings.max_height)
    return np.stack([low, high]) if (high > low).all() else None


def foreground_box(area: Foreground) -> tuple[NDArray[np.float64], str | None]:
    """:func:`bounding_box`, or where there is nothing that of all voxels, and words for it."""
    box = bounding_box(area)
    if box is not None:
        return box, None
    box = field_of_view(area.grid.affine, area.grid.shape)
    return box, "has no foreground; the frame foreground is its whole field of view"


@dataclass(frozen=True)
class CropLoss:
    """What the crop to the network's slices cuts off: numbers of voxels, in all and outside."""

    foreground: int = 0
    foreground_outside: int = 0
    target: int = 0
    target_outside: int = 0

    def __add__(self, other: "CropLoss") -> "CropLoss":
        return CropLoss(
            self.foreground + other.foreground,
            self.foreground_outside + other.foreground_outside,
            self.target + other.target,
            self.target_outside + other.target_outside,
        )


def describe_crop(roi_size: tuple[int, int], losses: Iterable[tuple[str, CropLoss]], hint: str) -> str | None:
    """One line on what the crop of some subjects cuts off; None where it is no lesion and next to no foreground.

    Args:
        roi_size: of the crop.
        losses: per subject its name and what it loses.
        hint: what to do about it.
    """
    named = list(losses)
    total = sum((loss for _, loss in named), CropLoss())
    share = total.foreground_outside / max(total.foreground, 1)
    # Skin and noise at the border of a head are no loss.
    if total.target_outside == 0 and share < 0.01:
        return None
    text = f"the crop to {roi_size[0]} × {roi_size[1]} voxels cuts off {share:.1%} of the foreground"
    if total.target:
        lost = total.target_outside / total.target
        text += f" and {total.target_outside} of {total.target} target voxels ({lost:.1%})"
    text += f" of {len(named)} subject{'s' if len(named) > 1 else ''}"
    if total.target_outside and len(named) > 1:
        name, worst = max(named, key=lambda item: item[1].target_outside / max(item[1].target, 1))
        text += f", most of {name} ({worst.target_outside / worst.target:.1%})"
    return f"{text}; {hint}"
