"""Take a spatially covariant head out of a network again, where a 1×1 convolution computes the same."""

import copy

import torch
from torch import Tensor, nn

from scp_kernels import FusedSCP
from scp_models.networks.attach import AnyNetwork, LayerAndHead, replace_layer
from scp_models.networks.positions import PositionLike


def detach(
    network: AnyNetwork,
    layer: str | None = None,
    *,
    affine: PositionLike | None = None,
    extent: PositionLike | None = None,
) -> AnyNetwork:
    """Replace heads by 1×1 convolutions of the weights ``W + w_r`` and the bias β, in place; return the network.

    This is possible where the weights are the same at every pixel, and exact: nothing is averaged. They are, either
    since Φ ignores its input (a head that was attached and not trained, ``zero_init``: this undoes :func:`attach`, and
    every parameter has its old name again), or since every pixel is told the same position, which ``affine`` and
    ``extent`` say then (the control of a comparison).

    Args:
        network: holds a :class:`scp_kernels.FusedSCP`.
        layer: path of the head; None: all heads.
        affine: ``[K, d + 1]``, the map that the head is called with, on its own grid; its linear part is zero.
        extent: ``[K]``, which goes with it.

    Raises:
        ValueError: no such head; weights that vary with the position; an affine whose linear part is not zero, or one
            without ``extent``.
    """
    heads = {path: module for path, module in network.named_modules() if isinstance(module, FusedSCP)}
    if layer is not None:
        if layer not in heads:
            raise ValueError(f"layer: expected the path of a head (here: {', '.join(heads) or 'none'}), got {layer!r}")
        heads = {layer: heads[layer]}
    if not heads or "" in heads:
        raise ValueError(f"network: expected a FusedSCP somewhere inside of it, got {type(network).__name__}")
    # All of them before any is replaced: an error leaves the network as it was.
    weights = {path: _constant_weight(path, head, affine, extent) for path, head in heads.items()}
    for path, head in heads.items():
        _put_back(network, head, weights[path])
    return network


@torch.no_grad()
def _constant_weight(path: str, head: FusedSCP, affine: PositionLike | None, extent: PositionLike | None) -> Tensor:
    """``W + w_r`` ``[N, C]`` of a head whose weights are the same at every pixel."""
    axes, dims = head.position_dims, head.spatial_dims
    if (affine is None) != (extent is None):
        raise ValueError("affine, extent: expected both or neither, got one of them")
    if affine is not None:
        position = torch.as_tensor(affine, dtype=torch.float64)
        if tuple(position.shape) != (axes, dims + 1) or position[:, :-1].any():
            raise ValueError(
                f"affine: expected [{axes}, {dims + 1}] with zeros in all but the last column, which puts every pixel "
                f"at one position, got {position.tolist()}"
            )
    elif _varies(head.phi):
        raise ValueError(
            f"{path}: expected weights that do not depend on the position, got Φ's that do, which no 1×1 convolution "
            "can replace (affine and extent say the position, if every pixel is told the same)"
        )
    else:
        position, extent = torch.zeros(axes, dims + 1), torch.ones(axes)
    return head.weight_field((1,) * dims, affine=position, extent=extent).flatten(1)


def _varies(phi: nn.Sequential) -> bool:
    """Whether a path of weights that are not zero leads from a position to Φ's output."""
    first, second, third = (phi[k].weight.flatten(1) for k in (0, 2, 4))  # type: ignore[union-attr, operator]
    units = (first != 0).any(1)
    units = (second[:, units] != 0).any(1)
    return bool((third[:, units] != 0).any())


@torch.no_grad()
def _put_back(network: nn.Module, head: FusedSCP, weight: Tensor) -> None:
    for module in network.modules():
        if isinstance(module, LayerAndHead) and module[1] is head and head.bias is None:
            if torch.equal(weight, torch.eye(len(weight), dtype=weight.dtype, device=weight.device)):
                replace_layer(network, module, module[0])
                return
            break
    kind = (nn.Conv2d, nn.Conv3d)[head.spatial_dims - 2]
    (old,) = getattr(head, "replaced_layer", (kind(head.in_channels, head.num_classes, 1, device="meta"),))
    new = copy.deepcopy(old).to(weight.dtype).to_empty(device=weight.device).train(head.training)
    (convolution,) = (module for module in new.modules() if isinstance(module, kind))
    learns = head.residual is None or head.residual.weight.requires_grad
    convolution.weight = nn.Parameter(weight.reshape(convolution.weight.shape).clone(), requires_grad=learns)
    convolution.bias = None if head.bias is None else nn.Parameter(head.bias.clone(), head.bias.requires_grad)
    replace_layer(network, head, new)
