"""Spatial operations of plain PyTorch on pictures, each with the affine map from its output's index to its input's."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from scp_kernels.reference import map_indices


def picture_of(affine: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Coordinate channels ``[B, K, *shape]`` of affine maps ``[B, K, d + 1]``."""
    return map_indices(affine.double(), shape).unflatten(2, shape).to(dtype)


def with_validity(coordinates: Tensor, valid: Tensor | None = None) -> Tensor:
    """The same with a channel of validity behind them: ``valid``, or 1 everywhere."""
    ones = torch.ones_like(coordinates[:, :1])
    return torch.cat([coordinates, ones if valid is None else valid.to(ones).expand_as(ones)], 1)


@dataclass
class Augmented:
    """A picture ``[B, C, H, W]`` on its way, and the map ``[3, 3]`` from its index to that of the first picture."""

    picture: Tensor
    matrix: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.picture.shape[2:])


Step = Callable[[Augmented], Augmented]


def homogeneous(rows: list[list[float]]) -> Tensor:
    return torch.tensor([*rows, [0, 0, 1]], dtype=torch.float64)


def crop(share: float, side: tuple[float, float]) -> Step:
    def apply(a: Augmented) -> Augmented:
        sizes = [max(1, round(n * share)) for n in a.shape]
        i, j = (round((n - m) * s) for n, m, s in zip(a.shape, sizes, side, strict=True))
        picture = a.picture[:, :, i : i + sizes[0], j : j + sizes[1]]
        return Augmented(picture, a.matrix @ homogeneous([[1, 0, i], [0, 1, j]]))

    return apply


def pad(before: tuple[int, int], after: tuple[int, int]) -> Step:
    def apply(a: Augmented) -> Augmented:
        picture = functional.pad(a.picture, (before[1], after[1], before[0], after[0]))
        return Augmented(picture, a.matrix @ homogeneous([[1, 0, -before[0]], [0, 1, -before[1]]]))

    return apply


def flip(axis: int) -> Step:
    def apply(a: Augmented) -> Augmented:
        rows = [[1.0, 0, 0], [0, 1, 0]]
        rows[axis][axis], rows[axis][2] = -1, a.shape[axis] - 1
        return Augmented(a.picture.flip(2 + axis), a.matrix @ homogeneous(rows))

    return apply


def quarter_turn() -> Step:
    def apply(a: Augmented) -> Augmented:
        return Augmented(a.picture.rot90(1, (2, 3)), a.matrix @ homogeneous([[0, 1, 0], [-1, 0, a.shape[1] - 1]]))

    return apply


def turn_and_scale(degrees: float, scale: float) -> Step:
    """``affine_grid`` and ``grid_sample`` about the middle, with zeros beyond the border."""

    def apply(a: Augmented) -> Augmented:
        height, width = a.shape
        c, s = math.cos(math.radians(degrees)) / scale, math.sin(math.radians(degrees)) / scale
        # Of indices about the middle, (i, j) to (i, j); affine_grid has (x, y), and halves of the picture as units.
        linear = [[c, -s], [s, c]]
        theta = torch.tensor([[c, s * height / width, 0], [-s * width / height, c, 0]], dtype=a.picture.dtype)
        grid = functional.affine_grid(theta.expand(len(a.picture), 2, 3), list(a.picture.shape), align_corners=False)
        picture = functional.grid_sample(a.picture, grid, align_corners=False)
        middle = [(height - 1) / 2, (width - 1) / 2]
        rows = [[*row, middle[k] - row[0] * middle[0] - row[1] * middle[1]] for k, row in enumerate(linear)]
        return Augmented(picture, a.matrix @ homogeneous(rows))

    return apply


def resize(scale: float) -> Step:
    """``interpolate``, which repeats the border where it would have to look beyond."""

    def apply(a: Augmented) -> Augmented:
        sizes = [max(1, round(n * scale)) for n in a.shape]
        picture = functional.interpolate(a.picture, sizes, mode="bilinear", align_corners=False)
        ratio = [n / m for n, m in zip(a.shape, sizes, strict=True)]
        rows = [[ratio[0], 0, (ratio[0] - 1) / 2], [0, ratio[1], (ratio[1] - 1) / 2]]
        return Augmented(picture, a.matrix @ homogeneous(rows))

    return apply


_share, _width = st.floats(0, 1), st.integers(0, 6)
STEPS = st.lists(
    st.one_of(
        st.builds(crop, st.floats(0.7, 1), st.tuples(_share, _share)),
        st.builds(pad, st.tuples(_width, _width), st.tuples(_width, _width)),
        st.builds(flip, st.integers(0, 1)),
        st.builds(quarter_turn),
        st.builds(turn_and_scale, st.floats(-180, 180), st.floats(0.7, 1.4)),
        st.builds(resize, st.floats(0.7, 1.9)),
    ),
    min_size=1,
    max_size=5,
)
"""Chains of operations."""
