"""Finished predictions, files that anything may have written, as masks in the grid of their images."""

import itertools
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import apply_affine
from nibabel.orientations import io_orientation, ornt_transform
from numpy.typing import NDArray

from scp_models.data.preprocessing import SourceGrid, VolumeReader, open_nifti
from scp_models.data.subjects import Subject
from scp_models.data.tasks import Task
from scp_models.errors import UserError

# Of a prediction's place, in voxels: headers are in single precision, and some writers go through quaternions.
TOLERANCE = 0.1


class PredictionFiles:
    """Masks from ``<subject>.nii.gz`` in a folder.

    What their values mean is read off all of them together: 0 and 1 (or 0 and 255) are masks; other integers are label
    maps as the references are, where the task's target labels count; fractions up to 1 are probabilities, of which
    those above ``threshold`` count. A file whose axes run another way than the image's is turned; LiTS's volumes
    without orientation, and predictions without, are taken voxel by voxel.

    Raises:
        UserError: predictions are missing or unreadable, or hold something else.
    """

    def __init__(self, folder: Path, subjects: Sequence[Subject], task: Task, threshold: float = 0.5) -> None:
        self.reader = VolumeReader(task)
        self.threshold = threshold
        self._paths = {subject: folder / f"{subject.name}.nii.gz" for subject in subjects}
        if missing := [path.name for path in self._paths.values() if not path.is_file()]:
            raise UserError(
                f"{folder}: expected a prediction for each of {len(self._paths)} subjects, {len(missing)} are missing: "
                + ", ".join(missing)
            )
        self._content = _values_of(list(self._paths.values()))

    def mask_of(self, subject: Subject) -> tuple[NDArray[np.bool_], SourceGrid]:
        """The mask of one of the subjects, and the grid that it is in: the image's.

        Raises:
            UserError: the prediction is on another grid than its image.
        """
        grid = self.reader.grid(subject)
        values = _read_prediction(self._paths[subject], grid)
        if self._content == "labels":
            return np.isin(np.rint(values), self.reader.task.target), grid
        return values > (self.threshold if self._content == "probabilities" else 0.5), grid


def _values_of(paths: Sequence[Path]) -> str:
    """What predictions hold: ``"mask"``, ``"labels"`` or ``"probabilities"``. One file alone may not show it: a label
    map without a tumour looks like a mask.
    """
    values: set[float] = set()
    for path in paths:
        # A scaling slope in the header may leave labels a little beside their integers.
        stored = np.unique(np.round(_voxels(path, open_nifti(path)).astype(np.float64), 3))
        if not np.isfinite(stored).all() or stored.min() < 0 or ((stored % 1).any() and stored.max() > 1):
            raise UserError(f"{path}: expected labels, or probabilities from 0 to 1, got {_range(stored)}")
        # Of probabilities there may be as many as voxels.
        values |= {0.5} if (stored % 1).any() else {float(value) for value in stored}
    if any(value % 1 for value in values):
        if max(values) > 1:
            raise UserError(f"{paths[0].parent}: expected all predictions as labels or all as probabilities, got both")
        return "probabilities"
    return "mask" if values <= {0.0, 1.0} or values == {0.0, 255.0} else "labels"


def _read_prediction(path: Path, grid: SourceGrid) -> NDArray[Any]:
    """Its voxels in the grid of the image."""
    image = open_nifti(path)
    if len(image.shape) == 4 and image.shape[3] == 1:
        image = image.slicer[..., 0]
    if len(image.shape) != 3:
        raise UserError(f"{path}: expected shape {grid.shape} as {grid.path} has, got {tuple(image.shape)}")
    # LiTS's volumes 28 to 47 have an identity for an affine: it says nothing, and neither does one made from it.
    says_nothing = np.array_equal(grid.affine, np.eye(4))
    if not says_nothing and (int(image.header["sform_code"]) or int(image.header["qform_code"])):
        orientation = io_orientation(image.affine)
        if np.isnan(orientation).any():
            raise UserError(f"{path}: expected an affine that maps three axes, got one without full rank")
        image = image.as_reoriented(ornt_transform(orientation, io_orientation(grid.affine)))
        corners = np.array(list(itertools.product(*((0, n - 1) for n in grid.shape))))
        away = np.abs(apply_affine(image.affine, corners) - apply_affine(grid.affine, corners)).max()
    else:
        away = 0.0
    if tuple(image.shape) != grid.shape:
        raise UserError(f"{path}: expected shape {grid.shape} as {grid.path} has, got {tuple(image.shape)}")
    if away > TOLERANCE * min(grid.spacing):
        raise UserError(
            f"{path}: expected the affine of {grid.path}, up to the order and direction of axes; it places voxels up "
            f"to {away:.3g} mm elsewhere"
        )
    return _voxels(path, image)


def _voxels(path: Path, image: Any) -> NDArray[Any]:
    try:
        return np.asarray(image.dataobj)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path}: expected a whole NIfTI file, it is truncated or corrupt ({error})") from error


def _range(values: NDArray[Any]) -> str:
    return f"values from {values.min():g} to {values.max():g}"
