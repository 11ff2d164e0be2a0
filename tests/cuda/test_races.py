"""Races between threads or blocks of the CUDA kernels, found exactly on the host (csrc/cuda/host_emulation/races.h)."""

import subprocess

import pytest
import torch

from scp_kernels import dispatch, scp
from tests.cuda.test_host_emulation import concurrent_lines, concurrent_planes
from tests.support.agreement import slices_of_a_volume
from tests.support.cuda_host import ORDER_VARIABLE, HostCuda, compiler
from tests.support.problems import evaluate, make_inputs

WITHOUT_BARRIER_VARIABLE = "SCP_HOST_WITHOUT_BARRIER"


def is_gcc() -> bool:
    return compiler is not None and b"Free Software Foundation" in subprocess.check_output([compiler, "--version"])


pytestmark = [
    pytest.mark.skipif(not is_gcc(), reason="needs GCC, whose -fsanitize=thread calls a function at each access"),
    pytest.mark.xdist_group("cuda_races"),
]


@pytest.fixture(autouse=True)
def host_with_race_detector(monkeypatch):
    backend = HostCuda(races=True)
    monkeypatch.setitem(dispatch.BACKENDS, "cuda", backend)
    return backend


PROBLEMS = {
    "every kind of panel": (lambda: make_inputs((20, 37), channels=40, classes=2, hidden=(60, 150), bias=True), {}),
    "more units than threads": (lambda: make_inputs((9, 17), channels=3, hidden=(200, 190)), {}),
    "narrow panels": (lambda: make_inputs((20, 37), channels=20, hidden=(70, 90)), {}),
    "overflow tiles": (lambda: concurrent_lines((48, 80), 60, torch.float32), {}),
    "a volume, half precision": (lambda: make_inputs((5, 6, 9), channels=5, hidden=(40, 24), dtype=torch.bfloat16), {}),
    "a position for each sample": (
        lambda: make_inputs((20, 21), batch=3, channels=4, hidden=(30, 20)),
        {"origin": [[0, 0], [30, 5], [7, 40]], "extent": (99, 99)},
    ),
    "slices of a volume": (
        lambda: make_inputs((20, 21), batch=3, channels=4, hidden=(30, 20), position_dims=3),
        {"position": "centered", **slices_of_a_volume(3)},
    ),
    "overflow tiles of slices of a volume": (
        lambda: concurrent_planes((48, 80), 60, torch.float32)[0],
        concurrent_planes((48, 80), 60, torch.float32)[1],
    ),
    "partial gradients in the features' gradient": (
        lambda: make_inputs((21, 24), batch=16, channels=8, hidden=(24, 20)),
        {},
    ),
    "samples in parts": (lambda: make_inputs((7, 30), batch=16, channels=5, hidden=(20, 16)), {}),
    "two pixels per thread": (lambda: make_inputs((44, 70), channels=7, classes=2, hidden=(50, 60)), {}),
    "a weight that is not finite": (lambda: with_infinity(make_inputs((12, 20), hidden=(24, 20))), {}),
}


# KiB of shared memory, where not 227: few, so that a multiprocessor holds more blocks with narrow panels.
SHARED_MEMORY = {"narrow panels": 40}
# Multiprocessors, where not 4: few for supertiles to pay, and as many as two pixels per thread in Apply are for.
MULTIPROCESSORS = {"overflow tiles": 1, "more units than threads": 1, "two pixels per thread": 3}


def with_infinity(inputs):
    inputs.phi[2][3, 5] = float("inf")
    return inputs


@pytest.mark.parametrize("problem", PROBLEMS)
def test_no_races(problem, host_with_race_detector):
    inputs, options = PROBLEMS[problem]
    host_with_race_detector.multiprocessors = MULTIPROCESSORS.get(problem, 4)
    host_with_race_detector.shared_memory = SHARED_MEMORY.get(problem, 227) * 1024
    evaluate(scp, inputs(), backend="cuda", **options)


@pytest.mark.parametrize("barrier", range(1, 30))
def test_a_missing_barrier_is_found(monkeypatch, barrier):
    """The detector detects: without any one of these barriers of a block the same calls race."""
    monkeypatch.setenv(WITHOUT_BARRIER_VARIABLE, str(barrier))
    monkeypatch.setenv(ORDER_VARIABLE, "0")  # in which the results may well be right
    inputs, options = PROBLEMS["more units than threads"]
    with pytest.raises(RuntimeError, match="a race between threads"):
        evaluate(scp, inputs(), backend="cuda", **options)
