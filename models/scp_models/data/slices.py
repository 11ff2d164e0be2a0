"""Slices for training, from a cache on disk: each volume is preprocessed once and then read slice by slice."""

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from scp_models.data.foreground import CropLoss, describe_crop
from scp_models.data.frames import SlicePositions, VolumeGeometry, slice_positions
from scp_models.data.preprocessing import VolumeReader
from scp_models.data.subjects import Subject
from scp_models.data.tasks import MNI_BOX, SLICE_FRAME, Task
from scp_models.data.volume_files import files_of
from scp_models.errors import UserError
from scp_models.files import atomic_path
from scp_models.notes import note

# Raised when preprocessing changes what it writes, so that no old file is taken for a new one.
CACHE_VERSION = 4


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/scp_models``, else ``~/.cache/scp_models``, else :func:`temporary_cache_dir`: a container that
    runs as another user has no home folder, or none that it may write to.
    """
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "scp_models"
    try:
        folder = Path.home() / ".cache" / "scp_models"
    except RuntimeError:  # no HOME, and no such user
        return temporary_cache_dir()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    return folder if writable else temporary_cache_dir()


def temporary_cache_dir() -> Path:
    """This user's folder among the temporary files."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"scp_models-{user}"


class SliceCache:
    """Preprocessed volumes as memory-mapped arrays: images ``[Z, C, H, W]`` in float16, labels ``[Z, H, W]`` in uint8;
    and a JSON with where each volume lies, what was noted about its files and what its crop cuts off.

    A file's name is a digest of the task and of its sources' paths, sizes and times of change, so a changed source is
    read anew. The task's frame does not matter: positions in any are made of what the JSON has. Files are written
    beside and renamed: several processes may prepare the same subject at once.
    """

    def __init__(self, folder: Path, task: Task) -> None:
        self.folder = folder
        self.task = task
        self.reader = VolumeReader(replace(task, frame=SLICE_FRAME, frame_box=MNI_BOX))

    def paths(self, subject: Subject) -> tuple[Path, Path, Path]:
        """Of the image, the label, and what is known of them."""
        try:
            stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in source_files(subject)]
        except OSError as error:
            raise UserError(
                f"{error.filename}: expected an image or reference of {subject.name}, {error.strerror}"
            ) from error
        key = json.dumps([CACHE_VERSION, repr(self.reader.task), subject.label_affine, stats])
        digest = hashlib.sha256(key.encode()).hexdigest()[:24]
        image, label, about = (self.folder / f"{digest}-{what}" for what in ("image.npy", "label.npy", "about.json"))
        return image, label, about

    def prepare(self, subject: Subject) -> None:
        """Write the subject's arrays unless they are there."""
        image_path, label_path, about_path = self.paths(subject)
        if all(path.is_file() for path in (image_path, label_path, about_path)):
            return
        volume = self.reader.read(subject)
        assert volume.label is not None
        about = {"geometry": volume.geometry.as_lists(), "notes": volume.notes, "crop_loss": asdict(volume.crop_loss)}
        with atomic_path(label_path) as path:
            np.save(path, np.ascontiguousarray(volume.label.transpose(2, 0, 1)))
        with atomic_path(about_path) as path:
            path.write_text(json.dumps(about))
        with atomic_path(image_path) as path:
            np.save(path, np.ascontiguousarray(volume.image.transpose(3, 0, 1, 2).astype(np.float16)))

    def open(self, subject: Subject) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
        """The subject's arrays, mapped, not read."""
        return _mapped(self.paths(subject))

    def about(self, subject: Subject) -> "AboutVolume":
        """What is known of the subject's arrays, without reading them."""
        content = json.loads(self.paths(subject)[2].read_text())
        geometry = VolumeGeometry.from_lists(content["geometry"])
        return AboutVolume(geometry, tuple(content["notes"]), CropLoss(**content["crop_loss"]))

    def positions(self, subject: Subject) -> SlicePositions | None:
        """Where the subject's slices lie in the task's frame; None if it is ``slice``.

        Raises:
            UserError: the subject's transform is missing, unreadable or not affine.
        """
        return slice_positions(self.task, subject, self.about(subject).geometry)


def source_files(subject: Subject) -> list[Path]:
    """Of its images and its reference, every file."""
    sources = [*subject.images, *([subject.label] if subject.label else [])]
    return [file for source in sources for file in files_of(source)]


def note_volumes(cache: SliceCache, subjects: Sequence[Subject], where: str, hint: str) -> None:
    """Say what was noted when the cache was filled, which holds for whoever trains on it, and what the crop cuts off.

    Args:
        cache: that has the subjects.
        subjects: of the data set.
        where: what to name.
        hint: how to cut off less.
    """
    known = {subject.name: cache.about(subject) for subject in subjects}
    for about in known.values():
        for line in about.notes:
            note(line)
    losses = [(name, about.crop_loss) for name, about in known.items()]
    if cut := describe_crop(cache.task.roi_size, losses, hint):
        note(f"{where}: {cut}")


@dataclass(frozen=True)
class AboutVolume:
    """What the cache keeps of a volume beside its voxels."""

    geometry: VolumeGeometry
    notes: tuple[str, ...]
    """One line per file that was not taken simply as it is."""
    crop_loss: CropLoss

    @property
    def affine(self) -> NDArray[np.float64]:
        """``[4, 4]``: indices ``(h, w, z)`` to mm in the patient, RAS+."""
        return self.geometry.affine

    @property
    def pixel_size(self) -> tuple[float, float]:
        """Of the slices that the network sees, in mm, along height and width."""
        height, width = np.linalg.norm(self.affine[:3, :2], axis=0)
        return (float(height), float(width))


def _mapped(paths: tuple[Path, ...]) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    image_path, label_path = paths[:2]
    return np.load(image_path, mmap_mode="r"), np.load(label_path, mmap_mode="r")


class SliceDataset(Dataset[dict[str, Tensor]]):
    """All slices of some subjects, in order.

    An item has ``image`` ``[C, H, W]`` float32, ``label`` ``[1, H, W]`` uint8 (0 background, 1 target, 2 ignored; with
    several classes their numbers, and 255 ignored) and ``subject``, the subject's number; and, unless the task's frame
    is ``slice``, the slice's place in the frame: ``affine`` ``[3, 3]`` from ``(h, w, 1)`` to p, and ``extent`` ``[3]``,
    float32. Items past the last slice, up to ``length``, repeat it with every pixel ignored: they even out the work of
    several processes without changing a score.
    """

    def __init__(self, cache: SliceCache, subjects: Sequence[Subject], multiple_of: int = 1) -> None:
        self.subjects = list(subjects)
        self.ignored_label = cache.task.ignored_label
        self.paths = [cache.paths(subject) for subject in subjects]
        self.arrays = [_mapped(paths) for paths in self.paths]
        self.positions = [cache.positions(subject) for subject in subjects]
        self.pixel_sizes = [cache.about(subject).pixel_size for subject in subjects]
        self.offsets = np.cumsum([0, *(len(label) for _, label in self.arrays)])
        self.slices = int(self.offsets[-1])
        self.length = -(-self.slices // multiple_of) * multiple_of

    def __getstate__(self) -> dict[str, Any]:
        """Without the arrays: workers that are not forked get a pickle, which would hold all that is mapped."""
        return {key: value for key, value in vars(self).items() if key != "arrays"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.arrays = [_mapped(paths) for paths in self.paths]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        padding = index >= self.slices
        index = min(index, self.slices - 1)
        subject = int(np.searchsorted(self.offsets, index, side="right")) - 1
        image, label = self.arrays[subject]
        k = index - int(self.offsets[subject])
        positions = self.positions[subject]
        marks = torch.from_numpy(np.array(label[k]))[None]
        return {
            "image": torch.from_numpy(np.array(image[k])).float(),
            "label": torch.full_like(marks, self.ignored_label) if padding else marks,
            "subject": torch.tensor(subject),
            **({} if positions is None else positions.of(k)),
        }
