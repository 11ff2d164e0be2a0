"""nnU-Net's raw layout: ``dataset.json``, ``imagesTr`` and ``imagesTs`` with ``<case>_0000<ending>``, ``labelsTr``."""

import os
from pathlib import Path
from typing import Any

from scp_models.data.datalist import must_exist, read_json, with_distinct_names
from scp_models.data.description import channel_names
from scp_models.data.itk_files import is_dicom_folder
from scp_models.data.subjects import Subject
from scp_models.data.volume import is_clutter
from scp_models.data.volume_files import volume_stem
from scp_models.errors import Failures, UserError


def is_images_folder(root: Path) -> bool:
    """Whether ``root`` is a folder of nnU-Net's images by itself, what ``nnUNetv2_predict -i`` takes."""
    return root.is_dir() and not (root / "dataset.json").is_file() and any(root.glob("*_0000*"))


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
        first = next(file for file in sorted(root.glob("*_0000*")) if not is_clutter(file))
        ending = first.name.removeprefix(volume_stem(first))
        return _in_folder(root.parent / "dataset.json", root.name, modalities, ending, failures)
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
        subjects += _in_folder(description, "imagesTr", len(channels), ending, failures)
    subjects += _in_folder(description, "imagesTs", len(channels), ending, failures)
    return with_distinct_names(subjects)


def _in_folder(description: Path, folder: str, channels: int, ending: str, failures: Failures) -> list[Subject]:
    images = description.parent / folder
    partition = "training" if folder == "imagesTr" else "test"
    subjects = []
    for first in sorted(images.glob("*_0000*")):
        end = "" if is_dicom_folder(first) else ending
        if is_clutter(first) or not first.name.endswith(f"_0000{end}"):
            continue
        case = first.name.removesuffix(f"_0000{end}")
        files = tuple(first.with_name(f"{case}_{k:04d}{end}") for k in range(channels))
        labels = description.parent / folder.replace("images", "labels")
        # Some converters give a label the number of a channel.
        names = (labels / f"{case}{ending}", labels / f"{case}_0000{ending}")
        with failures.skip(case):
            must_exist(description, files)
            subjects.append(Subject(case, files, next((f for f in names if f.is_file()), None), partition=partition))
    return subjects


def _listed(description: Path, case: str, entry: Any, channels: int) -> Subject:
    images = entry.get("images") if isinstance(entry, dict) else None
    if not isinstance(images, list) or len(images) != channels or not all(isinstance(f, str) for f in images):
        raise UserError(f"{description}: dataset[{case!r}] expected a list 'images' of {channels} paths")
    label = entry.get("label")
    if label is not None and not isinstance(label, str):
        raise UserError(f"{description}: dataset[{case!r}] expected a 'label' that is one path")
    files = tuple(description.parent / os.path.expandvars(file) for file in images)
    reference = description.parent / os.path.expandvars(label) if label else None
    must_exist(description, files if reference is None else (*files, reference))
    return Subject(case, files, reference, partition="training")
