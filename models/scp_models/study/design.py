"""What a study is made of: data sets, networks, recipes, and the runs and comparisons that follow from them.

Everything here is plain data: a run's settings are written into its ``run.json``, and a finished run is kept only where
they are the same.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from scp_models.networks.segmentation import PRESETS
from scp_models.study.threshold import THRESHOLD_GRID


@dataclass(frozen=True)
class Phantoms:
    """Synthetic subjects of a data set."""

    kind: str
    """``"wmh"`` or ``"lits"``."""
    subjects: int
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of :func:`scp_models.phantoms.generate_wmh` or ``generate_lits``."""

    @property
    def slug(self) -> str:
        """Of their folder, which data sets of the same phantoms share."""
        return folder_name(f"{self.kind} {self.subjects} seed {self.seed}")


@dataclass(frozen=True)
class StudyData:
    """Subjects, how they are read, and how they are divided."""

    name: str
    """As printed; its slug names its folders."""
    description: str
    """One sentence: what is in it."""
    condition: str
    """When it is like this: the end of a sentence that begins with "if"."""
    task: str
    roi_size: tuple[int, int]
    phantoms: Phantoms | None = None
    """None: files, whose folder is told when the study is run, and is none of its settings."""
    task_options: Mapping[str, Any] = field(default_factory=dict)
    """Of :func:`scp_models.data.tasks.get_task`, without the frame, which is the network's."""
    split: tuple[float, float, float] | None = None
    """Subjects for training, validation and test; None: the task's."""
    training_subjects: int | None = None
    """So many of the training part, drawn at random; None: all of them."""
    patch: tuple[int, int] | None = None
    """Height and width of what is trained on, cut from slices at random places; None: whole slices."""
    folds: int = 0
    """Cross-validation over this many folds, stratified by site, instead of one split; 0: one split."""
    validation: int = 2
    """Subjects of each fold's training part that only choose the threshold."""

    @property
    def slug(self) -> str:
        return folder_name(self.name)


@dataclass(frozen=True)
class Network:
    """One compared network; the arguments are those of :class:`scp_models.training.module.SegmentationModule`."""

    name: str
    variant: str
    frame: str = "slice"
    capacity: int = 128
    levels: int = 2
    hidden_channels: int | None = None
    preset: str = "recommended"
    position: str | None = None
    logit_bias: float = -3.0
    constant_position: bool = False
    learning_rate: float | None = None
    """None: the recipe's."""
    anchored: bool | None = None
    """Whether Φ is zero at the centre; None: the preset's."""
    limit_phi: bool | None = None
    """Whether Φ's rate is limited by its width (:func:`scp_kernels.parameter_groups`); None: one rate for all of it."""
    starts_as_base: bool | None = None
    """Whether an SCP head's w_r begins as the weight that Base has with the same seed, as with
    :func:`scp_models.networks.attach`; None: with a weight of its own.
    """
    change: str | None = None
    """A form that the product does not have: a name of :data:`scp_models.study.forms.FORMS`."""
    only_on: str | None = None
    """Name of the only data set that it is trained on; None: all of them."""

    @property
    def slug(self) -> str:
        return folder_name(self.name)


@dataclass(frozen=True)
class Recipe:
    """How every network of a study is trained: Adam, the rate halved at 50, 70 and 90 %; ``steps`` or ``epochs``."""

    steps: int | None = None
    epochs: int | None = None
    learning_rate: float = 1e-3
    batch_size: int = 14
    weight_decay: float = 1e-6
    sampling: str | None = None
    """One of :data:`scp_models.data.sampling.SAMPLINGS`; None: as many slices of every subject."""


@dataclass(frozen=True)
class NetworkPair:
    """``network`` against ``other`` on one data set, paired by subject."""

    data: str
    network: str
    other: str


@dataclass(frozen=True)
class Axis:
    """Data sets that differ in one thing, the rest being equal."""

    name: str
    """For the command line."""
    title: str
    text: str
    """What is changed from level to level."""
    levels: Mapping[str, str]
    """Title of each level, and the name of its data set; several axes may share one."""


@dataclass(frozen=True)
class Run:
    """One training and its scores."""

    data: StudyData
    network: Network
    recipe: Recipe
    seed: int
    fold: int | None

    @property
    def title(self) -> str:
        fold = "" if self.fold is None else f", fold {self.fold + 1}"
        return f"{self.data.name}: {self.network.name}, seed {self.seed}{fold}"

    @property
    def folder(self) -> str:
        """Below the study's ``runs/``."""
        fold = "" if self.fold is None else f"-fold-{self.fold}"
        return f"{self.data.slug}/{self.network.slug}/seed-{self.seed}{fold}"

    def settings(self) -> dict[str, Any]:
        """All that decides the figures, ready for JSON; the preset as what it means today."""
        return as_json(
            {
                "data": asdict(self.data),
                "network": {**asdict(self.network), "preset_values": asdict(PRESETS[self.network.preset])},
                "recipe": asdict(self.recipe),
                "thresholds": THRESHOLD_GRID,
                "seed": self.seed,
                "fold": self.fold,
            }
        )


@dataclass(frozen=True)
class Study:
    """All runs of a question: every network on every data set, with every seed and fold."""

    name: str
    title: str
    data: tuple[StudyData, ...]
    networks: tuple[Network, ...]
    recipe: Recipe
    seeds: tuple[int, ...]
    comparisons: tuple[NetworkPair, ...]
    """Decided before anything is run: intervals are widened for their number."""
    notes: tuple[str, ...] = ()
    """Sentences for its page: what was tried before, what the figures do not say."""
    axes: tuple[Axis, ...] = ()
    """How its page orders the data sets; without them, one after the other."""

    def runs(self) -> Iterator[Run]:
        """Data set by data set, and seed by seed in each: what is finished first can be compared."""
        for data in self.data:
            for seed in self.seeds:
                for fold in range(data.folds) if data.folds else (None,):
                    for network in self.networks:
                        if network.only_on in (None, data.name):
                            yield Run(data, network, self.recipe, seed, fold)

    def as_json(self) -> dict[str, Any]:
        return as_json(asdict(self))


def folder_name(name: str) -> str:
    """A folder's name: small letters, digits, hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


WORDS = frozenset({"title", "description", "condition", "notes", "axes"})
"""Settings that only say how results are printed: with others a run is still the same."""


def without_words(value: Any) -> Any:
    """Settings, as JSON has them, that decide figures; those that are None are not given, as if they were not known."""
    if isinstance(value, Mapping):
        return {key: without_words(member) for key, member in value.items() if key not in WORDS and member is not None}
    return [without_words(member) for member in value] if isinstance(value, list) else value


def as_json(value: Any) -> Any:
    """Tuples as lists, as JSON has them: what was written equals what is read."""
    if isinstance(value, Mapping):
        return {str(key): as_json(member) for key, member in value.items()}
    return [as_json(member) for member in value] if isinstance(value, (list, tuple)) else value
