"""Measurements that need a process of their own, such as the peak of resident memory."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from typing import Any

TIMEOUT = 600  # seconds; a child that the kernel has killed would be waited for forever


class FreshProcesses:
    """Calls functions of importable modules, each in a fresh process.

    The processes are children of a fork server, which has imported what takes long and computed nothing.
    """

    def __init__(self, *preloaded: str) -> None:
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # else a child would start processes of its own
        # The server imports from where this process does, and not from its working directory first (Python 3.11).
        os.environ |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(preloaded))
        self._pool = context.Pool(1, maxtasksperchild=1)

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._pool.apply_async(function, arguments).get(TIMEOUT)

    def close(self) -> None:
        self._pool.terminate()
        self._pool.join()
