"""Anchored heads: W is Φ(S) − Φ(S₀), zero at the centre S₀ of the extent, by the bias that Φ's last layer gets."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def bias_of_anchored(b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor) -> Tensor:
    """The last layer's bias with which Φ is zero at centered positions of zero: ``−W₃·relu(W₂·relu(b₁) + b₂)``.

    Element by element: autocast would round a matrix product.
    """
    hidden = torch.relu((w2.flatten(1) * torch.relu(b1)).sum(1) + b2)
    return -(w3.flatten(1) * hidden).sum(1)


def match_anchor(module: Any, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    """Let every checkpoint load as the function that it was, whether it or this head is anchored.

    What an anchored head lacks is the last layer's bias. From a plain checkpoint it takes Φ(S₀) into w_r; a plain head
    takes from an anchored checkpoint the bias that makes Φ(S₀) zero.
    """
    names = ("phi.0.bias", "phi.2.weight", "phi.2.bias", "phi.4.weight")
    hidden: Sequence[Any] = [state_dict.get(prefix + name) for name in names]
    bias, residual = state_dict.get(f"{prefix}phi.4.bias"), state_dict.get(f"{prefix}residual.weight")
    if any(value is None for value in hidden) or module.position != "centered":
        return
    if module.anchored and bias is not None and residual is not None:
        scale = state_dict.get(f"{prefix}phi_scale", 1)
        at_centre = (bias - bias_of_anchored(*hidden)) * scale
        state_dict[f"{prefix}residual.weight"] = residual + at_centre.reshape(residual.shape)
        del state_dict[f"{prefix}phi.4.bias"]
    elif not module.anchored and bias is None:
        state_dict[f"{prefix}phi.4.bias"] = bias_of_anchored(*hidden)
