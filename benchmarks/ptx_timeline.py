"""When the warps of a block issue their instructions, by stated latencies, if the block has a multiprocessor to itself.

Warps issue in order, one instruction per cycle at most, and wait for the registers that an instruction reads; at a
barrier they wait for each other. The order is that of PTX: the assembler moves loads forward. Nothing is fitted.
"""

from dataclasses import dataclass

import numpy as np

from benchmarks.ptx import Instruction, names_in
from benchmarks.ptx_arithmetic import Array


@dataclass(frozen=True)
class InstructionCost:
    """Cycles for which an instruction keeps its warp, and after which its result is there."""

    issue: int
    latency: int
    sources: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()


# Turing, by "Dissecting the NVIDIA Turing T4 GPU via Microbenchmarking" (Jia et al., 2019), in cycles: arithmetic 4,
# shared memory 19, L2 188 (what these kernels load is in L2, but for the features' first reading). A multiprocessor
# has two units for float64, hence 16 cycles per warp. Divisions are routines of the compiler's.
ALU, SHARED, GLOBAL, SHUFFLE, FLOAT64 = (
    InstructionCost(1, 4),
    InstructionCost(1, 19),
    InstructionCost(1, 188),
    InstructionCost(2, 22),
    InstructionCost(16, 48),
)
DIVISIONS = {"f32": InstructionCost(8, 40), "32": InstructionCost(24, 80), "64": InstructionCost(70, 240)}
BARRIER = 6


def cost_of(instruction: Instruction) -> InstructionCost:
    name, *modifiers = instruction.opcode.split(".")
    first, *rest = [names_in(operand) for operand in instruction.operands] or [()]
    sources = [name for names in rest for name in names]
    if instruction.guard is not None:
        sources += [instruction.guard.name, *first]
    if name in ("st", "bar", "bra", "ret"):
        return InstructionCost(1, 0, (*sources, *first))
    cost = ALU
    if name in ("ld", "ldmatrix") and "param" not in modifiers:
        cost = GLOBAL if "global" in modifiers else SHARED
    elif name == "shfl":
        cost = SHUFFLE
    elif name in ("div", "rem"):
        cost = DIVISIONS["f32" if modifiers[-1] == "f32" else modifiers[-1][1:]]
    elif "f64" in modifiers and name != "mov":
        cost = FLOAT64
    return InstructionCost(cost.issue, cost.latency, tuple(sources), tuple(first))


class Timeline:
    """Of some blocks of threads."""

    def __init__(self, blocks: int, warps: int) -> None:
        self.clock = np.zeros((blocks, warps), np.int64)
        self.ready: dict[str, Array] = {}

    def issue(self, rows: Array, cost: InstructionCost, more: Array | int) -> None:
        """``more``: cycles of an instruction beyond its cost, such as passes over shared memory."""
        everywhere = len(rows) == len(self.clock)
        start = self.clock if everywhere else self.clock[rows]
        for name in cost.sources:
            if name in self.ready:
                start = np.maximum(start, self.ready[name] if everywhere else self.ready[name][rows])
        done = start + cost.latency + more
        self.clock[rows] = start + cost.issue + more
        for name in cost.targets:
            if everywhere:
                self.ready[name] = done
            else:
                ready = self.ready.get(name)
                self.ready[name] = np.zeros_like(self.clock) if ready is None else ready.copy()
                self.ready[name][rows] = done

    def barrier(self, rows: Array) -> None:
        self.clock[rows] = self.clock[rows].max(1, keepdims=True) + BARRIER

    @property
    def cycles(self) -> int:
        """Of all blocks, added up, as if each were alone."""
        return int(self.clock.max(1).sum())
