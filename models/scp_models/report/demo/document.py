"""From the demo's results to its tables and its page."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scp_kernels import FusedSCP, available_backends
from scp_models.checkpoints import load_model
from scp_models.data.preprocessing import SourceGrid, VolumeReader
from scp_models.data.tasks import TARGET_LABEL
from scp_models.evaluation.metrics import summarise
from scp_models.files import atomic_path
from scp_models.report.demo.design import CONTROL, SCP, TESTS
from scp_models.report.demo.pictures import (
    SELECTION,
    loss_picture,
    score_pictures,
    slices_picture,
    typical_subjects,
    weight_pictures,
)
from scp_models.report.demo.results import DemoResults
from scp_models.report.html import TESTED_COLUMNS, Comparison, ModelResult, Picture, Report, compare

NOTES = (
    "These are phantoms, not patients. Their lesions and look-alikes have the same shape and contrast, and only the "
    "place decides which is which: the condition under which a head that knows its position must help a backbone that "
    "cannot see where it is. Nothing here says how often real lesions meet that condition.",
    "The set-up (this phantom, two levels, few epochs) was chosen in an earlier study, after others in which no "
    "difference was found; the seeds and subjects here are this run's own.",
    "The paper's claim is another one: SCP with capacity 256 scores higher than Base with capacity 512, on five levels "
    "and real data. This demo does not test it.",
)


def comparisons(models: Sequence[ModelResult]) -> list[Comparison]:
    """The tests that were decided on beforehand."""
    by_name = {model.name: model for model in models}
    return [
        compare(by_name[first], by_name[other], metric)
        for first, others in TESTS
        for other in others
        for metric in TESTED_COLUMNS
    ]


def make_report(results: DemoResults) -> Report:
    """The page's content."""
    models = results.models()
    tests = comparisons(models)
    return Report(
        models=models,
        comparisons=tests,
        facts=facts(results),
        pictures={
            "scores": score_pictures(models, tests, SCP),
            "slices": _slices(results, models),
            "weights": _weights(results),
            "losses": [loss_picture(results.losses)],
        },
        selection=SELECTION,
        control=CONTROL,
        notes=NOTES,
        created=datetime.now().strftime("%Y-%m-%d %H:%M"),
    )


def facts(results: DemoResults) -> dict[str, str]:
    """What was done, on what, and how long it took."""
    s, data = results.settings, results.data
    parts = [len(data.subjects[part]) for part in ("training", "validation", "test")]
    packages = ("torch", "scp_kernels", "lightning", "monai", "numpy")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    trainings = sum(seconds for title, seconds in results.seconds.items() if ", seed " in title)
    usable = ", ".join(name for name, status in available_backends().items() if status.usable)
    return {
        "Subjects": f"{s.subjects} phantoms: {parts[0]} to train on, {parts[1]} to validate, {parts[2]} to test",
        "Slices": f"{data.task.roi_size[0]} × {data.task.roi_size[1]} pixels, T1 and FLAIR",
        "Training": f"{s.epochs} epochs, batches of {data.batch_size} slices, Adam, the same for every model",
        "Seeds": f"phantoms and split {s.seed}; trainings from {s.seed} on",
        "Machine": f"{platform.machine()}, {device}, {torch.get_num_threads()} threads",
        "Versions": ", ".join(f"{name} {_version(name)}" for name in packages),
        "Backends of the head that could run": usable,
        "Duration": f"{sum(results.seconds.values()):.0f} s in all, {trainings:.0f} s of it training",
    }


def write_tables(folder: Path, results: DemoResults) -> None:
    """``scores.csv``, ``losses.csv`` and ``results.json``: the numbers of the page, and those behind them."""
    for name, table in {"scores.csv": results.scores, "losses.csv": results.losses}.items():
        with atomic_path(folder / name) as path:
            table.to_csv(path, index=False)
    models = results.models()
    content = {
        "settings": asdict(results.settings),
        "facts": facts(results),
        "seconds": dict(results.seconds),
        "models": {
            model.name: {
                "description": model.description,
                **asdict(results.costs[model.name]),
                "scores": summarise(model.scores.to_dict("records")),
            }
            for model in models
        },
        "comparisons": [_comparison(c) for c in comparisons(models)],
    }
    with atomic_path(folder / "results.json") as path:
        path.write_text(json.dumps(content, indent=2) + "\n")


def _comparison(comparison: Comparison) -> dict[str, Any]:
    fields = asdict(comparison)
    fields["verdict"] = comparison.verdict
    return fields


def _version(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:
        return "not installed"


def _slices(results: DemoResults, models: Sequence[ModelResult]) -> list[Picture]:
    """Typical test subjects on the network's grid, whose axes are left-right and back-front."""
    reader = VolumeReader(results.data.task)
    subjects = {subject.name: subject for subject in results.data.test_subjects}
    pictures = []
    for title, name in typical_subjects(models).items():
        volume = reader.read(subjects[name])
        assert volume.label is not None
        predictions = {
            model: (segmentations[name].probabilities > segmentations[name].threshold).astype(np.uint8)
            for model, segmentations in results.shown.items()
        }
        dice = {m.name: float(next(iter(m.seed_scores.values())).loc[name, "dice"]) for m in models}
        pictures.append(
            slices_picture(title, name, volume.image[-1], volume.label, predictions, dice, _in_plane(volume.grid))
        )
    return pictures


def _weights(results: DemoResults) -> list[Picture]:
    """W of SCP's first training beside the training lesions' frequency."""
    training = next(t for t in results.trainings if t.model.name == SCP)
    head = load_model(training.checkpoint).network.head
    assert isinstance(head, FusedSCP) and head.residual is not None
    with torch.no_grad():
        field = head.weight_field(results.data.task.roi_size) - head.residual.weight[:, :, None, None]
    labels = [results.data.cache.open(subject)[1] for subject in results.data.train_subjects]
    counts: NDArray[np.int64] = sum((np.asarray(label) == TARGET_LABEL).sum(0) for label in labels)
    frequency = counts / sum(len(label) for label in labels)
    grid = VolumeReader(results.data.task).grid(results.data.train_subjects[0])
    return weight_pictures(field.numpy(), frequency, _in_plane(grid), len(labels))


def _in_plane(grid: SourceGrid) -> tuple[float, float]:
    """Pixel size in mm along the first two canonical axes."""
    spacing = [0.0, 0.0, 0.0]
    for axis, (canonical, _) in enumerate(grid.to_canonical):
        spacing[int(canonical)] = grid.spacing[axis]
    return spacing[0], spacing[1]
