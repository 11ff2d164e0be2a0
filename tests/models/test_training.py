"""Training by Lightning: the recipe, checkpoints, resuming, several processes, mixed precision."""

import csv
import itertools
import signal

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from scp_models.checkpoints import load_model, read_checkpoint, subject_names
from scp_models.data import SegmentationDataModule, VolumeReader
from scp_models.data.frames import slice_positions
from scp_models.errors import UserError
from scp_models.training.module import SegmentationModule, SubjectDice
from tests.support.commands import fit_arguments, scp_models
from tests.support.tiny_data import write_wmh


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    # Seven slices per subject: two processes share the validation slices unequally.
    return write_wmh(tmp_path_factory.mktemp("wmh"), 8, shape=(20, 24, 7))


def tiny_module(**options):
    return SegmentationModule(roi_size=(16, 24), capacity=32, levels=2, **options)


def metrics(out, name="val_dice"):
    """Logged values of one metric, in order, of the last run into ``out``."""
    last = max(out.glob("logs/version_*/metrics.csv"), key=lambda p: p.stat().st_mtime_ns)
    with last.open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_subject_dice_is_that_of_whole_volumes():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(11, 1, 5, 6, generator=g)
    labels = torch.randint(0, 3, (11, 1, 5, 6), generator=g, dtype=torch.uint8)
    subject = torch.tensor([0, 1, 0, 2, 2, 0, 1, 2, 0, 0, 3])
    logits[10], labels[10] = -1, 0
    metric = SubjectDice(5)
    for part in (slice(0, 3), slice(3, 11)):
        metric.update(logits[part], labels[part], subject[part])
    expected = []
    for s in range(3):
        predicted = (logits[subject == s] > 0) & (labels[subject == s] != 2)
        target = labels[subject == s] == 1
        expected.append((2 * (predicted & target).sum() / (predicted.sum() + target.sum())).item())
    expected.append(1.0)  # the fourth subject: nothing to find, nothing predicted
    # Of the fifth no slice was seen (limit_val_batches): it has no Dice.
    assert metric.compute().item() == pytest.approx(sum(expected) / 4)


def test_the_papers_optimizer_and_schedule():
    module = tiny_module()
    module.trainer = L.Trainer(max_epochs=90, logger=False, enable_checkpointing=False, accelerator="cpu")
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.defaults["lr"] == 1e-3 and optimizer.defaults["weight_decay"] == 1e-6
    rates = []
    for _ in range(90):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert [rates[k] for k in (0, 44, 45, 62)] == [1e-3, 1e-3, 5e-4, 5e-4]
    assert [rates[k] for k in (63, 80, 81, 89)] == [2.5e-4, 2.5e-4, 1.25e-4, 1.25e-4]


def rates(root, cache, resume=None, save=None, module=None, group=0, **length):
    """The learning rate of every step of a run of so many epochs or steps, five per epoch, relative to the module's."""
    module = module or tiny_module()

    class Rates(L.Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_start(self, trainer, module, batch, index):
            self.seen.append(trainer.optimizers[0].param_groups[group]["lr"] / module.learning_rate)

    seen = Rates()
    keep = [] if save is None else [ModelCheckpoint(save, filename="at", save_last=False)]
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, limit_train_batches=5,
        limit_val_batches=1, num_sanity_val_steps=0, enable_checkpointing=save is not None, callbacks=[seen, *keep],
        **length,
    )  # fmt: skip
    data = SegmentationDataModule(str(root), roi_size=(16, 24), batch_size=6, cache_dir=str(cache))
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return seen.seen


def test_the_schedule_of_a_run_counted_in_steps(root, tmp_path):
    expected = [1.0] * 10 + [0.5] * 4 + [0.25] * 4 + [0.125] * 2
    assert rates(root, tmp_path, max_epochs=-1, max_steps=20) == expected
    assert rates(root, tmp_path, max_epochs=100, max_steps=20) == expected


def test_phi_learns_more_slowly_and_follows_the_schedule(root, tmp_path):
    def wide(**options):
        return tiny_module(hidden_channels=256, learning_rate=4e-3, **options)

    expected = [0.25 * share for share in [1.0] * 10 + [0.5] * 4 + [0.25] * 4 + [0.125] * 2]
    assert rates(root, tmp_path, module=wide(), group=1, save=tmp_path / "new", max_epochs=-1, max_steps=20) == expected
    path = str(tmp_path / "new" / "at.ckpt")
    later = rates(root, tmp_path, module=wide(), group=1, resume=path, max_epochs=-1, max_steps=40)
    assert later == [0.125] * 8 + [0.0625] * 8 + [0.03125] * 4
    for options in ({"limit_phi": False}, {"phi_scale": "adam"}):
        module = wide(**options)
        module.trainer = L.Trainer(max_steps=20, logger=False, enable_checkpointing=False, accelerator="cpu")
        assert [group["lr"] for group in module.configure_optimizers()["optimizer"].param_groups] == [4e-3]


def test_a_run_from_before_the_limit_goes_on_without_it(root, tmp_path):
    options = {"hidden_channels": 256, "learning_rate": 4e-3}
    old = tiny_module(**options, limit_phi=False)
    rates(root, tmp_path, module=old, save=tmp_path, max_epochs=-1, max_steps=20)
    module = tiny_module(**options)
    rates(root, tmp_path, module=module, resume=str(tmp_path / "at.ckpt"), max_epochs=-1, max_steps=25)
    (group,) = module.optimizers(use_pl_optimizer=False).param_groups
    assert len(group["params"]) == len(list(module.parameters())) and module.limit_phi
    rates(root, tmp_path, module=module, max_epochs=-1, max_steps=5)
    assert len(module.optimizers(use_pl_optimizer=False).param_groups) == 2, "a new run of the same module"


def test_only_a_run_that_goes_on_takes_its_groups_from_the_checkpoint(root, tmp_path):
    slow = tiny_module(hidden_channels=256)
    rates(root, tmp_path, module=slow, save=tmp_path, max_epochs=-1, max_steps=5)
    module = SegmentationModule.load_from_checkpoint(tmp_path / "at.ckpt", learning_rate=4e-3)
    rates(root, tmp_path, module=module, max_epochs=-1, max_steps=5)
    assert [group["lr"] for group in module.configure_optimizers()["optimizer"].param_groups] == [4e-3, 1e-3]


def test_a_run_that_is_resumed_for_longer_has_the_longer_ones_schedule(root, tmp_path):
    by_epoch = [1.0] * 25 + [0.5] * 10 + [0.25] * 10 + [0.125] * 5
    assert rates(root, tmp_path, max_epochs=10) == by_epoch
    assert rates(root, tmp_path, save=tmp_path / "short", max_epochs=4)[-5:] == [0.25] * 5
    path = str(tmp_path / "short" / "at.ckpt")
    assert rates(root, tmp_path, resume=path, max_epochs=10) == by_epoch[20:]
    assert rates(root, tmp_path, resume=path, max_epochs=-1, max_steps=50) == by_epoch[20:]
    rates(root, tmp_path, save=tmp_path / "half", max_epochs=5)
    assert rates(root, tmp_path, resume=str(tmp_path / "half" / "at.ckpt"), max_epochs=10) == by_epoch[25:]
    rates(root, tmp_path, save=tmp_path / "steps", max_epochs=-1, max_steps=20)
    assert rates(root, tmp_path, resume=str(tmp_path / "steps" / "at.ckpt"), max_epochs=10) == by_epoch[20:]


def test_a_run_leaves_its_checkpoints_logs_and_configuration(root, tmp_path):
    out = tmp_path / "run"
    scp_models(*fit_arguments(root, out, 3), cache=tmp_path)
    assert (out / "checkpoints" / "best.ckpt").is_file() and (out / "checkpoints" / "last.ckpt").is_file()
    assert list(out.glob("tensorboard/version_*/events*"))
    config = next(out.glob("logs/version_*/config.yaml")).read_text()
    assert "capacity: 32" in config and str(root) in config
    dice, waits = metrics(out), metrics(out, "data_wait")
    assert len(dice) == 3 and all(0 <= w <= 1 for w in waits) and len(waits) == 3
    assert len(metrics(out, "learning_rate")) == 3

    best = torch.load(out / "checkpoints" / "best.ckpt", weights_only=True)
    assert next(iter(c for k, c in best["callbacks"].items() if "BestCheckpoint" in k))["best_model_score"] == max(dice)
    model = load_model(out / "checkpoints" / "best.ckpt")
    assert best["hyper_parameters"]["capacity"] == 32 and model.task.roi_size == (16, 24)
    weights = model.network.state_dict()
    assert {f"network.{name}" for name in weights} == set(best["state_dict"]) and not model.network.training
    for name, tensor in weights.items():
        assert torch.equal(tensor, best["state_dict"][f"network.{name}"])
    assert model.split == subject_names(SegmentationDataModule(str(root)).divide())
    assert {part: len(names) for part, names in model.split.items()} == {"training": 5, "validation": 1, "test": 2}


def test_resuming_after_a_kill_is_bit_for_bit_the_same_run(root, tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    loaders = ["--data.num_workers", 2]
    scp_models(*fit_arguments(root, straight, 4, *loaders), cache=tmp_path)
    killer = ["--trainer.callbacks+=tests.support.kill_at.KillAt"]
    killer += ["--trainer.callbacks.epoch=2", "--trainer.callbacks.batch=3"]
    killed = scp_models(*fit_arguments(root, broken, 4, *loaders, *killer), cache=tmp_path, check=False)
    assert killed.returncode == -9
    interrupted = torch.load(broken / "checkpoints" / "last.ckpt", weights_only=True)
    assert interrupted["epoch"] == 1
    scp_models(*fit_arguments(root, broken, 4, *loaders, "--ckpt_path", "last"), cache=tmp_path)

    a, b = (torch.load(out / "checkpoints" / "last.ckpt", weights_only=True) for out in (straight, broken))
    assert a["epoch"] == b["epoch"] == 3 and a["global_step"] == b["global_step"]
    assert not all(torch.equal(interrupted["state_dict"][k], v) for k, v in a["state_dict"].items())
    for name, tensor in a["state_dict"].items():
        assert torch.equal(tensor, b["state_dict"][name]), name
    moments_a, moments_b = (c["optimizer_states"][0]["state"] for c in (a, b))
    for key, state in moments_a.items():
        for name, tensor in state.items():
            assert torch.equal(tensor, moments_b[key][name]), (key, name)
    assert a["lr_schedulers"] == b["lr_schedulers"]
    assert metrics(broken) == metrics(straight)[2:]


def test_a_run_that_is_told_to_end_does_not_look_finished(root, tmp_path):
    ended = ["--trainer.callbacks+=tests.support.kill_at.KillAt", "--trainer.callbacks.epoch=1"]
    ended += ["--trainer.callbacks.batch=1", f"--trainer.callbacks.number={signal.SIGTERM.value}"]
    done = scp_models(*fit_arguments(root, tmp_path / "run", 3, *ended), cache=tmp_path, check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM: the same command with --ckpt_path last goes on" in done.stderr
    assert "Traceback" not in done.stderr and (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_two_processes_train_one_model(root, tmp_path):
    out = tmp_path / "ddp"
    done = scp_models(
        *fit_arguments(
            root,
            out,
            2,
            "--trainer.devices",
            2,
            "--trainer.strategy",
            "ddp",
            "--data.batch_size",
            3,
            "--data.frame",
            "slice",
        ),
        "--trainer.callbacks+=tests.support.rank_weights.RankWeights",
        cache=tmp_path,
    )
    assert "sync_dist=True" not in done.stderr + done.stdout, "what is logged is one process's alone"
    first, second = (torch.load(out / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.keys() == second.keys()
    for name, parameter in first.items():
        assert torch.equal(parameter, second[name]), name
    logged = metrics(out)[-1]
    last = read_checkpoint(out / "checkpoints" / "last.ckpt")
    module = tiny_module(learning_rate=0.01)
    module.load_state_dict(last["state_dict"])
    data = SegmentationDataModule(str(root), roi_size=(16, 24), cache_dir=str(tmp_path / "scp_models"))
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    (alone,) = trainer.validate(module, datamodule=data, verbose=False)
    assert alone["val_dice"] == pytest.approx(logged, abs=1e-6)
    assert data.val_dataloader().dataset.slices % 2 == 1
    # Both processes saw half of the slices: as many steps as one process with batches twice as large.
    assert last["global_step"] == 2 * (data.train_dataloader().dataset.slices // 6)


def test_mixed_precision(root, tmp_path):
    module = tiny_module()
    data = SegmentationDataModule(str(root), roi_size=(16, 24), batch_size=6, cache_dir=str(tmp_path))
    seen = []
    module.network.head.register_forward_hook(lambda m, i, o: seen.append((i[0].dtype, o.dtype)))
    trainer = L.Trainer(
        max_epochs=1, limit_train_batches=2, limit_val_batches=1, precision="bf16-mixed", accelerator="cpu",
        logger=False, enable_progress_bar=False, enable_checkpointing=False,
    )  # fmt: skip
    before = [p.clone() for p in module.parameters()]
    trainer.fit(module, datamodule=data)
    assert torch.isfinite(trainer.callback_metrics["train_loss_epoch"])
    # The last layer's batch norm runs in bfloat16 under autocast, and the head takes it beside float32 parameters.
    assert {pair[0] for pair in seen} == {torch.bfloat16} and all(p.dtype == torch.float32 for p in module.parameters())
    assert any(not torch.equal(p, q) for p, q in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_half_precision_leaves_positions_as_they_are(root, tmp_path, precision):
    """The head is told the data's places to the last bit, the very ones that prediction tells it."""
    options = {"frame": "foreground"}
    module = tiny_module(task_options=options)
    data = SegmentationDataModule(
        str(root), roi_size=(16, 24), batch_size=6, cache_dir=str(tmp_path), augment="spatial", **options
    )
    seen = []
    module.network.head.register_forward_hook(lambda m, i, told, o: seen.append((i[0].dtype, told)), with_kwargs=True)
    trainer = L.Trainer(
        max_epochs=1, limit_train_batches=2, limit_val_batches=1, num_sanity_val_steps=0, precision=precision,
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    half = torch.bfloat16 if precision == "bf16-true" else torch.float16
    assert {dtype for dtype, _ in seen} == {half} and {p.dtype for p in module.parameters()} == {half}
    loader = data.train_dataloader()
    loader.sampler.set_epoch(0)
    batches = [*itertools.islice(loader, 2), next(iter(data.val_dataloader()))]
    assert len(seen) == 3
    for (_, told), batch in zip(seen, batches, strict=True):
        for name in ("affine", "extent"):
            assert told[name].dtype == torch.float32 and torch.equal(told[name], batch[name]), name
    (subject,) = data.val_subjects
    volume = VolumeReader(data.task).read(subject, with_label=False)
    places = slice_positions(data.task, subject, volume.geometry).of(slice(0, 6))
    assert all(torch.equal(seen[-1][1][name], places[name]) for name in places)
    assert not torch.equal(batches[0]["affine"].to(half).float(), batches[0]["affine"])  # which half precision rounds
    assert "convert_input" not in vars(trainer.precision_plugin)


def checkpoint(path, **changes):
    module = tiny_module()
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), **changes}
    torch.save({k: v for k, v in content.items() if v is not None}, path)
    return path


def test_foreign_checkpoints_are_refused(tmp_path):
    assert load_model(checkpoint(tmp_path / "good.ckpt")).task.name == "wmh"
    with pytest.raises(UserError, match="expected a checkpoint, there is none"):
        load_model(tmp_path / "nowhere.ckpt")
    (tmp_path / "text.ckpt").write_text("weights")
    with pytest.raises(UserError, match=r"text.ckpt: expected a checkpoint of scp-models fit, it cannot be read"):
        load_model(tmp_path / "text.ckpt")
    whole = (tmp_path / "good.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"half.ckpt: expected a checkpoint of scp-models fit, it cannot be read"):
        load_model(tmp_path / "half.ckpt")
    with pytest.raises(UserError, match="got a file of something else"):
        load_model(checkpoint(tmp_path / "other.ckpt", hyper_parameters=None))
    with pytest.raises(UserError, match="trained for 'lits', got one for 'wmh'"):
        load_model(tmp_path / "good.ckpt", task="lits")
    other = dict(tiny_module().hparams, capacity=64)
    with pytest.raises(
        UserError, match=r"wide.ckpt: expected weights that fit its configuration, .* \(size mismatch for "
    ):
        load_model(checkpoint(tmp_path / "wide.ckpt", hyper_parameters=other))
    with pytest.raises(UserError, match=r"they do not .*unknown"):
        load_model(checkpoint(tmp_path / "older.ckpt", hyper_parameters={"variant": "scp", "unknown": 1}))
