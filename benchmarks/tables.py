"""Races as tables of text; ``python -m benchmarks.tables RESULTS.json`` prints a short one of a record."""

import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.claims import HEADINGS, Claim, rows
from benchmarks.peers import ONE_MAP

LEAST_WIDTH = 150  # narrower terminals wrap; figures cut off would be worse


def tables(races: Mapping[str, Mapping[str, Any]], width: int = LEAST_WIDTH) -> str:
    """One table per race: times, ratio to ours, memory, multiply-adds, bandwidth."""
    console = Console(file=io.StringIO(), width=max(width, LEAST_WIDTH), color_system=None)
    for name, race in races.items():
        console.print(_table(name, race))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def _table(name: str, race: Mapping[str, Any]) -> Table:
    caption = f"a plain copy moves {race['copy_bandwidth'] / 1e9:.1f} GB/s"
    if "nominal_macs" in race:
        caption += f"; nominal multiply-adds {count(race['nominal_macs'])}"
    caption += many_maps_text(race)
    headings = ("", "median", "5–95 %", "GPU alone", "÷ ours", "kept", "peak", "executed", "of a copy", "error")
    lines = []
    for who, figure in race["subjects"].items():
        times = figure["seconds"]
        alone = figure.get("device_seconds")
        share = figure.get("bandwidth_share")
        errors = figure.get("errors", {})
        lines.append((
            who,
            format_seconds(times["median"]),
            f"{format_seconds(times['p05'])} – {format_seconds(times['p95'])}",
            format_seconds(alone["median"]) if isinstance(alone, dict) else "",
            f"{figure['ratio']:.2f}",
            size(figure.get("saved_bytes")),
            size(figure.get("peak_bytes")),
            count(figure.get("executed_macs")),
            "" if share is None else f"{share:.0%}",
            f"{max(errors.values()):.0e}" if errors else "",
        ))  # fmt: skip
    table = Table(title=name, caption=caption, title_justify="left", caption_justify="left")
    columns = [
        (heading, cells) for heading, cells in zip(headings, zip(*lines, strict=True), strict=True) if any(cells)
    ]
    for heading, _ in columns:
        table.add_column(heading, justify="right" if heading else "left")
    for cells in zip(*(cells for _, cells in columns), strict=True):
        table.add_row(*cells)
    return table


def many_maps(race: Mapping[str, Any]) -> float | None:
    """Our time where each of B samples has a position map of its own, over B times that of one sample with its map.

    None where that was not timed.
    """
    one = race["subjects"].get(f"{race.get('ours')}{ONE_MAP}")
    return None if one is None else 1 / (race["case"]["batch"] * one["ratio"])


def many_maps_text(race: Mapping[str, Any]) -> str:
    """``"; 14 maps / (14 × one map) 0.90"``, or nothing."""
    share = many_maps(race)
    if share is None:
        return ""
    batch = race["case"]["batch"]
    return f"; {batch} maps / ({batch} × one map) {share:.2f}"


def claim_table(claims: Sequence[Claim], width: int = LEAST_WIDTH) -> str:
    """The verdict as a table of text."""
    console = Console(file=io.StringIO(), width=max(width, LEAST_WIDTH), color_system=None)
    table = Table()
    for heading in HEADINGS:
        table.add_column(heading)
    for cells in rows(claims):
        table.add_row(*(cell.replace("`", "") for cell in cells))
    console.print(table)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def format_seconds(value: float) -> str:
    """Three digits with a unit: ``"1.23 ms"``."""
    return _scaled(value, (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)))


def count(value: float | None) -> str:
    """``"2.68 G"``; empty where nothing was counted."""
    return "" if value is None else _scaled(value, (("G", 1e9), ("M", 1e6), ("k", 1e3)))


def size(value: float | None) -> str:
    """``"1.5 MiB"``; empty where nothing was measured."""
    if value is None:
        return ""
    return "0" if value == 0 else _scaled(value, (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10)))


def _scaled(value: float, units: tuple[tuple[str, float], ...]) -> str:
    unit, scale = next((u for u in units if value >= u[1]), units[-1])
    scaled = value / scale
    return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f} {unit}"


def short_table(races: Mapping[str, Mapping[str, Any]]) -> str:
    """A line per race: our time, and each peer's over it (more than 1: we are faster)."""
    lines = []
    for name, race in races.items():
        ours = race["subjects"][race["ours"]]
        ratios = [f"{who} {f['ratio']:.2f}" for who, f in race["subjects"].items() if who != race["ours"]]
        share = f", {ours['bandwidth_share']:.0%} of a copy" if "bandwidth_share" in ours else ""
        median = format_seconds(ours[ours["clock"]]["median"])
        lines.append(f"{name}: {race['ours']} {median}{share}; {', '.join(ratios)}{many_maps_text(race)}")
        lines += [f"    WRONG {who}: {reason.splitlines()[0]}" for who, reason in race.get("wrong", {}).items()]
    return "\n".join(lines)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(short_table(json.loads(Path(argument).read_text())["races"]))
