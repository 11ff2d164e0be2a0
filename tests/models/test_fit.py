"""What ``scp-models fit`` keeps and says."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from scp_models import cli
from scp_models.checkpoints import read_checkpoint
from scp_models.training.callbacks import BestCheckpoint, FoundClasses
from scp_models.training.module import SubjectDice
from tests.support.commands import fit_arguments
from tests.support.tiny_data import write_wmh, write_wmh_subject


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_wmh(tmp_path_factory.mktemp("wmh"), 4)


@pytest.fixture
def fit(monkeypatch, tmp_path, capfd):
    """Run ``fit`` in this process and in an empty folder; stdout and stderr."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["scp-models", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capfd.readouterr()
        assert not stop.value.code, captured.err
        return captured

    return call


class Scripted(L.LightningModule):
    """Validates with given scores, epoch by epoch."""

    def __init__(self, dice, loss):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.dice, self.val_loss = dice, loss

    def training_step(self, batch, index):
        return self.weight.sum()

    def validation_step(self, batch, index):
        self.log("val_dice", torch.tensor(self.dice[self.current_epoch]))
        self.log("val_loss", torch.tensor(self.val_loss[self.current_epoch]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self):
        return DataLoader([0.0])

    val_dataloader = train_dataloader


def best_epoch(folder, dice, loss, epochs=None, resume=None):
    best = BestCheckpoint(folder, filename="best", monitor="val_dice", mode="max", save_last=True)
    trainer = L.Trainer(
        max_epochs=epochs or len(dice), accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=[best],
    )  # fmt: skip
    trainer.fit(Scripted(dice, loss), ckpt_path=resume)
    return torch.load(best.best_model_path, weights_only=True)["epoch"]


@pytest.mark.parametrize(
    ("dice", "loss", "expected"),
    [
        ([0.0, 0.0, 0.0], [3.0, 1.0, 2.0], 1),
        ([0.0, 0.5, 0.5, 0.4], [3.0, 2.0, 1.0, 0.5], 2),
        ([0.0, 0.6, 0.5], [1.0, 2.0, 0.5], 1),
        ([0.5, 0.5], [1.0, 1.0], 0),
    ],
)
def test_a_tie_goes_to_the_lower_loss(tmp_path, dice, loss, expected):
    assert best_epoch(tmp_path, dice, loss) == expected


def test_a_resumed_run_remembers_the_best_loss(tmp_path):
    dice, loss = [0.0, 0.0, 0.0, 0.0], [3.0, 1.0, 2.0, 0.5]
    assert best_epoch(tmp_path, dice, loss, epochs=2) == 1
    assert best_epoch(tmp_path, dice, loss, epochs=3, resume=str(tmp_path / "last.ckpt")) == 1
    assert best_epoch(tmp_path, dice, loss, epochs=4, resume=str(tmp_path / "last.ckpt")) == 3


def test_the_newest_epoch_is_kept_where_few_are_validated(fit, root, tmp_path):
    out = tmp_path / "run"
    printed = fit(*fit_arguments(root, out, 3, "--trainer.check_val_every_n_epoch", 2))
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert read_checkpoint(out / "checkpoints" / "last.ckpt")["epoch"] == 2
    assert read_checkpoint(out / "checkpoints" / "best.ckpt")["epoch"] == 1
    written = [str(out / "checkpoints" / name) for name in ("best.ckpt", "last.ckpt")]
    assert printed.out.splitlines()[-3:] == [*written, str(out / "logs" / "version_0" / "metrics.csv")]
    fit(*fit_arguments(root, out, 4, "--trainer.check_val_every_n_epoch", 2, "--ckpt_path", "last"))
    assert read_checkpoint(out / "checkpoints" / "last.ckpt")["epoch"] == 3


def test_a_training_without_validation_says_that_there_is_no_best_checkpoint(fit, root, tmp_path):
    printed = fit(*fit_arguments(root, tmp_path / "run", 1, "--trainer.check_val_every_n_epoch", 2))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["last.ckpt"]
    assert "warning: no epoch was validated, so there is no best.ckpt" in printed.err


def test_a_fast_dev_run_leaves_nothing(fit, root, tmp_path):
    printed = fit(*fit_arguments(root, tmp_path / "run", 1, "--trainer.fast_dev_run", "true"))
    assert printed.out.splitlines()[-1] == "fast_dev_run: nothing was written"
    assert not (tmp_path / "run").exists() and not list((tmp_path / "here").iterdir())


def test_a_training_that_segments_nothing_says_so(fit, root, tmp_path):
    printed = fit(*fit_arguments(root, tmp_path / "run", 1, "--model.learning_rate", 1e-9))
    warnings = [line for line in printed.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and "no voxel of the target was found in the validation subjects" in warnings[0]
    assert str(tmp_path / "run" / "logs" / "version_0" / "metrics.csv") in warnings[0]


def dice_of(masks, labels, classes=1):
    """Of ``masks`` and ``labels`` ``[subjects, pixels]``, one slice each."""
    metric = SubjectDice(len(labels), num_classes=classes, ignore_label=255)
    labels = torch.tensor(labels, dtype=torch.uint8)[:, None, None]
    logits = torch.nn.functional.one_hot(torch.tensor(masks)[:, None], classes + 1).movedim(-1, 1) - 0.5
    metric.update(logits[:, 1:] if classes == 1 else logits, labels, torch.arange(len(labels)))
    return metric


def found(*epochs):
    """What the callback keeps of epochs' metrics, going on from a checkpoint after each."""
    state = FoundClasses().state_dict()
    for metric in epochs:
        callback = FoundClasses()
        callback.load_state_dict(state)
        trainer, module = SimpleNamespace(sanity_checking=False), SimpleNamespace(val_voxels=metric.voxels())
        callback.on_validation_end(trainer, module)
        state = callback.state_dict()
    return callback


def test_nothing_found_is_noticed_beside_a_subject_without_lesions():
    """Whose Dice is 1 then: the mean never is 0."""
    metric = dice_of([[0, 0], [0, 0]], [[0, 0], [0, 1]])
    assert metric.compute().item() == 0.5
    (line,) = found(metric).warnings((), "here")
    assert (
        line.startswith("no voxel of the target was found in the validation subjects in any epoch") and "here" in line
    )
    beside = dice_of([[0, 0], [1, 0]], [[0, 0], [0, 1]])
    assert len(found(metric, beside).warnings((), "here")) == 1 and "threshold" in line
    hit = dice_of([[0, 0], [0, 1]], [[0, 0], [0, 1]])
    assert found(hit, metric).warnings((), "here") == []
    (line,) = found(dice_of([[0, 0]], [[0, 0]])).warnings((), "here")
    assert line.startswith("no validation subject has a voxel of the target")


def test_each_class_that_is_never_found_is_named():
    metric = dice_of([[1, 0, 3]], [[1, 2, 0]], classes=3)
    absent, missed = found(metric).warnings(("liver", "tumour", "cyst"), "")
    assert absent.startswith("no validation subject has a voxel of the class 'cyst':")
    assert missed.startswith("no voxel of the class 'tumour' was found")
    assert "threshold" not in missed  # which is refused where the most probable class counts


def test_the_log_says_whose_slices_make_an_epoch(fit, tmp_path, caplog):
    thin = tmp_path / "data"
    for k in range(4):
        write_wmh_subject(thin / "Utrecht" / str(k), seed=k, shape=(20, 24, 5 if k else 50))
    arguments = fit_arguments(thin, tmp_path / "run", 1, "--data.split", "[2,1,1]", "--data.seed", 1)
    fit(*arguments)
    assert "an epoch is 55 slices of 2 subjects: 27.5 per subject, of 5 (Utrecht_" in caplog.text
    caplog.clear()
    fit(*arguments, "--overwrite", "--model.preset", "paper")
    assert "an epoch is 55 slices of 2 subjects: each slice once, 5 (Utrecht_" in caplog.text
    caplog.clear()
    fit(*arguments, "--overwrite", "--model.preset", "paper", "--data.sampling", "subjects")
    assert "an epoch is 55 slices of 2 subjects: 27.5 per subject, of 5 (Utrecht_" in caplog.text
