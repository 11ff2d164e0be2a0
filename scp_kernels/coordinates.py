"""Positions that come as a picture: coordinate channels, read back into the affine map that they are samples of.

An augmentation library that moves K coordinate channels along with an image knows nothing of affine maps. Every crop,
flip, rotation and scaling of coordinates that are affine in the pixel index is affine in it again, so the map can be
read off, and the operator runs as if it had been told.

Nothing here waits for a GPU or branches on data: it can be captured, compiled and exported.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from scp_kernels._torch_compat import needs_dispatcher
from scp_kernels.checks import (
    POSITION_FLOATS,
    ArrayLike,
    check_extent,
    check_without_map,
    position_tensor,
    too_few_bits,
)
from scp_kernels.positions import position_dtype
from scp_kernels.reference import without_autocast

COORDINATES_AS = ("affine", "least_squares", "pixelwise")

# Interpolation of a channel of ones gives 1 to float32 rounding (some 1e-6 after a long chain) where all that it read
# is valid; anything else mixes the fill value into the coordinates.
_VALIDITY_TOLERANCE = 1e-5
# Of the extent. A chain of float32 interpolations stays far below it; an elastic deformation far above.
_AFFINE_TOLERANCE = 1e-4
# Pixels along each axis from which a first map is guessed.
_GUESS_POINTS = {2: 16, 3: 8}


def affine_of_coordinates(coordinates: Tensor, extent: ArrayLike, *, coordinates_as: str = "affine") -> Tensor:
    """The affine map that coordinate channels are samples of, ``[B, K, d + 1]``; of a batch of one ``[K, d + 1]``.

    ``head(features, coordinates=c, extent=e)`` is ``head(features, affine=affine_of_coordinates(c, e), extent=e)``. To
    be read once where several heads need it, or where windows of a picture are taken from it.

    Args:
        coordinates: ``[B, K, *spatial]``, or ``[B, K + 1, *spatial]`` with a channel of validity.
        extent: ``[K]`` or ``[B, K]``; says how many axes there are, and what deviation is rounding.
        coordinates_as: ``"affine"`` or ``"least_squares"``, see :func:`scp_kernels.scp`.

    Raises:
        ValueError, TypeError: as :func:`scp_kernels.scp`; positions that are not affine too, where it can be told.
    """
    if not isinstance(coordinates, Tensor) or coordinates.ndim not in (4, 5):
        got = list(coordinates.shape) if isinstance(coordinates, Tensor) else type(coordinates).__name__
        raise ValueError(f"coordinates: expected [B, K, H, W] or [B, K, D, H, W], got {got}")
    if coordinates_as == "pixelwise":
        raise ValueError(
            "coordinates_as: expected 'affine' or 'least_squares'; 'pixelwise' has no map: give it to the head's call"
        )
    extent = position_tensor("extent", extent, coordinates.device)
    axes = extent.shape[-1] if extent.ndim else 0
    p, valid, extent = check_coordinates(coordinates, coordinates, coordinates_as, None, None, extent, axes)
    affine = checked_affine(p, valid, extent, tuple(coordinates.shape[2:]), coordinates_as)
    return affine[0] if affine.shape[0] == 1 else affine


def checked_affine(
    p: Tensor, valid: Tensor, extent: Tensor, spatial_shape: tuple[int, ...], coordinates_as: str
) -> Tensor:
    """:func:`read_affine`, checked: what is not affine is an error where that waits for nobody, else NaN."""
    with without_autocast(p.device):
        affine, is_affine = read_affine(p, valid, extent, spatial_shape, coordinates_as)
        if coordinates_as != "affine":
            return affine
        if affine.device.type == "cpu" and not needs_dispatcher((affine,)) and not is_affine.all():
            raise _not_affine(is_affine)
        return torch.where(is_affine[:, None, None], affine, torch.nan)


def check_coordinates(
    features: Tensor, coordinates: Any, coordinates_as: str, origin: Any, affine: Any, extent: Any, position_dims: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Check the arguments; return positions ``[G, K, *spatial]`` (G is 1 or B), validity ``[G, *spatial]`` (bool) and
    ``extent``.
    """
    if coordinates_as not in COORDINATES_AS:
        raise ValueError(f"coordinates_as: expected one of {COORDINATES_AS}, got {coordinates_as!r}")
    check_without_map(origin, affine)
    if not isinstance(coordinates, Tensor):
        raise TypeError(f"coordinates: expected a tensor, got {type(coordinates).__name__}")
    if coordinates.dtype not in POSITION_FLOATS:
        raise too_few_bits("coordinates", coordinates.dtype)
    if coordinates.requires_grad:
        raise ValueError("coordinates: positions are not differentiable, got a tensor that requires grad")
    if hasattr(coordinates, "as_tensor"):  # MONAI's MetaTensor, whose own bookkeeping would follow every operation
        coordinates = coordinates.as_tensor()
    batch, _, *shape = features.shape
    expected = [[b, k, *shape] for b in (batch, 1) for k in (position_dims, position_dims + 1)]
    # Not `in`: under torch.compile that does not find a size that is a number here and a symbol there.
    if not any(list(coordinates.shape) == sizes for sizes in expected):
        raise ValueError(
            f"coordinates: expected shape {expected[0]}, or {expected[1]} with a channel of validity behind them "
            f"(a first size of 1 serves all samples), got {list(coordinates.shape)}"
        )
    if extent is None:
        raise ValueError(
            f"extent: expected {[position_dims]} sizes of the space that the coordinates are measured in, got none"
        )
    extent = check_extent(extent, features, position_dims)
    # Float32 coordinates become float64 only where something is done with them.
    dtype = position_dtype(features.device) if coordinates.dtype == torch.float64 else torch.float32
    channels = coordinates.to(device=features.device, dtype=dtype)
    p, validity = channels[:, :position_dims], channels[:, position_dims:]
    valid = p.sum(1) * 0 == 0  # no NaN, no infinity
    if coordinates.shape[1] > position_dims:
        valid = valid & ((validity[:, 0] - 1).abs() <= _VALIDITY_TOLERANCE)
    return p, valid, extent


def read_affine(
    p: Tensor, valid: Tensor, extent: Tensor, spatial_shape: tuple[int, ...], coordinates_as: str
) -> tuple[Tensor, Tensor]:
    """The affine map of positions given as a picture.

    A first map is guessed from medians of differences; the pixels that lie on it within a tolerance decide the map by
    least squares. So it is exact where up to half of the valid pixels do not lie on it, as happens where interpolation
    has repeated or reflected coordinates at a border. With ``coordinates_as="least_squares"`` all valid pixels decide.

    Args:
        p: ``[G, K, *spatial]``, positions of the pixels.
        valid: ``[G, *spatial]``, where to believe them.
        extent: ``[K]`` or ``[G, K]``; the tolerance is a fraction of it.

    Returns:
        ``[G, K, d + 1]``, and ``[G]``: whether at least half of a sample's valid pixels lie on the map. Without valid
        pixels that is true, and the map puts every pixel at the centre of the extent. Along an axis in which valid
        pixels do not differ the slope is 0.
    """
    extent = extent if extent.ndim == 2 else extent[None]
    dtype, dims = position_dtype(p.device), len(spatial_shape)
    if any(type(size) is int and size == 0 for size in spatial_shape):  # no pixels to guess from
        middle = (extent / 2).expand(p.shape[0], -1)[:, :, None]
        return torch.cat([middle.new_zeros(*middle.shape[:2], dims), middle], 2), p.new_ones(
            p.shape[0], dtype=torch.bool
        )
    tolerance = _with_axes(_AFFINE_TOLERANCE * extent, dims)
    # Indices about the middle of the map, in halves of it.
    half = torch.stack([torch.full((), 0.5 * (n - 1), dtype=dtype, device=p.device) for n in spatial_shape])
    unit = half.clamp(min=0.5)
    axes = [(torch.arange(n, dtype=dtype, device=p.device) - half[a]) / unit[a] for a, n in enumerate(spatial_shape)]

    slopes, offset, guessed = _guess(p.flatten(2), valid.flatten(1), spatial_shape)
    guess = torch.cat([slopes * unit, (offset + slopes @ half)[:, :, None]], 2)  # [G, K, d + 1]
    residual = _less_the_map(p, guess, axes)
    chosen = valid
    if coordinates_as == "affine":
        chosen = valid & (_all_axes(residual.abs() <= tolerance) | ~_with_axes(guessed, dims))
    # Least squares on what the guess leaves: small numbers, so that nothing cancels.
    moments = _moments(chosen.to(dtype), axes, 2)  # [G, d + 1, d + 1]
    count = moments[:, -1:, -1:].clamp(min=1)
    moments = moments / count
    right = _moments(torch.where(chosen[:, None], residual, 0.0), axes, 1) / count  # [G, K, d + 1]
    mean, mean_residual = moments[:, :-1, -1], right[:, :, -1]
    covariance = moments[:, :-1, :-1] - mean[:, :, None] * mean[:, None]
    right = right[:, :, :-1] - mean_residual[:, :, None] * mean[:, None]
    fitted = _solve(covariance, right.transpose(1, 2)).transpose(1, 2)  # [G, K, d]
    fit = torch.cat([fitted, (mean_residual - (fitted @ mean[:, :, None])[:, :, 0])[:, :, None]], 2)
    on_map = valid & _all_axes(_less_the_map(residual, fit, axes).abs_() <= tolerance)

    result = guess + fit
    slopes = result[:, :, :-1] / unit
    count = valid.flatten(1).sum(1)
    offset = torch.where((count > 0)[:, None], result[:, :, -1] - slopes @ half, extent / 2)
    return torch.cat([slopes, offset[:, :, None]], 2), 2 * on_map.flatten(1).sum(1) >= count


def _with_axes(values: Tensor, number: int) -> Tensor:
    """With so many axes of size 1 behind the others."""
    return values[(..., *[None] * number)]


def _all_axes(each: Tensor) -> Tensor:
    """``each.all(1)`` of ``[G, K, *spatial]``, which PyTorch evaluates element by element."""
    return functools.reduce(torch.logical_and, each.unbind(1))


def _less_the_map(values: Tensor, affine: Tensor, axes: list[Tensor]) -> Tensor:
    """``values`` ``[G, K, *spatial]`` less the map ``affine`` ``[G, K, d + 1]`` of the indices along ``axes``.

    The map is a sum over axes, which need not be written down for every pixel.
    """
    lines = affine[:, :, -1]
    for a, indices in enumerate(axes[:-1]):
        lines = lines[..., None] + _with_axes(affine[:, :, a], a + 1) * indices
    return (values - lines[..., None]).sub_(_with_axes(affine[:, :, -2], len(axes)) * axes[-1])


def _moments(values: Tensor, axes: list[Tensor], degree: int) -> Tensor:
    """Sums over all pixels of ``values`` ``[..., *spatial]`` times each index and 1, ``[..., d + 1]``; with a degree of
    2 times each product of two of these, ``[..., d + 1, d + 1]``.

    One pass over the pixels: the last axis is summed for every power of its index, then what is left along the others.
    """
    powers = [torch.stack([axis**k for k in range(degree + 1)], 1) for axis in axes]  # [n, degree + 1]
    sums = values @ powers[-1]
    for power in reversed(powers[:-1]):
        sums = (sums.transpose(-1, -2) @ power).flatten(-2)
    # Where the power 1 of an axis is, and what it adds for each; no power at all is at 0.
    places = [*((degree + 1) ** a for a in range(len(axes))), 0]
    if degree == 1:
        return torch.stack([sums[..., place] for place in places], -1)
    return torch.stack([torch.stack([sums[..., r + c] for c in places], -1) for r in places], -2)


def _guess(p: Tensor, valid: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes ``[G, K, d]`` and offset ``[G, K]`` by medians over a few pixels, and where there were enough ``[G]``.

    ``p`` is ``[G, K, P]``, the pixels in row-major order.

    A slope is the median of differences over an eighth of the map, long enough for float32 coordinates to differ by
    much more than their rounding.
    """
    dims, dtype = len(shape), position_dtype(p.device)
    sizes = [torch.full((), size, dtype=torch.int64, device=p.device) for size in shape]
    steps = [(size // 8).clamp(min=1) for size in sizes]
    count = torch.arange(_GUESS_POINTS[dims], device=p.device)
    first = [
        count * (size - 1 - step).clamp(min=0) // (len(count) - 1) for size, step in zip(sizes, steps, strict=True)
    ]

    def at(places: list[Tensor]) -> tuple[Tensor, Tensor]:
        flat = torch.zeros((), dtype=torch.int64, device=p.device)
        for axis, place in enumerate(places):
            flat = flat * sizes[axis] + place.reshape([-1 if a == axis else 1 for a in range(dims)])
        flat = flat.flatten()
        return p[:, :, flat].to(dtype), valid[:, flat]

    here, here_valid = at(first)
    slopes, enough = [], []
    for axis, (size, step) in enumerate(zip(sizes, steps, strict=True)):
        second = (first[axis] + step).minimum(size - 1)
        there, there_valid = at([second if a == axis else places for a, places in enumerate(first)])
        distance = (second - first[axis]).reshape([-1 if a == axis else 1 for a in range(dims)])
        distance = distance.expand([len(count)] * dims).flatten()
        usable = here_valid & there_valid & (distance > 0)
        slope, has_any = _median((there - here) / distance.clamp(min=1), usable)
        slopes.append(slope)
        enough.append(has_any | (size == 1))
    gathered = torch.stack(slopes, 2)  # [G, K, d]
    places = torch.stack(torch.meshgrid(*first, indexing="ij")).flatten(1).to(dtype)
    offset, _ = _median(here - gathered @ places, here_valid)
    return gathered, offset, torch.stack(enough).all(0)


def _median(values: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
    """The lower median of ``values`` ``[G, K, N]`` where ``usable`` ``[G, N]`` (0 if nowhere), and whether it is.

    (``nanmedian`` has no place in ONNX.)
    """
    ordered = torch.where(usable[:, None], values, torch.inf).sort(2).values
    count = usable.sum(1)  # [G]
    middle = ((count - 1).clamp(min=0) // 2)[:, None, None].expand(-1, values.shape[1], 1)
    return torch.where((count > 0)[:, None], ordered.gather(2, middle)[:, :, 0], 0.0), count > 0


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """``matrix⁻¹ · right`` of positive semidefinite matrices ``[G, d, d]``; about 0 along what they map to 0.

    Elimination written out: solvers of linear systems wait for the device to say that there is a solution. What is
    added to the diagonal (1 where all is 0) would bias the solution; a second pass on what the first leaves takes that
    away.
    """
    trace = matrix.diagonal(dim1=1, dim2=2).sum(1)
    ridge = torch.where(trace > 0, trace * (1e-12 if matrix.dtype == torch.float64 else 1e-6), 1.0)
    identity = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    invertible = matrix + ridge[:, None, None] * identity
    first = _eliminate(invertible, right)
    return first + _eliminate(invertible, right - matrix @ first)


def _eliminate(matrix: Tensor, right: Tensor) -> Tensor:
    """``matrix⁻¹ · right`` without pivoting, which positive definite matrices do not need."""
    rows = list(torch.cat([matrix, right], 2).unbind(1))
    for k in range(len(rows)):
        rows[k] = rows[k] / rows[k][:, k : k + 1]
        rows = [row if r == k else row - row[:, k : k + 1] * rows[k] for r, row in enumerate(rows)]
    return torch.stack(rows, 1)[:, :, len(rows) :]


def _not_affine(is_affine: Tensor) -> ValueError:
    """What to say where it can be said."""
    samples = (~is_affine).nonzero().flatten().tolist()
    return ValueError(
        f"coordinates: expected positions that are affine in the pixel index, got others in samples {samples} (elastic "
        "deformation, nearest-neighbour interpolation, or more padding than image without a channel of validity); "
        "coordinates_as='pixelwise' evaluates Φ at each pixel in plain PyTorch, "
        "coordinates_as='least_squares' takes the closest affine map"
    )
