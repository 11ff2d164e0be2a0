"""One scan under two names: it would train and test at once."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from scp_models.data.subjects import Subject

_CHUNK = 1 << 20


def describe_duplicates(division: Mapping[str, Sequence[Subject]], hint: str) -> list[str]:
    """One line per pair of subjects, of different parts of a division, whose first images are the same files.

    Args:
        division: subjects by part.
        hint: what to do about them.

    Raises:
        OSError: an image cannot be read.
    """
    by_size: dict[int, list[tuple[str, Subject]]] = defaultdict(list)
    for part, members in division.items():
        for subject in members:
            if subject.images[0].is_file():
                by_size[subject.images[0].stat().st_size].append((part, subject))
    lines = []
    for alike in by_size.values():
        by_content: dict[str, tuple[str, Subject]] = {}
        for part, subject in alike if len(alike) > 1 else ():
            other_part, other = by_content.setdefault(_digest(subject.images[0]), (part, subject))
            if other_part != part:
                lines.append(
                    f"{subject.images[0]}: {subject.name} ({part}) is the same image as {other.name} ({other_part}): "
                    f"scores of it say nothing about other people; {hint}"
                )
    return lines


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()
