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
@pytest.mark.parametrize("epochs", [1, pytest.param(None, marks=pytest.mark.thorough, id="as it is")])
def test_nnunet(tmp_path, epochs):
    """As it is, or only to see that its commands fit together."""
    environment = {**nnunet_copy(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path)]
    command += [] if epochs is None else ["--epochs", str(epochs)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    shares = [float(share) for share in re.findall(r"([\d.]+)% of what was found is on the wrong side", done.stdout)]
    assert len(shares) == 3
    dice = dict(re.findall(r"(left|right) ([\d.]+)", done.stdout.partition("Dice: ")[2]))
    assert set(dice) == {"left", "right"}
    if epochs is None:
        assert max(shares) < 10 and min(map(float, dice.values())) > 0.5
    picture = matplotlib.image.imread(tmp_path / "sides.png")[..., :3]
    assert min(picture.shape[:2]) > 150 and picture.std() > 0.1
