"""Give any network a spatially covariant head in the place of its last 1×1 convolution."""

from typing import TypeGuard, TypeVar

import torch
from torch import nn

from scp_kernels import FusedSCP, is_pointwise

AnyNetwork = TypeVar("AnyNetwork", bound=nn.Module)


def attach(
    network: AnyNetwork,
    layer: str,
    *,
    hidden_channels: int | tuple[int, int] | None = None,
    position_dims: int | None = None,
    position: str = "centered",
    zero_init: bool = True,
    logit_bias: float | None = None,
    backend: str = "auto",
) -> AnyNetwork:
    """Replace the 1×1 convolution at ``layer`` by :class:`scp_kernels.FusedSCP`, in place; return the network.

    The convolution's weight becomes w_r and its bias β. With ``zero_init`` (the default) the network's outputs are at
    first what they were. A MONAI ``Convolution`` block that holds nothing but the convolution may be named itself. The
    head keeps the convolution's device, dtype and ``requires_grad``; Φ is trainable. Its parameters are new ones, so
    build the optimizer afterwards.

    A ReLU in front of a head with a logit bias can die in training, with every logit at the bias; a last layer that is
    a normalisation without activation is the safe ground (see :data:`scp_models.networks.PRESETS`).

    Args:
        network: any module, 2-D or 3-D. Its ``forward`` need not know of positions: see :func:`positioned` for crops.
        layer: path of the layer, as in ``network.get_submodule``: ``"final_conv"`` for MONAI's BasicUNet.
        logit_bias: initial value of β, the class's log-odds; None: the convolution's bias, and no β where it has none.
        hidden_channels, position_dims, position, zero_init, backend: see :class:`scp_kernels.FusedSCP`.

    A layer that the network holds under several names is replaced under all of them.

    Raises:
        ValueError: there is no such layer, or it is not a 1×1 convolution of stride 1; the message names what was found
            and those that would do.
    """
    replaced, convolution = _find_convolution(network, layer)
    weight = convolution.weight
    head = FusedSCP(
        convolution.in_channels,
        convolution.out_channels,
        hidden_channels,
        spatial_dims=weight.ndim - 2,
        position_dims=position_dims,
        position=position,
        zero_init=zero_init,
        bias=convolution.bias is not None or logit_bias is not None,
        bias_init=logit_bias or 0.0,
        backend=backend,
        device=weight.device,
        dtype=weight.dtype,
    )
    assert head.residual is not None
    with torch.no_grad():
        head.residual.weight.copy_(weight.flatten(1))
        head.residual.weight.requires_grad_(weight.requires_grad)
        if head.bias is not None and convolution.bias is not None:
            if logit_bias is None:
                head.bias.copy_(convolution.bias)
            head.bias.requires_grad_(convolution.bias.requires_grad)
    head.train(convolution.training)
    _replace(network, replaced, head)
    return network


def _replace(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put one module in the place of another wherever ``network`` holds it: as a submodule, or in a plain list."""
    for module in list(network.modules()):
        for name, child in module._modules.items():
            if child is old:
                module._modules[name] = new
        for held in vars(module).values():
            if isinstance(held, list):
                held[:] = [new if item is old else item for item in held]


def _find_convolution(network: nn.Module, path: str) -> tuple[nn.Module, nn.Conv2d | nn.Conv3d]:
    """What is at ``path``, and the convolution that it is or holds."""
    pointwise = [name for name, module in network.named_modules() if _is_convolution(module)]
    expected = f"layer: expected the path of a 1×1 convolution (here: {', '.join(pointwise) or 'there is none'})"
    try:
        named = network.get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"{expected}, got {path!r}, which {type(network).__name__} does not have") from error
    leaves = [module for module in named.modules() if not list(module.children())]
    layer = leaves[0] if len(leaves) == 1 else named
    if not path or not _is_convolution(layer):
        # A container prints as many lines; its name is enough.
        what = type(layer).__name__ if list(layer.children()) else str(layer)
        raise ValueError(f"{expected}, got {path!r}, which is {what}")
    return named, layer


def _is_convolution(layer: nn.Module) -> TypeGuard[nn.Conv2d | nn.Conv3d]:
    return isinstance(layer, nn.Conv2d | nn.Conv3d) and is_pointwise(layer)
