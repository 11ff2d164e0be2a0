"""Values of label files: which are known, and the numbers that they become."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scp_models.data.alignment import AlignedVolume
from scp_models.data.geometry import SAME_AXES, Orientation
from scp_models.data.tasks import Task
from scp_models.errors import UserError

# Of a scaled integer to the label it stands for: 255 times a slope of 1/255 is 1.00000006. Of a value in floating
# point, its rounding: what is further away was interpolated.
_SCALED_TOLERANCE, _ROUNDING = 1e-3, 1e-6


def label_values(volume: AlignedVolume, task: Task, axes: Orientation = SAME_AXES) -> Iterator[NDArray[Any]]:
    """The values in a label's file, a few slices at a time: integers and, for some tasks, known ones.

    Args:
        volume: of the label.
        task: may know all values.
        axes: of what is given.

    Raises:
        UserError: values that are no integers, or that the task does not know.
    """
    path = volume.file.path
    for chunk in volume.chunks(axes):
        chunk = nearest_labels(chunk, volume.file.scaled)
        values, allowed = np.unique(chunk), task.labels
        known = np.isin(values, allowed) if allowed else np.isfinite(values) & (values == np.rint(values))
        if not known.all():
            expected = f"labels {allowed}" if allowed else "labels that are integers"
            others = [float(v) for v in values[~known]][:5]
            hint = _hint(values, allowed, bool(task.classes))
            raise UserError(f"{path}: expected {expected}, got also {others}{hint}")
        yield chunk


def nearest_labels(values: NDArray[Any], scaled: bool) -> NDArray[Any]:
    """Values of a file with those that stand for an integer made it; the others, interpolated ones, as they are.

    Args:
        values: of label files.
        scaled: whether stored integers go through a slope.
    """
    if values.dtype.kind != "f":
        return values
    rounded = np.rint(values)
    limit = _SCALED_TOLERANCE if scaled else _ROUNDING * np.maximum(1, np.abs(rounded))
    with np.errstate(invalid="ignore"):  # infinity stays what it is
        return np.where(np.abs(values - rounded) <= limit, rounded, values)


def label_numbers(stored: NDArray[Any], task: Task) -> NDArray[np.uint8]:
    """Values of label files as the numbers that readers return: 0, the target or the classes, what is ignored."""
    label = class_numbers(stored, task)
    if task.ignored:
        label[np.isin(stored, task.ignored)] = task.ignored_label
    return label


def class_numbers(stored: NDArray[Any], task: Task) -> NDArray[np.uint8]:
    """Values of label files as 0 and 1 for the target, or as 0 and the classes' numbers."""
    if not task.classes:
        return np.isin(stored, task.target).astype(np.uint8)
    label = np.zeros(stored.shape, np.uint8)
    for k, (_, values) in enumerate(task.classes):
        label[np.isin(stored, values)] = k + 1
    return label


def _hint(values: NDArray[Any], allowed: tuple[int, ...] | None, classes: bool) -> str:
    if allowed is None or not np.isfinite(values).all() or (values % 1).any():
        return ""
    if classes:
        return " (--data.classes may name them as background, --data.ignored as ignored)"
    if len(values) <= 2 and values.min() >= 0 and values.max() > max(allowed):
        return f" (a mask of 0 and {int(values.max())}: --data.target {int(values.max())})"
    return " (other labels: --data.target, --data.ignored)"
