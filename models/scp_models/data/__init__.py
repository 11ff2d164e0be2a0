"""Reading studies from disk: layouts, preprocessing, splits, slices for training, and phantoms."""

from scp_models.data.find import LAYOUTS, find_subjects, subject_of_images
from scp_models.data.module import SegmentationDataModule
from scp_models.data.preprocessing import SourceGrid, Volume, VolumeReader
from scp_models.data.subjects import Subject
from scp_models.data.tasks import TASKS, Task, get_task
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
