"""Runs Triton's compiled code on the host, and counts what the warps of a GPU do in it.

Blocks of a launch run side by side, as rows of NumPy arrays whose columns are threads; a value that is the same for all
has one row or one column. Blocks branch each for themselves; that threads of one block branch apart is not built,
because Triton's code does not. Warps of a block run in step, which hides a missing barrier: therefore accesses to
shared memory are checked.
"""

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks import ptx_arithmetic
from benchmarks.ptx import Address, Constant, Instruction, Operand, PtxFunction, names_in
from benchmarks.ptx_arithmetic import Array, dtype_of
from benchmarks.ptx_blocks import Blocks, RunningBlock, WarpCounts
from benchmarks.ptx_memory import WARP, GlobalMemory, SharedMemory
from benchmarks.ptx_timeline import cost_of

MOST_THREADS_AT_ONCE = 2**14


Operation = Callable[[RunningBlock], None]


class Machine:
    """One compiled kernel, and what it is called with.

    Args:
        function: the kernel.
        arguments: its parameters' values in order, pointers as addresses in ``memory``.
        threads: of a block.
        shared_bytes: of a block.
        fill: what every word of shared memory holds at first.
        checked: whether accesses to shared memory are checked, which takes most of the time.
    """

    def __init__(
        self, function: PtxFunction, arguments: Sequence[int | float], threads: int, shared_bytes: int,
        memory: GlobalMemory, fill: int = 0x7FC00000, checked: bool = True,
    ) -> None:  # fmt: skip
        self.function, self.memory, self.checked = function, memory, checked
        self.threads, self.warps, self.shared_bytes, self.fill = threads, threads // WARP, shared_bytes, fill
        self.arguments = [
            _argument(value, dtype_of(kind)) for value, kind in zip(arguments, function.parameter_types, strict=True)
        ]
        self.counts = WarpCounts()
        self.reads_of_unwritten = self.disagreements = 0
        self.labels = {block.label: number for number, block in enumerate(function.blocks) if block.label}
        self.carried = _carried_registers(function)
        self.code = [list(map(self.operation, block.instructions)) for block in function.blocks]
        self.costs = [list(map(cost_of, block.instructions)) for block in function.blocks]

    def run(self, grid: Sequence[int], order: Array | None = None) -> WarpCounts:
        """Runs all blocks of threads of a launch, some side by side, in this order of their numbers."""
        self.counts = WarpCounts(blocks=int(np.prod(grid)))
        numbers = np.arange(self.counts.blocks) if order is None else order
        sectors = self.memory.touched_sectors
        at_once = max(1, MOST_THREADS_AT_ONCE // self.threads)
        with np.errstate(all="ignore"):
            for first in range(0, self.counts.blocks, at_once):
                indices = numbers[first : first + at_once]
                shared = SharedMemory(len(indices), self.threads, self.shared_bytes, self.fill, self.checked)
                blocks = Blocks(indices, grid, self.threads, shared, self.carried)
                self.run_blocks(blocks)
                self.counts.alone += blocks.timeline.cycles
                self.reads_of_unwritten += shared.reads_of_unwritten
                self.disagreements += shared.disagreements
        self.counts.new_sectors = self.memory.touched_sectors - sectors
        return self.counts

    def run_blocks(self, blocks: Blocks) -> None:
        end = len(self.code)
        place = np.zeros(blocks.count, int)
        while (current := place.min()) < end:
            frame = RunningBlock(blocks, np.flatnonzero(place == current), next=current + 1)
            for operation, cost in zip(self.code[current], self.costs[current], strict=True):
                frame.more = 0
                operation(frame)
                blocks.timeline.issue(frame.rows, cost, frame.more)
            frame.leave()
            place[frame.rows] = frame.next
            self.counts.instructions += len(self.code[current]) * len(frame.rows) * self.warps

    def operation(self, instruction: Instruction) -> Operation:
        """What an instruction does.

        Raises:
            NotImplementedError: the kernels that this was written for have no such instruction.
        """
        name, *modifiers = instruction.opcode.split(".")
        match name, *(modifier.partition("::")[0] for modifier in modifiers[:1]):
            case "bra", *_:
                return self.branch(instruction)
            case ("ret",):
                return self.end
            case "bar", "sync":
                return lambda frame: frame.blocks.barrier(frame.rows, self.counts)
            case "bar", "warp":
                return lambda frame: None
            case "ld", "param":
                return self.load_argument(instruction, modifiers[-1])
            case "ld" | "st", "global" | "shared":
                return self.access(instruction, modifiers)
            case "ldmatrix", _:
                return self.load_matrices(instruction, modifiers)
            case "shfl", _:
                return self.shuffle(instruction, modifiers)
            case "mov", "b64" if any(isinstance(operand, tuple) for operand in instruction.operands):
                return _halves(instruction)
        return _arithmetic(instruction, name, modifiers)

    def end(self, frame: RunningBlock) -> None:
        frame.blocks.barrier(frame.rows, self.counts)
        frame.next = len(self.code)

    def branch(self, instruction: Instruction) -> Operation:
        (label,) = instruction.operands
        assert isinstance(label, Constant)
        target = self.labels[label.text]

        def run(frame: RunningBlock) -> None:
            condition = frame.guard(instruction)
            if condition is None:
                frame.next = target
                return
            if not (condition == condition[:, :1]).all():
                raise NotImplementedError("threads of a block that branch apart")
            frame.next = np.where(condition[:, 0], target, frame.next)

        return run

    def load_argument(self, instruction: Instruction, kind: str) -> Operation:
        register, address = instruction.operands
        assert isinstance(address, Address) and isinstance(address.base, Constant)
        value = self.arguments[int(address.base.text.rpartition("_")[2])]
        return lambda frame: frame.write(register, value.view(dtype_of(kind)))

    def access(self, instruction: Instruction, modifiers: list[str]) -> Operation:
        """Loads and stores of global and shared memory."""
        stores = instruction.opcode.startswith("st")
        address, data = instruction.operands if stores else reversed(instruction.operands)
        registers = data if isinstance(data, tuple) else (data,)
        kind, is_shared = modifiers[-1], modifiers[0].startswith("shared")
        size = dtype_of(kind).itemsize
        bits = f"b{8 * size}"

        def run(frame: RunningBlock) -> None:
            mask = frame.guard(instruction)
            at = self.addresses(frame, address, "u32" if is_shared else "u64")
            if mask is not None:
                at = np.where(mask, at, 0)
            self.count(frame, at, size * len(registers), mask, is_shared, stores)
            for number, register in enumerate(registers):
                place = at + number * size
                if is_shared and stores:
                    frame.blocks.shared.store(frame.rows, place, frame.read(register, bits), mask)
                elif is_shared:
                    frame.write(register, frame.blocks.shared.load(frame.rows, place, dtype_of(kind), mask), mask)
                elif stores:
                    self.memory.store(place, frame.read(register, bits), mask)
                else:
                    frame.write(register, self.memory.load(place, dtype_of(kind)), mask)

        return run

    def addresses(self, frame: RunningBlock, address: Operand, width: str) -> Array:
        assert isinstance(address, Address)
        return frame.read(address.base, width).astype(np.int64) + address.offset

    def count(
        self, frame: RunningBlock, at: Array, size: int, mask: Array | None, is_shared: bool, stores: bool
    ) -> None:
        """Of one instruction: the warps that make it, passes over shared memory, sectors of global memory."""
        rows, warps = len(frame.rows), self.warps
        active: Array = np.ones((1, warps), bool)
        if mask is not None:
            lanes = np.broadcast_to(mask, (len(mask), self.threads)).reshape(-1, warps, WARP)
            active = np.asarray(lanes.any(2))
        self.counts.accesses += int(active.sum()) * (rows // len(active))
        if is_shared:
            passes = frame.blocks.shared.passes(at, size, mask)
            frame.blocks.passes[frame.rows] += passes
            frame.more = np.maximum(passes - 1, 0)
            self.counts.passes += int(passes.sum()) * (rows // len(passes))
        else:
            self.memory.touch(at, size)
            if not stores:
                frame.blocks.loads[frame.rows] += active

    def load_matrices(self, instruction: Instruction, modifiers: list[str]) -> Operation:
        """``ldmatrix``: lanes 8i to 8i + 7 name the rows of matrix i; each lane gets a word of every matrix."""
        if modifiers[:3] != ["sync", "aligned", "m8n8"] or "trans" in modifiers:
            raise NotImplementedError(instruction.opcode)
        registers, address = instruction.operands
        assert isinstance(registers, tuple)
        lanes = np.arange(self.threads)

        def run(frame: RunningBlock) -> None:
            at = self.addresses(frame, address, "u32")
            at = np.broadcast_to(at, (len(at), self.threads))
            mask = np.broadcast_to(lanes % WARP < 8 * len(registers), (1, self.threads))
            self.count(frame, np.where(mask, at, 0), 16, mask, True, False)
            for number, register in enumerate(registers):
                source = lanes // WARP * WARP + 8 * number + lanes % WARP // 4
                place = at[:, source] + 4 * (lanes % 4)
                frame.write(register, frame.blocks.shared.load(frame.rows, place, np.dtype("u4"), None))

        return run

    def shuffle(self, instruction: Instruction, modifiers: list[str]) -> Operation:
        """``shfl.sync`` over whole warps."""
        mode = modifiers[1]
        target, source, distance, clamp, members = instruction.operands
        if clamp != Constant("0" if mode == "up" else "31") or members != Constant("-1"):
            raise NotImplementedError(f"{instruction.opcode} of a part of a warp")
        lanes = np.arange(WARP)

        def run(frame: RunningBlock) -> None:
            value = frame.read(source, "u32")
            value = np.broadcast_to(value, (len(value), self.threads)).reshape(-1, self.warps, WARP)
            by = frame.read(distance, "s32")
            if by.size > 1:
                by = np.broadcast_to(by, (len(by), self.threads)).reshape(-1, self.warps, WARP)
            else:
                by = by.reshape(1, 1, 1)
            origin = {"bfly": lanes ^ by, "up": lanes - by, "down": lanes + by, "idx": by % WARP + 0 * lanes}[mode]
            origin = np.where((origin < 0) | (origin >= WARP), lanes, origin)
            rows = max(len(value), len(origin))
            picked = np.take_along_axis(
                np.broadcast_to(value, (rows, self.warps, WARP)), np.broadcast_to(origin, (rows, self.warps, WARP)), 2
            )
            frame.write(target, picked.reshape(rows, self.threads))

        return run


def _argument(value: int | float, dtype: np.dtype) -> Array:
    """As bits."""
    bits = np.dtype(f"u{dtype.itemsize}")
    if isinstance(value, float):
        return np.array([[value]], dtype).view(bits)
    return ptx_arithmetic.constant(str(int(value)), bits)


def _arithmetic(instruction: Instruction, name: str, modifiers: list[str]) -> Operation:
    target, *sources = instruction.operands
    evaluate = ptx_arithmetic.evaluator(name, modifiers)
    kinds = ptx_arithmetic.source_kinds(name, modifiers, len(sources))

    def run(frame: RunningBlock) -> None:
        values = [frame.read(source, kind) for source, kind in zip(sources, kinds, strict=True)]
        frame.write(target, evaluate(*values), frame.guard(instruction))

    return run


def _halves(instruction: Instruction) -> Operation:
    """``mov`` of a 64-bit register into its halves, or from them; ``_`` stands for one that nobody wants."""
    target, source = instruction.operands
    half, shift = np.uint64(2**32 - 1), np.uint64(32)

    def split(frame: RunningBlock) -> None:
        assert isinstance(target, tuple)
        value = frame.read(source, "u64")
        for register, part in zip(target, (value & half, value >> shift), strict=True):
            if register != Constant("_"):
                frame.write(register, part.astype(np.uint32))

    def join(frame: RunningBlock) -> None:
        assert isinstance(source, tuple)
        low, high = (frame.read(register, "u32").astype(np.uint64) for register in source)
        frame.write(target, low | high << shift)

    return split if isinstance(target, tuple) else join


def _carried_registers(function: PtxFunction) -> frozenset[str]:
    """Registers that a basic block may find as another left them, or as it left them itself in a loop's last round."""
    blocks_of: dict[str, set[int]] = {}
    carried = set()
    for number, block in enumerate(function.blocks):
        written: set[str] = set()
        for instruction in block.instructions:
            guard = [] if instruction.guard is None else [instruction.guard.name]
            first = instruction.operands[:1]
            writes = not instruction.opcode.startswith(("st.", "bra")) and instruction.guard is None
            targets = names_in(first[0]) if writes and first else []
            names = guard + [name for operand in instruction.operands for name in names_in(operand)]
            for name in names:
                blocks_of.setdefault(name, set()).add(number)
                if name not in written and name not in targets:
                    carried.add(name)
            carried |= {name for name in targets if name not in written and names.count(name) > 1}
            written |= set(targets)
    return frozenset(carried | {name for name, numbers in blocks_of.items() if len(numbers) > 1})
