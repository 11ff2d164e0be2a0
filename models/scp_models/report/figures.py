"""Figures of segmentations, learned weights, losses and scores: pure functions from arrays to matplotlib ``Figure``s.

Slices are arrays ``[X, Y]`` of the canonical (RAS) grid: X grows to the patient's right and Y to the front. They are
drawn with the front up and the patient's left on the left (neurological convention), at the pixels' true aspect.
Nothing here touches pyplot or any other global state, so figures can be made from any thread and without a display.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from scp_models.data.classes import IGNORED_AMONG_CLASSES
from scp_models.data.tasks import IGNORED_LABEL

# Okabe and Ito's palette: told apart with any of the common colour vision deficiencies, and by lightness in print.
REFERENCE_COLOUR = "#E69F00"
PREDICTION_COLOUR = "#56B4E9"
IGNORED_COLOUR = "#CC79A7"
LINE_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
LINE_STYLES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")
CLASS_COLOURS = ("#E69F00", "#0072B2", "#009E73", "#F0E442", "#D55E00", "#56B4E9")
TEXT_COLOUR = "#222222"
STATISTICS = ("maximum", "mean", "minimum", "L2 norm", "standard deviation")

_LABEL_SIZE = 8.0
_MARK_SIZE = 7.0


def mask_edges(mask: NDArray[np.bool_], spacing: tuple[float, float] = (1.0, 1.0)) -> NDArray[np.float64]:
    """Every pixel edge between a mask's inside and its outside, the image's border included.

    Unlike a contour at 0.5 it cuts no corner and loses no single pixel: the outline is the mask.

    Args:
        mask: ``[X, Y]``.
        spacing: pixel size along X and Y.

    Returns:
        ``[edges, 2 (ends), 2 (x, y)]`` in units of ``spacing``; pixel (0, 0) covers [0, dx] × [0, dy].
    """
    padded = np.pad(np.asarray(mask, dtype=bool), 1)
    x, y = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    along_y = np.stack([np.stack([x, y], -1), np.stack([x, y + 1], -1)], 1)
    x, y = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    along_x = np.stack([np.stack([x, y], -1), np.stack([x + 1, y], -1)], 1)
    return np.concatenate([along_y, along_x]) * np.asarray(spacing, dtype=float)


@dataclass(frozen=True)
class OutlinedSlice:
    """One panel of :func:`outline_slices`.

    ``image`` and the masks are ``[X, Y]``; ``reference`` holds 0, 1 and, for pixels that no score counts, 2. Of several
    classes both hold 0 and the classes' numbers, and 255 is what no score counts.
    """

    title: str
    image: NDArray[np.floating]
    reference: NDArray[np.integer] | None = None
    prediction: NDArray[np.integer] | None = None


def outline_slices(
    panels: Sequence[OutlinedSlice],
    *,
    spacing: tuple[float, float] = (1.0, 1.0),
    columns: int = 4,
    intensity_range: tuple[float, float] | None = None,
    width: float = 7.2,
    classes: Sequence[str] = (),
) -> Figure:
    """Slices with the reference and a prediction outlined along pixel edges.

    Args:
        panels: what to draw, row by row.
        spacing: mm per pixel along X and Y.
        columns: panels per row.
        intensity_range: grey levels of black and white; None: the 1st and 99.8th percentile over all panels.
        width: of the figure in inches; the height follows from the slices' aspect.
        classes: names of several classes, each outlined in a colour of its own; empty: one target.
    """
    if not panels:
        raise ValueError("panels: expected at least one slice to draw")
    if intensity_range is None:
        low, high = np.percentile(np.concatenate([panel.image.ravel() for panel in panels]), (1.0, 99.8))
        intensity_range = (float(low), float(high))
    ignored = IGNORED_AMONG_CLASSES if classes else IGNORED_LABEL
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = _image_grid(rows, columns, panels[0].image.shape, spacing, width, legend=True)
    for axis, panel in zip(axes, panels, strict=False):
        show_slice(axis, panel.image, spacing, intensity_range, title=panel.title)
        if panel.reference is not None:
            _outline(axis, panel.reference == ignored, spacing, IGNORED_COLOUR, 1.0)
        # The reference is the broad line underneath, so both stay visible where they coincide.
        for number in range(1, 1 + max(1, len(classes))):
            broad, thin = _class_colours(number) if classes else (REFERENCE_COLOUR, PREDICTION_COLOUR)
            if panel.reference is not None:
                _outline(axis, panel.reference == number, spacing, broad, 1.9)
            if panel.prediction is not None:
                _outline(axis, panel.prediction == number, spacing, thin, 0.9)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    handles = [
        Line2D([], [], color=REFERENCE_COLOUR, linewidth=2.2, label="reference"),
        Line2D([], [], color=PREDICTION_COLOUR, linewidth=1.4, label="prediction"),
    ]
    if classes:
        handles = [
            Line2D([], [], color=colours[k], linewidth=(2.2, 1.4)[k], label=f"{name}, {what}")
            for number, name in enumerate(classes, start=1)
            for colours in (_class_colours(number),)
            for k, what in enumerate(("reference", "prediction"))
        ]
    if any(panel.reference is not None and (panel.reference == ignored).any() for panel in panels):
        handles.append(Line2D([], [], color=IGNORED_COLOUR, linewidth=1.4, label="not scored"))
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=min(len(handles), 6),
        frameon=False,
        fontsize=_LABEL_SIZE,
        labelcolor=TEXT_COLOUR,
    )
    return figure


def _class_colours(number: int) -> tuple[str, str]:
    """Of a class's reference and, lighter, of its prediction."""
    colour = CLASS_COLOURS[(number - 1) % len(CLASS_COLOURS)]
    red, green, blue = to_rgb(colour)
    return colour, to_hex((0.5 + red / 2, 0.5 + green / 2, 0.5 + blue / 2))


def weight_field_statistics(
    weight_field: NDArray[np.floating], *, spacing: tuple[float, float] = (1.0, 1.0), width: float = 7.2
) -> Figure:
    """Five statistics of a weight field along its channels, each min–max normalised (paper, Fig. 7).

    Args:
        weight_field: ``[N, C, X, Y]``; one row of panels per class.
        spacing: mm per pixel along X and Y.
        width: in inches.
    """
    if weight_field.ndim != 4:
        raise ValueError(f"weight_field: expected [N, C, X, Y], got shape {list(weight_field.shape)}")
    classes = weight_field.shape[0]
    figure, axes = _image_grid(classes, len(STATISTICS), weight_field.shape[2:], spacing, width)
    for n in range(classes):
        for k, (name, values) in enumerate(channel_statistics(weight_field[n]).items()):
            low, high = float(values.min()), float(values.max())
            title = f"{name}\n{low:.3g} to {high:.3g}"
            normalised = (values - low) / (high - low) if high > low else np.zeros_like(values)
            show_slice(axes[n * len(STATISTICS) + k], normalised, spacing, (0.0, 1.0), title=title, colours="cividis")
    return figure


def channel_statistics(weight_field: NDArray[np.floating]) -> dict[str, NDArray[np.floating]]:
    """The statistics of Fig. 7 of a ``[C, X, Y]`` field, by name, each ``[X, Y]``."""
    return {
        "maximum": weight_field.max(0),
        "mean": weight_field.mean(0),
        "minimum": weight_field.min(0),
        "L2 norm": np.sqrt(np.square(weight_field).sum(0)),
        "standard deviation": weight_field.std(0),
    }


def lesion_frequency(
    frequency: NDArray[np.floating], *, spacing: tuple[float, float] = (1.0, 1.0), width: float = 2.2
) -> Figure:
    """How often each pixel is lesion: ``frequency`` is ``[X, Y]`` with values in [0, 1]; drawn in per cent."""
    height = 0.86 * width * (frequency.shape[1] * spacing[1]) / (frequency.shape[0] * spacing[0]) * 0.8 + 0.35
    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    top = float(frequency.max()) * 100
    drawn = show_slice(
        axis, 100 * frequency, spacing, (0.0, top if top > 0 else 1.0), title="lesion frequency", colours="cividis"
    )
    bar = figure.colorbar(drawn, ax=axis, shrink=0.8, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=_MARK_SIZE, colors=TEXT_COLOUR, length=2)
    bar.ax.set_title("%", fontsize=_MARK_SIZE, color=TEXT_COLOUR)
    return figure


@dataclass(frozen=True)
class LossCurve:
    """The losses of one run: the epochs' means, ``validation`` None where there was none."""

    model: str
    training: Sequence[float]
    validation: Sequence[float] | None = None


def loss_curves(curves: Sequence[LossCurve], *, width: float = 7.2) -> Figure:
    """Training loss and, beside it on the same scale, validation loss against the epoch; one line per run.

    Runs of one model (its seeds) share a colour and a dash pattern.
    """
    if not curves:
        raise ValueError("curves: expected at least one run to draw")
    models = list(dict.fromkeys(curve.model for curve in curves))
    validated = any(curve.validation is not None for curve in curves)
    figure = Figure(figsize=(width, 3.3), layout="constrained")
    axes = figure.subplots(1, 2 if validated else 1, sharey=True, squeeze=False)[0]
    for axis, part in zip(axes, ("training", "validation"), strict=False):
        for curve in curves:
            values = getattr(curve, part)
            if values is None:
                continue
            k = models.index(curve.model)
            epochs = np.arange(1, len(values) + 1)
            style = {"color": LINE_COLOURS[k % len(LINE_COLOURS)], "linestyle": LINE_STYLES[k % len(LINE_STYLES)]}
            axis.plot(epochs, values, linewidth=1.3, marker="o", markersize=2.5, alpha=0.85, **style)
        axis.set_title(f"{part} loss", fontsize=_LABEL_SIZE + 1, color=TEXT_COLOUR, loc="left")
        axis.set_xlabel("epoch", fontsize=_LABEL_SIZE, color=TEXT_COLOUR)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        _plain(axis)
    handles = [
        Line2D(
            [], [], color=LINE_COLOURS[k % len(LINE_COLOURS)], linestyle=LINE_STYLES[k % len(LINE_STYLES)], label=model
        )
        for k, model in enumerate(models)
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=_LABEL_SIZE,
        labelcolor=TEXT_COLOUR,
        handlelength=3.0,
    )
    return figure


def score_comparison(
    scores: Mapping[str, NDArray[np.floating]],
    *,
    metric: str,
    marks: Mapping[str, str] | None = None,
    compared_with: str | None = None,
    width: float = 7.2,
) -> Figure:
    """Every subject's score with every model, joined by one line per subject; medians as bars (after paper, Fig. 5).

    Args:
        scores: by model, each ``[subjects]`` in one common order; NaN where a subject has no score.
        metric: the axis' label.
        marks: by model, what the paired test against ``compared_with`` gave ("ns", "*", …), written above it.
        compared_with: the model that the marks compare with; highlighted.
        width: in inches.
    """
    names = list(scores)
    values = np.stack([np.asarray(scores[name], dtype=float) for name in names])
    figure = Figure(figsize=(width, 3.4), layout="constrained")
    axis = figure.subplots()
    axis.plot(np.arange(len(names)), values, color="#BBBBBB", linewidth=0.6, zorder=1)
    for k, name in enumerate(names):
        colour = "#0072B2" if name == compared_with else "#555555"
        axis.plot(np.full(values.shape[1], k), values[k], "o", color=colour, markersize=3.2, alpha=0.55, zorder=2)
        middle = np.nanmedian(values[k]) if np.isfinite(values[k]).any() else np.nan
        axis.hlines(middle, k - 0.26, k + 0.26, color=colour, linewidth=2.4, zorder=3)
        axis.annotate(
            f"{middle:.2f}", (k + 0.28, middle), va="center", fontsize=_MARK_SIZE, color=TEXT_COLOUR, zorder=4,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )  # fmt: skip
    axis.set_ylim(min(0.0, float(np.nanmin(values, initial=0.0))), max(1.0, float(np.nanmax(values, initial=0.0))))
    for name, mark in (marks or {}).items():
        axis.annotate(
            mark, (names.index(name), 1.01), xycoords=("data", "axes fraction"), ha="center", va="bottom",
            fontsize=_LABEL_SIZE + 1, color=TEXT_COLOUR,
        )  # fmt: skip
    axis.set_xlim(-0.5, len(names) - 0.3)
    axis.set_xticks(range(len(names)), [name.replace(" (", "\n(") for name in names])
    axis.set_ylabel(metric, fontsize=_LABEL_SIZE, color=TEXT_COLOUR)
    _plain(axis)
    return figure


def show_slice(
    axis: Axes,
    values: NDArray[np.floating],
    spacing: tuple[float, float],
    value_range: tuple[float, float],
    *,
    title: str = "",
    colours: str = "gray",
):
    """Draw ``[X, Y]`` values with the front up and the patient's left on the left; returns matplotlib's image."""
    size_x, size_y = values.shape[0] * spacing[0], values.shape[1] * spacing[1]
    drawn = axis.imshow(
        values.T,
        origin="lower",
        extent=(0.0, size_x, 0.0, size_y),
        cmap=colours,
        vmin=value_range[0],
        vmax=value_range[1],
        interpolation="nearest",
    )
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_title(title, fontsize=_LABEL_SIZE, color=TEXT_COLOUR, pad=3)
    mark_sides(axis)
    return drawn


def mark_sides(axis: Axes) -> None:
    """L and R in the lower corners, of a panel with the patient's left on the left."""
    for side, x in (("L", 0.04), ("R", 0.96)):
        mark = axis.text(
            x, 0.02, side, transform=axis.transAxes, ha="center", va="bottom", fontsize=_MARK_SIZE - 1, color="white"
        )
        mark.set_path_effects([withStroke(linewidth=1.5, foreground="black")])


def _outline(axis: Axes, mask: NDArray[np.bool_], spacing: tuple[float, float], colour: str, width: float) -> None:
    axis.add_collection(
        LineCollection(list(mask_edges(mask, spacing)), colors=colour, linewidths=width, capstyle="projecting")
    )


def _image_grid(
    rows: int, columns: int, shape: tuple[int, ...], spacing: tuple[float, float], width: float, legend: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure whose panels fit slices of ``shape`` exactly, with room for titles and, below, for a legend."""
    gap, title, below = 0.08, 0.36, 0.3 if legend else 0.02
    panel_width = (width - gap * (columns + 1)) / columns
    panel_height = panel_width * (shape[1] * spacing[1]) / (shape[0] * spacing[0])
    height = rows * (panel_height + title) + below
    figure = Figure(figsize=(width, height))
    axes = []
    for k in range(rows * columns):
        row, column = divmod(k, columns)
        left = gap + column * (panel_width + gap)
        bottom = height - (row + 1) * (panel_height + title)
        axes.append(figure.add_axes((left / width, bottom / height, panel_width / width, panel_height / height)))
    return figure, axes


def _plain(axis: Axes) -> None:
    """No box, a faint horizontal grid, small labels."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#888888")
    axis.tick_params(labelsize=_LABEL_SIZE, colors=TEXT_COLOUR, length=2.5)
    axis.grid(axis="y", color="#E5E5E5", linewidth=0.6)
    axis.set_axisbelow(True)
