"""Give any network a spatially covariant head in the place of its last 1×1 convolution, or behind its last layer."""

import copy
from typing import TypeGuard, TypeVar

import torch
from torch import nn

from scp_kernels import FusedSCP, is_pointwise

AnyNetwork = TypeVar("AnyNetwork", bound=nn.Module)


class LayerAndHead(nn.Sequential):
    """A layer that was kept, and the head behind it."""


def attach(
    network: AnyNetwork,
    layer: str,
    *,
    keep_layer: bool = False,
    hidden_channels: int | tuple[int, int] | None = None,
    position_dims: int | None = None,
    position: str = "centered",
    zero_init: bool = True,
    anchored: bool | None = None,
    phi_scale: float | str = 1.0,
    logit_bias: float | None = None,
    backend: str = "auto",
) -> AnyNetwork:
    """Replace the 1×1 convolution at ``layer`` by :class:`scp_kernels.FusedSCP`, in place; return the network.

    The convolution's weight becomes w_r and its bias β. With ``zero_init`` (the default) the network's outputs are at
    first what they were. A MONAI ``Convolution`` block that holds nothing but the convolution may be named itself. The
    head keeps the convolution's device, dtype and ``requires_grad``; Φ is trainable. Its parameters are new ones, so
    build the optimizer afterwards, Adam of :func:`scp_kernels.parameter_groups`.

    A ReLU in front of a head with a logit bias can die in training, with every logit at the bias; a last layer that is
    a normalisation without activation is the safe ground (see :data:`scp_models.networks.PRESETS`).

    Args:
        network: any module, 2-D or 3-D. Its ``forward`` need not know of positions: see :func:`positioned` for crops.
        layer: path of the layer, as in ``network.get_submodule``: ``"final_conv"`` for MONAI's BasicUNet.
        keep_layer: keep the layer, which may be any with a fixed number of channels, and put the head behind it, for
            networks that end in no 1×1 convolution: X are the layer's N outputs, and w_r begins as the identity. There
            is a β only if ``logit_bias`` is given. The layer's parameters are found under ``layer + ".0"`` then.
        logit_bias: initial value of β, the class's log-odds; None: the convolution's bias, and no β where it has none.
        anchored: whether Φ is zero at the centre of the extent, so that the head there is the convolution w_r and no
            step on Φ moves all of its weights (docs/training.md); None: with centered positions.
        phi_scale: ``"adam"``, or ``"sgd"`` where that trains the network (as in nnU-Net): the head's weights then move
            about as fast as the convolution's did. 1 is the paper's form. A checkpoint keeps its own.
        hidden_channels, position_dims, position, zero_init, backend: see :class:`scp_kernels.FusedSCP`.

    A layer that the network holds under several names is replaced under all of them.

    Raises:
        ValueError: there is no such layer, or it is not a 1×1 convolution of stride 1; the message names what was found
            and those that would do. With ``keep_layer``: how many channels it has does not show.

    :func:`detach` undoes it.
    """
    if keep_layer:
        kept, example, channels = _find_layer(network, layer)
        classes, bias = channels, logit_bias is not None
    else:
        kept, convolution = _find_convolution(network, layer)
        example, channels, classes = convolution.weight, convolution.in_channels, convolution.out_channels
        bias = convolution.bias is not None or logit_bias is not None
    head = FusedSCP(
        channels,
        classes,
        hidden_channels,
        spatial_dims=example.ndim - 2,
        position_dims=position_dims,
        position=position,
        zero_init=zero_init,
        anchored=position == "centered" if anchored is None else anchored,
        phi_scale=phi_scale,
        bias=bias,
        bias_init=logit_bias or 0.0,
        backend=backend,
        device=example.device,
        dtype=example.dtype,
    ).train(kept.training)
    assert head.residual is not None
    if keep_layer:
        nn.init.eye_(head.residual.weight)
        replace_layer(network, kept, LayerAndHead(kept, head))
        return network
    with torch.no_grad():
        head.residual.weight.copy_(example.flatten(1))
        head.residual.weight.requires_grad_(example.requires_grad)
        if head.bias is not None and convolution.bias is not None:
            if logit_bias is None:
                head.bias.copy_(convolution.bias)
            head.bias.requires_grad_(convolution.bias.requires_grad)
    # For detach: a tuple, since a module would be one of the head's own. It has no memory.
    vars(head)["replaced_layer"] = (copy.deepcopy(kept).to("meta"),)
    replace_layer(network, kept, head)
    return network


def replace_layer(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put one module in the place of another wherever ``network`` holds it: as a submodule, or in a plain list."""
    for module in list(network.modules()):
        for name, child in module._modules.items():
            if child is old:
                module._modules[name] = new
        for held in vars(module).values():
            if isinstance(held, list):
                held[:] = [new if item is old else item for item in held]


def _find_layer(network: nn.Module, path: str) -> tuple[nn.Module, torch.Tensor, int]:
    """The layer at ``path``, a weight of a convolution of it, and its number of channels."""
    try:
        layer = network.get_submodule(path)
    except AttributeError as error:
        raise ValueError(
            f"layer: expected the path of a layer, got {path!r}, which {type(network).__name__} does not have"
        ) from error
    convolutions = [module for module in layer.modules() if isinstance(module, nn.modules.conv._ConvNd)]
    channels, last = getattr(layer, "out_channels", None), layer
    while not isinstance(channels, int) and list(last.children()):
        last = list(last.children())[-1]
        channels = getattr(last, "out_channels", None)
    if not path or not convolutions or not isinstance(channels, int) or convolutions[-1].weight.ndim not in (4, 5):
        raise ValueError(
            f"layer: expected the path of a layer of convolutions in 2-D or 3-D that tells its out_channels, got "
            f"{path!r}, which is {type(layer).__name__}"
        )
    return layer, convolutions[-1].weight, channels


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
