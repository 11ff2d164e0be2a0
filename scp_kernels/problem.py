"""One call of the operator: its sizes, widths and dtypes, and what a backend is given for it."""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """What a backend needs to know to decide whether, and how, it runs a call."""

    batch: int
    channels: int
    num_classes: int
    hidden: tuple[int, int]
    spatial_shape: tuple[int, ...]
    groups: int
    """Number of position maps: 1 (shared by the batch) or ``batch`` (one per sample)."""
    dtype: torch.dtype
    """Dtype of the features, and of the logits."""
    compute_dtype: torch.dtype
    """Dtype of positions, Φ and accumulation: never below float32."""
    device: torch.device
    extra_position_dims: int = 0
    """Axes of positions beyond the map's: K − d."""

    @property
    def spatial_dims(self) -> int:
        return len(self.spatial_shape)

    @property
    def position_dims(self) -> int:
        """K: Φ's first layer has 2K inputs."""
        return self.spatial_dims + self.extra_position_dims

    @property
    def pixels(self) -> int:
        count = 1
        for size in self.spatial_shape:
            count *= size
        return count

    @property
    def is_empty(self) -> bool:
        return self.batch == 0 or self.pixels == 0

    @property
    def phi_macs(self) -> int:
        """Nominal multiply-adds of Φ, evaluated once for each pixel and position map."""
        h1, h2 = self.hidden
        per_pixel = 2 * self.position_dims * h1 + h1 * h2 + h2 * self.num_classes * self.channels
        return self.groups * self.pixels * per_pixel

    @property
    def product_macs(self) -> int:
        """Multiply-adds of the per-pixel product with the features."""
        return self.batch * self.pixels * self.num_classes * self.channels


class SCPInputs(NamedTuple):
    """All that a backend reads in a call. (A named tuple: frozen, and made in a third of a frozen dataclass's time.)"""

    features: Tensor
    """X, ``[B, C, *spatial]``, any strides."""
    phi: tuple[Tensor, ...]
    """``(w1, b1, w2, b2, w3, b3)``, contiguous and in ``problem.compute_dtype``; so are ``residual`` and ``bias``."""
    residual: Tensor
    """w_r, ``[N, C]``."""
    bias: Tensor | None
    """β, ``[N]``; None where there is none, and in every backward pass."""
    position_matrix: Tensor
    """P, ``[2K, d + 1]`` or ``[B, 2K, d + 1]`` in float64: ``S = P · (index, 1)``. With it, the first layer of Φ is
    :func:`scp_kernels.positions.first_layer_coefficients`."""
    problem: Problem


class GradientNeeds(NamedTuple):
    """Which gradients a backward pass is to compute."""

    features: bool
    parameters: bool
    """Any of Φ's six, or w_r's."""


def problem_of(features: Tensor, w1: Tensor, w2: Tensor, residual: Tensor, groups: int) -> Problem:
    """The problem of a call whose tensors have been checked."""
    # Remembered where sizes are plain numbers, as checks.py does.
    symbolic = type(features) is not Tensor or torch.compiler.is_compiling()
    return (_problem if symbolic else _problem_once)(
        features.shape, w1.shape, w2.shape[0], residual.shape[0], groups, features.dtype, w1.dtype, features.device
    )


def _problem(
    features_shape: torch.Size,
    w1_shape: torch.Size,
    h2: int,
    num_classes: int,
    groups: int,
    dtype: torch.dtype,
    parameters_dtype: torch.dtype,
    device: torch.device,
) -> Problem:
    batch, channels, *shape = features_shape
    hidden = (w1_shape[0], h2)
    extra_position_dims = w1_shape[1] // 2 - len(shape)
    compute_dtype = torch.promote_types(torch.promote_types(dtype, parameters_dtype), torch.float32)
    return Problem(
        batch, channels, num_classes, hidden, tuple(shape), groups, dtype, compute_dtype, device, extra_position_dims
    )


_problem_once = functools.lru_cache(maxsize=256)(_problem)
