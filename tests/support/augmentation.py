"""Spatial operations of plain PyTorch on pictures, each with the affine map from its output's index to its input's; and
coordinates as pictures, for such operations to move.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from scp_kernels.reference import map_indices


def picture_of(affine: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Coordinate channels ``[B, K, *shape]`` of affine maps ``[B, K, d + 1]``."""
    return map_indices(affine.double(), shape).unflatten(2, shape).to(dtype)


def with_validity(coordinates: Tensor, valid: Tensor | None = None) -> Tensor:
    """With a channel behind them that says where to believe them; None: everywhere."""
    ones = torch.ones_like(coordinates[:, :1])
    return torch.cat([coordinates, ones if valid is None else valid.to(ones).expand_as(ones)], 1)


@dataclass
class Augmented:
    """A picture ``[B, C, *spatial]`` on its way, and the map ``[d + 1, d + 1]`` from its index to that of the first."""

    picture: Tensor
    matrix: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.picture.shape[2:])

    def moved(
        self, picture: Tensor, linear: Sequence[Sequence[float]] | Tensor, offset: Sequence[float]
    ) -> "Augmented":
        """The next picture, whose index maps to this one's by ``linear`` ``[d, d]`` and ``offset`` ``[d]``."""
        step = torch.eye(len(offset) + 1, dtype=torch.float64)
        step[:-1, :-1] = torch.as_tensor(linear, dtype=torch.float64)
        step[:-1, -1] = torch.as_tensor(offset, dtype=torch.float64)
        return Augmented(picture, self.matrix @ step)


Step = Callable[[Augmented], Augmented]


def crop(share: float, side: Sequence[float]) -> Step:
    def apply(a: Augmented) -> Augmented:
        sizes = [max(1, round(n * share)) for n in a.shape]
        starts = [round((n - m) * s) for n, m, s in zip(a.shape, sizes, side, strict=True)]
        inside = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        return a.moved(a.picture[(..., *inside)], torch.eye(len(starts)), starts)

    return apply


def pad(before: Sequence[int], after: Sequence[int]) -> Step:
    def apply(a: Augmented) -> Augmented:
        widths = [width for ends in zip(reversed(before), reversed(after), strict=True) for width in ends]
        return a.moved(functional.pad(a.picture, widths), torch.eye(len(before)), [-width for width in before])

    return apply


def flip(axis: int) -> Step:
    def apply(a: Augmented) -> Augmented:
        linear, offset = torch.eye(len(a.shape)), [0.0] * len(a.shape)
        linear[axis, axis], offset[axis] = -1, a.shape[axis] - 1
        return a.moved(a.picture.flip(2 + axis), linear, offset)

    return apply


def quarter_turn(axes: tuple[int, int]) -> Step:
    def apply(a: Augmented) -> Augmented:
        first, second = axes
        linear, offset = torch.eye(len(a.shape)), [0.0] * len(a.shape)
        linear[first, first] = linear[second, second] = 0
        linear[first, second], linear[second, first], offset[second] = 1, -1, a.shape[second] - 1
        return a.moved(a.picture.rot90(1, (2 + first, 2 + second)), linear, offset)

    return apply


def turn_and_scale(degrees: Sequence[float], scale: float) -> Step:
    """``affine_grid`` and ``grid_sample`` about the middle, with zeros beyond the border; an angle per pair of axes."""

    def apply(a: Augmented) -> Augmented:
        d = len(a.shape)
        linear = torch.eye(d, dtype=torch.float64) / scale
        for (first, second), angle in zip(combinations(range(d), 2), degrees, strict=True):
            turn = torch.eye(d, dtype=torch.float64)
            c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            turn[first, first], turn[first, second], turn[second, first], turn[second, second] = c, -s, s, c
            linear = linear @ turn
        # Of indices about the middle; affine_grid's are in halves of the picture, the last axis first.
        size = torch.tensor(a.shape, dtype=torch.float64)
        theta = (linear * size / size[:, None]).flip(0, 1)
        theta = torch.cat([theta, torch.zeros(d, 1)], 1).to(a.picture.dtype)
        grid = functional.affine_grid(
            theta.expand(len(a.picture), d, d + 1), list(a.picture.shape), align_corners=False
        )
        middle = (size - 1) / 2
        picture = functional.grid_sample(a.picture, grid, align_corners=False)
        return a.moved(picture, linear, (middle - linear @ middle).tolist())

    return apply


def resize(scale: float) -> Step:
    """``interpolate``, which repeats the border where it would have to look beyond."""

    def apply(a: Augmented) -> Augmented:
        sizes = [max(1, round(n * scale)) for n in a.shape]
        mode = {2: "bilinear", 3: "trilinear"}[len(sizes)]
        picture = functional.interpolate(a.picture, sizes, mode=mode, align_corners=False)
        ratio = torch.tensor([n / m for n, m in zip(a.shape, sizes, strict=True)], dtype=torch.float64)
        return a.moved(picture, ratio.diag(), ((ratio - 1) / 2).tolist())

    return apply


def chains(dims: int) -> st.SearchStrategy[list[Step]]:
    """Chains of operations on pictures with so many spatial axes.

    In volumes they are milder: a border is a larger part of them, and half of the valid voxels have to be away from it.
    """
    share, width = st.floats(0, 1), st.integers(0, 6)
    smallest, low, high, largest, most = (0.7, 0.7, 1.4, 1.9, 5) if dims == 2 else (0.8, 0.8, 1.25, 1.3, 4)
    angles = st.tuples(*[st.floats(-180, 180)] * (dims * (dims - 1) // 2))
    return st.lists(
        st.one_of(
            st.builds(crop, st.floats(smallest, 1), st.tuples(*[share] * dims)),
            st.builds(pad, st.tuples(*[width] * dims), st.tuples(*[width] * dims)),
            st.builds(flip, st.integers(0, dims - 1)),
            st.builds(quarter_turn, st.sampled_from([*combinations(range(dims), 2)])),
            st.builds(turn_and_scale, angles, st.floats(low, high)),
            st.builds(resize, st.floats(smallest, largest)),
        ),
        min_size=1,
        max_size=most,
    )
