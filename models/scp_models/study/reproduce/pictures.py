"""Figures 1, 2, 5, 6 and 7 of the paper, of this study's results."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from scp_models.data.slices import SliceCache
from scp_models.data.subjects import Subject
from scp_models.data.tasks import TARGET_LABEL
from scp_models.report.figures import LINE_COLOURS, TEXT_COLOUR, mark_sides
from scp_models.study.reproduce.costs import CostRow

PLANES = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}
"""Axes (right, front, top) that a plane shows."""
BINS = (64, 80, 56)
_PLACES = 32
"""Of each voxel, drawn at random in it: regular ones would show the voxels' grids as stripes."""


def lesion_density(cache: SliceCache, subjects: Sequence[Subject]) -> NDArray[np.float64]:
    """How often each part of the head's or body's box is lesion: ``BINS`` counts, one subject as much as another.

    Args:
        cache: of a task with the frame ``foreground``.
        subjects: the cohort.
    """
    total = np.zeros(BINS)
    rng = np.random.default_rng(0)
    for subject in subjects:
        label = np.asarray(cache.open(subject)[1])  # [Z, H, W]
        places = cache.positions(subject)
        assert places is not None
        z, h, w = np.nonzero(label == TARGET_LABEL)
        if not len(z):
            continue
        affine, extent = places.affine.numpy().astype(float), places.extent.numpy().astype(float)
        # A slice fills the space up to the next ones.
        step = (affine[-1, :, 2] - affine[0, :, 2]) / max(1, len(affine) - 1)
        axes = np.concatenate([affine[z], np.broadcast_to(step[:, None], (len(z), 3, 1))], axis=2)
        voxel = np.stack([h, w, np.ones_like(h), np.zeros_like(h)], axis=1)[:, None]  # height, width, 1, slice
        offset = rng.uniform(-0.5, 0.5, (len(z), _PLACES, 4)) * (1, 1, 0, 1)
        p = np.einsum("nkd,npd->npk", axes, voxel + offset)
        counts, _ = np.histogramdd((p / extent[z][:, None]).reshape(-1, 3), BINS, [(0.0, 1.0)] * 3)
        total += counts / (len(z) * _PLACES)
    return total / max(1, len(subjects))


def three_planes(density: NDArray[np.float64], *, width: float = 7.2) -> Figure:
    """Fig. 2: the density summed onto three planes; left of the patient on the left, front or top up."""
    figure = Figure(figsize=(width, 2.9), layout="constrained")
    for axis, (name, shown) in zip(figure.subplots(1, 3), PLANES.items(), strict=True):
        (hidden,) = {0, 1, 2} - set(shown)
        projected = density.sum(axis=hidden)
        axis.imshow(projected.T, origin="lower", cmap="inferno", interpolation="bilinear", aspect="equal")
        axis.set_title(name, fontsize=8, color=TEXT_COLOUR)
        axis.set_xticks([])
        axis.set_yticks([])
        if name != "sagittal":
            mark_sides(axis)
    return figure


def boxes(
    panels: Sequence[tuple[str, Mapping[str, NDArray[np.float64]], Mapping[str, str]]],
    first: str,
    *,
    width: float = 8.6,
) -> Figure:
    """Fig. 5: box plots of subjects' scores, with brackets of the paired t-tests of ``first`` against the others.

    Args:
        panels: title, scores by network, marks by network.
        first: who is tested.
        width: in inches.
    """
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(width, 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (title, scores, marks) in zip(axes, panels, strict=False):
        names = list(scores)
        drawn = axis.boxplot(list(scores.values()), widths=0.55, patch_artist=True, medianprops={"color": "#222222"})
        for name, box in zip(names, drawn["boxes"], strict=True):
            box.set(facecolor=LINE_COLOURS[0] if name == first else "#D8D8D8", edgecolor="#555555")
        top = max(float(np.max(values)) for values in scores.values())
        _brackets(axis, names, marks, first, top)
        axis.set_xticks(range(1, len(names) + 1), ["\n".join(name.rsplit(" ", 1)) for name in names])
        low, _ = axis.get_ylim()
        axis.set_yticks([tick for tick in axis.get_yticks() if low <= tick <= 1])  # above are brackets, not scores
        axis.set_title(title, fontsize=9, color=TEXT_COLOUR, loc="left")
        axis.tick_params(labelsize=7, colors=TEXT_COLOUR, length=2)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    return figure


def _brackets(axis: Axes, names: Sequence[str], marks: Mapping[str, str], first: str, top: float) -> None:
    """From ``first`` to each other, one above the next."""
    start = names.index(first) + 1
    step = 0.07 * max(top, 0.1)
    for level, (name, mark) in enumerate(marks.items()):
        end, height = names.index(name) + 1, top + step * (level + 0.7)
        axis.plot([start, start, end, end], [height - step / 4, height, height, height - step / 4],
                  color="#555555", linewidth=0.8)  # fmt: skip
        axis.annotate(mark, ((start + end) / 2, height), ha="center", va="bottom", fontsize=7, color=TEXT_COLOUR)
    axis.set_ylim(top=top + step * (len(marks) + 1.2))


def complexity_bars(costs: Sequence[CostRow], shown: Sequence[tuple[str, str]], *, width: float = 8.6) -> Figure:
    """Fig. 6: memory, FLOPs and parameters as ratios to Base 128.

    Args:
        costs: of all networks.
        shown: name and operator of each bar.
        width: in inches.
    """
    rows = {(cost.name, cost.operator): cost for cost in costs}
    chosen = [rows[key] for key in shown]
    labels = [f"{c.name}\n({c.operator})" if c.operator else "\n".join(c.name.rsplit(" ", 1)) for c in chosen]
    figure = Figure(figsize=(width, 3.0), layout="constrained")
    titles = {"memory kept for backward": "memory", "multiply-adds": "macs", "parameters": "parameters"}
    for axis, (title, key) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        values = [getattr(cost, key) for cost in chosen]
        colours = [
            LINE_COLOURS[0] if c.operator == "ours" else LINE_COLOURS[5] if c.operator else "#C8C8C8" for c in chosen
        ]
        bars = axis.bar(range(len(values)), values, color=colours)
        axis.bar_label(bars, fmt="%.2f", fontsize=7, color=TEXT_COLOUR)
        axis.set_xticks(range(len(labels)), labels, rotation=40, ha="right", rotation_mode="anchor")
        axis.set_title(title, fontsize=9, color=TEXT_COLOUR, loc="left")
        axis.tick_params(labelsize=6.5, colors=TEXT_COLOUR, length=2)
        axis.spines[["top", "right"]].set_visible(False)
    return figure
