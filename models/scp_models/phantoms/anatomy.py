"""One person's head: the average anatomy, moved, scaled, warped and aged at random, sampled on a scanner's grid."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from scp_models.phantoms.fields import SmoothField
from scp_models.phantoms.templates import BrainTemplate

# Rotations and scalings turn about this point (MNI, mm), the middle of the cerebrum.
BRAIN_CENTER = np.array([0.0, -18.0, 18.0])
_VENTRICLE_CENTER = np.array([0.0, -12.0, 16.0])
_VENTRICLE_REACH = np.array([22.0, 45.0, 22.0])


@dataclass(frozen=True)
class Grid:
    """An axis-aligned RAS grid: ``shape`` voxels of ``spacing`` mm around ``center`` (mm)."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    center: tuple[float, float, float]

    @property
    def axes(self) -> list[np.ndarray]:
        """Three coordinate vectors in mm."""
        rows = zip(self.shape, self.spacing, self.center, strict=True)
        return [(np.arange(n) - (n - 1) / 2) * step + middle for n, step, middle in rows]

    @property
    def affine(self) -> np.ndarray:
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = [axis[0] for axis in self.axes]
        return affine

    @property
    def voxel_ml(self) -> float:
        return float(np.prod(self.spacing)) / 1000


@dataclass(frozen=True)
class Variability:
    """How people differ: standard deviations, except ``ageing``, the range of the ventricles' enlargement."""

    rotation_deg: float = 3.0
    log_scale: float = 0.05
    shift_mm: float = 3.0
    warp_mm: float = 2.0
    fine_warp_mm: float = 1.3
    ageing: tuple[float, float] = (0.1, 0.35)


POSE: dict[str, Any] = {"rotation_deg": 7.0, "log_scale": 0.09, "shift_mm": 12.0}
"""Of :class:`Variability`: heads that lie anywhere in the field of view."""


@dataclass(frozen=True)
class Head:
    """Tissue fractions (white, grey, fluid, brain) and distances in mm on a grid, all float32.

    ``template_point`` ``[3, X, Y, Z]`` is the MNI position (mm) each voxel corresponds to.
    """

    grid: Grid
    template_point: np.ndarray
    white: np.ndarray
    grey: np.ndarray
    fluid: np.ndarray
    ventricle: np.ndarray
    depth: np.ndarray
    hull: np.ndarray
    skin: np.ndarray

    @property
    def brain(self) -> np.ndarray:
        return self.white + self.grey + self.fluid


def rotation(angles: np.ndarray) -> np.ndarray:
    """``[3, 3]``: turns by three angles in radians, about x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _template_points(grid: Grid, how: Variability, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """MNI positions ``[3, X, Y, Z]`` of the grid's voxels for skull and scalp, and those for the brain itself."""
    matrix = rotation(np.deg2rad(rng.normal(0, how.rotation_deg, 3))) / np.exp(rng.normal(0, how.log_scale, 3))
    start = BRAIN_CENTER + rng.normal(0, how.shift_mm, 3)
    low, high = np.array([-125.0, -160.0, -170.0]), np.array([125.0, 130.0, 115.0])
    warps = [SmoothField(rng, low, high, 26.0) for _ in range(3)]
    fine_warps = [SmoothField(rng, low, high, 9.0) for _ in range(3)]
    growth = rng.uniform(*how.ageing)

    axes = grid.axes
    offsets = [
        (axis - start[k]).astype(np.float32).reshape([-1 if k == j else 1 for j in range(3)])
        for k, axis in enumerate(axes)
    ]
    shell = np.empty((3, *grid.shape), np.float32)
    for k in range(3):
        shell[k] = sum(np.float32(matrix[k, j]) * offsets[j] for j in range(3)) + np.float32(BRAIN_CENTER[k])
        shell[k] += np.float32(how.warp_mm) * warps[k](*axes)
    brain = shell.copy()
    for k in range(3):
        # People's folds differ at a scale at which their skulls do not.
        brain[k] += np.float32(how.fine_warp_mm) * fine_warps[k](*axes)
    if growth:
        # Looking closer to the ventricles' centre than one is makes the ventricles larger: the ageing brain.
        away = brain - _VENTRICLE_CENTER.astype(np.float32).reshape(3, 1, 1, 1)
        reach = _VENTRICLE_REACH.astype(np.float32).reshape(3, 1, 1, 1)
        brain -= away * (np.float32(growth) * np.exp(-((away / reach) ** 2).sum(axis=0)))
    return shell, brain


def make_head(template: BrainTemplate, grid: Grid, how: Variability, rng: np.random.Generator) -> Head:
    """Sample one random person's head on ``grid``."""
    shell, points = _template_points(grid, how, rng)
    atrophy = rng.uniform(1.0, 2.0)
    white, grey, fluid = (template.fine(name, points) for name in ("white", "grey", "fluid"))
    nothing = np.clip(1 - white - grey - fluid, 0, 1)
    # The template is an average of 152 people and blurred; powers of the probabilities give back one person's folds.
    white, grey, fluid, nothing = (np.square(p) for p in (white, grey, np.float32(atrophy) * fluid, nothing))
    total = white + grey + fluid + nothing + np.float32(1e-6)
    ventricle, depth = template.coarse(("ventricle", "depth"), points)
    hull, skin = template.coarse(("hull", "skin"), shell)
    return Head(grid, points, white / total, grey / total, fluid / total, ventricle, depth, hull, skin)
