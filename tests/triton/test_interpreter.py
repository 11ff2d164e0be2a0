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


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_under_the_interpreter():
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    environment.pop("SCP_BACKEND", None)
    interpreted = ROOT / "tests" / "triton" / "interpreted"
    files = [
        interpreted / "triton_kernels.py",
        interpreted / "triton_torch.py",
        ROOT / "tests" / "triton" / "test_gpu.py",
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    run = subprocess.run([*command, *map(str, files)], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout and "skipped" not in run.stdout, run.stdout[-500:]
