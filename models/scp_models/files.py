"""Writing results so that nothing half-written is ever left behind."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scp_models.errors import UserError


def ensure_writable(folder: str | os.PathLike[str]) -> None:
    """Make the folder and find out at once, not after an hour, whether files can be written there.

    Raises:
        UserError: they cannot.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot write there ({error.strerror or error})") from error


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write to; rename it to ``path`` on success, remove it on failure.

    The temporary name keeps every suffix of ``path`` (``.nii.gz``), because writers choose their format by it.

    Raises:
        UserError: the folder cannot be created or written.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            prefix=".partial-", suffix=f"-{target.name}", dir=target.parent, delete=False
        ) as f:
            temporary = Path(f.name)
    except OSError as error:
        raise UserError(f"{target}: cannot write there ({error.strerror or error})") from error
    try:
        yield temporary
        # mkstemp makes the file private; results get the permissions an ordinary open() would give.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    except OSError as error:
        raise UserError(f"{target}: cannot write there ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)
