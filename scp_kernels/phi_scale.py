"""The scale of Φ's output: how far an optimizer's step moves W, and how checkpoints keep their meaning."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scp_kernels.layers import pointwise_layers

CONSTANTS = {"adam": 16.0, "sgd": 16.0}


def initial_scale(phi_scale: float | str, hidden_channels: Sequence[int]) -> float:
    """The number that ``phi_scale`` of :class:`scp_kernels.FusedSCP` stands for, with Φ's widths h₁ and h₂.

    Adam moves every parameter by about its rate, whatever the gradient. So W moves by the sum of the absolute hidden
    features for a step of the last layer, and a hidden feature by as much for one of layer 2: both sums grow with the
    width, and each takes a factor of 1/width: the maximal update parametrisation (Yang and Hu, 2021; Yang, Hu et al.,
    2022). A step of SGD is a gradient, which has the scale in it already. See docs/training.md.

    Raises:
        ValueError: neither a power of two in (0, 1] nor a name.
    """
    if isinstance(phi_scale, str) and phi_scale in CONSTANTS:
        width = math.sqrt(math.prod(hidden_channels))
        scale = CONSTANTS[phi_scale] / width ** (2 if phi_scale == "adam" else 1)
        # Powers of two, so that no product of the scale is rounded.
        return min(1.0, 2.0 ** round(math.log2(scale)))
    if isinstance(phi_scale, str) or not 0 < phi_scale <= 1 or math.frexp(phi_scale)[0] != 0.5:
        raise ValueError(
            f"phi_scale: expected {', '.join(map(repr, CONSTANTS))} or a power of two in (0, 1], got {phi_scale!r}"
        )
    return float(phi_scale)


def enlarge_phi(phi: nn.Sequential, factor: float) -> None:
    """Make Φ ``factor`` times as large, by its parameters: half of the factor in layer 2, since ReLU passes it on."""
    _, second, third = pointwise_layers(phi)
    for parameter in (second.weight, second.bias, third.weight):
        assert parameter is not None
        parameter.mul_(math.sqrt(factor))
    if third.bias is not None:
        third.bias.mul_(factor)


def describe_scale(phi_scale: Tensor | None) -> str:
    """The scale as a number, for people."""
    if phi_scale is None:
        return "1"
    return "?" if phi_scale.is_meta else f"{phi_scale.item():g}"


def match_phi_scale(module: Any, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    """Let every checkpoint of a head load as the function that it was, whatever the scale of this head.

    One without a scale has the scale 1, and the other way round a head without a scale takes that of the checkpoint.
    """
    key = f"{prefix}phi_scale"
    if key in state_dict:
        if module.phi_scale is None:
            module.phi_scale = next(module.parameters()).new_empty(())
    elif module.phi_scale is not None:
        # On the checkpoint's device, like all else of it: the head may be on another, or on none.
        saved = [value for name, value in state_dict.items() if name.startswith(f"{prefix}phi.4.")]
        if saved:
            state_dict[key] = torch.ones_like(module.phi_scale, device=saved[0].device)
