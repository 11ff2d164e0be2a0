"""Finished predictions, files that anything may have written, as masks or classes in the grid of their images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scp_models.data.classes import describe_classes
from scp_models.data.labels import class_numbers
from scp_models.data.names import match_names
from scp_models.data.preprocessing import SourceGrid, VolumeReader
from scp_models.data.subjects import Subject
from scp_models.data.tasks import Task
from scp_models.data.volume import VolumeFile, is_clutter
from scp_models.data.volume_files import ENDINGS, open_volume, volume_stem
from scp_models.errors import UserError


class PredictionFiles:
    """Masks from ``<subject>.nii.gz``, or another format that is read, in a folder.

    What their values mean is read off all of them together: 0 and 1 (or 0 and 255) are masks; other integers are label
    maps as the references are, where the task's target labels count; fractions up to 1 are probabilities, of which
    those above ``threshold`` count. Of a task with several classes all are label maps. Each is
    brought into the grid of its image as references are: see :mod:`scp_models.data.alignment`.

    Raises:
        UserError: predictions are missing, or some are labels and others probabilities, or probabilities of several
            classes.
    """

    def __init__(self, folder: Path, subjects: Sequence[Subject], task: Task, threshold: float = 0.5) -> None:
        self.reader = VolumeReader(task)
        self.threshold = threshold
        self._paths = _paths_of(folder, subjects)
        self._content, self._unreadable = _content_of(folder, list(self._paths.values()))
        if task.classes:
            if self._content == "probabilities":
                raise UserError(f"{folder}: expected label maps of {describe_classes(task.classes)}, got probabilities")
            self._content = "labels"

    def mask_of(self, subject: Subject) -> tuple[NDArray[Any], SourceGrid]:
        """The mask of one of the subjects, or the numbers of the classes, and the grid that it is in: the image's.

        Raises:
            UserError: the prediction cannot be read, holds something else, or lies elsewhere than its image.
        """
        if error := self._unreadable.get(self._paths[subject]):
            raise error
        grid = self.reader.grid(subject)
        # LiTS's volumes 28 to 47 have an identity for an affine: it says nothing, and neither does one made from it.
        says_nothing = subject.label_affine == "image" and np.array_equal(grid.affine, np.eye(4))
        values = self.reader.align_prediction(
            _open(self._paths[subject]),
            grid,
            probabilities=self._content == "probabilities",
            rule="image" if says_nothing else "auto",
        ).read()
        if self._content == "labels":
            values = np.rint(values)
            allowed = self.reader.task.labels
            if self.reader.task.classes and allowed and not np.isin(strange := np.unique(values), allowed).all():
                others = [float(v) for v in strange if v not in allowed][:5]
                raise UserError(f"{self._paths[subject]}: expected labels {allowed}, got also {others}")
            return class_numbers(values, self.reader.task), grid
        return values > (self.threshold if self._content == "probabilities" else 0.5), grid


def _paths_of(folder: Path, subjects: Sequence[Subject]) -> dict[Subject, Path]:
    """The file of each subject, by its name or its unambiguous end."""
    files: dict[str, Path] = {}
    for ending in ENDINGS:
        for path in sorted(folder.glob(f"*{ending}")):
            if not is_clutter(path):
                files.setdefault(volume_stem(path), path)
    matches = match_names([subject.name for subject in subjects], files, str(folder))
    if missing := [f"{subject.name}.nii.gz" for subject in subjects if subject.name not in matches]:
        raise UserError(
            f"{folder}: expected a prediction for each of {len(subjects)} subjects, {len(missing)} are missing: "
            + ", ".join(missing)
        )
    return {subject: files[matches[subject.name]] for subject in subjects}


def _content_of(folder: Path, paths: Sequence[Path]) -> tuple[str, dict[Path, UserError]]:
    """What predictions hold, ``"mask"``, ``"labels"`` or ``"probabilities"``, and those that cannot be read. One file
    alone may not show it: a label map without a tumour looks like a mask.
    """
    values: set[float] = set()
    unreadable: dict[Path, UserError] = {}
    for path in paths:
        try:
            values |= _values_of(path)
        except UserError as error:
            unreadable[path] = error
    if any(value % 1 for value in values):
        if max(values) > 1:
            raise UserError(f"{folder}: expected all predictions as labels or all as probabilities, got both")
        return "probabilities", unreadable
    return "mask" if values <= {0.0, 1.0} or values in ({0.0, 255.0}, {0.0, 65535.0}) else "labels", unreadable


def _values_of(path: Path) -> set[float]:
    """The labels in a file, or 0.5 for probabilities, of which there may be as many as voxels."""
    # A scaling slope in the header may leave labels a little beside their integers.
    stored = np.unique(np.round(_open(path).read().astype(np.float64), 3))
    fractions = bool((stored % 1).any())
    if not np.isfinite(stored).all() or stored.min() < 0 or (fractions and stored.max() > 1):
        raise UserError(f"{path}: expected labels, or probabilities from 0 to 1, got {_range(stored)}")
    return {0.5} if fractions else {float(value) for value in stored}


def _open(path: Path) -> VolumeFile:
    file = open_volume(path)
    if file.channels != 1:
        raise UserError(f"{path}: expected a 3-D volume, got shape {tuple(file.data.shape)}")
    return file


def _range(values: NDArray[Any]) -> str:
    return f"values from {values.min():g} to {values.max():g}"
