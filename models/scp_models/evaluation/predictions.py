"""Finished predictions, files that anything may have written, as masks or classes in the grid of their images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scp_models.data.classes import describe_classes
from scp_models.data.labels import class_numbers, nearest_labels
from scp_models.data.names import match_names
from scp_models.data.preprocessing import SourceGrid, VolumeReader
from scp_models.data.subjects import Subject
from scp_models.data.tasks import Task
from scp_models.data.volume import VolumeFile, is_clutter
from scp_models.data.volume_files import ENDINGS, open_volume, volume_stem
from scp_models.errors import UserError
from scp_models.notes import note

_FRACTION = 0.5
"""Stands for all values of probabilities."""
_WHITES = (255.0, 65535.0)
"""What image tools write for 1."""


class PredictionFiles:
    """Masks from ``<subject>.nii.gz``, or another format that is read, in a folder.

    What their values mean is read off all of them together: 0 and 1 are masks; other integers are label maps as the
    references are, where the task's target labels count; fractions up to 1 are probabilities, of which those above
    ``threshold`` count. A file of 0 and 255 (or 65535) is a mask beside all of these, unless that is a label. Of a task
    with several classes all are label maps. Each is brought into the grid of its image as references are: see
    :mod:`scp_models.data.alignment`. There is a note where label maps have labels, but not the target's.

    Args:
        folder: of the files.
        subjects: who are scored.
        task: what labels mean.
        threshold: of probabilities.
        masks_are_labels: of several classes, files of 0 and 1 alone are label maps too, of the first class; otherwise
            they are refused, as they may be masks of any.

    Raises:
        UserError: there is no prediction of any subject, or some are labels and others probabilities, or all are
            probabilities or masks, of several classes.
    """

    def __init__(
        self,
        folder: Path,
        subjects: Sequence[Subject],
        task: Task,
        threshold: float = 0.5,
        masks_are_labels: bool = True,
    ) -> None:
        self.reader = VolumeReader(task)
        self.threshold = threshold
        self._folder = folder
        self._paths = _paths_of(folder, subjects)
        paths = list(self._paths.values())
        self._content, self._unreadable = _content_of(folder, paths, task, masks_are_labels)

    def mask_of(self, subject: Subject) -> tuple[NDArray[Any], SourceGrid]:
        """The mask of one of the subjects, or the numbers of the classes, and the grid that it is in: the image's.

        Raises:
            UserError: the prediction is missing, cannot be read, holds something else, or lies elsewhere than its
                image.
        """
        path = self._paths.get(subject)
        if path is None:
            raise UserError(f"{self._folder / subject.name}.nii.gz: expected a prediction, there is none")
        if error := self._unreadable.get(path):
            raise error
        content = self._content[path]
        grid = self.reader.grid(subject)
        # LiTS's volumes 28 to 47 have an identity for an affine: it says nothing, and neither does one made from it.
        says_nothing = subject.label_affine == "image" and np.array_equal(grid.affine, np.eye(4))
        values = self.reader.align_prediction(
            _open(path),
            grid,
            probabilities=content == "probabilities",
            rule="image" if says_nothing else "auto",
        ).read()
        if content == "labels":
            return class_numbers(np.rint(values), self.reader.task), grid
        return values > (self.threshold if content == "probabilities" else 0.5), grid


def _paths_of(folder: Path, subjects: Sequence[Subject]) -> dict[Subject, Path]:
    """The file of each subject that has one, by its name or its unambiguous end."""
    files: dict[str, Path] = {}
    for ending in ENDINGS:
        for path in sorted(folder.glob(f"*{ending}")):
            if not is_clutter(path):
                files.setdefault(volume_stem(path), path)
    matches = match_names([subject.name for subject in subjects], files, str(folder))
    if subjects and not matches:
        names = ", ".join(f"{subject.name}.nii.gz" for subject in subjects)
        raise UserError(
            f"{folder}: expected a prediction for each of {len(subjects)} subjects, all are missing: {names}"
        )
    return {subject: files[matches[subject.name]] for subject in subjects if subject.name in matches}


def _content_of(
    folder: Path, paths: Sequence[Path], task: Task, masks_are_labels: bool
) -> tuple[dict[Path, str], dict[Path, UserError]]:
    """What each prediction holds, ``"mask"``, ``"labels"`` or ``"probabilities"``, and those that cannot be read. One
    file alone may not show it: a label map without a tumour looks like a mask.
    """
    stored: dict[Path, set[float]] = {}
    unreadable: dict[Path, UserError] = {}
    for path in paths:
        try:
            stored[path] = _values_of(path)
        except UserError as error:
            unreadable[path] = error
    if task.classes and not masks_are_labels:
        _refuse_masks(folder, set().union(*stored.values()), task)
    masks = [path for path, values in stored.items() if not task.classes and _is_scaled_mask(values, task)]
    values = set().union(*(stored[path] for path in stored if path not in masks))
    # Beside label maps that have it, 255 is a label too.
    masks = [path for path in masks if max(stored[path]) not in values]
    values = set().union(*(stored[path] for path in stored if path not in masks))
    fractions = [path for path, of_file in stored.items() if _FRACTION in of_file]
    if task.classes:
        if len(fractions) == len(stored) > 0:
            raise UserError(f"{folder}: expected label maps of {describe_classes(task.classes)}, got probabilities")
        what = f"labels of {describe_classes(task.classes)}"
        unreadable |= {path: UserError(f"{path}: expected {what}, got fractions") for path in fractions}
        content = "labels"
    elif fractions:
        if max(values) > 1:
            raise UserError(f"{folder}: expected all predictions as labels or all as probabilities, got both")
        content = "probabilities"
    else:
        content = "mask" if values <= {0.0, 1.0} else "labels"
    contents = {path: "mask" if path in masks else content for path in stored}
    maps = {path: stored[path] for path in stored if contents[path] == "labels" and path not in unreadable}
    for path, of_file in maps.items():
        if task.labels and (others := sorted(of_file - set(task.labels))):
            or_mask = "" if task.classes else ", or a mask of 0 and 1 or 255"
            unreadable[path] = UserError(f"{path}: expected labels {task.labels}{or_mask}, got also {others[:5]}")
    _note_without_target(folder, {path: maps[path] for path in maps if path not in unreadable}, task)
    return contents, unreadable


def _refuse_masks(folder: Path, values: set[float], task: Task) -> None:
    """Refuse files that all may be masks or probabilities of any one of several classes."""
    ones = {1.0, *(white for white in _WHITES if white not in (task.labels or ()))}
    if (found := values - {0.0}) and found <= {*ones, _FRACTION}:
        kind = "probabilities" if _FRACTION in found else "masks"
        maps = ", --classes all for label maps" if found == {1.0} else ""
        raise UserError(
            f"{folder}: expected label maps of {describe_classes(task.classes)}, got {kind} (--target N says of which "
            f"label{maps})"
        )


def _is_scaled_mask(values: set[float], task: Task) -> bool:
    """Whether a file holds 0 and what image tools write for 1, which is no other label than the target."""
    known = {*task.ignored, *(task.labels or ())} - set(task.target)
    return any(values in ({0.0, white}, {white}) and white not in known for white in _WHITES)


def _note_without_target(folder: Path, maps: Mapping[Path, set[float]], task: Task) -> None:
    """Say where labels that no map with the target has are all that a map has: it counts as empty."""
    target = set(map(float, task.target))
    beside = set().union(*(values for values in maps.values() if values & target))
    strange = {path: values - beside - {0.0} for path, values in maps.items() if not values & target}
    strange = {path: values for path, values in strange.items() if values}
    if strange:
        labels = sorted(set().union(*strange.values()))[:5]
        note(
            f"{folder}: {len(strange)} of {len(maps)} predictions have labels {labels} and not the target's "
            f"{list(task.target)}: nothing counts of {', '.join(path.name for path in list(strange)[:3])}"
            + (", ..." if len(strange) > 3 else "")
        )


def _values_of(path: Path) -> set[float]:
    """The labels in a file, or a fraction for probabilities, of which there may be as many as voxels."""
    file = _open(path)
    stored = nearest_labels(file.read(), file.scaled)
    fractions = stored.dtype.kind == "f" and bool((stored != np.rint(stored)).any())
    if not np.isfinite(stored).all() or stored.min() < 0 or (fractions and stored.max() > 1):
        raise UserError(f"{path}: expected labels, or probabilities from 0 to 1, got {_range(stored)}")
    return {_FRACTION} if fractions else {float(value) for value in np.unique(stored)}


def _open(path: Path) -> VolumeFile:
    file = open_volume(path)
    if file.channels != 1:
        raise UserError(f"{path}: expected a 3-D volume, got shape {tuple(file.data.shape)}")
    return file


def _range(values: NDArray[Any]) -> str:
    return f"values from {values.min():g} to {values.max():g}"
