"""Scores of masks against their references, on the grid of the source files, and on disk."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation
from numpy.typing import NDArray

from scp_models.data.names import match_names
from scp_models.data.preprocessing import SourceGrid, VolumeReader
from scp_models.data.subjects import Subject
from scp_models.errors import Failures, UserError
from scp_models.evaluation.metrics import METRICS, Connectivity, class_scores, subject_scores, summarise
from scp_models.files import atomic_path

SubjectScores = dict[str, Any]
"""``subject``, ``site`` and all metrics of one subject; and, of one class of several, ``class``."""
COLUMNS = ("subject", "site", *METRICS)
CLASS_COLUMNS = ("subject", "site", "class", *METRICS)
# What is printed of a summary, and under which name.
_HEADLINE = {"Dice": "dice", "L-Dice": "lesion_dice", "challenge F1": "challenge_f1", "HD95": "hd95_mm"}


class MaskSource(Protocol):
    """Masks, or classes, to score: a predictor's, or finished files."""

    reader: VolumeReader
    threshold: float

    def mask_of(self, subject: Subject) -> tuple[NDArray[Any], SourceGrid]:
        """A subject's mask ``[x, y, z]``, and the grid that it is in: that of the subject's file."""
        ...


def evaluate(
    source: MaskSource,
    subjects: Iterable[Subject],
    connectivity: Connectivity = 26,
    failures: Failures | None = None,
) -> list[SubjectScores]:
    """The scores of each subject, and of each of several classes: a row each.

    Args:
        source: of the masks.
        subjects: who are scored.
        connectivity: of lesions.
        failures: takes subjects who cannot be read, and leaves them out; None: the first one is an error.

    Raises:
        UserError: an image, a mask or a reference cannot be read.
    """
    failures = failures or Failures(fail_fast=True)
    rows = []
    for subject in subjects:
        with failures.skip(subject.name):
            mask, grid = source.mask_of(subject)
            if source.reader.task.classes:
                rows += score_classes(subject, mask, grid, source.reader, connectivity)
            else:
                rows.append(score(subject, mask, grid, source.reader, connectivity))
    return rows


def score(
    subject: Subject, mask: NDArray[Any], grid: SourceGrid, reader: VolumeReader, connectivity: Connectivity = 26
) -> SubjectScores:
    """All metrics of one mask against its subject's reference: lesions outside the crop count as missed.

    Slices are across the axis of the largest voxel size (of equal ones the height), however the file is stored.
    """
    (mask, reference), spacing = _slices_last([mask, reader.read_label(subject)], grid)
    scores = subject_scores(mask, reference, spacing, connectivity=connectivity)
    return {"subject": subject.name, "site": subject.site or "", **scores}


def score_classes(
    subject: Subject, classes: NDArray[Any], grid: SourceGrid, reader: VolumeReader, connectivity: Connectivity = 26
) -> list[SubjectScores]:
    """All metrics of each class of one subject, a row each; slices as for :func:`score`."""
    names = reader.task.class_names
    (classes, reference), spacing = _slices_last([classes, reader.read_label(subject)], grid)
    scores = class_scores(classes, reference, spacing, names, connectivity=connectivity)
    return [{"subject": subject.name, "site": subject.site or "", "class": name, **scores[name]} for name in names]


def _slices_last(volumes: Sequence[NDArray[Any]], grid: SourceGrid) -> tuple[list[NDArray[Any]], list[float]]:
    """Volumes of a grid, in canonical axes but for the one across slices, which comes last; and their voxel size."""
    sizes = [float(size) for size in voxel_sizes(grid.canonical_affine)]
    across = max(range(3), key=lambda axis: (round(sizes[axis], 3), axis))
    order = [*(axis for axis in range(3) if axis != across), across]
    turned = [apply_orientation(volume, grid.to_canonical).transpose(order) for volume in volumes]
    return turned, [sizes[axis] for axis in order]


def mean_over_classes(rows: Sequence[SubjectScores]) -> list[SubjectScores]:
    """One row per subject: each metric averaged over the classes for which it is defined."""
    subjects: dict[str, list[SubjectScores]] = {}
    for row in rows:
        subjects.setdefault(row["subject"], []).append(row)
    means = []
    for name, of_subject in subjects.items():
        defined = {key: [row[key] for row in of_subject if not math.isnan(row[key])] for key in METRICS}
        averages = {key: sum(values) / len(values) if values else math.nan for key, values in defined.items()}
        means.append({"subject": name, "site": of_subject[0]["site"], **averages})
    return means


def summarise_scores(rows: Sequence[SubjectScores]) -> dict[str, Any]:
    """What :func:`scp_models.evaluation.metrics.summarise` gives of the subjects; with several classes of their means
    over the classes, and under ``classes`` of each.
    """
    if not rows or "class" not in rows[0]:
        return summarise(rows)
    names = dict.fromkeys(row["class"] for row in rows)
    of_classes = {name: summarise([row for row in rows if row["class"] == name]) for name in names}
    return {**summarise(mean_over_classes(rows)), "classes": of_classes}


def write_scores(rows: Sequence[SubjectScores], folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``scores.csv`` and ``summary.json``.

    The table has one row per subject, or per subject and class; an undefined score is an empty cell.

    Returns:
        The summary: ``about``, and what :func:`summarise_scores` gives.

    Raises:
        UserError: the folder cannot be written.
    """
    summary = {**about, **summarise_scores(rows)}
    columns = CLASS_COLUMNS if "class" in rows[0] else COLUMNS
    with atomic_path(folder / "scores.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _cell(row[key]) for key in columns})
    with atomic_path(folder / "summary.json") as path:
        path.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def read_scores(path: Path, of_class: str | None = None) -> dict[str, dict[str, float]]:
    """Scores of a ``scores.csv`` by subject; undefined ones are absent.

    Args:
        path: the file.
        of_class: one of the classes that it has; None: their mean, subject by subject, or the only scores.

    Raises:
        UserError: not such a file, or one without that class.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
        for row in rows:
            row.update({key: float(row[key]) if row[key] != "" else math.nan for key in METRICS})
        classes = list(dict.fromkeys(row["class"] for row in rows if "class" in row))
        if of_class is not None:
            if of_class not in classes:
                raise UserError(f"{path}: expected a class among {', '.join(classes) or 'none'}, got {of_class!r}")
            rows = [row for row in rows if row["class"] == of_class]
        elif classes:
            rows = mean_over_classes(rows)
        return {row["subject"]: {key: row[key] for key in METRICS if not math.isnan(row[key])} for row in rows}
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: expected a scores.csv of scp-models evaluate ({error})") from error


def paired_scores(a: Path, b: Path, metric: str, of_class: str | None = None) -> tuple[list[float], list[float]]:
    """One metric of two tables, subject by subject, of the subjects for whom both have it.

    Args:
        a: a table.
        b: another.
        metric: the score.
        of_class: see :func:`read_scores`.

    Raises:
        UserError: no such files or metric, tables of different subjects, or fewer than two subjects in common.
    """
    if metric not in METRICS:
        raise UserError(f"--metric: expected one of {', '.join(METRICS)}, got {metric!r}")
    first, second = read_scores(a, of_class), read_scores(b, of_class)
    matches = match_names(first, second, str(b))
    if not len(matches) == len(first) == len(second):
        raise UserError(f"{b}: expected the subjects of {a}, got others")
    second = {name: second[matches[name]] for name in first}
    common = [subject for subject in sorted(first) if metric in first[subject] and metric in second[subject]]
    if len(common) < 2:
        raise UserError(f"{a}: expected at least two subjects for whom {metric} is defined, found {len(common)}")
    return [first[subject][metric] for subject in common], [second[subject][metric] for subject in common]


def headline(summary: Mapping[str, Any]) -> str:
    """A summary's means, each with the number of subjects that it is of where that is not all: one line, and one for
    each class if there are several.
    """
    lines = [f"{summary['subjects']} subjects: {_means(summary)}"]
    if classes := summary.get("classes"):
        lines = [f"{lines[0]} (means over {len(classes)} classes)"]
        lines += [f"  {name}: {_means(of_class)}" for name, of_class in classes.items()]
    return "\n".join(lines)


def _means(summary: Mapping[str, Any]) -> str:
    subjects, texts = summary["subjects"], []
    for name, key in _HEADLINE.items():
        mean, n = summary[key]["mean"], summary[key]["n"]
        text = "undefined" if mean is None else f"{mean:.4f}{' mm' if key == 'hd95_mm' else ''}"
        # A network that finds nothing has an HD95 only where there is nothing to find, and it is 0 there.
        texts.append(f"{name} {text}" + (f" ({n} of {subjects} subjects)" if 0 < n < subjects else ""))
    return ", ".join(texts)


def _cell(value: Any) -> Any:
    return "" if isinstance(value, float) and math.isnan(value) else value
