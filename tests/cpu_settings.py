"""Other settings of the CPU backend, for one test."""

from dataclasses import replace

import pytest

from scp_kernels.backends import native


def ask_cpu(monkeypatch: pytest.MonkeyPatch, **changes: int) -> None:
    """Change what the environment asks of the backend; skip the test where this machine cannot do it."""
    asked = replace(native.settings(), **changes)
    monkeypatch.setattr(native, "settings", lambda: asked)
    if reason := native.NativeCPU().unusable():
        pytest.skip(reason)
