"""Training with Lightning: the module, its loss, and the command ``scp-models fit``."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scp_models.training.module import SegmentationModule, SubjectDice

__all__ = ["SegmentationModule", "SubjectDice"]


def __getattr__(name: str) -> Any:
    # Imported when they are asked for: Lightning takes longer to import than a command line to be read.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.module"), name)
