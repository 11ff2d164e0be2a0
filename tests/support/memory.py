"""What a pass needs at its peak: measures that tests assert and benchmarks print."""

import ctypes
import platform
import re
from collections.abc import Callable
from pathlib import Path

import torch


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
