"""The examples run as they are, in processes of their own, and show what they say."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = {"ten_lines.py", "left_and_right.py", "command_line.py"}


def run(script: str, out: Path, *arguments: str) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(out / "cache")}
    command = [sys.executable, str(ROOT / "examples" / script), "--out", str(out), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, cwd=out)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_picture(path: Path) -> None:
    picture = matplotlib.image.imread(path)[..., :3]
    assert min(picture.shape[:2]) > 150 and picture.std() > 0.1, path


def percentages(output: str) -> list[float]:
    return [float(number) for number in re.findall(r"([\d.]+)%", output)]


def test_ten_lines(tmp_path):
    plain, head = percentages(run("ten_lines.py", tmp_path))
    assert head > 97 and plain < 80
    check_picture(tmp_path / "ten_lines.png")


def test_left_and_right(tmp_path):
    plain, head = percentages(run("left_and_right.py", tmp_path))
    assert head < 5 and plain > 20, "share of voxels on the wrong side"
    check_picture(tmp_path / "left_and_right.png")


@pytest.mark.parametrize("task", ["wmh", pytest.param("lits", marks=pytest.mark.thorough)])
def test_command_line(task, tmp_path):
    """WMH as it is; a little of LiTS for one epoch, to see that the commands fit together."""
    little = ["--subjects", "6", "--epochs", "1"]
    output = run("command_line.py", tmp_path, "--task", task, *([] if task == "wmh" else little))
    assert [line.split()[2] for line in output.splitlines() if line.startswith("$ scp-models")] == [
        "phantom",
        "show",
        "fit",
        "evaluate",
        "predict",
    ]
    summary = json.loads((tmp_path / f"{task}-run" / "scores" / "summary.json").read_text())
    assert summary["subjects"] >= 1
    if task == "wmh":
        assert summary["dice"]["mean"] > 0.3
    for name in (f"{task}.png", f"{task}-frames.png"):
        check_picture(tmp_path / name)


def test_every_example_is_tested():
    ours = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert ours >= SCRIPTS
