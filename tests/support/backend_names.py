"""The backends that this machine runs at full speed: what tests of the operator's behaviour are parametrised over."""

import pytest

from scp_kernels import available_backends
from scp_kernels.backends.triton import interpreting

BACKENDS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            not status.usable or (name == "triton" and interpreting()),
            reason=f"{name}: {status.reason or 'interpreted'}",
        ),
    )
    for name, status in available_backends().items()
]


# Of tests that compile with inductor, which takes long: the reference's graphs are plain PyTorch.
COMPILED_BACKENDS = [
    pytest.param("reference", marks=pytest.mark.thorough) if parameter.values == ("reference",) else parameter
    for parameter in BACKENDS
]


def device_of(name: str) -> str:
    """Where a backend's tensors live."""
    return "cuda" if name in ("triton", "cuda") else "cpu"
