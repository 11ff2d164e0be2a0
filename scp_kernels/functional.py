"""``scp()``: argument checks, then the chosen backend."""

from collections.abc import Sequence

import torch
from torch import Tensor

from scp_kernels import coordinates as coordinate_channels
from scp_kernels import dispatch, ops, positions, reference
from scp_kernels._torch_compat import needs_dispatcher
from scp_kernels.checks import ArrayLike, as_position_dims, check_features, check_position, check_tensors
from scp_kernels.positions import POSITIONS, identity_affine, whole_image_matrix, whole_image_matrix_on
from scp_kernels.problem import Problem, problem_of
from scp_kernels.reference import scp_reference


def scp(
    features: Tensor,
    phi: Sequence[Tensor],
    residual: Tensor | None,
    bias: Tensor | None = None,
    *,
    origin: ArrayLike | None = None,
    affine: ArrayLike | None = None,
    extent: ArrayLike | None = None,
    coordinates: Tensor | None = None,
    coordinates_as: str = "affine",
    position: str = "pixels",
    backend: str = "auto",
) -> Tensor:
    """Logits of the spatially covariant pixel-aligned classifier (paper, eqs. 5, 12, 13).

    ``Y[b,n,i,j] = Σ_c (Φ(S_ij)[n,c] + w_r[n,c])·X[b,c,i,j] (+ β[n])`` with ``S_ij = (i, j, H − i, W − j)``.

    Args:
        features: X, ``[B, C, H, W]`` or ``[B, C, D, H, W]``; float64, float32, float16 or bfloat16, any strides.
        phi: the six tensors ``(w1, b1, w2, b2, w3, b3)`` of Φ, shapes ``[h₁, 2K] [h₁] [h₂, h₁] [h₂] [N·C, h₂] [N·C]``
            for K ≥ d position axes; weights may carry the trailing axes of 1×1 convolutions. Output ``n·C + c`` of Φ is
            ``W[n, c]``.
        residual: w_r, ``[N, C]`` (or a 1×1 convolution's weight); None: no residual, and N follows from ``w3``.
        bias: β, ``[N]``; None is the paper's form.
        origin: ``[K]`` or ``[B, K]``: index in the full image of the map's first pixel, for a plain crop. With K > d
            the last d axes run with the map's own: a slice k of a volume, cropped at (i₀, j₀), has ``(k, i₀, j₀)``.
        affine: ``[K, d + 1]`` or ``[B, K, d + 1]``: maps an index ``(i, j, 1)`` of the feature map to its index in the
            full image, for crops, flips, rotations and scalings, or to its position in any other frame. Not
            differentiable. Excludes ``origin``. Tensors of positions are in float32, float64 or integers: fewer bits do
            not hold a pixel's position.
        extent: ``[K]`` or ``[B, K]``: size of the full image in pixels; None: the feature map's own size, also where
            ``origin`` is given: for a crop, give both. On a GPU, positions given as numbers or as tensors of the host
            are copied, which waits for the device and cannot be captured in a graph; give tensors that lie there.
            With K > d nothing has a default: ``extent`` is given, and ``affine`` or ``origin``.
        coordinates: ``[B or 1, K, *spatial]`` in float32 or float64: the position of every pixel as a picture, in the
            place of ``affine``, with ``extent`` beside it. It comes out of any augmentation that moved K coordinate
            channels along with the image. One channel more says where to believe the others: 1 inside, anything else
            where padding filled. Not differentiable.
        coordinates_as: what ``coordinates`` are taken for. ``"affine"``: samples of an affine map, which is read off
            on the device, without waiting for it. Where fewer than half of a sample's valid pixels lie on one map
            (elastic deformation), it is a ValueError on the CPU; on a GPU, compiled or traced, where nobody can be told
            without waiting, the sample's logits are NaN. ``"least_squares"``: the affine map that comes closest.
            ``"pixelwise"``: Φ is evaluated at each pixel's own position by the reference, in plain PyTorch, which keeps
            some ``B·H·W·(h₁ + h₂ + N·C)`` numbers for the backward pass; ``backend`` must be ``"auto"`` or
            ``"reference"``, and pixels that are not valid are put at the centre of the extent.
        position: ``"pixels"`` (eq. 5 as printed) or ``"centered"`` (``2·S/extent − 1``, better conditioned to train).
        backend: ``"auto"`` (the fastest that can run; the reference for forward-mode derivatives and for ONNX), or
            ``"triton"``, ``"cuda"``, ``"cpu"``, ``"reference"``.

    Returns:
        Logits ``[B, N, *spatial]`` in the features' dtype; positions, Φ and accumulation are at least float32.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype or device, named in the message; raised before
            anything runs.
        scp_kernels.BackendUnavailable: a backend asked for by name cannot run this call; the message says why.
        NotImplementedError: a forward-mode derivative of a compiled backend that was asked for by name.
    """
    phi, residual = check_tensors(features, phi, residual, bias)
    sizes, position_dims = extent, phi[0].shape[1] // 2
    if coordinates is not None:
        p, valid, extent = coordinate_channels.check_coordinates(
            features, coordinates, coordinates_as, origin, affine, extent, position_dims
        )
        if coordinates_as == "pixelwise":
            return _pixelwise(features, phi, residual, bias, p, valid, extent, position, backend)
        affine = coordinate_channels.checked_affine(p, valid, extent, tuple(features.shape[2:]), coordinates_as)
        affine = affine if affine.shape[0] == features.shape[0] else affine[0]
    affine, extent = check_position(features, origin, affine, extent, position, position_dims)
    tensors = [t for t in (features, *phi, residual, bias, affine, extent) if t is not None]
    through_dispatcher = needs_dispatcher(tensors)
    if extent is not None and not (through_dispatcher and needs_dispatcher((extent,))):
        _check_extent(sizes)
    per_sample = (affine is not None and affine.ndim == 3) or (extent is not None and extent.ndim == 2)
    problem = problem_of(features, phi[0], phi[2], residual, features.shape[0] if per_sample else 1)
    limit = ops.limit_of_operators(tensors) if through_dispatcher else None
    onnx = torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()
    chosen = dispatch.select(problem, "reference" if backend == "auto" and (limit or onnx) else backend)
    if chosen == "reference":
        return scp_reference(features, phi, residual, bias, affine=affine, extent=extent, position=position)
    if limit is not None:
        ops.refuse(chosen, limit)
    position_matrix = _matrix_of_call(affine, extent, problem, position, through_dispatcher)
    arguments = (features, *phi, residual, bias, position_matrix, chosen)
    return ops.forward(problem, *arguments, through_dispatcher=through_dispatcher)


def _pixelwise(
    features: Tensor,
    phi: Sequence[Tensor],
    residual: Tensor,
    bias: Tensor | None,
    p: Tensor,
    valid: Tensor,
    extent: Tensor,
    position: str,
    backend: str,
) -> Tensor:
    """Logits at positions that are no affine map of the index: Φ at each pixel, in plain PyTorch."""
    if backend not in ("auto", "reference"):
        raise dispatch.BackendUnavailable(
            f"backend={backend!r}: coordinates_as='pixelwise' is evaluated by the reference alone; use 'auto'"
        )
    if position not in POSITIONS:
        raise ValueError(f"position: expected one of {POSITIONS}, got {position!r}")
    with reference.without_autocast(features.device):
        size = extent[..., None] if extent.ndim == 2 else extent[None, :, None]
        known = torch.where(valid.flatten(1)[:, None], p.flatten(2), size / 2)
        s = reference.distances(known, size, position)
    return reference.classify(features, s, phi, residual, bias)


def pixel_positions(
    features: Tensor,
    *,
    origin: ArrayLike | None = None,
    affine: ArrayLike | None = None,
    extent: ArrayLike | None = None,
    position: str = "pixels",
    position_dims: int | None = None,
) -> Tensor:
    """The position S of every pixel (paper, eq. 5), ``[1 or B, 2K, *spatial]``: what Φ is evaluated at.

    For networks that take positions as channels, and for pictures; the operator itself never makes this tensor.

    Args:
        features: gives the batch size, the spatial shape and the device: a feature map, or an image.
        origin, affine, extent, position: as in :func:`scp`.
        position_dims: K; None: as many as the features have spatial axes.

    Returns:
        float64 (float32 on MPS), with a first axis of B only where positions are given per sample.

    Raises:
        ValueError, TypeError: as :func:`scp`.
    """
    check_features(features)
    if features.ndim not in (4, 5):
        raise ValueError(f"features: expected [B, C, H, W] or [B, C, D, H, W], got shape {list(features.shape)}")
    position_dims = as_position_dims(position_dims, features.ndim - 2)
    sizes = extent
    affine, extent = check_position(features, origin, affine, extent, position, position_dims)
    if extent is not None and not needs_dispatcher((extent,)):
        _check_extent(sizes)
    shape = features.shape[2:]
    with reference.without_autocast(features.device):
        s = reference.positions(shape, affine=affine, extent=extent, position=position, device=features.device)
    return s.unflatten(2, shape)


def _check_extent(extent: ArrayLike | None) -> None:
    """Check sizes that lie in a tensor, where reading them waits for nobody; check_position does those in numbers."""
    if isinstance(extent, Tensor) and extent.device.type == "cpu" and not (extent > 0).all():
        raise ValueError(f"extent: expected positive sizes in pixels, got {extent.tolist()}")


def _matrix_of_call(
    affine: Tensor | None, extent: Tensor | None, problem: Problem, position: str, through_dispatcher: bool
) -> Tensor:
    """P of the call, with the defaults (identity, the map's own size) filled in."""
    # Not while a graph is traced: sizes may be symbols, which only operations on tensors can carry.
    if (
        affine is None
        and extent is None
        and not through_dispatcher
        and all(type(size) is int and size for size in problem.spatial_shape)
    ):
        if problem.device.type == "cpu":
            return whole_image_matrix(problem.spatial_shape, position)
        if (kept := whole_image_matrix_on(problem.device, problem.spatial_shape, position)) is not None:
            return kept
    if affine is None:
        affine = identity_affine(problem.spatial_dims, problem.device)
    if extent is None:
        sizes = [torch.full((), s, dtype=affine.dtype, device=affine.device) for s in problem.spatial_shape]
        extent = torch.stack(sizes)
    return positions.position_matrix(affine, extent, position)
