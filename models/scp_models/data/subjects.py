"""One subject: its image files and its reference segmentation; and the folders in which subjects are looked for."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scp_models.data.tasks import LabelAffine
from scp_models.data.volume import is_clutter
from scp_models.notes import note


@dataclass(frozen=True)
class Subject:
    """What a reader finds of one subject on disk; nothing is opened before it is needed."""

    name: str
    """Unique in its data set; also the stem of the subject's prediction."""
    images: tuple[Path, ...]
    """One file per modality, in the task's order; or one file that holds all modalities along its fourth axis."""
    label: Path | None
    """Reference segmentation; None where the data set publishes none."""
    site: str | None = None
    """Scanner or centre, where the layout says so."""
    partition: str | None = None
    """``training``, ``validation`` or ``test``, where the data set itself divides its subjects."""
    label_affine: LabelAffine | None = None
    """Which affine of a label counts, where it is known of this subject; None: as the task says."""


def folders(root: Path) -> Iterator[Path]:
    """``root`` and all folders below it that are not hidden, each once; links are followed, since data sets are often
    linked together. Of one that cannot be listed there is a note.
    """
    seen = set()

    def say(error: OSError) -> None:
        note(f"{error.filename}: cannot be listed ({error.strerror}): nobody in it is found")

    for folder, below, _ in os.walk(root, followlinks=True, onerror=say):
        below[:] = sorted(name for name in below if not is_clutter(Path(name)))
        if (real := os.path.realpath(folder)) in seen:
            below.clear()
            continue
        seen.add(real)
        yield Path(folder)
