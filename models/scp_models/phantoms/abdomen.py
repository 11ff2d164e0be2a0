"""One abdominal CT: what a person looks like inside, drawn at random once, then painted slab by slab."""

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage as ndi

from scp_models.phantoms.anatomy import rotation
from scp_models.phantoms.canvas import DEFORMATION, Canvas
from scp_models.phantoms.fields import SmoothField, sample_voxels
from scp_models.phantoms.organs import Body, liver_distance, paint_body, paint_liver, paint_organs

TUMOUR_FREE_SHARE = 0.1

_SLAB = 6  # slices painted at once: bounds memory, whatever the number of slices
# Of a body that is tilted by up to 9 degrees about three axes.
_TILTED = DEFORMATION + 55.0
_LOW, _HIGH = (-240.0, -240.0, -180.0), (240.0, 240.0, 200.0)


@dataclass(frozen=True)
class Tumour:
    """A hypodense ball: ``center``, ``radius`` in mm (scanner); ``core``: darker in the middle; ``rim``: enhancing."""

    center: np.ndarray
    radius: float
    hu: float
    core: bool
    rim: bool


@dataclass(frozen=True)
class AbdomenImages:
    """``volume`` int16 HU and ``label`` uint8 (0 background, 1 liver, 2 tumour; or 1 left and 2 right kidney), RAS
    ``[X, Y, Z]``.
    """

    volume: np.ndarray
    label: np.ndarray
    tumours: list[Tumour] = field(default_factory=list)


@dataclass(frozen=True)
class Pose:
    """Where a body and its table lie in the field of view: ``shift`` in mm, ``scale``, ``tilt`` in radians."""

    shift: np.ndarray
    scale: float
    tilt: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Pose":
        tilt = np.clip(rng.normal(0, np.deg2rad(4.0), 3), *np.deg2rad((-9.0, 9.0)))
        return cls(rng.normal(0, (14.0, 12.0, 14.0)), float(np.exp(rng.normal(0, 0.08))), tilt)


class _Warp:
    """The person's size, position and smooth deviations from the average body; turned about its middle by ``tilt``."""

    def __init__(self, rng: np.random.Generator, tilt: np.ndarray | None = None) -> None:
        self.matrix = None if tilt is None else rotation(tilt)
        self.scale = np.exp(rng.normal(0, (0.06, 0.06, 0.05)))
        self.shift = rng.normal(0, (6, 6, 8))
        self.fields = [SmoothField(rng, _LOW, _HIGH, 60.0) for _ in range(3)]
        self.fine = [SmoothField(rng, _LOW, _HIGH, 16.0) for _ in range(3)]

    def __call__(self, axes: list[np.ndarray]) -> np.ndarray:
        """Body coordinates ``[3, X, Y, Z]`` of a grid given by its axes in mm."""
        result = np.empty((3, *(len(a) for a in axes)), np.float32)
        for k in range(3):
            along = ((axes[k] - self.shift[k]) / self.scale[k]).astype(np.float32)
            result[k] = along.reshape([-1 if j == k else 1 for j in range(3)])
            result[k] += np.float32(5.0) * self.fields[k](*axes) + np.float32(1.0) * self.fine[k](*axes)
        if self.matrix is None:
            return result
        # Sums of products: no BLAS, whose bytes would depend on the number of threads.
        turned = [sum(np.float32(self.matrix[k, j]) * result[j] for j in range(3)) for k in range(3)]
        return np.stack(turned).astype(np.float32)


def make_abdomen(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    seed: np.random.SeedSequence,
    *,
    kidneys: bool = False,
    pose: bool = False,
) -> AbdomenImages:
    """Draw one patient on an RAS grid of ``shape`` voxels of ``spacing`` mm.

    Args:
        shape: of the grid.
        spacing: of the grid.
        seed: fixes every voxel.
        kidneys: label the left and the right kidney instead, without hilum and cysts, and look lower.
        pose: the body and its table are shifted and scaled in the field of view, and the body is tilted.
    """
    for_body, for_tumours, for_noise = (np.random.default_rng(s) for s in seed.spawn(3))
    place = Pose.draw(np.random.default_rng(seed.spawn(1)[0])) if pose else None
    warp = _Warp(for_body, place.tilt if place else None)
    body = Body(for_body, _LOW, _HIGH)
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing, strict=True)]
    axes[2] = axes[2] + (-20.0 if kidneys else 8.0)
    if place:
        # All that follows is in the table's coordinates.
        axes = [(axis - shift) / place.scale for axis, shift in zip(axes, place.shift, strict=True)]
    tumours, cysts = _draw_tumours(warp, body, axes, spacing, for_tumours)
    roughness = SmoothField(for_tumours, _LOW, _HIGH, 8.0)
    sigma = for_noise.uniform(9.0, 17.0)
    circular = for_noise.random() < 0.5

    volume = np.empty(shape, np.int16)
    label = np.zeros(shape, np.uint8)
    for start in range(0, shape[2], _SLAB):
        here = slice(start, min(start + _SLAB, shape[2]))
        slab_axes = [axes[0], axes[1], axes[2][here]]
        canvas = Canvas(slab_axes, warp(slab_axes), max(1.0, spacing[0]), _TILTED if place else DEFORMATION)
        paint_body(canvas, body)
        sides, painted = paint_organs(canvas, body)
        liver = paint_liver(canvas, body)
        marked = label[:, :, here] if not kidneys else np.zeros_like(label[:, :, here])
        marked[liver > 0.5] = 1
        _paint_balls(canvas, cysts, liver, None, roughness)
        _paint_balls(canvas, tumours, liver, marked, roughness)
        if kidneys:
            # What is painted over a kidney, a cyst or a neighbour, is none of it.
            label[:, :, here] = np.where(canvas.hu == painted, sides, 0)
        noisy = _scan(canvas.hu, spacing, sigma, for_noise)
        if circular:
            x, y = ((np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape[:2], spacing[:2], strict=True))
            noisy[(np.square(x)[:, None] + np.square(y)) > np.square(x[-1])] = -1024
        volume[:, :, here] = np.rint(noisy)
    return AbdomenImages(volume, label, tumours)


def _draw_tumours(
    warp: _Warp, body: Body, axes: list[np.ndarray], spacing: tuple[float, float, float], rng: np.random.Generator
) -> tuple[list[Tumour], list[Tumour]]:
    """Tumours, none in one patient of ten, and hepatic cysts, which are liver to the reference."""
    coarse = [np.arange(a[0], a[-1] + 1e-6, 5.0) for a in axes]
    canvas = Canvas(coarse, warp(coarse), 1.0)
    depth = liver_distance(canvas, canvas.everything, body)
    # A centre must lie on the scan: not beyond its first and last slice.
    depth[:, :, (coarse[2] < axes[2][0]) | (coarse[2] > axes[2][-1])] = -1
    free = rng.random() < TUMOUR_FREE_SHARE
    count = 0 if free else 1 + int(rng.poisson(3.5))
    tumours, cysts = [], []
    for k, index in enumerate(sample_voxels((depth > 6).astype(np.float32), count, rng)):
        center = np.array([coarse[j][index[j]] for j in range(3)]) + rng.uniform(-2.5, 2.5, 3)
        # The first is large enough to be seen between the thickest slices.
        radius = float(np.exp(rng.uniform(np.log(9.0 if k == 0 else 4.0), np.log(28.0))))
        radius = max(radius, 0.8 * spacing[2]) if k == 0 else radius
        value = body.liver_hu - rng.uniform(28, 65)
        tumours.append(Tumour(center, radius, float(value), radius > 13 and rng.random() < 0.6, rng.random() < 0.3))
    for index in sample_voxels((depth > 6).astype(np.float32), int(rng.poisson(1.0)), rng):
        center = np.array([coarse[j][index[j]] for j in range(3)])
        cysts.append(Tumour(center, float(rng.uniform(3.5, 9.0)), float(rng.uniform(0, 12)), False, False))
    return tumours, cysts


def _paint_balls(
    canvas: Canvas, balls: list[Tumour], liver: np.ndarray, label: np.ndarray | None, roughness: SmoothField
) -> None:
    """Paint balls inside the liver; where ``label`` is given, mark them 2."""
    for ball in balls:
        reach = 1.5 * ball.radius
        window = canvas.window(ball.center - reach, ball.center + reach, margin=float(canvas.edge))
        if window is None:
            continue
        axes = [axis[s] for axis, s in zip(canvas.axes, window, strict=True)]
        offsets = np.ix_(*(np.square(a - c) for a, c in zip(axes, ball.center, strict=True)))
        distance = np.sqrt(offsets[0] + offsets[1] + offsets[2]).astype(np.float32)
        if label is not None:
            distance *= 1 + np.float32(0.11) * roughness(*axes)
        inside = np.float32(ball.radius) - distance
        share = canvas.cover(inside / 2) * liver[window]  # tumours fade into the liver; their edge is twice as wide
        if ball.rim:
            canvas.paint(window, np.exp(-np.square(inside / 2.5)) * liver[window] * np.float32(0.5), ball.hu + 75)
        canvas.paint(window, share * (0.85 if label is not None else 1.0), ball.hu)
        if ball.core:
            canvas.paint(window, canvas.cover((inside - 0.45 * ball.radius) / 4) * share, ball.hu - 22)
        if label is not None:
            marked = label[window]
            marked[(share > 0.5) & (marked == 1)] = 2


def _scan(hu: np.ndarray, spacing: tuple[float, float, float], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Reconstruction: a soft kernel's grainy noise, correlated in the plane, independent between slices."""
    grain = 0.75 / spacing[0]
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    if grain > 0.4:
        noise = ndi.gaussian_filter(noise, (grain, grain, 0.0))
        noise *= np.float32(1 / noise.std())
    # Dense parts of a slice (spine, liver) are noisier than its rim.
    return np.clip(hu + np.float32(sigma) * noise * (1 + (hu > -500)) * np.float32(0.6), -1024, 3071)
