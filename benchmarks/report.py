"""Writes ``docs/benchmarks.md``, its pictures and the README's verdict from recorded results, no figure by hand.

``python -m benchmarks.report [RESULTS.json …]``; without arguments, from all of ``benchmarks/results/``.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import claims, plots
from benchmarks.claims import HEADINGS, percent, rows
from benchmarks.claims import digits as short
from benchmarks.peers import ONE_MAP
from benchmarks.plots import Race, median_seconds, peer_names
from benchmarks.tables import many_maps

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DOCUMENT = HERE.parent / "docs" / "benchmarks.md"
PICTURES = "images/benchmarks"

TITLE = "# Benchmarks\n"
README = HERE.parent / "README.md"
BEGIN, END = "<!-- written by python -m benchmarks.report: do not edit -->", "<!-- end of what is written -->"

HEAD = """## How it is measured

Written by `python -m benchmarks.report` from the records in `benchmarks/results/`: do not edit. A record is made by

    pytest benchmarks/ --benchmark-only --slow --record benchmarks/results    # with a GPU: bash benchmarks/gpu.sh

Without `--slow` it is meant to end within five minutes on two quiet cores, in a verdict like the one above.

One race per case: all entrants are timed in turn in one process, in another order each round;
each call is synchronised and, if it is short, preceded by untimed calls of the same entrant. A ratio is the median over
rounds of times taken within one round, so that a busy machine meets all alike; it is the entrant's time over ours:
*more than 1 means that we are faster*. Before its time counts, each entrant's logits and gradients are compared with
float64: ours within the table of tolerances, the others' to show that they compute the same function. float32 is
float32: TensorFloat-32 is off. On a GPU, times and ratios of the operator are those of the device alone (replays of a
CUDA graph, L2 flushed; without Python), where an entrant can be captured; those of networks are of the wall clock. On
a CPU the process keeps the memory that it frees (glibc): page faults of fresh memory can take longer than a call, and
come and go with what else a process has done.

| entrant | what |
|---|---|
| plain 1x1 | `nn.Conv2d(C, N, 1)`, which the head replaces: another, smaller function |
| plain product | the same, by `torch.matmul`; how far both are from what a CPU can do, a plain copy tells |
| paper-style | positions expanded over the batch, 1×1 convolutions, W as a tensor |
| batch-shared | Φ once per pixel for the whole batch, plain PyTorch (the `reference` backend) |
| torch.compile | that, compiled |
| CoordConv | a 1×1 convolution of X and the positions as channels: another, smaller function |
| W precomputed | weights that never change: W kept as a tensor, `(W * X).sum(1)` in PyTorch |
| cpu, cuda, triton | ours; the weights change before each call, as in training |
| cpu, frozen | ours in inference: the same weights in each call |
| cpu, one map | ours at one sample after another, where each has a position map of its own |

*forward* is a call with gradients off; *training* is a forward and the gradients of the features and of all parameters.
*14 maps / (14 × one map)*: in one race, our time where each of 14 samples has a position map of its own, over 14 times
that of a call with one sample and its map (batch 1, the samples in turn). Below 1, what samples share outweighs what
they take from each other.
"""


NETWORKS = """Base, Base F and Base B end in the plain 1×1 convolution of the tables above. Where that is slow, a
network with SCP can take less time than one without; a few per cent either way are the convolution's.
"""


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; all columns but the first are aligned to the right."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def milliseconds(value: float) -> str:
    return short(1e3 * value)


def mebibytes(value: float | None) -> str:
    return "" if value is None else short(value / 2**20)


def case_name(case: dict[str, Any]) -> str:
    return plots.label(case).replace("\n", ", ")


def is_of_the_paper(case: dict[str, Any]) -> bool:
    """One of the bars: the paper's heads at its size, batch 1 or 14."""
    shown = case["shape"] == [160, 224] and case["hidden"] in (64, 128, 256) and case["batch"] in (1, 14)
    return shown and case["dtype"] == "float32" and "per_sample" not in case


def order(race: Race) -> tuple[Any, ...]:
    case = race["case"]
    maps = "per_sample" in case, case.get("position_dims", 0)
    return case["dtype"], *maps, math.prod(case["shape"]), case["hidden"], case["batch"]


class MachineChapter:
    """The chapter that one machine's record makes."""

    def __init__(self, path: Path) -> None:
        record = json.loads(path.read_text())
        self.slug = path.stem
        self.machine: dict[str, Any] = record["machine"]
        self.races: dict[str, Race] = record["races"]
        self.pictures: dict[str, Path] = {}

    def operator(self, step: str) -> list[Race]:
        races = (race for race in self.races.values() if race["what"] == "operator" and race["step"] == step)
        return sorted(races, key=order)

    def verdict(self) -> str:
        """The claims, whether they hold, and on what they were measured."""
        table = markdown_table(HEADINGS, rows(claims.verdict(self.races, self.machine["kind"])))
        return "\n".join([table, *(f"{text}\n" for text in claims.sentences(self.machine, self.races))])

    def text(self, pictures: Path) -> str:
        self._pictures = pictures
        parts = [f"## {self.machine['device']}\n", self._described()]
        steps = [step for step in ("forward", "training") if self.operator(step)]
        if steps:
            parts += [
                "### The operator\n",
                self._speed(steps),
                self._many_maps(steps),
                self._memory(),
                self._operations(),
                self._scaling(steps),
            ]
        if networks := self._networks():
            parts += ["### Whole networks\n", networks, NETWORKS]
        return "\n".join(part for part in parts if part)

    def _picture(self, name: str, title: str) -> tuple[Path, str]:
        file = f"{self.slug}-{name}.png"
        return self._pictures / file, f"![{title}]({PICTURES}/{file})\n"

    def _described(self) -> str:
        races = self.races.values()
        copies = [race["copy_bandwidth"] for race in races]
        dates = sorted({race["date"] for race in races})
        revisions = dict.fromkeys(race["revision"] or "unknown" for race in races)
        facts = {
            **{k.replace("_", " "): str(v) for k, v in self.machine.items() if k not in ("kind", "device") and v},
            "plain copy": f"{min(copies) / 1e9:.1f} to {max(copies) / 1e9:.1f} GB/s, read and written",
            "revision": ", ".join(revisions),
            "measured": " to ".join(dict.fromkeys((dates[0], dates[-1]))),
        }
        return markdown_table(("machine", self.slug), facts.items())

    def _speed(self, steps: list[str]) -> str:
        """Our time and the ratios of all, one table per step; bars of the paper's cases."""
        parts = []
        for step in steps:
            races = self.operator(step)
            ours = list(dict.fromkeys(race["ours"] for race in races))
            names = [name for name in _whole_batch(races) if ours != [name]]
            rows = []
            for race in races:
                figure = race["subjects"][race["ours"]]
                share = f"{figure['bandwidth_share']:.0%}"
                ratios = [short(race["subjects"][n]["ratio"]) if n in race["subjects"] else "" for n in names]
                rows.append([case_name(race["case"]), milliseconds(median_seconds(figure)), *ratios, share])
            title = (
                f"**{step.capitalize()}**: milliseconds of {' or '.join(ours)}, the others' time over that, and the"
                " bandwidth reached\n(what cannot but be moved, over the time) as a share of a plain copy's, which"
                " caches can exceed.\n"
            )
            parts += [title, markdown_table(["case", "ours, ms", *names, "of a copy"], rows)]
        path, link = self._picture("peers", "Time of each peer over ours")
        paper = {step: [race for race in self.operator(step) if is_of_the_paper(race["case"])] for step in steps}
        if all(paper.values()):
            plots.bars(paper, path)
            parts.append(link)
        return "\n".join(parts)

    def _many_maps(self, steps: list[str]) -> str:
        """What a batch with one position map per sample takes, beside its samples alone."""
        races = [race for step in steps for race in self.operator(step) if many_maps(race) is not None]
        parts = ["**One map per sample**: milliseconds of one sample alone and of all.\n"] if races else []
        for batch in dict.fromkeys(race["case"]["batch"] for race in races):
            lines = []
            for race in (race for race in races if race["case"]["batch"] == batch):
                times = (race["subjects"][name] for name in (race["ours"] + ONE_MAP, race["ours"]))
                cells = (milliseconds(median_seconds(figure)) for figure in times)
                lines.append([case_name(race["case"]), race["step"], *cells, short(many_maps(race) or 0.0)])
            headings = ["case", "step", "one map", f"{batch} maps", f"{batch} maps / ({batch} × one map)"]
            parts.append(markdown_table(headings, lines))
        return "\n".join(parts)

    def _memory(self) -> str:
        """Bytes kept for backward and at the peak of a training step."""
        races = self.operator("training")
        if not races:
            return ""
        names = _whole_batch(races)
        on_gpu = self.machine["kind"] == "cuda"
        peak = (
            "allocated at the peak above inputs and parameters" if on_gpu else "growth of a fresh process at its peak"
        )
        rows = []
        for race in races:
            figures = [race["subjects"].get(name) for name in names]
            cells = [f and f"{mebibytes(f['saved_bytes'])} / {mebibytes(f['peak_bytes'])}" for f in figures]
            rows.append([case_name(race["case"]), *(cell or "" for cell in cells)])
        title = f"**Memory of a training step**, MiB: kept for backward beyond features and parameters / {peak}.\n"
        return title + "\n" + markdown_table(["case", *names], rows)

    def _operations(self) -> str:
        """Multiply-adds per pixel, executed and nominal; the roofline."""
        counted = []
        for race in (*self.operator("forward"), *self.operator("training")):
            executed = [f["executed_macs"] for n, f in race["subjects"].items() if f["ours"] and f["executed_macs"]]
            if executed and race["case"]["batch"] == 1:
                pixels = math.prod(race["case"]["shape"])
                nominal = race["nominal_macs"]
                counted.append([
                    case_name(race["case"]), race["step"], f"{nominal / pixels:,.0f}", f"{executed[-1] / pixels:,.0f}",
                    short(nominal / executed[-1]),
                ])  # fmt: skip
        if not counted:
            return ""
        path, link = self._picture("roofline", "Roofline")
        plots.roofline(self.operator("forward"), path)
        title = (
            "**Multiply-adds** per pixel, the product with X included: the head as printed, and what ours executes.\n"
        )
        return "\n".join(
            [title, markdown_table(["case", "step", "nominal", "executed", "nominal ÷ executed"], counted), link]
        )

    def _scaling(self, steps: list[str]) -> str:
        def line(**fixed: Any) -> list[Race]:
            races = [race for step in steps for race in self.operator(step) if "per_sample" not in race["case"]]
            return [r for r in races if all(r["case"][k] == v for k, v in {"dtype": "float32", **fixed}.items())]

        square = [
            r for r in line(hidden=128, batch=1) if len(r["case"]["shape"]) == 2 and len({*r["case"]["shape"]}) == 1
        ]
        lines = {
            "h (C = h/8), batch 1, 160×224": (line(batch=1, shape=[160, 224]), lambda r: r["case"]["hidden"]),
            "side of the image, h 128, batch 1": (square, lambda r: r["case"]["shape"][0]),
            "batch, h 128, 160×224": (line(hidden=128, shape=[160, 224]), lambda r: r["case"]["batch"]),
        }
        if not all(len(races) > 2 * len(steps) for races, _ in lines.values()):
            return ""
        path, link = self._picture("scaling", "Time along width, image and batch")
        plots.scaling(lines, steps, path)
        return link

    def _networks(self) -> str:
        races = [race for race in self.races.values() if race["what"] == "networks"]
        races.sort(key=lambda race: (race["step"] == "inference", race["batch"], "Base 512" in race["subjects"]))
        if not races:
            return ""
        training = next((r for r in races if r["step"] == "training" and r["batch"] == 1), None)
        parts = [self._table_1(training)] if training else []
        for race in races:
            anchor = race["subjects"][race["anchor"]]
            rows = []
            for name, figure in sorted(race["subjects"].items(), key=lambda item: _network_order(item[0])):
                times = figure["seconds"]
                rows.append([
                    name, milliseconds(times["median"]), f"{milliseconds(times['p05'])} – {milliseconds(times['p95'])}",
                    short(times["median"] / anchor["seconds"]["median"]), mebibytes(figure["peak_bytes"]),
                ])  # fmt: skip
            step = {"training": "Training step", "inference": "Inference"}[race["step"]]
            headings = ["network", "median, ms", "5–95 %", f"÷ {race['anchor']}", "peak, MiB"]
            parts += [f"**{step}, batch {race['batch']}**, 3×160×224.\n", markdown_table(headings, rows)]
        return "\n".join(parts)

    def _table_1(self, race: Race) -> str:
        """Memory, operations and parameters as ratios to Base 128, beside Table 1 and Fig. 6 of the paper."""
        on_gpu = self.machine["kind"] == "cuda"
        memory = "peak_bytes" if on_gpu else "saved_bytes"
        anchor = race["subjects"][race["anchor"]]
        keys = {memory: "memory_ratio", "executed_macs": "macs_ratio", "parameters": "parameters_ratio"}
        ratios: dict[str, dict[str, tuple[float | None, float]]] = {}
        for name, figure in sorted(race["subjects"].items(), key=lambda item: _network_order(item[0])):
            ratios[name] = {
                key: (figure[key] / anchor[key] if figure[key] else None, figure["paper"][printed])
                for key, printed in keys.items()
            }
        rows = [
            [
                name,
                *(
                    ("not counted" if here is None else f"{here:.2f}") + f" ({paper:.2f})"
                    for here, paper in row.values()
                ),
            ]
            for name, row in ratios.items()
        ]
        what = "peak of a training step" if on_gpu else "kept for backward"
        headings = ["network", f"memory ({what})", "multiply-adds executed", "parameters"]
        parts = [
            f"**Beside the paper's Table 1**: ratios to {race['anchor']} at batch 1; in brackets the paper's, whose SCP"
            " is the paper-style one.\n",
            markdown_table(headings, rows),
        ]
        fused, base = (race["subjects"][name] for name in ("SCP 256", "Base 512"))
        changes = [
            f"{words} {percent(fused[key] / base[key] - 1)} (paper: {percent(plain[printed] / wide[printed] - 1)})"
            for words, key, printed in (
                ("memory", memory, "memory_ratio"),
                ("multiply-adds", "executed_macs", "macs_ratio"),
                ("parameters", "parameters", "parameters_ratio"),
            )
            if fused[key]
            for plain, wide in [(fused["paper"], base["paper"])]
        ]
        parts.append(f"SCP 256 against Base 512: {', '.join(changes)}.\n")
        shown = ("SCP 256", "Base F 512", "Base B 512", "Base 512")
        titles = dict(zip(keys, headings[1:], strict=True))
        measured = {
            titles[key]: {name: (here, paper) for name in shown for here, paper in [ratios[name][key]] if here}
            for key in keys
        }
        if all(len(of_networks) == len(shown) for of_networks in measured.values()):
            path, link = self._picture("figure-6", "Memory, operations and parameters as in the paper's Fig. 6")
            plots.figure_6(measured, path)
            parts.append(link)
        return "\n".join(parts)


def _whole_batch(races: Iterable[Race]) -> list[str]:
    """The subjects whose calls take all samples."""
    return [name for name in peer_names(races) if not name.endswith(ONE_MAP)]


def _network_order(name: str) -> tuple[int, int]:
    """By capacity, then as in Table 1."""
    words = name.split()
    variant = [word for word in words if not word.isdigit()]
    order = [["Base"], ["Base", "F"], ["Base", "B"], ["SCP"], ["SCP", "paper-style"]]
    return next(int(word) for word in words if word.isdigit()), order.index(variant)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="*", metavar="RESULTS.json")
    parser.add_argument("--out", type=Path, default=DOCUMENT, metavar="FILE", help="default: docs/benchmarks.md")
    parser.add_argument("--readme", type=Path, default=README, metavar="FILE", help="default: README.md")
    options = parser.parse_args(arguments)
    paths = options.results or sorted(RESULTS.glob("*.json"))
    if not paths:
        parser.error(f"no results in {RESULTS}")
    chapters = [MachineChapter(path) for path in paths]
    verdicts = [chapter.verdict() for chapter in chapters]
    texts = [chapter.text(options.out.parent / PICTURES) for chapter in chapters]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join([TITLE, *verdicts, HEAD, *texts]))
    replace_block(options.readme, "\n".join(verdicts))
    print(options.out)
    return 0


def replace_block(path: Path, text: str) -> None:
    """Writes what stands between the two marks."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{path}: expected the lines {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
