"""The CUDA kernels' own code on the host (csrc/cuda/host_emulation/host.cpp), as a backend that takes CPU tensors."""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch

from scp_kernels.backends.cuda import CudaBackend, declare
from scp_kernels.problem import Problem

SOURCES = Path(__file__).parents[2] / "csrc"
ORDER_VARIABLE = "SCP_HOST_ORDER"
"""In which order a block's threads run: 0 as numbered, 1 backwards, n > 1 shuffled by that seed."""

compiler = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
ON_THE_HOST = [
    pytest.mark.skipif(compiler is None, reason="needs a C++ compiler"),
    # One process compiles and runs them (with pytest-xdist's --dist loadgroup).
    pytest.mark.xdist_group("cuda_host"),
    pytest.mark.usefixtures("host"),
]
"""Marks of a file whose tests run the CUDA kernels' code on the host."""


@functools.cache
def build(*, races: bool = False, counts: bool = False) -> ctypes.CDLL:
    """Compiles the library, once for each state of its sources: several test processes share it.

    Args:
        races: every access to memory is checked (csrc/cuda/host_emulation/races.h); GCC only.
        counts: every access is counted as a GPU's warps make it (warp_counts.cpp), instead; GCC only.
    """
    assert compiler is not None  # its users skip
    observer = "races" if races else "warp_counts" if counts else None
    flags = ["-std=c++17", "-O2", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}", f"-I{SOURCES / 'include'}"]
    if observer:
        flags.append("-DSCP_HOST_RACES")
    digest = hashlib.sha256(repr((observer, flags)).encode())
    for path in sorted([*SOURCES.glob("include/*"), *SOURCES.glob("common/*"), *SOURCES.glob("cuda/**/*.*")]):
        digest.update(path.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"scp-cuda-host-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / f"{digest.hexdigest()[:16]}.so"
    if not target.exists():
        temporary = target.with_suffix(f".{os.getpid()}")
        objects = []
        for source in filter(None, ("host", observer)):
            objects.append(f"{temporary}.{source}.o")
            instrument = ["-fsanitize=thread"] if observer and source == "host" else []
            file = str(SOURCES / "cuda" / "host_emulation" / f"{source}.cpp")
            subprocess.run([compiler, *flags, *instrument, "-c", file, "-o", objects[-1]], check=True)
        subprocess.run([compiler, "-shared", *objects, "-o", str(temporary)], check=True)
        for file in objects:
            Path(file).unlink()
        temporary.replace(target)
    return declare(ctypes.CDLL(str(target)))


class HostCuda(CudaBackend):
    """The ``"cuda"`` backend with the host in a GPU's place. ``shared_memory`` is what a block may have."""

    device_type = "cpu"

    def __init__(self, shared_memory: int = 227 * 1024, multiprocessors: int = 4, races: bool = False) -> None:
        self.shared_memory, self.multiprocessors, self.races = shared_memory, multiprocessors, races

    def unavailable_reason(self) -> None:
        return None

    def library(self) -> ctypes.CDLL:
        return build(races=self.races)

    def capability(self, device: torch.device) -> int:
        return 75

    def limits(self, device: torch.device) -> tuple[int, int]:
        return self.multiprocessors, self.shared_memory

    def stream(self, device: torch.device) -> int:
        return 0


def problem_like(inputs, groups=1):
    """The problem of a call of these inputs."""
    batch, channels, *shape = inputs.features.shape
    return Problem(
        batch=batch,
        channels=channels,
        num_classes=inputs.residual.shape[0],
        hidden=(len(inputs.phi[1]), len(inputs.phi[3])),
        spatial_shape=tuple(shape),
        groups=groups,
        dtype=inputs.features.dtype,
        compute_dtype=torch.promote_types(inputs.features.dtype, torch.float32),
        device=torch.device("cpu"),
    )
