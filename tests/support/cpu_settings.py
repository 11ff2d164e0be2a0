"""Tests of the CPU backend: where they run, and other settings for one of them."""

from dataclasses import replace

import pytest

from scp_kernels import available_backends
from scp_kernels.backends import cpu

ISA_TARGETS = list(cpu.ISA_TARGETS)

needs_cpu = pytest.mark.skipif(
    not available_backends()["cpu"].usable,
    reason=f"the CPU backend was not built: {available_backends()['cpu'].reason}",
)


def ask_cpu(monkeypatch: pytest.MonkeyPatch, **changes: int) -> None:
    """Change what the environment asks of the backend; skip the test where this machine cannot do it."""
    options = replace(cpu.settings(), **changes)
    monkeypatch.setattr(cpu, "settings", lambda: options)
    try:
        reason = cpu.CpuBackend().unavailable_reason()
    except ValueError as error:  # instructions that this machine does not have, which a user's environment asked for
        reason = str(error)
    if reason:
        pytest.skip(reason)
