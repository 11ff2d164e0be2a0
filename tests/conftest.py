"""Fixtures that several folders of tests use."""

import pytest


@pytest.fixture
def empty_weight_field_cache():
    """No test sees the weight fields that another one left in the CPU backend's cache."""
    from scp_kernels.backends import cpu

    cpu.clear_weight_field_cache()
