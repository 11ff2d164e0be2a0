"""The machine and the versions that a run was made with."""

import os
import platform
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "scp_kernels", "lightning", "monai", "numpy")


def running_machine() -> dict[str, str | int]:
    """``device`` (processor or GPU), ``cores`` and ``system``."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    return {"device": device, "cores": os.cpu_count() or 1, "system": platform.system()}


def processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return name.strip()


def describe_versions() -> dict[str, str]:
    """Of Python and of the packages whose change could change a figure."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from its sources
        return str(getattr(import_module(package), "__version__", "unknown"))
