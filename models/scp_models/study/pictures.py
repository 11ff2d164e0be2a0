"""Figures of studies: pure functions to matplotlib ``Figure``s, as in :mod:`scp_models.report.figures`."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from scp_models.report.figures import LINE_COLOURS, TEXT_COLOUR
from scp_models.study.analysis import Difference

_COLOURS = {"higher": LINE_COLOURS[2], "lower": LINE_COLOURS[3], "none": "#888888"}


def forest(groups: Sequence[tuple[str, Sequence[Difference]]], *, width: float = 8.6) -> Figure:
    """Differences with their widened intervals, a panel per data set, on one scale.

    Args:
        groups: title and differences of each panel.
        width: in inches.
    """
    counts = [max(1, len(found)) for _, found in groups]
    figure = Figure(figsize=(width, 0.55 + sum(0.19 * count + 0.5 for count in counts)), layout="constrained")
    axes = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=[c + 1.2 for c in counts])[:, 0]
    for axis, (title, found) in zip(axes, groups, strict=True):
        axis.axvline(0, color="#444444", linewidth=0.8, zorder=1)
        for k, difference in enumerate(found):
            i = difference.interval
            colour = _COLOURS[difference.verdict]
            axis.plot((i.family_low, i.family_high), (k, k), color=colour, linewidth=1.6, zorder=2)
            axis.plot(i.mean, k, "o", color=colour, markersize=4, zorder=3)
        names = [f"{d.comparison.network} − {d.comparison.other}" for d in found]
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.set_title(title, fontsize=9, color=TEXT_COLOUR, loc="left")
        axis.tick_params(labelsize=7, colors=TEXT_COLOUR, length=2)
        axis.grid(axis="x", color="#E5E5E5", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[-1].set_xlabel("difference in Dice", fontsize=8, color=TEXT_COLOUR)
    return figure
