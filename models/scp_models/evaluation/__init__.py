"""Scores of segmentations against references, as ``torchmetrics`` too; tables of them, and paired comparisons."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scp_models.evaluation.torch_metrics import (
        ChallengeF1,
        HausdorffDistance95,
        LesionDice,
        LesionF1,
        LesionPPV,
        LesionTPR,
        VolumeDifference,
        VoxelDice,
        challenge_metrics,
        paper_metrics,
    )

__all__ = [
    "ChallengeF1",
    "HausdorffDistance95",
    "LesionDice",
    "LesionF1",
    "LesionPPV",
    "LesionTPR",
    "VolumeDifference",
    "VoxelDice",
    "challenge_metrics",
    "paper_metrics",
]


def __getattr__(name: str) -> Any:
    # Imported when they are asked for: torchmetrics takes longer to import than a subject takes to score.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.torch_metrics"), name)
