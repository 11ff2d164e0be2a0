"""Where a network's input lies in the full image, kept for heads whose callers cannot say it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scp_kernels.checks import ArrayLike, check_alone, check_without_map, position_tensor
from scp_kernels.coordinates import affine_of_coordinates
from scp_kernels.positions import origin_affine, position_dtype


class Placement:
    """Position arguments in pixels of a network's input, for every call of a head that gives none of its own.

    ``head.placement = Placement(origin=(32, 64), extent=(160, 224))``. Where the head's feature map has another size
    than the input (deep supervision), both are scaled to its grid: with F = feature size / input size along each axis,
    the extent becomes F·extent and the map F·affine·F⁻¹, so that the whole image placed at the origin gives what no
    placement gives. Index 0 of the map is index 0 of the input, and index i is i / F. Positions with more axes than the
    map are measured in a space of their own, and keep its unit: the map becomes affine·F⁻¹, the extent stays.
    ``coordinates`` that a call gives itself are in the unit of the extent as it is given here, on whatever grid.

    Args:
        origin, affine, extent: as in :func:`scp_kernels.scp`, in pixels of the input. Numbers are copied to ``device``.
        coordinates, coordinates_as: coordinate channels of the input in the place of ``affine``, which is read off at
            once; see :func:`scp_kernels.affine_of_coordinates`.
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
        coordinates: Tensor | None = None,
        coordinates_as: str = "affine",
        outer: Placement | None = None,
        device: torch.device | None = None,
    ) -> None:
        check_alone(origin, affine)
        device = torch.device("cpu") if device is None else device
        if coordinates is not None:
            affine = affine_of_input(origin, affine, extent, coordinates, coordinates_as)
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
        placed_origin, placed_affine, placed_extent = self._on_grid_of(features)
        if origin is None and affine is None:
            origin, affine = placed_origin, placed_affine
        if extent is None:
            extent = placed_extent
        if self.outer is not None and (extent is None or (origin is None and affine is None)):
            return self.outer.resolve(features, origin, affine, extent)
        return origin, affine, extent

    def extent_of_space(self) -> Tensor | None:
        """The extent as it was given, here or else outside: that of the space which coordinates are measured in."""
        if self.extent is None and self.outer is not None:
            return self.outer.extent_of_space()
        return self.extent

    def _on_grid_of(self, features: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        origin, affine, extent = self.origin, self.affine, self.extent
        shape = features.shape[2:]
        if self.input_shape is not None and self.input_shape != tuple(shape):
            scale = _scale(shape, self.input_shape, features.device)
            columns = torch.cat([1 / scale, scale.new_ones(1)])
            if origin is not None:
                in_space = origin.to(scale)
                origin = None if in_space.shape[-1:] > scale.shape else in_space * scale
                affine = origin_affine(in_space, len(shape)) if origin is None else None
            if extent is not None and not extent.shape[-1:] > scale.shape:
                extent = extent.to(scale) * scale
            if affine is not None:
                rows = 1 if affine.shape[-2:-1] > scale.shape else scale[:, None]
                affine = rows * affine.to(scale) * columns
        return origin, affine, extent


def affine_of_input(
    origin: ArrayLike | None,
    affine: ArrayLike | None,
    extent: ArrayLike | None,
    coordinates: Tensor,
    coordinates_as: str,
) -> Tensor:
    """The map of coordinate channels that are given in the place of ``origin`` and ``affine``."""
    check_without_map(origin, affine)
    if extent is None:
        raise ValueError("extent: expected the sizes of the space that the coordinates are measured in, got none")
    return affine_of_coordinates(coordinates, extent, coordinates_as=coordinates_as)


def _scale(shape: Sequence[int], input_shape: Sequence[int], device: torch.device) -> Tensor:
    """Size of the map over that of the input, ``[d]``: from sizes that may be symbols, without a copy from the host."""
    dtype = position_dtype(device)
    sizes, inputs = (
        torch.stack([torch.full((), size, dtype=dtype, device=device) for size in of]) for of in (shape, input_shape)
    )
    return sizes / inputs
