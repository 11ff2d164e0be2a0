"""The operator as the paper evaluates it: what the fused one is measured against."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from scp_kernels import FusedSCP

_CONVOLUTIONS: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}


class PaperStyle(nn.Module):
    """A ``FusedSCP`` as the paper describes it: positions expanded over the batch, 1×1 convolutions, W materialized.

    It computes the same function (eqs. 5 to 9) with copies of the head's parameters. Φ stays in float32 for features in
    half precision, whose own positions would merge pixels.

    Args:
        head: with a residual weight. A scale of Φ, or the anchor, is written into the copy's layers.

    Raises:
        ValueError: a head without residual weight.
    """

    def __init__(self, head: FusedSCP) -> None:
        super().__init__()
        head = copy.deepcopy(head).fold_()
        if head.residual is None:
            raise ValueError("head: expected one with w_r, as in the paper")
        self._convolution = _CONVOLUTIONS[head.spatial_dims]
        self.phi = nn.Sequential(*(self._pointwise(m) if isinstance(m, nn.Linear) else m for m in head.phi))
        self.residual = self._pointwise(head.residual)
        self.bias = head.bias
        self.position = head.position

    def _pointwise(self, layer: nn.Module) -> nn.Module:
        """A 1×1 convolution with a layer's parameters."""
        weight = layer.weight
        assert isinstance(weight, Tensor)
        options: dict[str, Any] = {"bias": layer.bias is not None, "device": weight.device, "dtype": weight.dtype}
        convolution = self._convolution(weight.shape[1], weight.shape[0], 1, **options)
        with torch.no_grad():
            for name, value in layer.named_parameters():
                parameter = getattr(convolution, name)
                parameter.copy_(value.reshape(parameter.shape))
        return convolution

    def forward(self, features: Tensor, affine: Tensor | None = None, extent: Tensor | None = None) -> Tensor:
        """Logits ``[B, N, *spatial]`` in the features' dtype.

        Args:
            features: ``[B, C, *spatial]``.
            affine: ``[B, K, d + 1]``, pixel ``(index, 1)`` of each sample to its position; None: whole images.
            extent: ``[K]``, upper ends of positions; None: the map's own sizes.
        """
        batch, channels, *shape = features.shape
        dtype = torch.promote_types(features.dtype, torch.float32)
        axes = [torch.arange(size, dtype=dtype, device=features.device) for size in shape]
        p = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]  # [1, d, *shape]
        if affine is not None:
            index = p.flatten(2)
            p = (affine[:, :, :-1].to(dtype) @ index + affine[:, :, -1:].to(dtype)).unflatten(2, shape)
        # Plain numbers, not a tensor of the map's sizes: copying that to a GPU would wait for it at every call.
        sizes: list[Any] = shape if extent is None else list(extent.unbind())
        far = torch.stack([size - index for size, index in zip(sizes, p.unbind(1), strict=True)], 1)
        s = torch.cat([p, far], 1)
        if self.position == "centered":
            s = torch.stack([2 * distance / size - 1 for size, distance in zip(sizes * 2, s.unbind(1), strict=True)], 1)
        s = s.expand(batch, *s.shape[1:]).contiguous()
        weight = self.phi(s).unflatten(1, (-1, channels))
        x = features.to(dtype)
        logits = (weight * x[:, None]).sum(2) + self.residual(x)
        if self.bias is not None:
            logits = logits + self.bias.view(-1, *[1] * len(shape))
        return logits.to(features.dtype)
