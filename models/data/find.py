"""Subjects of any layout that is read here."""

from pathlib import Path

from scp_models.data import datalist, lits, wmh
from scp_models.data.subjects import Subject
from scp_models.data.tasks import Task
from scp_models.errors import UserError

LAYOUTS = ("auto", "wmh", "lits", "datalist", "nnunet")


def find_subjects(root: Path | str, task: Task, layout: str = "auto") -> list[Subject]:
    """All subjects at ``root``: a data set, one subject's folder, one volume, or a datalist JSON.

    Args:
        root: where to look.
        task: gives the modalities.
        layout: one of :data:`LAYOUTS`; ``"auto"`` tells it from what is there.

    Raises:
        UserError: nothing there, or no subject found.
    """
    root = Path(root)
    if not root.exists():
        raise UserError(f"{root}: expected a data set, there is nothing")
    if root.is_file() and root.suffix != ".json":
        return [lits.single_volume(root)]
    if layout == "auto":
        layout = guess_layout(root, task)
    readers = {
        "wmh": lambda: wmh.find_subjects(root, task.modalities),
        "lits": lambda: lits.find_subjects(root),
        "datalist": lambda: datalist.find_subjects(datalist.datalist_file(root), len(task.modalities)),
        "nnunet": lambda: datalist.find_nnunet_subjects(root),
    }
    if layout not in readers:
        raise UserError(f"layout: expected one of {LAYOUTS}, got {layout!r}")
    subjects = readers[layout]()
    if not subjects:
        raise UserError(
            f"{root}: expected subjects in the layout {layout!r}, found none (looked for WMH's <id>/pre/, LiTS's "
            "volume-N.nii, a datalist.json or dataset.json with lists, nnU-Net's dataset.json and imagesTr/*_0000)"
        )
    return subjects


def guess_layout(root: Path, task: Task) -> str:
    """The layout of a data set, by what is there; the task's own where nothing tells."""
    if root.is_file():
        return "datalist"
    if (root / "dataset.json").is_file() and any((root / "imagesTr").glob("*_0000*")):
        return "nnunet"
    return "datalist" if any((root / name).is_file() for name in datalist.FILES) else task.name
