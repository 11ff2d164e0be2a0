"""Packages of the optional extras: found for certain, or missed in one line."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scp_models.errors import UserError


def package_folder(name: str) -> Path | None:
    """The folder of an installed package, without importing it; None where it is not installed.

    Any folder of this name on Python's path looks like a package without content: that is none.
    """
    spec = find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def simpleitk(purpose: str, extra: str) -> Any:
    """The module SimpleITK.

    Args:
        purpose: begins the message: what needs it, as in ``"scan.mha: reading it"``.
        extra: of ``scp_kernels``, that installs it.

    Raises:
        UserError: it is not installed.
    """
    try:
        import SimpleITK as sitk
    except ImportError as error:
        raise UserError(f'{purpose} needs SimpleITK: pip install "scp_kernels[{extra}]"') from error
    if getattr(sitk, "__file__", None) is None:
        folders = ", ".join(sitk.__path__)
        raise UserError(
            f'{purpose} needs SimpleITK: pip install "scp_kernels[{extra}]" ({folders} has its name and is a folder '
            "without a package)"
        )
    # Its warnings go to stderr from C++; what matters of them is checked here.
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    return sitk
