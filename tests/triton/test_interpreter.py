"""Runs the interpreter tests of the Triton kernels in a process of their own.

``TRITON_INTERPRET=1`` must be set before Triton is imported and would change what other tests do.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


FILES = ("interpreted/triton_kernels.py", "interpreted/triton_folding.py", "interpreted/triton_torch.py", "test_gpu.py")


# A process per file: together they take minutes, and several test processes share them.
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("file", FILES)
def test_kernels_under_the_interpreter(file):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    environment.pop("SCP_BACKEND", None)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        str(ROOT / "tests" / "triton" / file),
    ]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout and "skipped" not in run.stdout, run.stdout[-500:]
