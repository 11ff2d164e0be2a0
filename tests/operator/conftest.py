"""Fixtures of the operator's tests."""

import pytest

from tests.support.shared_network import Shared


@pytest.fixture
def shared():
    return Shared()
