"""Tasks: presets, options of one's own, and what a data set's dataset.json says."""

import json

import numpy as np
import pytest
import torch

from scp_models.checkpoints import load_model
from scp_models.data import SegmentationDataModule, Subject, VolumeReader, get_task
from scp_models.errors import UserError
from tests.support.commands import fit_arguments, refused
from tests.support.tiny_data import affine_for, save, write_decathlon

NNUNET = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "liver": 1, "lesion": 2, "ignore": 3}}
DECATHLON = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "hippocampus"}}


def described(tmp_path, content, task="lits", **options):
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    return SegmentationDataModule(str(tmp_path), task, cache_dir=str(tmp_path / "cache"), **options)


def test_options_replace_the_presets():
    options = {"modalities": ["CT"], "target": [2, 4], "ignored": [7], "window": [-10, 30], "resize": True}
    task = get_task("wmh", (8, 9), options)
    assert task.modalities == ("CT",) and task.roi_size == (8, 9) and task.resize
    assert task.target == (2, 4) and task.ignored == (7,) and task.window == (-10.0, 30.0)
    assert get_task("lits", None, {"window": [], "ignored": []}).window is None
    assert get_task("wmh", None, {"target": [2]}).ignored == ()
    assert get_task("wmh", None, dict.fromkeys(options)) == get_task("wmh")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modalities": []}, "modalities: expected at least one"),
        ({"target": []}, "target: expected labels of 1 or more"),
        ({"target": [0]}, "target: expected labels of 1 or more"),
        ({"target": [1], "ignored": [1]}, "ignored: expected other labels than the target's, got 1"),
        ({"ignored": [0]}, "ignored: expected labels of 1 or more"),
        ({"window": [3, 3]}, "window: expected a lower and a higher bound"),
        ({"windows": [3, 4]}, "task: expected options among .*, got 'windows'"),
    ],
)
def test_options_that_make_no_task(options, message):
    with pytest.raises(UserError, match=message):
        get_task("wmh", None, options)


def test_labels_are_read_as_the_options_say(tmp_path):
    stored = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    save(tmp_path / "image.nii.gz", np.random.default_rng(0).random((2, 2, 2)).astype(np.float32), np.eye(4))
    save(tmp_path / "label.nii.gz", stored, np.eye(4))
    subject = Subject("x", (tmp_path / "image.nii.gz",), tmp_path / "label.nii.gz")
    task = get_task("wmh", (2, 2), {"modalities": ["T1"], "target": [3, 5], "ignored": [6]})
    expected = np.isin(stored, (3, 5)) + 2 * (stored == 6)
    assert np.array_equal(VolumeReader(task).read_label(subject), expected)
    assert VolumeReader(task).stored_labels(subject) == list(range(8))
    save(tmp_path / "label.nii.gz", stored + 0.5, np.eye(4))
    with pytest.raises(UserError, match=r"label.nii.gz: expected labels that are integers, got also \[0.5"):
        VolumeReader(task).read_label(subject)


def test_dataset_json_gives_what_is_not_said(tmp_path):
    data = described(tmp_path, DECATHLON)
    assert data.task.target == (1,) and data.task.ignored == () and data.task.modalities == ("CT",)
    data = described(tmp_path, DECATHLON, "wmh")
    assert data.task.modalities == ("MRI",) and data.task.target == (1,) and data.task.ignored == ()
    data = described(tmp_path, NNUNET)
    assert data.task.target == (2,) and data.task.ignored == (3,)
    assert described(tmp_path, NNUNET, target=[1], ignored=[2]).task_options == {"target": [1], "ignored": [2]}
    hippocampus = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "Anterior", "2": "Posterior"}}
    for target in ([1], [1, 2]):
        task = described(tmp_path, hippocampus, "wmh", target=target).task
        assert task.target == tuple(target) and task.ignored == () and not task.classes
    lits = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "tumour": 2}}
    assert described(tmp_path, lits).task_options is None
    regions = {"labels": {"background": 0, "whole": [1, 2]}}
    assert described(tmp_path, regions).task.target == (1, 2)
    (tmp_path / "dataset.json").write_text("[]")
    assert SegmentationDataModule(str(tmp_path), "lits").task_options is None


def test_training_without_a_target_is_refused(tmp_path):
    root = write_decathlon(tmp_path / "data", 4)
    options = dict(roi_size=(16, 20), cache_dir=str(tmp_path / "cache"))
    # Told nothing, dataset.json says that the label is 1.
    SegmentationDataModule(str(root), "lits", **options).prepare_data()
    with pytest.raises(
        UserError, match=r"data: expected the target label \[2\] in the references .* found none; .* labels \[0, 1\]"
    ):
        SegmentationDataModule(str(root), "lits", target=[2], **options).prepare_data()
    for label in (root / "labelsTr").iterdir():
        save(label, np.pad(np.ones((1, 1, 6), np.uint8), ((0, 19), (0, 23), (0, 0))), affine_for("RAS"))
    with pytest.raises(UserError, match=r"\[1\] inside slices of 2 × 2 .* \(--data.roi_size chooses\)"):
        options["roi_size"] = (2, 2)
        SegmentationDataModule(str(root), "wmh", **options).prepare_data()


def test_a_binary_data_set_of_one_channel_from_fit_to_prediction(run, succeed, tmp_path, caplog):
    root, out = write_decathlon(tmp_path / "data", 6), tmp_path / "run"
    succeed(*fit_arguments(root, out, 1, "--data.window", "[]"))
    assert "task wmh: MRI; target label [1]; z-score" in caplog.text
    assert "training 4 (drawn with seed 0), validation 1 (drawn with seed 0), test 1" in caplog.text
    path = out / "checkpoints" / "last.ckpt"
    task = load_model(path).task
    assert task.modalities == ("MRI",) and task.target == (1,) and task.ignored == () and task.roi_size == (16, 24)
    assert torch.load(path, weights_only=True)["hyper_parameters"]["task_options"]["modalities"] == ["MRI"]
    succeed(*fit_arguments(root, out, 2, "--data.window", "[]", "--ckpt_path", "last"))
    refused(run(*fit_arguments(root, out, 2, "--data.target", "[1,2]", "--ckpt_path", "last")), "with task_options")
    succeed("evaluate", path, "--data", root, "--out", tmp_path / "scores")
    scores = json.loads((tmp_path / "scores" / "summary.json").read_text())
    assert scores["reference_lesions"]["mean"] > 0
    succeed("evaluate", "--predictions", root / "labelsTr", "--data", root, "--out", tmp_path / "same")
    assert json.loads((tmp_path / "same" / "summary.json").read_text())["dice"]["mean"] == 1.0
    relabelled = json.loads((root / "dataset.json").read_text())
    relabelled["labels"] = {"0": "background", "1": "lesion", "2": "other", "3": "more"}
    (root / "dataset.json").write_text(json.dumps(relabelled))
    files = ("evaluate", "--predictions", root / "labelsTr", "--data", root, "--out", tmp_path / "again")
    refused(run(*files), "labelsTr: expected label maps of lesion = 1, other = 2, more = 3, got masks (--target N says")
    succeed(*files, "--target", 1)
    succeed(*files, "--ignored", 2, "--ignored", 3)
    written = succeed("predict", path, root / "imagesTr" / "case_0.nii.gz", "--out", tmp_path / "out")
    assert written.strip() == str(tmp_path / "out" / "case_0.nii.gz")
