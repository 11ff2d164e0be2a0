"""Fixtures of the interpreter's tests of the Triton kernels."""

from dataclasses import replace

import pytest

from scp_kernels.backends.triton import tables
from tests.support.triton_accesses import checked_accesses


@pytest.fixture
def every_access():
    """Is within its tensor, and races with no other, in all of these tests."""
    with checked_accesses():
        yield


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks so small that channels and classes take several launches, and maps several supertiles."""
    table = tuple(
        replace(entry, configuration=replace(entry.configuration, tile=(4, 4), block_outputs=16))
        for entry in tables.TABLE
    )
    monkeypatch.setattr(tables, "TABLE", table)
    monkeypatch.setattr(tables, "SUPERTILE", (4, 8))
