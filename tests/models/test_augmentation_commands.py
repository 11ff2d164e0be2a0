"""Augmentation from the command line: defaults, options, checkpoints."""

import pytest
import torch

from scp_models import cli
from scp_models.checkpoints import read_checkpoint
from scp_models.data import SegmentationDataModule
from scp_models.errors import UserError
from scp_models.training.fit import FitCLI
from tests.support.commands import fit_arguments
from tests.support.tiny_data import write_wmh


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_wmh(tmp_path_factory.mktemp("wmh"), 4, shape=(20, 24, 7))


@pytest.fixture
def fit(monkeypatch, tmp_path, capfd):
    """Run ``fit`` in this process: exit code and stderr."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["scp-models", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0, capfd.readouterr().err

    return call


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ((), "all"),
        (("--model.variant", "base_f"), "all"),
        (("--model.variant", "base_b", "--data.frame", "slice"), "all"),
        (("--data.frame", "slice", "--data.augment", "spatial"), "spatial"),
        (("--model.preset", "paper"), "none"),
        (("--model.preset", "paper", "--data.augment", "intensity"), "intensity"),
    ],
    ids=["recommended", "base f", "base b", "two axes", "paper", "given"],
)
def test_augmentation_from_the_command_line(fit, root, tmp_path, caplog, more, expected):
    code, err = fit(*fit_arguments(root, tmp_path / "run", 1, *more))
    assert code == 0, err
    assert f"; augmentation {expected}" in caplog.text and "of the training's time went by waiting" in caplog.text
    stored = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["augmentation"]
    assert stored["augment"] == expected and ("degrees" in stored) == (expected != "none")


def test_two_processes_load_slices_unless_told(fit, root, tmp_path, monkeypatch):
    """Without a recipe too; in Python none."""
    seen = []

    def stop(self):
        seen.append(self.datamodule.num_workers)
        raise UserError("seen enough")

    monkeypatch.setattr(FitCLI, "before_fit", stop)
    for more in ((), ("--data.num_workers", 0), ("--config", "wmh")):
        code, err = fit("fit", *more, "--data.root", root, "--out", tmp_path / "run", "--trainer.accelerator", "cpu")
        assert code == 2 and "seen enough" in err
    assert seen == [2, 0, 2] and SegmentationDataModule(str(root)).num_workers == 0


def test_the_packaged_paper_recipe_is_not_augmented(fit, root, tmp_path, caplog):
    arguments = ["wmh_paper" if value == "wmh" else value for value in fit_arguments(root, tmp_path / "run", 1)]
    code, err = fit(*arguments, "--trainer.fast_dev_run", "true")
    assert code == 0 and "; augmentation none" in caplog.text, err


def test_options_from_the_command_line(fit, root, tmp_path):
    arguments = fit_arguments(root, tmp_path / "run", 1)
    strong = ["--data.augment_options.degrees", 30, "--data.augment_options.scale", "[0.7,1.4]"]
    code, err = fit(*arguments, *strong, "--data.augment_options.mirror", 0)
    assert code == 0, err
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    stored = read_checkpoint(last)["augmentation"]
    assert (stored["degrees"], stored["mirror"], stored["noise"]) == (30, 0, 0.1) and list(stored["scale"]) == [
        0.7,
        1.4,
    ]
    code, err = fit(*arguments, *strong, "--ckpt_path", "last")
    assert code == 2 and f"{last}: expected a checkpoint of this run, with mirror = 0.5; got 0.0" in err
    content = torch.load(last, weights_only=True)
    del content["augmentation"]
    torch.save(content, last)
    code, err = fit(*arguments, "--ckpt_path", "last")
    assert code == 2 and "with augment = 'all'; got 'none'" in err
    for flag, value, words in (
        ("augment", "flip", "augment: expected one of none, spatial, intensity, all, got 'flip'"),
        ("augment_options.mirror", 2, "augment_options.mirror: expected a probability, 0 to 1, got 2"),
        ("augment_options.scale", "[2,1]", "augment_options.scale: expected two positive numbers, smaller first"),
        ("augment_options.degrees", -1, "augment_options.degrees: expected 0 or more, got -1"),
        ("augment_options.flip", 1, "augment_options.flip"),
    ):
        code, err = fit(*fit_arguments(root, tmp_path / "other", 1), f"--data.{flag}", value)
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(lines) == 1 and words in lines[0], err
    with pytest.raises(UserError, match=r"augment: expected one of none, spatial"):
        SegmentationDataModule(str(root), augment="flip")
