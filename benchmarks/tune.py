"""Measure launch configurations on this GPU and print the fastest as entries for the launch table.

Usage: ``python -m benchmarks.tune [--case h256 …] [--kernel forward …]``, and with ``--capability 90`` without a GPU:
then the candidates are only compiled, and those that spill or exceed the shared memory are named.

A candidate is timed after its result agrees with that of the table's entry. The entries printed go before the general
ones of ``scp_kernels/backends/triton/tables.py``.
"""

import argparse
import itertools
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from unittest import mock

import torch
import triton

from benchmarks.static import STATIC_CASES
from scp_kernels.backends import _gpu
from scp_kernels.backends.triton import launch, offline, tables
from scp_kernels.backends.triton.sequence import LaunchSequence
from scp_kernels.backends.triton.tables import Configuration, TableEntry
from scp_kernels.positions import identity_affine, position_matrix
from scp_kernels.problem import Problem

KERNELS = (tables.FORWARD, tables.FEATURES, tables.PARAMETERS)
# Relative difference of two configurations' results: rounding may put a pixel on the other side of a kink.
AGREEMENT = 1e-3


def candidates(kernel: str, problem: Problem, capability: int) -> Iterator[Configuration]:
    """The table's own configuration, then others worth trying.

    Tiles divide a supertile; above 64 pixels exact products spill, on every architecture.
    """
    current = launch.configuration_for(kernel, problem, capability)
    yield current
    outputs = (16, 32) if kernel == tables.PARAMETERS else (32, 64)
    for tile, block_hidden, block_outputs, warps in itertools.product(
        ((8, 8), (4, 16), (4, 8), (8, 16)), (8, 16), outputs, (2, 4)
    ):
        other = Configuration(
            tile, block_hidden, block_outputs, warps, max_registers=min(255, 65536 // (32 * warps) // 2)
        )
        if other != current:
            yield other


@contextmanager
def first_in_table(kernel: str, configuration: Configuration) -> Iterator[None]:
    """The configuration is what every call of ``kernel`` finds, for the length of a block."""
    with mock.patch.object(tables, "TABLE", (TableEntry(kernel, configuration), *tables.TABLE)):
        yield


def launches_of(kernel: str, problem: Problem, capability: int) -> LaunchSequence:
    """The launches of one pass, on ``meta``."""
    return dict(zip(KERNELS, offline.abstract_sequences(problem, capability), strict=True))[kernel]


def fits(kernel: str, configuration: Configuration, problem: Problem, capability: int) -> bool:
    """Whether the compiler finds registers and shared memory for every launch; needs no GPU."""
    with first_in_table(kernel, configuration):
        launches = launches_of(kernel, replace(problem, device=torch.device("meta")), capability).launches
        return not any(offline.compile_launch(item, capability).faults for item in launches)


def entry(kernel: str, configuration: Configuration, problem: Problem, capability: int) -> str:
    """The entry of the table, as source, for this architecture, width and number of outputs."""
    width, outputs = max(problem.hidden), problem.num_classes * problem.channels
    result = TableEntry(kernel, configuration, (capability, capability), (width, width), 1, (outputs, outputs))
    return f"{result!r},"


def on_device(sequence: LaunchSequence, problem: Problem, device: torch.device) -> LaunchSequence:
    """The launches with memory in place of tensors that have none: random, but Φ's first layer as networks start."""
    generator = torch.Generator().manual_seed(0)
    d = problem.spatial_dims
    bound = (2 * d) ** -0.5
    extent = torch.tensor(problem.spatial_shape, dtype=torch.float64)
    given = {
        "w1": torch.empty(problem.hidden[0], 2 * d).uniform_(-bound, bound, generator=generator),
        "b1": torch.empty(problem.hidden[0]).uniform_(-bound, bound, generator=generator),
        "position_matrix": position_matrix(identity_affine(d, extent.device), extent, "pixels"),
    }
    memory: dict[int, torch.Tensor] = {}  # of a tensor, whichever launches name it

    def of(name: str, value: torch.Tensor) -> torch.Tensor:
        if id(value) not in memory:
            fresh = torch.empty_like(value, device=device)
            if name in given:
                fresh.copy_(given[name])
            elif value.is_floating_point():
                torch.manual_seed(zlib.crc32(name.encode()))  # the same for every configuration, whatever it allocates
                fresh.normal_(std=0.1)
            memory[id(value)] = fresh
        return memory[id(value)]

    launches = []
    for item in sequence.launches:
        arguments = {
            name: of(name, value) if isinstance(value, torch.Tensor) else value
            for name, value in item.arguments.items()
        }
        launches.append(replace(item, arguments=arguments))
    return replace(sequence, launches=tuple(launches))


def execute(sequence: LaunchSequence) -> None:
    """What a pass does: marks of slabs zeroed, as PyTorch does for each call, then every launch.

    What makes the caller's tensors of their outputs is left out.
    """
    for marks in sequence.zeroed():
        marks.zero_()
    for item in sequence.launches:
        item.run()


def result(sequence: LaunchSequence, kernel: str) -> torch.Tensor:
    """What one run writes."""
    execute(sequence)
    names = {tables.FORWARD: ["y"], tables.FEATURES: ["grad_features"], tables.PARAMETERS: ["grad_w2", "grad_w3"]}
    last = sequence.launches[-1].arguments
    return torch.cat([last[name].double().flatten() for name in names[kernel]])


def measure(kernel: str, problem: Problem, capability: int, device: torch.device) -> list[tuple[float, Configuration]]:
    """Milliseconds and configuration, fastest first, of the candidates that fit and agree with the table's own."""
    reference = result(on_device(launches_of(kernel, problem, capability), problem, device), kernel)
    timings = []
    for configuration in candidates(kernel, problem, capability):
        if not fits(kernel, configuration, problem, capability):
            continue
        with first_in_table(kernel, configuration):
            sequence = on_device(launches_of(kernel, problem, capability), problem, device)
        value = result(sequence, kernel)
        if (value - reference).norm() > AGREEMENT * reference.norm():
            raise RuntimeError(f"{kernel} with {configuration} gives another result than the table's entry")
        timings.append((triton.testing.do_bench(partial(execute, sequence), return_mode="median"), configuration))
    return sorted(timings, key=lambda timing: timing[0])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--case", nargs="*", default=["h64", "h128", "h256"], choices=list(STATIC_CASES), metavar="NAME"
    )
    parser.add_argument("--kernel", nargs="*", default=list(KERNELS), choices=list(KERNELS), metavar="PASS")
    parser.add_argument("--capability", type=int, metavar="CC", help="compile only, for this compute capability")
    options = parser.parse_args(arguments)
    if options.capability is None and not torch.cuda.is_available():
        parser.error("no CUDA device to measure on; --capability CC compiles the candidates without one")
    for name, kernel in itertools.product(options.case, options.kernel):
        problem = STATIC_CASES[name].problem
        if options.capability is not None:
            for configuration in candidates(kernel, problem, options.capability):
                verdict = "fits" if fits(kernel, configuration, problem, options.capability) else "does not fit"
                print(f"{name:8} {kernel:20} {verdict:12} {configuration}", flush=True)
            continue
        timings = measure(kernel, problem, _gpu.capability(), torch.device("cuda"))
        for milliseconds, configuration in timings:
            print(f"# {name:8} {kernel:20} {milliseconds:8.4f} ms  {configuration}", flush=True)
        print(entry(kernel, timings[0][1], problem, _gpu.capability()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
