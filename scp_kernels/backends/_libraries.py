"""Finds and loads the shared libraries that ``csrc/`` was built into. Imports nothing but the standard library."""

import ctypes
import functools
import importlib.util
import json
from pathlib import Path
from typing import Any

ABI_VERSION = 6
"""The number in ``csrc/include/scp.h``; a library that reports another one is refused."""

PACKAGE = "scp_kernels_native"
_NOT_INSTALLED = (
    "scp_kernels is not installed, only its sources are on the path: run `pip install .`, then `python -m scp_kernels`"
)


class LibraryUnavailable(Exception):
    """A compiled library cannot be used; the message says why."""


@functools.cache
def build_record() -> dict[str, dict[str, Any]]:
    """What the installation built: for ``"cpu"`` and ``"cuda"``, ``version``, ``built``, and why not or how.

    That is ``reason``, a sentence, or ``compiler``, ``flags`` and ``variants`` (ISA targets or compute capabilities).
    """
    for folder in _folders():
        path = folder / "build.json"
        if path.is_file():
            return json.loads(path.read_text())
    return {name: {"built": False, "reason": _NOT_INSTALLED} for name in ("cpu", "cuda")}


def find_library(name: str) -> Path:
    """The file of the library ``"cpu"`` or ``"cuda"``.

    Raises:
        LibraryUnavailable: it was not built (the message is the reason recorded at install), or is missing.
    """
    record = build_record()[name]
    if not record["built"]:
        raise LibraryUnavailable(f"not built: {record['reason']}")
    file_name = f"libscp_{name}.so"
    path = next((folder / file_name for folder in _folders() if (folder / file_name).is_file()), None)
    if path is None:
        raise LibraryUnavailable(f"{file_name} was built but is gone from the installation: reinstall scp_kernels")
    return path


@functools.cache
def load(name: str) -> ctypes.CDLL:
    """The library ``"cpu"`` or ``"cuda"``, loaded once and its ABI version checked.

    Raises:
        LibraryUnavailable: as :func:`find_library`, or it fails to load, or was built for another version of the ABI.
    """
    path = find_library(name)
    try:
        library = ctypes.CDLL(str(path))
        version = library.scp_abi_version()
    except (OSError, AttributeError) as error:
        raise LibraryUnavailable(f"{path} does not load: {error}") from error
    if version != ABI_VERSION:
        raise LibraryUnavailable(
            f"{path} was built for ABI version {version}, this scp_kernels needs {ABI_VERSION}: reinstall scp_kernels"
        )
    return library


def _folders() -> list[Path]:
    spec = importlib.util.find_spec(PACKAGE)
    locations = spec.submodule_search_locations if spec is not None else None
    return [Path(location) for location in locations or ()]
