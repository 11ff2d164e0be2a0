"""Fixtures that several folders of tests use."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that take minutes begin first: at the end one process would wait for the other."""
    items.sort(key=lambda item: item.get_closest_marker("minutes") is None)


@pytest.fixture
def empty_weight_field_cache():
    """No test sees the weight fields that another one left in the CPU backend's cache."""
    from scp_kernels.backends import cpu

    cpu.clear_weight_field_cache()
