"""The paper's study as runs: the networks of Tables 1 and 2, the ablations, and what two budgets make of them."""

from dataclasses import dataclass, replace

from scp_models.study.design import Network, NetworkPair, Phantoms, Recipe, Study, StudyData
from scp_models.study.reproduce.paper import PRINTED_CAPACITIES, PRINTED_VARIANTS

REPRODUCED_TASKS = ("wmh", "lits")
TASK_TITLES = {"wmh": "WMH", "lits": "LiTS"}
TESTED = "SCP 256"
AGAINST = ("Base 256", "Base 512", "Base F 512", "Base B 512")
"""Whom Fig. 5 tests it against."""
REPRODUCE_SEED = 61
_PHANTOM_SEEDS = {"wmh": 2111, "lits": 2112}
_DESCRIPTIONS = {
    "wmh": "Lesions around the ventricles, with look-alikes elsewhere, as in the paper's Fig. 2.",
    "lits": "Tumours of the liver, with look-alikes in and around other organs.",
}
_CONDITIONS = {"wmh": "lesions lie around the ventricles", "lits": "tumours lie in the liver"}


@dataclass(frozen=True)
class StudyBudget:
    """How much of the printed recipe is run."""

    name: str
    preset: str
    scale: int
    """Nc is the printed one over this."""
    recipe: Recipe
    roi_size: dict[str, tuple[int, int]]
    phantoms: dict[str, tuple[int, dict[str, object]]]
    """Subjects and options of the generator, where there are no real data."""
    split: tuple[int, int, int] | None
    remark: str
    """For the head of the tables."""


BUDGETS = {
    "small": StudyBudget(
        "small",
        "recommended",
        4,
        Recipe(steps=240, learning_rate=2e-3),
        {"wmh": (80, 112), "lits": (96, 96)},
        {"wmh": (60, {"size": (80, 112, 16)}), "lits": (60, {"size": (96, 96, 20)})},
        (42, 6, 12),
        "Small budget: a quarter of the printed Nc, half the resolution or less, 240 steps of 14 slices (subjects "
        "drawn evenly) with Adam 2e-3 instead of 90 epochs (each slice once) with 1e-3, and the recommended form of "
        "the head and of the layer before it. The figures in brackets are the paper's, of the full networks on the "
        "real data: beside them, not to be compared with them.",
    ),
    "paper": StudyBudget(
        "paper",
        "paper",
        1,
        Recipe(epochs=90, learning_rate=1e-3, sampling="slices"),
        {"wmh": (160, 224), "lits": (256, 256)},
        {"wmh": (60, {}), "lits": (131, {})},
        None,
        "The printed recipe: 90 epochs, Adam 1e-3, weight decay 1e-6, batches of 14 slices, each slice once per "
        "epoch, the printed form of the head. The paper's figures are in brackets.",
    ),
}


def reproduction(
    tasks: tuple[str, ...], budget: StudyBudget, seeds: int, folds: int, real: frozenset[str] = frozenset()
) -> Study:
    """All runs.

    Args:
        tasks: of :data:`REPRODUCED_TASKS`.
        budget: how much.
        seeds: trainings of each network.
        folds: of the cross-validation on real data; 0 or 1: one split.
        real: the tasks that have real data.
    """
    data = tuple(_data_set(task, budget, folds if task in real else 0, task in real) for task in tasks)
    networks = [
        Network(f"{title} {capacity}", variant, capacity=capacity // budget.scale, levels=5, preset=budget.preset)
        for capacity in PRINTED_CAPACITIES
        for title, variant in PRINTED_VARIANTS.items()
    ]
    first = data[0].name
    networks += [replace(network, only_on=first) for network in ablations(budget)]
    comparisons = [NetworkPair(d.name, TESTED, other) for d in data for other in AGAINST]
    comparisons += [NetworkPair(first, name, reference(budget)) for name in ablation_names(budget)]
    return Study(
        f"reproduce-{budget.name}-{'-'.join(tasks)}",
        f"The paper's study, {budget.name} budget",
        data,
        tuple(networks),
        budget.recipe,
        tuple(range(REPRODUCE_SEED, REPRODUCE_SEED + seeds)),
        tuple(comparisons),
    )


def reference(budget: StudyBudget) -> str:
    """The network that ablations change in one thing."""
    return TESTED if budget.preset == "recommended" else f"{TESTED}, recommended"


def ablation_names(budget: StudyBudget) -> list[str]:
    return [network.name for network in ablations(budget) if network.name != reference(budget)]


def ablations(budget: StudyBudget) -> list[Network]:
    """SCP 256 in its recommended form, changed in one thing at a time."""
    nc = 256 // budget.scale
    plain = Network(TESTED, "scp", capacity=nc, levels=5)
    changed = [
        replace(plain, name="P and Q (eq. 10)", change="scale and shift"),
        replace(plain, name="pixel-wise bias (eq. 11)", change="pixelwise bias"),
        replace(plain, name="positions in pixels", position="pixels"),
        replace(plain, name="Φ begins at random, not at 0", change="default initialisation"),
        replace(plain, name="Φ not zero at the centre", anchored=False),
        replace(plain, name="Φ scaled for Adam", change="scaled"),
        replace(plain, name="last ReLU", change="last ReLU"),
        replace(plain, name="no logit bias", change="no logit bias"),
        replace(plain, name=f"h {nc // 8}, a quarter", hidden_channels=nc // 8),
        replace(plain, name=f"h {2 * nc}, four times", hidden_channels=2 * nc),
        replace(plain, name="constant position", constant_position=True),
        replace(plain, name="frame image", frame="image"),
        replace(plain, name="frame foreground", frame="foreground"),
    ]
    return changed if reference(budget) == TESTED else [replace(plain, name=reference(budget)), *changed]


def _data_set(task: str, budget: StudyBudget, folds: int, real: bool) -> StudyData:
    if real:
        # In-plane size of a whole head or body at the printed resolution, at the budget's number of pixels.
        spacing = {"spacing": [160 / budget.roi_size[task][0]]} if task == "wmh" and budget.scale > 1 else {}
        return StudyData(
            TASK_TITLES[task], "Real data.", _CONDITIONS[task], task, budget.roi_size[task], task_options=spacing,
            folds=folds if folds > 1 else 0,
        )  # fmt: skip
    subjects, options = budget.phantoms[task]
    phantoms = Phantoms(task, subjects, _PHANTOM_SEEDS[task], options)
    description = f"Phantoms in the layout of {TASK_TITLES[task]}, no patients. {_DESCRIPTIONS[task]}"
    return StudyData(
        TASK_TITLES[task], description, _CONDITIONS[task], task, budget.roi_size[task], phantoms, split=budget.split
    )
