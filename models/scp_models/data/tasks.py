"""What the images and labels of a study are, and how they are read: presets, options, and a data set's own description.

Two presets have the paper's preprocessing:

- ``wmh``: T1 and FLAIR, centre crop or pad to 160 × 224, then z-score of each modality over the cropped volume; label 2
  is ignored;
- ``lits``: intensities clipped to [−200, 250] HU and mapped to [−1, 1], slices resized to 256 × 256; tumour (label 2)
  against all else.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from scp_models.errors import UserError
from scp_models.notes import note

SLICE_FRAME = "slice"
"""The paper's frame: positions of pixels from the borders of the slice that the network sees."""
FRAMES = (SLICE_FRAME, "image", "foreground")
"""What positions are measured in, beside a transform's file: see :mod:`scp_models.data.frames`."""
TRANSFORM_ENDINGS = (".tfm", ".txt", ".mat", ".xfm", ".hdf5", ".h5")

LabelAffine = Literal["auto", "header", "image"]
LABEL_AFFINES: tuple[LabelAffine, ...] = ("auto", "header", "image")
"""Whether a label lies where its own header says or on its image's voxels; ``auto`` measures where they disagree."""

TARGET_LABEL = 1
"""The target in labels as readers return them, whatever the files call it; 0 is the background."""
IGNORED_LABEL = 2
"""What is neither trained on nor scored, in labels as readers return them."""


MNI_BOX = (-91.5, -126.5, -72.5, 90.5, 91.5, 109.5)
"""Lower and upper corner of the MNI152 template of 182 × 218 × 182 mm, RAS+."""


@dataclass(frozen=True)
class Task:
    """How the images of one kind of study are read."""

    name: str
    modalities: tuple[str, ...]
    """The network's input channels."""
    roi_size: tuple[int, int]
    """Height and width that the network sees."""
    resize: bool
    """Resize slices to ``roi_size`` (in-plane resolution changes); otherwise crop or pad them around the centre."""
    window: tuple[float, float] | None
    """Intensities clipped to this and mapped to [−1, 1]; None: z-score over the volume."""
    target: tuple[int, ...]
    """Values in the label files that are the target, 1 in what is returned."""
    ignored: tuple[int, ...]
    """Values in the label files that are neither trained on nor scored, 2 in what is returned."""
    split: tuple[int, int, int]
    """Subjects for training, validation and test in the paper."""
    labels: tuple[int, ...] | None
    """All values that label files may hold; None: any integers."""
    spacing: tuple[float, float] | None = None
    """Pixel size in mm, left-right and back-front, to which slices are resampled before the crop; None: the file's."""
    label_affine: LabelAffine = "auto"
    """Whether a label lies where its own header says, or on its image's voxels; ``auto`` measures if they disagree."""
    max_height: float | None = None
    """Of the foreground's box in mm, from its top: below a head there may be a neck, more of it or less."""
    frame: str = SLICE_FRAME
    """What positions are measured in: one of :data:`FRAMES`, or the path of each subject's transform."""
    frame_box: tuple[float, ...] = MNI_BOX
    """Lower and upper corner, in mm, of the box in a transform's template that positions are measured in."""

    @property
    def position_dims(self) -> int:
        """Axes of positions: those of a slice, or of the patient."""
        return 2 if self.frame == SLICE_FRAME else 3

    @property
    def has_transforms(self) -> bool:
        """Whether the frame is a file per subject."""
        return self.frame not in FRAMES

    def describe(self) -> str:
        """One line for people."""
        window = "z-score" if self.window is None else f"window {self.window[0]:g} to {self.window[1]:g}"
        how = "resized" if self.resize else "cropped or padded"
        if self.spacing is not None:
            how = f"resampled to {self.spacing[0]:g} × {self.spacing[1]:g} mm, {how}"
        ignored = f", ignored {list(self.ignored)}" if self.ignored else ""
        return (
            f"task {self.name}: {', '.join(self.modalities)}; target label {list(self.target)}{ignored}; {window}; "
            f"slices {how} to {self.roi_size[0]} × {self.roi_size[1]}; positions in the frame {self.frame}"
        )


TASKS = {
    "wmh": Task("wmh", ("T1", "FLAIR"), (160, 224), False, None, (1,), (2,), (42, 6, 12), (0, 1, 2), max_height=170.0),
    "lits": Task("lits", ("CT",), (256, 256), True, (-200.0, 250.0), (2,), (), (91, 13, 27), (0, 1, 2)),
}
OPTIONS = ("modalities", "target", "ignored", "window", "resize", "spacing", "label_affine", "frame", "frame_box")
"""What of a preset can be replaced, beside ``roi_size``."""


def get_task(name: str, roi_size: Sequence[int] | None = None, options: Mapping[str, Any] | None = None) -> Task:
    """A task by the name of its preset, with what is given replaced.

    Args:
        name: ``"wmh"`` or ``"lits"``.
        roi_size: height and width of slices; None: the preset's.
        options: any of :data:`OPTIONS`; None, or an option that is None: the preset's. An empty ``window`` is the
            z-score, an empty ``ignored`` ignores nothing.

    Raises:
        UserError: an unknown name or option, or one that makes no sense.
    """
    if name not in TASKS:
        raise UserError(f"task: expected one of {tuple(TASKS)}, got {name!r}")
    given = {key: value for key, value in (options or {}).items() if value is not None}
    if unknown := sorted(given.keys() - set(OPTIONS)):
        raise UserError(f"task: expected options among {', '.join(OPTIONS)}, got {unknown[0]!r}")
    changes: dict[str, Any] = {}
    if roi_size is not None:
        if len(roi_size) != 2 or min(roi_size) < 1:
            raise UserError(f"roi_size: expected two positive numbers, got {tuple(roi_size)}")
        changes["roi_size"] = (int(roi_size[0]), int(roi_size[1]))
    if "modalities" in given:
        changes["modalities"] = tuple(str(modality) for modality in given["modalities"])
    for key in ("target", "ignored"):
        if key in given:
            changes[key] = tuple(int(label) for label in given[key])
            changes["labels"] = None
    if "window" in given:
        changes["window"] = tuple(float(bound) for bound in given["window"]) or None
    if "resize" in given:
        changes["resize"] = bool(given["resize"])
    if "spacing" in given:
        changes["spacing"] = _pixel_size(given["spacing"])
        if given.get("resize"):
            raise UserError("spacing: expected without resize, which gives slices the size of roi_size")
        # A preset that resizes does so for want of a spacing.
        changes["resize"] = False
    task = replace(TASKS[name], **changes)
    if "label_affine" in given:
        task = with_label_affine(task, given["label_affine"])
    if "frame" in given:
        task = with_frame(task, given["frame"])
    if "frame_box" in given:
        task = replace(task, frame_box=_box(task, given["frame_box"]))
    if not task.modalities:
        raise UserError("modalities: expected at least one, got none")
    if not task.target or min(task.target) < 1:
        raise UserError(f"target: expected labels of 1 or more, got {list(task.target)}")
    if task.ignored and min(task.ignored) < 1:
        raise UserError(f"ignored: expected labels of 1 or more, got {list(task.ignored)}")
    if both := sorted(set(task.target) & set(task.ignored)):
        if "ignored" in given:
            raise UserError(f"ignored: expected other labels than the target's, got {both[0]}")
        # A given target replaces what the preset ignores.
        task = replace(task, ignored=tuple(label for label in task.ignored if label not in task.target))
    if task.window is not None and (len(task.window) != 2 or task.window[0] >= task.window[1]):
        raise UserError(f"window: expected a lower and a higher bound, got {list(task.window)}")
    return task


def with_label_affine(task: Task, rule: str) -> Task:
    """The task with another rule for the affines of labels.

    Raises:
        UserError: there is no such rule.
    """
    for known in LABEL_AFFINES:
        if rule == known:
            return replace(task, label_affine=known)
    raise UserError(f"label_affine: expected one of {', '.join(LABEL_AFFINES)}, got {rule!r}")


def with_frame(task: Task, frame: str) -> Task:
    """The task with positions in another frame.

    Raises:
        UserError: neither the name of a frame nor the path of a transform.
    """
    if frame not in FRAMES and not frame.lower().endswith(TRANSFORM_ENDINGS):
        raise UserError(
            f"frame: expected {', '.join(FRAMES)} or the path of a transform per subject ({{subject}} and {{folder}} "
            f"stand for its name and its folder; {', '.join(TRANSFORM_ENDINGS)}), got {frame!r}"
        )
    return replace(task, frame=frame)


def _box(task: Task, box: Sequence[float]) -> tuple[float, ...]:
    bounds = tuple(float(bound) for bound in box)
    if not task.has_transforms:
        raise UserError(f"frame_box: expected with a transform's path as the frame only, got frame {task.frame!r}")
    if len(bounds) != 6 or not all(low < high for low, high in zip(bounds[:3], bounds[3:], strict=True)):
        raise UserError(f"frame_box: expected the lower and the upper corner of a box, six numbers (mm), got {box}")
    return bounds


def _pixel_size(spacing: Any) -> tuple[float, float]:
    sizes = [float(size) for size in (spacing if isinstance(spacing, Sequence) else [spacing])]
    if len(sizes) not in (1, 2) or not all(math.isfinite(size) and size > 0 for size in sizes):
        raise UserError(f"spacing: expected one or two positive numbers (mm), got {spacing}")
    return (sizes[0], sizes[-1])


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
        several, the preset's target. Its label ``ignore`` is ignored.

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
        if "target" not in options:
            if len(self.foreground) == 1:
                options["target"] = list(*self.foreground.values())
            elif not set(preset.target) <= values:
                named = ", ".join(f"{label} = {list(members)}" for label, members in self.foreground.items())
                raise UserError(f"{self.path}: expected --data.target to choose among its labels ({named})")
        if "ignored" not in options:
            target = set(options.get("target", preset.target))
            unclear = set(preset.ignored) - target
            unsaid = [label for label, members in self.foreground.items() if unclear & set(members)]
            if "ignore" in self.labels:
                options["ignored"] = list(self.labels["ignore"])
            elif unsaid:
                raise UserError(
                    f"{self.path}: expected --data.ignored to say whether its label {unsaid[0]!r} is ignored ([] "
                    f"for none), as task {name} ignores {list(preset.ignored)}"
                )
            elif preset.ignored:
                options["ignored"] = []
        plain = (list(preset.target), list(preset.ignored))
        if (options.get("target", plain[0]), options.get("ignored", plain[1])) == plain and "target" not in given:
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
    return get_task(name, roi_size, options), options or None


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
