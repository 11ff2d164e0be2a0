"""``scp-models`` as a user meets it: what it writes. What it refuses: ``test_cli_refusals.py``."""

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import yaml
from typer.testing import CliRunner

from scp_models import cli
from scp_models.checkpoints import load_model
from scp_models.data import find_subjects, get_task
from scp_models.evaluation.scores import read_scores
from scp_models.inference.predictor import Predictor
from scp_models.training.fit import resolve_config
from tests.support.commands import nothing_left, refused
from tests.support.processes import run_python
from tests.support.tiny_data import save


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
    twice = ("--image", folder / "pre" / "T1.nii.gz") * 2
    refused(run("predict", checkpoint, *twice, "--out", tmp_path / "x"), "T1.nii.gz", "expected FLAIR in this place")
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


def test_help_imports_no_training_library():
    code = (
        "import sys; sys.argv = ['scp-models', '--help']; from scp_models.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'lightning', 'monai', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    run_python("-c", code)


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
