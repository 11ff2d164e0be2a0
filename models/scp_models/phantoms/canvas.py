"""A few neighbouring CT slices and soft shapes to paint on them, in the patient's own (deformed) millimetres."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from scp_models.phantoms.fields import Corner

# Windows are cut in scanner coordinates, shapes live in deformed ones; the two differ by less than this (mm) where a
# body is not tilted.
DEFORMATION = 26.0

Window = tuple[slice, slice, slice]


def smooth_union(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """The larger of two signed distances (positive inside), rounded over ``width`` mm where they meet."""
    overlap = np.clip(1 - np.abs(a - b) / np.float32(width), 0, None)
    return np.maximum(a, b) + np.float32(width / 4) * overlap**2


class Canvas:
    """A slab of slices.

    Args:
        axes: three coordinate vectors in mm (right, anterior, superior) of the slab's voxels.
        deformed: patient coordinates of every voxel, float32 ``[3, X, Y, Z]``.
        edge: width in mm of a soft edge; about a pixel.
        deformation: the most by which the two kinds of coordinates differ, in mm.

    ``hu`` float32 ``[X, Y, Z]`` holds what has been painted, at first air.
    """

    def __init__(
        self, axes: Sequence[np.ndarray], deformed: np.ndarray, edge: float, deformation: float = DEFORMATION
    ) -> None:
        self.axes = axes
        self.deformed = deformed
        self.edge = np.float32(edge)
        self.deformation = deformation
        self.hu = np.full(deformed.shape[1:], -1000.0, np.float32)

    @property
    def everything(self) -> Window:
        return (slice(None), slice(None), slice(None))

    def window(self, low: Corner, high: Corner, margin: float | None = None) -> Window | None:
        """The voxels that a shape between two corners (mm) can touch; None if there are none."""
        slices = []
        margin = self.deformation if margin is None else margin
        for axis, a, b in zip(self.axes, low, high, strict=True):
            start, stop = np.searchsorted(axis, (a - margin, b + margin))
            if start >= stop:
                return None
            slices.append(slice(int(start), int(stop)))
        return slices[0], slices[1], slices[2]

    def ellipsoid(self, window: Window, center: Corner, radii: Corner) -> np.ndarray:
        """Signed distance in mm (positive inside, approximate) to an ellipsoid; an infinite radius makes a cylinder."""
        x, y, z = (self.deformed[k][window] for k in range(3))
        ratio = np.square((x - np.float32(center[0])) * np.float32(1 / radii[0]))
        ratio += np.square((y - np.float32(center[1])) * np.float32(1 / radii[1]))
        if np.isfinite(radii[2]):
            ratio += np.square((z - np.float32(center[2])) * np.float32(1 / radii[2]))
        return (1 - np.sqrt(ratio)) * np.float32(np.min(radii))

    def tube(self, points: np.ndarray, radius: float) -> tuple[Window, np.ndarray] | None:
        """Signed distance in mm to the union of capsules along ``points`` ``[N, 3]``, inside the window it spans."""
        window = self.window(points.min(axis=0) - radius, points.max(axis=0) + radius)
        if window is None:
            return None
        position = [self.deformed[k][window] for k in range(3)]
        nearest = np.full(position[0].shape, np.inf, np.float32)
        for a, b in pairwise(points):
            along = (b - a).astype(np.float32)
            length = np.float32(max(float(along @ along), 1e-6))
            offset = [position[k] - np.float32(a[k]) for k in range(3)]
            share = np.clip((offset[0] * along[0] + offset[1] * along[1] + offset[2] * along[2]) / length, 0, 1)
            nearest = np.minimum(nearest, sum(np.square(offset[k] - share * along[k]) for k in range(3)))
        return window, np.float32(radius) - np.sqrt(nearest)

    def cover(self, distance: np.ndarray) -> np.ndarray:
        """The share of each voxel inside a shape, from its signed distance."""
        return np.clip(distance / self.edge + np.float32(0.5), 0, 1)

    def paint(self, window: Window, share: np.ndarray, value: float | np.ndarray) -> None:
        """Replace ``share`` of what is there by ``value`` (HU)."""
        target = self.hu[window]
        target += share * (value - target)
