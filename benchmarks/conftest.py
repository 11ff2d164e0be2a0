"""Options, what all benchmarks of a session share, the table at the end, and the record."""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import machine
from benchmarks.fresh import FreshProcesses
from benchmarks.race import Entrant, copy_bandwidth, device_times, product_rate, race, ratio, summary
from benchmarks.tables import tables
from tests.support.cases import LARGE, PAPER, SCALING, Case

# The regression guard's: short on a CPU, and each of the three sizes.
GUARDED = [Case(64, 8, 1), Case(128, 16, 14), Case(256, 32, 1)]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("scp_kernels")
    group.addoption("--device", choices=("cpu", "cuda"), help="what to measure (default: cuda where there is one)")
    group.addoption("--slow", action="store_true", help="the cases marked slow too")
    group.addoption("--short", action="store_true", help="the regression guard's cases, without torch.compile")
    group.addoption("--budget", type=float, default=4.0, metavar="SECONDS", help="rounds of one race (default: 4)")
    group.addoption("--record", type=Path, metavar="DIR", help="write DIR/<machine>.json, adding to what it has")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: minutes, or gigabytes, on a CPU; needs --slow")
    config.addinivalue_line("markers", "guarded: what --short runs")
    config.stash[RACES] = {}
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
    cases = [*PAPER, *SCALING]
    if device_of(metafunc.config) == "cuda":
        cases += [Case(c.hidden, c.channels, c.batch, c.shape, torch.bfloat16) for c in PAPER]
    marks = {case: [pytest.mark.guarded] for case in GUARDED} | {case: [pytest.mark.slow] for case in LARGE}
    metafunc.parametrize("case", [pytest.param(c, marks=marks.get(c, []), id=str(c)) for c in [*cases, *LARGE]])


RACES = pytest.StashKey[dict[str, dict[str, Any]]]()


def device_of(config: pytest.Config) -> str:
    return config.getoption("--device") or ("cuda" if torch.cuda.is_available() else "cpu")


class BenchmarkSession:
    """What all benchmarks share: the machine, the budget, and where results go."""

    def __init__(self, config: pytest.Config) -> None:
        self.device: str = device_of(config)
        self.short: bool = config.getoption("--short")
        self.budget: float = config.getoption("--budget")
        # Like is compared with like: our float32 is exact, and the convolutions of others shall be so too.
        torch.backends.cudnn.allow_tf32 = False
        self.machine = machine.describe(self.device)
        self.fresh: FreshProcesses | None = None
        if self.device == "cpu" and not self.short:
            self.fresh = FreshProcesses("torch", "peers", "networks")
        self.copy_bandwidth = copy_bandwidth(self.device)
        self.product_rate = {
            str(dtype).removeprefix("torch."): product_rate(self.device, dtype)
            for dtype in (torch.float32, *([torch.bfloat16] if self.device == "cuda" else []))
        }
        self._revision = machine.revision()
        self._races = config.stash[RACES]
        self._directory: Path | None = config.getoption("--record")

    def race(self, benchmark, entrants: Mapping[str, Entrant]) -> dict[str, dict[str, Any]]:
        """Times the entrants round-robin; figures by name, with the ratio of each to the last one, which is ours.

        Ratios and shares are taken from the GPU's own clock where it timed both (``device_seconds``, without Python),
        else from the wall clock.
        """
        walls = race(benchmark, entrants, device=self.device, budget=self.budget)
        if not walls:
            return {}
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
        return figures

    def report(self, benchmark, name: str, result: dict[str, Any]) -> None:
        """Hands a race's figures to pytest-benchmark, to the table at the end, and to the record."""
        result |= {
            "copy_bandwidth": self.copy_bandwidth,
            "product_rate": self.product_rate,
            "revision": self._revision,
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        }
        benchmark.extra_info.update(result, machine=self.machine)
        self._races[name] = result
        if self._directory is not None:
            machine.record(self._directory / f"{machine.slug(self.machine)}.json", self.machine, {name: result})


@pytest.fixture(scope="session")
def bench_session(request: pytest.FixtureRequest):
    session = BenchmarkSession(request.config)
    yield session
    if session.fresh is not None:
        session.fresh.close()


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    races = config.stash[RACES]
    if races:
        terminalreporter.section("races")
        terminalreporter.write(tables(races, width=terminalreporter._tw.fullwidth))
