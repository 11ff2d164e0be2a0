"""Smooth random fields and blobs: what both phantoms build their variety from.

Nothing here calls BLAS, so that a seed gives the same bytes whatever the number of threads.
"""

from collections.abc import Sequence

import numpy as np

Corner = Sequence[float] | np.ndarray

# Mean over a cell of the sum of squared cubic B-spline weights, to the power of three axes: the field's variance.
_UNIT_VARIANCE = 0.479365**3


class SmoothField:
    """A stationary random field of mean 0 and variance about 1: a cubic B-spline with normal coefficients.

    Args:
        rng: source of the coefficients; all are drawn here, so the field does not depend on where it is looked at.
        low, high: corners of the box, in mm, on which the field is defined; outside, the edge is repeated.
        scale: knot distance in mm. Structures are about twice as large.
    """

    def __init__(self, rng: np.random.Generator, low: Corner, high: Corner, scale: float) -> None:
        self.low = np.asarray(low, np.float64)
        self.scale = scale
        cells = np.maximum(1, np.ceil((np.asarray(high) - self.low) / scale).astype(int))
        coefficients = rng.standard_normal(cells + 3, dtype=np.float32)
        self.coefficients = coefficients / np.float32(np.sqrt(_UNIT_VARIANCE))

    def __call__(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Values on the grid spanned by three coordinate vectors in mm: float32 ``[len(x), len(y), len(z)]``."""
        values = self.coefficients
        # z first: it is the shortest axis, so most of the work is done on the smallest array.
        for axis, coordinates in ((2, z), (0, x), (1, y)):
            values = self._interpolate(values, axis, np.asarray(coordinates, np.float64))
        return values

    def _interpolate(self, values: np.ndarray, axis: int, coordinates: np.ndarray) -> np.ndarray:
        cells = self.coefficients.shape[axis] - 3
        u = np.clip((coordinates - self.low[axis]) / self.scale, 0.0, cells - 1e-6)
        index = u.astype(int)
        t = u - index
        weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
        shape = [1, 1, 1]
        shape[axis] = len(coordinates)
        total = (weights[0] / 6).astype(np.float32).reshape(shape) * np.take(values, index, axis)
        for k in (1, 2, 3):
            total += (weights[k] / 6).astype(np.float32).reshape(shape) * np.take(values, index + k, axis)
        return total


def sample_voxels(density: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Indices ``[count, ndim]`` of voxels drawn with probability proportional to ``density``; none where it is 0."""
    cumulative = np.cumsum(density, dtype=np.float64)
    if cumulative[-1] <= 0:
        return np.empty((0, density.ndim), int)
    flat = np.searchsorted(cumulative, rng.random(count) * cumulative[-1], side="right")
    return np.stack(np.unravel_index(np.minimum(flat, density.size - 1), density.shape), axis=1)


class Blobs:
    """The strongest of many soft ellipsoids at each voxel: ``profile`` in [0, 1] and the blob's ``strength``.

    A profile of 0.5 is the blob's edge. ``roughness`` (a field on the same grid) makes edges irregular.
    """

    def __init__(self, roughness: np.ndarray, spacing: Sequence[float]) -> None:
        self.profile = np.zeros(roughness.shape, np.float32)
        self.strength = np.zeros(roughness.shape, np.float32)
        self._squeeze = np.exp(0.4 * roughness)
        self._spacing = np.asarray(spacing, np.float64)

    def add(self, center: np.ndarray, radii: np.ndarray, strength: float) -> None:
        """Add an ellipsoid: ``center`` in voxels, ``radii`` (where the profile is 0.5) in mm along the grid's axes."""
        radii = np.asarray(radii) / np.sqrt(2 * np.log(2))  # the Gaussian's standard deviation
        reach = 2.4 * radii / self._spacing + 1
        low = np.maximum(0, np.floor(center - reach).astype(int))
        high = np.minimum(self.profile.shape, np.ceil(center + reach).astype(int) + 1)
        window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        axes = np.ogrid[window]
        distance = sum(((axes[k] - center[k]) * self._spacing[k] / radii[k]) ** 2 for k in range(3))
        profile = np.exp(-0.5 * (distance.astype(np.float32) * self._squeeze[window]))
        stronger = profile > self.profile[window]
        self.profile[window] = np.where(stronger, profile, self.profile[window])
        self.strength[window] = np.where(stronger, np.float32(strength), self.strength[window])
