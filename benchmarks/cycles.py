"""Cycles that each CUDA kernel is predicted to take on a GPU, without one.

The kernels' own code runs on the host (csrc/cuda/host_emulation/), where every access to memory is counted as the warps
of a GPU make it: instructions that read global memory, passes over shared memory with their bank conflicts, barriers.
With the blocks that a multiprocessor holds at once (:mod:`benchmarks.static_cuda`), a kernel is predicted to take

    waves · (load · L + pass · P + barrier · B) + new bytes / bandwidth

where L, P and B are, of an average block, what the longest warp does between barriers, added up. The kernels wait for
latencies: what is not counted (arithmetic, addresses, instruction fetch) is in the three constants. They are fitted to
a cycle-level simulation of an RTX 2060 (:data:`CALIBRATION`), and nothing else is. "Issue" is the least that a kernel
can take: the instructions that access memory, counted over all warps, times what the machine code has of all
instructions for each of them (:mod:`benchmarks.sass`), one per scheduler and cycle. That is an estimate, because
machine code has the instructions of a loop once. A kernel is predicted to take the larger of the two. Launches cost
nothing.
"""

import ctypes
import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import sass, static_cuda
from scp_kernels.backends import _libraries
from scp_kernels.positions import whole_image_matrix
from scp_kernels.problem import GradientNeeds, SCPInputs
from tests.support.cases import Case
from tests.support.cuda_host import HostCuda, build, compiler

CAPABILITY = 75
MULTIPROCESSOR_COUNT = 30
BYTES_PER_CYCLE = 200
"""An RTX 2060: 336 GB/s at 1.68 GHz."""
SECTOR_BYTES = 32
SCHEDULERS = 4
"""Of a multiprocessor: each issues one instruction of a warp per cycle."""
MOST_LAUNCHES = 64
SIMULATED_CASES = {
    "h64 forward": (Case(64, 8, 1), False),
    "h128 forward": (Case(128, 16, 1), False),
    "h256 forward": (Case(256, 32, 1), False),
    "h64 B14 forward": (Case(64, 8, 14), False),
    "h64 backward": (Case(64, 8, 1), True),
}


class LaunchCounts(ctypes.Structure):
    """``Counts`` of csrc/cuda/host_emulation/warp_counts.cpp."""

    _fields_ = (
        ("program", ctypes.c_char * 64),
        *((name, ctypes.c_double) for name in ("blocks", "shared_bytes", "barriers", "longest_loads")),
        *((name, ctypes.c_double) for name in ("longest_passes", "new_sectors", "accesses")),
    )


@dataclass(frozen=True)
class SimulatedLaunch:
    """What one launch does: of an average block, and of all blocks together."""

    kernel: str
    waves: float
    """Rounds of as many blocks as run at once."""
    loads: float
    passes: float
    barriers: float
    new_bytes: float
    issue: float = 0.0
    """Cycles that the schedulers need to issue what all warps execute."""

    @property
    def waits(self) -> tuple[float, float, float]:
        """What the constants are multiplied with."""
        return self.waves * self.loads, self.waves * self.passes, self.waves * self.barriers

    @property
    def streaming(self) -> float:
        """Cycles of the memory's bus."""
        return self.new_bytes / BYTES_PER_CYCLE


# Counts of the kernels of commit 75daff4 at 160 × 224 in float32, and the least and the most cycles that the simulation
# gave them. These are good to 30 to 50 %; the simulation makes two assumptions on the order of instructions.
CALIBRATION = {
    "Apply, forward, h 64": (SimulatedLaunch("Apply", 280 / 30 / 4, 64.5, 731.1, 15.56, 1.291e6), 77e3, 98e3),
    "Apply, forward, h 128": (SimulatedLaunch("Apply", 280 / 30 / 3, 122.2, 1404.6, 18.81, 2.438e6), 197e3, 197e3),
    "Apply, forward, h 256": (SimulatedLaunch("Apply", 280 / 30 / 2, 365.9, 3737.3, 22.22, 4.731e6), 367e3, 699e3),
    "Apply, forward, h 64, B 14": (SimulatedLaunch("Apply", 280 / 30 / 4, 181.5, 731.1, 15.56, 18.06e6), 172e3, 197e3),
    "Parameters, h 64": (SimulatedLaunch("Parameters", 280 / 30 / 2, 115.1, 2874.0, 29.15, 2.894e6), 307e3, 485e3),
    "Collect, h 64": (SimulatedLaunch("Collect", 1.0, 2941.6, 0.0, 1.0, 0.021e6), 216e3, 221e3),
    "Apply, backward, h 64": (SimulatedLaunch("Apply", 280 / 30 / 4, 56.5, 731.1, 15.56, 1.147e6), 72e3, 92e3),
}


@functools.cache
def constants(left_out: str | None = None) -> tuple[float, float, float]:
    """Cycles per load, per pass and per barrier, none below 0, with the least sum of squared relative errors.

    Args:
        left_out: an entry of :data:`CALIBRATION` that is not fitted to.
    """
    from scipy.optimize import nnls

    rows, targets = [], []
    for name, (launch, least, most) in CALIBRATION.items():
        if name != left_out:
            simulated = math.sqrt(least * most)
            rows.append([wait / simulated for wait in launch.waits])
            targets.append(1 - launch.streaming / simulated)
    load, shared_pass, barrier = nnls(rows, targets)[0]
    return load, shared_pass, barrier


def predicted(launch: SimulatedLaunch, left_out: str | None = None) -> float:
    """Cycles of a launch."""
    waits = sum(c * wait for c, wait in zip(constants(left_out), launch.waits, strict=True))
    return max(waits + launch.streaming, launch.issue)


def ratios(*, leave_out: bool) -> dict[str, float]:
    """Predicted over simulated cycles of each entry of the calibration, which ``leave_out`` is then not fitted to."""
    return {
        name: predicted(launch, name if leave_out else None) / math.sqrt(least * most)
        for name, (launch, least, most) in CALIBRATION.items()
    }


class CountedCuda(HostCuda):
    """The ``"cuda"`` backend with the host in the place of an RTX 2060, which counts."""

    def __init__(self) -> None:
        super().__init__(
            static_cuda.MULTIPROCESSOR_LIMITS[CAPABILITY].shared_kib_per_block * 1024, MULTIPROCESSOR_COUNT
        )

    def library(self) -> ctypes.CDLL:
        return build(counts=True)

    def take(self) -> list[LaunchCounts]:
        """The launches since the last call."""
        launches = (LaunchCounts * MOST_LAUNCHES)()
        count = self.library().scp_host_counts(launches, MOST_LAUNCHES)
        assert count <= MOST_LAUNCHES
        return list(launches[:count])


def simulate(case: Case, backward: bool) -> list[LaunchCounts]:
    """The launches of a forward or a backward pass."""
    inputs, problem, backend = case.inputs(), case.problem(), CountedCuda()
    positions = whole_image_matrix(case.shape, "pixels")
    call = SCPInputs(inputs.features, inputs.phi, inputs.residual, None, positions, problem)
    backend.take()
    if backward:
        backend.backward(call, inputs.grad_logits, GradientNeeds(features=True, parameters=True))
    else:
        backend.forward(call)
    return backend.take()


def launch_of(
    counts: LaunchCounts, kernels: Sequence[static_cuda.Kernel], mixes: Sequence[sass.Mix] = ()
) -> SimulatedLaunch:
    """With the blocks that run at once, from the registers of the compiled kernel, and with what its code issues."""
    match = re.search(static_cuda.PROGRAM, counts.program.decode())
    assert match is not None, counts.program
    name, dtype, axes = static_cuda.program_of(match)
    kernel = next(k for k in kernels if (k.name, k.dtype, k.axes) == (name, dtype, axes))
    resident = kernel.blocks(int(counts.shared_bytes))
    per_multiprocessor = counts.blocks / MULTIPROCESSOR_COUNT
    return SimulatedLaunch(
        name,
        max(1.0, per_multiprocessor / resident),
        counts.longest_loads / counts.blocks,
        counts.longest_passes / counts.blocks,
        counts.barriers / counts.blocks,
        counts.new_sectors * SECTOR_BYTES,
        sum(
            counts.accesses * mix.instructions_per_access / SCHEDULERS / MULTIPROCESSOR_COUNT
            for mix in mixes
            if (mix.kernel, mix.dtype, mix.axes) == (name, dtype, axes)
        ),
    )


def report_cycles() -> dict[str, float]:
    """Prints one line per launch of :data:`SIMULATED_CASES`, and how far the model is from what it is fitted to.

    Returns:
        Cycles of all launches of a case together, by its name; empty if nothing could be predicted.
    """
    together: dict[str, float] = {}
    print("\nPredicted cycles on an RTX 2060, float32, 160×224.")
    costs = "{:.0f}, {:.0f} and {:.0f} cycles".format(*constants())
    print(f"Loads, passes over shared memory and barriers are an average block's, and cost {costs} each.")
    for words, leave_out in (("fitted to all", False), ("each left out of the fit", True)):
        off = ratios(leave_out=leave_out)
        worst = max(off, key=lambda name: abs(math.log(off[name])))
        print(f"of {len(off)} simulated figures, {words}, at most {off[worst] - 1:+.0%} off ({worst})")
    if compiler is None:
        print("No cycles: there is no C++ compiler to run the kernels' code on the host with")
        return together
    kernels = [kernel for kernel in static_cuda.compiled() if kernel.capability == CAPABILITY]
    if not kernels:
        print(f"No cycles: the installed library has no kernels for {CAPABILITY / 10}")
        return together
    mixes = sass.mixes_of_library(CAPABILITY, _libraries.find_library("cuda"))
    sass.report_mix(mixes)
    headings = ("cycles", 10), ("issue", 8), ("waves", 7), ("loads", 8), ("passes", 8), ("barriers", 9), ("new KB", 8)
    print(f"\n{'case':16} {'kernel':20}", "".join(f"{heading:>{width}}" for heading, width in headings))
    for name, (case, backward) in SIMULATED_CASES.items():
        launches = [launch_of(counts, kernels, mixes) for counts in simulate(case, backward)]
        for launch in launches:
            print(
                f"{name:16} {launch.kernel:20}{predicted(launch):11,.0f}{launch.issue:8,.0f}{launch.waves:7.2f}"
                f"{launch.loads:8.0f}{launch.passes:8.0f}{launch.barriers:9.1f}{launch.new_bytes / 1e3:8,.0f}"
            )
        together[name] = sum(map(predicted, launches))
        print(f"{name:16} {'together':20}{together[name]:11,.0f}", flush=True)
    return together
