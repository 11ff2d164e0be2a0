"""Loading what ``scp-models fit`` wrote."""

import pickle
from pathlib import Path
from typing import Any

import torch
from scp_models.errors import UserError
from scp_models.training import SegmentationModule


def load_module(path: Path | str, task: str | None = None) -> SegmentationModule:
    """The module of a checkpoint, on the CPU, in evaluation mode. Nothing in the file is executed.

    Args:
        path: a checkpoint of Lightning.
        task: refuse a checkpoint that was trained for another task.

    Raises:
        UserError: no such file, not a checkpoint, one of something else, or of another task.
    """
    path = Path(path)
    content = _read(path)
    hyperparameters = content.get("hyper_parameters") if isinstance(content, dict) else None
    if not isinstance(hyperparameters, dict) or "state_dict" not in content or "variant" not in hyperparameters:
        raise UserError(f"{path}: expected a checkpoint of scp-models fit, got a file of something else")
    # Lightning's command line notes there how it made the module.
    arguments = {key: value for key, value in hyperparameters.items() if not key.startswith("_")}
    if task is not None and arguments.get("task") != task:
        raise UserError(f"{path}: expected a checkpoint trained for {task!r}, got one for {arguments.get('task')!r}")
    try:
        module = SegmentationModule(**arguments)
        module.load_state_dict(content["state_dict"])
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: expected a checkpoint of this configuration, it does not fit ({reason})") from error
    return module.eval()


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: expected a checkpoint, there is none") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{path}: expected a checkpoint of scp-models fit, it cannot be read ({reason[:120]})"
        ) from error
