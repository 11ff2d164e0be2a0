"""The operator in plain PyTorch, line by line the mathematics of the paper: the truth that every backend is held to.

Spatially covariant pixel-aligned classifier, eqs. 5, 12 and 13 of "Spatially Covariant Lesion Segmentation"::

    S_ij = (i, j, H − i, W − j)
    W_ij = Φ(S_ij)                    Φ: linear, ReLU, linear, ReLU, linear
    Y_ij = (W_ij + w_r)ᵀ X_ij         (+ β)
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import relu

from scp_kernels._torch_compat import constant_to_dynamo
from scp_kernels.positions import origin_affine, position_dtype


def positions(
    spatial_shape: Sequence[int],
    *,
    affine: Tensor | None = None,
    extent: Tensor | None = None,
    position: str = "pixels",
    device: torch.device | None = None,
) -> Tensor:
    """Position S of every pixel (eq. 5), ``[G, 2K, P]`` in float64, with P the number of pixels in row-major order.

    G is 1, or the number of samples when ``affine`` or ``extent`` is given for each sample. Arguments as in
    :func:`scp_reference`, already tensors.
    """
    dtype = torch.float64 if device is None else position_dtype(device)
    if affine is None:
        p = pixel_indices(spatial_shape, dtype, device)[None]  # [1, d, P]
    else:
        p = map_indices(affine.to(device=device, dtype=dtype), spatial_shape)  # [G, K, P]
    if extent is None:
        size = torch.stack([torch.full((), s, dtype=dtype, device=device) for s in spatial_shape])[None, :, None]
    else:
        size = extent.to(device=device, dtype=dtype)[..., None]  # [K, 1] or [G, K, 1]
        size = size if size.ndim == 3 else size[None]
    return distances(p, size, position)


def distances(p: Tensor, size: Tensor, position: str) -> Tensor:
    """S ``[G, 2K, P]`` of the positions p ``[G, K, P]`` in a space of the given size ``[G, K, 1]`` (eq. 5)."""
    trailing = size - p
    leading = p.expand_as(trailing)
    s = torch.cat([leading, trailing], dim=1)
    if position == "centered":
        s = 2 * s / torch.cat([size, size], dim=1) - 1
    return s


def pixel_indices(spatial_shape: Sequence[int], dtype: torch.dtype, device: torch.device | None) -> Tensor:
    """Index (i, j) of every pixel, ``[d, P]``."""
    axes = [torch.arange(size, dtype=dtype, device=device) for size in spatial_shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)


def map_indices(matrix: Tensor, spatial_shape: Sequence[int]) -> Tensor:
    """``matrix · (i, j, 1)`` at every pixel, ``[G, rows, P]``, for one matrix ``[rows, d + 1]`` or G of them."""
    matrix = matrix if matrix.ndim == 3 else matrix[None]
    return matrix[:, :, :-1] @ pixel_indices(spatial_shape, matrix.dtype, matrix.device) + matrix[:, :, -1:]


def _linear(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """``weight @ x + bias`` in each column of ``x`` ``[G, in, P]`` (one fused call: memory passes dominate here)."""
    return torch.baddbmm(bias[:, None], weight.expand(x.shape[0], *weight.shape), x)


def weight_field(s: Tensor, phi: Sequence[Tensor], residual: Tensor) -> Tensor:
    """``W + w_r`` of eqs. 12 and 13, ``[G, N, C, P]``, at the positions ``s`` ``[G, 2K, P]``."""
    w1, b1, w2, b2, w3, b3 = phi
    hidden = relu(_linear(w1, b1, s))  # [G, h₁, P]
    hidden = relu(_linear(w2, b2, hidden))  # [G, h₂, P]
    weight = _linear(w3, b3, hidden)  # [G, N·C, P]
    return weight.unflatten(1, residual.shape) + residual[:, :, None]


def scp_reference(
    features: Tensor,
    phi: Sequence[Tensor],
    residual: Tensor,
    bias: Tensor | None = None,
    *,
    origin: Sequence[float] | Tensor | None = None,
    affine: Tensor | None = None,
    extent: Sequence[float] | Tensor | None = None,
    position: str = "pixels",
) -> Tensor:
    """Logits of the spatially covariant classifier (eqs. 5, 12, 13), in plain differentiable PyTorch.

    Φ is evaluated once for each pixel and serves the whole batch; autograd keeps its activations and W.

    Args:
        features: X, ``[B, C, *spatial]`` with 2 or 3 spatial axes; float64, float32, float16 or bfloat16.
        phi: the six tensors ``(w1, b1, w2, b2, w3, b3)`` of Φ, shapes ``[h₁, 2K] [h₁] [h₂, h₁] [h₂] [N·C, h₂] [N·C]``;
            K is the number of position axes, d of spatial ones; output ``n·C + c`` of Φ is ``W[n, c]``.
        residual: w_r, ``[N, C]``.
        bias: β, ``[N]``, added to the logits; None is the paper's form.
        origin: ``[K]`` or ``[B, K]``, position of the map's first pixel: shorthand for a plain crop.
        affine: ``[K, d + 1]`` or ``[B, K, d + 1]``, index in the map to position; None (K = d only): identity.
        extent: ``[K]`` or ``[B, K]``, size of the full image in pixels; None (K = d only): the feature map's own.
        position: ``"pixels"`` (eq. 5) or ``"centered"`` (``2·S/extent − 1``).

    Returns:
        Logits ``[B, N, *spatial]`` in the features' dtype, computed in at least float32.

    The arguments are taken as they are: :func:`scp_kernels.scp` is the checked form.
    """
    if origin is not None:
        origin = torch.as_tensor(origin, dtype=position_dtype(features.device), device=features.device)
        affine = origin_affine(origin, features.ndim - 2)
    if extent is not None:
        extent = torch.as_tensor(extent, dtype=position_dtype(features.device), device=features.device)
    with without_autocast(features.device):
        s = positions(features.shape[2:], affine=affine, extent=extent, position=position, device=features.device)
    return classify(features, s, phi, residual, bias)


def without_autocast(device: torch.device) -> torch.autocast:
    """Positions and Φ in the dtype that they are given in."""
    return torch.autocast(_autocast_type(device.type), enabled=False)


@constant_to_dynamo  # Dynamo of PyTorch 2.11 cannot trace the question; the answer never changes
def _autocast_type(device_type: str) -> str:
    # Some devices (meta) have no autocast to switch off.
    return device_type if torch.amp.is_autocast_available(device_type) else "cpu"


def classify(
    features: Tensor, s: Tensor, phi: Sequence[Tensor], residual: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Logits of eqs. 12 and 13 at the positions ``s`` ``[G, 2K, P]``; the rest as in :func:`scp_reference`."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    for tensor in phi:
        dtype = torch.promote_types(dtype, tensor.dtype)
    with without_autocast(features.device):
        weight = weight_field(s.to(dtype), [t.to(dtype) for t in phi], residual.to(dtype))  # [G, N, C, P]
        x = features.to(dtype).flatten(2)  # [B, C, P]
        logits = torch.stack([(w * x).sum(1) for w in weight.unbind(1)], dim=1)  # [B, N, P]
        if bias is not None:
            logits = logits + bias.to(dtype)[:, None]
        return logits.to(features.dtype).unflatten(2, features.shape[2:])
