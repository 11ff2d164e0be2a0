"""The report's pictures, drawn from recorded races alone."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Race = dict[str, Any]

# Okabe and Ito's colours, which the colour-blind can tell apart; ours are the strong ones.
COLOURS = {
    "plain 1x1": "#999999",
    "plain product": "#444444",
    "paper-style": "#CC79A7",
    "batch-shared": "#E69F00",
    "torch.compile": "#56B4E9",
    "W precomputed": "#F0E442",
    "CoordConv": "#8C564B",
    "cpu, frozen": "#009E73",
    "cpu": "#D55E00",
    "cuda": "#0072B2",
    "triton": "#000000",
}
FALLBACK = "#888888"
DPI = 110


def save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version of matplotlib in the file, the same figures give the same bytes.
    figure.savefig(path, dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return path


def label(case: dict[str, Any]) -> str:
    """``"h 64, C 8\\nB 14, 160×224"``."""
    size = "×".join(map(str, case["shape"]))
    dtype = "" if case["dtype"] == "float32" else f"\n{case['dtype']}"
    axes = f", K {case['position_dims']}" if "position_dims" in case else ""
    maps = f"\none map per sample{axes}" if case.get("per_sample") else ""
    return f"h {case['hidden']}, C {case['channels']}\nB {case['batch']}, {size}{dtype}{maps}"


def peer_names(races: Iterable[Race]) -> list[str]:
    """All names that occur, in the order of the colours, then of appearance."""
    present = dict.fromkeys(name for race in races for name in race["subjects"])
    known = [name for name in COLOURS if name in present]
    return known + [name for name in present if name not in COLOURS]


def median_seconds(figure: dict[str, Any]) -> float:
    return figure[figure["clock"]]["median"]


def bars(races: dict[str, list[Race]], path: Path) -> Path:
    """Time of each peer over ours, one panel per step, one group of bars per case."""
    longest = max(len(of_step) for of_step in races.values())
    figure, axes = plt.subplots(len(races), 1, figsize=(max(8.0, 1.5 * longest), 3.4 * len(races)), squeeze=False)
    for axis, (step, of_step) in zip(axes[:, 0], races.items(), strict=True):
        names = [name for name in peer_names(of_step) if any(race["ours"] != name for race in of_step)]
        width = 0.85 / len(names)
        for k, name in enumerate(names):
            places = [
                n + (k - (len(names) - 1) / 2) * width for n, race in enumerate(of_step) if name in race["subjects"]
            ]
            values = [race["subjects"][name]["ratio"] for race in of_step if name in race["subjects"]]
            drawn = axis.bar(
                places, [v - 1 for v in values], width, bottom=1, color=COLOURS.get(name, FALLBACK), label=name
            )
            texts = [f"{v:.0f}" if v >= 9.5 else f"{v:.1f}" for v in values]
            axis.bar_label(drawn, texts, fontsize=6, padding=1)
        axis.set_yscale("log")
        axis.margins(y=0.12)
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_xticks(range(len(of_step)), [label(race["case"]) for race in of_step], fontsize=7)
        axis.set_ylabel("time ÷ ours")
        axis.set_title(step, loc="left")
        _light_frame(axis)
    figure.tight_layout()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=8, fontsize=8, loc="lower left", bbox_to_anchor=(0.02, 1.0), frameon=False)
    return save(figure, path)


def scaling(lines: dict[str, tuple[list[Race], Callable[[Race], float]]], steps: list[str], path: Path) -> Path:
    """Time along width, image and batch: a row per step, a column per line; both axes logarithmic."""
    figure, axes = plt.subplots(len(steps), len(lines), figsize=(4.0 * len(lines), 3.2 * len(steps)), squeeze=False)
    names: list[str] = []
    for row, step in zip(axes, steps, strict=True):
        for axis, (title, (races, along)) in zip(row, lines.items(), strict=True):
            of_step = sorted((race for race in races if race["step"] == step), key=along)
            names = list(dict.fromkeys([*names, *peer_names(of_step)]))
            for name in peer_names(of_step):
                here = [race for race in of_step if name in race["subjects"]]
                times = [1e3 * median_seconds(race["subjects"][name]) for race in here]
                axis.plot(
                    [along(race) for race in here], times, "o-", ms=3.5, lw=1.2, color=COLOURS.get(name, FALLBACK)
                )
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            ticks = sorted({along(race) for race in of_step})
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=7)
            axis.minorticks_off()
            axis.set_xlabel(title)
            axis.set_ylabel(f"{step}, ms")
            _light_frame(axis)
    handles = [plt.Line2D([], [], color=COLOURS.get(name, FALLBACK), marker="o", ms=4, label=name) for name in names]
    figure.tight_layout()
    figure.legend(handles=handles, ncols=8, fontsize=8, loc="lower left", bbox_to_anchor=(0.02, 1.0), frameon=False)
    return save(figure, path)


def roofline(races: list[Race], path: Path) -> Path:
    """Rate of the multiply-adds executed against their number per byte that nobody can avoid."""
    figure, axis = plt.subplots(figsize=(7.5, 4.6))
    bandwidth = max(race["copy_bandwidth"] for race in races)
    names = peer_names(races)
    shown: list[tuple[float, float]] = []
    for name in names:
        points = [
            (f["executed_macs"] / race["bytes_moved"], f["executed_macs"] / median_seconds(f))
            for race in races
            if (f := race["subjects"].get(name)) and f["executed_macs"]
        ]
        if points:
            x, y = zip(*points, strict=True)
            axis.scatter(x, y, s=18, color=COLOURS.get(name, FALLBACK), label=name, zorder=3)
            shown += points
    least, most = min(x for x, _ in shown) / 2, max(x for x, _ in shown) * 2
    for dtype, rate in races[0]["product_rate"].items():
        knee = rate / bandwidth
        axis.plot([least, knee, max(most, 2 * knee)], [least * bandwidth, rate, rate], color="black", lw=0.9)
        axis.annotate(f"matrix product, {dtype}: {rate / 1e9:.0f} G/s", (knee, rate), (0, 4),
                      textcoords="offset points", fontsize=7)  # fmt: skip
    axis.annotate(f"copy: {bandwidth / 1e9:.0f} GB/s", (least * 1.3, least * 1.3 * bandwidth), (12, -10),
                  textcoords="offset points", fontsize=7)  # fmt: skip
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("multiply-adds executed per byte of X and Y")
    axis.set_ylabel("multiply-adds per second")
    axis.legend(fontsize=7, frameon=False, loc="upper left")
    _light_frame(axis)
    return save(figure, path)


def figure_6(rows: dict[str, dict[str, tuple[float, float]]], path: Path) -> Path:
    """The paper's Fig. 6: memory, operations, parameters of some networks, measured beside printed.

    Args:
        rows: by quantity, by network: the ratio to the anchor measured here, and the paper's.
    """
    figure, axes = plt.subplots(1, len(rows), figsize=(3.6 * len(rows), 3.2))
    for axis, (title, networks) in zip(axes, rows.items(), strict=True):
        for k, (who, colour) in enumerate((("here", COLOURS["cpu"]), ("paper", COLOURS["plain 1x1"]))):
            values = [pair[k] for pair in networks.values()]
            drawn = axis.bar([n + (k - 0.5) * 0.38 for n in range(len(values))], values, 0.38, color=colour, label=who)
            axis.bar_label(drawn, [f"{value:.2f}" for value in values], fontsize=6.5)
        axis.set_xticks(range(len(networks)), [name.replace(" ", "\n", 1) for name in networks], fontsize=7)
        axis.set_title(title, fontsize=9)
        _light_frame(axis)
    axes[0].set_ylabel("ratio to Base 128")
    axes[-1].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    return save(figure, path)


def _light_frame(axis: Axes) -> None:
    axis.grid(axis="y", linewidth=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
