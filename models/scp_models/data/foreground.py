"""Where a volume holds a patient and not air, coarsely: to see whether a label lies on it, what a crop cuts off, and
where the patient's own borders are.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from scp_models.data.geometry import field_of_view

# Voxels per axis that are looked at: a share of the foreground needs no more.
_RESOLUTION = 128
# Of the way from the darkest to the brightest percentile: above the noise of air, below the darkest tissue.
_THRESHOLD = 0.1
# Of the foreground that lies past either border of its box: ears, a nose, noise that hangs on to it. On real heads
# the box's sizes then change by up to 9 mm with the threshold (0.1 to 0.4); those of all voxels' box by up to 43.
_OUTSIDE = 0.002
# Voxels count in parts of at most this many mm: the border of a thick slice is not its centre.
_PART = 2.0


@dataclass(frozen=True)
class Foreground:
    """The foreground of a volume on every so many voxels of its axes."""

    mask: NDArray[np.bool_]
    steps: tuple[int, int, int]

    def contains(self, index: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Whether voxel indices ``[N, 3]`` lie in the foreground; what is outside the volume does not."""
        coarse = np.floor((index + 0.5) / self.steps).astype(int)
        inside = np.all((coarse >= 0) & (coarse < self.mask.shape), axis=1)
        result = np.zeros(len(index), bool)
        result[inside] = self.mask[tuple(coarse[inside].T)]
        return result


def coarse_steps(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Every which voxel is looked at, per axis."""
    x, y, z = (-(-n // _RESOLUTION) for n in shape)
    return x, y, z


def coarse_slices(steps: tuple[int, int, int]) -> tuple[slice, slice, slice]:
    """The voxels that are looked at: the middle one of every so many, per axis."""
    x, y, z = (slice(step // 2, None, step) for step in steps)
    return x, y, z


def find_foreground(coarse: NDArray[np.floating], steps: tuple[int, int, int]) -> Foreground:
    """The largest connected part above a threshold, with the holes of each slice filled.

    Args:
        coarse: intensities of :func:`coarse_slices`, ``[x, y, z]``, slices along the last axis.
        steps: every which voxel.
    """
    # A slice of one value is filling, be it black or saturated.
    filled = coarse.min(axis=(0, 1)) == coarse.max(axis=(0, 1))
    if filled.all():
        return Foreground(np.zeros(coarse.shape, bool), steps)
    dark, bright = np.percentile(coarse[..., ~filled], [1, 99])
    mask = (coarse > dark + _THRESHOLD * (bright - dark)) & ~filled
    parts, count = ndimage.label(mask)
    if count > 1:
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        mask = parts == sizes.argmax()
    mask = np.stack([ndimage.binary_fill_holes(mask[..., k]) for k in range(mask.shape[2])], axis=2)
    return Foreground(mask, steps)


def bounding_box(
    area: Foreground, affine: NDArray[np.float64], max_height: float | None = None
) -> NDArray[np.float64] | None:
    """``[2, 3]``: lower and upper corner in mm of all but thin protrusions; None where there is nothing.

    Args:
        area: the foreground.
        affine: ``[4, 4]``, voxel indices of its volume to mm, RAS+.
        max_height: of the box in mm, measured from its top.
    """
    index = np.argwhere(area.mask)
    if not len(index):
        return None
    sizes = np.linalg.norm(affine[:3, :3], axis=0) * area.steps
    parts = [np.arange(0.5, count) / count for count in np.ceil(sizes / _PART).clip(1, 16)]
    within = np.stack(np.meshgrid(*parts, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    points = (index + within) * area.steps - 0.5
    places = points.reshape(-1, 3) @ affine[:3, :3].T + affine[:3, 3]
    low, high = np.quantile(places, [_OUTSIDE, 1 - _OUTSIDE], axis=0)
    if max_height is not None:
        low[2] = max(low[2], high[2] - max_height)
    return np.stack([low, high]) if (high > low).all() else None


def foreground_box(
    area: Foreground, affine: NDArray[np.float64], shape: tuple[int, int, int], max_height: float | None = None
) -> tuple[NDArray[np.float64], str | None]:
    """:func:`bounding_box`, or where there is nothing that of all voxels, and words for it.

    Args:
        area, affine, max_height: as there.
        shape: of the volume.
    """
    box = bounding_box(area, affine, max_height)
    if box is not None:
        return box, None
    return field_of_view(affine, shape), "has no foreground; the frame foreground is its whole field of view"


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
