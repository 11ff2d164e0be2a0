"""One bad subject among many: it is reported and passed over, and the exit code says so."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scp_models.data import find_subjects, get_task
from scp_models.data.splits import split_subjects
from scp_models.errors import Failures
from scp_models.evaluation.scores import read_scores
from scp_models.evaluation.selection import DataSet
from scp_models.training.module import SegmentationModule
from tests.support.tiny_data import save, write_wmh

BAD = "training_Utrecht_0"


@pytest.fixture
def run_lines(run):
    """Run the command in this process: exit code, and the lines of stdout and stderr."""

    def call(*arguments):
        code, out, err = run(*arguments)
        return code, out.splitlines(), err.splitlines()

    return call


@pytest.fixture
def root(tmp_path):
    return write_wmh(tmp_path / "wmh", 4)


@pytest.fixture
def checkpoint(tmp_path):
    module = SegmentationModule(roi_size=(16, 24), capacity=16, levels=1)
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}, tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def corrupt(path):
    path.write_bytes(path.read_bytes()[:-100])
    return path


def test_predict_passes_over_a_corrupt_image(run_lines, root, checkpoint, tmp_path):
    bad = corrupt(root / "training" / "Utrecht" / "0" / "pre" / "T1.nii.gz")
    code, out, err = run_lines("predict", checkpoint, root, "--out", tmp_path / "out")
    assert code == 2
    errors = [line for line in err if line.startswith("error: ")]
    assert len(errors) == 1 and str(bad) in errors[0]
    assert err[-1] == f"skipped 1 of 4 subjects: {BAD}"
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(written) == 3 and f"{BAD}.nii.gz" not in written
    assert sorted(line for line in out if line) == [str(tmp_path / "out" / name) for name in written]


def test_predict_passes_over_inputs_in_which_nobody_is_found(run_lines, root, checkpoint, tmp_path):
    """As `predict a.ckpt folder/*` gives them."""
    subjects = [root / "training" / "Utrecht" / number for number in ("0", "3")]
    (tmp_path / "notes.txt").write_text("none of a subject")
    others = (tmp_path / "notes.txt", tmp_path / "nowhere")
    arguments = ("predict", checkpoint, subjects[0], *others, subjects[1], "--out", tmp_path / "out")
    code, _, err = run_lines(*arguments)
    assert code == 2 and err[-1] == f"skipped 2 of 4 subjects: {others[0]}, {others[1]}"
    assert [str(other) in line for other, line in zip(others, err, strict=False)] == [True, True]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "training_Utrecht_0.nii.gz",
        "training_Utrecht_3.nii.gz",
    ]
    code, _, err = run_lines(*arguments[:-1], tmp_path / "x", "--fail-fast")
    assert code == 2 and len(err) == 1 and not (tmp_path / "x").exists()


def nnunet(folder, root):
    """The same subjects in nnU-Net's layout."""
    for k, subject in enumerate(find_subjects(root, get_task("wmh"))):
        for channel, image in enumerate(subject.images):
            save(folder / "imagesTs" / f"{k}_000{channel}.nii.gz", np.asarray(nib.load(image).dataobj), np.eye(4))
    (folder / "dataset.json").write_text('{"channel_names": {"0": "T1", "1": "FLAIR"}}')
    return folder / "imagesTs" / "2_0001.nii.gz", folder, "2"


def datalist(folder, root):
    """The same subjects in a datalist."""
    lists = [[str(path) for path in subject.images] for subject in find_subjects(root, get_task("wmh"))]
    entries = [[images[0].replace("T1.nii", f"T1_{k}.nii"), images[1]] for k, images in enumerate(lists)]
    for (old, _), (new, _) in zip(lists, entries, strict=True):
        Path(new).write_bytes(Path(old).read_bytes())
    (folder / "list.json").write_text(json.dumps({"test": [{"image": images} for images in entries]}))
    return Path(entries[2][1]), folder / "list.json", "T1_2"


@pytest.mark.parametrize("layout", ["wmh", "nnunet", "datalist"])
def test_predict_passes_over_a_missing_modality(run_lines, root, checkpoint, tmp_path, layout):
    if layout == "wmh":
        missing, data, name = root / "training" / "Utrecht" / "0" / "pre" / "FLAIR.nii.gz", root, BAD
    else:
        missing, data, name = {"nnunet": nnunet, "datalist": datalist}[layout](tmp_path, root)
    missing.unlink()
    arguments = ("predict", checkpoint, data, "--out", tmp_path / "out")
    code, _, err = run_lines(*arguments, "--fail-fast")
    assert code == 2 and not (tmp_path / "out").exists()
    code, _, err = run_lines(*arguments)
    errors = [line for line in err if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and str(missing) in errors[0]
    assert err[-1] == f"skipped 1 of 4 subjects: {name}"
    written = [path.name for path in (tmp_path / "out").iterdir()]
    assert len(written) == 3 and f"{name}.nii.gz" not in written


def test_fail_fast_stops_at_the_first(run_lines, root, checkpoint, tmp_path):
    for site in ("Utrecht/0", "Utrecht/3"):
        corrupt(root / "training" / site / "pre" / "T1.nii.gz")
    code, _, err = run_lines("predict", checkpoint, root, "--out", tmp_path / "out", "--fail-fast")
    assert code == 2 and len([line for line in err if line.startswith("error: ")]) == 1
    assert not any(line.startswith("skipped") for line in err)
    corrupt(root / "training" / "Singapore" / "1" / "wmh.nii.gz")
    result = run_lines("evaluate", checkpoint, "--data", root, "--split", "all", "--out", tmp_path / "x", "--fail-fast")
    assert result[0] == 2 and not list((tmp_path / "x").iterdir())


def test_evaluate_scores_the_others(run_lines, root, checkpoint, tmp_path):
    corrupt(root / "training" / "Utrecht" / "0" / "wmh.nii.gz")
    code, out, err = run_lines("evaluate", checkpoint, "--data", root, "--split", "all", "--out", tmp_path / "out")
    assert code == 2 and err[-1] == f"skipped 1 of 4 subjects: {BAD}"
    assert out[-3].startswith("3 subjects: Dice")
    assert out[-2:] == [str(tmp_path / "out" / name) for name in ("scores.csv", "summary.json")]
    assert len(read_scores(tmp_path / "out" / "scores.csv")) == 3
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["subjects"] == 3 and list(summary["skipped"]) == [BAD]


@pytest.mark.parametrize("who", ["--split all", "--split-file", "checkpoint"])
def test_evaluate_passes_over_a_missing_modality(run_lines, root, checkpoint, tmp_path, who):
    missing = root / "training" / "Utrecht" / "0" / "pre" / "FLAIR.nii.gz"
    names = sorted(subject.name for subject in find_subjects(root, get_task("wmh")))
    # One that trained is incomplete too: that concerns nobody.
    other = root / "training" / "Utrecht" / "3" / "pre" / "FLAIR.nii.gz"
    split = {"training": names[3:], "validation": names[:1], "test": [BAD, *names[:1]]}
    arguments = ["--out", tmp_path / "out", "--data", root]
    if who == "checkpoint":
        torch.save({**torch.load(checkpoint, weights_only=False), "split": split}, checkpoint)
    elif who == "--split-file":
        (tmp_path / "split.json").write_text(json.dumps({**split, "validation": names[1:2]}))
        arguments += ["--split-file", tmp_path / "split.json"]
    else:
        arguments += ["--split", "all"]
    assert names[2:] == [BAD, "training_Utrecht_3"]
    missing.unlink()
    if who != "--split all":
        other.unlink()
    code, out, err = run_lines("evaluate", checkpoint, *arguments)
    total = 4 if who == "--split all" else 2
    errors = [line for line in err if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and str(missing) in errors[0]
    assert err[-1] == f"skipped 1 of {total} subjects: {BAD}" and out[-3].startswith(f"{total - 1} subject")
    code, _, err = run_lines("evaluate", checkpoint, *arguments, "--fail-fast")
    assert code == 2 and not any(line.startswith("skipped") for line in err)


@pytest.mark.parametrize("damage", [corrupt, lambda path: save(path, np.full((20, 24, 6), -3.0), np.eye(4))])
def test_evaluate_passes_over_a_bad_prediction(run_lines, root, tmp_path, damage):
    for subject in find_subjects(root, get_task("wmh")):
        image = nib.load(subject.label)
        save(tmp_path / "masks" / f"{subject.name}.nii.gz", np.asarray(image.dataobj), image.affine)
    damage(tmp_path / "masks" / f"{BAD}.nii.gz")
    arguments = ("--data", root, "--split", "all", "--out", tmp_path / "out")
    code, out, err = run_lines("evaluate", "--predictions", tmp_path / "masks", *arguments)
    assert code == 2 and err[-1] == f"skipped 1 of 4 subjects: {BAD}"
    assert out[-3].startswith("3 subjects: Dice 1.0000")


def test_evaluate_passes_over_a_missing_prediction(run_lines, root, checkpoint, tmp_path):
    """What predict leaves after it has skipped a subject is scored."""
    damaged = root / "training" / "Utrecht" / "0" / "pre" / "FLAIR.nii.gz"
    whole = damaged.read_bytes()
    corrupt(damaged)
    run_lines("predict", checkpoint, root, "--out", tmp_path / "masks")
    damaged.write_bytes(whole)
    arguments = ("evaluate", "--predictions", tmp_path / "masks", "--data", root, "--split", "all")
    code, out, err = run_lines(*arguments, "--out", tmp_path / "out")
    assert code == 2 and err[-1] == f"skipped 1 of 4 subjects: {BAD}" and out[-3].startswith("3 subjects: Dice")
    assert f"error: {tmp_path}/masks/{BAD}.nii.gz: expected a prediction, there is none" in err
    assert run_lines(*arguments, "--out", tmp_path / "x", "--fail-fast")[0] == 2 and not list(
        (tmp_path / "x").iterdir()
    )


@pytest.mark.parametrize("who", ["all", "test"])
def test_evaluate_predictions_passes_over_a_missing_modality(run_lines, root, tmp_path, who):
    for subject in (everyone := find_subjects(root, get_task("wmh"))):
        image = nib.load(subject.label)
        save(tmp_path / "masks" / f"{subject.name}.nii.gz", np.asarray(image.dataobj), image.affine)
    chosen = everyone if who == "all" else split_subjects(everyone, get_task("wmh").split, 0, "")["test"]
    chosen[0].images[1].unlink()
    arguments = ("evaluate", "--predictions", tmp_path / "masks", "--data", root, "--split", who)
    code, _, err = run_lines(*arguments, "--out", tmp_path / "out")
    assert code == 2 and str(chosen[0].images[1]) in err[0]
    assert err[-1:] == ([f"skipped 1 of 4 subjects: {chosen[0].name}"] if who == "all" else err[:1])


def test_an_incomplete_subject_leaves_the_split_as_it_is(tmp_path):
    """One that is published for a part stays in it, with a name that tells it from others."""
    entries = {"training": [], "test": []}
    for k in range(8):
        path = tmp_path / f"{k}" / "scan.nii.gz"
        save(path, np.zeros((4, 4, 2), np.float32), np.eye(4))
        entries["test" if k in (0, 5) else "training"].append(
            {"image": f"{k}/scan.nii.gz", "label": f"{k}/scan.nii.gz"}
        )
    (tmp_path / "datalist.json").write_text(json.dumps(entries))
    task, data = get_task("wmh", None, {"modalities": ["MR"]}), DataSet(tmp_path)

    def division(failures):
        parts = {}
        for part in ("training", "validation", "test"):
            chosen = data.divided(
                task, lambda subjects, p=part: split_subjects(subjects, (4, 2, 2), 0, "")[p], failures
            )
            parts[part] = [subject.name for subject in chosen]
        return parts

    whole = division(Failures(fail_fast=True))
    (tmp_path / "5" / "scan.nii.gz").unlink()
    (tmp_path / whole["training"][0].removesuffix("_scan") / "scan.nii.gz").unlink()
    part = division(Failures())
    assert whole["test"] == ["0_scan", "5_scan"] and part["test"] == ["0_scan"]
    assert part["training"] == whole["training"][1:] and part["validation"] == whole["validation"]


def test_show_draws_the_others(run_lines, root, tmp_path):
    corrupt(root / "training" / "Utrecht" / "0" / "pre" / "FLAIR.nii.gz")
    (root / "training" / "Singapore" / "1" / "pre" / "T1.nii.gz").unlink()
    code, out, err = run_lines("show", root, "--out", tmp_path / "frames.png")
    assert code == 2 and out[-1] == str(tmp_path / "frames.png") and (tmp_path / "frames.png").is_file()
    assert err[-1] == f"skipped 2 of 4 subjects: training_Singapore_1, {BAD}"
    code, out, _ = run_lines("show", root / "training" / "Utrecht" / "0", "--out", tmp_path / "none.png")
    assert code == 2 and not any(out) and not (tmp_path / "none.png").exists()


def test_nothing_is_written_where_every_subject_is_bad(run_lines, root, checkpoint, tmp_path):
    for label in root.rglob("wmh.nii.gz"):
        corrupt(label)
    code, _, err = run_lines("evaluate", checkpoint, "--data", root, "--split", "all", "--out", tmp_path / "out")
    assert code == 2 and err[-1].startswith("skipped 4 of 4 subjects: ") and not list((tmp_path / "out").iterdir())


def test_n4_corrects_the_others(run_lines, root, tmp_path):
    pytest.importorskip("SimpleITK")
    folder = root / "training" / "Utrecht" / "0" / "orig"
    corrupt(folder / "T1.nii.gz")
    code, _, err = run_lines("n4", folder / "T1.nii.gz", folder / "FLAIR.nii.gz", "--out", tmp_path / "out")
    assert code == 2 and err[-1] == "skipped 1 of 2 subjects: T1.nii.gz"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["FLAIR.nii.gz"]
