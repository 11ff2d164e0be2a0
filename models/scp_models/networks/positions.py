"""Where each pixel is, as channels for the CoordConv variants, and the control that tells every pixel the same."""

from collections.abc import Sequence

import torch
from torch import Tensor

from scp_kernels import pixel_positions

PositionLike = Sequence[float] | Sequence[Sequence[float]] | Sequence[Sequence[Sequence[float]]] | Tensor
"""Numbers of the shape that is asked for, or a batch of them (one per sample)."""


def position_channels(
    image: Tensor,
    *,
    position: str,
    position_dims: int = 2,
    origin: PositionLike | None = None,
    affine: PositionLike | None = None,
    extent: PositionLike | None = None,
) -> Tensor:
    """The position S of every pixel of ``image`` ``[B, C, H, W]`` as channels ``[B, 2K, H, W]`` (paper, eq. 5).

    Those that :class:`scp_kernels.FusedSCP` evaluates Φ at (:func:`scp_kernels.pixel_positions`, which has the
    arguments and the errors), in the image's dtype: rounded once, since positions in half precision would merge
    neighbouring pixels before the scaling (224 + 0.5 does not fit bfloat16).
    """
    channels = pixel_positions(
        image, position=position, position_dims=position_dims, origin=origin, affine=affine, extent=extent
    )
    return channels.to(image.dtype).expand(len(image), -1, -1, -1)


def constant_affine(image: Tensor, extent: PositionLike | None = None, position_dims: int = 2) -> Tensor:
    """The affine ``[K, 3]`` or ``[B, K, 3]`` that puts every pixel at the extent's centre: its linear part is zero.

    A network that is given it has the spatially covariant head's parameters and not its positions: what it gains over
    a plain classifier comes from the reparameterisation alone.

    Raises:
        ValueError: an extent that is neither ``[K]`` nor ``[B, K]``, or none where K is not 2.
    """
    if extent is None and position_dims != 2:
        raise ValueError(f"extent: expected it with {position_dims} position axes, an image has two sizes only")
    size = image.shape[2:] if extent is None else extent
    # In the extent's own precision: rounded, it is not the centre.
    own = isinstance(extent, Tensor) and extent.is_floating_point()
    dtype = torch.promote_types(extent.dtype, torch.float32) if own else torch.float64  # type: ignore[union-attr]
    centre = torch.as_tensor(size, device=image.device, dtype=dtype) / 2
    if tuple(centre.shape) not in ((position_dims,), (len(image), position_dims)):
        raise ValueError(
            f"extent: expected shape [{position_dims}], or {[len(image), position_dims]} for one per sample, "
            f"got {list(centre.shape)}"
        )
    return torch.cat([centre.new_zeros((*centre.shape, 2)), centre[..., None]], dim=-1)
