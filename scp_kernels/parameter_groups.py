"""Parameter groups for Adam in which Φ learns no faster than its width allows."""

import math
from typing import Any

from torch import Tensor, nn

from scp_kernels.module import FusedSCP

WIDTH_TIMES_RATE = 0.256
"""Of Φ, at most: 4e-3 at h 64, 1e-3 at h 256 (docs/training.md has the studies that this is from)."""


def parameter_groups(module: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
    """Groups of a network's parameters for Adam and its kin, in which a wide Φ learns more slowly than the rest.

    Adam moves every parameter by about its rate, so that a step moves W by a sum over Φ's hidden features, which grows
    with their number, where a 1×1 convolution's weight moves by the rate alone. The rate of each Φ is therefore at most
    ``0.256 / √(h₁·h₂)``: one that falls as 1/width keeps the step of W independent of the width (the maximal update
    parametrisation). Where no Φ is limited, as at 1e-3 up to h 256 and at 4e-3 up to h 64, there is one group, of
    ``module.parameters()``::

        optimizer = torch.optim.AdamW(parameter_groups(network, 4e-3), weight_decay=1e-2)

    Heads with a ``phi_scale``, whatever it is, are not limited. SGD's steps are gradients: its groups are none of
    these. A schedule that is told rates needs one per group, and this function its highest. Groups hold the parameters
    that Φ has when they are made: not those into which FSDP with ``use_orig_params=False`` flattens them, nor of
    exported graphs.

    Args:
        module: a network with :class:`FusedSCP` heads anywhere in it, or a head.
        learning_rate: of all other parameters, w_r and β among them.

    Returns:
        Each group's ``params`` and ``lr``, the network's other parameters first; every parameter once.

    Raises:
        TypeError: no module. ValueError: a negative rate.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected a network, got {type(module).__name__}")
    if not learning_rate >= 0:
        raise ValueError(f"learning_rate: expected at least 0, got {learning_rate}")
    limited: dict[Tensor, float] = {}
    for head in module.modules():
        if isinstance(head, FusedSCP) and head.phi_scale is None:
            rate = WIDTH_TIMES_RATE / math.sqrt(math.prod(head.hidden_channels))
            if rate < learning_rate:
                for parameter in head.phi.parameters():  # which several heads may share
                    limited[parameter] = min(rate, limited.get(parameter, rate))
    groups: dict[float, list[Tensor]] = {learning_rate: []}
    for parameter in module.parameters():
        groups.setdefault(limited.get(parameter, learning_rate), []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in groups.items() if parameters]
