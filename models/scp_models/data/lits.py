"""LiTS on disk: ``volume-N.nii`` and ``segmentation-N.nii`` in ``Training Batch 1`` and ``2``, or anywhere below the
root: other releases of it have the segmentations in a folder of their own.
"""

import re
from dataclasses import replace
from pathlib import Path

from scp_models.data.subjects import Subject, folders
from scp_models.data.tasks import LabelAffine
from scp_models.data.volume import is_clutter
from scp_models.data.volume_files import ENDINGS, volume_stem
from scp_models.errors import UserError
from scp_models.notes import first_few, note

_VOLUME = re.compile(r"(test-)?volume-(\d+)\.nii(\.gz)?$")
# Volumes whose header does not orient them, and a segmentation whose affine is another than its volume's.
_WRONG_AFFINES = frozenset({*range(28, 48), 53})
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
    numbers = {match[2] for match, _ in volumes if not match[1]}
    if alone := [file.name for number, files in sorted(labels.items()) if number not in numbers for file in files]:
        note(f"{root}: {len(alone)} segmentations have no volume and are left out: {first_few(alone)}")
    return subjects


def single_volume(path: Path) -> Subject:
    """Any volume; its name is the file's without its ending, its label LiTS's if it is called so.

    Raises:
        UserError: the name is not a volume's.
    """
    stem = volume_stem(path)
    if is_clutter(path) or not stem or not (path.is_dir() or path.name.endswith(ENDINGS)):
        raise UserError(
            f"{path}: expected a NIfTI file (.nii, .nii.gz) or another volume ({', '.join(ENDINGS[2:])}, a folder of "
            "DICOM slices), a data set or a datalist (.json)"
        )
    match = _VOLUME.match(path.name)
    if match is None:
        return Subject(stem, (path,), None)
    if match[1]:
        return Subject(stem, (path,), None, site=path.parent.name, partition="test")
    labels = [path.with_name(f"segmentation-{match[2]}.nii{suffix}") for suffix in ("", ".gz")]
    label = next((file for file in labels if file.is_file()), None)
    wrong: LabelAffine | None = "image" if int(match[2]) in _WRONG_AFFINES else None
    return Subject(stem, (path,), label, site=path.parent.name, label_affine=wrong)
