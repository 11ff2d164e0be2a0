"""Where each pixel is, as four channels for the CoordConv variants, and the control that tells every pixel the same."""

from collections.abc import Sequence

import torch
from torch import Tensor

PositionLike = Sequence[float] | Sequence[Sequence[float]] | Sequence[Sequence[Sequence[float]]] | Tensor
"""Numbers of the shape that is asked for, or a batch of them (one a sample)."""


def position_channels(
    image: Tensor,
    *,
    position: str,
    origin: PositionLike | None = None,
    affine: PositionLike | None = None,
    extent: PositionLike | None = None,
) -> Tensor:
    """The position S of every pixel of ``image`` ``[B, C, H, W]`` as channels ``[B, 4, H, W]`` (paper, eq. 5).

    The same positions as those that :class:`scp_kernels.FusedSCP` evaluates Φ at, in the image's dtype and on its
    device.

    Args:
        image: gives the batch size, the height and the width.
        position: ``"pixels"``: ``S = (p₀, p₁, H − p₀, W − p₁)``; ``"centered"``: ``2·S/extent − 1``.
        origin: ``p`` of the image's first pixel, ``[2]`` or ``[B, 2]``: for a plain crop.
        affine: maps the index ``(i, j, 1)`` to ``p``, ``[2, 3]`` or ``[B, 2, 3]``; default: identity.
        extent: ``(H, W)`` of the full image, ``[2]`` or ``[B, 2]``; default: the image's own.

    Raises:
        ValueError: both ``origin`` and ``affine``, a wrong shape, or an unknown ``position``.
    """
    if position not in ("pixels", "centered"):
        raise ValueError(f"position: expected 'pixels' or 'centered', got {position!r}")
    if origin is not None and affine is not None:
        raise ValueError("origin, affine: expected at most one of the two (origin is the shorthand for a plain crop)")
    height, width = image.shape[2:]
    if affine is not None:
        matrix = _batched("affine", affine, image, (2, 3))
    else:
        offset = image.new_zeros((1, 2), dtype=torch.float32)
        if origin is not None:
            offset = _batched("origin", origin, image, (2,))
        identity = torch.eye(2, device=image.device).expand(len(offset), 2, 2)
        matrix = torch.cat([identity, offset[:, :, None]], dim=2)
    size = image_extent(image, extent)

    # Positions in half precision would merge neighbouring pixels (224 + 0.5 does not fit bfloat16) before the scaling.
    i = torch.arange(height, device=image.device, dtype=torch.float32)[:, None].expand(height, width)
    j = torch.arange(width, device=image.device, dtype=torch.float32).expand(height, width)
    index = torch.stack([i, j, torch.ones_like(i)])
    p = torch.einsum("bkm,mhw->bkhw", matrix, index)
    size = size[:, :, None, None]
    near, far = p, size - p
    if position == "centered":
        near, far = 2 * near / size - 1, 2 * far / size - 1
    near, far = torch.broadcast_tensors(near, far)
    return torch.cat([near, far], dim=1).to(image.dtype).expand(len(image), -1, -1, -1)


def constant_affine(image: Tensor, extent: PositionLike | None = None) -> Tensor:
    """The affine ``[1 or B, 2, 3]`` that puts every pixel at the centre of the extent: its linear part is zero.

    A network that is given it has the spatially covariant head's parameters and not its positions: what it gains over
    a plain classifier comes from the reparameterisation alone.
    """
    size = image_extent(image, extent)
    matrix = torch.cat([size.new_zeros((len(size), 2, 2)), (size / 2)[:, :, None]], dim=2)
    return matrix if len(matrix) > 1 else matrix[0]


def image_extent(image: Tensor, extent: PositionLike | None) -> Tensor:
    """``extent`` as a float32 tensor ``[1 or B, 2]``; None: the height and width of ``image``."""
    if extent is None:
        return torch.tensor([tuple(image.shape[2:])], device=image.device, dtype=torch.float32)
    return _batched("extent", extent, image, (2,))


def _batched(name: str, value: PositionLike, image: Tensor, shape: tuple[int, ...]) -> Tensor:
    tensor = torch.as_tensor(value, device=image.device, dtype=torch.float32)
    if tuple(tensor.shape) not in (shape, (len(image), *shape)):
        raise ValueError(
            f"{name}: expected shape {list(shape)}, or {[len(image), *shape]} for one a sample, "
            f"got {list(tensor.shape)}"
        )
    return tensor.reshape(-1, *shape)
