"""The instruction mix of kernels' machine code, phase by phase, read by ``cuobjdump -sass``.

A phase is what lies between two barriers, in the order of addresses. The mix is static: instructions of a loop or of a
branch are counted once, however often they run.
"""

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import static_cuda

CLASSES = {
    "FFMA": r"FFMA|FADD|FMUL",
    "FP64": r"D(FMA|ADD|MUL|SETP)",
    "LDS": r"LDS",
    "STS": r"STS",
    "LDG": r"LDG|LD\b",
    "STG": r"STG|ST\b",
    "MUFU": r"MUFU",
    "lanes": r"SHFL|VOTE|VOTEU",
    "BAR": r"BAR",
}
"""Opcodes by what they occupy; all others (integers, predicates, moves, branches) are "other"."""
MEMORY_INSTRUCTIONS = "LDS", "STS", "LDG", "STG"


@dataclass(frozen=True)
class Mix:
    """The machine code of one kernel."""

    kernel: str
    dtype: str
    axes: int | None
    phases: tuple[Counter[str], ...]

    @property
    def together(self) -> Counter[str]:
        return sum(self.phases, Counter())

    @property
    def instructions_per_access(self) -> float:
        """Instructions for each one that accesses shared or global memory."""
        return self.together.total() / sum(self.together[name] for name in MEMORY_INSTRUCTIONS)


def class_of(opcode: str) -> str:
    """The class of an opcode with its modifiers, such as ``LDS.128``."""
    name = opcode.split(".")[0]
    return next((c for c, pattern in CLASSES.items() if re.fullmatch(pattern, name)), "other")


def phases_of(function: str) -> tuple[Counter[str], ...]:
    """Instructions by class, from barrier to barrier, in one function of what ``cuobjdump -sass`` says."""
    phases = [Counter[str]()]
    # A predicate may stand before the opcode; the padding behind the last branch is no code.
    for opcode in re.findall(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", function):
        if opcode == "NOP":
            continue
        phases[-1][class_of(opcode)] += 1
        if class_of(opcode) == "BAR":
            phases.append(Counter())
    return tuple(phases)


def mixes(listing: str) -> Iterator[Mix]:
    """What ``cuobjdump -sass`` says of the library's kernels."""
    for function in listing.split("Function : ")[1:]:
        name = static_cuda.kernel_of(function.split()[0])
        if name is not None:
            yield Mix(*name, phases_of(function))


def mixes_of_library(capability: int, library: Path) -> list[Mix]:
    """The kernels of a library for one compute capability."""
    command = [static_cuda.find_cuobjdump() or "cuobjdump", "-sass", "-arch", f"sm_{capability}", str(library)]
    return list(mixes(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def report_mix(mixes_of_kernels: list[Mix]) -> None:
    """Prints one line per kernel in float32 with two axes or none, and one per phase."""
    columns = [*CLASSES, "other"]
    print("\nInstructions in the machine code, from barrier to barrier in the order of addresses; loops count once")
    print(f"{'kernel':20} {'phase':>8}", "".join(f"{name:>7}" for name in columns), f"{'all':>7}")
    for mix in mixes_of_kernels:
        if mix.dtype != "float32" or mix.axes == 3:
            continue
        for title, counts in (("together", mix.together), *enumerate(mix.phases, 1)):
            cells = "".join(f"{counts[name]:7}" for name in columns)
            print(f"{mix.kernel:20} {title:>8} {cells} {counts.total():7}")
