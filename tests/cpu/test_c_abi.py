"""``scp.h`` from C++, without Python: against the installed library, and on Arm, compiled across and emulated."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from scp_kernels.backends import _abi, _libraries, cuda
from tests.support.cpu_settings import needs_cpu
from tests.support.cuda_host import SOURCES, compiler
from tests.support.tolerances import GRADIENTS

DRIVER = Path(__file__).parent / "c_abi.cpp"
CROSS, EMULATOR = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
FLAGS = [
    "-std=c++17",
    "-O2",
    "-fopenmp",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
    f"-I{SOURCES}",
    f"-I{SOURCES / 'include'}",
]


def worst_error(*command: str, **environment: str) -> float:
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0 and not done.stderr, done.stderr
    error, *sizes = done.stdout.split()
    assert list(map(int, sizes)) == [ctypes.sizeof(_abi.Call), ctypes.sizeof(cuda.CudaCall), _abi.REPORT_SIZE]
    return float(error)


@pytest.mark.skipif(compiler is None, reason="needs a C++ compiler")
@needs_cpu
def test_the_installed_library(tmp_path):
    installed = _libraries.find_library("cpu")
    program = tmp_path / "program"
    subprocess.run([compiler, *FLAGS, str(DRIVER), str(installed), "-o", str(program)], check=True)
    assert worst_error(str(program), LD_LIBRARY_PATH=str(installed.parent)) <= GRADIENTS[torch.float32]


@pytest.mark.skipif(CROSS is None or EMULATOR is None, reason="needs aarch64-linux-gnu-g++ and qemu-aarch64")
def test_on_arm(tmp_path):
    program = tmp_path / "program"
    sources = sorted(str(path) for path in (SOURCES / "cpu").glob("*.cpp"))
    target = "-DSCP_ISA_TARGET=portable"
    subprocess.run([CROSS, *FLAGS, "-Werror", target, str(DRIVER), *sources, "-static", "-o", str(program)], check=True)
    assert worst_error(EMULATOR, str(program)) <= GRADIENTS[torch.float32]
