"""Training on exclusive classes: loss, Dice, networks, checkpoints; and that a binary target trains as it did."""

import csv
import math

import lightning as L
import monai
import pytest
import torch
from monai.losses import DiceCELoss

from scp_models.checkpoints import build_model, check_resumable, load_model
from scp_models.data import SegmentationDataModule
from scp_models.errors import UserError
from scp_models.networks import VARIANTS, attach, build_network
from scp_models.training.losses import ExclusiveClassesLoss, SegmentationLoss
from scp_models.training.module import SegmentationModule, SubjectDice
from tests.support.commands import fit_arguments, scp_models
from tests.support.tiny_data import write_classes, write_wmh

CLASSES = {"classes": {"left": [1], "right": [2], "middle": [300], "background": []}, "modalities": ["MRI"]}


def random_case(seed=0, classes=3, shape=(2, 5, 4), ignored=True):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn((shape[0], 1 + classes, *shape[1:]), generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 1 + classes, (shape[0], 1, *shape[1:]), generator=generator, dtype=torch.uint8)
    if ignored:
        labels[torch.rand(labels.shape, generator=generator) < 0.3] = 255
    return logits, labels


# The loss


def expected_loss(logits, labels):
    """Cross-entropy and the mean Dice of the foreground classes in plain Python, over the pixels that count."""
    pixels = [
        ([math.exp(x) for x in logits[b, :, i, j].tolist()], int(labels[b, 0, i, j]))
        for b in range(logits.shape[0])
        for i in range(logits.shape[2])
        for j in range(logits.shape[3])
    ]
    pixels = [([e / sum(exps) for e in exps], label) for exps, label in pixels if label != 255]
    ce = -sum(math.log(p[label]) for p, label in pixels) / len(pixels)
    dice = []
    for number in range(1, logits.shape[1]):
        overlap = sum(p[number] for p, label in pixels if label == number)
        volumes = sum(p[number] for p, _ in pixels) + sum(label == number for _, label in pixels)
        dice.append((2 * overlap + 1) / (volumes + 1))
    return ce, 1 - sum(dice) / len(dice)


def test_equals_the_definition_over_the_whole_batch():
    logits, labels = random_case()
    ce, dice = expected_loss(logits, labels)
    assert ExclusiveClassesLoss(3)(logits, labels).item() == pytest.approx(ce + dice)
    assert ExclusiveClassesLoss(3, dice_weight=0.0)(logits, labels).item() == pytest.approx(ce)
    assert ExclusiveClassesLoss(3, ce_weight=0.0)(logits, labels).item() == pytest.approx(dice)


def test_is_monais_where_nothing_is_ignored():
    logits, labels = random_case(ignored=False)
    options = dict(softmax=True, to_onehot_y=True, include_background=False, batch=True, smooth_nr=1.0, smooth_dr=1.0)
    assert ExclusiveClassesLoss(3)(logits, labels).item() == pytest.approx(DiceCELoss(**options)(logits, labels).item())


@pytest.mark.parametrize("value", [1e4, -1e4, math.inf, math.nan])
def test_what_lies_under_the_ignored_label_changes_nothing(value):
    logits, labels = random_case()
    reference = logits.clone().requires_grad_()
    ExclusiveClassesLoss(3)(reference, labels).backward()
    changed = torch.where(labels == 255, torch.tensor(value, dtype=logits.dtype), logits).requires_grad_()
    loss = ExclusiveClassesLoss(3)(changed, labels)
    loss.backward()
    assert loss.item() == ExclusiveClassesLoss(3)(logits, labels).item()
    assert torch.equal(changed.grad, reference.grad)
    ignored = (labels == 255).expand_as(logits)
    assert (changed.grad[ignored] == 0).all() and (changed.grad[~ignored] != 0).all()


def test_everything_ignored_is_a_zero_loss_with_a_zero_gradient():
    logits = torch.randn(2, 4, 3, 3, requires_grad=True)
    loss = ExclusiveClassesLoss(3)(logits, torch.full((2, 1, 3, 3), 255, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0.0 and torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    logits = torch.zeros(2, 3, 512, 512, dtype=dtype, requires_grad=True)
    labels = torch.zeros(2, 1, 512, 512, dtype=torch.uint8)
    labels[..., :256, :], labels[..., 256:384, :] = 1, 2
    loss = ExclusiveClassesLoss(2)(logits, labels)
    loss.backward()
    # p = 1/3 everywhere: CE = log 3; 2 · (1/3 · s) / (1/3 + s) of a share s of the pixels.
    dice = [2 / 3 * s / (1 / 3 + s) for s in (0.5, 0.25)]
    assert loss.dtype == torch.float32 and torch.isfinite(logits.grad).all()
    assert loss.item() == pytest.approx(math.log(3) + 1 - sum(dice) / 2, abs=1e-5)


def test_gradients_are_those_of_finite_differences():
    logits, labels = random_case(shape=(2, 3, 2))
    assert torch.autograd.gradcheck(lambda x: ExclusiveClassesLoss(3)(x, labels), logits.requires_grad_())


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="labels: expected"):
        ExclusiveClassesLoss(3)(torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="ignore_label"):
        ExclusiveClassesLoss(3, ignore_label=2)
    with pytest.raises(ValueError, match="num_classes"):
        ExclusiveClassesLoss(0)


# The Dice that chooses a checkpoint


def test_dice_of_each_class_is_that_of_whole_volumes():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 4, 5, 6, generator=g)
    labels = torch.randint(0, 4, (9, 1, 5, 6), generator=g, dtype=torch.uint8)
    labels[torch.rand(labels.shape, generator=g) < 0.2] = 255
    subject = torch.tensor([0, 1, 0, 2, 2, 0, 1, 2, 0])
    # A class that nobody has, in the first subject not found either: Dice 1 there.
    logits[subject == 0, 3], labels[(labels == 3) & (subject == 0)[:, None, None, None]] = -9, 0
    metric = SubjectDice(3, num_classes=3, ignore_label=255)
    for part in (slice(0, 4), slice(4, 9)):
        metric.update(logits[part], labels[part], subject[part])
    expected = torch.zeros(3, 3)
    for s in range(3):
        predicted, target = logits[subject == s].argmax(1), labels[subject == s][:, 0]
        for n in (1, 2, 3):
            a, b = (predicted == n) & (target != 255), target == n
            expected[s, n - 1] = 1.0 if not a.any() and not b.any() else 2 * (a & b).sum() / (a.sum() + b.sum())
    assert expected[0, 2] == 1
    torch.testing.assert_close(metric.compute().float(), expected.mean(0))


# Networks


@pytest.mark.parametrize(
    ("variant", "constant"), [*((name, False) for name in VARIANTS), *((name, True) for name in VARIANTS[1:])]
)
def test_every_network_has_an_output_per_class_and_one_for_the_background(variant, constant):
    network = build_network(
        variant, in_channels=1, num_classes=4, capacity=16, levels=2, constant_position=constant, exclusive=True
    )
    assert network(torch.randn(2, 1, 8, 12)).shape == (2, 4, 8, 12)
    assert network.head.bias.tolist() == [0.0, -3.0, -3.0, -3.0]
    model = build_model(task_options=CLASSES, variant=variant, capacity=16, levels=2, constant_position=constant)
    assert model.network(torch.randn(1, 1, 8, 8)).shape == (1, 4, 8, 8)
    with pytest.raises(ValueError, match="num_classes: expected background and at least one class"):
        build_network(variant, num_classes=1, capacity=16, levels=2, exclusive=True)


def test_attach_to_a_network_of_several_classes():
    network = monai.networks.nets.BasicUNet(2, in_channels=1, out_channels=4, features=(8, 8, 8, 8, 8, 8)).eval()
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        before = network(image)
        after = attach(network, "final_conv")(image)
    assert after.shape == (1, 4, 32, 32)
    torch.testing.assert_close(after, before)


# In training


def trained(root, cache, module, **options):
    """The loss of every step of one epoch."""
    data = SegmentationDataModule(str(root), roi_size=(16, 24), batch_size=6, cache_dir=str(cache), **options)
    losses = []

    class Losses(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, *rest):
            losses.append(outputs["loss"].item())

    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=1,
        enable_checkpointing=False, num_sanity_val_steps=0, callbacks=[Losses()],
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return losses, data, trainer


def test_a_binary_target_trains_as_it_did(tmp_path):
    """The recipe written out: the same losses, to the last bit."""
    root = write_wmh(tmp_path / "data", 5)
    torch.manual_seed(3)
    module = SegmentationModule(roi_size=(16, 24), capacity=16, levels=2)
    losses, data, _ = trained(root, tmp_path, module)
    assert type(module.loss) is SegmentationLoss and not module.task.classes

    torch.manual_seed(3)
    network = build_network("scp", in_channels=2, capacity=16, levels=2).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=1e-6)
    loss, expected = SegmentationLoss(), []
    for batch in data.train_dataloader():
        value = loss(network(batch["image"].contiguous(memory_format=torch.channels_last)), batch["label"])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        expected.append(value.item())
    assert len(losses) == 3 and losses == expected
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, module.network.state_dict()[name]), name


def test_a_checkpoint_from_before_there_were_classes_is_loaded(tmp_path):
    """Its hyperparameters are those that were written then."""
    network = build_network("scp", in_channels=2, capacity=16, levels=2)
    hyperparameters = {
        "variant": "scp", "task": "wmh", "roi_size": (16, 24), "capacity": 16, "levels": 2, "hidden_channels": None,
        "preset": "recommended", "position": None, "logit_bias": -3.0, "constant_position": False, "backend": "auto",
        "learning_rate": 0.001, "weight_decay": 1e-06, "threshold": 0.5, "channels_last": True, "task_options": None,
    }  # fmt: skip
    weights = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for name, given in (("of now", hyperparameters), ("without options", dict(hyperparameters))):
        if name == "without options":
            del given["task_options"]
        torch.save({"hyper_parameters": given, "state_dict": weights}, tmp_path / "old.ckpt")
        model = load_model(tmp_path / "old.ckpt")
        assert model.task.classes == () and model.network(torch.zeros(1, 2, 8, 8)).shape == (1, 1, 8, 8)


def test_a_run_of_the_same_task_is_resumed_however_it_is_said(tmp_path):
    def check(stored, given):
        hparams = [{"variant": "scp", "task": "wmh", "task_options": options} for options in (stored, given)]
        torch.save({"hyper_parameters": hparams[0], "state_dict": {}, "split": {}}, tmp_path / "last.ckpt")
        check_resumable(tmp_path / "last.ckpt", hparams[1], {}, {"augment": "none"})

    check(None, {"target": [1], "ignored": [2]})
    check({"ignored": []}, {"target": [1], "ignored": []})
    check(CLASSES, CLASSES)
    # Their order gives the numbers of the network's outputs.
    turned = {**CLASSES, "classes": {name: CLASSES["classes"][name] for name in ("right", "left", "middle")}}
    for other in (turned, {"modalities": ["MRI"]}, {**CLASSES, "ignored": [7]}, {**CLASSES, "window": [0, 1]}):
        with pytest.raises(UserError, match=r"last.ckpt: expected a checkpoint of this run, with task_options"):
            check(CLASSES, other)


def test_classes_train_with_their_loss_and_log_the_dice_of_each(tmp_path):
    root = write_classes(tmp_path / "data")
    module = SegmentationModule(roi_size=(16, 24), capacity=16, levels=2, task_options=CLASSES)
    losses, data, trainer = trained(root, tmp_path, module, classes="all")
    assert type(module.loss) is ExclusiveClassesLoss and module.loss.num_classes == 3
    assert all(math.isfinite(loss) for loss in losses)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val_dice")}
    assert set(logged) == {"val_dice", "val_dice_left", "val_dice_right", "val_dice_middle"}
    of_classes = [value for name, value in logged.items() if name != "val_dice"]
    assert logged["val_dice"] == pytest.approx(sum(of_classes) / 3)
    assert data.task_options["classes"] == CLASSES["classes"]


def test_a_threshold_is_none_of_several_classes(tmp_path):
    model = build_model(task_options=CLASSES, variant="base", capacity=16, levels=2)
    model.check_threshold(None, tmp_path)
    with pytest.raises(UserError, match=r"--threshold: expected for one target only, .* has classes"):
        model.check_threshold(0.3, tmp_path)


def test_two_processes_train_classes(tmp_path):
    """They end with the same weights, and log the Dice of each class over all volumes of both."""
    root, out = write_classes(tmp_path / "data"), tmp_path / "run"
    done = scp_models(
        *fit_arguments(root, out, 1, "--data.classes", "all", "--data.batch_size", 3),
        *("--trainer.devices", 2, "--trainer.strategy", "ddp"),
        "--trainer.callbacks+=tests.support.rank_weights.RankWeights",
        cache=tmp_path,
    )
    assert "sync_dist=True" not in done.stderr + done.stdout, "what is logged is one process's alone"
    first, second = (torch.load(out / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(parameter, second[name]) for name, parameter in first.items())
    (log,) = out.glob("logs/version_*/metrics.csv")
    (logged,) = (row for row in csv.DictReader(log.open()) if row["val_dice"])
    module = SegmentationModule.load_from_checkpoint(out / "checkpoints" / "last.ckpt")
    assert all(torch.equal(parameter, first[name]) for name, parameter in module.named_parameters())
    data = SegmentationDataModule(
        str(root), roi_size=(16, 24), classes="all", frame="foreground", cache_dir=str(tmp_path / "scp_models")
    )
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    (alone,) = trainer.validate(module, datamodule=data, verbose=False)
    for name in ("val_dice", "val_dice_left", "val_dice_right", "val_dice_middle"):
        assert float(logged[name]) == pytest.approx(alone[name], abs=1e-6), name
