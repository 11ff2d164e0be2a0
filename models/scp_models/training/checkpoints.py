"""Reading what ``scp-models fit`` wrote. Nothing in a checkpoint is executed."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from scp_models.errors import UserError
from scp_models.training.module import SegmentationModule


def load_module(path: Path | str, task: str | None = None) -> SegmentationModule:
    """The module of a checkpoint, on the CPU, in evaluation mode.

    Args:
        path: a checkpoint of Lightning.
        task: refuse a checkpoint that was trained for another task.

    Raises:
        UserError: no such file, not a checkpoint, one of something else, or of another task.
    """
    content = read_checkpoint(path)
    arguments = _arguments(content)
    if task is not None and arguments.get("task") != task:
        raise UserError(f"{path}: expected a checkpoint trained for {task!r}, got one for {arguments.get('task')!r}")
    try:
        module = SegmentationModule(**arguments)
        module.load_state_dict(content["state_dict"])
    except (UserError, TypeError, ValueError, RuntimeError) as error:
        # load_state_dict has a headline first, then a line for each tensor.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[min(1, len(lines) - 1)][:200]
        raise UserError(f"{path}: expected weights that fit its configuration, they do not ({reason})") from error
    module.on_load_checkpoint(content)
    return module.eval()


def check_resumable(path: Path | str, module: SegmentationModule, split: Mapping[str, Sequence[str]]) -> None:
    """Refuse to resume a run from the checkpoint of another one: Lightning would take some options from the checkpoint
    and some from the command line.

    Args:
        path: the checkpoint.
        module: as this run is configured.
        split: names of this run's subjects, by part.

    Raises:
        UserError: no checkpoint, or one with other hyperparameters or another division of the subjects.
    """
    content = read_checkpoint(path)
    theirs, ours = _arguments(content), _arguments({"hyper_parameters": module.hparams})
    for key in sorted(theirs.keys() | ours.keys()):
        if _plain(theirs.get(key)) != _plain(ours.get(key)):
            raise UserError(
                f"{path}: expected a checkpoint of this run, with {key} = {ours.get(key)!r}; got {theirs.get(key)!r}"
            )
    if content.get("split") != split:
        raise UserError(f"{path}: expected a checkpoint of this run, got one that was trained on other subjects")


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """What a checkpoint of ``scp-models fit`` holds.

    Raises:
        UserError: no such file, unreadable, or of something else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: expected a checkpoint, there is none") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, pickle.UnpicklingError) as error:
        # Other errors come from bytes that were taken for a pickle, and say nothing to a reader.
        told = isinstance(error, (OSError, RuntimeError)) and str(error).strip()
        reason = str(error).strip().splitlines()[0] if told else "not a file of PyTorch"
        raise UserError(
            f"{path}: expected a checkpoint of scp-models fit, it cannot be read ({reason[:120]})"
        ) from error
    hyperparameters = content.get("hyper_parameters") if isinstance(content, dict) else None
    if not isinstance(hyperparameters, dict) or "state_dict" not in content or "variant" not in hyperparameters:
        raise UserError(f"{path}: expected a checkpoint of scp-models fit, got a file of something else")
    return content


def _arguments(content: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the module. Lightning's command line adds notes of how it made it, with a leading underscore."""
    return {key: value for key, value in content["hyper_parameters"].items() if not key.startswith("_")}


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
