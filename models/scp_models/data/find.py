"""Subjects of any layout that is read here."""

import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from scp_models.data import datalist, lits, nnunet, wmh
from scp_models.data.itk_files import is_dicom_folder
from scp_models.data.splits import note_unlabelled
from scp_models.data.subjects import Subject
from scp_models.data.tasks import Task
from scp_models.errors import Failures, UserError

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
        "nnunet": lambda: nnunet.find_subjects(root, len(task.modalities), failures),
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
    note_unlabelled([s for s in subjects if s.partition == "training"], str(root))
    return subjects


def subject_of_images(images: Sequence[Path], task: Task) -> Subject:
    """One subject, of one file per modality in the task's order.

    It is called what the files' names begin with alike (``brain_T1``, ``brain_FLAIR``: ``brain``), or after their
    folder, or the one above where that is ``pre`` or ``orig`` as in the WMH challenge.

    Raises:
        UserError: another number of files, one that is missing, or names of modalities in another order.
    """
    if len(images) not in (1, len(task.modalities)):
        raise UserError(
            f"--image: expected {len(task.modalities)} files ({', '.join(task.modalities)}), got {len(images)}"
        )
    for file in images:
        if not (file.is_file() or is_dicom_folder(file)):
            raise UserError(f"{file}: expected a NIfTI file or another volume, there is none")
    stems = [lits.single_volume(file).name for file in images]
    if len(images) > 1:
        for file, stem, modality in zip(images, stems, task.modalities, strict=True):
            words = {word.lower() for word in re.split(r"[-_. ]", stem)}
            others = [other for other in task.modalities if other.lower() in words]
            if others and modality not in others:
                order = ", ".join(task.modalities)
                raise UserError(f"{file}: expected {modality} in this place (--image takes {order} in this order)")
        alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*stems, strict=False))
        name = re.sub(r"[-_. ]+0*$", "", "".join(letters[0] for letters in alike))
    else:
        name = "" if stems[0].lower() in [modality.lower() for modality in task.modalities] else stems[0]
    folder = images[0].absolute().parent
    if folder.name in wmh.SOURCES:
        folder = folder.parent
    return Subject(name or folder.name, tuple(images), None)


def guess_layout(root: Path, task: Task) -> str:
    """The layout of a data set, by what is there; the task's own where nothing says so."""
    if root.is_file():
        return "datalist"
    if nnunet.is_images_folder(root):
        return "nnunet"
    if (root / datalist.FILES[0]).is_file():
        return "datalist"
    described = root / "dataset.json"
    if described.is_file():
        content = datalist.read_json(described)
        if isinstance(content.get("dataset"), dict):
            return "nnunet"
        # nnU-Net's first version lists images as well, without the number of a channel: they are not there.
        if not datalist.lists_files(described, content) and any(map(nnunet.has_images, root.glob("imagesT[rs]"))):
            return "nnunet"
        return "datalist"
    return task.name
