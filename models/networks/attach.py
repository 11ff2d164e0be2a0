"""Give any network a spatially covariant head in the place of its last 1×1 convolution."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from scp_models.networks.positions import PositionLike
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
    logit_bias: float | None = None,
    backend: str = "auto",
) -> Network:
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
        hidden_channels, position, zero_init, backend: see :class:`scp_kernels.FusedSCP`.

    Raises:
        ValueError: there is no such layer, or it is not a 1×1 convolution of stride 1; the message names what was found
            and those that would do.
    """
    convolution = _find_convolution(network, layer)
    weight = convolution.weight
    head = FusedSCP(
        convolution.in_channels,
        convolution.out_channels,
        hidden_channels,
        spatial_dims=weight.ndim - 2,
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
    parent, _, name = layer.rpartition(".")
    setattr(network.get_submodule(parent), name, head)
    return network


@contextmanager
def positioned(
    network: nn.Module,
    *,
    origin: PositionLike | None = None,
    affine: PositionLike | None = None,
    extent: PositionLike | None = None,
) -> Iterator[None]:
    """Say where a network's input lies in the full image, for a network whose ``forward`` takes the image alone.

    Inside the context, every :class:`scp_kernels.FusedSCP` of ``network`` is called with these position arguments, in
    pixels of the head's own feature map (for most networks the image's grid)::

        network = attach(BasicUNet(spatial_dims=2, in_channels=1, out_channels=2), "final_conv")
        with positioned(network, origin=(32, 64), extent=(160, 224)):
            logits = network(patch)

    Raises:
        ValueError: the network has no such head.
    """
    heads = [module for module in network.modules() if isinstance(module, FusedSCP)]
    if not heads:
        raise ValueError(f"network: expected a FusedSCP somewhere in it (see attach), got {type(network).__name__}")

    def add_position(head: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {"origin": origin, "affine": affine, "extent": extent, **kwargs}

    with ExitStack() as hooks:
        for head in heads:
            hooks.callback(head.register_forward_pre_hook(add_position, with_kwargs=True).remove)
        yield


def _find_convolution(network: nn.Module, path: str) -> nn.Conv2d | nn.Conv3d:
    pointwise = [name for name, module in network.named_modules() if _is_pointwise(module)]
    expected = f"layer: expected the path of a 1×1 convolution (here: {', '.join(pointwise) or 'there is none'})"
    try:
        found = network.get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"{expected}, got {path!r}, which {type(network).__name__} does not have") from error
    leaves = [module for module in found.modules() if not list(module.children())]
    layer = leaves[0] if len(leaves) == 1 else found
    if not path or not isinstance(layer, nn.Conv2d | nn.Conv3d) or not _is_pointwise(layer):
        # A container prints as many lines; its name is enough.
        what = type(layer).__name__ if list(layer.children()) else str(layer)
        raise ValueError(f"{expected}, got {path!r}, which is {what}")
    return layer


def _is_pointwise(layer: nn.Module) -> bool:
    """Whether the layer applies one matrix to each pixel's channels and keeps the grid."""
    if not isinstance(layer, nn.Conv2d | nn.Conv3d):
        return False
    padded = not isinstance(layer.padding, str) and any(layer.padding)
    return {*layer.kernel_size, *layer.stride, layer.groups} == {1} and not padded
