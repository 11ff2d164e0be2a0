"""What is made once for all runs of a study: phantoms, the division of the subjects, preprocessed slices."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scp_models.data.find import find_subjects
from scp_models.data.slices import SliceCache
from scp_models.data.splits import PARTS, split_subjects
from scp_models.data.subjects import Subject
from scp_models.data.tasks import Task, get_task
from scp_models.errors import UserError
from scp_models.phantoms import generate_lits, generate_wmh
from scp_models.study.design import StudyData
from scp_models.study.progress import Display

SPLIT_SEED = 0
"""Of the divisions: one for all training seeds, so that what these differ in is not who is tested."""


@dataclass(frozen=True)
class Prepared:
    """A data set whose slices are in the cache."""

    root: Path
    splits: tuple[Mapping[str, Sequence[str]], ...]
    """One per fold, or one: names by part."""
    cache: Path
    subjects: int
    sites: Mapping[str, int]
    """Number of subjects by site."""


def prepare_data(data: StudyData, folder: Path | None, out: Path, display: Display) -> Prepared:
    """Make the phantoms that are missing, divide the subjects, preprocess what the cache does not have.

    Args:
        data: the data set.
        folder: of its files, unless it is of phantoms.
        out: the study's folder.
        display: told what is being done.

    Raises:
        UserError: data that cannot be read, or too few subjects.
    """
    if data.phantoms is None:
        if folder is None:
            raise UserError(f"--data: expected the folder of {data.name}, none was given")
        root = folder
    else:
        root, phantoms = out / "data" / data.phantoms.slug, data.phantoms
        display.say(f"{data.name}: {phantoms.subjects} phantoms")
        generate = {"wmh": generate_wmh, "lits": generate_lits}[phantoms.kind]
        if not (root / "complete").is_file():
            generate(root, phantoms.subjects, phantoms.seed, progress=False, **phantoms.options)  # type: ignore[operator]
            (root / "complete").touch()
    task = get_task(data.task, data.roi_size, data.task_options)
    subjects = [subject for subject in find_subjects(root, task) if subject.label is not None]
    splits = divide(data, task, subjects, root)
    cache = SliceCache(out / "cache", task)
    display.say(f"{data.name}: preprocessing {len(subjects)} subjects")
    for subject in subjects:
        cache.prepare(subject)
    sites = [subject.site or "" for subject in subjects]
    counts = {site: sites.count(site) for site in sorted(set(sites))}
    return Prepared(root, splits, out / "cache", len(subjects), counts)


def divide(data: StudyData, task: Task, subjects: Sequence[Subject], where: Path) -> tuple[dict[str, list[str]], ...]:
    """Names by part: of the one split, or of each fold."""
    if data.folds:
        splits = stratified_folds(subjects, data.folds, data.validation, SPLIT_SEED, str(where))
    else:
        parts = split_subjects(subjects, data.split or task.split, SPLIT_SEED, str(where))
        splits = ({part: [subject.name for subject in members] for part, members in parts.items()},)
    for split in splits:
        split["training"] = _some(split["training"], data.training_subjects, data.name)
    return splits


def _some(names: list[str], count: int | None, where: str) -> list[str]:
    """The first so many in a random order: fewer of them are a part of more."""
    if count is None:
        return names
    if not 0 < count <= len(names):
        raise UserError(f"{where}: expected at most {len(names)} training subjects, {count} are asked for")
    order = np.random.default_rng(SPLIT_SEED).permutation(len(names))
    return sorted(names[k] for k in order[:count])


def stratified_folds(
    subjects: Sequence[Subject], folds: int, validation: int, seed: int, where: str
) -> tuple[dict[str, list[str]], ...]:
    """Cross-validation: every subject is tested once, and each fold tests about as many of every site.

    The subjects of a site are dealt to the folds in a random order, and dealing goes on from site to site. Of each
    fold's other subjects, ``validation`` are set aside, evenly over the sites; they choose the threshold.

    Args:
        subjects: all of them, with references.
        folds: at least 2.
        validation: at least 1.
        seed: of the order.
        where: what to name in an error.

    Raises:
        UserError: fewer subjects than would leave one for each part.
    """
    if folds < 2 or validation < 1:
        raise UserError(f"--folds: expected at least 2 folds and 1 validation subject, got {folds} and {validation}")
    rng = np.random.default_rng(seed)
    dealt: list[Subject] = []
    for site in sorted({subject.site or "" for subject in subjects}):
        members = sorted((s for s in subjects if (s.site or "") == site), key=lambda subject: subject.name)
        dealt += [members[k] for k in rng.permutation(len(members))]
    if len(dealt) < folds or len(dealt) - (-(-len(dealt) // folds)) <= validation:
        raise UserError(
            f"{where}: expected more subjects than {len(dealt)} for {folds} folds with {validation} to validate"
        )
    result = []
    for fold in range(folds):
        tested = dealt[fold::folds]
        others = [subject for k, subject in enumerate(dealt) if k % folds != fold]
        held = {int((k + 0.5) * len(others) / validation) for k in range(validation)}
        parts = (
            [subject for k, subject in enumerate(others) if k not in held],
            [subject for k, subject in enumerate(others) if k in held],
            tested,
        )
        result.append({part: sorted(s.name for s in members) for part, members in zip(PARTS, parts, strict=True)})
    return tuple(result)


def write_splits(prepared: Mapping[str, Prepared], path: Path) -> None:
    """For people: who was trained on and tested, by data set."""
    path.write_text(json.dumps({name: list(p.splits) for name, p in prepared.items()}, indent=1) + "\n")
