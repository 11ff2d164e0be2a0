"""The loss against its definition written out, and where its label says nothing."""

import math

import pytest
import torch

from scp_models.training.losses import SegmentationLoss


def expected_loss(logits, targets, counted):
    """Binary cross-entropy and batch Dice of one class in plain Python, over the pixels that count."""
    pairs = [(1 / (1 + math.exp(-x)), y) for x, y, c in zip(logits, targets, counted, strict=True) if c]
    bce = -sum(math.log(p if y else 1 - p) for p, y in pairs) / len(pairs)
    overlap = sum(p * y for p, y in pairs)
    dice = (2 * overlap + 1) / (sum(p for p, _ in pairs) + sum(y for _, y in pairs) + 1)
    return bce, 1 - dice


def random_case(seed=0, shape=(3, 1, 6, 5)):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (shape[0], 1, *shape[2:]), generator=generator, dtype=torch.uint8)
    return logits, labels


def test_equals_the_definition_over_the_whole_batch():
    logits, labels = random_case()
    flat = labels.flatten().tolist()
    bce, dice = expected_loss(logits.flatten().tolist(), [y == 1 for y in flat], [y != 2 for y in flat])
    assert SegmentationLoss()(logits, labels).item() == pytest.approx(bce + dice)
    assert SegmentationLoss(dice_weight=0.0)(logits, labels).item() == pytest.approx(bce)
    assert SegmentationLoss(bce_weight=0.0)(logits, labels).item() == pytest.approx(dice)


def test_each_class_has_a_sigmoid_of_its_own():
    logits, labels = random_case(shape=(2, 2, 4, 4))
    loss = SegmentationLoss(2, ignore_label=None)(logits, labels)
    terms = [
        expected_loss(logits[:, n].flatten().tolist(), (labels == n + 1).flatten().tolist(), [True] * 32)
        for n in range(2)
    ]
    assert loss.item() == pytest.approx(sum(bce + dice for bce, dice in terms) / 2)


@pytest.mark.parametrize("value", [1e4, -1e4, math.inf, math.nan])
def test_what_lies_under_the_ignored_label_changes_nothing(value):
    logits, labels = random_case()
    reference = logits.clone().requires_grad_()
    SegmentationLoss()(reference, labels).backward()
    changed = torch.where(labels == 2, torch.tensor(value, dtype=logits.dtype), logits).requires_grad_()
    loss = SegmentationLoss()(changed, labels)
    loss.backward()
    assert loss.item() == SegmentationLoss()(logits, labels).item()
    assert torch.equal(changed.grad, reference.grad)
    assert (changed.grad[labels == 2] == 0).all()
    assert (changed.grad[labels != 2] != 0).all()


def test_everything_ignored_is_a_zero_loss_with_a_zero_gradient():
    logits = torch.randn(2, 1, 4, 4, requires_grad=True)
    loss = SegmentationLoss()(logits, torch.full((2, 1, 4, 4), 2, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_perfect_and_wrong_predictions():
    labels = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    labels[..., 2:5, 2:5] = 1
    right = torch.where(labels == 1, 50.0, -50.0)
    assert SegmentationLoss()(right, labels).item() == pytest.approx(0.0, abs=1e-6)
    assert SegmentationLoss()(-right, labels).item() > 50


def test_a_batch_without_lesions_is_content_with_emptiness_and_finite():
    labels = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    logits = torch.full((2, 1, 8, 8), -20.0, requires_grad=True)
    loss = SegmentationLoss()(logits, labels)
    loss.backward()
    assert loss.item() < 1e-4
    assert torch.isfinite(logits.grad).all()


def test_an_empty_slice_leaves_the_dice_of_the_others_alone():
    # Per-sample Dice would average the lesion slice's loss with that of an empty slice, which is 0 here.
    lesion = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    lesion[..., :4, :4] = 1
    logits = torch.full((1, 1, 8, 8), -50.0)
    with_empty = torch.cat([lesion, torch.zeros_like(lesion)])
    dice = SegmentationLoss(bce_weight=0.0)
    alone, beside = dice(logits, lesion), dice(torch.cat([logits, logits]), with_empty)
    assert alone.item() == pytest.approx(beside.item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    # 2 · 512² pixels of p = 1/2 sum to 262144, past float16's 65504.
    logits = torch.zeros(2, 1, 512, 512, dtype=dtype, requires_grad=True)
    labels = torch.zeros(2, 1, 512, 512, dtype=torch.uint8)
    labels[..., :256, :] = 1
    loss = SegmentationLoss()(logits, labels)
    loss.backward()
    assert loss.dtype == torch.float32
    # p = 1/2 everywhere and half of the pixels targets: BCE = log 2 and Dice = 1/2.
    assert loss.item() == pytest.approx(math.log(2) + 0.5, abs=1e-5)
    assert torch.isfinite(logits.grad).all()


def test_gradients_are_those_of_finite_differences():
    logits, labels = random_case(shape=(2, 1, 3, 3))
    assert torch.autograd.gradcheck(lambda x: SegmentationLoss()(x, labels), logits.requires_grad_())


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 2, 4, 4), (1, 1, 4, 4), (2, 1, 4, 5)])
def test_shapes_that_do_not_belong_together_are_refused(shape):
    with pytest.raises(ValueError, match="labels: expected"):
        SegmentationLoss()(torch.zeros(2, 1, 4, 4), torch.zeros(shape, dtype=torch.uint8))


@pytest.mark.parametrize(("num_classes", "ignored"), [(1, 0), (1, 1), (2, 2)])
def test_an_ignored_label_that_means_something_else_is_refused(num_classes, ignored):
    with pytest.raises(ValueError, match="ignore_label"):
        SegmentationLoss(num_classes, ignore_label=ignored)
