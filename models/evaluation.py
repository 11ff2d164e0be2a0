"""Scores of a model, or of finished predictions, on the grid of the source files."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scp_models.data import Subject, VolumeReader
from scp_models.data.preprocessing import Task, open_nifti
from scp_models.errors import UserError
from scp_models.files import atomic_path
from scp_models.metrics import METRICS, Connectivity, subject_scores, summarise
from scp_models.prediction import Predictor, Segmentation

Row = dict[str, Any]
COLUMNS = ("subject", "site", *METRICS)


def score(segmentation: Segmentation, reader: VolumeReader, connectivity: Connectivity = 26) -> Row:
    """All metrics of one segmentation against its subject's reference: lesions outside the crop count as missed."""
    subject = segmentation.subject
    reference = reader.read_label(subject)
    scores = subject_scores(segmentation.mask(), reference, segmentation.grid.spacing, connectivity=connectivity)
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


def score_files(folder: Path, subjects: Iterable[Subject], task: Task, connectivity: Connectivity = 26) -> list[Row]:
    """Score masks ``<subject>.nii.gz`` that anything may have written, against the references.

    Raises:
        UserError: a prediction is missing, unreadable, or on another grid than its reference.
    """
    reader = VolumeReader(task)
    rows = []
    for subject in subjects:
        path = folder / f"{subject.name}.nii.gz"
        image = open_nifti(path)
        reference = reader.read_label(subject)
        if tuple(image.shape) != reference.shape:
            raise UserError(
                f"{path}: expected shape {reference.shape} as {subject.label} has, got {tuple(image.shape)}"
            )
        mask = np.asarray(image.dataobj) > 0.5
        scores = subject_scores(mask, reference, reader.grid(subject).spacing, connectivity=connectivity)
        rows.append({"subject": subject.name, "site": subject.site or "", **scores})
    return rows


def write_scores(rows: Sequence[Row], folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``scores.csv`` (one row a subject; an undefined score is an empty cell) and ``summary.json``.

    Returns:
        The summary: ``about``, and what :func:`scp_models.metrics.summarise` gives.

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
