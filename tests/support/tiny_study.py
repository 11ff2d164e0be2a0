"""Studies of a few seconds; ``python -m tests.support.tiny_study OUT`` runs one in a process that can be killed."""

import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from scp_models.study.axes import AXES_CONTROL, PLAIN_HEAD, REFERENCE, TESTED_HEAD, axes_study
from scp_models.study.design import Axis, Network, NetworkPair, Phantoms, Recipe, Study, StudyData
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


def tiny_axes(steps: int = 4) -> Study:
    """Of the study of axes the reference, and left and right on patches, in miniature; another axis is never run."""
    whole = axes_study(2)
    kept, size = (TESTED_HEAD, PLAIN_HEAD, AXES_CONTROL), (24, 32)
    axes = (
        Axis("place", "Place", "Nothing.", {"here": REFERENCE.name}),
        Axis("sides", "Sides", "Patches.", {"there": "Left and right, patches"}),
        Axis("left", "What is left", "Both.", {"here": REFERENCE.name, "nowhere": "Place decides nothing"}),
    )
    names = {name for axis in axes for name in axis.levels.values()}
    data = []
    for d in whole.data:
        if d.name in names:
            assert d.phantoms is not None
            phantoms = replace(d.phantoms, subjects=6, options={**d.phantoms.options, "size": (*size, 4)})
            patch = None if d.patch is None else (12, 16)
            data.append(replace(d, phantoms=phantoms, roi_size=size, patch=patch, split=(3, 1, 2)))
    networks = [replace(n, capacity=32) for n in whole.networks if n.name in kept and n.only_on in names]
    comparisons = [c for c in whole.comparisons if {c.network, c.other} <= set(kept) and c.data in names]
    return replace(
        whole, data=tuple(data), networks=tuple(networks), comparisons=tuple(comparisons), axes=axes,
        recipe=replace(whole.recipe, steps=steps, batch_size=4),
    )  # fmt: skip


if __name__ == "__main__":
    run_study(tiny_study(), Path(sys.argv[1]), jobs=2, display=Display("tiny", Console(width=200)))
