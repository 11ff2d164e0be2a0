"""Which race is running, and how long the rest will take."""

import time
from collections.abc import Sequence

import pytest

SECONDS = "scp_kernels/benchmark_seconds"
"""In pytest's cache: what each race took the last time, and with which budget."""
FIRST_GUESS = 12.0
"""Seconds of a race beside its budget, where it has not been run before: checks, compilation, memory."""


class Estimate:
    """Of the time that is left, from what each race took the last time, corrected by how this run goes."""

    def __init__(self, names: Sequence[str], known: dict[str, float], guess: float) -> None:
        self._expected = {name: known.get(name, guess) for name in names}
        self._spent = 0.0
        self._expected_spent = 0.0

    def finished(self, name: str, seconds: float) -> None:
        self._spent += seconds
        self._expected_spent += self._expected.pop(name)

    @property
    def left(self) -> float:
        """Seconds."""
        pace = self._spent / self._expected_spent if self._expected_spent else 1.0
        return pace * sum(self._expected.values())


class Progress:
    """A pytest plugin that writes a line before every benchmark."""

    def __init__(self, config: pytest.Config, budget: float) -> None:
        self._config = config
        self._budget = budget
        self._names: list[str] = []
        self._seconds: dict[str, float] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._names = [item.nodeid for item in session.items if "benchmark" in getattr(item, "fixturenames", ())]
        cache = getattr(self._config, "cache", None)
        remembered = cache.get(SECONDS, {}) if cache is not None else {}
        self._known = remembered.get(str(self._budget), {})
        self._estimate = Estimate(self._names, self._known, FIRST_GUESS + 3 * self._budget)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._start = time.perf_counter()
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if nodeid not in self._names or reporter is None:
            return
        number = self._names.index(nodeid) + 1
        name = nodeid.rpartition("::")[2]
        reporter.ensure_newline()
        reporter.write_line(f"race {number} of {len(self._names)}: {name}; about {clock(self._estimate.left)} left")

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if nodeid in self._names:
            self._seconds[nodeid] = time.perf_counter() - self._start
            self._estimate.finished(nodeid, self._seconds[nodeid])

    def pytest_sessionfinish(self) -> None:
        cache = getattr(self._config, "cache", None)
        if cache is not None and self._seconds:
            remembered = cache.get(SECONDS, {})
            cache.set(SECONDS, {**remembered, str(self._budget): {**self._known, **self._seconds}})


def clock(seconds: float) -> str:
    """Minutes and seconds, as in ``"2:05"``."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
