"""A study of a few seconds; ``python -m tests.support.tiny_study OUT`` runs it in a process that can be killed."""

import sys
from pathlib import Path

from rich.console import Console

from scp_models.study.design import Network, NetworkPair, Phantoms, Recipe, Study, StudyData
from scp_models.study.progress import Display
from scp_models.study.runner import run_study


def tiny_study(seeds: int = 2, steps: int = 12) -> Study:
    """Base and SCP in two frames, on six small phantoms."""
    data = StudyData(
        "Small phantoms",
        "Six of them.",
        "they are small",
        "wmh",
        (24, 32),
        Phantoms("wmh", 6, 5, {"size": (24, 32, 4), "location_decided": True}),
        split=(3, 1, 2),
    )
    networks = (
        Network("Base", "base", capacity=32),
        Network("SCP, slice", "scp", capacity=32),
        Network("SCP, foreground", "scp", "foreground", capacity=32),
    )
    comparisons = (
        NetworkPair(data.name, "SCP, slice", "Base"),
        NetworkPair(data.name, "SCP, foreground", "SCP, slice"),
    )
    recipe = Recipe(steps=steps, learning_rate=4e-3, batch_size=6)
    return Study("tiny", "A tiny study", (data,), networks, recipe, tuple(range(seeds)), comparisons)


if __name__ == "__main__":
    run_study(tiny_study(), Path(sys.argv[1]), jobs=2, display=Display("tiny", Console(width=200)))
