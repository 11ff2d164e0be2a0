"""Scores of a model, or of finished predictions, on the grid of the source files."""

import csv
import itertools
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import apply_affine
from nibabel.orientations import io_orientation, ornt_transform
from numpy.typing import NDArray

from scp_models.data import SourceGrid, Subject, Task, VolumeReader
from scp_models.data.preprocessing import open_nifti
from scp_models.errors import UserError
from scp_models.evaluation.metrics import METRICS, Connectivity, subject_scores, summarise
from scp_models.files import atomic_path
from scp_models.inference.predictor import Predictor, Segmentation

Row = dict[str, Any]
# Of a prediction's place, in voxels: headers are in single precision, and some writers go through quaternions.
TOLERANCE = 0.1
COLUMNS = ("subject", "site", *METRICS)


def score(segmentation: Segmentation, reader: VolumeReader, connectivity: Connectivity = 26) -> Row:
    """All metrics of one segmentation against its subject's reference: lesions outside the crop count as missed."""
    subject = segmentation.subject
    reference = reader.read_label(subject)
    return _row(subject, segmentation.mask(), reference, segmentation.grid, connectivity)


def _row(
    subject: Subject, mask: NDArray[Any], reference: NDArray[Any], grid: SourceGrid, connectivity: Connectivity
) -> Row:
    scores = subject_scores(mask, reference, grid.spacing, connectivity=connectivity)
    return {"subject": subject.name, "site": subject.site or "", **scores}


def held_out(
    subjects: Sequence[Subject], split: Mapping[str, Sequence[str]] | None, part: str, checkpoint: Path, where: Path
) -> list[Subject]:
    """The subjects of one part of the division that a checkpoint was trained with.

    Args:
        subjects: all that the data set has.
        split: names by part, as the checkpoint records them.
        part: ``"training"``, ``"validation"`` or ``"test"``.
        checkpoint: what to name in an error.
        where: the data set, to name in an error.

    Raises:
        UserError: no division is recorded, or one of its subjects is not in the data set or has no reference there.
    """
    if split is None:
        raise UserError(f"{checkpoint}: expected a record of the subjects it was trained with, got none")
    by_name = {subject.name: subject for subject in subjects if subject.label is not None}
    if missing := [name for name in split[part] if name not in by_name]:
        raise UserError(
            f"{where}: expected the {part} subjects of {checkpoint} with references, {missing[0]!r} is not there "
            "(other data are scored with --split all or --split-file)"
        )
    return [by_name[name] for name in split[part]]


def evaluate(predictor: Predictor, subjects: Iterable[Subject], connectivity: Connectivity = 26) -> list[Row]:
    """One row a subject: segmented, restored to the source's grid, scored."""
    return [score(predictor.segment(subject), predictor.reader, connectivity) for subject in subjects]


def score_files(
    folder: Path, subjects: Iterable[Subject], task: Task, connectivity: Connectivity = 26, threshold: float = 0.5
) -> list[Row]:
    """Score masks ``<subject>.nii.gz`` that anything may have written, against the references.

    What their values mean is read off all of them together: 0 and 1 (or 0 and 255) are masks; other integers are label
    maps as the references are, where the task's target labels count; fractions up to 1 are probabilities, of which
    those above ``threshold`` count. A file whose axes run another way than the image's is turned; LiTS's volumes
    without orientation, and predictions without, are taken voxel by voxel.

    Raises:
        UserError: predictions are missing, unreadable, or on another grid than their images.
    """
    reader = VolumeReader(task)
    paths = {subject: folder / f"{subject.name}.nii.gz" for subject in subjects}
    if missing := [path.name for path in paths.values() if not path.is_file()]:
        raise UserError(
            f"{folder}: expected a prediction for each of {len(paths)} subjects, {len(missing)} are missing: "
            + ", ".join(missing)
        )
    found = _values_of(list(paths.values()))
    rows = []
    for subject, path in paths.items():
        reference, grid = reader.read_label(subject), reader.grid(subject)
        values = _read_prediction(path, grid)
        if found == "labels":
            mask = np.isin(np.rint(values), task.target)
        else:
            mask = values > (threshold if found == "probabilities" else 0.5)
        rows.append(_row(subject, mask, reference, grid, connectivity))
    return rows


def _values_of(paths: Sequence[Path]) -> str:
    """What predictions hold: ``"mask"``, ``"labels"`` or ``"probabilities"``. One file alone may not show it: a label
    map without a tumour looks like a mask.
    """
    values: set[float] = set()
    for path in paths:
        # A scaling slope in the header may leave labels a little beside their integers.
        found = np.unique(np.round(_voxels(path, open_nifti(path)).astype(np.float64), 3))
        if not np.isfinite(found).all() or found.min() < 0 or ((found % 1).any() and found.max() > 1):
            raise UserError(f"{path}: expected labels, or probabilities from 0 to 1, got {_range(found)}")
        # Of probabilities there may be as many as voxels.
        values |= {0.5} if (found % 1).any() else {float(value) for value in found}
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


def write_scores(rows: Sequence[Row], folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``scores.csv`` (one row a subject; an undefined score is an empty cell) and ``summary.json``.

    Returns:
        The summary: ``about``, and what :func:`scp_models.evaluation.metrics.summarise` gives.

    Raises:
        UserError: the folder cannot be written.
    """
    summary = {**about, **summarise(rows)}
    with atomic_path(folder / "scores.csv") as path, path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _cell(row[key]) for key in COLUMNS})
    with atomic_path(folder / "summary.json") as path:
        path.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def read_scores(path: Path) -> dict[str, dict[str, float]]:
    """Scores of a ``scores.csv`` by subject; undefined ones are absent.

    Raises:
        UserError: not such a file.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return {row["subject"]: {key: float(row[key]) for key in METRICS if row[key] != ""} for row in rows}
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: expected a scores.csv of scp-models evaluate ({error})") from error


def _cell(value: Any) -> Any:
    return "" if isinstance(value, float) and math.isnan(value) else value
