"""A run and where its files are, and the network that it trains: what is known without training anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scp_models.checkpoints import TrainedModel, build_model
from scp_models.networks.complexity import nominal_macs
from scp_models.study.design import Network, Run, StudyData
from scp_models.study.forms import FORMS

RESULT = "run.json"
CHECKPOINT = "model.ckpt"


@dataclass(frozen=True)
class RunJob:
    """A run, and where its files are."""

    run: Run
    root: Path
    """Of the data set."""
    split: Mapping[str, Sequence[str]]
    """Names of the subjects for training, validation and test."""
    cache: Path
    folder: Path
    """Of the run's results."""
    device: str = "cpu"


def model_options(data: StudyData, network: Network) -> dict[str, Any]:
    """Arguments of :func:`scp_models.checkpoints.build_model`, and of ``SegmentationModule``."""
    frame = {} if network.frame == "slice" else {"frame": network.frame}
    return {
        "variant": network.variant,
        "task": data.task,
        "roi_size": data.roi_size,
        "capacity": network.capacity,
        "levels": network.levels,
        "hidden_channels": network.hidden_channels,
        "preset": network.preset,
        "position": network.position,
        "anchored": network.anchored,
        "logit_bias": network.logit_bias,
        "constant_position": network.constant_position,
        "task_options": {**data.task_options, **frame} or None,
    }


def new_model(data: StudyData, network: Network) -> TrainedModel:
    """The network with new weights."""
    model = build_model(**model_options(data, network))
    if network.change is not None:
        FORMS[network.change](model.network)
    return model


def work_of(run: Run) -> float:
    """Multiply-adds of a run's training, about: what its time is proportional to."""
    recipe = run.recipe
    steps = recipe.steps if recipe.steps is not None else (recipe.epochs or 1) * 100
    return float(nominal_macs(new_model(run.data, run.network).network, *run.data.roi_size)) * steps * recipe.batch_size
