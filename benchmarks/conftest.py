"""Options, what all benchmarks of a session share, the table at the end, and the record."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import claims, machine
from benchmarks.fresh import FreshProcesses
from benchmarks.noise import NoiseMonitor, fixed_work
from benchmarks.progress import Progress
from benchmarks.race import TimedCall, copy_bandwidth, device_times, product_rate, race, ratio, summary
from benchmarks.tables import claim_table, tables
from tests.support.cases import LARGE, PAPER, PER_SAMPLE, SCALING, WIDTHS, Case

# The regression guard's: short on a CPU, and each of the three sizes.
GUARDED = [Case(64, 8, 1), Case(128, 16, 14), Case(256, 32, 1)]
# Without --slow: what the verdict needs, in five minutes on two quiet cores.
DEFAULT = [*(Case(h, c, 1) for h, c in WIDTHS), Case(256, 32, 14), PER_SAMPLE[0]]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("scp_kernels")
    group.addoption("--device", choices=("cpu", "cuda"), help="what to measure (default: cuda where there is one)")
    group.addoption("--slow", action="store_true", help="all cases and networks, not only those of the verdict")
    group.addoption("--short", action="store_true", help="the regression guard's cases, without torch.compile")
    group.addoption("--budget", type=float, default=3.0, metavar="SECONDS", help="rounds of one race (default: 3)")
    group.addoption("--record", type=Path, metavar="DIR", help="write DIR/<machine>.json, adding to what it has")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: no part of the five minutes that the verdict takes; needs --slow")
    config.addinivalue_line("markers", "guarded: what --short runs")
    config.stash[RACES] = {}
    if config.getoption("verbose") < 1:
        config.option.benchmark_quiet = True  # its tables hold one figure per race; ours follow
    config.pluginmanager.register(Progress(config, config.getoption("--budget")))
    machine.keep_freed_memory()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    dropped = set()
    if config.getoption("--short"):
        dropped = {item for item in items if not item.get_closest_marker("guarded")}
    elif not config.getoption("--slow"):
        dropped = {item for item in items if item.get_closest_marker("slow")}
    if dropped:
        config.hook.pytest_deselected(items=list(dropped))
        items[:] = [item for item in items if item not in dropped]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    cases = [*PAPER, *SCALING, *PER_SAMPLE]
    wanted = [*DEFAULT]
    if device_of(metafunc.config) == "cuda":
        cases += [replace(case, dtype=torch.bfloat16) for case in PAPER]
        wanted += [replace(case, dtype=torch.bfloat16) for case in DEFAULT]

    def marks(case: Case) -> list[pytest.MarkDecorator]:
        guarded = [pytest.mark.guarded] if case in GUARDED else []
        return guarded if case in wanted else [*guarded, pytest.mark.slow]

    metafunc.parametrize("case", [pytest.param(case, marks=marks(case), id=str(case)) for case in [*cases, *LARGE]])


RACES = pytest.StashKey[dict[str, dict[str, Any]]]()
MACHINE = pytest.StashKey[dict[str, Any]]()


def device_of(config: pytest.Config) -> str:
    return config.getoption("--device") or ("cuda" if torch.cuda.is_available() else "cpu")


class BenchmarkSession:
    """What all benchmarks share: the machine, the budget, and where results go."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self.device: str = device_of(config)
        self.short: bool = config.getoption("--short")
        self.slow: bool = config.getoption("--slow")
        self.budget: float = config.getoption("--budget")
        # Like is compared with like: our float32 is exact, and the convolutions of others shall be so too.
        torch.backends.cudnn.allow_tf32 = False
        self.machine = machine.describe_machine(self.device)
        self.fresh: FreshProcesses | None = None
        if self.device == "cpu" and not self.short:
            self.fresh = FreshProcesses("torch", "benchmarks.peers", "benchmarks.networks")
        self.copy_bandwidth = copy_bandwidth(self.device)
        self.product_rate = {
            str(dtype).removeprefix("torch."): product_rate(self.device, dtype)
            for dtype in (torch.float32, *([torch.bfloat16] if self.device == "cuda" else []))
        }
        self._fixed_work = fixed_work(self.device)
        self._revision = machine.revision()
        self._races = config.stash[RACES]
        self._directory: Path | None = config.getoption("--record")

    def race(self, benchmark, entrants: Mapping[str, TimedCall]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        """Times the entrants round-robin; figures by name, with the ratio of each to the last one, which is ours.

        Ratios and shares are taken from the GPU's own clock where it timed both (``device_seconds``, without Python),
        else from the wall clock.

        Returns:
            The figures (none with ``--benchmark-disable``), and how quiet the machine was meanwhile.
        """
        with NoiseMonitor(self._fixed_work) as monitor:
            walls = race(benchmark, entrants, device=self.device, budget=self.budget)
        if not walls:
            return {}, {}
        figures: dict[str, dict[str, Any]] = {name: {"seconds": summary(times)} for name, times in walls.items()}
        *_, ours = entrants
        by_device: Mapping[str, Sequence[float] | str] = {}
        if self.device == "cuda":
            by_device = device_times(entrants, rounds=max(5, min(25, len(walls[ours]))))
        for name, figure in figures.items():
            our_times, times = by_device.get(ours), by_device.get(name)
            if times is not None:
                figure["device_seconds"] = times if isinstance(times, str) else summary(times)
            if our_times is None or times is None or isinstance(our_times, str) or isinstance(times, str):
                figure["clock"], figure["ratio"] = "seconds", ratio(walls[name], walls[ours])
            else:
                figure["clock"], figure["ratio"] = "device_seconds", ratio(times, our_times)
        return figures, monitor.noise.record()

    def report(self, benchmark, name: str, result: dict[str, Any], noise: dict[str, Any]) -> None:
        """Hands a race's figures to pytest-benchmark, to the table at the end, and to the record."""
        result |= {
            "copy_bandwidth": self.copy_bandwidth,
            "product_rate": self.product_rate,
            "noise": noise,
            "revision": self._revision,
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        }
        benchmark.extra_info.update(result, machine=self.machine)
        self._races[name] = result
        self._config.stash[MACHINE] = self.machine
        if self._directory is not None:
            machine.record(self._directory / f"{machine.slug(self.machine)}.json", self.machine, {name: result})


@pytest.fixture(scope="session")
def bench_session(request: pytest.FixtureRequest):
    session = BenchmarkSession(request.config)
    yield session
    if session.fresh is not None:
        session.fresh.close()


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    races = config.stash[RACES]
    if races:
        described = config.stash[MACHINE]
        terminalreporter.section("races")
        terminalreporter.write(tables(races, width=terminalreporter._tw.fullwidth))
        terminalreporter.section("verdict")
        terminalreporter.write(claim_table(claims.verdict(races, described["kind"])))
        for sentence in claims.sentences(described, races):
            terminalreporter.write_line(sentence)
