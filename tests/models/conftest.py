"""The command in this process, a tiny data set and a checkpoint of it."""

import pytest
import torch

from scp_models import cli
from tests.support.tiny_data import write_wmh


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run the command in this process: exit code, stdout, stderr."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["scp-models", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def succeed(run):
    """Run the command in this process, successfully: stdout."""

    def call(*arguments):
        code, out, err = run(*arguments)
        assert code == 0, err
        return out

    return call


@pytest.fixture
def root(tmp_path):
    return write_wmh(tmp_path / "wmh", 6)


@pytest.fixture
def checkpoint(tmp_path):
    from scp_models.training.module import SegmentationModule  # imports Lightning, which few files here need

    torch.manual_seed(0)
    module = SegmentationModule(roi_size=(16, 24), capacity=32, levels=2)
    path = tmp_path / "model.ckpt"
    names = {
        "training": ["training_Utrecht_0"],
        "validation": ["training_Singapore_1"],
        "test": ["training_Amsterdam_GE3T_2", "training_Amsterdam_GE3T_5"],
    }
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), "split": names}, path)
    return path
