"""Registers, stack, shared memory and predicted cycles of the kernels for GPUs, without a GPU.

``python -m benchmarks.static [--backend triton cuda] [--capability 90 …] [--case NAME …]`` compiles what Triton would
run on a GPU, reads the CUDA library that is installed (``static_cuda``), and prints one line per kernel. It exits with
1 if a kernel spills registers or exceeds an architecture's shared memory. For compute capability 7.5, the cycles of the
CUDA kernels (``cycles``) and of the Triton kernels (``triton_cycles``) are predicted.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import triton

from benchmarks import cycles, static_cuda, triton_cycles
from scp_kernels.backends.triton import offline, tables
from scp_kernels.problem import Problem


@dataclass(frozen=True)
class Specialization:
    """One specialisation to compile: sizes, dtype of the features, their layout, and the products' precision."""

    hidden: int
    channels: int
    classes: int = 1
    spatial_shape: tuple[int, ...] = (160, 224)
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    tf32: bool = False

    @property
    def problem(self) -> Problem:
        return Problem(
            batch=14,
            channels=self.channels,
            num_classes=self.classes,
            hidden=(self.hidden, self.hidden),
            spatial_shape=self.spatial_shape,
            groups=1,
            dtype=self.dtype,
            compute_dtype=torch.float32,
            device=torch.device("meta"),
        )


# The paper's widths, then one case for each thing that makes another kernel of them.
STATIC_CASES = {
    "h64": Specialization(64, 8),
    "h128": Specialization(128, 16),
    "h256": Specialization(256, 32),
    "h256-bf16": Specialization(256, 32, dtype=torch.bfloat16),
    "h256-fp16-channels-last": Specialization(256, 32, dtype=torch.float16, channels_last=True),
    "h256-channels-last": Specialization(256, 32, channels_last=True),
    "h256-tf32": Specialization(256, 32, tf32=True),
    "h256-2-classes": Specialization(256, 32, classes=2),
    "h128-14-classes": Specialization(128, 16, classes=14),
    "h256-128-channels": Specialization(256, 128),
    "3d": Specialization(128, 16, spatial_shape=(32, 96, 96)),
    "odd": Specialization(100, 13, classes=3, spatial_shape=(37, 151)),
    "odd-map": Specialization(256, 32, spatial_shape=(37, 151)),
    "odd-3d-bf16": Specialization(150, 33, classes=2, spatial_shape=(9, 21, 33), dtype=torch.bfloat16),
}


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """``torch.set_float32_matmul_precision`` for the length of a block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def resources(case: Specialization, capability: int) -> Iterator[offline.Resources]:
    """Compiles every launch of a case's forward and backward passes."""
    with matmul_precision("high" if case.tf32 else "highest"):
        for sequence in offline.abstract_sequences(case.problem, capability, channels_last=case.channels_last):
            for launch in sequence.launches:
                yield offline.compile_launch(launch, capability)


def report_triton(cases: list[str], capabilities: list[int]) -> bool:
    """Prints one line per Triton kernel; returns whether any has a fault."""
    print(f"Triton {triton.__version__}; shared memory in KiB of what a block may have\n")
    print(f"{'case':24} {'cc':>4} {'kernel':34} {'threads':>7} {'registers':>9} {'stack':>5} {'shared':>10}")
    failed = False
    for name in cases:
        for capability in capabilities:
            # Launches that differ only in their arguments share a kernel: one line for them.
            for kernel in dict.fromkeys(resources(STATIC_CASES[name], capability)):
                shared = f"{kernel.shared_bytes / 1024:.1f}/{kernel.shared_limit // 1024}"
                print(
                    f"{name:24} {capability:4} {kernel.kernel:34} {kernel.threads:7} {kernel.registers:9}"
                    f" {kernel.stack_bytes:5} {shared:>10}",
                    *kernel.faults,
                    flush=True,
                )
                failed |= bool(kernel.faults)
    return failed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.static", description=__doc__.splitlines()[0])
    parser.add_argument("--backend", nargs="*", default=["triton", "cuda"], choices=["triton", "cuda"])
    parser.add_argument("--capability", type=int, nargs="*", default=list(tables.SHARED_MEMORY_KIB), metavar="CC")
    parser.add_argument(
        "--case",
        help="of the Triton kernels",
        nargs="*",
        default=list(STATIC_CASES),
        choices=list(STATIC_CASES),
        metavar="NAME",
    )
    options = parser.parse_args(arguments)
    failed = "triton" in options.backend and report_triton(options.case, options.capability)
    of_cuda: dict[str, float] = {}
    if "cuda" in options.backend:
        failed |= static_cuda.report_cuda(options.capability)
        if cycles.CAPABILITY in options.capability and static_cuda.installed():
            of_cuda = cycles.report_cycles()
    if "triton" in options.backend and cycles.CAPABILITY in options.capability:
        triton_cycles.report_triton_cycles(of_cuda)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
