"""The CUDA backend on the host, in the place of a GPU's."""

import pytest

from scp_kernels import dispatch
from tests.support.cuda_host import HostCuda


@pytest.fixture
def host(monkeypatch):
    backend = HostCuda()
    monkeypatch.setitem(dispatch.BACKENDS, "cuda", backend)
    return backend
