"""Makes ``benchmarks`` importable, as ``python -m benchmarks.…`` has it; behind the installed packages."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent))


@pytest.fixture
def nothing_kept():
    """No test sees the weight fields that another one left in the CPU backend."""
    from scp_kernels.backends import native

    native.release_kept()
