"""Python in processes of their own, which import the packages that this one imports."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(changes: Mapping[str, str | None] | None = None, *, first: Path | None = None) -> dict[str, str]:
    """This process's, with the folders that it imports from in ``PYTHONPATH``.

    This checkout is the last of them: it has ``tests`` and ``benchmarks``, and what is installed comes before its
    ``scp_kernels``.

    Args:
        changes: variables, and those to take away (None).
        first: a folder that comes before all others.
    """
    folders = [*([str(first)] if first is not None else []), *filter(None, sys.path)]
    if str(ROOT) not in folders:
        folders.append(str(ROOT))
    merged = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), **(changes or {})}
    return {name: value for name, value in merged.items() if value is not None}


def run_python(
    *arguments: object,
    env: Mapping[str, str | None] | None = None,
    first: Path | None = None,
    text: bool = True,
    timeout: float | None = 300,
    check: bool = True,
) -> subprocess.CompletedProcess:
    """``python ARGUMENTS…``, its output captured.

    In an empty folder: for ``-c`` and ``-m``, Python looks for packages in the working directory before all others, and
    that of the tests is the checkout.

    Args:
        env: what differs in the environment, see :func:`environment`.
        first: as there.
        text: the output is text, else bytes.
        timeout: seconds; None: as long as it takes.
        check: it succeeds, or an assertion fails with what it printed.
    """
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=empty,
            env=environment(env, first=first),
            capture_output=True,
            text=text,
            timeout=timeout,
        )
    assert not check or done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done
