"""What a data set's own ``dataset.json`` says of its images and labels."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scp_models.data.classes import BACKGROUND, resolve_classes
from scp_models.data.tasks import LABEL_NAMES, TASKS, Task, get_task
from scp_models.errors import UserError
from scp_models.notes import note


@dataclass(frozen=True)
class Description:
    """What a data set's own ``dataset.json`` says: nnU-Net's, or the Medical Segmentation Decathlon's."""

    path: Path
    channels: tuple[str, ...]
    """By number; empty if it does not say."""
    labels: Mapping[str, tuple[int, ...]]
    """Values by name, several for nnU-Net's regions; empty if it does not say."""

    @property
    def foreground(self) -> dict[str, tuple[int, ...]]:
        """Without background and nnU-Net's ``ignore``."""
        return {name: values for name, values in self.labels.items() if name != "ignore" and values != (0,)}

    def options(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options ``given``, completed by what the file says.

        Its channels are the modalities, unless the preset has as many. Its only foreground label is the target; of
        several, the preset's target. Its label ``ignore`` is ignored. Where classes are asked for, its labels are
        their names, and no other value is known.

        Raises:
            UserError: several foreground labels, none of them the preset's target; or one of them is a label that the
                preset ignores.
        """
        options = {key: value for key, value in given.items() if value is not None}
        preset = TASKS.get(name)
        if preset is None:
            return options
        if self.channels and "modalities" not in options and len(self.channels) != len(preset.modalities):
            options["modalities"] = list(self.channels)
        if not self.labels:
            return options
        values = {value for members in self.labels.values() for value in members}
        if "classes" in options:
            by_name = {label: members for label, members in self.labels.items() if label != "ignore"}
            options["classes"] = resolve_classes(options["classes"], by_name, str(self.path))
        elif "target" not in options:
            if len(self.foreground) == 1:
                options["target"] = list(*self.foreground.values())
            elif not set(preset.target) <= values:
                named = ", ".join(f"{label} = {list(members)}" for label, members in self.foreground.items())
                raise UserError(
                    f"{self.path}: expected --data.target to choose among its labels ({named}), or --data.classes all "
                    "to tell them apart"
                )
        if "ignored" not in options:
            target = set(options.get("target", preset.target))
            if "classes" in options:
                chosen = [members for label, members in options["classes"].items() if label != BACKGROUND]
                target = {value for members in chosen for value in members}
            unclear = set(preset.ignored) - target
            unsaid = [label for label, members in self.foreground.items() if unclear & set(members)]
            if "ignore" in self.labels:
                options["ignored"] = list(self.labels["ignore"])
            elif unsaid:
                several = ", or --data.classes all to tell its labels apart" if "classes" not in options else ""
                raise UserError(
                    f"{self.path}: expected --data.ignored to say whether its label {unsaid[0]!r} is ignored ([] "
                    f"for none), as task {name} ignores {list(preset.ignored)}{several}"
                )
            elif preset.ignored:
                options["ignored"] = []
        plain = (list(preset.target), list(preset.ignored))
        unsaid_target = "target" not in given and "classes" not in options
        if unsaid_target and (options.get("target", plain[0]), options.get("ignored", plain[1])) == plain:
            # The preset as it is: the same task as without the file.
            options.pop("target", None)
            if "ignored" not in given:
                options.pop("ignored", None)
        return options


def read_description(root: Path | str) -> Description | None:
    """The description at ``root`` (a data set, or its JSON); None if there is none that says channels or labels.

    nnU-Net writes ``channel_names`` by number and ``labels`` by name; the Decathlon ``modality`` and ``labels`` by
    number. Of a part that cannot be read there is a note, and the other part counts.
    """
    root = Path(root)
    path = root if root.suffix == ".json" else root / "dataset.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # the reader of the layout says what is wrong with it, if anything has to be read from it
    if not isinstance(content, dict):
        return None
    channels, labels = channel_names(content), _label_values(content.get("labels") or {})
    for key, parsed in (("channel_names", channels), ("modality", channels), ("labels", labels)):
        if content.get(key) and parsed is None:
            note(f"{path}: {key} cannot be read ({_shown(content[key])}): it is as if it were not there")
    return Description(path, channels or (), labels or {}) if channels or labels else None


def task_of_data_set(
    root: Path | str, name: str, roi_size: Sequence[int] | None = None, **given: Any
) -> tuple[Task, dict[str, Any] | None]:
    """The task of a data set, and the options that make it of its preset (None: it is the preset).

    Args:
        root: the data set; its ``dataset.json`` completes what is given.
        name: of the preset.
        roi_size: see :func:`get_task`.
        given: any of :data:`OPTIONS`; None: not given. ``target``, ``ignored`` and ``spacing`` may be one number.

    Raises:
        UserError: options that make no task, or labels among which the target has to be chosen.
    """
    options = {key: [value] if isinstance(value, (int, float)) else value for key, value in given.items()}
    if "resize" in given:
        options["resize"] = given["resize"]
    if description := read_description(root):
        options = description.options(name, options)
    options = {key: value for key, value in options.items() if value is not None}
    if "classes" in options and name in LABEL_NAMES:
        # By value and name, so that a checkpoint needs neither file nor preset to read them again.
        options["classes"] = resolve_classes(options["classes"], LABEL_NAMES[name], f"task {name}")
    task = get_task(name, roi_size, options)
    if task.frame == "foreground":
        # A checkpoint's positions stay what they were when a later version has other settings.
        options["foreground"] = asdict(task.foreground)
    return task, options or None


def channel_names(content: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The channels of a ``dataset.json``, in order: by number, or a list; None where they cannot be read."""
    channels = content.get("channel_names") or content.get("modality") or {}
    if isinstance(channels, list):
        channels = dict(enumerate(channels))
    try:
        names = tuple(channels[key] for key in sorted(channels, key=int))
    except (TypeError, ValueError):
        return None
    return names if all(isinstance(name, str) for name in names) else None


def _label_values(labels: Any) -> dict[str, tuple[int, ...]] | None:
    result = {}
    try:
        for key, value in labels.items():
            name, numbers = (value, key) if str(key).isdigit() else (key, value)
            members = numbers if isinstance(numbers, list) else [numbers]
            result[str(name)] = tuple(int(member) for member in members)
    except (TypeError, ValueError, AttributeError):
        return None
    return result


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
