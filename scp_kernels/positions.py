"""The mathematics of positions: what a caller says about them as one matrix, and the first layer of Φ made of it.

Everything that a caller can say (``origin``, ``affine``, ``extent``, ``position``) ends up in one matrix P with
``S(i, j) = P · (i, j, 1)``. The first layer of Φ is therefore itself affine in the pixel index, with the coefficients
``W₁·P + (0, b₁)``: this is all that a kernel has to know about positions.
"""

import functools

import torch
from torch import Tensor

POSITIONS = ("pixels", "centered")


def position_dtype(device: torch.device) -> torch.dtype:
    """Positions are float64, except on devices that have none (MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def position_matrix(affine: Tensor, extent: Tensor, position: str) -> Tensor:
    """P with ``S = P · (index, 1)``: eq. 5 of the paper at ``p = affine · (index, 1)``.

    Args:
        affine: ``[..., K, d + 1]``, maps an index of the feature map to its position: K = d indices in the full image,
            or more axes than the map has.
        extent: ``[..., K]``, size of the full image in pixels, or of the space that positions lie in.
        position: ``"pixels"`` (S as printed) or ``"centered"`` (``2·S/extent − 1``).

    Returns:
        ``[..., 2K, d + 1]``: the distances to the leading borders, then to the trailing ones.
    """
    batch_shape = torch.broadcast_shapes(affine.shape[:-2], extent.shape[:-1])
    affine = affine.expand(*batch_shape, *affine.shape[-2:])
    extent = extent.expand(*batch_shape, extent.shape[-1])
    constant = torch.cat([torch.zeros_like(affine[..., :-1]), extent.unsqueeze(-1)], dim=-1)
    matrix = torch.cat([affine, constant - affine], dim=-2)
    if position == "centered":
        matrix = matrix * (2 / torch.cat([extent, extent], dim=-1).unsqueeze(-1))
        matrix = torch.cat([matrix[..., :-1], matrix[..., -1:] - 1], dim=-1)
    return matrix


@functools.lru_cache(maxsize=64)
def whole_image_matrix(spatial_shape: tuple[int, ...], position: str) -> Tensor:
    """:func:`position_matrix` of a feature map on the CPU that is the full image: the same values, from plain numbers.

    A dozen operations on tiny tensors would take longer than a small head. The tensor is shared by all calls: not to be
    written, and not to be asked for where a mode would put something else in its place.
    """
    d = len(spatial_shape)
    leading = [[float(row == column) for column in range(d + 1)] for row in range(d)]
    trailing = [
        [float(size) if column == d else 0.0 - value for column, value in enumerate(row)]
        for row, size in zip(leading, spatial_shape, strict=True)
    ]
    rows = leading + trailing
    if position == "centered":
        scales = [2 / float(size) for size in spatial_shape] * 2
        rows = [
            [value * scale - (column == d) for column, value in enumerate(row)]
            for row, scale in zip(rows, scales, strict=True)
        ]
    with torch.inference_mode(False):  # autograd may save it later
        return torch.tensor(rows, dtype=torch.float64, device="cpu")


_on_devices: dict[tuple[torch.device, tuple[int, ...], str], Tensor] = {}


def whole_image_matrix_on(device: torch.device, spatial_shape: tuple[int, ...], position: str) -> Tensor | None:
    """:func:`whole_image_matrix` on another device: copied there once, where a dozen launches would make it each time.

    It is kept for good (half a kilobyte per shape), since a captured graph may read it. None where a graph is being
    captured before the first plain call: a copy from the host cannot be.
    """
    key = (device, spatial_shape, position)
    matrix = _on_devices.get(key)
    if matrix is None and not _capturing(device):
        with torch.inference_mode(False):
            matrix = whole_image_matrix(spatial_shape, position).to(device=device, dtype=position_dtype(device))
        _on_devices[key] = matrix
    return matrix


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def identity_affine(spatial_dims: int, device: torch.device) -> Tensor:
    """``[d, d + 1]``: the map of a feature map that is the full image."""
    return torch.eye(spatial_dims, spatial_dims + 1, dtype=position_dtype(device), device=device)


def origin_affine(origin: Tensor, spatial_dims: int) -> Tensor:
    """``[..., K, d + 1]``: first pixel at ``origin`` ``[..., K]``, the map's axes along the last d of the K."""
    position_dims = origin.shape[-1]
    axes = torch.eye(position_dims, dtype=origin.dtype, device=origin.device)[:, position_dims - spatial_dims :]
    return torch.cat([axes.expand(*origin.shape[:-1], *axes.shape), origin.unsqueeze(-1)], dim=-1)


def first_layer_coefficients(weight: Tensor, bias: Tensor, matrix: Tensor) -> Tensor:
    """Coefficients ``[G, h₁, d + 1]`` (float64) of the first layer as an affine function of the pixel index.

    The pre-activation of unit u at (i, j) is ``c[u, 0]·i + c[u, 1]·j + c[u, 2]``.

    Args:
        weight, bias: first layer of Φ, ``[h₁, 2K]`` and ``[h₁]``.
        matrix: P from :func:`position_matrix`, ``[2K, d + 1]`` or ``[G, 2K, d + 1]``.
    """
    coefficients = weight.to(matrix.dtype) @ matrix  # [G, h₁, d + 1], or without G
    coefficients[..., -1].add_(bias)
    return coefficients if matrix.ndim == 3 else coefficients.unsqueeze(0)


def first_layer_gradients(gradient: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Adjoint of :func:`first_layer_coefficients`: gradients ``[h₁, 2K]`` and ``[h₁]`` of weight and bias.

    Args:
        gradient: ``[G, h₁, d + 1]``, the moments Σ g·(i, j, 1) of the pre-activations' gradients g.
        matrix: P, ``[2K, d + 1]`` or ``[G, 2K, d + 1]``.
    """
    if matrix.ndim == 2:
        (gradient,) = gradient
        return gradient @ matrix.T, gradient[:, -1].contiguous()
    return (gradient @ matrix.transpose(-1, -2)).sum(0), gradient[..., -1].sum(0)
