"""A whole WMH training at the paper's size, with the fused head and with the paper-style one: curves, time, memory.

``python -m benchmarks.training OUT.json [--phantoms DIR] [--device cuda] …`` trains the same network from the same
weights on the same batches: with the fused head, with the head as the paper describes it, and with the fused head after
a change of the weights by a unit in the last place or two, which shows how far rounding alone drives two trainings
apart. Synthetic subjects are written first, if they are not there; preprocessing and
training are those of ``scp-models fit``.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from benchmarks import machine
from benchmarks.peers import PAPER_STYLE
from scp_kernels import FusedSCP
from scp_models.data import SegmentationDataModule
from scp_models.networks.paper_style import PaperStyle
from scp_models.phantoms import generate_wmh
from scp_models.report.quiet import quiet
from scp_models.training.module import SegmentationModule
from scp_models.training.trainer import quiet_trainer

FUSED, NUDGED = "fused", "fused, nudged"
RUNS = (FUSED, NUDGED, PAPER_STYLE)
NUDGE = 1 + 2**-22
# Two runs that differ by rounding have drifted apart by chance, and one pair of them says only roughly how far.
ROUNDING_HEADROOM = 3
WARMUP_STEPS = 5
SMOOTHING_STEPS = 20


class Recorder(L.Callback):
    """Loss and seconds of every step, without waiting for the device inside of a run on CUDA."""

    def __init__(self) -> None:
        self._losses: list[torch.Tensor] = []
        self._marks: list[Any] = []

    def _mark(self, device: torch.device) -> None:
        if device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark(pl_module.device)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self._losses.append(outputs["loss"].detach().clone())
        self._mark(pl_module.device)

    def losses(self) -> list[float]:
        return [float(loss) for loss in self._losses]

    def seconds(self) -> list[float]:
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if isinstance(self._marks[0], float):
            return [end - begin for begin, end in pairs]
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in pairs]


def train(run: str, phantoms: Path, cache: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One training; what it left is a record for JSON."""
    L.seed_everything(0, verbose=False)
    size = tuple(options.size)
    data = SegmentationDataModule(
        str(phantoms), roi_size=size, batch_size=options.batch, cache_dir=str(cache),
        pin_memory=options.device == "cuda",
    )  # fmt: skip
    module = SegmentationModule(capacity=options.capacity, roi_size=size)
    if run == PAPER_STYLE:
        assert isinstance(module.network.head, FusedSCP)
        module.network.head = PaperStyle(module.network.head)  # type: ignore[assignment]
    elif run == NUDGED:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(NUDGE)
    recorder = Recorder()
    trainer = quiet_trainer(options.device, max_epochs=options.epochs, limit_val_batches=0, callbacks=[recorder])
    if options.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    trainer.fit(module, datamodule=data)
    result: dict[str, Any] = {"losses": recorder.losses()}
    result["median_step_seconds"] = statistics.median(recorder.seconds()[WARMUP_STEPS:])
    if options.device == "cuda":
        result["peak_bytes"] = torch.cuda.max_memory_allocated()
    return result


def smoothed(losses: list[float]) -> list[float]:
    """Means over a few steps: single batches differ more than trainings do."""
    width = min(SMOOTHING_STEPS, len(losses))
    return [statistics.fmean(losses[k : k + width]) for k in range(0, len(losses) - width + 1, width)]


def distance(a: list[float], b: list[float]) -> float:
    """Mean absolute difference of two smoothed curves."""
    return statistics.fmean(abs(x - y) for x, y in zip(smoothed(a), smoothed(b), strict=True))


def compare_runs(runs: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The paper-style head beside the fused one: distance of the curves (and what rounding does), ratios of costs."""
    fused, nudged, paper_style = (runs[name] for name in RUNS)
    result = {
        "curve_distance": distance(fused["losses"], paper_style["losses"]),
        "curve_distance_of_rounding": distance(fused["losses"], nudged["losses"]),
        "step_time_ratio": paper_style["median_step_seconds"] / fused["median_step_seconds"],
    }
    if "peak_bytes" in fused:
        result["peak_memory_ratio"] = paper_style["peak_bytes"] / fused["peak_bytes"]
    return result


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="record to write, JSON")
    parser.add_argument("--phantoms", type=Path, help="WMH data set; written if there is none (default: temporary)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--capacity", type=int, default=256, metavar="NC")
    parser.add_argument("--batch", type=int, default=14)
    parser.add_argument("--size", type=int, nargs=2, default=(160, 224), metavar=("H", "W"))
    parser.add_argument("--subjects", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        phantoms = options.phantoms or Path(folder) / "phantoms"
        if not phantoms.exists():
            generate_wmh(phantoms, options.subjects, seed=0, progress=False)
        runs = {}
        for name in RUNS:
            with quiet():
                runs[name] = train(name, phantoms, Path(folder) / "cache", options)
            seconds = runs[name]["median_step_seconds"]
            print(f"{name:20} {seconds * 1e3:9.2f} ms per step, last loss {smoothed(runs[name]['losses'])[-1]:.4f}")
    compared = compare_runs(runs)
    settings = {name: getattr(options, name) for name in ("capacity", "batch", "size", "subjects", "epochs")}
    record = {"machine": machine.describe_machine(options.device), **settings, "runs": runs, **compared}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(*(f"{name} {value:.4g}" for name, value in compared.items()), sep=", ")
    if compared["curve_distance"] > ROUNDING_HEADROOM * compared["curve_distance_of_rounding"]:
        print("the heads' curves differ by more than rounding explains")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
