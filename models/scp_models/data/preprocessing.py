"""From files to what the network sees, and back: canonical axes, crop or resize, intensities, labels.

The canonical grid is nibabel's closest to RAS+, so its first axis is left-right and its second back-front; slices
``[X, Y]`` of it are the network's ``[H, W]``.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray

from scp_models.data.alignment import CHUNK, AlignedVolume, align_image, align_label
from scp_models.data.foreground import CoarseGrid, CropLoss, Foreground, find_foreground, foreground_box
from scp_models.data.frames import VolumeGeometry
from scp_models.data.geometry import (
    SAME_AXES,
    Orientation,
    centre_windows,
    inverse,
    resize,
    resized_axis,
    turned_shape,
)
from scp_models.data.labels import label_numbers, label_values
from scp_models.data.subjects import Subject
from scp_models.data.tasks import LabelAffine, Task
from scp_models.data.volume import VolumeFile
from scp_models.data.volume_files import open_volume
from scp_models.errors import UserError
from scp_models.notes import note


@dataclass(frozen=True)
class SourceGrid:
    """Where a subject's voxels lie, those of its first image, and which window of the canonical slices the network
    sees.
    """

    file: VolumeFile
    task: Task

    @property
    def affine(self) -> NDArray[np.float64]:
        """``[4, 4]``: voxel indices of the file to mm, RAS+."""
        return self.file.affine

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the file."""
        return self.file.shape

    @cached_property
    def to_canonical(self) -> Orientation:
        """From the file's axes to those closest to RAS+."""
        return io_orientation(self.affine)

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        return turned_shape(self.shape, self.to_canonical)

    @property
    def canonical_affine(self) -> NDArray[np.float64]:
        """``[4, 4]``: canonical voxel indices to mm, RAS+."""
        return self.affine @ inv_ornt_aff(self.to_canonical, self.shape)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along the file's axes."""
        x, y, z = self.file.spacing
        return (float(x), float(y), float(z))

    @cached_property
    def plane(self) -> tuple[int, int]:
        """Size of the canonical slices that are cropped: resampled to the task's spacing, if it has one."""
        size = self.canonical_shape[:2]
        if self.task.spacing is None:
            return size
        spacing = np.linalg.norm(self.canonical_affine[:3, :2], axis=0)
        x, y = (max(1, round(n * s / t)) for n, s, t in zip(size, spacing, self.task.spacing, strict=True))
        return (x, y)

    @property
    def network_affine(self) -> NDArray[np.float64]:
        """``[4, 4]``: indices ``(h, w, z)`` of what the network sees to mm, RAS+."""
        return self.canonical_affine @ self._to_canonical_index

    @property
    def _to_canonical_index(self) -> NDArray[np.float64]:
        """``[4, 4]``: indices of what the network sees to canonical voxel indices."""
        result = np.eye(4)
        if self.task.resize:
            plane, shift = self.task.roi_size, (0, 0)
        else:
            plane = self.plane
            source, target = centre_windows(plane, self.task.roi_size)
            shift = (source[0].start - target[0].start, source[1].start - target[1].start)
        for axis in range(2):
            scale, offset = resized_axis(self.canonical_shape[axis], plane[axis])
            result[axis, axis] = scale
            result[axis, 3] = scale * shift[axis] + offset
        return result

    def fit(self, slices: NDArray[Any]) -> NDArray[Any]:
        """Canonical slices ``[X, Y, K]`` as the network sees them, ``[H, W, K]``; intensities as they are."""
        size = self.task.roi_size
        if self.task.resize:
            return resize(slices, size)
        if self.plane != slices.shape[:2]:
            slices = resize(slices, self.plane)
        source, target = centre_windows(self.plane, size)
        out = np.zeros((*size, slices.shape[2]), slices.dtype)
        out[target] = slices[source]
        return out

    def restore(self, values: NDArray[Any], threshold: float | None = None) -> NDArray[Any]:
        """Undo :meth:`fit` and the reorientation: ``[H, W, Z]`` in the grid of the file; zero outside the crop.

        Resizing interpolates linearly. With a ``threshold`` the result is the uint8 mask of what exceeds it at the
        file's own resolution, made a few slices at a time.
        """
        shape = self.canonical_shape
        canonical = np.zeros(shape, values.dtype if threshold is None else np.uint8)
        for start in range(0, shape[2], CHUNK):
            part = slice(start, start + CHUNK)
            slices = self._unfit(values[..., part])
            canonical[..., part] = slices if threshold is None else slices > threshold
        return apply_orientation(canonical, inverse(self.to_canonical))

    def restore_classes(self, probabilities: NDArray[Any]) -> NDArray[np.uint8]:
        """The class with the largest probability at the file's own resolution; background outside the crop.

        Args:
            probabilities: ``[K, H, W, Z]``, the background first; resized linearly before they are compared, a few
                slices at a time.
        """
        shape = self.canonical_shape
        canonical = np.zeros(shape, np.uint8)
        for start in range(0, shape[2], CHUNK):
            part = slice(start, start + CHUNK)
            # Outside all are 0, and the first of equals counts.
            canonical[..., part] = np.stack([self._unfit(p[..., part]) for p in probabilities]).argmax(axis=0)
        return apply_orientation(canonical, inverse(self.to_canonical))

    def _unfit(self, slices: NDArray[Any]) -> NDArray[Any]:
        size = self.canonical_shape[:2]
        if self.task.resize:
            return resize(slices, size)
        source, target = centre_windows(self.plane, self.task.roi_size)
        out = np.zeros((*self.plane, slices.shape[2]), slices.dtype)
        out[source] = slices[target]
        return out if self.plane == size else resize(out, size)

    def inside(self) -> NDArray[np.bool_]:
        """``[X, Y]``: which pixels of the canonical slices the network sees."""
        scale, offset = self._to_canonical_index.diagonal()[:2], self._to_canonical_index[:2, 3]
        seen = []
        for axis, n in enumerate(self.canonical_shape[:2]):
            index = (np.arange(n) - offset[axis]) / scale[axis]
            seen.append((index > -0.5) & (index < self.task.roi_size[axis] - 0.5))
        return seen[0][:, None] & seen[1][None, :]


@dataclass(frozen=True)
class Volume:
    """One subject as the network sees it."""

    image: NDArray[np.float32]
    """``[C, H, W, Z]``."""
    label: NDArray[np.uint8] | None
    """``[H, W, Z]``: 0 background, 1 target, 2 ignored; of several classes their numbers, and 255 ignored; None if not
    read.
    """
    grid: SourceGrid
    geometry: VolumeGeometry
    """Where the slices lie, and what frames are made of."""
    crop_loss: CropLoss = field(default_factory=CropLoss)
    """What of the subject lies outside of the slices; all zero where they are resized."""
    notes: tuple[str, ...] = ()
    """One line per file that was not taken simply as it is."""

    @property
    def affine(self) -> NDArray[np.float64]:
        """``[4, 4]``: indices ``(h, w, z)`` to mm in the patient, RAS+."""
        return self.geometry.affine

    def restore(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values ``[H, W, Z]`` in the grid of the source file."""
        return self.grid.restore(values)


class VolumeReader:
    """Reads subjects for one task."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def read(self, subject: Subject, with_label: bool = True) -> Volume:
        """Image and label of a subject, on the network's grid.

        Raises:
            UserError: a file that is missing, truncated, corrupt, of another place, with other labels or infinite
                values; or ``with_label`` and there is none.
        """
        files = self._open_images(subject)
        grid = SourceGrid(files[0], self.task)
        notes = [line for file in files for line in file.notes]
        if not any(file.oriented for file in files):
            notes.append(f"{files[0].path}: has no orientation; its axes are taken to run to the left, front and top")
        aligned = []
        for file in files:
            volume, line = align_image(file, files[0])
            aligned.append(volume)
            notes += [line] if line else []
        image = np.stack([self._normalise(self._read_channel(volume, grid, notes)) for volume in aligned])
        label, loss = None, CropLoss()
        # A cache serves every frame.
        measured = with_label or self.task.frame == "foreground" or not self.task.resize
        area = self._foreground(grid) if measured else None
        if area is not None and not self.task.resize:
            loss = _foreground_loss(area, grid)
        if with_label:
            volume, lines = self._open_label(subject, grid)
            notes += lines
            fitted = []
            for chunk in label_values(volume, self.task, grid.to_canonical):
                mapped = label_numbers(chunk, self.task)
                if not self.task.resize:
                    loss += _target_loss((mapped > 0) & (mapped != self.task.ignored_label), grid)
                fitted.append(grid.fit(mapped))
            label = np.concatenate(fitted, axis=2)
        box = None
        if area is not None:
            box, line = foreground_box(area)
            notes += [f"{files[0].path}: {line}"] if line else []
        geometry = VolumeGeometry(grid.network_affine, grid.canonical_affine, grid.canonical_shape, box)
        _say(notes)
        return Volume(image, label, grid, geometry, loss, tuple(dict.fromkeys(notes)))

    def grid(self, subject: Subject) -> SourceGrid:
        """The grid of a subject's first image, without its voxels."""
        return SourceGrid(self._open_images(subject)[0], self.task)

    def read_label(self, subject: Subject) -> NDArray[np.uint8]:
        """Reference in the grid of the first image, ``[x, y, z]``, with the numbers of :attr:`Volume.label`."""
        return label_numbers(self._stored_label(subject), self.task)

    def stored_labels(self, subject: Subject) -> list[int]:
        """The values in the reference's file, sorted."""
        return [int(value) for value in np.unique(self._stored_label(subject))]

    def align_prediction(
        self, file: VolumeFile, grid: SourceGrid, probabilities: bool, rule: LabelAffine
    ) -> AlignedVolume:
        """What something predicted for a subject, in the subject's grid.

        Args:
            file: the prediction.
            grid: of the subject.
            probabilities: they are interpolated linearly if they have to be, others are not.
            rule: as for a reference.

        Raises:
            UserError: it lies elsewhere: see :mod:`scp_models.data.alignment`.
        """
        if probabilities and rule != "image":
            volume, line = align_image(file, grid.file)
        else:
            volume, line = align_label(file, grid.file, rule, lambda: self._foreground(grid))
        _say([*file.notes, *([line] if line else [])])
        return volume

    def _stored_label(self, subject: Subject) -> NDArray[Any]:
        grid = self.grid(subject)
        volume, notes = self._open_label(subject, grid)
        _say(notes)
        return np.concatenate(list(label_values(volume, self.task)), axis=2)

    def _open_images(self, subject: Subject) -> list[VolumeFile]:
        files = [open_volume(path) for path in subject.images]
        count = len(self.task.modalities)
        first = files[0]
        if len(files) == 1 and first.channels > 1:
            if first.channels != count:
                raise UserError(f"{first.path}: expected {count} modalities along axis 4, got {first.channels}")
            files = first.per_channel()
        if len(files) != count:
            raise UserError(
                f"{first.path}: expected {count} modalities ({', '.join(self.task.modalities)}; predict takes them as "
                f"--image FILE, one each), got {len(files)}"
            )
        if len(subject.images) > 1:
            for file in files:
                _must_be_single(file)
        return files

    def _open_label(self, subject: Subject, grid: SourceGrid) -> tuple[AlignedVolume, list[str]]:
        if subject.label is None:
            raise UserError(f"{subject.images[0]}: expected a reference segmentation for this image, there is none")
        file = open_volume(subject.label)
        _must_be_single(file)
        rule = self.task.label_affine
        if rule == "auto" and subject.label_affine is not None:
            rule = subject.label_affine
        volume, line = align_label(file, grid.file, rule, lambda: self._foreground(grid))
        return volume, [*file.notes, *([line] if line else [])]

    def _read_channel(self, volume: AlignedVolume, grid: SourceGrid, notes: list[str]) -> NDArray[np.float32]:
        fitted, missing, total = [], 0, 0
        for chunk in volume.chunks(grid.to_canonical):
            values = chunk.astype(np.float32)
            if np.isinf(values).any():
                raise UserError(f"{volume.file.path}: expected finite intensities, got infinity")
            missing, total = missing + int(np.isnan(values).sum()), total + values.size
            fitted.append(grid.fit(self._windowed(values)))
        if missing == total:
            raise UserError(f"{volume.file.path}: expected intensities, every voxel is NaN")
        if min(slices.min() for slices in fitted) == max(slices.max() for slices in fitted):
            notes.append(f"{volume.file.path}: the network sees the same intensity everywhere")
        if missing:
            notes.append(f"{volume.file.path}: {missing / total:.2%} of the voxels are NaN, read as {self._empty:g}")
        return np.concatenate(fitted, axis=2)

    @property
    def _empty(self) -> float:
        """Intensity where nothing was measured: SPM, for one, writes NaN outside of the brain."""
        return 0.0 if self.task.window is None else self.task.window[0]

    def _windowed(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        values = np.where(np.isnan(values), np.float32(self._empty), values)
        return values if self.task.window is None else np.clip(values, *self.task.window)

    def _normalise(self, channel: NDArray[np.float32]) -> NDArray[np.float32]:
        """z-score, or the window mapped to [−1, 1]."""
        if self.task.window is None:
            deviation = channel.std()
            # A constant image has nothing to scale.
            return (channel - channel.mean()) / (deviation if deviation > 0 else np.float32(1))
        low, high = self.task.window
        return (channel - np.float32(low)) / np.float32(high - low) * np.float32(2) - np.float32(1)

    def _foreground(self, grid: SourceGrid) -> Foreground:
        """Of the first image."""
        looked_at = CoarseGrid(grid.affine, grid.shape, self.task.foreground)
        x, y, z = looked_at.chosen
        chunks = AlignedVolume(grid.file, SAME_AXES).chunks()
        coarse = np.concatenate([chunk[x, y] for chunk in chunks], axis=2)[..., z]
        return find_foreground(self._windowed(coarse.astype(np.float32)), looked_at)


def _say(notes: Iterable[str]) -> None:
    for line in notes:
        note(line)


def _must_be_single(file: VolumeFile) -> None:
    if file.channels != 1:
        raise UserError(f"{file.path}: expected a 3-D volume, got shape {tuple(file.data.shape)}")


def _foreground_loss(area: Foreground, grid: SourceGrid) -> CropLoss:
    """What of the foreground is outside of the crop."""
    outside = ~grid.inside()[np.ix_(*area.grid.centres[:2])]
    return CropLoss(foreground=int(area.mask.sum()), foreground_outside=int(area.mask[outside].sum()))


def _target_loss(target: NDArray[np.bool_], grid: SourceGrid) -> CropLoss:
    return CropLoss(target=int(target.sum()), target_outside=int(target[~grid.inside()].sum()))
