"""``scp-models demo``: phantoms, training, evaluation, prediction and a report, in one command and a few minutes.

The budget (subjects, epochs, seeds) is fixed beforehand, in ``design.py``, and what the report says is computed from
its numbers.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import lightning as L
import pandas as pd
import torch
from rich.console import Console

from scp_models.checkpoints import load_model, subject_names
from scp_models.data.module import SegmentationDataModule
from scp_models.data.subjects import Subject
from scp_models.errors import UserError
from scp_models.evaluation.scores import score
from scp_models.files import atomic_path
from scp_models.inference.predictor import Predictor, Segmentation, write_segmentation
from scp_models.phantoms import generate_wmh
from scp_models.report.demo.costs import Cost, measure_costs
from scp_models.report.demo.design import DemoModel, DemoSettings
from scp_models.report.demo.document import make_report, write_tables
from scp_models.report.demo.progress import EpochProgress, LossHistory, Stages
from scp_models.report.demo.results import DemoResults, Training
from scp_models.report.html import write
from scp_models.report.quiet import quiet
from scp_models.training.module import SegmentationModule
from scp_models.training.trainer import quiet_trainer

SLICE_SHAPE = (80, 112)
BATCH_SIZE = 14
LEARNING_RATE = 4e-3
# Of 84 subjects 28 are tested on; of the other 56 a few only watch the loss.
SPLIT = (50, 6, 28)
FEWEST_DEMO_SUBJECTS = 6
SETTINGS_FILE = "settings.json"
FOLDERS = ("phantoms", "checkpoints", "predictions")


def run(
    out: str | os.PathLike[str],
    *,
    subjects: int = 84,
    epochs: int = 4,
    seeds: int = 2,
    deep_seeds: int = 1,
    seed: int = 0,
    console: Console | None = None,
) -> Path:
    """Run the whole demo and print, last, the report's path.

    Below ``out``: ``report.html``; ``results.json``, ``scores.csv`` and ``losses.csv`` with its numbers;
    ``predictions/<model>/seed-<n>/<subject>.nii.gz`` in the phantoms' grid; ``checkpoints/<model>/seed-<n>.ckpt``;
    ``phantoms/`` in the challenge's layout; ``split.json`` and ``settings.json``.

    Args:
        out: a new or empty folder, or that of an earlier demo, whose results are replaced.
        subjects, epochs, seeds, deep_seeds, seed: see :class:`DemoSettings`.
        console: where progress and the path are printed; None: standard output.

    Returns:
        The report's path.

    Raises:
        UserError: numbers too small, or a folder that cannot be written or holds something else.
    """
    settings = DemoSettings(subjects, epochs, seed, seeds, deep_seeds)
    folder = _prepare_folder(Path(out), settings)
    console = console or Console()
    models = settings.models()
    with quiet(), tempfile.TemporaryDirectory() as cache, Stages(5 + seeds * 4 + deep_seeds * 2, console) as stages:
        with stages.stage("Phantoms", subjects) as stage, stage.counting(folder / "phantoms", "wmh.nii.gz"):
            generate_wmh(folder / "phantoms", subjects, seed, size="small", location_decided=True, progress=False)
        data = _data(folder, seed, cache)
        prepared = [*data.train_subjects, *data.val_subjects]
        with stages.stage("Preprocessing", len(prepared)) as stage:
            for subject in prepared:
                data.cache.prepare(subject)
                stage.advance(subject.name)
        trainings = [_train(folder, settings, model, s, cache, stages) for model in models for s in model.seeds]
        scores, shown = _evaluate(folder, trainings, data.test_subjects, stages)
        with stages.stage("Costs", 16) as stage:
            costs = _costs(models, trainings, data, stage.advance)
        losses = pd.concat([t.losses.assign(model=t.model.name, seed=t.seed) for t in trainings], ignore_index=True)
        with stages.stage("Report", 1):
            results = DemoResults(settings, data, scores, losses, costs, shown, stages.seconds, trainings)
            write_tables(folder, results)
            path = write(make_report(results), folder / "report.html")
    console.print(str(path), soft_wrap=True, highlight=False, markup=False)
    return path


def _prepare_folder(folder: Path, settings: DemoSettings) -> Path:
    """Check the settings and the folder before any work, and clear what an earlier demo left."""
    for name, least in (
        ("subjects", FEWEST_DEMO_SUBJECTS),
        ("epochs", 1),
        ("seeds", 1),
        ("deep_seeds", 1),
        ("seed", 0),
    ):
        if getattr(settings, name) < least:
            raise UserError(f"{name}: expected at least {least}, got {getattr(settings, name)}")
    try:
        holds_other_files = folder.exists() and any(folder.iterdir()) and not (folder / SETTINGS_FILE).is_file()
        if holds_other_files:
            raise UserError(f"{folder}: expected a new or empty folder or an earlier demo's, it holds other files")
        for name in FOLDERS:
            if (folder / name).exists():
                shutil.rmtree(folder / name)
        for name in ("report.html", "results.json", "scores.csv", "losses.csv", "split.json"):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: expected a folder to write to ({error.strerror or error})") from error
    with atomic_path(folder / SETTINGS_FILE) as path:
        path.write_text(json.dumps(asdict(settings), indent=2) + "\n")
    return folder


def _data(folder: Path, seed: int, cache: str) -> SegmentationDataModule:
    """The phantoms, divided; the division is written down and read again for every training."""
    split_file = folder / "split.json"
    module = SegmentationDataModule(
        str(folder / "phantoms"),
        "wmh",
        roi_size=SLICE_SHAPE,
        batch_size=BATCH_SIZE,
        split=SPLIT,
        split_file=str(split_file) if split_file.is_file() else None,
        seed=seed,
        cache_dir=cache,
    )
    module.setup()
    if not split_file.is_file():
        with atomic_path(split_file) as path:
            path.write_text(json.dumps(subject_names(module.subjects), indent=2) + "\n")
    return module


def _train(folder: Path, settings: DemoSettings, model: DemoModel, seed: int, cache: str, stages: Stages) -> Training:
    """One training; its seed fixes the initial weights and the order of the slices."""
    L.seed_everything(seed, verbose=False)
    module = SegmentationModule(
        model.variant,
        "wmh",
        SLICE_SHAPE,
        capacity=model.capacity,
        levels=model.levels,
        constant_position=model.constant_position,
        learning_rate=LEARNING_RATE,
    )
    data = _data(folder, seed, cache)
    steps = settings.epochs * len(data.train_dataloader())
    history = LossHistory()
    with stages.stage(f"{model.name}, seed {seed}", steps) as stage:
        trainer = quiet_trainer(
            "cuda" if torch.cuda.is_available() else "cpu",
            max_epochs=settings.epochs,
            callbacks=[EpochProgress(stage), history],
            default_root_dir=folder,
        )
        trainer.fit(module, data)
    checkpoint = folder / "checkpoints" / model.slug / f"seed-{seed}.ckpt"
    with atomic_path(checkpoint) as path:
        trainer.save_checkpoint(path)
    return Training(model, seed, checkpoint, pd.DataFrame(history.rows))


def _evaluate(
    folder: Path, trainings: Sequence[Training], subjects: Sequence[Subject], stages: Stages
) -> tuple[pd.DataFrame, dict[str, dict[str, Segmentation]]]:
    """Segment, score and write every test subject with every training's checkpoint.

    Returns:
        The scores, one row per training and subject; and the segmentations of each model's first seed, by model's and
        subject's name.
    """
    rows = []
    shown: dict[str, dict[str, Segmentation]] = {}
    with stages.stage("Evaluation and prediction", len(trainings) * len(subjects)) as stage:
        for training in trainings:
            model = training.model
            predictor = Predictor(load_model(training.checkpoint, "wmh"))
            for subject in subjects:
                segmentation = predictor.segment(subject)
                write_segmentation(segmentation, folder / "predictions" / model.slug / f"seed-{training.seed}")
                scores = score(subject, segmentation.mask(), segmentation.grid, predictor.reader)
                rows.append({"model": model.name, "seed": training.seed, **scores})
                if training.seed == model.seeds[0]:
                    shown.setdefault(model.name, {})[subject.name] = segmentation
                stage.advance(model.name)
    return pd.DataFrame(rows), shown


def _costs(
    models: Sequence[DemoModel], trainings: Sequence[Training], data: SegmentationDataModule, advance
) -> dict[str, Cost]:
    """Of each model, measured on its first training's network and a training batch."""
    first = {t.model.name: t.checkpoint for t in reversed(trainings)}
    batch = next(iter(data.train_dataloader()))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    networks = [load_model(first[model.name]).network for model in models]
    image = batch["image"].to(device).contiguous(memory_format=torch.channels_last)
    measured = measure_costs(networks, image, batch["label"].to(device), advance=advance)
    return {model.name: cost for model, cost in zip(models, measured, strict=True)}
