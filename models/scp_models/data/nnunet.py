"""nnU-Net's raw layout: ``dataset.json``, ``imagesTr`` and ``imagesTs`` with ``<case>_0000<ending>``, ``labelsTr``."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from scp_models.data.datalist import FILES, complete, read_json, with_distinct_names
from scp_models.data.description import channel_names
from scp_models.data.itk_files import is_dicom_folder
from scp_models.data.subjects import Subject
from scp_models.data.volume import is_clutter
from scp_models.data.volume_files import ENDINGS, volume_stem
from scp_models.errors import Failures, UserError
from scp_models.notes import first_few, note


def is_images_folder(root: Path) -> bool:
    """Whether ``root`` is a folder of nnU-Net's images by itself, what ``nnUNetv2_predict -i`` takes."""
    described = any((root / name).is_file() for name in FILES)
    return root.is_dir() and not described and has_images(root)


def has_images(folder: Path) -> bool:
    """Whether a volume lies there that is called as nnU-Net calls a case's first channel."""
    return any(volume_stem(volume).endswith("_0000") for volume in _volumes(folder))


def find_subjects(root: Path, modalities: int, failures: Failures | None = None) -> list[Subject]:
    """Subjects of nnU-Net's raw layout, or of one folder of its images.

    A channel may be a folder of DICOM slices, called as the file would be without its ending. The key ``dataset`` of
    version 2 lists the training cases by name instead, wherever their files are. ``failures`` takes cases whose files
    are missing; where it is None, the first one is an error. A folder by itself has ``modalities`` channels.

    Raises:
        UserError: ``dataset.json`` is missing or says no channels, or a channel's file is missing.
    """
    failures = failures or Failures(fail_fast=True)
    if is_images_folder(root):
        first = next(file for file in _volumes(root) if volume_stem(file).endswith("_0000"))
        ending = first.name.removeprefix(volume_stem(first))
        description = root.parent / "dataset.json"
        return complete(description, _in_folder(description, root.name, modalities, ending), failures)
    description = root / "dataset.json"
    content = read_json(description)
    channels = channel_names(content)
    if not channels:
        raise UserError(f"{description}: expected 'channel_names' by number, {{\"0\": name, ...}}")
    ending = content.get("file_ending", ".nii.gz")
    if not isinstance(ending, str):
        raise UserError(f"{description}: expected 'file_ending' such as .nii.gz, got {ending!r}")
    subjects = []
    if isinstance(content.get("dataset"), dict):
        for case, entry in content["dataset"].items():
            with failures.skip(case):
                subjects.append(_listed(description, case, entry, len(channels)))
    else:
        subjects += _in_folder(description, "imagesTr", len(channels), ending)
    subjects += _in_folder(description, "imagesTs", len(channels), ending)
    return complete(description, with_distinct_names(subjects), failures)


def _in_folder(description: Path, folder: str, channels: int, ending: str) -> list[Subject]:
    images = description.parent / folder
    partition = {"imagesTr": "training", "imagesTs": "test"}.get(folder)
    # No other folder has labels beside it.
    labels = description.parent / folder.replace("images", "labels") if partition else None
    subjects, used = [], set()
    for first in sorted(images.glob("*_0000*")):
        end = "" if is_dicom_folder(first) else ending
        if is_clutter(first) or not first.name.endswith(f"_0000{end}"):
            continue
        case = first.name.removesuffix(f"_0000{end}")
        files = tuple(first.with_name(f"{case}_{k:04d}{end}") for k in range(channels))
        # Some converters give a label the number of a channel.
        names = (labels / f"{case}{ending}", labels / f"{case}_0000{ending}") if labels else ()
        label = next((file for file in names if file.is_file()), None)
        used |= {*files, label}
        subjects.append(Subject(case, files, label, partition=partition))
    expected = f"<case>_0000{ending}" + (f" to _{channels - 1:04d}" if channels > 1 else "")
    _note_left_out(images, used, f"are no image of a case ({expected})")
    if labels:
        _note_left_out(labels, used, f"are no label of a case that has images (<case>{ending})")
    return subjects


def _volumes(folder: Path) -> Iterator[Path]:
    """The volumes in a folder, sorted: of any format, or folders of DICOM slices; none if there is no folder."""
    for path in sorted(folder.glob("*")):
        if not is_clutter(path) and ((path.name.endswith(ENDINGS) and path.is_file()) or is_dicom_folder(path)):
            yield path


def _note_left_out(folder: Path, used: Collection[Path | None], what: str) -> None:
    """Name the volumes that nothing is made of."""
    left = [path.name for path in _volumes(folder) if path not in used]
    if left:
        note(f"{folder}: {len(left)} volumes {what} and are left out: {first_few(left)}")


def _listed(description: Path, case: str, entry: Any, channels: int) -> Subject:
    if Path(case).name != case:  # a prediction's file is called after it
        raise UserError(f"{description}: dataset[{case!r}] expected a case's name without folders")
    images = entry.get("images") if isinstance(entry, dict) else None
    if not isinstance(images, list) or len(images) != channels or not all(isinstance(f, str) for f in images):
        raise UserError(f"{description}: dataset[{case!r}] expected a list 'images' of {channels} paths")
    label = entry.get("label")
    if label is not None and not isinstance(label, str):
        raise UserError(f"{description}: dataset[{case!r}] expected a 'label' that is one path")
    files = tuple(description.parent / os.path.expandvars(file) for file in images)
    reference = description.parent / os.path.expandvars(label) if label else None
    return Subject(case, files, reference, partition="training")
