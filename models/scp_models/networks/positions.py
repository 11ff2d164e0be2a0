"""Where each pixel is, as four channels for the CoordConv variants, and the control that tells every pixel the same."""

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
    origin: PositionLike | None = None,
    affine: PositionLike | None = None,
    extent: PositionLike | None = None,
) -> Tensor:
    """The position S of every pixel of ``image`` ``[B, C, H, W]`` as channels ``[B, 4, H, W]`` (paper, eq. 5).

    Those that :class:`scp_kernels.FusedSCP` evaluates Φ at (:func:`scp_kernels.pixel_positions`, which has the
    arguments and the errors), in the image's dtype: rounded once, since positions in half precision would merge
    neighbouring pixels before the scaling (224 + 0.5 does not fit bfloat16).
    """
    channels = pixel_positions(image, position=position, origin=origin, affine=affine, extent=extent)
    return channels.to(image.dtype).expand(len(image), -1, -1, -1)


def constant_affine(image: Tensor, extent: PositionLike | None = None) -> Tensor:
    """The affine ``[1 or B, 2, 3]`` that puts every pixel at the centre of the extent: its linear part is zero.

    A network that is given it has the spatially covariant head's parameters and not its positions: what it gains over
    a plain classifier comes from the reparameterisation alone.

    Raises:
        ValueError: an extent that is neither ``[2]`` nor ``[B, 2]``.
    """
    size = image.shape[2:] if extent is None else extent
    centre = torch.as_tensor(size, device=image.device, dtype=torch.float32) / 2
    if tuple(centre.shape) not in ((2,), (len(image), 2)):
        raise ValueError(
            f"extent: expected shape [2], or {[len(image), 2]} for one per sample, got {list(centre.shape)}"
        )
    return torch.cat([centre.new_zeros((*centre.shape, 2)), centre[..., None]], dim=-1)
