"""The average anatomy behind the brain phantom, from the MNI152 templates inside an installed nilearn."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage as ndi

from scp_models.errors import UserError
from scp_models.optional import package_folder

_COARSE_LOW = np.array([-116.0, -156.0, -190.0])
_COARSE_SHAPE = (117, 141, 153)
_COARSE_STEP = 2.0


@dataclass(frozen=True)
class BrainTemplate:
    """Tissue probabilities at 1 mm and distance maps at 2 mm, both in MNI space (RAS, mm).

    ``white``, ``grey``, ``fluid``: float32 in [0, 1]. Distances are float32 in mm: ``ventricle`` to the lateral
    ventricles (0 inside), ``depth`` to the brain's surface (0 outside), ``hull`` beyond the closed brain surface
    (0 inside it), ``skin`` below the head's surface (0 outside).
    """

    white: np.ndarray
    grey: np.ndarray
    fluid: np.ndarray
    origin: np.ndarray
    ventricle: np.ndarray
    depth: np.ndarray
    hull: np.ndarray
    skin: np.ndarray

    def fine(self, name: str, points: np.ndarray) -> np.ndarray:
        """A tissue probability at ``points`` ``[3, …]`` in mm; 0 outside the template."""
        index = points - self.origin.astype(np.float32).reshape(3, *[1] * (points.ndim - 1))
        return ndi.map_coordinates(getattr(self, name), index, order=1, mode="constant", cval=0.0, prefilter=False)

    def coarse(self, names: tuple[str, ...], points: np.ndarray) -> list[np.ndarray]:
        """Distance maps at ``points`` ``[3, …]`` in mm; beyond the map the edge is repeated."""
        low = _COARSE_LOW.astype(np.float32).reshape(3, *[1] * (points.ndim - 1))
        index = (points - low) / np.float32(_COARSE_STEP)
        return [ndi.map_coordinates(getattr(self, n), index, order=1, mode="nearest", prefilter=False) for n in names]


def _data_folder() -> Path:
    # Found without importing nilearn, which takes seconds and pulls in scikit-learn.
    package = package_folder("nilearn")
    if package is None:
        raise UserError(
            "nilearn is not installed; the brain phantom needs its templates: pip install 'scp_kernels[train]'"
        )
    return package / "datasets" / "data"


def _load(kind: str) -> tuple[np.ndarray, np.ndarray]:
    path = _data_folder() / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
    if not path.is_file():
        raise UserError(f"{path}: not found; expected the MNI152 template that nilearn >= 0.11 ships")
    image = nib.Nifti1Image.from_filename(path)
    data = np.asarray(image.dataobj, dtype=np.float32)
    return data / data.max(), image.affine[:3, 3]


def _ball(radius_mm: float) -> np.ndarray:
    n = int(np.ceil(radius_mm / _COARSE_STEP))
    grid = np.ogrid[-n : n + 1, -n : n + 1, -n : n + 1]
    return np.asarray(grid[0] ** 2 + grid[1] ** 2 + grid[2] ** 2 <= (radius_mm / _COARSE_STEP) ** 2)


def _distance_to(mask: np.ndarray) -> np.ndarray:
    return ndi.distance_transform_edt(~mask, sampling=_COARSE_STEP).astype(np.float32)


@cache
def load_brain_template() -> BrainTemplate:
    """Read the templates and compute the distance maps, once per process.

    Raises:
        UserError: nilearn, or the templates inside it, cannot be found.
    """
    grey, origin = _load("gm")
    white, _ = _load("wm")
    t1, _ = _load("t1")

    x, y, z = (
        np.float32(low + _COARSE_STEP * np.arange(n)).reshape(shape)
        for low, n, shape in zip(_COARSE_LOW, _COARSE_SHAPE, ((-1, 1, 1), (1, -1, 1), (1, 1, -1)), strict=True)
    )
    points = np.stack(np.broadcast_arrays(x, y, z)) - origin.astype(np.float32).reshape(3, 1, 1, 1)
    coarse_t1, coarse_tissue = (
        ndi.map_coordinates(a, points, order=1, mode="constant", prefilter=False) for a in (t1, grey + white)
    )
    brain = ndi.binary_fill_holes(ndi.binary_closing(coarse_t1 > 0.2, _ball(4)))
    central = brain & (coarse_tissue < 0.5) & (np.abs(x) < 36) & (y > -50) & (y < 40) & (z > -8) & (z < 36)
    parts = np.asarray(ndi.label(central)[0])
    ventricles = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])

    fine_brain = ndi.binary_fill_holes(ndi.binary_closing(t1 > 0.2, iterations=2))
    fluid = np.clip(fine_brain - grey - white, 0, 1).astype(np.float32)

    grown = np.less(_distance_to(brain), 10)
    hull = _distance_to(_distance_to(~grown) > 10)
    face = (x / 62) ** 2 + ((y - 48) / 52) ** 2 + ((z + 62) / 62) ** 2 < 1
    neck = ((x / 62) ** 2 + ((y + 28) / 66) ** 2 < 1) & (z < -40)
    head = (hull < 13) | face | neck
    # Rounding the union makes the junctions of cranium, face and neck look grown rather than glued.
    head = ndi.gaussian_filter(head.astype(np.float32), 6 / _COARSE_STEP, mode="nearest") > 0.5
    return BrainTemplate(
        white=white,
        grey=grey,
        fluid=fluid,
        origin=origin,
        ventricle=_distance_to(ventricles),
        depth=_distance_to(~brain),
        hull=hull,
        skin=_distance_to(~head),
    )
