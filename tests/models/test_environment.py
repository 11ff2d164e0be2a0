"""Where the command runs: without a home folder, on terminals of other encodings; and what it imports."""

import gzip
import json
import os
import struct
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from scp_models.data.slices import default_cache_dir, temporary_cache_dir
from scp_models.errors import UserError
from scp_models.optional import package_folder, simpleitk
from scp_models.training.module import SegmentationModule
from tests.support.commands import fit_arguments
from tests.support.processes import run_python
from tests.support.tiny_data import write_wmh, write_wmh_subject

# Predicting a subject added 519 modules to those of `import torch` (PyTorch 2.11), 72 of them Triton's.
MOST_MODULES = 600
HEAVY = {"lightning", "monai", "matplotlib", "pandas", "torchmetrics", "jsonargparse", "tensorboard"}


def run(*arguments, **environment):
    """The command in a process of its own, with a changed environment (None: unset)."""
    env = {"OMP_NUM_THREADS": "1", **environment}
    return run_python("-m", "scp_models.cli", *arguments, env=env, text=False, check=False)


@pytest.fixture
def checkpoint(tmp_path):
    module = SegmentationModule(roi_size=(16, 24), capacity=16, levels=1)
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}, tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def test_predicting_imports_no_training_library(checkpoint, tmp_path):
    write_wmh_subject(tmp_path / "7", seed=0)
    code = f"""
import json, sys
import torch
before = set(sys.modules)
sys.argv = ["scp-models", "predict", {str(checkpoint)!r}, {str(tmp_path / "7")!r}, "--out", {str(tmp_path / "out")!r}]
from scp_models.cli import main
try: main()
except SystemExit as stop: assert not stop.code
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    done = run_python("-c", code)
    modules = json.loads(done.stdout.splitlines()[-1])
    assert (tmp_path / "out" / "7.nii.gz").is_file()
    assert not HEAVY & {module.split(".")[0] for module in modules}
    assert len(modules) < MOST_MODULES, len(modules)


@pytest.mark.parametrize("split", ["all", "test"])
def test_scoring_files_imports_no_training_library(tmp_path, split):
    write_wmh(tmp_path / "wmh", 4)
    (tmp_path / "masks").mkdir()
    for label in (tmp_path / "wmh").rglob("wmh.nii.gz"):
        name = "_".join(label.parent.relative_to(tmp_path / "wmh").parts)
        (tmp_path / "masks" / f"{name}.nii.gz").write_bytes(label.read_bytes())
    code = f"""
import sys
sys.argv = ["scp-models", "evaluate", "--predictions", {str(tmp_path / "masks")!r}, "--data", {str(tmp_path / "wmh")!r},
            "--split", {split!r}, "--out", {str(tmp_path / "out")!r}]
from scp_models.cli import main
try: main()
except SystemExit as stop: assert not stop.code
print(set({sorted(HEAVY)}) & {{module.split(".")[0] for module in sys.modules}})
"""
    done = run_python("-c", code)
    assert done.stdout.splitlines()[-1] == "set()"


def test_stderr_has_no_line_that_names_no_file(checkpoint, tmp_path):
    write_wmh_subject(tmp_path / "7", seed=0)
    path = tmp_path / "7" / "pre" / "T1.nii.gz"
    header = bytearray(gzip.decompress(path.read_bytes()))
    header[80:84] = struct.pack("<f", -1)  # pixdim[1], which nibabel takes for 1
    path.write_bytes(gzip.compress(bytes(header)))
    done = run("predict", checkpoint, tmp_path / "7", "--out", tmp_path / "out")
    assert done.returncode == 0 and b"pixdim" not in done.stderr, done.stderr


def test_the_cache_is_below_home_if_that_can_be_written(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert default_cache_dir() == tmp_path / "elsewhere" / "scp_models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_dir() == tmp_path / "home" / ".cache" / "scp_models"
    assert not (tmp_path / "home").exists()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert default_cache_dir() == temporary_cache_dir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as for another user than root
    monkeypatch.setenv("HOME", "/")
    assert default_cache_dir() == temporary_cache_dir()

    def no_such_user():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_such_user)
    assert default_cache_dir() == temporary_cache_dir()
    assert temporary_cache_dir().parent == Path(tempfile.gettempdir())


def test_training_without_a_home_folder(tmp_path):
    root = write_wmh(tmp_path / "wmh", 3)
    (tmp_path / "file").write_text("")
    # A short path: tensors of loading processes pass through sockets there, whose names have at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="scp") as temporary:
        nowhere = {"HOME": str(tmp_path / "file"), "XDG_CACHE_HOME": None, "TMPDIR": temporary}
        done = run(*fit_arguments(root, tmp_path / "run", 1), **nowhere)
        assert done.returncode == 0, done.stderr
        assert list(Path(temporary).rglob("*-image.npy"))
    assert b"no home folder to write to: preprocessed slices are kept in " in done.stderr
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize(
    "environment",
    [
        *(
            pytest.param({"PYTHONIOENCODING": name}, marks=pytest.mark.thorough, id=f"PYTHONIOENCODING={name}")
            for name in ("latin-1", "ascii")
        ),
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=lambda environment: next(iter(environment)) + "=" + next(iter(environment.values())),
)
def test_other_encodings(checkpoint, tmp_path, environment):
    """A subject called Ψ: its file is written, whatever the terminal can show."""
    write_wmh_subject(tmp_path / "Ψ", seed=0)
    done = run("predict", checkpoint, tmp_path / "Ψ", "--out", tmp_path / "out", **environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "Ψ.nii.gz").is_file() and b".nii.gz" in done.stdout
    done = run("predict", checkpoint, tmp_path / "Ω", "--out", tmp_path / "out", **environment)
    assert done.returncode == 2 and b"there is nothing" in done.stderr and b"Traceback" not in done.stderr
    done = run("complexity", **environment)
    assert done.returncode == 0 and b"Base F" in done.stdout, done.stderr


def test_a_folder_of_a_packages_name_is_not_the_package(tmp_path, monkeypatch):
    assert (package_folder("monai") / "__init__.py").is_file() and package_folder("no_such_package") is None
    for name in ("SimpleITK", "nnunetv2"):
        (tmp_path / name).mkdir()
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert package_folder("nnunetv2") is None
    with pytest.raises(UserError, match=r"a.mha: reading it needs SimpleITK: .*has its name and is a folder without"):
        simpleitk("a.mha: reading it", "itk")


def test_the_report_of_an_installation_on_any_terminal():
    """A compiler's reason may have characters that the terminal's encoding lacks."""
    code = """
import sys
from scp_kernels import __main__
__main__.build_record = lambda: {"cpu": {"built": False, "reason": "error: \u2018x\u2019 was not declared"}}
sys.argv = ["scp_kernels"]
sys.exit(__main__.main())
"""
    done = run_python("-c", code, env={"PYTHONIOENCODING": "latin-1"}, text=False)
    assert b"error: ?x? was not declared" in done.stdout
