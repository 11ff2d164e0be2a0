"""Wheels of a copy of the repository that has small kernels in the place of csrc/'s."""

import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from scp_kernels import __version__
from scp_kernels.backends import _libraries

ROOT = Path(__file__).parents[2]
NATIVE = "scp_kernels_native"
COPIED = ("scp_kernels", "models", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "Makefile")
HEADER = f"""
#define SCP_EXPORT extern "C" __attribute__((visibility("default")))
#define SCP_ABI_VERSION {_libraries.ABI_VERSION}
"""
ENTRY = """
#include <omp.h>
#include "scp.h"
extern "C" int scp_not_exported() { return 1; }
SCP_EXPORT int scp_threads() { return omp_get_max_threads(); }
SCP_EXPORT int scp_abi_version() { return SCP_ABI_VERSION; }
"""
KERNELS = """
#include "scp.h"
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
SCP_EXPORT int JOIN(scp_vectors_, SCP_ISA_TARGET)() {
#if defined(__AVX512F__)
  return 512;
#elif defined(__AVX2__)
  return 256;
#else
  return 0;
#endif
}
"""
CUDA = """
#include "scp.h"
__global__ void fill(float* x) { x[threadIdx.x] = 1; }
SCP_EXPORT void scp_fill(float* x) { fill<<<1, 32>>>(x); }
SCP_EXPORT int scp_abi_version() { return SCP_ABI_VERSION; }
"""
needs_compiler = pytest.mark.skipif(
    platform.system() != "Linux" or not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="needs Linux and a C++ compiler",
)


def copy_tree(destination: Path) -> Path:
    """The repository without what tests do not build, and with small kernels."""
    destination.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, destination / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, destination)
    (destination / "csrc" / "cpu").mkdir(parents=True)
    (destination / "csrc" / "include").mkdir()
    (destination / "csrc" / NATIVE).mkdir()
    shutil.copy(ROOT / "csrc" / NATIVE / "__init__.py", destination / "csrc" / NATIVE)
    for module in ("build_backend.py", "build_description.py"):
        shutil.copy(ROOT / "csrc" / module, destination / "csrc")
    (destination / "csrc" / "include" / "scp.h").write_text(HEADER)
    (destination / "csrc" / "cpu" / "entry.cpp").write_text(ENTRY)
    (destination / "csrc" / "cpu" / "kernels.cpp").write_text(KERNELS)
    return destination


def run(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("SCP_") and k not in ("CXX", "NVCC")}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )


def pip_wheel(tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    arguments = ("-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", "wheels", ".")
    return run(*arguments, cwd=tree, **environment)


def build_wheel(tree: Path, **environment: str) -> Path:
    result = pip_wheel(tree, **environment)
    assert result.returncode == 0, result.stdout
    (wheel,) = (tree / "wheels").glob("*.whl")
    return wheel


def record_in(wheel: Path) -> dict:
    return json.loads(zipfile.ZipFile(wheel).read(f"{NATIVE}/build.json"))


def metadata_in(wheel: Path) -> Message:
    return Parser().parsestr(zipfile.ZipFile(wheel).read(f"scp_kernels-{__version__}.dist-info/METADATA").decode())


def record_of(installed: Path) -> dict:
    return json.loads((installed / NATIVE / "build.json").read_text())
