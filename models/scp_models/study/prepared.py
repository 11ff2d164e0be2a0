"""What is made once for all runs of a study: phantoms, the division of the subjects, preprocessed slices."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scp_models.data.duplicates import describe_duplicates
from scp_models.data.find import find_subjects
from scp_models.data.sampling import make_sampler
from scp_models.data.slices import SliceCache, SliceDataset, note_volumes, source_files
from scp_models.data.splits import PARTS, split_subjects
from scp_models.data.subjects import Subject
from scp_models.data.tasks import Task, get_task
from scp_models.errors import Failures, UserError
from scp_models.files import atomic_path
from scp_models.notes import note
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
    subjects: tuple[Subject, ...]
    """Those that could be read."""
    sites: Mapping[str, int]
    """Number of subjects by site."""
    are_phantoms: bool

    def find_subjects(self, task: Task) -> list[Subject]:
        """Those that could be read, as the task sees them."""
        names = {subject.name for subject in self.subjects}
        return [s for s in find_subjects(self.root, task, failures=Failures()) if s.name in names]

    def digests(self) -> dict[str, str]:
        """Of the contents of every subject's files, wherever they lie; phantoms, which are their seed's, have none."""
        if self.are_phantoms:  # made again, compression may write other bytes
            return {subject.name: "" for subject in self.subjects}
        return {subject.name: _digest(subject) for subject in self.subjects}


def prepare_data(
    data: StudyData, folder: Path | None, out: Path, display: Display, sampling: str | None = None
) -> Prepared:
    """Make the phantoms that are missing, preprocess what the cache does not have, divide the subjects.

    Subjects that cannot be read are said and left out.

    Args:
        data: the data set.
        folder: of its files, unless it is of phantoms.
        out: the study's folder.
        display: told what is being done.
        sampling: of the slices of an epoch, which is described.

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
    failures = Failures(display.say)
    labelled = [subject for subject in find_subjects(root, task, failures=failures) if subject.label is not None]
    splits = divide(data, task, labelled, root)
    cache = SliceCache(out / "cache", task)
    display.say(f"{data.name}: preprocessing {len(labelled)} subjects")
    subjects = []
    for subject in labelled:
        with failures.skip(subject.name):
            cache.prepare(subject)
            subjects.append(subject)
    if failures.messages:
        display.say(f"{data.name}: {failures.summary(len(subjects) + len(failures.messages))}")
        splits = divide(data, task, subjects, root)
    note_volumes(cache, subjects, str(root), "a study on more pixels, or larger ones, sees more")
    _describe_splits(data, subjects, splits, cache, sampling, display)
    sites = [subject.site or "" for subject in subjects]
    counts = {site: sites.count(site) for site in sorted(set(sites))}
    return Prepared(root, splits, out / "cache", tuple(subjects), counts, data.phantoms is not None)


def _digest(subject: Subject) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in source_files(subject):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _describe_splits(
    data: StudyData,
    subjects: Sequence[Subject],
    splits: Sequence[Mapping[str, Sequence[str]]],
    cache: SliceCache,
    sampling: str | None,
    display: Display,
) -> None:
    """Say what an epoch is, and who is tested on a scan that another part has."""
    by_name = {subject.name: subject for subject in subjects}
    for k, split in enumerate(splits):
        parts = {part: [by_name[name] for name in names] for part, names in split.items()}
        dataset = SliceDataset(cache, parts["training"])
        fold = f", fold {k + 1}" if data.folds else ""
        display.say(f"{data.name}{fold}: {make_sampler(sampling, dataset, 0).describe()}")
        for line in describe_duplicates(parts, "one of them is to be left out"):
            note(line)


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


def write_splits(prepared: Mapping[str, Prepared], folder: Path) -> None:
    """Who is trained on and tested, by data set, in ``splits.json``; of what files, in ``sources.json``.

    Raises:
        UserError: it was written before, with others: a study on one division, or on one reference, and on another
            would be none.
    """
    path = folder / "splits.json"
    splits: dict[str, Any] = {name: [dict(split) for split in p.splits] for name, p in prepared.items()}
    before = _written(path)
    if changed := [name for name in splits if before.get(name, splits[name]) != splits[name]]:
        raise UserError(
            f"{path}: expected the subjects of {changed[0]} as they were, some came or went (another --out)"
        )
    of_files = folder / "sources.json"
    sources: dict[str, Any] = {name: p.digests() for name, p in prepared.items()}
    for name, known in _written(of_files).items():
        now = sources.setdefault(name, known)
        if changed := [subject for subject in known if now.get(subject) != known[subject]]:
            raise UserError(
                f"{of_files}: expected the files of {name} as they were, {changed[0]}'s changed (another --out)"
            )
    for file, content in ((path, {**before, **splits}), (of_files, sources)):
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")


def _written(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return content
