"""Data sets described by a file: MONAI/Decathlon datalists, and nnU-Net's raw folders."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from scp_models.data.subjects import Subject
from scp_models.errors import UserError

_PARTITIONS = {"training": "training", "validation": "validation", "test": "test", "testing": "test"}

FILES = ("datalist.json", "dataset.json")
"""Where a data set keeps its datalist; the second is the Decathlon's name."""


def datalist_file(root: Path) -> Path:
    """The datalist at ``root``: itself, or the one in that folder.

    Raises:
        UserError: the folder has none.
    """
    if root.is_file():
        return root
    files = [root / name for name in FILES if (root / name).is_file()]
    if not files:
        raise UserError(f"{root}: expected a datalist, {' or '.join(FILES)}; there is none")
    return files[0]


def find_subjects(path: Path, modalities: int = 1) -> list[Subject]:
    """Subjects of a datalist JSON: lists ``training``, ``validation`` and ``test`` of ``{"image": …, "label": …}``.

    Paths are relative to the JSON. An image is one file (with the modalities along its fourth axis if there are
    several) or a list of one file per modality; an entry that is a bare path has no label.

    Raises:
        UserError: not JSON, no such list, an entry without an image, a file that is missing.
    """
    content = _read_json(path)
    lists = {name: content[name] for name in _PARTITIONS if isinstance(content.get(name), list)}
    if not lists:
        raise UserError(
            f"{path}: expected a datalist with a list 'training', 'validation' or 'test' "
            "(or nnU-Net's images, whose names end in _0000, in imagesTr/ beside it)"
        )
    subjects = []
    for name, entries in lists.items():
        for k, entry in enumerate(entries):
            images, label = _entry(path, f"{name}[{k}]", entry)
            if len(images) not in (1, modalities):
                raise UserError(
                    f"{path}: {name}[{k}] expected {modalities} images (one per modality), got {len(images)}"
                )
            subjects.append(Subject(_stem(images[0]), images, label, partition=_PARTITIONS[name]))
    return _with_distinct_names(subjects)


def find_nnunet_subjects(root: Path) -> list[Subject]:
    """Subjects of nnU-Net's raw layout: ``imagesTr/<case>_0000<ending>``, ``labelsTr/<case><ending>``, ``imagesTs``.

    Raises:
        UserError: ``dataset.json`` is missing or says no channels, or a channel's file is missing.
    """
    description = _read_json(root / "dataset.json")
    channels = description.get("channel_names") or description.get("modality")
    if not channels:
        raise UserError(f"{root / 'dataset.json'}: expected 'channel_names'")
    ending = description.get("file_ending", ".nii.gz")
    subjects = []
    for folder, partition in (("imagesTr", "training"), ("imagesTs", "test")):
        for first in sorted((root / folder).glob(f"*_0000{ending}")):
            case = first.name[: -len(f"_0000{ending}")]
            images = tuple(first.with_name(f"{case}_{k:04d}{ending}") for k in range(len(channels)))
            _must_exist(root / "dataset.json", images)
            label = root / folder.replace("images", "labels") / f"{case}{ending}"
            subjects.append(Subject(case, images, label if label.is_file() else None, partition=partition))
    return _with_distinct_names(subjects)


def _with_distinct_names(subjects: list[Subject]) -> list[Subject]:
    """Subjects with as many of their folders before their names as tell them apart: none, if the names do."""
    named, depth = subjects, 0
    deepest = max((len(subject.images[0].parts) for subject in subjects), default=0)
    while len({subject.name for subject in named}) < len(named) and depth < deepest:
        depth += 1
        named = [replace(s, name="_".join([*s.images[0].parts[-depth - 1 : -1], s.name])) for s in subjects]
    return named


def _entry(path: Path, where: str, entry: Any) -> tuple[tuple[Path, ...], Path | None]:
    label = None
    if isinstance(entry, dict):
        image = entry.get("image")
        if entry.get("label"):
            label = path.parent / entry["label"]
    else:
        image = entry
    files = [image] if isinstance(image, str) else image
    if not files or not all(isinstance(file, str) for file in files):
        raise UserError(f"{path}: {where} expected an 'image' (a path or a list of paths)")
    images = tuple(path.parent / file for file in files)
    _must_exist(path, images if label is None else (*images, label))
    return images, label


def _must_exist(source: Path, files: tuple[Path, ...]) -> None:
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: expected a file, as {source} says; there is none")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: expected JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")
