"""Data sets described by a datalist, as MONAI and the Medical Segmentation Decathlon have it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from scp_models.data.itk_files import is_dicom_folder
from scp_models.data.subjects import Subject
from scp_models.data.volume import is_clutter
from scp_models.data.volume_files import volume_stem
from scp_models.errors import Failures, UserError

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


def lists_files(path: Path, content: Mapping[str, Any]) -> bool:
    """Whether the first image that a datalist names is there."""
    entries = [entry for name in _PARTITIONS if isinstance(content.get(name), list) for entry in content[name]]
    if not entries:
        return False
    image = entries[0].get("image") if isinstance(entries[0], dict) else entries[0]
    file = image[0] if isinstance(image, list) and image else image
    return isinstance(file, str) and file != "" and (path.parent / file).exists()


def find_subjects(path: Path, modalities: int = 1, failures: Failures | None = None) -> list[Subject]:
    """Subjects of a datalist JSON: lists ``training``, ``validation`` and ``test`` of ``{"image": …, "label": …}``.

    Paths are relative to the JSON. An image is one file (with the modalities along its fourth axis if there are
    several) or a list of one file per modality; an entry that is a bare path has no label. ``failures`` takes entries
    whose files are missing; where it is None, the first one is an error.

    Raises:
        UserError: not JSON, no such list, an entry without an image, a file that is missing.
    """
    content = read_json(path)
    lists = {name: content[name] for name in _PARTITIONS if isinstance(content.get(name), list)}
    if not lists:
        raise UserError(
            f"{path}: expected a datalist with a list 'training', 'validation' or 'test' "
            "(or nnU-Net's images, whose names end in _0000, in imagesTr/ beside it)"
        )
    failures = failures or Failures(fail_fast=True)
    subjects = []
    for name, entries in lists.items():
        for k, entry in enumerate(entries):
            images, label = _entry(path, f"{name}[{k}]", entry)
            if is_clutter(images[0]):
                continue
            if len(images) not in (1, modalities):
                raise UserError(
                    f"{path}: {name}[{k}] expected {modalities} images (one per modality), got {len(images)}"
                )
            subjects.append(Subject(volume_stem(images[0]), images, label, partition=_PARTITIONS[name]))
    return complete(path, with_distinct_names(subjects), failures)


def with_distinct_names(subjects: list[Subject]) -> list[Subject]:
    """Subjects with as many of their folders before their names as tell them apart: none, if the names do."""
    named, depth = subjects, 0
    deepest = max((len(subject.images[0].parts) for subject in subjects), default=0)
    while len({subject.name for subject in named}) < len(named) and depth < deepest:
        depth += 1
        named = [replace(s, name="_".join([*s.images[0].parts[-depth - 1 : -1], s.name])) for s in subjects]
    return named


def _entry(path: Path, where: str, entry: Any) -> tuple[tuple[Path, ...], Path | None]:
    image, label = (entry.get("image"), entry.get("label")) if isinstance(entry, dict) else (entry, None)
    files = [image] if isinstance(image, str) else image
    if not isinstance(files, list) or not files or not all(isinstance(file, str) and file for file in files):
        raise UserError(f"{path}: {where} expected an 'image' (a path or a list of paths), got {_short(image)}")
    if label is not None and not isinstance(label, str):
        raise UserError(f"{path}: {where} expected a 'label' that is one path, got {_short(label)}")
    return tuple(path.parent / file for file in files), path.parent / label if label else None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def complete(source: Path, subjects: Iterable[Subject], failures: Failures) -> list[Subject]:
    """Subjects whose files, or folders of slices, are there, as ``source`` says; ``failures`` takes the others."""
    result = []
    for subject in subjects:
        with failures.skip(subject.name, subject):
            for file in (*subject.images, *([subject.label] if subject.label else [])):
                if not (file.is_file() or is_dicom_folder(file)):
                    raise UserError(f"{file}: expected a file, as {source} says; there is none")
            result.append(subject)
    return result


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: it cannot be read, or is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: expected JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content
