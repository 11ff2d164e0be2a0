"""The loss of all compared networks: binary cross-entropy plus soft Dice, with ignored voxels left out of both."""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

TARGET, IGNORED = 1, 2


class SegmentationLoss(nn.Module):
    """Binary cross-entropy + (1 − soft Dice), both over the voxels whose label is not 2.

    The paper prints no loss; this is the common one. Dice is taken over the whole batch: slices without a lesion, most of
    them, have no Dice of their own. MONAI's Dice losses weight by a mask but keep masked voxels in the denominator,
    hence these few lines.

    Args:
        smooth: added to Dice's numerator and denominator, in voxels: defines it for batches without a lesion.
    """

    def __init__(self, smooth: float = 1.0) -> None:
        super().__init__()
        self.smooth = smooth

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss, a float32 scalar.

        Args:
            logits: ``[B, N, H, W]``, one sigmoid for each class.
            labels: ``[B, N, H, W]``, integer: 0 background, 1 the class, 2 ignored.

        Raises:
            ValueError: the shapes differ.
        """
        if logits.shape != labels.shape:
            raise ValueError(f"labels: expected shape {list(logits.shape)} as logits have, got {list(labels.shape)}")
        # Half precision has no room for sums over a batch of images.
        logits = logits.float()
        target = (labels == TARGET).float()
        counted = (labels != IGNORED).float()
        entropy = binary_cross_entropy_with_logits(logits, target, weight=counted, reduction="sum")
        entropy = entropy / counted.sum().clamp(min=1)
        # Where nothing is counted the loss is zero, and so is its gradient.
        p = torch.sigmoid(logits) * counted
        axes = (0, 2, 3)
        overlap = (p * target).sum(axes)
        dice = (2 * overlap + self.smooth) / (p.sum(axes) + target.sum(axes) + self.smooth)
        return entropy + (1 - dice).mean()
