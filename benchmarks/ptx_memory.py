"""Global and shared memory of :mod:`benchmarks.ptx_machine`."""

import numpy as np
import torch
from torch import Tensor

from benchmarks.ptx_arithmetic import Array

WARP, BANKS, WORD, SECTOR = 32, 32, 4, 32
"""What one pass over shared memory delivers: wider accesses take a pass per part of a warp."""
GAP = 256
NOBODY, SEVERAL = -1, -2


def _bytes_of(tensor: Tensor) -> Array:
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8).set_(storage).numpy()


class GlobalMemory:
    """Copies of the storages that the tensors of some launches lie in, with gaps in which nothing may be accessed."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.storages = {t.untyped_storage().data_ptr(): _bytes_of(t) for t in tensors}
        self.bases: dict[int, int] = {}
        size = GAP
        for pointer, content in self.storages.items():
            self.bases[pointer] = size
            size += -(-len(content) // GAP) * GAP + GAP
        self.content = np.zeros(size, np.uint8)
        self.exists = np.zeros(size // WORD, bool)
        self.exists[: SECTOR // WORD] = True  # what lanes access that are masked
        self.touched = np.zeros(size // SECTOR, bool)
        self.touched[0] = True
        for pointer, content in self.storages.items():
            base = self.bases[pointer]
            self.content[base : base + len(content)] = content
            self.exists[base // WORD : -(-(base + len(content)) // WORD)] = True

    def address(self, tensor: Tensor) -> int:
        base = self.bases[tensor.untyped_storage().data_ptr()]
        return base + int(tensor.storage_offset()) * tensor.element_size()

    def copy_back(self) -> None:
        """Into the tensors."""
        for pointer, content in self.storages.items():
            base = self.bases[pointer]
            content[:] = self.content[base : base + len(content)]

    @property
    def touched_sectors(self) -> int:
        return int(np.count_nonzero(self.touched))

    def touch(self, at: Array, size: int) -> None:
        """WarpCounts the sectors of an access.

        Raises:
            RuntimeError: it is outside of all tensors, or not aligned.
        """
        if (at < 0).any() or (at + size > len(self.content)).any() or not self.exists[at // WORD].all():
            raise RuntimeError("an access outside of all tensors")
        if (at % size).any():
            raise RuntimeError(f"an access of {size} bytes that is not aligned")
        self.touched[at // SECTOR] = True

    def load(self, at: Array, dtype: np.dtype) -> Array:
        return self.content.view(dtype)[at // dtype.itemsize]

    def store(self, at: Array, value: Array, mask: Array | None) -> None:
        at, value = np.broadcast_arrays(at, value)
        if mask is not None:
            mask = np.broadcast_to(mask, at.shape)
            at, value = at[mask], value[mask]
        self.content.view(value.dtype)[at // value.dtype.itemsize] = value


class SharedMemory:
    """Shared memory of some blocks, each with the same number of bytes.

    If checked: between two barriers of a block, a word that a warp writes is accessed by no other warp, unless that
    writes the same. Threads of one warp may disagree in one instruction, of which a GPU then lets any win (here the
    last); that is counted, and so are reads of what nobody wrote.
    """

    def __init__(self, blocks: int, threads: int, size: int, fill: int, checked: bool) -> None:
        self.threads, self.size, self.checked = threads, -(-size // 16) * 16, checked
        self.content = np.full((blocks, self.size // WORD), fill, np.uint32)
        self.reads_of_unwritten = 0
        self.disagreements = 0
        self.warps = (np.arange(threads) // WARP).astype(np.int8)[None]
        if not checked:
            return
        self.unwritten = np.ones(self.content.shape, bool)
        self.writers = np.full(self.content.shape, NOBODY, np.int8)  # since the last barrier
        self.readers = np.full(self.content.shape, NOBODY, np.int8)

    def barrier(self, rows: Array) -> None:
        if self.checked:
            self.writers[rows] = self.readers[rows] = NOBODY

    def _places(self, rows: Array, at: Array, mask: Array | None) -> tuple[Array, Array]:
        """Indices ``[blocks, threads]`` of an access, and whether a thread makes it."""
        if ((at < 0) | (at >= self.size)).any():
            raise RuntimeError("an access outside of shared memory")
        at = np.broadcast_to(at, (len(rows), self.threads))
        active = np.broadcast_to(True if mask is None else mask, at.shape)
        return rows[:, None] * self.size + at, active

    def load(self, rows: Array, at: Array, dtype: np.dtype, mask: Array | None) -> Array:
        place, active = self._places(rows, at, mask)
        if self.checked:
            self._check_load(place, active)
        return self.content.reshape(-1).view(dtype)[place // dtype.itemsize]

    def store(self, rows: Array, at: Array, value: Array, mask: Array | None) -> None:
        place, active = self._places(rows, at, mask)
        value = np.broadcast_to(value, place.shape)[active]
        content = self.content.reshape(-1).view(value.dtype)
        units = place[active] // value.dtype.itemsize
        same = content[units] == value
        content[units] = value
        if self.checked:
            self._check_store(place, active, same, content[units] == value)

    def _check_load(self, place: Array, active: Array) -> None:
        words, warps = place[active] // WORD, np.broadcast_to(self.warps, place.shape)[active]
        writers, readers = self.writers.reshape(-1), self.readers.reshape(-1)
        if ((writers[words] != NOBODY) & (writers[words] != warps)).any():
            raise RuntimeError("a warp reads shared memory that another has written since the last barrier")
        self.reads_of_unwritten += int(self.unwritten.reshape(-1)[words].sum())
        others = (readers[words] != NOBODY) & (readers[words] != warps)
        readers[words] = np.where(others, SEVERAL, warps)
        # Warps that read a word in this very instruction: all but the last have been overwritten.
        readers[words[readers[words] != warps]] = SEVERAL

    def _check_store(self, place: Array, active: Array, same: Array, lasts: Array) -> None:
        """``same``: whether what a thread writes was there; ``lasts``: whether it is there afterwards."""
        words, warps = place[active] // WORD, np.broadcast_to(self.warps, place.shape)[active]
        writers, readers = self.writers.reshape(-1), self.readers.reshape(-1)
        for others in (writers, readers):
            if ((others[words] != NOBODY) & (others[words] != warps) & ~same).any():
                raise RuntimeError("a warp writes shared memory that another has accessed since the last barrier")
        writers[words] = warps
        if (~lasts & (writers[words] != warps)).any():
            raise RuntimeError("two warps write different values to one place in shared memory")
        self.disagreements += int((~lasts).sum())
        self.unwritten.reshape(-1)[words] = False

    def passes(self, at: Array, size: int, mask: Array | None) -> Array:
        """Passes ``[blocks or 1, warps]`` of one instruction: distinct words of one bank take one each."""
        shape = max(len(at), 1 if mask is None else len(mask)), self.threads
        words_per_lane = max(size, WORD) // WORD
        words = np.broadcast_to(at, shape)[..., None] // WORD + np.arange(words_per_lane)
        if mask is not None:
            words = np.where(np.broadcast_to(mask, shape)[..., None], words, -1)
        words = np.sort(words.reshape(-1, WARP), axis=1)  # a part of a warp that makes up a pass per row
        distinct = np.ones(words.shape, bool)
        distinct[:, 1:] = words[:, 1:] != words[:, :-1]
        part, _ = np.nonzero(distinct & (words >= 0))
        bank = words[distinct & (words >= 0)] % BANKS
        of_bank = np.bincount(part * BANKS + bank, minlength=len(words) * BANKS).reshape(-1, BANKS)
        return of_bank.max(1).reshape(len(at) if mask is None else shape[0], self.threads // WARP, -1).sum(2)
