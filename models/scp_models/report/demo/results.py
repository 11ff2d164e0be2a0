"""What a finished demo has to show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from scp_models.data.module import SegmentationDataModule
from scp_models.evaluation.metrics import METRICS
from scp_models.inference.predictor import Segmentation
from scp_models.report.demo.costs import Cost
from scp_models.report.demo.design import DemoModel, DemoSettings
from scp_models.report.html import ModelResult


@dataclass(frozen=True)
class Training:
    """One finished training of a model."""

    model: DemoModel
    seed: int
    checkpoint: Path
    losses: pd.DataFrame
    """Columns ``epoch``, ``training``, ``validation``."""


@dataclass(frozen=True)
class DemoResults:
    """Everything that a finished run has to show."""

    settings: DemoSettings
    data: SegmentationDataModule
    scores: pd.DataFrame
    """One row per training and test subject: ``model``, ``seed``, ``subject``, ``site`` and all metrics."""
    losses: pd.DataFrame
    """One row per training and epoch: ``model``, ``seed``, ``epoch``, ``training``, ``validation``."""
    costs: Mapping[str, Cost]
    shown: Mapping[str, Mapping[str, Segmentation]]
    """Segmentations of each model's first seed, by model's and subject's name."""
    seconds: Mapping[str, float]
    """What each stage took."""
    trainings: Sequence[Training]

    def models(self) -> list[ModelResult]:
        return [self._model(model) for model in self.settings.models()]

    def _model(self, model: DemoModel) -> ModelResult:
        cost = self.costs[model.name]
        scores = self.scores[self.scores["model"] == model.name]
        by_seed = {seed: scores[scores["seed"] == seed].set_index("subject")[list(METRICS)] for seed in model.seeds}
        return ModelResult(
            model.name,
            describe_model(model),
            cost.parameters,
            cost.macs,
            cost.step_seconds,
            cost.inference_seconds,
            by_seed,
        )


def describe_model(model: DemoModel) -> str:
    """One line of what a model is."""
    widths = ", ".join(str(model.capacity // 16 * 2**level) for level in range(model.levels))
    head = "a spatially covariant head" if model.variant == "scp" else "a 1×1 convolution as head"
    text = f"{model.levels} levels of {widths} channels, {head}"
    if model.constant_position:
        text += " whose every pixel is told the position of the image's centre"
    return f"{text}; {len(model.seeds)} training{'s' if len(model.seeds) > 1 else ''}."
