"""What a data set's own ``dataset.json`` says of its images and labels: channels, and a target or exclusive classes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scp_models.data.classes import ALL, BACKGROUND, Classes, describe_classes, resolve_classes
from scp_models.data.tasks import LABEL_NAMES, TASKS, Task, get_task, has_published_labels
from scp_models.errors import UserError
from scp_models.notes import first_few, note


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
        no_class = ("ignore", BACKGROUND)
        return {name: values for name, values in self.labels.items() if name not in no_class and values != (0,)}

    def has_own_labels(self, name: str) -> bool:
        """Whether there are several foreground labels, which are not those of the preset's published data."""
        return name in TASKS and len(self.foreground) > 1 and not has_published_labels(name, self.foreground)

    def options(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options ``given``, completed by what the file says.

        Its channels are the modalities, unless the preset has as many. Its only foreground label is the target; several
        are the classes, unless a target is given, and a note says so. Labels of the preset's published data keep the
        preset's target and what it ignores. Else its label ``ignore`` is all that is ignored. With classes no other
        value than its labels' is known.

        Raises:
            UserError: several foreground labels that are no exclusive classes, or classes that make no sense.
        """
        options = {key: value for key, value in given.items() if value is not None}
        preset = TASKS.get(name)
        if preset is None:
            return options
        if self.channels and "modalities" not in options and len(self.channels) != len(preset.modalities):
            options["modalities"] = list(self.channels)
        if not self.labels:
            return options
        ignore = self.labels.get("ignore", ())
        ignored = set(options.get("ignored", ignore))
        known = {k: members for k, members in self.labels.items() if k != "ignore" and not set(members) <= ignored}
        published = has_published_labels(name, self.foreground)
        if "classes" in options:
            options["classes"] = resolve_classes(options["classes"], known, str(self.path))
        elif "target" not in options and not published:
            foreground = {label: members for label, members in known.items() if label in self.foreground}
            if len(foreground) > 1:
                options["classes"] = self._all_classes(known)
            elif foreground and [*foreground.values()] != [preset.target]:
                options["target"] = list(*foreground.values())
        elif "target" not in options:
            left_out = preset.ignored if "ignored" not in options else ()
            as_in = f" and {list(left_out)} is ignored, as" if left_out else ", as"
            note(
                f"{self.path}: of its labels {_listed_labels(self.foreground)} the target is {list(preset.target)}"
                f"{as_in} task {name} has it (--data.classes all for each of them, for evaluate --classes all)"
            )
        if "ignored" not in options:
            chosen = set(options.get("target", preset.target))
            if "classes" in options:
                chosen = {value for k, members in options["classes"].items() if k != BACKGROUND for value in members}
            kept = [value for value in preset.ignored if published and value not in chosen]
            if [*ignore, *kept] != list(preset.ignored):
                options["ignored"] = [*ignore, *kept]
        return options

    def _all_classes(self, labels: Mapping[str, tuple[int, ...]]) -> Classes:
        try:
            classes = resolve_classes(ALL, labels, str(self.path))
        except UserError as error:
            raise UserError(
                f"{error}: give --data.target '[VALUES]' for one of them, or --data.classes '{{NAME: VALUES, ...}}' "
                "for classes of your own (for evaluate --target N, again for more, --classes NAME=VALUES)"
            ) from error
        foreground = {label: values for label, values in classes.items() if label != BACKGROUND}
        note(
            f"{self.path}: its labels are the classes {_listed_labels(foreground)} (--data.target N for one of them, "
            "for evaluate --target N)"
        )
        return classes


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
        UserError: options that make no task, or labels of the data set that are neither a target nor classes.
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
    result: dict[str, tuple[int, ...]] = {}
    try:
        for key, value in labels.items():
            name, numbers = (value, key) if str(key).isdigit() else (key, value)
            members = numbers if isinstance(numbers, list) else [numbers]
            # By number, several may have one name.
            result[str(name)] = (*result.get(str(name), ()), *(_label_value(member) for member in members))
    except (TypeError, ValueError, AttributeError):
        return None
    return result


def _label_value(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(f"expected an integer, got {value}")
    return int(value)


def _listed_labels(labels: Mapping[str, Sequence[int]]) -> str:
    return first_few([describe_classes([(label, tuple(values))]) for label, values in labels.items()])


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
