"""The WMH segmentation challenge on disk: the older zips and the current release.

Older: ``<Utrecht|Singapore|GE3T>/<id>/{orig,pre}/…`` with ``<id>/wmh.nii.gz``. Current: the same below ``training/``
and ``test/``, with the Amsterdam scanners one folder deeper (one name has a space and a trailing dot), and a second
rater's ``additional_annotations/``, which are nobody's images. A subject is any other folder with ``pre/`` or ``orig/``
in it.

A subject is called after its place in the layout (``training_Utrecht_0``), from whichever folder one looks: a part
(``training``) above a known site is found above the given folder too. With sites of other names, the place below the
given folder counts.
"""

import os
from pathlib import Path

from scp_models.data.subjects import Subject, folders
from scp_models.errors import Failures, UserError
from scp_models.notes import first_few, note

LABEL_FILE = "wmh.nii.gz"
SOURCES = ("pre", "orig")
"""Folders of a subject's images: bias-corrected, and as they were."""
_PARTITIONS = ("training", "validation", "test")
_SITES = ("Utrecht", "Singapore", "GE3T", "Amsterdam")


def is_subject(folder: Path) -> bool:
    return any((folder / source).is_dir() for source in SOURCES)


def find_subjects(
    root: Path,
    modalities: tuple[str, ...] = ("T1", "FLAIR"),
    source: str = "pre",
    failures: Failures | None = None,
) -> list[Subject]:
    """All subjects below ``root`` (or ``root`` itself, if it is one), sorted by name.

    Args:
        root: the data set, a part of it, or one subject's folder.
        modalities: file names without ``.nii.gz``, in the order of the network's input channels.
        source: ``"pre"`` (bias-corrected) or ``"orig"``.
        failures: takes subjects that lack one of the modalities; None: the first one is an error.

    Raises:
        UserError: a subject lacks one of the modalities.
    """
    everywhere = [folder for folder in sorted(folders(root)) if "additional_annotations" not in folder.parts]
    subject_folders = [root] if is_subject(root) else list(filter(is_subject, everywhere))
    if alone := [folder for folder in everywhere if (folder / LABEL_FILE).is_file() and folder not in subject_folders]:
        note(
            f"{root}: {len(alone)} folders have a {LABEL_FILE} but no images in {source}/ and are left out: "
            f"{first_few(alone)}"
        )
    failures = failures or Failures(fail_fast=True)
    subjects = []
    for folder in subject_folders:
        subject = _subject(root, folder, modalities, source)
        with failures.skip(subject.name, subject):
            if missing := [image for image in subject.images if not image.is_file()]:
                raise UserError(
                    f"{missing[0]}: expected the modalities {', '.join(modalities)} in {source}/, this one is missing"
                )
            subjects.append(subject)
    return subjects


def _subject(root: Path, folder: Path, modalities: tuple[str, ...], source: str) -> Subject:
    images = tuple(folder / source / f"{modality}.nii.gz" for modality in modalities)
    parts = _place(root, folder)
    partition = parts[0] if parts[0] in _PARTITIONS and len(parts) > 1 else None
    place = parts[1:] if partition else parts
    label = folder / LABEL_FILE
    return Subject(
        name=_name(root, folder),
        images=images,
        label=label if label.is_file() else None,
        site="/".join(place[:-1]) or None,
        partition=partition,
    )


def _name(root: Path, folder: Path) -> str:
    return "_".join(_place(root, folder)).replace(" ", "_").replace(".", "")


def _place(root: Path, folder: Path) -> tuple[str, ...]:
    """Where a subject lies in the layout: ``[<part>,] <site>, …, <id>``."""
    whole = Path(os.path.abspath(folder)).parts
    # The site's folder is at most two above the subject's: Amsterdam's scanners are one deeper.
    for k in range(max(1, len(whole) - 3), len(whole) - 1):
        if whole[k] in _SITES:
            return whole[k - 1 :] if whole[k - 1] in _PARTITIONS else whole[k:]
    return folder.relative_to(root).parts if folder != root else (whole[-1],)
