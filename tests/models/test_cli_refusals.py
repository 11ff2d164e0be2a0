"""How ``scp-models`` refuses bad input: one line, exit code 2, and nothing left behind."""

import json

import numpy as np
import pytest
import torch

from scp_models.checkpoints import subject_names
from scp_models.data import SegmentationDataModule
from scp_models.training.module import SegmentationModule
from tests.support.commands import fit_arguments, nothing_left, refused
from tests.support.tiny_data import save, write_lits, write_nnunet, write_wmh


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


@pytest.mark.parametrize("what", ["image", "another subject's image", "reference", "probabilities", "link"])
def test_predictions_never_replace_what_they_are_made_from(run, tmp_path, what):
    torch.manual_seed(0)
    module = SegmentationModule(roi_size=(16, 24), capacity=16, levels=1, task_options={"modalities": ["MR"]})
    checkpoint = tmp_path / "one.ckpt"
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}, checkpoint)
    root = write_nnunet(tmp_path / "data", 2)
    images, out, options = root / "imagesTr", tmp_path / "scans", []
    out.mkdir()
    scan = out / "scan.nii.gz"
    scan.write_bytes((images / "c0_0000.nii.gz").read_bytes())
    inputs = [scan]
    if what == "another subject's image":
        inputs = [images / "c1_0000.nii.gz", scan]
    elif what == "reference":
        inputs, out = [root], root / "labelsTr"
    elif what == "probabilities":
        other = scan.rename(out / "scan_probabilities.nii.gz")
        (tmp_path / "scan.nii.gz").write_bytes((images / "c0_0000.nii.gz").read_bytes())
        inputs, options = [tmp_path / "scan.nii.gz", other], ["--probabilities"]
    elif what == "link":
        (tmp_path / "scan.nii.gz").symlink_to(scan)
        inputs = [tmp_path / "scan.nii.gz"]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")}
    arguments = ("predict", checkpoint, *inputs, *options, "--out", out)
    refused(run(*arguments), str(out), "expected another folder for predictions")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")} == before
    assert run(*arguments[:-1], tmp_path / "elsewhere")[0] == 0


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
