"""The scores of :mod:`scp_models.evaluation.metrics` as ``torchmetrics``, for training loops of one's own.

Each is a mean over subjects of what :func:`scp_models.evaluation.metrics.subject_scores` gives, and says in one process
what it says in several: states are sums over subjects and their numbers. (A sampler that repeats subjects to even out
processes makes them count twice.) In a ``MetricCollection`` lesions are counted once for all.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from scp_models.data.tasks import IGNORED_LABEL
from scp_models.evaluation.metrics import Connectivity, count_scores, harmonic_mean, hausdorff_95, masks_of


class SubjectMean(Metric):
    """Mean of a score over subjects; those for whom it is undefined are left out (see ``subject_scores``).

    Args:
        threshold: of predictions in floating point, which are probabilities.
        connectivity: of lesions: 26, 18 or 6 neighbours.
        ignore_label: label of voxels that are taken out of the prediction; None: there are none.
        options: of ``torchmetrics.Metric``.
    """

    is_differentiable = False
    full_state_update = False
    totals: Tensor
    subjects: Tensor
    settings: Tensor
    score: ClassVar[str]
    """Which of ``scores``."""
    scores: ClassVar[tuple[str, ...]] = (
        "dice",
        "lesion_dice",
        "lesion_f1",
        "lesion_tpr",
        "lesion_ppv",
        "avd",
        "challenge_f1",
    )
    """What is summed. Metrics that sum the same share one update in a collection."""

    def __init__(
        self,
        threshold: float = 0.5,
        connectivity: Connectivity = 26,
        ignore_label: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.threshold = threshold
        self.connectivity = connectivity
        self.ignore_label = ignore_label
        zeros = torch.zeros(len(self.scores), dtype=torch.float64)
        self.add_state("totals", default=zeros, dist_reduce_fx="sum")
        self.add_state("subjects", default=zeros.clone(), dist_reduce_fx="sum")
        # A collection takes metrics with equal states for one: with these, they have equal settings too.
        settings = [threshold, connectivity, -1.0 if ignore_label is None else ignore_label]
        self.add_state("settings", default=torch.tensor(settings, dtype=torch.float64), dist_reduce_fx="mean")

    def update(self, preds: Tensor, target: Tensor, spacing: Tensor | Sequence[float] | None = None) -> None:
        """Add whole subjects.

        Args:
            preds: ``[B, X, Y, Z]`` or ``[B, 1, X, Y, Z]``: masks (bool, or 0 and 1 in integers), or probabilities in
                floating point. Not logits, not slices: lesions are 3-D.
            target: of the same shape: 0, 1 and ``ignore_label``.
            spacing: voxel size in mm, ``[3]`` or ``[B, 3]``; :class:`HausdorffDistance95` needs it.

        Raises:
            ValueError: other shapes or labels, probabilities that are none.
        """
        if preds.ndim not in (4, 5) or preds.shape != target.shape or (preds.ndim == 5 and preds.shape[1] != 1):
            raise ValueError(
                "preds, target: expected two of one shape [B, X, Y, Z] or [B, 1, X, Y, Z], got "
                f"{list(preds.shape)} and {list(target.shape)}"
            )
        if preds.is_floating_point():
            if preds.numel() and not (preds.min() >= 0 and preds.max() <= 1):
                raise ValueError("preds: expected probabilities from 0 to 1 or masks, got other values (logits?)")
            preds = preds > self.threshold
        sizes = None
        if spacing is not None:
            sizes = torch.as_tensor(spacing, dtype=torch.float64).cpu()
            if tuple(sizes.shape) not in ((3,), (len(preds), 3)) or not (sizes > 0).all() or sizes.isinf().any():
                raise ValueError(f"spacing: expected three positive sizes in mm, or {len(preds)} times three")
            sizes = sizes.expand(len(preds), 3)
        volumes = (value.detach().reshape(len(preds), *preds.shape[-3:]).cpu().numpy() for value in (preds, target))
        for k, (prediction, reference) in enumerate(zip(*volumes, strict=True)):
            predicted, marked = masks_of(prediction, reference, self.ignore_label)
            values = self._scores_of(predicted, marked, None if sizes is None else sizes[k].tolist())
            row = torch.tensor([values[name] for name in self.scores], dtype=torch.float64, device=self.totals.device)
            self.totals += row.nan_to_num(nan=0.0)
            self.subjects += ~row.isnan()

    def compute(self) -> Tensor:
        """The mean; NaN where the score is defined for no subject."""
        return self._mean(self.score)

    def _scores_of(self, predicted: Any, target: Any, spacing: Sequence[float] | None) -> dict[str, float]:
        return count_scores(predicted, target, self.connectivity)

    def _mean(self, name: str) -> Tensor:
        k = self.scores.index(name)
        return (self.totals[k] / self.subjects[k]).float()


class VoxelDice(SubjectMean):
    """``2·|A∩B| / (|A| + |B|)`` of each subject, averaged (the paper's Dice, and the challenge's)."""

    score = "dice"
    higher_is_better = True


class LesionDice(SubjectMean):
    """The paper's L-Dice: ``2·TP / (GL + PL)`` of each subject, averaged."""

    score = "lesion_dice"
    higher_is_better = True


class LesionTPR(SubjectMean):
    """The paper's L-TPR and the challenge's recall: detected reference lesions over all."""

    score = "lesion_tpr"
    higher_is_better = True


class LesionPPV(SubjectMean):
    """The paper's L-PPV: detected reference lesions over predicted lesions. It can exceed 1."""

    score = "lesion_ppv"
    higher_is_better = True


class LesionF1(SubjectMean):
    """The paper's L-F1: the harmonic mean of the averaged L-TPR and L-PPV.

    Args:
        of_means: False: the average of the subjects' own harmonic means.
        options: as in :class:`SubjectMean`.
    """

    score = "lesion_f1"
    higher_is_better = True

    def __init__(self, of_means: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.of_means = of_means

    def compute(self) -> Tensor:
        """The harmonic mean, NaN without subjects."""
        if not self.of_means:
            return super().compute()
        tpr, ppv = float(self._mean("lesion_tpr")), float(self._mean("lesion_ppv"))
        value = math.nan if math.isnan(tpr) else harmonic_mean(tpr, ppv)
        return torch.tensor(value, device=self.totals.device)


class ChallengeF1(SubjectMean):
    """The WMH challenge's F1 of each subject: of recall, and of predicted lesions that overlap the reference."""

    score = "challenge_f1"
    higher_is_better = True


class VolumeDifference(SubjectMean):
    """The WMH challenge's AVD: difference of volumes in percent of the reference's; undefined where that is empty."""

    score = "avd"
    higher_is_better = False


class HausdorffDistance95(SubjectMean):
    """The WMH challenge's 95th percentile Hausdorff distance in mm, over subjects for whom it is defined."""

    score = "hd95_mm"
    scores = ("hd95_mm",)
    higher_is_better = False

    def _scores_of(self, predicted: Any, target: Any, spacing: Sequence[float] | None) -> dict[str, float]:
        if spacing is None:
            raise ValueError("spacing: expected voxel sizes in mm for a distance in mm, got none")
        return {"hd95_mm": hausdorff_95(predicted, target, spacing)}


def paper_metrics(**options: Any) -> MetricCollection:
    """Dice, L-Dice, L-F1, L-PPV and L-TPR as the paper's tables have them; options as in :class:`SubjectMean`."""
    return MetricCollection(
        {
            "dice": VoxelDice(**options),
            "lesion_dice": LesionDice(**options),
            "paper_lesion_f1": LesionF1(**options),
            "lesion_ppv": LesionPPV(**options),
            "lesion_tpr": LesionTPR(**options),
        }
    )


def challenge_metrics(ignore_label: int | None = IGNORED_LABEL, **options: Any) -> MetricCollection:
    """The WMH challenge's five: Dice, HD95, AVD, recall and F1 of lesions; ``update`` needs ``spacing``.

    Args:
        ignore_label: the challenge's "other pathology".
        options: as in :class:`SubjectMean`.
    """
    options = {"ignore_label": ignore_label, **options}
    return MetricCollection(
        {
            "dice": VoxelDice(**options),
            "hd95_mm": HausdorffDistance95(**options),
            "avd": VolumeDifference(**options),
            "lesion_recall": LesionTPR(**options),
            "challenge_f1": ChallengeF1(**options),
        }
    )
