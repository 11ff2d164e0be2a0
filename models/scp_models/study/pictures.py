"""Figures of studies: pure functions to matplotlib ``Figure``s, as in :mod:`scp_models.report.figures`, and how a page
keeps them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scp_models.files import atomic_path
from scp_models.report.figures import LINE_COLOURS, TEXT_COLOUR
from scp_models.study.analysis import Difference

VERDICT_COLOURS = {"higher": LINE_COLOURS[0], "none": "#9A9A9A", "lower": LINE_COLOURS[3]}
VERDICT_WORDS = {"higher": "SCP higher", "none": "no difference shown", "lower": "SCP lower"}


def forest(
    groups: Sequence[tuple[str, Mapping[str, Mapping[str, Difference]]]],
    *,
    by_verdict: bool = False,
    width: float = 8.6,
) -> Figure:
    """Differences with their widened intervals, a panel per group, on one scale; hollow where none is shown.

    Args:
        groups: title of each panel, and its differences by row and by series.
        by_verdict: colours say what is shown, for a single series; otherwise which series it is.
        width: in inches.
    """
    series = list(dict.fromkeys(name for _, rows in groups for outcomes in rows.values() for name in outcomes))
    counts = [max(1, len(rows)) for _, rows in groups]
    row = 0.34 * max(1, len(series) / 3)  # in inches
    figure = Figure(figsize=(width, 0.9 + sum(row * count + 0.45 for count in counts)), layout="constrained")
    axes = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=[c + 0.8 for c in counts])[:, 0]
    for axis, (title, rows) in zip(axes, groups, strict=True):
        axis.axvline(0, color="#444444", linewidth=0.8, zorder=1)
        for k, outcomes in enumerate(rows.values()):
            for name, difference in outcomes.items():
                m = series.index(name)
                i, y = difference.interval, k + min(0.26, 0.8 / len(series)) * (m - (len(series) - 1) / 2)
                colour = VERDICT_COLOURS[difference.verdict] if by_verdict else LINE_COLOURS[m % len(LINE_COLOURS)]
                axis.plot((i.family_low, i.family_high), (y, y), color=colour, linewidth=2.0, zorder=2)
                face = "white" if difference.verdict == "none" else colour
                axis.plot(i.mean, y, "o", color=colour, markerfacecolor=face, markersize=6, zorder=3)
        axis.set_yticks(range(len(rows)), list(rows))
        axis.set_ylim(len(rows) - 0.45, -0.55)
        axis.set_title(title, fontsize=10, color=TEXT_COLOUR, loc="left")
        axis.tick_params(labelsize=9, colors=TEXT_COLOUR, length=2)
        axis.grid(axis="x", color="#E5E5E5", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[-1].set_xlabel("difference in Dice", fontsize=9, color=TEXT_COLOUR)
    handles = [
        _mark(LINE_COLOURS[m % len(LINE_COLOURS)], LINE_COLOURS[m % len(LINE_COLOURS)], name)
        for m, name in enumerate(series)
    ]
    if by_verdict:
        handles = [
            _mark(colour, "white" if verdict == "none" else colour, VERDICT_WORDS[verdict])
            for verdict, colour in VERDICT_COLOURS.items()
        ]
    look = {"frameon": False, "fontsize": 9, "labelcolor": TEXT_COLOUR, "ncols": min(3, len(handles))}
    figure.legend(handles=handles, loc="outside lower center", **look)  # type: ignore[arg-type]
    return figure


def _mark(colour: str, face: str, label: str) -> Line2D:
    return Line2D([], [], color=colour, marker="o", markerfacecolor=face, linewidth=2.0, label=label)


def save_beside(figure: Figure, page: Path, name: str) -> None:
    """Write a figure as PNG, the same bytes for the same figure; ``name`` is its path from the page.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_path(page.parent / name) as temporary:
        figure.savefig(temporary, format="png", dpi=130, facecolor="white", metadata={"Software": None})
