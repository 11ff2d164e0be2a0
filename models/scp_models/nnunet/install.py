"""Make nnU-Net find the trainer without an environment variable: a file in its own folder, and away with it again."""

from pathlib import Path

from scp_models.errors import UserError
from scp_models.files import atomic_path
from scp_models.optional import package_folder

NAME = "nnUNetTrainerSCP.py"
TEXT = '''"""Written by `scp-models nnunet install`; `scp-models nnunet uninstall` removes it."""

try:
    from scp_models.nnunet.trainer import nnUNetTrainerSCP
except ImportError:  # gone: other trainers are still to be found
    pass
'''


def external_folder() -> Path:
    """The folder for ``nnUNet_extTrainer``."""
    return Path(__file__).parent / "external"


def trainer_file() -> Path:
    """The file in nnU-Net's folder of trainers, be it there or not.

    Raises:
        UserError: nnU-Net is not installed.
    """
    package = package_folder("nnunetv2")
    if package is None:
        raise UserError('nnunetv2: expected nnU-Net v2, which is not installed: pip install "scp_kernels[nnunet]"')
    return package / "training" / "nnUNetTrainer" / NAME


def install() -> Path:
    """Write the file; it is returned.

    Raises:
        UserError: nnU-Net is not installed, or its folder cannot be written to.
    """
    path = trainer_file()
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(TEXT)
    except UserError as error:
        raise UserError(f"{error}; nnUNet_extTrainer={external_folder()} in the environment does the same") from error
    return path


def uninstall() -> Path:
    """Remove the file; it is returned.

    Raises:
        UserError: it is not there, or somebody else's.
    """
    path = trainer_file()
    if not path.is_file() or path.read_text() != TEXT:
        there = "another one" if path.is_file() else "none"
        raise UserError(f"{path}: expected the file that `scp-models nnunet install` writes, found {there}")
    path.unlink()
    return path
