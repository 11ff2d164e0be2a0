"""The compiled backends. Each offers what :class:`scp_kernels.dispatch.Backend` lists."""

import sys
import types
import warnings
from typing import Any


class _CallablePackage(types.ModuleType):
    """``scp_kernels.backends()`` was the public function until 0.1 called it ``available_backends``."""

    def __call__(self) -> dict[str, Any]:
        from scp_kernels.dispatch import available_backends

        warnings.warn(
            "scp_kernels.backends() is scp_kernels.available_backends() now; the old name goes in version 0.2",
            DeprecationWarning,
            stacklevel=2,
        )
        return available_backends()


sys.modules[__name__].__class__ = _CallablePackage
