"""Trained models on disk: what ``scp-models fit`` writes. Nothing in a checkpoint is executed.

Reading needs no Lightning, which takes longer to import than a subject takes to segment.
"""

import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from scp_models.data.subjects import Subject
from scp_models.data.tasks import Task, get_task, with_frame
from scp_models.errors import UserError
from scp_models.networks.segmentation import SegmentationNetwork, build_network
from scp_models.notes import note

# Hyperparameters of ``SegmentationModule`` that matter to training alone.
_OF_TRAINING = ("learning_rate", "weight_decay", "limit_phi")
# Under which ``SegmentationModule`` holds its network.
_PREFIX = "network."
# How the foreground was found in checkpoints that do not say, whatever it is in new ones.
_FIRST_FOREGROUND = {"resolution": 128, "threshold": 0.1, "outside": 0.002, "part": 2.0, "method": 2}
_FIRST_HEIGHTS = {"wmh": 170.0}


@dataclass(frozen=True)
class TrainedModel:
    """A network, and what is needed to segment with it."""

    network: SegmentationNetwork
    task: Task
    """How images are read."""
    threshold: float
    """Of probabilities; of several classes the most probable counts."""
    memory_format: torch.memory_format
    """Of the images that the network is given."""
    split: Mapping[str, Sequence[str]] | None = None
    """Names of the subjects for training, validation and test; None where a checkpoint does not say."""

    def check_threshold(self, threshold: float | None, path: Path) -> None:
        """Refuse a threshold where the most probable of several classes counts.

        Raises:
            UserError: one was given.
        """
        if threshold is not None and self.task.classes:
            raise UserError(f"--threshold: expected for one target only, {path} has classes: the most probable counts")

    def with_transforms(self, pattern: str) -> "TrainedModel":
        """The model for subjects whose transforms lie elsewhere than those that it was trained with.

        Args:
            pattern: path of each subject's transform, as in training.

        Raises:
            UserError: not such a path, or a model whose frame is none of transforms.
        """
        task = with_frame(self.task, pattern)
        if not (self.task.has_transforms and task.has_transforms):
            raise UserError(
                f"--frame: expected a transform's path, for a checkpoint that was trained with transforms, got "
                f"{pattern!r} for the frame {self.task.frame!r}"
            )
        return replace(self, task=task)


def build_model(
    *,
    task: str = "wmh",
    roi_size: Sequence[int] | None = None,
    task_options: Mapping[str, Any] | None = None,
    threshold: float = 0.5,
    channels_last: bool = True,
    **options: Any,
) -> TrainedModel:
    """A model with new weights.

    Args:
        task, roi_size, task_options: see :func:`scp_models.data.get_task`.
        threshold: of probabilities.
        channels_last: keep activations in channels-last memory format, faster on CPUs and tensor cores.
        options: of :func:`scp_models.networks.build_network`; the task gives the number of input channels, of classes
            and of position axes.

    Raises:
        UserError: options that make no network.
    """
    preset = get_task(task, roi_size, task_options)
    try:
        network = build_network(
            in_channels=len(preset.modalities),
            num_classes=preset.num_outputs,
            exclusive=bool(preset.classes),
            position_dims=preset.position_dims,
            **options,
        )
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    network.to(memory_format=memory_format)  # type: ignore[call-overload]
    return TrainedModel(network, preset, threshold, memory_format)


def load_model(path: Path | str, task: str | None = None) -> TrainedModel:
    """The model of a checkpoint, on the CPU, in evaluation mode.

    Args:
        path: a checkpoint of ``scp-models fit``.
        task: refuse a checkpoint that was trained for another task.

    Raises:
        UserError: no such file, not a checkpoint, one of something else, or of another task.
    """
    content = read_checkpoint(path)
    arguments = _arguments(content["hyper_parameters"])
    if _lacks_foreground(content["hyper_parameters"]):
        note(
            f"{path}: does not say how its foreground was found: positions may lie up to 2 mm beside its training's, "
            "more in volumes that are not stored in axial slices"
        )
    if task is not None and arguments.get("task") != task:
        raise UserError(f"{path}: expected a checkpoint trained for {task!r}, got one for {arguments.get('task')!r}")
    try:
        model = build_model(**{key: value for key, value in arguments.items() if key not in _OF_TRAINING})
        model.network.load_state_dict(
            {name.removeprefix(_PREFIX): tensor for name, tensor in content["state_dict"].items()}
        )
    except (UserError, TypeError, ValueError, RuntimeError) as error:
        # load_state_dict has a headline first, then one line per tensor.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[min(1, len(lines) - 1)][:200]
        raise UserError(f"{path}: expected weights that fit its configuration, they do not ({reason})") from error
    model.network.eval()
    return TrainedModel(model.network, model.task, model.threshold, model.memory_format, content.get("split"))


def check_resumable(
    path: Path | str,
    hyperparameters: Mapping[str, Any],
    split: Mapping[str, Sequence[str]],
    augmentation: Mapping[str, Any],
) -> None:
    """Refuse to resume a run from the checkpoint of another one: Lightning would take some options from the checkpoint
    and some from the command line.

    Options of the task that say the same in another way are no others.

    Args:
        path: the checkpoint.
        hyperparameters: this run's.
        split: names of this run's subjects, by part.
        augmentation: of this run; a checkpoint that says nothing had none.

    Raises:
        UserError: no checkpoint, or one with other hyperparameters, another augmentation or another division of the
            subjects.
    """
    content = read_checkpoint(path)
    stored, current = _arguments(content["hyper_parameters"]), _arguments(hyperparameters)
    stored.setdefault("limit_phi", current.get("limit_phi"))  # of before there was a limit: it goes on without
    if "anchored" not in content["hyper_parameters"] and current.get("anchored") is None:
        stored["anchored"] = None  # of before there was an anchor: likewise
    if _same_task(stored, current):
        stored["task_options"] = current.get("task_options")
    _must_agree(path, stored, current)
    if content.get("split") != split:
        raise UserError(f"{path}: expected a checkpoint of this run, got one that was trained on other subjects")
    _must_agree(path, content.get("augmentation", {"augment": "none"}), augmentation)


def _same_task(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two sets of hyperparameters train on the same images and labels."""
    try:
        a, b = (get_task(of["task"], of.get("roi_size"), of.get("task_options")) for of in (first, second))
    except UserError:  # of another version, which has a task of its own
        return False
    # A preset's own label files may hold known values only: that is a check, which a target that is given leaves out.
    return a == b or (not a.classes and replace(a, labels=None) == replace(b, labels=None))


def _must_agree(path: Path | str, stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    for key in sorted(stored.keys() | current.keys()):
        if _comparable(stored.get(key)) != _comparable(current.get(key)):
            parts = [_comparable(of.get(key) or {}) for of in (stored, current)]
            if all(isinstance(part, Mapping) for part in parts):
                # Of many options, the first that differs.
                _must_agree(path, *({f"{key}.{name}": value for name, value in part.items()} for part in parts))
            raise UserError(
                f"{path}: expected a checkpoint of this run, with {key} = {current.get(key)!r}; got {stored.get(key)!r}"
            )


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
        readable = isinstance(error, (OSError, RuntimeError)) and str(error).strip()
        reason = str(error).strip().splitlines()[0] if readable else "not a file of PyTorch"
        raise UserError(
            f"{path}: expected a checkpoint of scp-models fit, it cannot be read ({reason[:120]})"
        ) from error
    hyperparameters = content.get("hyper_parameters") if isinstance(content, dict) else None
    if not isinstance(hyperparameters, dict) or "state_dict" not in content or "variant" not in hyperparameters:
        raise UserError(f"{path}: expected a checkpoint of scp-models fit, got a file of something else")
    return content


def subject_names(division: Mapping[str, Iterable[Subject]]) -> dict[str, list[str]]:
    """A division of subjects by name: what checkpoints hold, and what ``--split-file`` reads."""
    return {part: [subject.name for subject in subjects] for part, subjects in division.items()}


def _arguments(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Without the notes, with a leading underscore, of how Lightning's command line made the module."""
    result = {key: value for key, value in hyperparameters.items() if not key.startswith("_")}
    if _lacks_foreground(result):
        settings = {**_FIRST_FOREGROUND, "max_height": _FIRST_HEIGHTS.get(str(result.get("task")))}
        result["task_options"] = {**result["task_options"], "foreground": settings}
    result.setdefault("anchored", False)  # of before there was a choice
    return result


def _lacks_foreground(hyperparameters: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is older than the record of how its foreground was found."""
    options = hyperparameters.get("task_options") or {}
    return options.get("frame") == "foreground" and "foreground" not in options


def _comparable(value: Any) -> Any:
    if isinstance(value, Mapping) and isinstance(classes := value.get("classes"), Mapping):
        # Their order gives their numbers.
        return {**value, "classes": list(classes.items())}
    return tuple(value) if isinstance(value, list) else value
