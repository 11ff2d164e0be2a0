"""Scores of masks against their references, on the grid of the source files, and on disk."""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from scp_models.data.names import match_names
from scp_models.data.preprocessing import SourceGrid, VolumeReader
from scp_models.data.subjects import Subject
from scp_models.errors import UserError
from scp_models.evaluation.metrics import METRICS, Connectivity, subject_scores, summarise
from scp_models.files import atomic_path

SubjectScores = dict[str, Any]
"""``subject``, ``site`` and all metrics of one subject."""
COLUMNS = ("subject", "site", *METRICS)
# What is printed of a summary, and under which name.
_HEADLINE = {"Dice": "dice", "L-Dice": "lesion_dice", "challenge F1": "challenge_f1", "HD95": "hd95_mm"}


class MaskSource(Protocol):
    """Masks to score: a predictor's, or finished files."""

    reader: VolumeReader
    threshold: float

    def mask_of(self, subject: Subject) -> tuple[NDArray[Any], SourceGrid]:
        """A subject's mask ``[x, y, z]``, and the grid that it is in: that of the subject's file."""
        ...


def evaluate(
    source: MaskSource, subjects: Iterable[Subject], connectivity: Connectivity = 26
) -> Iterator[SubjectScores]:
    """The scores of each subject, in turn.

    Raises:
        UserError: an image, a mask or a reference cannot be read.
    """
    for subject in subjects:
        mask, grid = source.mask_of(subject)
        yield score(subject, mask, grid, source.reader, connectivity)


def score(
    subject: Subject, mask: NDArray[Any], grid: SourceGrid, reader: VolumeReader, connectivity: Connectivity = 26
) -> SubjectScores:
    """All metrics of one mask against its subject's reference: lesions outside the crop count as missed."""
    scores = subject_scores(mask, reader.read_label(subject), grid.spacing, connectivity=connectivity)
    return {"subject": subject.name, "site": subject.site or "", **scores}


def write_scores(rows: Sequence[SubjectScores], folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``scores.csv`` (one row per subject; an undefined score is an empty cell) and ``summary.json``.

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


def paired_scores(a: Path, b: Path, metric: str) -> tuple[list[float], list[float]]:
    """One metric of two tables, subject by subject, of the subjects for whom both have it.

    Raises:
        UserError: no such files or metric, tables of different subjects, or fewer than two subjects in common.
    """
    if metric not in METRICS:
        raise UserError(f"--metric: expected one of {', '.join(METRICS)}, got {metric!r}")
    first, second = read_scores(a), read_scores(b)
    matches = match_names(first, second, str(b))
    if not len(matches) == len(first) == len(second):
        raise UserError(f"{b}: expected the subjects of {a}, got others")
    second = {name: second[matches[name]] for name in first}
    common = [subject for subject in sorted(first) if metric in first[subject] and metric in second[subject]]
    if len(common) < 2:
        raise UserError(f"{a}: expected at least two subjects for whom {metric} is defined, found {len(common)}")
    return [first[subject][metric] for subject in common], [second[subject][metric] for subject in common]


def headline(summary: Mapping[str, Any]) -> str:
    """One line of a summary's means, each with the number of subjects that it is of where that is not all."""
    subjects, texts = summary["subjects"], []
    for name, key in _HEADLINE.items():
        mean, n = summary[key]["mean"], summary[key]["n"]
        text = "undefined" if mean is None else f"{mean:.4f}{' mm' if key == 'hd95_mm' else ''}"
        # A network that finds nothing has an HD95 only where there is nothing to find, and it is 0 there.
        texts.append(f"{name} {text}" + (f" ({n} of {subjects} subjects)" if 0 < n < subjects else ""))
    return f"{subjects} subjects: {', '.join(texts)}"


def _cell(value: Any) -> Any:
    return "" if isinstance(value, float) and math.isnan(value) else value
