"""Scores as torchmetrics: what evaluation says of the same subjects, in one process and in two."""

import math

import pytest
import torch
from torchmetrics import MetricCollection

from scp_models.evaluation import (
    ChallengeF1,
    HausdorffDistance95,
    LesionDice,
    LesionF1,
    LesionPPV,
    LesionTPR,
    VolumeDifference,
    VoxelDice,
    challenge_metrics,
    paper_metrics,
)
from scp_models.evaluation.metrics import subject_scores, summarise
from tests.support import metric_processes
from tests.support.metric_processes import SPACING, collections, subjects

CLASSES = {
    VoxelDice: "dice",
    LesionDice: "lesion_dice",
    LesionTPR: "lesion_tpr",
    LesionPPV: "lesion_ppv",
    ChallengeF1: "challenge_f1",
    VolumeDifference: "avd",
    HausdorffDistance95: "hd95_mm",
}


def expected(preds, target, **options):
    rows = [subject_scores(p.numpy(), t.numpy(), SPACING, **options) for p, t in zip(preds, target, strict=True)]
    return summarise(rows)


@pytest.mark.parametrize("metric", CLASSES, ids=lambda cls: cls.__name__)
def test_each_is_the_mean_that_evaluation_writes(metric):
    preds, target = subjects()
    summary = expected(preds, target)
    score = metric(ignore_label=2)
    score.update(preds[:2], target[:2], spacing=SPACING)
    score.update(preds[2:, None], target[2:, None], torch.tensor([SPACING] * 3))
    assert float(score.compute()) == pytest.approx(summary[CLASSES[metric]]["mean"], rel=1e-6)
    score.reset()
    score.update(preds[:1], target[:1], SPACING)
    assert float(score.compute()) == pytest.approx(expected(preds[:1], target[:1])[CLASSES[metric]]["mean"], rel=1e-6)


def test_l_f1_is_the_papers_or_the_subjects_mean():
    preds, target = subjects()
    summary = expected(preds, target)
    for of_means, value in ((True, summary["paper_lesion_f1"]), (False, summary["lesion_f1"]["mean"])):
        score = LesionF1(of_means, ignore_label=2)
        score.update(preds, target)
        assert float(score.compute()) == pytest.approx(value, rel=1e-6)
    assert summary["paper_lesion_f1"] != pytest.approx(summary["lesion_f1"]["mean"], rel=1e-3)


def test_two_processes_say_what_one_does(tmp_path):
    torch.multiprocessing.spawn(metric_processes.work, (str(tmp_path),), nprocs=metric_processes.PROCESSES)
    preds, target = subjects()
    for name, metrics in collections().items():
        metrics.update(preds, target, spacing=SPACING)
        alone = {key: float(value) for key, value in metrics.compute().items()}
        assert len(alone) == 5 and all(math.isfinite(value) for value in alone.values())
        for rank in range(metric_processes.PROCESSES):
            assert torch.load(tmp_path / f"{rank}.pt")[name] == pytest.approx(alone, rel=1e-6)


def test_the_collections_have_the_names_of_evaluation():
    preds, target = subjects()
    summary = expected(preds, target)
    for metrics in collections().values():
        metrics.update(preds, target, spacing=SPACING)
        for name, value in metrics.compute().items():
            mean = summary[name] if name == "paper_lesion_f1" else summary[name]["mean"]
            assert float(value) == pytest.approx(mean, rel=1e-6), name


def test_a_collection_counts_lesions_once(monkeypatch):
    from scp_models.evaluation import torch_metrics

    calls = []
    count_scores = torch_metrics.count_scores
    monkeypatch.setattr(torch_metrics, "count_scores", lambda *args: calls.append(1) or count_scores(*args))
    preds, target = subjects()
    metrics = paper_metrics(ignore_label=2)
    metrics.update(preds, target)
    calls.clear()  # the first update finds out which metrics are alike
    metrics.update(preds, target)
    assert len(calls) == len(preds)


def test_metrics_with_other_settings_are_not_taken_for_alike():
    mask = torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    mask[0, 1, 1, 1] = True
    metrics = MetricCollection({"a": LesionDice(connectivity=26), "b": LesionDice(connectivity=6)})
    metrics.update(mask, mask)  # the same to both
    prediction = mask.clone()
    prediction[0, 2, 2, 2] = True  # one lesion or two
    metrics.update(prediction, mask)
    assert metrics.compute() == {"a": pytest.approx(1.0), "b": pytest.approx((1 + 2 / 3) / 2)}


def test_probabilities_and_logits():
    preds, target = subjects()
    probabilities = torch.where(preds, 0.4, 0.2)
    score = VoxelDice(threshold=0.3, ignore_label=2)
    score.update(probabilities, target)
    assert float(score.compute()) == pytest.approx(expected(preds, target)["dice"]["mean"], rel=1e-6)
    with pytest.raises(ValueError, match="expected probabilities from 0 to 1 or masks"):
        score.update(probabilities - 3, target)


def test_the_ignored_label_is_the_challenges_by_default_there_alone():
    preds, target = subjects()
    with pytest.raises(ValueError, match=r"reference: expected labels among \(0, 1\), got also \[2\]"):
        VoxelDice().update(preds, target)
    challenge_metrics().update(preds, target, spacing=SPACING)


@pytest.mark.parametrize(
    ("preds", "target", "spacing", "message"),
    [
        ((2, 4, 4), (2, 4, 4), None, "preds, target: expected two of one shape"),
        ((2, 2, 4, 4, 4), (2, 2, 4, 4, 4), None, "preds, target"),
        ((2, 4, 4, 4), (1, 4, 4, 4), None, "preds, target"),
        ((2, 4, 4, 4), (2, 4, 4, 4), (1.0, 0.0, 1.0), "spacing: expected three positive sizes"),
        ((2, 4, 4, 4), (2, 4, 4, 4), (1.0, 1.0), "spacing"),
        ((2, 4, 4, 4), (2, 4, 4, 4), None, "spacing: expected voxel sizes in mm for a distance in mm"),
    ],
)
def test_wrong_input_is_named(preds, target, spacing, message):
    with pytest.raises(ValueError, match=message):
        HausdorffDistance95().update(
            torch.ones(preds, dtype=torch.uint8), torch.ones(target, dtype=torch.uint8), spacing
        )


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_no_subjects_have_no_mean():
    assert math.isnan(LesionDice().compute()) and math.isnan(LesionF1().compute())
    empty, lesion = torch.zeros(1, 4, 4, 2, dtype=torch.uint8), torch.ones(1, 4, 4, 2, dtype=torch.uint8)
    score = VolumeDifference()
    score.update(lesion, empty)  # it does not exist
    assert math.isnan(score.compute())
    score.update(lesion, lesion)
    assert float(score.compute()) == 0


def test_the_trainers_dice_of_slices_is_that_of_the_volumes():
    from scp_models.training import SubjectDice

    preds, target = subjects()
    expected_dice = VoxelDice(ignore_label=2)
    expected_dice.update(preds, target)
    score = SubjectDice(len(preds))
    slices = [(k, z) for k in range(len(preds)) for z in range(preds.shape[-1])]
    for k, z in reversed(slices):  # in any order
        logits = (preds[k, ..., z].float() * 20 - 10)[None, None]
        score.update(logits, target[k, ..., z][None, None], torch.tensor([k]))
    assert float(score.compute().mean()) == pytest.approx(float(expected_dice.compute()), rel=1e-6)
