"""What the report shows of trained networks: a case's segmentations, and the learned weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scp_kernels import FusedSCP
from scp_models.checkpoints import TrainedModel, read_checkpoint
from scp_models.data.slices import SliceCache
from scp_models.data.tasks import get_task
from scp_models.inference.predictor import Predictor
from scp_models.report.demo.pictures import fullest_slice
from scp_models.report.figures import OutlinedSlice
from scp_models.study.design import Run, Study, StudyData
from scp_models.study.job import CHECKPOINT, new_model
from scp_models.study.prepared import Prepared
from scp_models.study.record import Record
from scp_models.study.reproduce.design import TESTED
from scp_models.study.runner import read_result
from scp_models.study.segment import segment

CASE = ("Base 256", TESTED)


@dataclass(frozen=True)
class Case:
    """A test subject's fullest slice: the image, the reference, and the two networks' outlines (Fig. 1)."""

    subject: str
    panels: Sequence[OutlinedSlice]
    spacing: tuple[float, float]


def first_run(
    study: Study, data: StudyData, network: str, subject: str | None = None, record: Record | None = None
) -> Run:
    """The run of a network with the first seed; in cross-validation that which tests ``subject``."""
    runs = [r for r in study.runs() if r.data == data and r.network.name == network and r.seed == study.seeds[0]]
    if subject is not None and record is not None:
        testing = {r["fold"] for r in record.runs(data.name, network) if subject in r["subjects"]}
        runs = [run for run in runs if run.fold in testing]
    return runs[0]


def load_network(folder: Path, run: Run) -> TrainedModel:
    """The network that a run trained, on the CPU."""
    model = new_model(run.data, run.network)
    weights = read_checkpoint(folder / "runs" / run.folder / CHECKPOINT)["state_dict"]
    model.network.load_state_dict({name.removeprefix("network."): tensor for name, tensor in weights.items()})
    model.network.eval()
    result = read_result(folder, run)
    assert result is not None
    return replace(model, threshold=result["threshold"])


def typical_subject(record: Record, data: str) -> str:
    """The median of Dice, averaged over the two networks that are shown."""
    scores: dict[str, list[float]] = {}
    for network in CASE:
        for run in record.runs(data, network):
            for subject, dice in zip(run["subjects"], run["scores"]["dice"], strict=True):
                scores.setdefault(subject, []).append(dice)
    ranked = sorted(scores, key=lambda subject: (np.mean(scores[subject]), subject))
    return ranked[len(ranked) // 2]


def case(folder: Path, study: Study, data: StudyData, prepared: Prepared, record: Record) -> Case:
    """The typical subject, as the two networks of the first seed segment it."""
    name = typical_subject(record, data.name)
    panels: list[OutlinedSlice] = []
    spacing = (1.0, 1.0)
    for network in CASE:
        run = first_run(study, data, network, name, record)
        model = load_network(folder, run)
        cache = SliceCache(prepared.cache, model.task)
        (subject,) = (s for s in prepared.find_subjects(model.task) if s.name == name)
        probabilities, volume = segment(Predictor(model, device="cpu"), cache, subject)
        assert volume.label is not None
        z = fullest_slice(volume.label)
        if not panels:
            x, y = (float(size) for size in np.linalg.norm(volume.affine[:3, :2], axis=0))
            spacing = (x, y)
            image = volume.image[-1, :, :, z]
            panels += [OutlinedSlice("image", image), OutlinedSlice("reference", image, volume.label[..., z])]
        mask = (probabilities[..., z] > model.threshold).astype(np.uint8)
        result = read_result(folder, run)
        assert result is not None
        dice = result["scores"]["dice"][result["subjects"].index(name)]
        panels.append(OutlinedSlice(f"{network}: Dice {dice:.2f}", panels[0].image, volume.label[..., z], mask))
    return Case(name, panels, spacing)


def learned_weights(folder: Path, study: Study, data: StudyData) -> NDArray[np.float32]:
    """W without w_r of SCP 256 after the first seed's training, ``[1, C, X, Y]`` (Fig. 7)."""
    head = load_network(folder, first_run(study, data, TESTED)).network.head
    assert isinstance(head, FusedSCP) and head.residual is not None
    with torch.no_grad():
        field = head.weight_field(data.roi_size) - head.residual.weight[:, :, None, None]
    return field.numpy()


def cohort_density_cache(data: StudyData, prepared: Prepared) -> tuple[SliceCache, list]:
    """The slices of everybody, with their places in the box of the head or body (Fig. 2)."""
    task = get_task(data.task, data.roi_size, {**data.task_options, "frame": "foreground"})
    return SliceCache(prepared.cache, task), prepared.find_subjects(task)
