"""Averages over mirrored pictures."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

from torch import Tensor

MirrorAxes = tuple[int, ...]


def average_over_mirrors(predict: Callable[[Tensor, MirrorAxes], Any], image: Tensor, axes: Sequence[int]) -> Any:
    """Mean of ``predict`` over an image ``[B, C, *spatial]`` mirrored along every subset of ``axes``, mirrored back.

    Args:
        predict: is given the mirrored image and the axes along which it was mirrored; returns a tensor with the
            image's spatial axes as its last, or a tuple, list or dict of such.
        image: the picture, or windows of it.
        axes: spatial axes, 0 the first; none: ``predict`` is called once.

    Raises:
        ValueError: an axis that the image does not have, or one twice.
    """
    dims = image.ndim - 2
    if len(set(axes)) < len(axes) or not all(0 <= axis < dims for axis in axes):
        raise ValueError(f"mirror_axes: expected different spatial axes from 0 to {dims - 1}, got {tuple(axes)}")
    subsets = [subset for count in range(len(axes) + 1) for subset in combinations(axes, count)]
    total: Any = None
    for subset in subsets:
        last = [axis - dims for axis in subset]
        result = predict(image.flip(last) if last else image, subset)
        result = _on_tensors(lambda t, last=last: t.flip(last) if last else t, result)
        total = result if total is None else _on_tensors(Tensor.add, total, result)
    return _on_tensors(lambda t: t / len(subsets), total)


def _on_tensors(function: Callable[..., Tensor], *values: Any) -> Any:
    """``function`` of tensors, or of those at the same place of tuples, lists or dicts."""
    first = values[0]
    if isinstance(first, Tensor):
        return function(*values)
    if isinstance(first, dict):
        return {key: _on_tensors(function, *(value[key] for value in values)) for key in first}
    return type(first)(_on_tensors(function, *items) for items in zip(*values, strict=True))
