"""Where a network's input lies in the full image, kept for heads whose callers cannot say it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scp_kernels.checks import ArrayLike, check_alone, position_tensor
from scp_kernels.positions import position_dtype


class Placement:
    """Position arguments in pixels of a network's input, for every call of a head that gives none of its own.

    ``head.placement = Placement(origin=(32, 64), extent=(160, 224))``. Where the head's feature map has another size
    than the input (deep supervision), both are scaled to its grid: with F = feature size / input size along each axis,
    the extent becomes F·extent and the map F·affine·F⁻¹, so that the whole image placed at the origin gives what no
    placement gives.

    Args:
        origin, affine, extent: as in :func:`scp_kernels.scp`, in pixels of the input. Numbers are copied to ``device``.
        outer: what to ask for those that are not given here.
        device: where the head's features are expected.

    Attributes:
        input_shape: spatial size of the network's input, set before the head is called; None: the head's own map.

    Raises:
        ValueError, TypeError: both origin and affine, or values that cannot be positions, named in the message.
    """

    def __init__(
        self,
        *,
        origin: ArrayLike | None = None,
        affine: ArrayLike | None = None,
        extent: ArrayLike | None = None,
        outer: Placement | None = None,
        device: torch.device | None = None,
    ) -> None:
        check_alone(origin, affine)
        device = torch.device("cpu") if device is None else device
        self.origin = None if origin is None else position_tensor("origin", origin, device)
        self.affine = None if affine is None else position_tensor("affine", affine, device)
        self.extent = None if extent is None else position_tensor("extent", extent, device)
        self.outer = outer
        self.input_shape: tuple[int, ...] | None = None
        # Of a context: the number of its network's hook, and whether graphs may take it.
        self.owner: int | None = None
        self.in_graphs = True

    def resolve(
        self,
        features: Tensor,
        origin: ArrayLike | None = None,
        affine: ArrayLike | None = None,
        extent: ArrayLike | None = None,
    ) -> tuple[ArrayLike | None, ArrayLike | None, ArrayLike | None]:
        """Positions in pixels of the features' grid: those given, else this placement's, else the outer's."""
        own_origin, own_affine, own_extent = self._on_grid_of(features)
        if origin is None and affine is None:
            origin, affine = own_origin, own_affine
        if extent is None:
            extent = own_extent
        if self.outer is not None and (extent is None or (origin is None and affine is None)):
            return self.outer.resolve(features, origin, affine, extent)
        return origin, affine, extent

    def _on_grid_of(self, features: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        origin, affine, extent = self.origin, self.affine, self.extent
        shape = features.shape[2:]
        if self.input_shape is not None and self.input_shape != tuple(shape):
            scale = _scale(shape, self.input_shape, features.device)
            origin = None if origin is None else origin.to(scale) * scale
            extent = None if extent is None else extent.to(scale) * scale
            if affine is not None:
                columns = torch.cat([1 / scale, scale.new_ones(1)])
                affine = scale[:, None] * affine.to(scale) * columns
        return origin, affine, extent


def _scale(shape: Sequence[int], input_shape: Sequence[int], device: torch.device) -> Tensor:
    """Size of the map over that of the input, ``[d]``: from sizes that may be symbols, without a copy from the host."""
    dtype = position_dtype(device)
    sizes, inputs = (
        torch.stack([torch.full((), size, dtype=dtype, device=device) for size in of]) for of in (shape, input_shape)
    )
    return sizes / inputs
