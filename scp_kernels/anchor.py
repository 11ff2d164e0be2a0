"""Anchored heads: W is Φ(S) − Φ(S₀), zero at the centre S₀ of the extent, by the bias that Φ's last layer gets."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def at_least_float(tensor: Tensor) -> Tensor:
    """A parameter in float32 where it has half precision, in which the two halves of an anchored W would not cancel."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def bias_of_anchored(b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor) -> Tensor:
    """The last layer's bias with which Φ is zero at centered positions of zero: ``−W₃·relu(W₂·relu(b₁) + b₂)``.

    Element by element: autocast would round a matrix product.
    """
    hidden = torch.relu((w2.flatten(1) * torch.relu(b1)).sum(1) + b2)
    return -(w3.flatten(1) * hidden).sum(1)


def match_anchor(
    module: Any,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: Mapping[str, Any],
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """Let a checkpoint load as the function that it was, whether it or this head is anchored.

    What an anchored head lacks is the last layer's bias. From a plain checkpoint it takes Φ(S₀) into w_r; a plain head
    takes from an anchored checkpoint the bias that makes Φ(S₀) zero.
    """
    names = ("phi.0.bias", "phi.2.weight", "phi.2.bias", "phi.4.weight")
    saved: list[Tensor] = [state_dict[prefix + name] for name in names if prefix + name in state_dict]
    bias, residual = state_dict.get(f"{prefix}phi.4.bias"), state_dict.get(f"{prefix}residual.weight")
    if module.anchored and bias is not None and (residual is None or len(saved) < len(names)):
        errors.append(
            f"{prefix}phi: expected all of Φ's layers and w_r, to convert a head that is not anchored; parts of one, "
            "and pruned or reparametrised ones, load into a head with anchored=False"
        )
        return
    if module.position != "centered" or len(saved) < len(names):
        return
    b1, w2, b2, w3 = map(at_least_float, saved)
    h1, h2, outputs = b1.numel(), b2.numel(), w3.numel() // max(1, b2.numel())
    ones = [(1,) * (value.ndim - 2) for value in (w2, w3)]
    expected = [(h1,), (h2, h1, *ones[0]), (h2,), (outputs, h2, *ones[1])]
    if [tuple(value.shape) for value in (b1, w2, b2, w3)] != expected:
        return  # and be refused for the sizes
    made = bias_of_anchored(b1, w2, b2, w3)
    assigned = local_metadata.get("assign_to_params_buffers", False)
    if module.anchored and bias is not None and residual is not None and residual.numel() == bias.numel() == outputs:
        at_centre = (bias - made) * state_dict.get(f"{prefix}phi_scale", 1)
        moved = at_least_float(residual) + at_centre.reshape(residual.shape)
        state_dict[f"{prefix}residual.weight"] = moved.to(residual.dtype) if assigned else moved
        del state_dict[f"{prefix}phi.4.bias"]
    elif not module.anchored and bias is None:
        state_dict[f"{prefix}phi.4.bias"] = made.to(w3.dtype if not assigned else saved[-1].dtype)
