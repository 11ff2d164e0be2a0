"""Blocks of threads of :mod:`benchmarks.ptx_machine` while they run."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks import ptx_arithmetic
from benchmarks.ptx import Constant, Instruction, Operand, Register
from benchmarks.ptx_arithmetic import Array, dtype_of
from benchmarks.ptx_memory import WARP, SharedMemory
from benchmarks.ptx_timeline import Timeline


@dataclass
class WarpCounts:
    """Of one launch, as ``Counts`` of csrc/cuda/host_emulation/warp_counts.cpp counts them."""

    blocks: int = 0
    barriers: int = 0
    longest_loads: int = 0
    longest_passes: int = 0
    accesses: int = 0
    new_sectors: int = 0
    instructions: int = 0
    """Of all warps; of PTX, where machine code may have more or fewer."""
    passes: int = 0
    """Of all warps."""
    alone: int = 0
    """Cycles of all blocks, added up, by :mod:`benchmarks.ptx_timeline`."""


@dataclass
class RunningBlock:
    """A basic block while it runs for some blocks of threads."""

    blocks: "Blocks"
    rows: Array
    """Which blocks of threads."""
    local: dict[str, Array] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    next: Array | int = 0
    more: Array | int = 0
    """Cycles that the last instruction takes beyond its usual ones."""

    @property
    def everywhere(self) -> bool:
        return len(self.rows) == self.blocks.count

    def bits(self, name: str) -> Array:
        if name not in self.local:
            if name in self.blocks.special:
                value = self.blocks.special[name]
            elif name in self.blocks.registers:
                value = self.blocks.registers[name]
            else:
                raise RuntimeError(f"{name} is read before it is written")
            self.local[name] = value if self.everywhere or len(value) == 1 else value[self.rows]
        return self.local[name]

    def read(self, operand: Operand, kind: str) -> Array:
        dtype = dtype_of(kind)
        if isinstance(operand, Constant):
            if operand.text == "global_smem":
                return np.zeros((1, 1), dtype)
            return ptx_arithmetic.constant(operand.text, dtype)
        assert isinstance(operand, Register), operand
        value = self.bits(operand.name)
        if value.dtype.itemsize != dtype.itemsize:
            value = value.astype(f"u{dtype.itemsize}")
        return value.view(dtype)

    def write(self, register: Operand, value: Array, mask: Array | None = None) -> None:
        assert isinstance(register, Register), register
        container = np.dtype(ptx_arithmetic.CONTAINERS[register.name.strip("%0123456789")])
        if value.dtype.itemsize != container.itemsize:
            value = value.astype(f"{value.dtype.kind}{container.itemsize}")
        value = value.view(container)
        if mask is not None:
            value = np.where(mask, value, self.bits(register.name))
        self.local[register.name] = value
        self.written.add(register.name)

    def guard(self, instruction: Instruction) -> Array | None:
        if instruction.guard is None:
            return None
        condition = self.bits(instruction.guard.name)
        return ~condition if instruction.negated else condition

    def leave(self) -> None:
        """Hands the registers on that another basic block may read."""
        for name in self.written & self.blocks.carried:
            self.blocks.put(name, self.local[name], self)


class Blocks:
    """Blocks of threads that run side by side: their registers, their shared memory, their counters.

    Args:
        indices: their numbers in the grid.
        grid: blocks in x, y and z.
        threads: of a block.
        shared: their shared memory.
        carried: registers that outlive a basic block.
    """

    def __init__(
        self, indices: Array, grid: Sequence[int], threads: int, shared: SharedMemory, carried: frozenset[str]
    ) -> None:
        self.count, self.shared, self.carried = len(indices), shared, carried
        self.registers: dict[str, Array] = {}
        self.own: set[str] = set()  # arrays that no other register shares
        self.special = {
            "%tid.x": np.arange(threads, dtype="u4")[None],
            "%ctaid.x": (indices % grid[0]).astype("u4")[:, None],
            "%ctaid.y": (indices // grid[0] % grid[1]).astype("u4")[:, None],
            "%ctaid.z": (indices // grid[0] // grid[1]).astype("u4")[:, None],
            **{f"%nctaid.{axis}": np.array([[size]], "u4") for axis, size in zip("xyz", grid, strict=True)},
        }
        self.timeline = Timeline(self.count, threads // WARP)
        self.loads, self.passes = (np.zeros((self.count, threads // WARP), int) for _ in range(2))

    def put(self, name: str, value: Array, frame: RunningBlock) -> None:
        if frame.everywhere:
            self.registers[name] = value
            self.own.discard(name)
            return
        before = self.registers.get(name, np.zeros((1, 1), value.dtype))
        shape = self.count, max(before.shape[1], value.shape[1])
        if name not in self.own or before.shape != shape:
            before = np.broadcast_to(before, shape).copy()
            self.own.add(name)
        before[frame.rows] = value
        self.registers[name] = before

    def barrier(self, rows: Array, counts: WarpCounts) -> None:
        counts.barriers += len(rows)
        for phase, total in ((self.loads, "longest_loads"), (self.passes, "longest_passes")):
            setattr(counts, total, getattr(counts, total) + int(phase[rows].max(1).sum()))
            phase[rows] = 0
        self.shared.barrier(rows)
        self.timeline.barrier(rows)
