"""LiTS on disk: ``volume-N.nii`` and ``segmentation-N.nii`` in ``Training Batch 1`` and ``2`` (or anywhere below the
root).
"""

import re
from pathlib import Path

from scp_models.data.subjects import Subject

_VOLUME = re.compile(r"volume-(\d+)\.nii(\.gz)?$")


def find_subjects(root: Path) -> list[Subject]:
    """All volumes below ``root`` (or ``root`` itself, if it is one), by number; a label is the ``segmentation-N``
    beside it.
    """
    files = [root] if root.is_file() else sorted(root.rglob("volume-*.nii*"))
    found = [(int(match[1]), file) for file in files if (match := _VOLUME.search(file.name))]
    subjects = []
    for number, file in sorted(found):
        labels = [file.with_name(f"segmentation-{number}.nii{suffix}") for suffix in ("", ".gz")]
        label = next((path for path in labels if path.is_file()), None)
        subjects.append(Subject(f"volume-{number}", (file,), label, site=file.parent.name))
    return subjects
