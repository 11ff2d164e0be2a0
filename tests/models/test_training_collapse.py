"""No training of the recommended networks collapses, on a problem where the paper's plain form can.

Every slice has equal discs; those in the left half are lesions, so that position decides. With these settings the
preset "paper" collapsed in one of its three SCP runs (seed 0): Dice 0.00 at p > 0.5, and 0.92 on the same logits at
-0.01. Which run does is chance and differs by machine, so it is told here and not tested; that the collapsed solution
exists, contents the loss and scores nothing, is tested.
"""

import pytest
import torch

from scp_models.networks import build_network
from scp_models.training.losses import SegmentationLoss

SIZE, DISCS, RADIUS = 32, 4, 2.0
STEPS, BATCH, LEARNING_RATE = 100, 8, 4e-3
# A collapsed network scores 0; those trained here reached 0.90 to 0.95.
FLOOR = 0.5


def slices(count, seed):
    """Images ``[count, 1, SIZE, SIZE]`` of equal discs in noise, and labels that are 1 on those of the left half."""
    generator = torch.Generator().manual_seed(seed)
    i, j = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    centres = SIZE * torch.rand((count, DISCS, 2, 1, 1), generator=generator)
    discs = (i - centres[:, :, 0]).square() + (j - centres[:, :, 1]).square() < RADIUS**2
    lesions = discs & (centres[:, :, 1] < SIZE / 2)
    images = 2.0 * discs.any(1, keepdim=True) + 0.5 * torch.randn((count, 1, SIZE, SIZE), generator=generator)
    return images, lesions.any(1, keepdim=True).to(torch.uint8)


def dice(logits, labels, threshold=0.0):
    predicted, target = logits > threshold, labels == 1
    return (2 * (predicted & target).sum() / (predicted.sum() + target.sum())).item()


def evaluate(network):
    images, labels = slices(32, seed=999)
    with torch.no_grad():
        return dice(network.eval()(images), labels)


def train(variant, seed):
    torch.manual_seed(seed)
    network = build_network(variant, in_channels=1, capacity=64, levels=3)
    untrained = evaluate(network)
    optimizer = torch.optim.Adam(network.train().parameters(), LEARNING_RATE, weight_decay=1e-6)
    loss = SegmentationLoss()
    images, labels = slices(64, seed=100 + seed)
    for _ in range(STEPS):
        batch = torch.randint(len(images), (BATCH,))
        optimizer.zero_grad()
        loss(network(images[batch]), labels[batch]).backward()
        optimizer.step()
    return untrained, evaluate(network)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("variant", ["base", "scp"])
def test_recommended_training_does_not_collapse(variant, seed):
    untrained, trained = train(variant, seed)
    assert untrained < 0.1
    assert trained > FLOOR


def test_the_collapsed_solution_contents_the_loss_and_scores_nothing():
    _, labels = slices(32, seed=999)
    loss = SegmentationLoss()
    nothing_found = torch.full(labels.shape, -40.0)
    # A logit of exactly 0 is what features driven to zero give without a logit bias; the background lies far below.
    collapsed = torch.where(labels == 1, 0.0, -40.0)
    assert dice(collapsed, labels) == 0.0
    assert dice(collapsed, labels, threshold=-0.01) == 1.0
    assert loss(collapsed, labels) < 0.4 * loss(nothing_found, labels)


def test_position_decides_this_problem():
    images, labels = slices(32, seed=999)
    left, right = labels[..., : SIZE // 2].float().mean(), labels[..., SIZE // 2 + 2 :].float().mean()
    assert left > 0.02
    assert right == 0
    # What the image shows alone, the discs, finds as much on the right as on the left.
    assert dice(images - 1.0, labels) < 2 / 3
