"""Running the console command as a user does, in a process of its own, and what a refusal is."""

import subprocess
from pathlib import Path

from tests.support.processes import run_python


def scp_models(*arguments, cache: Path | None = None, check: bool = True) -> subprocess.CompletedProcess:
    """``scp-models ARGUMENTS…``; its output is text."""
    env = {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    if cache is not None:
        env["XDG_CACHE_HOME"] = str(cache)
    return run_python("-m", "scp_models.cli", *arguments, env=env, check=check)


def fit_arguments(root: Path, out: Path, epochs: int, *more) -> list:
    """``fit`` on a tiny data set, in seconds: without loaders in processes of their own, which take longer to start."""
    return [
        "fit", "--config", "wmh", "--data.root", root, "--data.roi_size", "[16,24]", "--data.batch_size", 6,
        "--data.num_workers", 0, "--model.capacity", 32, "--model.levels", 2, "--model.learning_rate", 0.01,
        "--trainer.max_epochs", epochs, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
        "--out", out, *more,
    ]  # fmt: skip


def refused(result, *words):
    """The contract of bad input: exit code 2, and one line on stderr that has all the words."""
    code, _, err = result
    assert code == 2, err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in err, err
    for word in words:
        assert word in lines[0], lines[0]


def nothing_left(folder):
    return not folder.exists() or not [p for p in folder.rglob("*") if p.is_file()]
