"""nnU-Net's own commands from raw data to scores, with ``-tr nnUNetTrainerSCP`` (a subclass that ends in seconds)."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

pytest.importorskip("nnunetv2", reason='nnU-Net is not installed: pip install "scp_kernels[nnunet]"')

import blosc2
from nnunetv2.evaluation.evaluate_predictions import evaluate_folder_entry_point, evaluate_simple_entry_point
from nnunetv2.experiment_planning import plan_and_preprocess_entrypoints
from nnunetv2.inference.predict_from_raw_data import predict_entry_point
from nnunetv2.model_sharing.entry_points import export_pretrained_model_entry, install_from_zip_entry_point
from nnunetv2.run.run_training import get_trainer_from_args, run_training_entry
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from scp_kernels import affine_of_coordinates
from scp_models.nnunet.install import external_folder
from tests.support import nnunet_parallel
from tests.support.left_right import (
    forget_what_needs_torchvision,
    nnunet_copy,
    shrink_plans,
    write_dataset,
)

# One process sets up what all of them need (with pytest-xdist's --dist loadgroup).
pytestmark = pytest.mark.xdist_group("nnunet")

TINY = Path(__file__).parents[1] / "support" / "nnunet_trainers"
TRAINER = "nnUNetTrainerSCPTiny"
NAME = "Dataset901_Sides"
PATCHES = {"2d": (24, 24), "3d_fullres": (16, 24, 24)}


def call(entry_point: Callable[[], object], *arguments: object) -> None:
    """A command's function, with its arguments, in this process: starting one takes longer than what it does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *map(str, arguments)])
        entry_point()


def run(command: str, *arguments: object) -> str:
    """The command itself, in a process of its own."""
    path = Path(sys.executable).parent / command
    done = subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folders and environment as nnU-Net's documentation sets them, and a planned and preprocessed data set; by the
    stock commands, which know nothing of ours."""
    root = tmp_path_factory.mktemp("nnunet")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            patch.setenv(f"nnUNet_{name}", str(root / name))
        patch.setenv("nnUNet_extTrainer", os.pathsep.join([str(external_folder()), str(TINY)]))
        for name, value in nnunet_copy(root / "site").items():
            patch.setenv(name, value)
        forget_what_needs_torchvision(patch)
        patch.setenv("nnUNet_n_proc_DA", "1")
        patch.setenv("nnUNet_def_n_proc", "1")
        for module in ("evaluation.evaluate_predictions", "training.nnUNetTrainer.nnUNetTrainer"):
            patch.setattr(f"nnunetv2.{module}.default_num_processes", 1)  # read when they were imported
        patch.setattr("torch.set_num_threads", lambda n: None)
        write_dataset(root / "raw" / NAME, training=5, test=2, shape=(40, 36, 20), turned=True)
        call(plan_and_preprocess_entrypoints.extract_fingerprint_entry, "-d", 901, "-np", 1, "--no_pbar")
        call(plan_and_preprocess_entrypoints.plan_experiment_entry, "-d", 901)
        shrink_plans(root / "preprocessed" / NAME / "nnUNetPlans.json", PATCHES)
        call(plan_and_preprocess_entrypoints.preprocess_entry, "-d", 901, "-c", *PATCHES, "-np", 1, 1, "--no_pbar")
        patch.setenv("nnUNet_n_proc_DA", "0")  # planning takes as many threads; loading, no process then
        yield root
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pretrained(folder):
    """A checkpoint of the stock trainer's network, as far as nnU-Net reads it."""
    plans = PlansManager(str(folder / "preprocessed" / NAME / "nnUNetPlans.json"))
    torch.manual_seed(3)
    network = nnUNetTrainer.build_network_architecture(plans, plans.get_configuration("2d"), 1, 3)
    torch.save({"network_weights": network.state_dict()}, folder / "pretrained.pth")
    return folder / "pretrained.pth"


@pytest.fixture(scope="module")
def models(folder, pretrained):
    """Trained for an epoch: 2d as a user does it, 3d_fullres in this process."""
    arguments = ("-device", "cpu", "--npz", "-pretrained_weights", pretrained)
    run("nnUNetv2_train", 901, "2d", 0, "-tr", TRAINER, *arguments)
    call(run_training_entry, 901, "3d_fullres", 0, "-tr", TRAINER, "-device", "cpu")
    return {name: folder / "results" / NAME / f"{TRAINER}__nnUNetPlans__{name}" for name in PATCHES}


def sides_by_position(checkpoint):
    """Make a network that sees nothing and knows where it is: left of the frame's middle is 1, right of it 2, and
    its uppermost fifth background."""
    weights = checkpoint["network_weights"]
    *_, last = sorted({int(n.split(".")[2]) for n in weights if n.startswith("decoder.seg_layers.")})
    features = f"decoder.stages.{last}.convs.0."
    for name in weights:
        normalisation = ".norm." in name or ".all_modules.1." in name  # two names of one
        if name.startswith(features) and normalisation:  # features are 1 everywhere then
            weights[name].fill_(float(name.endswith("bias")))
        if name.startswith(f"decoder.seg_layers.{last}."):
            weights[name].zero_()
    head = f"decoder.seg_layers.{last}."
    channels = weights[head + "residual.weight"].shape[1]
    # S = (2p − 1, 1 − 2p): hidden units are the positive and the negative part of 2p − 1 along x and z.
    for layer in ("phi.0.weight", "phi.2.weight"):
        for unit, axis in enumerate((0, 3, 2)):
            weights[head + layer][unit, unit if layer == "phi.2.weight" else axis] = 1
    third = weights[head + "phi.4.weight"].reshape(3, channels, -1)
    for label, unit in ((2, 0), (1, 1)):
        third[label, 0, unit] = 1
    third[0, 0, 2] = 100
    weights[head + "bias"][0] = -60 + 1e-3  # where 2p − 1 is above 0.6


@pytest.fixture(scope="module")
def positions_only(folder, models):
    """The models' checkpoints, changed so."""
    for model in models.values():
        path = model / "fold_0" / "checkpoint_final.pth"
        checkpoint = torch.load(path, weights_only=False)
        sides_by_position(checkpoint)
        torch.save(checkpoint, path.with_name("checkpoint_positions.pth"))
    return models


def check_sides(predictions, raw):
    """Against the box of the head in the image's file, by its own header."""
    paths = sorted(predictions.glob("*.nii.gz"))
    assert len(paths) == 2
    for path in paths:
        image = nibabel.as_closest_canonical(nibabel.load(raw / "imagesTs" / f"{path.name[:-7]}_0000.nii.gz"))
        label = np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)
        head = np.argwhere(np.asarray(image.dataobj) > 50)
        low, high = np.quantile(head, [0.002, 0.998], axis=0)
        x, z = np.arange(label.shape[0])[:, None, None], np.arange(label.shape[2])
        expected = np.where(x < (low[0] + high[0]) / 2, 1, 2) * np.ones(label.shape, int)
        expected[..., z > low[2] + 0.8 * (high[2] - low[2])] = 0
        assert (expected == 0).any() and (expected == 1).any() and (expected == 2).any()
        near = (abs(x - (low[0] + high[0]) / 2) < 1.5) | (abs(z - low[2] - 0.8 * (high[2] - low[2])) < 1.5)
        np.testing.assert_array_equal(np.where(near, expected, label), expected)


def dice(prediction, reference, label):
    """Of one label of two files of one grid."""
    a, b = (np.asarray(nibabel.load(path).dataobj) == label for path in (prediction, reference))
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def predict_arguments(folder, out, configuration):
    return (
        "-i", folder / "raw" / NAME / "imagesTs", "-o", out, "-d", 901, "-c", configuration, "-f", 0, "-tr", TRAINER,
        "-chk", "checkpoint_positions.pth", "-device", "cpu", "--disable_progress_bar",
    )  # fmt: skip


def test_the_stock_predictor_gives_positions_in_processes_of_its_own(folder, positions_only):
    """Windows, mirroring and padding; files with axes of either direction."""
    out = folder / "predictions_2d"
    run("nnUNetv2_predict", *predict_arguments(folder, out, "2d"), "-npp", 1, "-nps", 1)
    check_sides(out, folder / "raw" / NAME)
    labels = folder / "raw" / NAME / "labelsTs"
    call(
        evaluate_folder_entry_point, labels, out, "-djfile", out / "dataset.json", "-pfile", out / "plans.json",
        "-np", 1, "-o", folder / "evaluated.json",
    )  # fmt: skip
    call(evaluate_simple_entry_point, labels, out, "-l", 1, 2, "-np", 1, "-o", folder / "simple.json")
    expected = {
        label: np.mean([dice(path, labels / path.name, label) for path in out.glob("*.nii.gz")]) for label in (1, 2)
    }
    for name in ("evaluated", "simple"):
        scores = json.loads((folder / f"{name}.json").read_text())["mean"]
        assert {int(label): score["Dice"] for label, score in scores.items()} == pytest.approx(expected)


def test_and_without(folder, positions_only):
    out = folder / "predictions_3d"
    call(predict_entry_point, *predict_arguments(folder, out, "3d_fullres"), "-npp", 0, "-nps", 0)
    check_sides(out, folder / "raw" / NAME)


def test_a_model_travels_as_a_zip(folder, positions_only, monkeypatch):
    call(
        export_pretrained_model_entry, "-d", 901, "-o", folder / "model.zip", "-c", "3d_fullres", "-tr", TRAINER,
        "-f", 0, "-chk", "checkpoint_positions.pth",
    )  # fmt: skip
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("nnUNet_results", str(elsewhere))
    call(install_from_zip_entry_point, folder / "model.zip")
    out = folder / "predictions_elsewhere"
    call(predict_entry_point, *predict_arguments(folder, out, "3d_fullres"), "-npp", 0, "-nps", 0)
    check_sides(out, folder / "raw" / NAME)


def test_training_ends_as_nnunets_does(folder, models):
    for name, model in models.items():
        fold = model / "fold_0"
        assert (fold / "checkpoint_final.pth").exists() and (fold / "checkpoint_best.pth").exists()
        summary = json.loads((fold / "validation" / "summary.json").read_text())
        assert len(summary["metric_per_case"]) == 1
        probabilities = list((fold / "validation").glob("*.npz"))
        assert len(probabilities) == (1 if name == "2d" else 0)
        plans = json.loads((model / "plans.json").read_text())
        assert plans["configurations"][name]["preprocessor_name"] == "DefaultPreprocessor"


def test_training_goes_on(folder, models, monkeypatch):
    fold = models["3d_fullres"] / "fold_0"
    assert torch.load(fold / "checkpoint_final.pth", weights_only=False)["current_epoch"] == 1
    monkeypatch.setenv("TINY_EPOCHS", "2")
    kept = shutil.copytree(folder / "results", folder / "kept")
    call(run_training_entry, 901, "3d_fullres", 0, "-tr", TRAINER, "-device", "cpu", "--c")
    final = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    assert final["current_epoch"] == 2
    assert len(final["logging"]["train_losses"]) == 2
    shutil.rmtree(folder / "results")
    kept.rename(folder / "results")


def test_batches_have_coordinates(folder, models):
    """In training and in validation, where images are padded."""
    for configuration, patch in PATCHES.items():
        trainer = get_trainer_from_args("901", configuration, 0, TRAINER, device=torch.device("cpu"))
        trainer.initialize()
        for loader in trainer.get_dataloaders():
            data = next(loader)["data"]
            assert tuple(data.shape) == (2, 1 + 4, *patch)
            affine = affine_of_coordinates(data[:, 1:], (1, 1, 1))
            # A voxel is some 1/40 of the head: neither more nor, along the axes of the map, nothing.
            sizes = torch.linalg.vector_norm(affine[:, :, :-1], dim=1)
            assert ((sizes > 0.01) & (sizes < 0.2)).all()


def test_pretrained_weights_of_a_stock_network_are_taken_over(models, pretrained):
    """All but the segmentation layers, which nnU-Net leaves out: two steps lead nowhere near other random weights."""
    before = torch.load(pretrained)["network_weights"]
    after = torch.load(models["2d"] / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    filters = [name for name in before if name.endswith("conv.weight") and ".seg_layers." not in name]
    assert len(filters) > 4
    for name in filters:
        assert 0 < (after[name] - before[name]).norm() < 0.2 * before[name].norm(), name


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this PyTorch has no gloo")
def test_processes_that_share_batches_learn_what_one_does(folder, monkeypatch):
    """-num_gpus 2 but for the GPUs: three steps on one batch are those of one process, and what follows ends alike."""
    trainer, shared = "nnUNetTrainerSCPParallel", folder / "parallel"
    shared.mkdir()
    monkeypatch.setenv("PARALLEL_FOLDER", str(shared))
    alone = get_trainer_from_args("901", "2d", 0, trainer, device=torch.device("cpu"))
    alone.on_train_start()
    flags = (False, False, False, None, False, False)  # as nnUNetv2_train gives them without options
    arguments = (str(shared), ("901", "2d", 0, trainer, "nnUNetPlans", *flags))
    torch.multiprocessing.spawn(nnunet_parallel.work, arguments, nprocs=nnunet_parallel.PROCESSES)

    def weights(when, rank=0, processes=nnunet_parallel.PROCESSES):
        return torch.load(shared / f"{when}-{rank}-of-{processes}.pt")

    before, after, expected = weights("before"), weights("after"), weights("after", processes=1)
    assert after.keys() == expected.keys()
    for name, start in before.items():
        moved = (expected[name] - start).norm()
        if ".seg_layers." in name:
            assert moved > 0, name
        # A bias in front of a normalisation has no gradient but for rounding.
        assert (after[name] - expected[name]).norm() <= 1e-4 * moved.clamp(min=1e-3), name
    fold = folder / "results" / NAME / f"{trainer}__nnUNetPlans__2d" / "fold_0"
    final = torch.load(fold / "checkpoint_final.pth", weights_only=False)["network_weights"]
    for name, weight in weights("end").items():
        assert torch.equal(weight, weights("end", rank=1)[name]) and torch.equal(weight, final[name]), name
    assert len(json.loads((fold / "validation" / "summary.json").read_text())["metric_per_case"]) == 1


def test_a_cascade_has_its_previous_stage_behind_the_coordinates(folder):
    """Both stages trained, and the second predicted, by the stock commands. It is told the reference for what the first
    stage has found, which shows where that goes."""
    preprocessed = folder / "preprocessed" / NAME
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    plans["plans_name"] = "nnUNetPlansCascade"
    plans["configurations"]["3d_lowres"] = {"inherits_from": "3d_fullres", "next_stage": "3d_cascade"}
    plans["configurations"]["3d_cascade"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    (preprocessed / "nnUNetPlansCascade.json").write_text(json.dumps(plans))
    results = folder / "results" / NAME
    options = ("-tr", TRAINER, "-p", "nnUNetPlansCascade", "-device", "cpu")
    call(run_training_entry, 901, "3d_lowres", 0, *options)
    previous = results / f"{TRAINER}__nnUNetPlansCascade__3d_lowres" / "predicted_next_stage" / "3d_cascade"
    (of_first_stage,) = previous.iterdir()  # what it validates with
    dataset = nnUNetDatasetBlosc2(str(preprocessed / "nnUNetPlans_3d_fullres"))
    for case in dataset.identifiers:
        _, labels, _, _ = dataset.load_case(case)
        if case == of_first_stage.stem:
            assert blosc2.open(str(of_first_stage)).shape == labels.shape[1:]
        nnUNetDatasetBlosc2.save_seg(np.maximum(labels[:][0], 0).astype(np.uint8), str(previous / case))

    trainer = get_trainer_from_args("901", "3d_cascade", 0, TRAINER, "nnUNetPlansCascade", device=torch.device("cpu"))
    trainer.initialize()
    patch = PATCHES["3d_fullres"]
    for loader in trainer.get_dataloaders():
        data = next(loader)["data"]
        assert tuple(data.shape) == (2, 1 + 4 + 2, *patch)
        affine_of_coordinates(data[:, 1:5], (1, 1, 1))  # an error where they are not
        assert set(data[:, 5:].unique().tolist()) <= {0.0, 1.0}
    batch = next(loader)  # of validation, where the previous stage is as it was
    labels = torch.cat([batch["target"][0] == label for label in (1, 2)], 1)
    assert labels.any() and torch.equal(batch["data"][:, 5:].bool(), labels)

    call(run_training_entry, 901, "3d_cascade", 0, *options)
    fold = results / f"{TRAINER}__nnUNetPlansCascade__3d_cascade" / "fold_0"
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    sides_by_position(checkpoint)
    torch.save(checkpoint, fold / "checkpoint_positions.pth")
    out = folder / "predictions_cascade"
    call(
        predict_entry_point, *predict_arguments(folder, out, "3d_cascade"), "-p", "nnUNetPlansCascade",
        "-prev_stage_predictions", folder / "raw" / NAME / "labelsTs", "-npp", 0, "-nps", 0,
    )  # fmt: skip
    check_sides(out, folder / "raw" / NAME)
