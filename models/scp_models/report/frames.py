"""A picture of a subject's frame on its slices, so that a wrong foreground is seen at once."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from scp_models.data.frames import Frame, frame_of
from scp_models.data.preprocessing import Volume, VolumeReader
from scp_models.data.subjects import Subject
from scp_models.data.tasks import SLICE_FRAME, Task
from scp_models.errors import Failures, UserError
from scp_models.files import atomic_path

_EDGE, _RIGHT, _FRONT, _TOP = "#ffd23f", "#ff4d4d", "#59d86a", "#37d5e6"
_SLICES = 4
# Of a picture's longer side, in inches.
_SIDE = 2.6
_DPI = 90
# A picture of more rows takes long to draw and to open, and past 2^16 pixels there is none.
_ROWS = 24


def draw_frames(subjects: Sequence[Subject], task: Task, out: Path, failures: Failures | None = None) -> list[Path]:
    """Draw one row per subject: whole canonical slices, and two sections across them.

    The box is where p is 0 and ``extent``; the arrows point to the right, front and top of the frame. Above each slice
    stands its height in the frame, 0 % at the lower border and 100 % at the upper.

    Args:
        subjects: to draw.
        task: how they are read, and the frame.
        out: a PNG; of more than 24 subjects there are several, numbered from 1 on: ``frames-1.png``.
        failures: takes subjects who cannot be read, and leaves their row empty; None: the first one is an error.

    Returns:
        The files; none of a page with nobody to draw.

    Raises:
        UserError: a file that cannot be read, or the frame ``slice``, which is no place in a patient; or ``out`` is not
            called ``.png``.
    """
    if out.suffix.lower() != ".png":
        raise UserError(f"{out}: expected a name that ends in .png")
    if task.frame == SLICE_FRAME:
        raise UserError("--frame: expected image, foreground or a transform's path, got slice: it has no box")
    failures = failures or Failures(fail_fast=True)
    pages = [subjects[first : first + _ROWS] for first in range(0, len(subjects), _ROWS)]
    paths = [out if len(pages) == 1 else out.with_stem(f"{out.stem}-{k}") for k in range(1, len(pages) + 1)]
    return [path for page, path in zip(pages, paths, strict=True) if _draw_page(page, task, path, failures)]


def _draw_page(subjects: Sequence[Subject], task: Task, out: Path, failures: Failures) -> bool:
    """Draw a picture unless nobody of it can be read; whether it did."""
    drawn = 0
    figure, axes = plt.subplots(
        len(subjects),
        _SLICES + 2,
        figsize=(_SIDE * (_SLICES + 2), _SIDE * len(subjects)),
        squeeze=False,
        layout="constrained",
    )
    for row, subject in zip(axes, subjects, strict=True):
        with failures.skip(subject.name):
            # Whole slices: what a crop cuts off may be what is wrong.
            whole = replace(task, roi_size=VolumeReader(task).grid(subject).plane, resize=False)
            volume = VolumeReader(whole).read(subject, with_label=False)
            frame = frame_of(task, subject, volume.geometry)
            assert frame is not None
            draw_subject(row, volume, frame, subject.name)
            drawn += 1
            continue
        for empty in row:
            empty.axis("off")
        row[0].set_title(f"{subject.name}\ncannot be read", fontsize=8)
    if drawn:
        with atomic_path(out) as path:
            figure.savefig(path, dpi=_DPI, facecolor="white")
    plt.close(figure)
    return drawn > 0


def draw_subject(row: Sequence[Axes], volume: Volume, frame: Frame, title: str) -> None:
    """Draw a subject's slices, and its sagittal and coronal section: its first modality, which the foreground is of."""
    image = volume.image[0]
    size = np.array(image.shape)
    to_p = frame.positions(volume.affine)
    low, high = np.percentile(image, [1, 99.5])
    spacing = voxel_sizes(volume.affine)
    limits = {"cmap": "gray", "vmin": low, "vmax": high, "origin": "lower"}
    heights = np.linspace(0.15, 0.85, _SLICES)
    for axes, share in zip(row, heights, strict=False):
        z = int(share * (size[2] - 1))
        axes.imshow(image[..., z].T, aspect=spacing[1] / spacing[0], **limits)
        at = np.array([*(size[:2] - 1) / 2, z])
        _draw_box(axes, to_p, frame.extent, (0, 1), at, size, spacing)
        height = (to_p @ [*at, 1])[2] / frame.extent[2]
        name = f"{title}\n" if share == heights[0] else ""
        axes.set_title(f"{name}z {z}: {height:.0%}", fontsize=8)
    for axes, across in zip(row[_SLICES:], (0, 1), strict=True):
        shown = (1 - across, 2)
        at = (size - 1.0) // 2
        section = np.take(image, int(at[across]), axis=across)
        axes.imshow(section.T, aspect=spacing[2] / spacing[shown[0]], **limits)
        _draw_box(axes, to_p, frame.extent, shown, at, size, spacing)
        axes.set_title(("sagittal", "coronal")[across], fontsize=8)
    for axes in row:
        axes.set_xticks([])
        axes.set_yticks([])


def _draw_box(
    axes: Axes,
    to_p: NDArray[np.float64],
    extent: NDArray[np.float64],
    shown: tuple[int, int],
    at: NDArray[np.float64],
    size: NDArray[np.int64],
    spacing: NDArray[np.float64],
) -> None:
    """The box's borders in one section of the volume, and the frame's axes from its centre.

    Args:
        axes: that the section is drawn on, in voxels.
        to_p: ``[3, 4]``, voxel indices to p.
        extent: of p.
        shown: which two axes of the volume the section has.
        at: indices that the section goes through.
        size: of the volume.
        spacing: size of a voxel in mm.
    """
    grid = np.meshgrid(*(np.arange(-0.5, size[axis]) for axis in shown), indexing="ij")
    index = np.repeat(at[None], grid[0].size, axis=0)
    for axis, values in zip(shown, grid, strict=True):
        index[:, axis] = values.ravel()
    p = index @ to_p[:, :3].T + to_p[:, 3]
    for k in range(3):
        level = (p[:, k] / extent[k]).reshape(grid[0].shape)
        if level.min() < 1 and level.max() > 0:
            axes.contour(grid[0], grid[1], level, [0, 1], colors=_EDGE, linewidths=0.9)
    if not ((p > 0) & (p < extent)).all(axis=1).any():
        return
    to_index = np.linalg.inv(to_p[:, :3])
    centre = at + to_index @ (extent / 2 - to_p[:, :3] @ at - to_p[:, 3])
    for k, color in enumerate((_RIGHT, _FRONT, _TOP)):
        tip = to_index[:, k] * extent[k] / 5
        in_mm = tip * spacing
        if np.linalg.norm(in_mm[list(shown)]) > 0.5 * np.linalg.norm(in_mm):  # it does not go through the section
            arrow = {"arrowstyle": "->", "color": color, "linewidth": 1.2}
            start, end = (tuple(point[list(shown)].tolist()) for point in (centre, centre + tip))
            axes.annotate("", end, start, arrowprops=arrow)
