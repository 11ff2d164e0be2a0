"""Places of voxels: how the axes of two volumes correspond, by their affines."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.orientations import inv_ornt_aff, io_orientation
from numpy.typing import NDArray
from torch.nn.functional import interpolate

TOLERANCE = 0.1
"""Of two places of one voxel, in voxels: headers are in single precision, and some writers go through quaternions."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""``[4, 4]``: millimetres as ITK counts them, to the left and to the back, to RAS+; its own inverse."""

Orientation = NDArray[np.float64]
"""``[3, 2]``: per axis its target axis and its direction, 1 or −1, as :mod:`nibabel.orientations` has it."""

SAME_AXES: Orientation = np.stack([np.arange(3.0), np.ones(3)], axis=1)


def corner_distance(first: NDArray[np.float64], second: NDArray[np.float64], shape: tuple[int, int, int]) -> float:
    """Largest distance in mm between the places that two affines give the voxels of a volume, which is at a corner."""
    corners = np.array(list(itertools.product(*((0, n - 1) for n in shape))))
    return float(np.linalg.norm(apply_affine(first, corners) - apply_affine(second, corners), axis=1).max())


def field_of_view(affine: NDArray[np.float64], shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """``[2, 3]``: lower and upper corner in mm of the box, along the patient's axes, around all voxels."""
    corners = apply_affine(affine, list(itertools.product(*((-0.5, n - 0.5) for n in shape))))
    return np.stack([corners.min(axis=0), corners.max(axis=0)])


def turn_between(
    affine: NDArray[np.float64],
    shape: tuple[int, int, int],
    target_affine: NDArray[np.float64],
    target_shape: tuple[int, int, int],
) -> Orientation | None:
    """How the axes of a volume are turned into those of a target; None if the two do not have the same voxels.

    Args:
        affine: of the volume, to mm.
        shape: of the volume.
        target_affine: of the target, to mm.
        target_shape: of the target.
    """
    orientation = io_orientation(np.linalg.inv(target_affine) @ affine)
    if np.isnan(orientation).any() or turned_shape(shape, orientation) != target_shape:
        return None
    turned = affine @ inv_ornt_aff(orientation, shape)
    away = corner_distance(turned, target_affine, target_shape)
    return orientation if away <= TOLERANCE * voxel_sizes(target_affine).min() else None


def turned_shape(shape: tuple[int, int, int], orientation: Orientation) -> tuple[int, int, int]:
    result = [0, 0, 0]
    for n, (axis, _) in zip(shape, orientation, strict=True):
        result[int(axis)] = n
    return (result[0], result[1], result[2])


def one_after_other(first: Orientation, second: Orientation) -> Orientation:
    """The orientation that does ``first`` and then ``second``."""
    return np.array([(second[int(axis), 0], direction * second[int(axis), 1]) for axis, direction in first])


def coordinate_channels(affine: NDArray[np.float64], axes: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """Positions on a grid as channels ``[K + 1, *grid]``, the last of which, of validity, is 1.

    Args:
        affine: ``[K, d + 1]``, index to position.
        axes: d arrays, the grid's indices along each axis.
    """
    result = np.ones((len(affine) + 1, *map(len, axes)), np.float32)
    for row, (*slopes, position) in zip(result, affine, strict=False):
        for slope, axis in zip(reversed(slopes), reversed(axes), strict=True):
            position = np.add.outer(slope * axis, position)
        row[:] = position
    return result


def inverse(orientation: Orientation) -> Orientation:
    result = np.empty_like(orientation)
    for k, (axis, direction) in enumerate(orientation):
        result[int(axis)] = k, direction
    return result


def resized_axis(source: int, target: int) -> NDArray[np.float64]:
    """``[scale, offset]`` from indices of an axis resized to ``target`` to those of the source: borders stay borders,
    and voxels are squares, not points.
    """
    scale = source / target
    return np.array([scale, 0.5 * scale - 0.5])


def resize(slices: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """``[X, Y, K]`` to ``[*size, K]``: labels by the nearest voxel, intensities linearly (antialiased where they
    shrink).
    """
    x = torch.from_numpy(np.ascontiguousarray(slices.transpose(2, 0, 1)))[:, None]
    if slices.dtype == np.uint8:
        y = interpolate(x.float(), size=size, mode="nearest-exact").to(torch.uint8)
    else:
        y = interpolate(x.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
    return y[:, 0].numpy().transpose(1, 2, 0)


def centre_windows(source: tuple[int, ...], target: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The common part of two sizes that share their centre, as indices into either."""
    windows = []
    for n, m in zip(source, target, strict=True):
        length, first, second = min(n, m), max((n - m) // 2, 0), max((m - n) // 2, 0)
        windows.append((slice(first, first + length), slice(second, second + length)))
    return (windows[0][0], windows[1][0]), (windows[0][1], windows[1][1])
