"""Give any network a spatially covariant head in the place of its last 1×1 convolution."""

from typing import TypeVar

import torch
from torch import nn

from scp_kernels import FusedSCP

Network = TypeVar("Network", bound=nn.Module)


def attach(
    network: Network,
    layer: str,
    *,
    hidden_channels: int | tuple[int, int] | None = None,
    position: str = "centered",
    zero_init: bool = True,
    backend: str = "auto",
) -> Network:
    """Replace the 1×1 convolution at ``layer`` by :class:`scp_kernels.FusedSCP`, in place; return the network.

    The convolution's weight becomes w_r and its bias β. With ``zero_init`` (the default) the network's outputs are at first
    what they were. A MONAI ``Convolution`` block that holds nothing but the convolution may be named itself.

    Args:
        network: any module, 2-D or 3-D.
        layer: path of the layer, as in ``network.get_submodule``: ``"final_conv"`` for MONAI's BasicUNet.
        hidden_channels, position, zero_init, backend: see :class:`scp_kernels.FusedSCP`.

    Raises:
        ValueError: there is no such layer, or it is not a 1×1 convolution of stride 1.
    """
    try:
        found = network.get_submodule(layer)
    except AttributeError as error:
        raise ValueError(f"layer: expected the path of a layer of {type(network).__name__}, got {layer!r}") from error
    convolutions = [m for m in found.modules() if not list(m.children())]
    convolution = convolutions[0] if len(convolutions) == 1 else found
    if (
        not isinstance(convolution, nn.Conv2d | nn.Conv3d)
        or {*convolution.kernel_size, *convolution.stride, convolution.groups} != {1}
        or (not isinstance(convolution.padding, str) and any(convolution.padding))
    ):
        raise ValueError(f"layer: expected {layer!r} to be a 1×1 convolution (2-D or 3-D), got {found}")
    weight = convolution.weight
    head = FusedSCP(
        convolution.in_channels,
        convolution.out_channels,
        hidden_channels,
        spatial_dims=weight.ndim - 2,
        position=position,
        zero_init=zero_init,
        bias=convolution.bias is not None,
        backend=backend,
        device=weight.device,
        dtype=weight.dtype,
    )
    assert head.residual is not None
    with torch.no_grad():
        head.residual.weight.copy_(weight.flatten(1))
        if head.bias is not None and convolution.bias is not None:
            head.bias.copy_(convolution.bias)
    head.train(found.training)
    parent, _, name = layer.rpartition(".")
    setattr(network.get_submodule(parent), name, head)
    return network
