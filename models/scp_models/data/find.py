"""Subjects of any layout that is read here."""

import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from scp_models.data import datalist, lits, nnunet, wmh
from scp_models.data.itk_files import is_dicom_folder
from scp_models.data.subjects import Subject
from scp_models.data.tasks import Task
from scp_models.errors import Failures, UserError
from scp_models.notes import note

LAYOUTS = ("auto", "wmh", "lits", "datalist", "nnunet")


def find_subjects(
    root: Path | str, task: Task, layout: str = "auto", failures: Failures | None = None
) -> list[Subject]:
    """All subjects at ``root``: a data set, one subject's folder, one volume (or folder of DICOM slices), a datalist.

    Args:
        root: where to look.
        task: gives the modalities.
        layout: one of :data:`LAYOUTS`; ``"auto"`` tells it from what is there.
        failures: takes subjects whose files are missing, and leaves them out; None: the first one is an error.

    Raises:
        UserError: nothing there, no subject found, or one that is there twice.
    """
    root = Path(root)
    if not root.exists():
        raise UserError(f"{root}: expected a data set, there is nothing")
    if (root.is_file() and root.suffix != ".json") or is_dicom_folder(root):
        return [lits.single_volume(root)]
    if layout == "auto":
        layout = guess_layout(root, task)
    readers = {
        "wmh": lambda: wmh.find_subjects(root, task.modalities, failures=failures),
        "lits": lambda: lits.find_subjects(root),
        "datalist": lambda: datalist.find_subjects(datalist.datalist_file(root), len(task.modalities), failures),
        "nnunet": lambda: nnunet.find_subjects(root, failures),
    }
    if layout not in readers:
        raise UserError(f"layout: expected one of {LAYOUTS}, got {layout!r}")
    subjects = readers[layout]()
    if not subjects and not (failures and failures.messages):
        raise UserError(
            f"{root}: expected subjects in the layout {layout!r}, found none (looked for WMH's <id>/pre/, LiTS's "
            "volume-N.nii, a datalist.json or dataset.json with lists, nnU-Net's dataset.json and imagesTr/*_0000)"
        )
    first: dict[str, Subject] = {}
    for subject in subjects:
        # Twice the same scan would train and test at once.
        if (other := first.setdefault(subject.name, subject)) is not subject:
            raise UserError(
                f"{subject.images[0]}: expected every subject once, {other.images[0]} has the same name "
                f"({subject.name})"
            )
    unlabelled = [s.name for s in subjects if s.partition == "training" and s.label is None]
    if unlabelled:
        shown = ", ".join(unlabelled[:5]) + (", ..." if len(unlabelled) > 5 else "")
        note(f"{root}: {len(unlabelled)} of {len(subjects)} subjects are for training and have no label: {shown}")
    return subjects


def subject_of_images(images: Sequence[Path], task: Task) -> Subject:
    """One subject, of one file per modality in the task's order.

    It is called what the files' names begin with alike (``brain_T1``, ``brain_FLAIR``: ``brain``), or after their
    folder.

    Raises:
        UserError: another number of files, or one that is missing.
    """
    if len(images) not in (1, len(task.modalities)):
        raise UserError(
            f"--image: expected {len(task.modalities)} files ({', '.join(task.modalities)}), got {len(images)}"
        )
    for file in images:
        if not (file.is_file() or is_dicom_folder(file)):
            raise UserError(f"{file}: expected a NIfTI file or another volume, there is none")
    stems = [lits.single_volume(file).name for file in images]
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*stems, strict=False))
    name = stems[0] if len(images) == 1 else re.sub(r"[-_. ]+0*$", "", "".join(letters[0] for letters in alike))
    return Subject(name or images[0].absolute().parent.name, tuple(images), None)


def guess_layout(root: Path, task: Task) -> str:
    """The layout of a data set, by what is there; the task's own where nothing says so."""
    if root.is_file():
        return "datalist"
    described = root / "dataset.json"
    if described.is_file():
        listed = isinstance(datalist.read_json(described).get("dataset"), dict)
        if listed or any(root.glob("imagesT[rs]/*_0000*")):
            return "nnunet"
    return "datalist" if any((root / name).is_file() for name in datalist.FILES) else task.name
