"""nnU-Net's example runs as it is, in a process of its own, and shows what it says."""

import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest

from tests.support.left_right import nnunet_copy

pytest.importorskip("nnunetv2", reason='nnU-Net is not installed: pip install "scp_kernels[nnunet]"')

SCRIPT = Path(__file__).parents[2] / "examples" / "nnunet.py"


@pytest.mark.minutes
def test_nnunet(tmp_path):
    environment = {**nnunet_copy(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    shares = [float(share) for share in re.findall(r"([\d.]+)% of what was found is on the wrong side", done.stdout)]
    assert shares and max(shares) < 10
    dice = dict(re.findall(r"(left|right) ([\d.]+)", done.stdout.partition("Dice: ")[2]))
    assert set(dice) == {"left", "right"} and min(map(float, dice.values())) > 0.5
    picture = matplotlib.image.imread(tmp_path / "sides.png")[..., :3]
    assert min(picture.shape[:2]) > 150 and picture.std() > 0.1
