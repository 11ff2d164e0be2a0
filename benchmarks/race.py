"""Times several entrants round-robin in one process, so that a change in the machine's speed meets all of them alike.

pytest-benchmark times one test at a time, so two tests' figures may lie minutes apart, and their ratio with them. Here
one test is one race: pytest-benchmark times our entrant through ``benchmark.pedantic``, and the ``setup`` that it
calls before each of its rounds times each peer once. Only public interfaces are used; the peers' figures go into
``extra_info``, and ratios are medians over rounds of times taken within one round.
"""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

# A call shorter than this comes after untimed ones, until caches, clocks and threads have forgotten the last entrant.
SHORT_CALL = 0.05
WARM_SECONDS = 0.005
FLUSH_BYTES = 256 * 2**20  # above any GPU's L2


@dataclass(frozen=True)
class TimedCall:
    """An entrant's call. ``prepare`` runs before each call, outside of the time."""

    call: Callable[[], object]
    prepare: Callable[[], None] | None = None

    def run(self, synchronise: Callable[[], None]) -> float:
        """Seconds of one call, synchronised at both ends."""
        if self.prepare is not None:
            self.prepare()
        synchronise()
        start = time.perf_counter()
        self.call()
        synchronise()
        return time.perf_counter() - start


def race(
    benchmark, entrants: Mapping[str, TimedCall], *, device: str, budget: float, rounds: tuple[int, int] = (3, 50)
) -> dict[str, list[float]]:
    """Seconds of each call of each entrant, round by round; the last entrant is the one pytest-benchmark reports.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        budget: seconds for all rounds together.
        rounds: the fewest and the most.
    """
    synchronise = torch.cuda.synchronize if device == "cuda" else _nothing
    estimates = {}
    for name, entrant in entrants.items():
        for _ in range(2):  # the second does without compiling, loading and first allocations
            estimates[name] = entrant.run(synchronise)
    cost = sum(e + (max(e, WARM_SECONDS) if e < SHORT_CALL else 0) for e in estimates.values())
    count = min(rounds[1], max(rounds[0], int(budget / cost)))

    *peers, ours = entrants
    times: dict[str, list[float]] = {name: [] for name in entrants}
    shuffle = random.Random(0).shuffle

    def warm(name: str) -> None:
        spent = 0.0
        while estimates[name] < SHORT_CALL and spent < WARM_SECONDS:
            spent += entrants[name].run(synchronise)

    def peers_turn() -> None:
        shuffle(peers)  # what an entrant leaves behind, in caches and page tables, meets another one each round
        for name in peers:
            warm(name)
            times[name].append(entrants[name].run(synchronise))
        warm(ours)
        if (prepare := entrants[ours].prepare) is not None:
            prepare()
        synchronise()

    def our_turn() -> None:
        entrants[ours].call()
        synchronise()

    benchmark.pedantic(our_turn, setup=peers_turn, rounds=count)
    if benchmark.stats is None:  # --benchmark-disable
        return {}
    times[ours] = list(benchmark.stats.stats.data)
    return times


def device_times(entrants: Mapping[str, TimedCall], rounds: int) -> dict[str, list[float] | str]:
    """Seconds that the GPU works on each call, without Python: replays of CUDA graphs, round-robin, L2 flushed.

    An entrant that cannot be captured has the reason in the place of its times.
    """
    graphs: dict[str, torch.cuda.CUDAGraph] = {}
    times: dict[str, list[float] | str] = {}
    stream = torch.cuda.current_stream()
    for name, entrant in entrants.items():
        try:
            graphs[name] = _capture(entrant.call)
            times[name] = []
        except Exception as error:  # whatever a peer does that a graph forbids
            torch.cuda.set_stream(stream)  # a capture that fails to end leaves its own stream current
            torch.cuda.synchronize()
            times[name] = f"no CUDA graph: {str(error).splitlines()[0]}"
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(rounds):
        for name, graph in graphs.items():
            flush.zero_()
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            samples = times[name]
            assert isinstance(samples, list)
            samples.append(start.elapsed_time(end) / 1e3)
    return times


def _capture(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def summary(times: Sequence[float]) -> dict[str, float]:
    """Median and quantiles, in seconds."""
    quantiles = statistics.quantiles(times, n=20, method="inclusive") if len(times) > 1 else [times[0]] * 19
    return {
        "median": statistics.median(times),
        "p05": quantiles[0],
        "p25": quantiles[4],
        "p75": quantiles[14],
        "p95": quantiles[18],
        "rounds": len(times),
    }


def ratio(times: Sequence[float], ours: Sequence[float]) -> float:
    """How many times longer than ours: the median over rounds."""
    return statistics.median(t / u for t, u in zip(times, ours, strict=True))


def copy_bandwidth(device: str) -> float:
    """Bytes per second read and written by a plain copy: what a kernel that only streams could reach."""
    size = 2**30 if device == "cuda" else 2**28
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / _median(lambda: target.copy_(source), device)


def product_rate(device: str, dtype: torch.dtype) -> float:
    """Multiply-adds per second of PyTorch's matrix product: what dense arithmetic could reach."""
    size = 8192 if device == "cuda" else 1536
    a = torch.randn(size, size, device=device).to(dtype)
    out = torch.empty_like(a)
    return size**3 / _median(lambda: torch.mm(a, a, out=out), device)


def _median(call: Callable[[], object], device: str, rounds: int = 9) -> float:
    timed = TimedCall(call)
    synchronise = torch.cuda.synchronize if device == "cuda" else _nothing
    return statistics.median([timed.run(synchronise) for _ in range(rounds + 2)][2:])


def _nothing() -> None:
    pass
