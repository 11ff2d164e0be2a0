"""The backends that this machine runs at full speed: what tests of the operator's behaviour are parametrised over."""

import pytest

from scp_kernels import backends, dispatch

BACKENDS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            not status.usable or getattr(dispatch.BACKENDS.get(name), "only_by_name", False),
            reason=f"{name}: {status.reason or 'runs by name only'}",
        ),
    )
    for name, status in backends().items()
]


def device_of(name: str) -> str:
    """Where a backend's tensors live."""
    return "cuda" if name in ("triton", "cuda") else "cpu"
