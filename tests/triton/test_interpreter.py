"""Runs the interpreter tests of the Triton kernels in a process of their own.

``TRITON_INTERPRET=1`` must be set before Triton is imported and would change what other tests do.
"""

import importlib.util
from pathlib import Path

import pytest

from tests.support.processes import run_python

FOLDER = Path(__file__).parent
FILES = (
    "interpreted/triton_kernels.py",
    "interpreted/triton_folding.py",
    "interpreted/triton_torch.py",
    pytest.param("test_gpu.py", marks=pytest.mark.thorough),
)


# A process per file: together they take minutes, and several test processes share them.
@pytest.mark.minutes
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("file", FILES)
def test_kernels_under_the_interpreter(file, request):
    default = "not thorough"
    marks = default if request.config.getoption("-m") == default else ""
    command = ("-m", "pytest", "-q", "-x", "-m", marks, "-p", "no:cacheprovider", FOLDER / file)
    done = run_python(*command, env={"TRITON_INTERPRET": "1", "SCP_BACKEND": None}, timeout=None, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-500:]
