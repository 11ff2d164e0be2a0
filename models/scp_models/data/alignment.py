"""Every file of a subject in one grid, that of its first image, by the affine of each.

Axes that are turned are turned back exactly. Another grid (shifted, rotated, with other voxels) is resampled, with a
note, or refused where the two hardly overlap. Affines of labels are wrong in published data, so a label that lies
elsewhere is measured first: how much of it lies on the patient by its affine, and by its indices?
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from nibabel.affines import apply_affine
from nibabel.orientations import apply_orientation
from numpy.typing import NDArray
from scipy import ndimage

from scp_models.data.foreground import Foreground
from scp_models.data.geometry import (
    SAME_AXES,
    Orientation,
    corner_distance,
    one_after_other,
    turn_between,
)
from scp_models.data.tasks import LabelAffine
from scp_models.data.volume import VolumeFile
from scp_models.errors import UserError

# Slices read and processed at a time: a volume of 987 slices of 512² never is in memory at full size.
CHUNK = 32

# Of an image's voxels that another file has to cover to be resampled onto it.
_COVERED = 0.5
# Shares of a label in the foreground: enough to believe a place, too little to, and a difference that says nothing.
_DECIDE = "--data.label_affine, for evaluate --label-affine, decides"
_PLAUSIBLE, _IMPLAUSIBLE, _ALIKE = 0.8, 0.5, 0.1
_MEASURED_VOXELS = 100_000


@dataclass(frozen=True)
class AlignedVolume:
    """A file whose voxels are those of a subject's grid, up to the order and direction of axes."""

    file: VolumeFile
    to_grid: Orientation
    """From the axes of ``file`` to those of the grid."""

    def read(self) -> NDArray[Any]:
        """All voxels, in the axes of the grid."""
        return np.concatenate(list(self.chunks()), axis=2)

    def chunks(self, axes: Orientation = SAME_AXES) -> Iterator[NDArray[Any]]:
        """Slices ``[X, Y, K]`` from the first on, a few at a time.

        Args:
            axes: from those of the grid to those of the result.
        """
        orientation = one_after_other(self.to_grid, axes)
        along = int(np.flatnonzero(orientation[:, 0] == 2)[0])
        depth = self.file.shape[along]
        for start in range(0, depth, CHUNK):
            stop = min(start + CHUNK, depth)
            part = slice(start, stop) if orientation[along, 1] > 0 else slice(depth - stop, depth - start)
            index = tuple(part if axis == along else slice(None) for axis in range(3))
            yield apply_orientation(self.file.read(index), orientation)


def align_image(file: VolumeFile, target: VolumeFile) -> tuple[AlignedVolume, str | None]:
    """An image, or probabilities, in the grid of ``target``; with a note if it had to be resampled, or lies nowhere.

    Raises:
        UserError: the two hardly overlap, or have other shapes where one has no place.
    """
    exact = _exact(file, target)
    if exact is not None:
        return exact
    coverage = _coverage(file, target)
    if coverage < _COVERED:
        raise UserError(
            f"{file.path}: expected shape {target.shape} as {target.path} has, or a volume that covers it; this one of "
            f"shape {file.shape} covers {coverage:.0%} of it by their affines"
        )
    whole = file.read().astype(np.float32)
    # Outside of its field a modality is as dark as it gets.
    values = _resampled(whole, file, target, order=1, outside=float(np.nanmin(whole)))
    note = f"{_elsewhere(file, target)}: resampled linearly" + (
        f"; it covers {coverage:.0%} of it" if coverage < 0.995 else ""
    )
    return _in_memory(file, target, values), note


def align_label(
    file: VolumeFile, target: VolumeFile, rule: LabelAffine, foreground: Callable[[], Foreground]
) -> tuple[AlignedVolume, str | None]:
    """A label in the grid of its image, with a note on what was done if its place is not that of the image.

    Args:
        file: the label.
        target: the image.
        rule: which of the affines counts.
        foreground: of the image; called only if it is needed.

    Raises:
        UserError: the label lies elsewhere than its image, and neither place is plausible.
    """
    if rule == "image":
        _must_have_shape(file, target)
        same = turn_between(file.affine, file.shape, target.affine, target.shape)
        note = None
        if same is None or not np.array_equal(same, SAME_AXES):
            note = f"{_elsewhere(file, target)}: taken voxel by voxel, its affine does not count (label_affine: image)"
        return AlignedVolume(file, SAME_AXES), note
    exact = _exact(file, target)
    if exact is not None:
        return exact
    values = file.read()
    marked = np.argwhere(values != 0)
    by_affine, by_index = 1.0, 0.0
    measured = ""
    if rule == "auto" and not len(marked):
        by_affine = float(_coverage(file, target) >= _COVERED)
    elif rule == "auto":
        marked = marked[:: max(1, len(marked) // _MEASURED_VOXELS)]
        area = foreground()
        to_target = np.linalg.inv(target.affine) @ file.affine
        by_affine = float(area.contains(apply_affine(to_target, marked)).mean())
        measured = f" ({by_affine:.0%} of it lies on the foreground by its affine"
        if file.shape == target.shape:
            by_index = float(area.contains(marked.astype(float)).mean())
            measured += f", {by_index:.0%} by its indices"
        measured += ")"
    if by_affine >= _PLAUSIBLE and by_affine >= by_index - _ALIKE:
        aligned = _in_memory(file, target, _resampled(values, file, target, order=0, outside=0))
        hint = f"; {_DECIDE} otherwise" if by_index >= _PLAUSIBLE else ""
        return aligned, f"{_elsewhere(file, target)}{measured}: taken where its affine says, by the nearest voxel{hint}"
    if by_index >= _PLAUSIBLE and by_affine < _IMPLAUSIBLE:
        return AlignedVolume(file, SAME_AXES), f"{_elsewhere(file, target)}{measured}: taken voxel by voxel"
    away = corner_distance(file.affine, target.affine, target.shape)
    raise UserError(
        f"{file.path}: expected shape {target.shape} as {target.path} has, got {file.shape}, {away:.3g} mm "
        f"elsewhere{measured}; {_DECIDE} which counts: header or image"
    )


def _exact(file: VolumeFile, target: VolumeFile) -> tuple[AlignedVolume, str | None] | None:
    """The same voxels, perhaps turned; or the same shape where one of the two has no place. Else None."""
    if not (file.oriented and target.oriented):
        _must_have_shape(file, target)
        nowhere = file if not file.oriented else target
        note = None
        if file.oriented != target.oriented:
            note = f"{file.path}: taken voxel by voxel as {target.path} has them: {nowhere.path} has no orientation"
        return AlignedVolume(file, SAME_AXES), note
    turn = turn_between(file.affine, file.shape, target.affine, target.shape)
    return None if turn is None else (AlignedVolume(file, turn), None)


def _must_have_shape(file: VolumeFile, target: VolumeFile) -> None:
    if file.shape != target.shape:
        raise UserError(f"{file.path}: expected shape {target.shape} as {target.path} has, got {file.shape}")


def _elsewhere(file: VolumeFile, target: VolumeFile) -> str:
    if file.shape != target.shape:
        return f"{file.path}: has another grid {file.shape} than {target.path} {target.shape}"
    away = corner_distance(file.affine, target.affine, target.shape)
    return f"{file.path}: lies up to {away:.3g} mm from the voxels of {target.path}"


def _coverage(file: VolumeFile, target: VolumeFile) -> float:
    """The share of the target's voxels that lie inside the file's field."""
    axes = [np.linspace(0, n - 1, min(n, 24)) for n in target.shape]
    index = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    place = apply_affine(np.linalg.inv(file.affine) @ target.affine, index)
    return float(np.all((place >= -0.5) & (place <= np.array(file.shape) - 0.5), axis=1).mean())


def _resampled(values: NDArray[Any], file: VolumeFile, target: VolumeFile, order: int, outside: float) -> NDArray[Any]:
    place = np.linalg.inv(file.affine) @ target.affine
    # A file ends at the borders of its voxels, not at their centres. SciPy wants the machine's own byte order.
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    padded = np.pad(values, 1, mode="edge") if order else np.pad(values, 1, constant_values=0)
    return ndimage.affine_transform(
        padded, place[:3, :3], place[:3, 3] + 1, output_shape=target.shape, order=order, cval=outside, mode="constant"
    )


def _in_memory(file: VolumeFile, target: VolumeFile, values: NDArray[Any]) -> AlignedVolume:
    resampled = replace(
        file, shape=target.shape, affine=target.affine, data=values, header=target.header, channels=1, channel=0
    )
    return AlignedVolume(resampled, SAME_AXES)
