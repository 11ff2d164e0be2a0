"""Which subjects train, validate and test."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scp_models.data.subjects import Subject
from scp_models.errors import UserError

PARTS = ("training", "validation", "test")


def split_subjects(
    subjects: Sequence[Subject], shares: Sequence[float], seed: int, where: str
) -> dict[str, list[Subject]]:
    """Divide subjects at random into ``training``, ``validation`` and ``test``.

    Args:
        subjects: all of them; a division that the data set itself makes (with validation or test references) is kept
        instead.
        shares: three numbers of subjects, or three fractions; scaled to the subjects there are, each part getting at
        least one.
        seed: of the division, which does not depend on the order of ``subjects``.
        where: what to name in an error.

    Raises:
        UserError: fewer subjects with a reference than parts that need one.
    """
    labelled = sorted((s for s in subjects if s.label is not None), key=lambda s: s.name)
    published = {part: [s for s in labelled if s.partition == part] for part in PARTS}
    if all(published[part] for part in PARTS):
        return published
    if len(shares) != 3 or min(shares) <= 0:
        raise UserError(f"split: expected three positive shares (training, validation, test), got {tuple(shares)}")
    if len(labelled) < 3:
        raise UserError(
            f"{where}: expected at least 3 subjects with a reference (one for each split), found {len(labelled)}"
        )
    total = float(sum(shares))
    counts = [max(1, round(len(labelled) * share / total)) for share in shares[1:]]
    while sum(counts) > len(labelled) - 1:
        counts[int(np.argmax(counts))] -= 1
    order = np.random.default_rng(seed).permutation(len(labelled))
    bounds = np.cumsum([len(labelled) - sum(counts), *counts])
    return {
        part: [labelled[k] for k in sorted(chosen)]
        for part, chosen in zip(PARTS, np.split(order, bounds[:-1]), strict=True)
    }


def read_split(path: Path, subjects: Sequence[Subject]) -> dict[str, list[Subject]]:
    """A division by name, from a JSON object of three lists: ``training``, ``validation``, ``test``.

    Raises:
        UserError: not such a file, an unknown subject, one that is in two parts or has no reference, an empty part.
    """
    try:
        content = json.loads(path.read_text())
        names = {part: [str(name) for name in content[part]] for part in PARTS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: expected a JSON object with the lists {', '.join(PARTS)} ({error})") from error
    by_name = {s.name: s for s in subjects}
    seen: set[str] = set()
    for part, members in names.items():
        if not members:
            raise UserError(f"{path}: expected at least one subject in {part!r}, the list is empty")
        for name in members:
            if name not in by_name or by_name[name].label is None:
                raise UserError(f"{path}: expected names of subjects with a reference, got {name!r} in {part!r}")
            if name in seen:
                raise UserError(f"{path}: expected every subject once, {name!r} is there twice")
            seen.add(name)
    return {part: [by_name[name] for name in members] for part, members in names.items()}
