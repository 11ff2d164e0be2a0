"""Fixtures that several folders of tests use."""

import pytest


@pytest.fixture
def nothing_kept():
    """No test sees the weight fields that another one left in the CPU backend."""
    from scp_kernels.backends import cpu

    cpu.release_kept()
