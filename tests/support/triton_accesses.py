"""Looks at every access to memory of the Triton kernels, under Triton's interpreter.

The interpreter runs a launch's programs one after another, so results show neither a race between programs nor a
missing barrier, and an access outside of all tensors goes unnoticed where memory happens to be there.
"""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import pytest
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder

from scp_kernels.backends.triton.sequence import Launch


class LaunchAccesses:
    """The accesses of one launch.

    Raises:
        RuntimeError: an access is outside of the launch's tensors, or at an element that another program writes, or at
            one that the program itself wrote since its last barrier: another of its threads may have.
    """

    def __init__(self, item: Launch) -> None:
        self.name = item.kernel.__name__
        tensors = [value for value in item.arguments.values() if isinstance(value, Tensor)]
        self.extents = np.array(sorted((t.data_ptr(), t.data_ptr() + _extent_bytes(t)) for t in tensors))
        self.program: object = None
        self.written: set[int] = set()  # by earlier programs
        self.read: set[int] = set()
        self.writes: set[int] = set()  # of the present one
        self.reads: set[int] = set()
        self.since_barrier: set[int] = set()

    def touch(self, program: object, pointers: np.ndarray, mask: np.ndarray, writes: bool) -> None:
        addresses = pointers[np.broadcast_to(mask, pointers.shape)]
        if program != self.program:
            self.end_of_program()
            self.program = program
        within = np.searchsorted(self.extents[:, 0], addresses, side="right") - 1
        if (within < 0).any() or (addresses >= self.extents[within, 1]).any():
            raise RuntimeError(f"{self.name} {'writes' if writes else 'reads'} outside of its tensors")
        elements = addresses.tolist()
        if not self.since_barrier.isdisjoint(elements):
            raise RuntimeError(f"{self.name} misses a barrier after a write")
        if writes:
            self.since_barrier.update(elements)
        (self.writes if writes else self.reads).update(elements)

    def end_of_program(self) -> None:
        if not (self.written.isdisjoint(self.writes | self.reads) and self.read.isdisjoint(self.writes)):
            raise RuntimeError(f"{self.name}: a race between programs")
        self.written |= self.writes
        self.read |= self.reads
        self.writes, self.reads = set(), set()
        self.since_barrier.clear()


def _extent_bytes(tensor: Tensor) -> int:
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size() if tensor.numel() else 0


@contextlib.contextmanager
def checked_accesses() -> Iterator[None]:
    """Every access of the launches in this context is checked."""
    accesses: LaunchAccesses | None = None
    run, load, store = Launch.run, InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def checked_run(self: Launch) -> None:
        nonlocal accesses
        accesses = LaunchAccesses(self)
        run(self)
        accesses.end_of_program()

    def checked_load(self, pointers, mask, *others):
        accesses.touch(self.grid_idx, pointers.data, mask.data, False)
        return load(self, pointers, mask, *others)

    def checked_store(self, pointers, value, mask, *others):
        accesses.touch(self.grid_idx, pointers.data, mask.data, True)
        return store(self, pointers, value, mask, *others)

    def barrier(self) -> None:
        accesses.since_barrier.clear()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Launch, "run", checked_run)
        patch.setattr(InterpreterBuilder, "create_masked_load", checked_load)
        patch.setattr(InterpreterBuilder, "create_masked_store", checked_store)
        patch.setattr(InterpreterBuilder, "create_barrier", barrier)
        yield


@contextlib.contextmanager
def random_program_order(seed: int) -> Iterator[None]:
    """Every launch's programs run in an order of their own, as they may on a GPU."""
    generator = random.Random(seed)
    order: list[int] = []
    dimensions = (1, 1, 1)
    set_dimensions, set_index = InterpreterBuilder.set_grid_dim, InterpreterBuilder.set_grid_idx

    def shuffled_dimensions(self, *grid: int) -> None:
        nonlocal dimensions, order
        dimensions, order = grid, list(range(grid[0] * grid[1] * grid[2]))
        generator.shuffle(order)
        set_dimensions(self, *grid)

    def shuffled_index(self, x: int, y: int, z: int) -> None:
        xy, z = divmod(order[(x * dimensions[1] + y) * dimensions[2] + z], dimensions[2])
        set_index(self, *divmod(xy, dimensions[1]), z)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "set_grid_dim", shuffled_dimensions)
        patch.setattr(InterpreterBuilder, "set_grid_idx", shuffled_index)
        yield
