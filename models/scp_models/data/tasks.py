"""What the images and labels of a study are, and how they are read: presets and options.

Two presets have the paper's preprocessing:

- ``wmh``: T1 and FLAIR, centre crop or pad to 160 × 224, then z-score of each modality over the cropped volume; label 2
  is ignored;
- ``lits``: intensities clipped to [−200, 250] HU and mapped to [−1, 1], slices resized to 256 × 256; tumour (label 2)
  against all else.

The classes of other data sets' labels come from their descriptions: see :mod:`scp_models.data.description`.
"""

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from typing import Any, Literal

from scp_models.data.classes import BACKGROUND, IGNORED_AMONG_CLASSES, describe_classes, resolve_classes
from scp_models.errors import UserError

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


FOREGROUND_METHOD = 2
"""Of the search for a foreground; raised when its steps change, so that no box of an old model moves without a word."""


@dataclass(frozen=True)
class ForegroundSettings:
    """What decides where the foreground's box lies; kept with a trained model, whose positions are measured in it."""

    resolution: int = 128
    """Voxels per axis that are looked at: a share of the foreground needs no more."""
    threshold: float = 0.1
    """Of the way from the darkest to the brightest percentile: above the noise of air, below the darkest tissue."""
    outside: float = 0.002
    """Of the foreground that lies past either border of its box: ears, a nose, noise that hangs on to it. On real heads
    the box's sizes then change by up to 9 mm with the threshold (0.1 to 0.4); those of all voxels' box by up to 43.
    """
    part: float = 2.0
    """Voxels count in parts of at most so many mm: the border of a thick slice is not its centre."""
    max_height: float | None = None
    """Of the box in mm, from its top: below a head there may be a neck, more of it or less."""
    method: int = FOREGROUND_METHOD
    """See :data:`FOREGROUND_METHOD`."""


FOREGROUND = ForegroundSettings()
"""Of a new model, where its task has no others."""


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
    foreground: ForegroundSettings = FOREGROUND
    """How the head or body is found, for the frame ``foreground``, the crop's losses and misplaced labels."""
    frame: str = SLICE_FRAME
    """What positions are measured in: one of :data:`FRAMES`, or the path of each subject's transform."""
    frame_box: tuple[float, ...] = MNI_BOX
    """Lower and upper corner, in mm, of the box in a transform's template that positions are measured in."""
    classes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Exclusive classes, name and values in the label files; class k of them is k + 1 in what is returned, and what is
    ignored is 255. Empty: the target alone, against all else.
    """

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the exclusive classes; empty without."""
        return tuple(name for name, _ in self.classes)

    @property
    def num_outputs(self) -> int:
        """Channels of a network: one for the target, or background and classes."""
        return 1 + len(self.classes)

    @property
    def ignored_label(self) -> int:
        """What is neither trained on nor scored, in labels as readers return them."""
        return IGNORED_AMONG_CLASSES if self.classes else IGNORED_LABEL

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
        wanted = f"classes {describe_classes(self.classes)}" if self.classes else f"target label {list(self.target)}"
        return (
            f"task {self.name}: {', '.join(self.modalities)}; {wanted}{ignored}; {window}; "
            f"slices {how} to {self.roi_size[0]} × {self.roi_size[1]}; positions in the frame {self.frame}"
        )


TASKS = {
    "wmh": Task(
        "wmh",
        ("T1", "FLAIR"),
        (160, 224),
        False,
        None,
        (1,),
        (2,),
        (42, 6, 12),
        (0, 1, 2),
        foreground=ForegroundSettings(max_height=170.0),
    ),
    "lits": Task("lits", ("CT",), (256, 256), True, (-200.0, 250.0), (2,), (), (91, 13, 27), (0, 1, 2)),
}
LABEL_NAMES: dict[str, dict[str, tuple[int, ...]]] = {
    "wmh": {"wmh": (1,), "other": (2,)},
    "lits": {"liver": (1,), "tumour": (2,)},
}
"""Of the presets' published data, for classes by name."""
_SPELLINGS = {
    "wmh": r"wmhs?|((white matter|wm) )?(hyperintensit(y|ies)|lesions?)",
    "other": r"others?|other (patholog(y|ies)|lesions?)",
    "tumour": r"(liver )?(tumou?rs?|cancer|lesions?)",
}
"""Of these names in other copies of the data, such as the Decathlon's and nnU-Net's."""
OPTIONS = (
    "modalities",
    "target",
    "ignored",
    "window",
    "resize",
    "spacing",
    "label_affine",
    "frame",
    "frame_box",
    "foreground",
    "classes",
)
"""What of a preset can be replaced, beside ``roi_size``."""


def get_task(name: str, roi_size: Sequence[int] | None = None, options: Mapping[str, Any] | None = None) -> Task:
    """A task by the name of its preset, with what is given replaced.

    Args:
        name: ``"wmh"`` or ``"lits"``.
        roi_size: height and width of slices; None: the preset's.
        options: any of :data:`OPTIONS`; None, or an option that is None: the preset's. An empty ``window`` is the
            z-score, an empty ``ignored`` ignores nothing. ``foreground``: fields of :class:`ForegroundSettings`.
            ``classes``: see :func:`scp_models.data.classes.resolve_classes`.

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
    if "classes" in given:
        if "target" in given:
            raise UserError("target: expected without classes, which have label values of their own")
        changes |= _class_changes(name, given["classes"], given.get("ignored", TASKS[name].ignored))
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
    if "foreground" in given:
        changes["foreground"] = _foreground(given["foreground"])
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


def has_published_labels(name: str, labels: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether foreground labels are those of a preset's published data: the same values, by a usual spelling each.

    Args:
        name: of the preset.
        labels: values by name.
    """
    spellings = {values: _SPELLINGS.get(label, label) for label, values in LABEL_NAMES[name].items()}
    stripped = {values: re.sub(r"[\W_]+", " ", label).strip().lower() for label, values in labels.items()}
    return len(labels) == len(spellings) and all(
        values in spellings and re.fullmatch(spellings[values], label) for values, label in stripped.items()
    )


def _class_changes(name: str, given: Any, ignored: Sequence[int]) -> dict[str, Any]:
    """What of a preset exclusive classes replace: with them, label files hold known values only."""
    resolved = resolve_classes(given, LABEL_NAMES[name], f"task {name}")
    background = resolved.pop(BACKGROUND)
    values = [value for members in resolved.values() for value in members]
    return {
        "classes": tuple((label, tuple(members)) for label, members in resolved.items()),
        "target": tuple(sorted(values)),
        "labels": tuple(sorted({0, *values, *background, *ignored})),
    }


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


def _foreground(given: Mapping[str, Any]) -> ForegroundSettings:
    try:
        settings = ForegroundSettings(**given)
    except TypeError as error:
        raise UserError(
            f"foreground: expected the fields {', '.join(asdict(FOREGROUND))}, got {', '.join(map(str, given))}"
        ) from error
    if settings.method != FOREGROUND_METHOD:
        raise UserError(
            f"foreground: expected method {FOREGROUND_METHOD}, this version's, got {settings.method}: positions would "
            "not be those of the training"
        )
    return settings


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


def __getattr__(name: str) -> Any:
    """What has moved to :mod:`scp_models.data.description`."""
    if name not in ("Description", "read_description", "task_of_data_set"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"scp_models.data.tasks.{name} is scp_models.data.description.{name} now; the old name goes in version 0.2",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(import_module("scp_models.data.description"), name)
