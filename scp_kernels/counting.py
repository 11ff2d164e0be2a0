"""How much arithmetic calls really execute, counted by the backends as they do it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Count:
    """A running sum of multiply-adds. It may be read at any time; on a GPU reading it waits for the device."""

    def __init__(self) -> None:
        self._known = 0
        self._on_devices: list[Tensor] = []

    def add(self, macs: int | Tensor) -> None:
        """Add a number, or the sum of a tensor that a device may still be filling."""
        if isinstance(macs, Tensor):
            self._on_devices.append(macs)
        else:
            self._known += macs

    @property
    def macs(self) -> int:
        """Multiply-adds so far."""
        for device in {t.device for t in self._on_devices if t.is_cuda}:
            torch.cuda.synchronize(device)  # calls may have gone to any stream
        return self._known + sum(round(t.sum().item()) for t in self._on_devices)


_current: Count | None = None


@contextmanager
def count_macs() -> Iterator[Count]:
    """Count the multiply-adds that compiled backends execute for Φ, forward and backward, in all threads.

    ``with count_macs() as count: head(x)``, then ``count.macs``. The product of W and the features, which every head
    has, is not counted, nor is anything that PyTorch executes: the reference, and the sums of backward's partial
    results. Nominal counts, which do not depend on weights, are ``torch.utils.flop_counter``'s.

    On a GPU lanes that are masked count, because they take the same time; on a CPU padding of vectors does not.

    Raises:
        RuntimeError: a count is under way already.
    """
    global _current
    if _current is not None:
        raise RuntimeError("count_macs: a count is under way already")
    _current = count = Count()
    try:
        yield count
    finally:
        _current = None


def current() -> Count | None:
    """The count that calls are to add to, if there is one."""
    return _current
