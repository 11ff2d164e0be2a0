"""What figures were measured on, and the file that keeps both. A record is public: no host names and no paths in it."""

import ctypes
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import scp_kernels
from scp_models.study.machine import processor

ROOT = Path(__file__).parent.parent


def describe_machine(device: str) -> dict[str, Any]:
    """Device, versions and thread counts, ready for JSON."""
    described: dict[str, Any] = {
        "kind": device,
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "scp_kernels": scp_kernels.__version__,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        described |= {
            "cuda": torch.version.cuda,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
        }
    return described


def slug(machine: dict[str, Any]) -> str:
    """A file's name for the machine, like ``nvidia-geforce-rtx-2080-ti`` or ``epyc-avx2-8-cores``."""
    return f"{family(machine)}-{machine['cores']}-cores" if machine["kind"] == "cpu" else family(machine)


def family(machine: dict[str, Any]) -> str:
    """The processor's name with its vectors, like ``epyc-avx2``, or the GPU's."""
    name = re.sub(r"\([A-Za-z]+\)|\b(CPU|Processor|Intel|AMD|\d+-Core)\b|@.*", " ", machine["device"])
    if machine["kind"] == "cpu":
        name += f" {machine['vectors']}"
    return "-".join(re.findall(r"[a-z0-9]+", name.lower()))


def record(path: Path, described: dict[str, Any], races: dict[str, dict[str, Any]]) -> None:
    """Adds races to a results file; figures of another machine or of other versions are dropped, never mixed in.

    In the file a race's entrants are called ``subjects``, as in records of earlier versions.
    """
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if results.get("machine") != described:
        results = {"machine": described, "races": {}}
    results["races"] |= races
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")  # a run that is stopped leaves the old file or the new one
    beside.write_text(json.dumps(results, indent=1) + "\n")
    beside.replace(path)


def revision() -> str | None:
    """The commit that was measured, with a + where sources have changed since; None outside of a repository."""
    try:
        run = ["git", "-C", str(ROOT)]
        commit = subprocess.run([*run, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        sources = ["scp_kernels", "csrc", "models", "benchmarks/*.py"]
        changed = subprocess.run([*run, "status", "--porcelain", "--", *sources], capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + "+" * bool(changed.stdout.strip())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def keep_freed_memory() -> None:
    """Let this process keep what is freed, as far as its C library can be told (glibc).

    A large array comes else from the system on every call, and goes back to it: its page faults, a microsecond each,
    can take longer than the call, and come and go with what else the process has done. All entrants gain by this.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4  # <malloc.h>
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, -1)  # never: two gigabytes, the largest number here, are less than some races free
