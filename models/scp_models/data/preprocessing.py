"""From files to what the network sees, and back: canonical axes, crop or resize, intensities, labels.

The canonical grid is nibabel's closest to RAS+, so its first axis is left-right and its second back-front; slices
``[X, Y]`` of it are the network's ``[H, W]``.
"""

import gzip
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.transforms import NormalizeIntensity, ScaleIntensityRange
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from scp_models.data.subjects import Subject
from scp_models.data.tasks import Task
from scp_models.errors import UserError

# Slices read and processed at a time: a volume of 987 slices of 512² never is in memory at full size.
CHUNK = 32


@dataclass(frozen=True)
class SourceGrid:
    """Where a volume's voxels lie in its file, and which window of the canonical slices the network sees."""

    path: Path
    header: Any
    affine: NDArray[np.float64]
    shape: tuple[int, int, int]
    """Of the file."""
    to_canonical: NDArray[np.float64]
    """Orientation transform, as nibabel applies it."""
    task: Task

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        shape = [0, 0, 0]
        for axis, (target, _) in enumerate(self.to_canonical):
            shape[int(target)] = self.shape[axis]
        return (shape[0], shape[1], shape[2])

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along the file's axes."""
        x, y, z = nib.affines.voxel_sizes(self.affine)
        return (float(x), float(y), float(z))

    def fit(self, slices: NDArray[Any]) -> NDArray[Any]:
        """Canonical slices ``[X, Y, K]`` as the network sees them, ``[H, W, K]``; intensities as they are."""
        size = self.task.roi_size
        if self.task.resize:
            return _resize(slices, size)
        source, target = _centre_windows(slices.shape[:2], size)
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
        source, target = _centre_windows(shape[:2], self.task.roi_size)
        for start in range(0, shape[2], CHUNK):
            part = slice(start, start + CHUNK)
            fitted = _resize(values[..., part], shape[:2]) if self.task.resize else values[..., part][target]
            window = slice(None) if self.task.resize else source
            canonical[..., part][window] = fitted if threshold is None else fitted > threshold
        canonical_axes = np.stack([np.arange(3), np.ones(3)], axis=1)
        return apply_orientation(canonical, ornt_transform(canonical_axes, self.to_canonical))


@dataclass(frozen=True)
class Volume:
    """One subject as the network sees it."""

    image: NDArray[np.float32]
    """``[C, H, W, Z]``."""
    label: NDArray[np.uint8] | None
    """``[H, W, Z]``: 0 background, 1 target, 2 ignored; None if not read."""
    grid: SourceGrid

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
            UserError: a file that is missing, truncated, corrupt, of another shape, with other labels or values that
                are not finite; or ``with_label`` and there is none.
        """
        sources = self._open_images(subject)
        grid = self._grid(sources[0])
        channels = [self._read_channel(source, grid) for source in sources]
        label = None
        if with_label:
            label = np.concatenate(
                [grid.fit(_mapped(chunk, self.task)) for chunk in self._label_chunks(subject, grid)], axis=2
            )
        return Volume(np.stack([self._normalise(channel) for channel in channels]), label, grid)

    def grid(self, subject: Subject) -> SourceGrid:
        """The grid of a subject's file, without its voxels."""
        return self._grid(self._open_images(subject)[0])

    def read_label(self, subject: Subject) -> NDArray[np.uint8]:
        """Reference in the grid of the source file, ``[x, y, z]``: 0 background, 1 target, 2 ignored."""
        grid = self.grid(subject)
        stored = np.concatenate(list(self._label_chunks(subject, grid, canonical=False)), axis=2)
        return _mapped(stored, self.task)

    def stored_labels(self, subject: Subject) -> list[int]:
        """The values in the reference's file, sorted."""
        chunks = self._label_chunks(subject, self.grid(subject), canonical=False)
        return sorted({int(value) for chunk in chunks for value in np.unique(chunk)})

    def _open_images(self, subject: Subject) -> list["Source"]:
        sources = [Source(open_nifti(path), path, None) for path in subject.images]
        count = len(self.task.modalities)
        first = sources[0]
        if len(sources) == 1 and len(first.image.shape) == 4:
            if first.image.shape[3] != count:
                raise UserError(f"{first.path}: expected {count} modalities along axis 4, got {first.image.shape[3]}")
            sources = [replace(first, channel=k) for k in range(count)]
        if len(sources) != count:
            raise UserError(
                f"{first.path}: expected {count} modalities ({', '.join(self.task.modalities)}; predict takes them as "
                f"--image FILE, one each), got {len(sources)}"
            )
        for source in sources:
            shape = source.image.shape
            if len(shape) != (3 if source.channel is None else 4) or 0 in shape:
                raise UserError(f"{source.path}: expected a 3-D volume, got shape {shape}")
            if shape[:3] != first.image.shape[:3]:
                raise UserError(
                    f"{source.path}: expected shape {first.image.shape[:3]} as {first.path} has, got {shape}"
                )
        return sources

    def _grid(self, source: "Source") -> SourceGrid:
        affine = np.asarray(source.image.affine, dtype=float)
        orientation = io_orientation(affine)
        if np.isnan(orientation).any():
            raise UserError(f"{source.path}: expected an affine that maps three axes, got one without full rank")
        shape = tuple(int(n) for n in source.image.shape[:3])
        return SourceGrid(
            source.path, source.image.header, affine, (shape[0], shape[1], shape[2]), orientation, self.task
        )

    def _read_channel(self, source: "Source", grid: SourceGrid) -> NDArray[np.float32]:
        fitted = []
        for chunk in _canonical_chunks(source, grid):
            values = chunk.astype(np.float32)
            if not np.isfinite(values).all():
                raise UserError(f"{source.path}: expected finite intensities, got NaN or infinity")
            if self.task.window is not None:
                values = np.clip(values, *self.task.window)
            fitted.append(grid.fit(values))
        return np.concatenate(fitted, axis=2)

    def _normalise(self, channel: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.task.window is None:
            transform: Any = NormalizeIntensity()
        else:
            transform = ScaleIntensityRange(*self.task.window, b_min=-1.0, b_max=1.0)
        return np.asarray(transform(channel), dtype=np.float32)

    def _label_chunks(self, subject: Subject, grid: SourceGrid, canonical: bool = True) -> Iterator[NDArray[Any]]:
        """Stored label values. The image's affine counts: some published labels carry another one on the same grid."""
        if subject.label is None:
            raise UserError(f"{subject.images[0]}: expected a reference segmentation for this image, there is none")
        image = open_nifti(subject.label)
        if tuple(image.shape) != grid.shape:
            raise UserError(
                f"{subject.label}: expected shape {grid.shape} as {grid.path} has, got {tuple(image.shape)}"
            )
        source = Source(image, subject.label, None)
        for chunk in _canonical_chunks(source, grid) if canonical else _file_chunks(source):
            values, allowed = np.unique(chunk), self.task.labels
            known = np.isin(values, allowed) if allowed else values == np.rint(values)
            if not known.all():
                expected = f"labels {allowed}" if allowed else "labels that are integers"
                strange = [float(v) for v in values[~known]][:5]
                hint = "" if allowed is None or (values % 1).any() else " (other labels: --data.target, --data.ignored)"
                raise UserError(f"{subject.label}: expected {expected}, got also {strange}{hint}")
            yield chunk


@dataclass(frozen=True)
class Source:
    """An open file, or one channel of it."""

    image: Any
    path: Path
    channel: int | None

    def read(self, index: tuple[slice, ...]) -> NDArray[Any]:
        try:
            return np.asarray(self.image.dataobj[index if self.channel is None else (*index, self.channel)])
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise UserError(
                f"{self.path}: expected a whole NIfTI file, it is truncated or corrupt ({error})"
            ) from error


_NIFTI_ERRORS = (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, nib.wrapstruct.WrapStructError)


def open_nifti(path: Path) -> Any:
    """A NIfTI image whose voxels are read on demand.

    A compressed file is decompressed whole: slices would decompress it anew each time, and only at its end does gzip's
    checksum tell whether it is intact.

    Raises:
        UserError: not a NIfTI file, or unreadable.
    """
    try:
        if path.suffix != ".gz":
            return nib.load(path)
        content = gzip.decompress(path.read_bytes())
        nifti2 = content[:4] in (struct.pack("<i", 540), struct.pack(">i", 540))
        return (nib.Nifti2Image if nifti2 else nib.Nifti1Image).from_bytes(content)
    except FileNotFoundError as error:
        raise UserError(f"{path}: expected a NIfTI file, there is none") from error
    except (*_NIFTI_ERRORS, OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path}: expected a NIfTI file, it cannot be read ({error})") from error


def _file_chunks(source: Source) -> Iterator[NDArray[Any]]:
    """Slices in the order of the file."""
    depth = source.image.shape[2]
    for start in range(0, depth, CHUNK):
        index = (slice(None), slice(None), slice(start, min(start + CHUNK, depth)))
        yield source.read(index)


def _canonical_chunks(source: Source, grid: SourceGrid) -> Iterator[NDArray[Any]]:
    """Canonical slices ``[X, Y, K]``, from the lowest on."""
    axis = int(np.flatnonzero(grid.to_canonical[:, 0] == 2)[0])
    direction = int(grid.to_canonical[axis, 1])
    depth = grid.shape[axis]
    for start in range(0, depth, CHUNK):
        stop = min(start + CHUNK, depth)
        part = slice(start, stop) if direction > 0 else slice(depth - stop, depth - start)
        index = tuple(part if a == axis else slice(None) for a in range(3))
        yield apply_orientation(source.read(index), grid.to_canonical)


def _mapped(stored: NDArray[Any], task: Task) -> NDArray[np.uint8]:
    """0 background, 1 target, 2 ignored."""
    label = np.isin(stored, task.target).astype(np.uint8)
    if task.ignored:
        label[np.isin(stored, task.ignored)] = 2
    return label


def _resize(slices: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """``[X, Y, K]`` to ``[*size, K]``: labels by the nearest voxel, intensities linearly (antialiased where they
    shrink).
    """
    x = torch.from_numpy(np.ascontiguousarray(slices.transpose(2, 0, 1)))[:, None]
    if slices.dtype == np.uint8:
        y = interpolate(x.float(), size=size, mode="nearest-exact").to(torch.uint8)
    else:
        y = interpolate(x.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
    return y[:, 0].numpy().transpose(1, 2, 0)


def _centre_windows(
    source: tuple[int, ...], target: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The common part of two sizes that share their centre, as indices into either."""
    windows = []
    for n, m in zip(source, target, strict=True):
        length, first, second = min(n, m), max((n - m) // 2, 0), max((m - n) // 2, 0)
        windows.append((slice(first, first + length), slice(second, second + length)))
    return (windows[0][0], windows[1][0]), (windows[0][1], windows[1][1])
