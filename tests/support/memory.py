"""What a pass keeps and what it needs at its peak: measures that tests assert and benchmarks print."""

import ctypes
import platform
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor


def bytes_saved_for_backward(forward: Callable[[], object], known: Iterable[Tensor] = ()) -> int:
    """Bytes of distinct storages that autograd keeps between forward and backward, beyond those of ``known``."""
    inputs = {tensor.untyped_storage().data_ptr() for tensor in known}
    saved: dict[int, int] = {}
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in inputs:
            saved[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)  # else its memory could be given to another tensor and be counted once
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(saved.values())


def cuda_peak(call: Callable[[], object]) -> int:
    """Bytes allocated on the GPU at the peak of ``call``, above what was allocated before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def resident_growth(call: Callable[[], object]) -> int | None:
    """Growth of this process's resident memory at the peak of ``call``, in bytes; None where Linux's /proc is not.

    Memory that was freed but not given back hides growth: call this in a fresh process, once the code is loaded.
    """
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.exists():
        return None
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)

    def kibibytes(name: str) -> int:
        match = re.search(rf"^{name}:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
        assert match is not None
        return int(match[1])

    clear.write_text("5")  # sets the peak back to the present
    before = kibibytes("VmRSS")
    call()
    return 1024 * max(0, kibibytes("VmHWM") - before)
