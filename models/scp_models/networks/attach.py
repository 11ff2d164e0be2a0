"""Give any network a spatially covariant head in the place of its last 1×1 convolution."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from scp_kernels import FusedSCP, Placement
from scp_models.networks.positions import PositionLike

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


@contextmanager
def positioned(
    network: nn.Module,
    *,
    origin: PositionLike | None = None,
    affine: PositionLike | None = None,
    extent: PositionLike | None = None,
) -> Iterator[None]:
    """Say where a network's input lies in the full image, for a network whose ``forward`` takes the image alone.

    Inside the context, every :class:`scp_kernels.FusedSCP` of ``network`` takes these position arguments, in pixels of
    the network's input::

        network = attach(BasicUNet(spatial_dims=2, in_channels=1, out_channels=2), "final_conv")
        with positioned(network, origin=(32, 64), extent=(160, 224)):
            logits = network(patch)

    ``origin`` without ``extent`` places the input in a full image of the input's own size: for a crop, give both.

    A head whose feature map has another size than the input (deep supervision) takes them scaled to its own grid (see
    :class:`scp_kernels.Placement`). An inner context stands before an outer one, and what a call gives itself before
    both; what the inner one does not say, the outer one does. Networks under ``torch.compile`` follow, compiled before
    or inside: numbers become tensors, so other values of them make no new graph. Under activation checkpointing the
    backward pass belongs into the context too, since it calls the head again.

    Raises:
        ValueError: the network has no such head, or both ``origin`` and ``affine`` are given.
        ValueError, TypeError: values that cannot be positions; wrong shapes are refused when the network is called.
    """
    heads = [module for module in network.modules() if isinstance(module, FusedSCP)]
    if not heads:
        raise ValueError(f"network: expected a FusedSCP somewhere in it (see attach), got {type(network).__name__}")
    before = [head.placement for head in heads]
    inside = [_placement(head, origin, affine, extent) for head in heads]
    network = getattr(network, "_orig_mod", network)  # a compiled network's hooks run outside of its graph
    hook = network.register_forward_pre_hook(_InputShape(heads, inside), with_kwargs=True, prepend=True)
    try:
        _place(heads, inside)
        yield
    finally:
        hook.remove()
        _place(heads, before)


def _place(heads: Sequence[FusedSCP], placements: Sequence[Placement | None]) -> None:
    for head, placement in zip(heads, placements, strict=True):
        head.placement = placement


def _placement(
    head: FusedSCP, origin: PositionLike | None, affine: PositionLike | None, extent: PositionLike | None
) -> Placement:
    device = next(head.parameters()).device
    return Placement(origin=origin, affine=affine, extent=extent, outer=head.placement, device=device)


class _InputShape:
    """A network's hook that tells its context's placements the spatial size of the input."""

    def __init__(self, heads: Sequence[FusedSCP], placements: Sequence[Placement]) -> None:
        self.heads = heads
        self.placements = placements

    def __call__(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for head, placement in zip(self.heads, self.placements, strict=True):
            placement.input_shape = _image_shape(args, kwargs, head.spatial_dims)


def _image_shape(args: tuple[Any, ...], kwargs: dict[str, Any], spatial_dims: int) -> tuple[int, ...] | None:
    """Spatial size of the first argument that is a batch of images."""
    for argument in (*args, *kwargs.values()):
        if isinstance(argument, Tensor) and argument.ndim == spatial_dims + 2:
            return tuple(argument.shape[2:])
    return None


def _find_convolution(network: nn.Module, path: str) -> tuple[nn.Module, nn.Conv2d | nn.Conv3d]:
    """What is at ``path``, and the convolution that it is or holds."""
    pointwise = [name for name, module in network.named_modules() if _is_pointwise(module)]
    expected = f"layer: expected the path of a 1×1 convolution (here: {', '.join(pointwise) or 'there is none'})"
    try:
        named = network.get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"{expected}, got {path!r}, which {type(network).__name__} does not have") from error
    leaves = [module for module in named.modules() if not list(module.children())]
    layer = leaves[0] if len(leaves) == 1 else named
    if not path or not isinstance(layer, nn.Conv2d | nn.Conv3d) or not _is_pointwise(layer):
        # A container prints as many lines; its name is enough.
        what = type(layer).__name__ if list(layer.children()) else str(layer)
        raise ValueError(f"{expected}, got {path!r}, which is {what}")
    return named, layer


def _is_pointwise(layer: nn.Module) -> bool:
    """Whether the layer applies one matrix to each pixel's channels and keeps the grid."""
    if not isinstance(layer, nn.Conv2d | nn.Conv3d):
        return False
    padded = not isinstance(layer.padding, str) and any(layer.padding)
    return {*layer.kernel_size, *layer.stride, layer.groups} == {1} and not padded
