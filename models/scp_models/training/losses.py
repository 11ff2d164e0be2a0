"""The training losses: cross-entropy and soft Dice, blind where the label says so. The paper prints none."""

import torch
from monai.losses import MaskedDiceLoss
from torch import Tensor, nn
from torch.nn import functional as F

from scp_models.data.classes import IGNORED_AMONG_CLASSES
from scp_models.data.tasks import IGNORED_LABEL


class SegmentationLoss(nn.Module):
    """``bce_weight · BCE + dice_weight · (1 − soft Dice)`` of logits against a label map.

    Each class has its own sigmoid: class n of N is the label n + 1 against everything else. Pixels that carry
    ``ignore_label`` enter neither term nor any gradient.

    Dice is taken over the whole batch at once, not per sample: most slices hold no lesion, and the Dice of an empty
    slice rewards nothing but emptiness, with as much weight as a slice that has lesions. Its smoothing is one pixel in
    numerator and denominator, so that a batch without lesions has a small, finite gradient towards emptiness.

    Args:
        num_classes: N.
        ignore_label: the label that is masked; None: nothing is.
        bce_weight, dice_weight: of the two terms.

    Raises:
        ValueError: ``ignore_label`` is the background or one of the classes.
    """

    def __init__(
        self,
        num_classes: int = 1,
        *,
        ignore_label: int | None = IGNORED_LABEL,
        bce_weight: float = 1.0,
        dice_weight: float = 1.0,
    ) -> None:
        super().__init__()
        _check_ignored(ignore_label, num_classes)
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.bce_weight = bce_weight
        self.dice_weight = dice_weight
        self.dice = MaskedDiceLoss(sigmoid=True, batch=True, smooth_nr=1.0, smooth_dr=1.0)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar in float32 (float64 for float64 logits).

        Args:
            logits: ``[B, N, *spatial]``, any floating dtype; half precision is raised to float32 first.
            labels: ``[B, 1, *spatial]``, integers.

        Raises:
            ValueError: shapes that do not belong together.
        """
        if logits.shape[1] != self.num_classes or labels.shape != (len(logits), 1, *logits.shape[2:]):
            raise ValueError(
                f"labels: expected [B, 1, *spatial] beside logits [B, {self.num_classes}, *spatial], "
                f"got {list(labels.shape)} beside {list(logits.shape)}"
            )
        classes = torch.arange(1, self.num_classes + 1, device=labels.device, dtype=labels.dtype)
        target = labels == classes.view(1, -1, *[1] * (labels.ndim - 2))
        mask = torch.ones_like(labels, dtype=torch.bool) if self.ignore_label is None else labels != self.ignore_label
        # Replaced, not multiplied by 0: an overflown logit under the mask would otherwise make the gradient NaN.
        logits = torch.where(mask, logits.to(torch.promote_types(logits.dtype, torch.float32)), 0.0)
        target, weight = target.to(logits.dtype), mask.to(logits.dtype)
        bce = F.binary_cross_entropy_with_logits(logits, target, weight=weight.expand_as(logits), reduction="sum")
        bce = bce / (self.num_classes * weight.sum()).clamp(min=1.0)
        return self.bce_weight * bce + self.dice_weight * self.dice(logits, target, weight)


class ExclusiveClassesLoss(nn.Module):
    """``ce_weight · CE + dice_weight · (1 − soft Dice)`` of a softmax against a label map of exclusive classes.

    Cross-entropy is averaged over the pixels that count. Dice is that of MONAI, of each class but the background and
    averaged over them, over the whole batch at once and with a smoothing of one pixel, as in :class:`SegmentationLoss`.
    Pixels that carry ``ignore_label`` enter neither term nor any gradient.

    Args:
        num_classes: N, without the background.
        ignore_label: the label that is masked.
        ce_weight, dice_weight: of the two terms.

    Raises:
        ValueError: no class, or ``ignore_label`` is the background or one of the classes.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        ignore_label: int = IGNORED_AMONG_CLASSES,
        ce_weight: float = 1.0,
        dice_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1, got {num_classes}")
        _check_ignored(ignore_label, num_classes)
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.ce_weight = ce_weight
        self.dice_weight = dice_weight
        self.dice = MaskedDiceLoss(softmax=True, include_background=False, batch=True, smooth_nr=1.0, smooth_dr=1.0)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar in float32 (float64 for float64 logits).

        Args:
            logits: ``[B, 1 + N, *spatial]``, the background first, any floating dtype; half precision is raised to
                float32 first.
            labels: ``[B, 1, *spatial]``, integers: 0, the classes' numbers from 1 on, and ``ignore_label``.

        Raises:
            ValueError: shapes that do not belong together.
        """
        outputs = 1 + self.num_classes
        if logits.shape[1] != outputs or labels.shape != (len(logits), 1, *logits.shape[2:]):
            raise ValueError(
                f"labels: expected [B, 1, *spatial] beside logits [B, {outputs}, *spatial], "
                f"got {list(labels.shape)} beside {list(logits.shape)}"
            )
        mask = labels != self.ignore_label
        # Replaced, not multiplied by 0: an overflown logit under the mask would otherwise make the gradient NaN.
        logits = torch.where(mask, logits.to(torch.promote_types(logits.dtype, torch.float32)), 0.0)
        classes = torch.where(mask, labels.long(), 0)
        weight = mask.to(logits.dtype)
        ce = (F.cross_entropy(logits, classes[:, 0], reduction="none") * weight[:, 0]).sum() / weight.sum().clamp(min=1)
        target = torch.zeros_like(logits).scatter_(1, classes, 1.0)
        return self.ce_weight * ce + self.dice_weight * self.dice(logits, target, weight)


def _check_ignored(ignore_label: int | None, num_classes: int) -> None:
    if ignore_label is not None and 0 <= ignore_label <= num_classes:
        raise ValueError(
            f"ignore_label: expected a label that is neither background nor one of the {num_classes} classes, "
            f"got {ignore_label}"
        )
