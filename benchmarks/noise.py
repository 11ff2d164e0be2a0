"""How quiet the machine was: a fixed piece of work beside every race, and what other programs took meanwhile."""

import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

REFERENCE_SIZE = {"cpu": 384, "cuda": 4096}
"""Rows of the matrices whose product is the fixed piece of work: milliseconds on either device."""
REFERENCE_SECONDS = 0.1
# Medians of the same work that differ by more than this, or other programs on more than this part of the cores, are a
# busy machine. A ratio survives more, since both of its times are taken within one round; a time does not.
BUSY_SPREAD = 0.2
BUSY_SHARE = 0.1


@dataclass(frozen=True)
class Noise:
    """What :class:`NoiseMonitor` saw during one or more races."""

    reference_seconds: list[float]
    """Medians of the fixed work, at both ends of every race."""
    foreign_cores: float | None
    """Cores that other programs took on average, the most of all races; None where Linux's /proc is not."""
    cores: int

    @property
    def spread(self) -> float:
        """How much longer the slowest of the fixed work took than the fastest."""
        return max(self.reference_seconds) / min(self.reference_seconds) - 1

    @property
    def busy(self) -> bool:
        return self.spread > BUSY_SPREAD or (self.foreign_cores or 0) > BUSY_SHARE * self.cores

    @property
    def sentence(self) -> str:
        state = "busy: repeat on a quiet one" if self.busy else "quiet"
        others = "" if self.foreign_cores is None else f", other programs took {self.foreign_cores:.1f} of its cores"
        return f"The machine was {state} (the same fixed work took up to {self.spread:.0%} longer{others})."

    def record(self) -> dict[str, Any]:
        return {"reference_seconds": self.reference_seconds, "foreign_cores": self.foreign_cores, "cores": self.cores}


def summarise_noise(records: Iterable[dict[str, Any] | None]) -> Noise | None:
    """Of all races; None if one has no record of it."""
    records = list(records)
    noises = [Noise(**record) for record in records if record]
    if not noises or len(noises) < len(records):
        return None
    foreign = [noise.foreign_cores for noise in noises if noise.foreign_cores is not None]
    return Noise(
        [seconds for noise in noises for seconds in noise.reference_seconds],
        max(foreign, default=None),
        noises[0].cores,
    )


class NoiseMonitor:
    """Observes the machine during a block of code.

    Args:
        work: the fixed piece of work, which waits for its own end.
        used_seconds: processor seconds that all programs have used so far; None where that is not known.
    """

    def __init__(self, work: Callable[[], object], used_seconds: Callable[[], float | None] | None = None) -> None:
        self._work = work
        self._used_seconds = used_seconds or used_processor_seconds

    def __enter__(self) -> "NoiseMonitor":
        self._references = [self._reference()]
        self._start = time.perf_counter(), self._used_seconds(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        wall, used, process_seconds = self._start
        wall, process_seconds = time.perf_counter() - wall, time.process_time() - process_seconds
        now_used = self._used_seconds()
        foreign = None if used is None or now_used is None else max(0.0, (now_used - used - process_seconds) / wall)
        self._references.append(self._reference())
        self.noise = Noise(self._references, foreign, len(usable_cores()))

    def _reference(self) -> float:
        times: list[float] = []
        while sum(times) < REFERENCE_SECONDS or len(times) < 5:
            start = time.perf_counter()
            self._work()
            times.append(time.perf_counter() - start)
        return statistics.median(times)


def fixed_work(device: str) -> Callable[[], None]:
    """One matrix product of a fixed size."""
    size = REFERENCE_SIZE[device]
    a = torch.ones(size, size, device=device)
    out = torch.empty_like(a)

    def work() -> None:
        torch.mm(a, a, out=out)
        if device == "cuda":
            torch.cuda.synchronize()

    return work


def usable_cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def used_processor_seconds() -> float | None:
    """Seconds that this process's cores have worked since boot, for whomever; None where Linux's /proc is not."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None
    names = {f"cpu{core}" for core in usable_cores()}
    ticks = 0
    for name, *counts in (line.split() for line in lines if line.startswith("cpu")):
        if name in names:
            user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, counts[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")
