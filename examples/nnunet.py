"""nnU-Net end to end, left and right told apart: phantoms, plan, preprocess, train, predict, evaluate, a picture.

    pip install "scp_kernels[nnunet]"
    python examples/nnunet.py --out pictures

All commands are nnU-Net's own. A real training leaves out what makes this one short: the trainer below and the change
of the plans. It takes less than two minutes on two cores.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np

from scp_models.nnunet.install import external_folder

SHAPE = (64, 56, 20)
EPOCHS = 16
SHORT_TRAINER = """
import torch
from scp_models.nnunet.trainer import nnUNetTrainerSCP

class nnUNetTrainerSCPShort(nnUNetTrainerSCP):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = EPOCHS, 60, 2

    def initialize(self):
        torch.set_num_threads(1)  # for networks as small as this one more would wait for each other
        super().initialize()
"""


def write_phantom(raw: Path, name: str, rng: np.random.Generator) -> None:
    """A head somewhere in the field of view, with structures of equal contrast: 1 on the left, 2 on the right."""
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    place = 3 * (index - (np.array(SHAPE) - 1) / 2) + rng.normal(0, 6, 3)  # mm from the head's middle
    image = ((place / (68, 58, 26)) ** 2).sum(-1) < 1
    label = np.zeros(SHAPE, np.uint8)
    for _ in range(3):
        centre = rng.uniform((14, -32, -14), (42, 32, 14))
        for side, sign in ((1, -1), (2, 1)):
            away = place - (centre + rng.normal(0, 3, 3)) * (sign, 1, 1)
            label[np.linalg.norm(away, axis=-1) < rng.uniform(7, 10)] = side
    image = 100 * np.abs(image + 0.8 * (label > 0) + rng.normal(0, 0.06, SHAPE))
    affine = np.diag([3.0, 3.0, 3.0, 1.0])  # RAS+: the first axis runs to the right
    nib.save(nib.Nifti1Image(image.astype(np.float32), affine), raw / "imagesTr" / f"{name}_0000.nii.gz")
    nib.save(nib.Nifti1Image(label, affine), raw / "labelsTr" / f"{name}.nii.gz")


def write_dataset(raw: Path, cases: int) -> None:
    """nnU-Net's raw layout."""
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for k in range(cases):
        write_phantom(raw, f"case_{k:02}", rng)
    labels = {"background": 0, "left": 1, "right": 2}
    about = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": cases, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(about))


def nnunet(command: str, *arguments: object) -> None:
    """One of nnU-Net's commands, those of this environment."""
    print(command, *arguments, flush=True)
    path = Path(sys.executable).parent / f"nnUNetv2_{command}"
    subprocess.run([path, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def shrink(path: Path) -> None:
    """Small patches and a small network, for a processor."""
    plans = json.loads(path.read_text())
    plans["configurations"]["2d"] |= {"patch_size": [32, 32], "batch_size": 8}
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"] |= {
        "n_stages": 3,
        "features_per_stage": [8, 16, 32],
        "kernel_sizes": [[3, 3]] * 3,
        "strides": [[1, 1], [2, 2], [2, 2]],
        "n_conv_per_stage": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
    }
    path.write_text(json.dumps(plans))


def main(out: Path, epochs: int) -> None:
    out = out.resolve()
    raw = out / "raw" / "Dataset001_Sides"
    write_dataset(raw, cases=12)
    (out / "trainers").mkdir(exist_ok=True)
    (out / "trainers" / "short.py").write_text(SHORT_TRAINER.replace("EPOCHS", str(epochs)))
    os.environ |= {f"nnUNet_{name}": str(out / name) for name in ("raw", "preprocessed", "results")}
    trainers = os.pathsep.join([str(external_folder()), str(out / "trainers")])
    os.environ |= {"nnUNet_extTrainer": trainers, "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}

    nnunet("extract_fingerprint", "-d", 1, "-np", 1)
    nnunet("plan_experiment", "-d", 1)
    shrink(out / "preprocessed" / raw.name / "nnUNetPlans.json")
    nnunet("preprocess", "-d", 1, "-c", "2d", "-np", 1)
    nnunet("train", 1, "2d", 0, "-tr", "nnUNetTrainerSCPShort", "-device", "cpu")

    # Cases that were not trained on: those that fold 0 validates with.
    splits = json.loads((out / "preprocessed" / raw.name / "splits_final.json").read_text())
    cases = splits[0]["val"]
    (out / "images").mkdir(exist_ok=True)
    for case in cases:
        for path in (raw / "imagesTr").glob(f"{case}_*"):
            (out / "images" / path.name).write_bytes(path.read_bytes())
    model = ("-d", 1, "-c", "2d", "-f", 0, "-tr", "nnUNetTrainerSCPShort", "-device", "cpu", "-npp", 1, "-nps", 1)
    nnunet("predict", "-i", out / "images", "-o", out / "predictions", *model)
    files = ("-djfile", out / "predictions" / "dataset.json", "-pfile", out / "predictions" / "plans.json")
    nnunet("evaluate_folder", raw / "labelsTr", out / "predictions", *files, "-np", 1, "--chill")
    scores = json.loads((out / "predictions" / "summary.json").read_text())["mean"]
    print("Dice:", ", ".join(f"{side} {scores[label]['Dice']:.2f}" for side, label in (("left", "1"), ("right", "2"))))

    _, axes = plt.subplots(len(cases), 3, figsize=(7, 2.2 * len(cases)), squeeze=False)
    for row, case in zip(axes, cases, strict=True):
        paths = raw / "imagesTr" / f"{case}_0000.nii.gz", raw / "labelsTr", out / "predictions"
        image, reference, prediction = (
            np.asarray(nib.load(path if path.is_file() else path / f"{case}.nii.gz").dataobj) for path in paths
        )
        both = (reference > 0) & (prediction > 0)
        wrong = (both & (reference != prediction)).sum() / max(both.sum(), 1)
        print(f"{case}: {wrong:.1%} of what was found is on the wrong side")
        middle = (reference > 0).sum((0, 1)).argmax()
        labels = {"image": None, "reference": reference, f"{wrong:.0%} wrong": prediction}
        for ax, (title, label) in zip(row, labels.items(), strict=True):
            ax.imshow(image[..., middle].T, cmap="gray", origin="lower")
            if label is not None:
                ax.imshow(np.ma.masked_equal(label[..., middle].T, 0), cmap="cool", vmin=1, vmax=2, origin="lower")
            ax.set(title=title, xticks=[], yticks=[])
    plt.savefig(out / "sides.png", dpi=80, bbox_inches="tight")
    print(out / "sides.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder of all that is made")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of 60 steps each")
    options = parser.parse_args()
    main(options.out, options.epochs)
