"""One run: train a network, choose its threshold on the validation subjects, score the test subjects."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from scp_kernels import FusedSCP
from scp_models.checkpoints import TrainedModel
from scp_models.data.find import find_subjects
from scp_models.data.names import match_names
from scp_models.data.sampling import make_sampler
from scp_models.data.slices import SliceCache, SliceDataset
from scp_models.data.subjects import Subject
from scp_models.errors import Failures
from scp_models.evaluation.scores import SubjectScores, mean_over_classes, score, score_classes
from scp_models.files import atomic_path
from scp_models.inference.predictor import Predictor
from scp_models.networks.complexity import count_parameters, nominal_macs
from scp_models.study.design import Run
from scp_models.study.forms import FORMS
from scp_models.study.job import CHECKPOINT, RESULT, RunJob, model_options, new_model
from scp_models.study.machine import describe_versions, running_machine
from scp_models.study.patches import PatchedSlices
from scp_models.study.segment import segment
from scp_models.study.threshold import choose_threshold
from scp_models.training.module import SegmentationModule
from scp_models.training.trainer import quiet_trainer

RUN_METRICS = ("dice", "lesion_dice", "lesion_f1", "lesion_ppv", "lesion_tpr", "challenge_f1")
"""What a run keeps of each subject's scores."""


def build_module(run: Run) -> SegmentationModule:
    """The run's network with new weights, of the seed that is set, and its optimizer's settings."""
    recipe, network = run.recipe, run.network
    rate = recipe.learning_rate if network.learning_rate is None else network.learning_rate
    module = SegmentationModule(
        **model_options(run.data, network),
        learning_rate=rate,
        limit_phi=bool(network.limit_phi),
        weight_decay=recipe.weight_decay,
    )
    if network.change is not None:
        FORMS[network.change](module.network)
    if network.starts_as_base:
        _start_as_base(module, run)
    return module


def _start_as_base(module: SegmentationModule, run: Run) -> None:
    plain = replace(run.network, variant="base", frame="slice", constant_position=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        base = new_model(run.data, replace(plain, change=None)).network
    head = module.network.head
    assert isinstance(head, FusedSCP) and isinstance(head.residual, nn.Linear) and isinstance(base.head, nn.Conv2d)
    with torch.no_grad():
        head.residual.weight.copy_(base.head.weight.flatten(1))


def execute_run(job: RunJob, advance: Callable[[float], object] = lambda share: None) -> dict[str, Any]:
    """Train, score, and write ``run.json``, last.

    Args:
        job: what and where.
        advance: told the share of the run that is done, now and then.

    Returns:
        What ``run.json`` holds.

    Raises:
        UserError: files that cannot be read or written.
    """
    start = perf_counter()
    run = job.run
    shutil.rmtree(job.folder, ignore_errors=True)  # of a run that was stopped half-way
    torch.set_num_threads(1)
    L.seed_everything(run.seed, verbose=False)
    module = build_module(run)
    cache = SliceCache(job.cache, module.task)
    subjects = _divided(job, module)
    losses = _fit(job, module, cache, subjects["training"], lambda share: advance(0.9 * share))
    trained = perf_counter()
    predictor = Predictor(
        TrainedModel(module.network, module.task, 0.5, module.memory_format),
        batch_size=run.recipe.batch_size,
        device=job.device,
    )
    threshold = None
    if not module.task.classes:
        validation = [segment(predictor, cache, subject) for subject in subjects["validation"]]
        threshold = choose_threshold([(p, v.label) for p, v in validation if v.label is not None])
    rows = []
    for k, subject in enumerate(subjects["test"]):
        rows.append(_score(predictor, cache, subject, threshold))
        advance(0.9 + 0.1 * (k + 1) / len(subjects["test"]))
    result = {
        "settings": run.settings(),
        "threshold": threshold,
        "subjects": [row["subject"] for row in rows],
        "sites": [row["site"] for row in rows],
        "scores": {metric: [round(float(row[metric]), 5) for row in rows] for metric in RUN_METRICS},
        "losses": [round(loss, 5) for loss in losses],
        "parameters": count_parameters(module.network),
        "macs": nominal_macs(module.network, *run.data.roi_size),
        "seconds": {"training": round(trained - start, 2), "scoring": round(perf_counter() - trained, 2)},
        "machine": running_machine(),
        "versions": describe_versions(),
    }
    with atomic_path(job.folder / RESULT) as path:
        path.write_text(json.dumps(result, indent=1) + "\n")
    return result


def _score(predictor: Predictor, cache: SliceCache, subject: Subject, threshold: float | None) -> SubjectScores:
    """Of a subject's mask; of exclusive classes, of which the most probable counts, the means over them."""
    probabilities, volume = segment(predictor, cache, subject)
    if threshold is not None:
        return score(subject, volume.grid.restore(probabilities, threshold), volume.grid, predictor.reader)
    classes = volume.grid.restore_classes(probabilities)
    (means,) = mean_over_classes(score_classes(subject, classes, volume.grid, predictor.reader))
    return means


class _Share(L.Callback):
    """Says which share of the steps is done, and keeps the mean loss of each tenth of them."""

    def __init__(self, steps: int, advance: Callable[[float], object]) -> None:
        self.steps, self.advance = steps, advance
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: object) -> None:
        self.losses.append(float(outputs["loss"]))
        if len(self.losses) % 10 == 0:
            self.advance(len(self.losses) / self.steps)


def _fit(
    job: RunJob,
    module: SegmentationModule,
    cache: SliceCache,
    subjects: Sequence[Subject],
    advance: Callable[[float], object],
) -> list[float]:
    """Train in place; the mean loss of each tenth of the training."""
    recipe, seed = job.run.recipe, job.run.seed
    slices, size = SliceDataset(cache, subjects), recipe.batch_size
    dataset: Dataset[dict[str, Tensor]] = slices
    if (patch := job.run.data.patch) is not None:
        # As many pixels per step as with whole slices.
        size *= math.prod(job.run.data.roi_size) // math.prod(patch)
        dataset = PatchedSlices(slices, patch, seed)
    sampler = make_sampler(recipe.sampling, slices, seed, numbered=patch is not None)
    loader = DataLoader(dataset, batch_size=size, sampler=sampler, drop_last=len(sampler) >= size)
    steps = recipe.steps if recipe.steps is not None else (recipe.epochs or 1) * len(loader)
    share = _Share(steps, advance)
    trainer = quiet_trainer(job.device, max_steps=steps, callbacks=[share], default_root_dir=job.folder)
    trainer.fit(module, loader)
    with atomic_path(job.folder / CHECKPOINT) as path:
        trainer.save_checkpoint(path, weights_only=True)
    return [float(part.mean()) for part in np.array_split(np.array(share.losses), min(10, len(share.losses)))]


def _divided(job: RunJob, module: SegmentationModule) -> dict[str, list[Subject]]:
    # Who is incomplete was said when the data were prepared, and is in no part.
    by_name = {subject.name: subject for subject in find_subjects(job.root, module.task, failures=Failures())}
    matches = match_names([name for names in job.split.values() for name in names], by_name, str(job.root))
    return {part: [by_name[matches[name]] for name in names] for part, names in job.split.items()}
