"""``scp-models`` as a user meets it: what it writes, and how it refuses bad input."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from scp_models import cli
from scp_models.checkpoints import load_model, subject_names
from scp_models.data import SegmentationDataModule, find_subjects, get_task
from scp_models.evaluation.scores import read_scores
from scp_models.inference.predictor import Predictor
from scp_models.training.fit import resolve_config
from scp_models.training.module import SegmentationModule
from tests.support.commands import fit_arguments
from tests.support.tiny_data import save, write_lits, write_wmh


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
def root(tmp_path):
    return write_wmh(tmp_path / "wmh", 6)


@pytest.fixture
def checkpoint(tmp_path):
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


def test_help_names_every_command():
    result = CliRunner().invoke(cli.app, ["--help"])
    assert result.exit_code == 0
    for name in ("fit", "evaluate", "compare", "predict", "complexity", "phantom", "demo"):
        assert name in result.output


def test_help_of_fit_explains_every_option_of_the_model_and_the_data(run):
    code, out, _ = run("fit", "--help")
    option = r"\n  --((?:model|data)\.\w+) (?:\S+, --\S+ )?\S+\s+"
    assert code == 0 and {"model.capacity", "data.task"} <= set(re.findall(option, out))
    assert re.findall(option + r"\((?:required, )?type:", out) == []


def test_complexity_json(run):
    code, out, _ = run("complexity", "--json")
    rows = json.loads(out)
    assert code == 0 and len(rows) == 12
    keys = {"model", "nc", "parameters", "macs", "parameters_ratio", "macs_ratio"}
    assert all(keys <= set(row) for row in rows)
    code, out, _ = run("complexity")
    assert code == 0 and "Base F" in out and "21.76" in out


def test_evaluate_compare_predict(run, root, checkpoint, tmp_path):
    code, out, err = run("evaluate", checkpoint, "--data", root, "--split", "all", "--out", tmp_path / "a")
    assert code == 0, err
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["subjects"] == 6
    assert out.splitlines()[-1] == str(tmp_path / "a" / "summary.json")
    assert "challenge F1" in out and "HD95" in out and "warning" not in err
    run("evaluate", checkpoint, "--data", root, "--out", tmp_path / "held-out", "--threshold", 0.25)
    assert json.loads((tmp_path / "held-out" / "summary.json").read_text())["threshold"] == 0.25
    assert set(read_scores(tmp_path / "held-out" / "scores.csv")) == {
        "training_Amsterdam_GE3T_2",
        "training_Amsterdam_GE3T_5",
    }
    code, out, err = run("predict", checkpoint, root / "training" / "Utrecht", "--out", tmp_path / "p")
    assert code == 0, err
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == [
        "training_Utrecht_0.nii.gz",
        "training_Utrecht_3.nii.gz",
    ]
    source = nib.load(root / "training" / "Utrecht" / "0" / "pre" / "T1.nii.gz")
    assert np.array_equal(nib.load(tmp_path / "p" / "training_Utrecht_0.nii.gz").affine, source.affine)
    run("predict", checkpoint, root, "--out", tmp_path / "all", "--threshold", 0.05)
    code, _, err = run(
        "evaluate", "--predictions", tmp_path / "all", "--data", root, "--split", "all", "--out", tmp_path / "b"
    )
    assert code == 0, err
    code, out, err = run("compare", tmp_path / "a" / "scores.csv", tmp_path / "b" / "scores.csv")
    assert code == 0 and "dice: difference" in out and "6 subjects" in out, err


def test_the_checkpoints_threshold_counts(run, root, checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["threshold"] = 0.25
    torch.save(content, tmp_path / "own.ckpt")
    code, _, err = run("evaluate", tmp_path / "own.ckpt", "--data", root, "--out", tmp_path / "scores")
    assert code == 0 and json.loads((tmp_path / "scores" / "summary.json").read_text())["threshold"] == 0.25, err
    assert Predictor(load_model(tmp_path / "own.ckpt")).threshold == 0.25


def test_a_mean_says_for_how_many_subjects_it_is_defined(run, root, tmp_path):
    for k, subject in enumerate(find_subjects(root, get_task("wmh"))):
        reference = nib.load(subject.label)
        mask = (np.asarray(reference.dataobj) == 1).astype(np.uint8) * (k > 0)
        save(tmp_path / "masks" / f"{subject.name}.nii.gz", mask, reference.affine)
    arguments = ("--data", root, "--split", "all", "--out", tmp_path / "scores")
    code, out, err = run("evaluate", "--predictions", tmp_path / "masks", *arguments)
    assert code == 0 and "HD95 0.0000 mm (5 of 6 subjects)" in out and "Dice 0.8333, " in out, err


def test_references_without_a_target_are_told(run, root, checkpoint, tmp_path):
    for label in root.rglob("wmh.nii.gz"):
        save(label, np.zeros((20, 24, 6), np.float32), nib.load(label).affine)
    code, _, err = run("evaluate", checkpoint, "--data", root, "--out", tmp_path / "scores")
    assert code == 0 and "no reference has the target label [1]: the scores say nothing" in err


def test_predicting_files_of_ones_own(run, root, checkpoint, tmp_path):
    """One subject of two files, however called and wherever they lie: as the same files in the challenge's layout."""
    folder = root / "training" / "Utrecht" / "0"
    for name in ("T1", "FLAIR"):
        (tmp_path / f"mine_{name}.nii.gz").write_bytes((folder / "pre" / f"{name}.nii.gz").read_bytes())
    files = ("--image", tmp_path / "mine_T1.nii.gz", "--image", tmp_path / "mine_FLAIR.nii.gz")
    code, out, err = run("predict", checkpoint, *files, "--out", tmp_path / "out", "--threshold", 0.01)
    assert code == 0 and out.strip() == str(tmp_path / "out" / "mine.nii.gz"), err
    run("predict", checkpoint, folder, "--out", tmp_path / "out", "--threshold", 0.01)
    mask, same = (nib.load(tmp_path / "out" / f"{name}.nii.gz") for name in ("mine", "training_Utrecht_0"))
    assert np.array_equal(mask.dataobj, same.dataobj) and np.any(mask.dataobj)
    code, out, _ = run("predict", checkpoint, *("--image", folder / "pre" / "T1.nii.gz") * 2, "--out", tmp_path / "out")
    assert code == 0 and out.strip().endswith("T1.nii.gz")
    refused(run("predict", checkpoint, *files[:2], "--out", tmp_path / "x"), "mine_T1.nii.gz", "--image FILE, one each")
    refused(
        run("predict", checkpoint, *files, *files[:2], "--out", tmp_path / "x"), "--image: expected 2 files", "got 3"
    )
    refused(
        run("predict", checkpoint, "--image", tmp_path / "no.nii", "--out", tmp_path / "x"), "no.nii", "there is none"
    )
    refused(run("predict", checkpoint, "--out", tmp_path / "x"), "expected what to segment")
    assert nothing_left(tmp_path / "x")


def test_phantom(run, tmp_path):
    code, _, err = run("phantom", "wmh", tmp_path / "p", "--subjects", 1, "--seed", 3, "--size", "small")
    assert code == 0, err
    assert len(list((tmp_path / "p").rglob("wmh.nii.gz"))) == 1
    refused(run("phantom", "wmh", tmp_path / "q", "--subjects", 0, "--size", "small"), "subjects")
    assert nothing_left(tmp_path / "q")


def test_label_affine_decides_for_evaluate(run, root, checkpoint, tmp_path):
    """A reference two voxels aside of its image is taken where it lies, unless the option says otherwise."""
    subject = next(s for s in find_subjects(root, get_task("wmh")) if s.name == "training_Utrecht_0")
    label = nib.load(subject.label)
    stored = np.asarray(label.dataobj)
    save(tmp_path / "out" / "training_Utrecht_0.nii.gz", stored, label.affine)
    save(subject.label, stored, label.affine @ (np.eye(4) + 2 * np.eye(4, k=3)))
    split = {"training": ["training_Utrecht_3"], "validation": ["training_Singapore_1"], "test": [subject.name]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    data = ("--data", root, "--split-file", tmp_path / "split.json", "--out", tmp_path / "s")
    for how in ((checkpoint,), ("--predictions", tmp_path / "out")):
        rows = []
        for rule in ("header", "image"):
            code, _, err = run("evaluate", *how, *data, "--label-affine", rule, "--threshold", 0)
            assert code == 0, err
            (scores,) = read_scores(tmp_path / "s" / "scores.csv").values()
            rows.append(scores)
        assert rows[0] != rows[1] and (how[0] == checkpoint or rows[1]["dice"] == 1.0)
        refused(run("evaluate", *how, *data, "--label-affine", "sform"), "label_affine: expected one of auto, header")


def test_missing_modality(run, root, checkpoint, tmp_path):
    (root / "training" / "Singapore" / "1" / "pre" / "FLAIR.nii.gz").unlink()
    arguments = ("predict", checkpoint, root / "training" / "Singapore" / "1", "--out", tmp_path / "out")
    refused(run(*arguments), "FLAIR.nii.gz", "expected the modalities")
    assert nothing_left(tmp_path / "out")


@pytest.mark.parametrize("fault", ["rgb", "complex", "dimension", "pixel size"])
def test_headers_that_make_no_volume(run, checkpoint, tmp_path, fault):
    kind = {"rgb": [("R", "u1"), ("G", "u1"), ("B", "u1")], "complex": np.complex64}.get(fault, np.float32)
    save(tmp_path / "a.nii", np.zeros((20, 24, 6), kind), np.diag([1.0, 1, 3, 1]))
    content = bytearray((tmp_path / "a.nii").read_bytes())
    if fault == "dimension":
        content[46:48] = np.int16(-6).tobytes()
    if fault == "pixel size":
        content[88:92] = bytes(4)
    (tmp_path / "a.nii").write_bytes(content)
    image = ("--image", tmp_path / "a.nii")
    refused(run("predict", checkpoint, *image, *image, "--out", tmp_path / "out"), "a.nii: expected")
    assert nothing_left(tmp_path / "out")


def test_wrong_shape(run, root, checkpoint, tmp_path):
    path = root / "training" / "Utrecht" / "0" / "pre" / "FLAIR.nii.gz"
    save(path, np.zeros((5, 5, 5), np.float32), np.eye(4))
    refused(run("predict", checkpoint, path.parent.parent, "--out", tmp_path / "out"), str(path), "expected shape")
    assert nothing_left(tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"not an image", None], ids=["empty", "text", "truncated"])
def test_corrupt_image(run, root, checkpoint, tmp_path, content):
    path = root / "training" / "Utrecht" / "0" / "pre" / "T1.nii.gz"
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    refused(
        run("predict", checkpoint, path.parent.parent, "--out", tmp_path / "out"), str(path), "expected a NIfTI file"
    )
    assert nothing_left(tmp_path / "out")


def test_labels_outside_0_1_2(run, root, checkpoint, tmp_path):
    path = root / "training" / "Utrecht" / "0" / "wmh.nii.gz"
    save(path, np.full((20, 24, 6), 7, np.float32), np.eye(4))
    arguments = ("--data", root, "--split", "all", "--out", tmp_path / "out", "--fail-fast")
    refused(run("evaluate", checkpoint, *arguments), str(path), "got also [7.0]")
    assert nothing_left(tmp_path / "out")


def test_empty_split(run, checkpoint, tmp_path):
    root = write_wmh(tmp_path / "two", 2)
    result = run("evaluate", "--predictions", tmp_path, "--data", root, "--out", tmp_path / "out")
    refused(result, str(root), "expected at least 3")
    (tmp_path / "split.json").write_text(
        json.dumps({"training": ["training_Utrecht_0"], "validation": ["training_Singapore_1"], "test": []})
    )
    file = ("--split-file", tmp_path / "split.json")
    refused(run("evaluate", checkpoint, "--data", root, *file, "--out", tmp_path / "out"), "split.json", "empty")
    refused(run(*fit_arguments(root, tmp_path / "run", 1)), str(root), "expected at least 3")
    assert nothing_left(tmp_path / "run" / "checkpoints")


def test_checkpoint_of_another_configuration(run, root, checkpoint, tmp_path):
    lits = write_lits(tmp_path / "lits")
    refused(run("predict", checkpoint, lits, "--out", tmp_path / "out"), str(lits), "'wmh'")
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["capacity"] = 64
    torch.save(content, checkpoint)
    refused(run("predict", checkpoint, root, "--out", tmp_path / "out"), str(checkpoint), "size mismatch")
    checkpoint.write_bytes(b"PK")
    refused(run("predict", checkpoint, root, "--out", tmp_path / "out"), str(checkpoint), "cannot be read")
    assert nothing_left(tmp_path / "out")


def test_unwritable_output(run, root, checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    refused(run("predict", checkpoint, root, "--out", out), str(out), "cannot write there")
    refused(run("evaluate", checkpoint, "--data", root, "--out", out), str(out), "cannot write there")
    refused(run("phantom", "lits", out, "--subjects", 1, "--size", "small"), str(out))
    refused(run(*fit_arguments(root, out, 1)), str(out))


def test_training_on_unreadable_data(run, root, tmp_path):
    arguments = fit_arguments(root, tmp_path / "run", 1)
    label = root / "training" / "Utrecht" / "0" / "wmh.nii.gz"
    whole = label.read_bytes()
    save(label, np.full((20, 24, 6), 3, np.float32), np.eye(4))
    every = ["--data.split", "[4,1,1]", "--data.split_file", str(tmp_path / "split.json")]
    names = ["training_Utrecht_0", "training_Singapore_1", "training_Amsterdam_GE3T_2"]
    (tmp_path / "split.json").write_text(
        json.dumps(dict(zip(("training", "validation", "test"), ([n] for n in names), strict=True)))
    )
    refused(run(*arguments, *every), str(label), "got also [3.0]")
    label.write_bytes(whole[:-50])
    refused(run(*arguments, *every), str(label), "expected a NIfTI file")
    assert nothing_left(tmp_path / "run")


def test_resuming_from_something_else(run, root, checkpoint, tmp_path):
    arguments = fit_arguments(root, tmp_path / "run", 1, "--data.frame", "slice")
    ours = torch.load(checkpoint, weights_only=True)
    ours["hyper_parameters"]["learning_rate"] = 0.01
    ours["split"] = subject_names(SegmentationDataModule(str(root)).divide())

    def refused_with(content, *words):
        path = tmp_path / "other.ckpt"
        torch.save(content, path)
        refused(run(*arguments, "--ckpt_path", path), str(path), *words)

    refused(run(*arguments, "--ckpt_path", tmp_path / "none.ckpt"), "none.ckpt", "there is none")
    other = {**ours["hyper_parameters"], "capacity": 64}
    refused_with({**ours, "hyper_parameters": other}, "with capacity = 32; got 64")
    refused_with({**ours, "split": {**ours["split"], "test": ["x"]}}, "trained on other subjects")
    refused_with({"weights": 1}, "got a file of something else")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.write_bytes(checkpoint.read_bytes()[:1000])
    refused(run(*arguments, "--ckpt_path", "last"), str(last), "cannot be read")
    last.unlink()
    assert nothing_left(tmp_path / "run")


def test_another_runs_checkpoints_are_kept(run, root, tmp_path):
    arguments = fit_arguments(root, tmp_path / "run", 1)
    code, _, err = run(*arguments)
    assert code == 0, err
    folder = tmp_path / "run" / "checkpoints"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    refused(run(*arguments), str(folder / "best.ckpt"), "--ckpt_path last", "--overwrite")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    code, _, err = run(*arguments, "--overwrite", "--seed_everything", 1)
    assert code == 0, err
    assert (folder / "last.ckpt").read_bytes() != before["last.ckpt"]
    code, _, err = run(*fit_arguments(root, tmp_path / "run", 2), "--ckpt_path", "last", "--seed_everything", 1)
    assert code == 0 and torch.load(folder / "last.ckpt", weights_only=True)["epoch"] == 1, err


def test_a_cache_that_cannot_be_written(run, root, tmp_path):
    (tmp_path / "file").write_text("")
    cache = tmp_path / "file" / "cache"
    arguments = fit_arguments(root, tmp_path / "run", 1)
    refused(run(*arguments, "--data.cache_dir", cache), str(cache), "cannot write there")


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--model.variant", "other", ["variant: expected one of"]),
        ("--model.capacity", "33", ["multiple of 16"]),
        ("--model.capacity", "many", ["model.capacity"]),
        ("--data.batch_size", "0", ["batch_size: expected at least 1"]),
        ("--data.task", "other", ["task: expected one of"]),
        ("--trainer.precision", "7", ["trainer.precision"]),
        ("--trainer.accelerator", "other", ["accelerator"]),
        ("--config", "other", ["other"]),
        ("--data.rooot", "x", ["data.rooot"]),
    ],
)
def test_options_that_make_no_run(run, root, tmp_path, flag, value, words):
    refused(run(*fit_arguments(root, tmp_path / "run", 1), flag, value), *words)
    assert nothing_left(tmp_path / "run")


def test_packaged_configurations_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wmh").mkdir()  # data of that name is not the configuration
    (tmp_path / "lits.yaml").write_text("out: mine\n")
    for name in ("wmh", "wmh_paper", "lits"):
        assert yaml.safe_load(Path(resolve_config(name)).read_text())["out"] == f"runs/{name}"
    assert resolve_config("lits.yaml") == "lits.yaml"
    assert resolve_config("nowhere.yaml") == "nowhere.yaml"


def test_the_recipes(tmp_path):
    recipes = {name: yaml.safe_load(Path(resolve_config(name)).read_text()) for name in ("wmh", "wmh_paper", "lits")}
    for recipe in recipes.values():
        assert recipe["trainer"]["max_epochs"] == 90 and recipe["data"]["batch_size"] == 14
        assert recipe["model"]["learning_rate"] == 1e-3 and recipe["model"]["weight_decay"] == 1e-6
        assert recipe["model"]["variant"] == "scp" and recipe["model"]["capacity"] == 256
    assert recipes["wmh"]["data"]["split"] == recipes["wmh_paper"]["data"]["split"] == [42, 6, 12]
    assert recipes["lits"]["data"]["split"] == [91, 13, 27]
    # The paper draws slices, whosever they are.
    assert recipes["wmh_paper"]["data"]["sampling"] == "slices" and "sampling" not in recipes["wmh"]["data"]
    assert [recipe["model"]["preset"] for recipe in recipes.values()] == ["recommended", "paper", "recommended"]
    assert get_task("wmh").roi_size == (160, 224) and get_task("lits").roi_size == (256, 256)


def test_other_refusals(run, root, checkpoint, tmp_path):
    refused(run("evaluate", checkpoint), "--data")
    refused(run("evaluate", "--data", root), "expected a checkpoint or --predictions")
    refused(run("evaluate", checkpoint, "--data", root, "--connectivity", 8), "--connectivity")
    for option, value in (("seed", 0), ("task", "lits"), ("target", 2), ("ignored", 1), ("modality", "CT")):
        result = run("evaluate", checkpoint, "--data", root, f"--{option}", value, "--out", tmp_path / "out")
        refused(result, f"--{option}: expected with --predictions only")
    refused(run("predict", checkpoint, root, root, "--out", tmp_path / "out"), "expected every subject's name once")
    refused(run("compare", tmp_path / "a.csv", tmp_path / "b.csv"), str(tmp_path / "a.csv"))
    refused(run("predict", checkpoint, tmp_path / "nowhere"), "there is nothing")
    refused(run("fit", "--config", "wmh"), "data.root")
    code, _, err = run("predict", checkpoint)
    assert code == 2 and "Traceback" not in err


def test_help_imports_no_training_library():
    code = (
        "import sys; sys.argv = ['scp-models', '--help']; from scp_models.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'lightning', 'monai', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_n4(run, root, tmp_path):
    subject = root / "training" / "Utrecht" / "0"
    raw = subject / "orig" / "FLAIR.nii.gz"
    code, out, err = run("n4", raw, "--out", tmp_path / "corrected")
    assert code == 0, err
    assert out.strip() == str(tmp_path / "corrected")
    assert nib.load(tmp_path / "corrected" / "FLAIR.nii.gz").shape == nib.load(raw).shape
    refused(run("n4", raw, "--out", raw.parent), "another folder")
    refused(run("n4", raw, subject / "pre" / "FLAIR.nii.gz", "--out", tmp_path / "x"), "every file name once")
    refused(run("n4", tmp_path / "none.nii", "--out", tmp_path / "x"), "none.nii")
