"""nnU-Net with its own trainers and with ours on phantoms whose two sides look alike: which side is found?

``python -m benchmarks.left_right --folder FOLDER`` plans, trains, predicts and scores what ``left_right.json`` does not
have yet, by nnU-Net's own commands, and writes the table of docs/nnunet.md; without ``--folder``, the table alone.
"""

import argparse
import json
import os
import shutil
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import entry_points, version
from pathlib import Path

import nibabel
import numpy as np
import pytest

from benchmarks.machine import describe_machine
from scp_models.nnunet.install import external_folder
from tests.support.left_right import SHAPE, SPACING, forget_what_needs_torchvision, shrink_plans, write_dataset

FOLDER = Path(__file__).parent
RUNS_FILE = FOLDER / "left_right.json"
PAGE = FOLDER.parent / "docs" / "nnunet.md"
TABLE_BEGIN, TABLE_END = (
    "<!-- written by python -m benchmarks.left_right: do not edit -->",
    "<!-- end of what is written -->",
)

TRAINERS = {
    "nnUNetTrainer": "nnUNetTrainerBudget",
    "nnUNetTrainerNoMirroring": "nnUNetTrainerNoMirroringBudget",
    "nnUNetTrainerSCP": "nnUNetTrainerSCPBudget",
}
PATCHES = {"2d": (32, 32), "3d_fullres": (16, 32, 32)}
BATCH = {"2d": 8, "3d_fullres": 2}
NETWORK_FEATURES = (8, 16, 32)
EPOCHS, STEPS_PER_EPOCH = 8, 50
SEEDS = (101, 102, 103)
TRAINING, TEST = 15, 8


def call_nnunet(command, *arguments):
    """One of nnU-Net's commands with a user's arguments: its function, since starting a process takes long."""
    (entry,) = (e for e in entry_points(group="console_scripts") if e.name == f"nnUNetv2_{command}")
    sys.argv = [entry.name, *map(str, arguments)]
    with open(os.environ["LEFT_RIGHT_LOG"], "a") as log, redirect_stdout(log), redirect_stderr(log):
        entry.load()()


def set_environment(folder):
    """Of all runs; before nnU-Net is imported, which reads some of it then."""
    os.environ |= {f"nnUNet_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")}
    trainers = os.pathsep.join([str(external_folder()), str(FOLDER / "nnunet_trainers")])
    os.environ |= {"nnUNet_extTrainer": trainers, "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}
    os.environ |= {"LEFT_RIGHT_EPOCHS": str(EPOCHS), "LEFT_RIGHT_STEPS": str(STEPS_PER_EPOCH), "OMP_NUM_THREADS": "1"}
    os.environ["LEFT_RIGHT_LOG"] = str(folder / "log.txt")
    forget_what_needs_torchvision(pytest.MonkeyPatch())  # for good


def prepare(folder, seed):
    """Phantoms of a seed, planned and preprocessed; once."""
    name = f"Dataset{seed}_Sides"
    if (folder / f"{name}.ready").exists():
        return name
    os.environ |= {"nnUNet_n_proc_DA": "1"}  # planning takes as many threads
    shutil.rmtree(folder / "raw" / name, ignore_errors=True)
    write_dataset(folder / "raw" / name, TRAINING, TEST, seed)
    call_nnunet("extract_fingerprint", "-d", seed, "-np", 1, "--no_pbar")
    call_nnunet("plan_experiment", "-d", seed)
    shrink_plans(folder / "preprocessed" / name / "nnUNetPlans.json", PATCHES, NETWORK_FEATURES, BATCH)
    call_nnunet("preprocess", "-d", seed, "-c", *PATCHES, "-np", *["1"] * len(PATCHES), "--no_pbar")
    (folder / f"{name}.ready").touch()
    return name


def score_sides(predictions, references):
    """Dice of each side over all voxels of all cases, and the share of found structure that is on the wrong side.

    Of the voxels that are of a structure in reference and prediction, those whose sides differ.
    """
    counts = np.zeros((3, 3), np.int64)  # reference, prediction
    paths = sorted(references.glob("*.nii.gz"))
    for path in paths:
        reference, prediction = (np.asarray(nibabel.load(p).dataobj) for p in (path, predictions / path.name))
        np.add.at(counts, (reference.ravel().astype(int), prediction.ravel().astype(int)), 1)
    dice = [2 * counts[k, k] / max(counts[k].sum() + counts[:, k].sum(), 1) for k in (1, 2)]
    sides = counts[1:, 1:]
    return {
        "dice_left": float(dice[0]),
        "dice_right": float(dice[1]),
        "wrong_side": float((sides[0, 1] + sides[1, 0]) / max(sides.sum(), 1)),
        "found": float(sides.sum() / counts[1:].sum()),
        "cases": len(paths),
    }


def train_and_score(folder, name, seed, configuration, trainer):
    os.environ |= {"LEFT_RIGHT_SEED": str(seed), "nnUNet_n_proc_DA": "0"}  # no process to load, so that seeds hold
    out = folder / "predictions" / f"{configuration}_{trainer}_{seed}"
    shutil.rmtree(out, ignore_errors=True)
    start = time.process_time()
    call_nnunet("train", name, configuration, 0, "-tr", TRAINERS[trainer], "-device", "cpu")
    trained = time.process_time()
    images = folder / "raw" / name / "imagesTs"
    what = ["-i", images, "-o", out, "-d", name, "-c", configuration, "-f", 0, "-tr", TRAINERS[trainer]]
    call_nnunet("predict", *what, "-device", "cpu", "-npp", 0, "-nps", 0, "--disable_progress_bar")
    times = {"seconds_training": trained - start, "seconds_prediction": time.process_time() - trained}
    shutil.rmtree(folder / "results" / name / f"{TRAINERS[trainer]}__nnUNetPlans__{configuration}")
    return {**score_sides(out, folder / "raw" / name / "labelsTs"), **{k: round(v, 1) for k, v in times.items()}}


def read():
    return json.loads(RUNS_FILE.read_text()) if RUNS_FILE.exists() else {"setting": None, "machine": None, "runs": []}


def setting():
    return {
        "shape": list(SHAPE), "spacing": SPACING, "training": TRAINING, "test": TEST, "epochs": EPOCHS,
        "steps": STEPS_PER_EPOCH,
        "patches": {k: list(v) for k, v in PATCHES.items()}, "batch": BATCH, "features": list(NETWORK_FEATURES),
    }  # fmt: skip


def measure_missing(folder):
    """All runs that are missing, each kept as soon as it is done."""
    folder.mkdir(parents=True, exist_ok=True)
    set_environment(folder)
    result = read()
    if result["setting"] not in (None, setting()):
        raise SystemExit(f"{RUNS_FILE}: expected runs of the same setting; remove it to begin anew")
    result |= {"setting": setting(), "machine": describe_machine("cpu"), "nnunetv2": version("nnunetv2")}
    for seed in SEEDS:
        for configuration in PATCHES:
            for trainer in TRAINERS:
                key = {"seed": seed, "configuration": configuration, "trainer": trainer}
                if any(key.items() <= run.items() for run in result["runs"]):
                    continue
                name = prepare(folder, seed)
                result["runs"].append({**key, **train_and_score(folder, name, seed, configuration, trainer)})
                RUNS_FILE.write_text(json.dumps(result, indent=1) + "\n")
                print(json.dumps(result["runs"][-1]), flush=True)


def table(result):
    """Markdown: a row for each configuration and trainer, the seeds' numbers side by side."""
    seeds = sorted({run["seed"] for run in result["runs"]})
    lines = [
        "| configuration | trainer | Dice left | Dice right | found | wrong side |",
        "|---|---|---|---|---|---|",
    ]
    for configuration in PATCHES:
        for trainer in TRAINERS:
            runs = {
                run["seed"]: run
                for run in result["runs"]
                if run["configuration"] == configuration and run["trainer"] == trainer
            }
            runs = [runs[seed] for seed in seeds if seed in runs]
            cells = [" / ".join(f"{run[key]:.2f}" for run in runs) for key in ("dice_left", "dice_right")]
            share = " / ".join(f"{run['found']:.0%}" for run in runs)
            # Where nothing is found, nothing has a side.
            wrong = " / ".join(f"{run['wrong_side']:.1%}" if run["found"] else "–" for run in runs)
            lines.append(f"| {configuration} | `{trainer}` | {' | '.join(cells)} | {share} | {wrong} |")
    return "\n".join(lines)


def document(text, result):
    """The document with the table of these runs between its marks."""
    before, _, rest = text.partition(TABLE_BEGIN)
    _, _, after = rest.partition(TABLE_END)
    return f"{before}{TABLE_BEGIN}\n\n{table(result)}\n\n{TABLE_END}{after}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="for phantoms, trainings and predictions")
    arguments = parser.parse_args()
    if arguments.folder:
        measure_missing(arguments.folder)
    PAGE.write_text(document(PAGE.read_text(), read()))


if __name__ == "__main__":
    main()
