"""LiTS on disk: ``volume-N.nii`` and ``segmentation-N.nii`` in ``Training Batch 1`` and ``2`` (or anywhere below the
root).
"""

import re
from pathlib import Path

from scp_models.data.subjects import Subject, folders
from scp_models.errors import UserError

_VOLUME = re.compile(r"(test-)?volume-(\d+)\.nii(\.gz)?$")


def find_subjects(root: Path) -> list[Subject]:
    """All volumes below ``root``, training before test, by number; a label is the ``segmentation-N`` beside it."""
    files = (file for folder in folders(root) for file in folder.glob("*volume-*.nii*"))
    found = [(match, file) for file in files if (match := _VOLUME.match(file.name))]
    return [single_volume(file) for _, file in sorted(found, key=lambda f: (bool(f[0][1]), int(f[0][2]), f[1]))]


def single_volume(file: Path) -> Subject:
    """Any volume; its name is the file's, without ``.nii`` or ``.nii.gz``, its label LiTS's if it is called so.

    Raises:
        UserError: the name is not a NIfTI file's.
    """
    stem = file.name.removesuffix(".gz").removesuffix(".nii")
    if not file.name.endswith((".nii", ".nii.gz")) or not stem:
        raise UserError(f"{file}: expected a NIfTI file (.nii, .nii.gz), a folder or a datalist (.json)")
    match = _VOLUME.match(file.name)
    if match is None:
        return Subject(stem, (file,), None)
    if match[1]:
        return Subject(stem, (file,), None, site=file.parent.name, partition="test")
    labels = [file.with_name(f"segmentation-{match[2]}.nii{suffix}") for suffix in ("", ".gz")]
    label = next((path for path in labels if path.is_file()), None)
    return Subject(stem, (file,), label, site=file.parent.name)
