"""Reading studies from disk: layouts, preprocessing, splits, slices for training."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scp_models.data.find import LAYOUTS, find_subjects, subject_of_images
from scp_models.data.preprocessing import SourceGrid, Volume, VolumeReader
from scp_models.data.subjects import Subject
from scp_models.data.tasks import TASKS, Task, get_task

if TYPE_CHECKING:
    from scp_models.data.module import SegmentationDataModule
    from scp_models.data.timing import DataWaitMonitor

__all__ = [
    "LAYOUTS",
    "TASKS",
    "DataWaitMonitor",
    "SegmentationDataModule",
    "SourceGrid",
    "Subject",
    "Task",
    "Volume",
    "VolumeReader",
    "find_subjects",
    "get_task",
    "subject_of_images",
]

# Imported when they are asked for: Lightning takes longer to import than a subject takes to segment.
_NEED_LIGHTNING = {"SegmentationDataModule": "module", "DataWaitMonitor": "timing"}


def __getattr__(name: str) -> Any:
    if name not in _NEED_LIGHTNING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_NEED_LIGHTNING[name]}"), name)
