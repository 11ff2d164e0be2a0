"""Which subjects train, validate and test."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from scp_models.data.names import match_names
from scp_models.data.subjects import Subject
from scp_models.errors import UserError
from scp_models.notes import first_few, note

PARTS = ("training", "validation", "test")


def note_unlabelled(subjects: Sequence[Subject], where: str, kind: str = "") -> None:
    """Name those that have no reference, where one is expected: they are left out.

    Args:
        subjects: of one kind.
        where: what to name.
        kind: an adjective.
    """
    unlabelled = [s.name for s in subjects if s.label is None]
    if unlabelled:
        whom = f"{kind} subjects" if kind else "subjects"
        note(f"{where}: {len(unlabelled)} of {len(subjects)} {whom} have no label: {first_few(unlabelled)}")


def split_subjects(
    subjects: Sequence[Subject], shares: Sequence[float], seed: int, where: str
) -> dict[str, list[Subject]]:
    """Divide subjects into ``training``, ``validation`` and ``test``.

    What the data set itself publishes as validation or test (with references) stays that, and nothing of it trains. A
    part that it does not publish is drawn at random from the other subjects, in the proportion of their shares.

    Args:
        subjects: all of them.
        shares: three numbers of subjects, or three fractions; scaled to the subjects there are, each part getting at
            least one.
        seed: of the division, which does not depend on the order of ``subjects``.
        where: what to name in an error.

    Raises:
        UserError: fewer subjects with a reference than parts that need one.
    """
    if len(shares) != 3 or min(shares) <= 0:
        raise UserError(f"split: expected three positive shares (training, validation, test), got {tuple(shares)}")
    note_unlabelled([s for s in subjects if s.partition not in PARTS], where)
    for part in PARTS[1:]:
        note_unlabelled([s for s in subjects if s.partition == part], where, part)
    labelled = sorted((s for s in subjects if s.label is not None), key=lambda s: s.name)
    published = {part: [s for s in labelled if s.partition == part] for part in PARTS[1:]}
    pool = [s for s in labelled if s.partition not in PARTS[1:]]
    drawn = [k for k, part in enumerate(PARTS) if not published.get(part)]
    if len(pool) < len(drawn):
        held = "".join(f", not counting {len(members)} of {part}/" for part, members in published.items() if members)
        raise UserError(
            f"{where}: expected at least {len(drawn)} subjects with a reference (one for each of "
            f"{', '.join(PARTS[k] for k in drawn)}), found {len(pool)}{held}"
        )
    total = float(sum(shares[k] for k in drawn))
    counts = [max(1, round(len(pool) * shares[k] / total)) for k in drawn[1:]]
    while sum(counts) > len(pool) - 1:
        counts[int(np.argmax(counts))] -= 1
    order = np.random.default_rng(seed).permutation(len(pool))
    bounds = np.cumsum([len(pool) - sum(counts), *counts])
    chosen = {PARTS[k]: sorted(part) for k, part in zip(drawn, np.split(order, bounds[:-1]), strict=True)}
    return {part: [pool[k] for k in chosen[part]] if part in chosen else published[part] for part in PARTS}


def describe_split(division: Mapping[str, Sequence[Subject]], source: str) -> str:
    """One line: how many subjects each part has, and where they come from.

    Args:
        division: the three parts.
        source: what divided the subjects that the data set itself does not.
    """
    parts = []
    for part, members in division.items():
        count = sum(member.partition == part for member in members)
        published = part != "training" and count == len(members)
        parts.append(f"{part} {len(members)} ({'published' if published else source})")
    return ", ".join(parts)


def read_split(path: Path, subjects: Sequence[Subject]) -> dict[str, list[Subject]]:
    """A division by name, from a JSON object of three lists: ``training``, ``validation``, ``test``.

    Raises:
        UserError: not such a file, an unknown subject, one that is in two parts or has no reference, an empty part.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {part: [str(name) for name in content[part]] for part in PARTS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: expected a JSON object with the lists {', '.join(PARTS)} ({error})") from error
    by_name = {s.name: s for s in subjects}
    matches = match_names([name for members in names.values() for name in members], by_name, str(path))
    seen: set[str] = set()
    for part, members in names.items():
        if not members:
            raise UserError(f"{path}: expected at least one subject in {part!r}, the list is empty")
        for name in members:
            if name not in matches or by_name[matches[name]].label is None:
                raise UserError(f"{path}: expected names of subjects with a reference, got {name!r} in {part!r}")
            if name in seen:
                raise UserError(f"{path}: expected every subject once, {name!r} is there twice")
            seen.add(name)
    return {part: [by_name[matches[name]] for name in members] for part, members in names.items()}
