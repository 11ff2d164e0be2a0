"""LiTS on disk: ``volume-N.nii`` and ``segmentation-N.nii`` in ``Training Batch 1`` and ``2``, or anywhere below the
root: other releases of it have the segmentations in a folder of their own.
"""

import re
from dataclasses import replace
from pathlib import Path

from scp_models.data.subjects import Subject, folders
from scp_models.errors import UserError

_VOLUME = re.compile(r"(test-)?volume-(\d+)\.nii(\.gz)?$")
_LABEL = re.compile(r"segmentation-(\d+)\.nii(\.gz)?$")


def find_subjects(root: Path) -> list[Subject]:
    """All volumes below ``root``, training before test, by number.

    A label is the ``segmentation-N`` beside it, or else the only one below ``root``.

    Raises:
        UserError: several segmentations have the number of a volume, and none lies beside it.
    """
    files = [file for folder in folders(root) for file in folder.glob("*.nii*")]
    volumes = [(match, file) for file in files if (match := _VOLUME.match(file.name))]
    labels: dict[str, list[Path]] = {}
    for file in files:
        if match := _LABEL.match(file.name):
            labels.setdefault(match[1], []).append(file)
    subjects = []
    for match, file in sorted(volumes, key=lambda v: (bool(v[0][1]), int(v[0][2]), v[1])):
        subject = single_volume(file)
        if subject.label is None and subject.partition is None and (of_number := labels.get(match[2])):
            if len(of_number) > 1:
                raise UserError(f"{file}: expected one segmentation, got {', '.join(map(str, of_number))}")
            subject = replace(subject, label=of_number[0])
        subjects.append(subject)
    return subjects


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
