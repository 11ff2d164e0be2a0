"""What is observed of the machine, and the estimate of the time that is left, with clocks of the test's own."""

import time

import pytest

from benchmarks import noise
from benchmarks.noise import Noise, NoiseMonitor
from benchmarks.progress import Estimate, clock


def test_other_programs_are_told_from_this_one(monkeypatch):
    monkeypatch.setattr(noise, "REFERENCE_SECONDS", 0.0)
    with NoiseMonitor(lambda: None, lambda: 2 * time.perf_counter()) as monitor:  # two cores, always
        time.sleep(0.25)
    assert 1.5 < monitor.noise.foreign_cores <= 2.0
    assert len(monitor.noise.reference_seconds) == 2


def test_own_work_is_not_another_programs(monkeypatch):
    monkeypatch.setattr(noise, "REFERENCE_SECONDS", 0.0)
    start = time.process_time()
    with NoiseMonitor(lambda: None, lambda: time.process_time() - start) as monitor:
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
    assert monitor.noise.foreign_cores == pytest.approx(0, abs=0.05)


@pytest.mark.skipif(noise.used_processor_seconds() is None, reason="needs Linux's /proc")
def test_processor_seconds_grow_with_work():
    before, start = noise.used_processor_seconds(), time.process_time()
    while time.process_time() < start + 0.3:
        pass
    assert noise.used_processor_seconds() - before >= 0.25


def test_a_session_is_as_noisy_as_its_worst_race():
    races = [Noise([1.0, 1.1], 0.1, 2).record(), Noise([1.0, 1.3], 0.4, 2).record()]
    session = noise.summarise_noise(races)
    assert session.spread == pytest.approx(0.3) and session.foreign_cores == 0.4 and session.busy
    assert noise.summarise_noise([*races, None]) is None and noise.summarise_noise([]) is None


def test_the_estimate_follows_the_pace_of_the_run():
    estimate = Estimate(["a", "b", "c"], {"a": 10.0, "b": 20.0}, guess=30.0)
    assert estimate.left == 60
    estimate.finished("a", 20.0)  # twice as long as the last time
    assert estimate.left == 100
    assert clock(estimate.left) == "1:40"
