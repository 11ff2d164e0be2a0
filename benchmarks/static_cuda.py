"""Registers, stack, shared memory and occupancy of every kernel in the compiled CUDA library, without a GPU.

Read from the machine code that was installed (``pip install .`` where nvcc is), by ``cuobjdump``.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from scp_kernels.backends import _libraries, cuda
from scp_kernels.problem import Problem

THREADS = 128
THREADS_OF_KERNEL = {"FoldSupertiles": 512}
"""Threads of a block, and of some kernels' (csrc/cuda/block.h)."""


@dataclass(frozen=True)
class Multiprocessor:
    """What blocks share. CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"."""

    shared_kib: int
    shared_kib_per_block: int
    threads: int
    blocks: int
    registers: int = 65536


MULTIPROCESSOR_LIMITS = {
    75: Multiprocessor(64, 64, 1024, 16),
    80: Multiprocessor(164, 163, 2048, 32),
    86: Multiprocessor(100, 99, 1536, 16),
    89: Multiprocessor(100, 99, 1536, 24),
    90: Multiprocessor(228, 227, 2048, 32),
    100: Multiprocessor(228, 227, 2048, 32),
    120: Multiprocessor(100, 99, 1536, 24),
}


def resident_blocks(capability: int, threads: int, registers: int, dynamic_shared: int, static_shared: int = 0) -> int:
    """How many blocks a multiprocessor holds at once, at most, by their threads, and registers per thread."""
    has = MULTIPROCESSOR_LIMITS[capability]
    of_registers = has.registers // (threads * -(-registers // 8) * 8)
    # From compute capability 8.0 on the system takes 1 KiB of every block; newer cubins count it as static.
    shared = dynamic_shared + max(static_shared, 1024 if capability >= 80 else 0)
    of_shared = has.shared_kib * 1024 // max(shared, 1)
    return min(has.threads // threads, has.blocks, of_registers, of_shared)


def head(hidden: int, channels: int, *shape: int, dtype: torch.dtype = torch.float32) -> Problem:
    shape = shape or (160, 224)
    return Problem(14, channels, 1, (hidden, hidden), shape, 1, dtype, dtype, torch.device("meta"))


# The paper's widths, a volume, and what takes most shared memory.
PROBLEMS = {
    "h64": head(64, 8),
    "h128": head(128, 16),
    "h256": head(256, 32),
    "h1024": head(1024, 128),
    "3d h128": head(128, 16, 32, 96, 96),
    "f64 h128": head(128, 16, dtype=torch.float64),
}


@dataclass(frozen=True)
class Kernel:
    """One kernel of the library, on one architecture."""

    name: str
    dtype: str
    axes: int | None
    """Axes of its boxes; None if it has none."""
    capability: int
    registers: int
    """Registers per thread."""
    stack_bytes: int
    """Stack per thread: anything above 0 means spilled registers."""
    static_shared: int
    """Shared memory per block, beside what a call asks for."""

    @property
    def faults(self) -> list[str]:
        return [f"spills: {self.stack_bytes} bytes of stack per thread"] if self.stack_bytes else []

    @property
    def threads(self) -> int:
        return THREADS_OF_KERNEL.get(self.name, THREADS)

    def blocks(self, dynamic_shared: int) -> int:
        """How many blocks a multiprocessor holds at once, at most."""
        return resident_blocks(self.capability, self.threads, self.registers, dynamic_shared, self.static_shared)


def find_cuobjdump() -> str | None:
    """The CUDA toolkit's, or the one in Triton's wheel."""
    if path_of_toolkit := shutil.which("cuobjdump"):
        return path_of_toolkit
    spec = find_spec("triton")
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        if (path := Path(folder) / "backends" / "nvidia" / "bin" / "cuobjdump").is_file():
            return str(path)
    return None


PROGRAM = r"\d+([A-Z][A-Za-z]+?)I([fd])(?:Li(\d)E)?(?:Li(\d)E)?"
"""A program of csrc/cuda/ as C++ mangles it."""


def kernel_of(symbol: str) -> tuple[str, str, int | None] | None:
    """Name, dtype and axes of a kernel by its mangled name; None for another function."""
    match = re.search(r"scp_kernelINS\w*?_" + PROGRAM, symbol)
    return None if match is None else program_of(match)


def program_of(match: re.Match[str]) -> tuple[str, str, int | None]:
    """Name, dtype and axes of what :data:`PROGRAM` matches. Of ``Apply`` a thread's pixels belong to the name."""
    name, dtype, axes, pixels = match.groups()
    return name + (pixels or ""), {"f": "float32", "d": "float64"}[dtype], None if axes is None else int(axes)


def kernels(report: str) -> Iterator[Kernel]:
    """What ``cuobjdump -res-usage`` says of the library's kernels."""
    capability = 0
    name = None
    for line in report.splitlines():
        if match := re.search(r"arch = sm_(\d+)", line):
            capability = int(match[1])
        elif "Function" in line:
            name = kernel_of(line)
        elif name is not None and (match := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", line)):
            yield Kernel(*name, capability, int(match[1]), int(match[2]), int(match[3]))
            name = None


def installed() -> bool:
    """Whether there is a library of this version's, and a ``cuobjdump`` to read it with."""
    try:
        _libraries.load("cuda")
    except _libraries.LibraryUnavailable:
        return False
    return find_cuobjdump() is not None


def compiled() -> list[Kernel]:
    """Every kernel of the installed library.

    Raises:
        _libraries.LibraryUnavailable: there is none, or no ``cuobjdump`` to read it with.
    """
    tool = find_cuobjdump()
    if tool is None:
        raise _libraries.LibraryUnavailable("cuobjdump was not found (it comes with the CUDA toolkit, and with Triton)")
    command = [tool, "-res-usage", str(_libraries.find_library("cuda"))]
    return list(kernels(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def dynamic_shared(kernel: Kernel, problem: Problem) -> int | None:
    """Dynamic shared memory per block, in bytes; None for another kernel, or if the architecture has too little."""
    axes = 3 if problem.compute_dtype == torch.float64 else problem.spatial_dims
    if kernel.dtype != str(problem.compute_dtype).removeprefix("torch.") or kernel.axes != axes:
        return None
    limit = MULTIPROCESSOR_LIMITS[kernel.capability].shared_kib_per_block * 1024
    try:
        needs = cuda.requirements(
            cuda.declare(_libraries.load("cuda")),
            cuda.sized_cuda_call(problem, limit, 1),
            kernel.name == "ParameterGradients",
        )
    except RuntimeError:
        return None
    return {
        "Apply1": needs.shared_apply,
        "Apply2": needs.shared_apply,
        "ParameterGradients": needs.shared_parameters,
        "FoldSupertiles": needs.shared_supertiles,
    }.get(kernel.name)


def report_cuda(capabilities: list[int]) -> bool:
    """Prints one line per kernel and architecture; returns whether any has a fault."""
    try:
        _libraries.load("cuda")  # a library of another version has other kernels
        library_kernels = [kernel for kernel in compiled() if kernel.capability in capabilities]
    except _libraries.LibraryUnavailable as error:
        print(f"\nCUDA library: {error}")
        return False
    print("\nCUDA library; for some heads: KiB of shared memory per block / warps per multiprocessor\n")
    heads = "".join(f"{name:>11}" for name in PROBLEMS)
    print(f"{'kernel':30} {'cc':>4} {'registers':>9} {'stack':>5}{heads}")
    for kernel in sorted(library_kernels, key=lambda k: (k.name, k.dtype, k.axes or 0, k.capability)):
        axes = "" if kernel.axes is None else f", {kernel.axes}"
        cells = []
        for problem in PROBLEMS.values():
            shared = dynamic_shared(kernel, problem)
            warps = None if shared is None else kernel.blocks(shared) * kernel.threads // 32
            cells.append("" if shared is None else f"{shared / 1024:.1f}/{warps}")
        title = f"{kernel.name}<{kernel.dtype}{axes}>"
        print(
            f"{title:30} {kernel.capability:4} {kernel.registers:9} {kernel.stack_bytes:5}",
            "".join(f"{cell:>11}" for cell in cells),
            *kernel.faults,
        )
    return any(kernel.faults for kernel in library_kernels)
