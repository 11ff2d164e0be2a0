"""Lesions from the command line: synthetic brains, training, scores, predictions and a picture of them.

    python examples/command_line.py --out pictures              # or --task lits: liver tumours in CT

Each command is printed before it runs; with the data of the WMH challenge or LiTS leave out ``phantom`` and give their
folder. The network is small and the training short, so that all of it takes half a minute on two cores.
"""

import argparse
import csv
import shlex
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np

from scp_models.data import Task, find_subjects, get_task

SMALL = {"wmh": ["--data.roi_size", "[80,112]"], "lits": ["--data.roi_size", "[96,96]"]}


def scp_models(*arguments: object) -> None:
    words = [str(argument) for argument in arguments]
    print(f"\n$ scp-models {shlex.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "scp_models.cli", *words], check=True)


def picture(image: Path, reference: Path, prediction: Path, task: Task, out: Path) -> None:
    """The slice with most of the reference: outlines of the reference (green) and of the prediction (red)."""
    volumes = [nib.as_closest_canonical(nib.load(path)) for path in (image, reference, prediction)]
    values, target, mask = (np.asarray(volume.dataobj) for volume in volumes)
    target = np.isin(np.rint(target), task.target)
    z = int(target.sum(axis=(0, 1)).argmax())
    aspect = volumes[0].header.get_zooms()[1] / volumes[0].header.get_zooms()[0]
    figure, axes = plt.subplots(1, 2, figsize=(9, 5), layout="constrained")
    for axis, title in zip(axes, ("picture", "reference (green), predicted (red)"), strict=True):
        low, high = task.window or np.percentile(values[..., z], [1, 99.5])
        axis.imshow(values[::-1, :, z].T, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=aspect)
        axis.set_title(title)
        axis.axis("off")
    for marked, colour in ((target, "lime"), (mask > 0, "red")):
        if marked[..., z].any():
            axes[1].contour(marked[::-1, :, z].T, [0.5], colors=colour, linewidths=1)
    figure.savefig(out, dpi=80)
    print(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder of everything that is written")
    parser.add_argument("--task", choices=("wmh", "lits"), default="wmh")
    parser.add_argument("--subjects", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    out, task = arguments.out, arguments.task
    data, run = out / task, out / f"{task}-run"

    scp_models("phantom", task, data, "--subjects", arguments.subjects, "--seed", 0, "--size", "small")
    scp_models("show", data, "--task", task, "--out", out / f"{task}-frames.png")
    scp_models(
        *("fit", "--config", task, "--data.root", data, *SMALL[task]),
        # So short a training learns more from the slices as they are.
        *("--data.augment", "none", "--model.capacity", 32, "--model.levels", 3),
        *("--data.batch_size", 6, "--model.learning_rate", 0.01),
        *("--trainer.max_epochs", arguments.epochs, "--trainer.enable_progress_bar", "false", "--out", run),
    )
    checkpoint = run / "checkpoints" / "best.ckpt"
    scp_models("evaluate", checkpoint, "--data", data, "--split", "test", "--out", run / "scores")

    name = next(csv.DictReader((run / "scores" / "scores.csv").open()))["subject"]
    subject = next(subject for subject in find_subjects(data, get_task(task)) if subject.name == name)
    image = subject.images[-1]
    scp_models("predict", checkpoint, image if task == "lits" else image.parents[1], "--out", run / "predictions")
    picture(image, subject.label, run / "predictions" / f"{name}.nii.gz", get_task(task), out / f"{task}.png")


if __name__ == "__main__":
    main()
