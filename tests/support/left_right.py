"""Phantoms with structures of equal contrast on both sides, label 1 on the patient's left and 2 on the right, in
nnU-Net's raw layout."""

import json
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import nibabel
import numpy as np

SHAPE = (64, 56, 32)
SPACING = 3.0
HEAD = np.array([68.0, 58.0, 40.0])


def rotation(angles):
    """About the three axes, in radians."""
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (k for k in range(3) if k != axis)
        turn = np.eye(3)
        turn[[i, j], [i, j]] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        result = result @ turn
    return result


def make_case(rng, shape=SHAPE):
    """Image and label ``[x, y, z]``, RAS: a head that is shifted, tilted and scaled in the field of view."""
    axes = [(np.arange(n) - (n - 1) / 2) * SPACING for n in shape]
    mm = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    fit = min(n / full for n, full in zip(shape, SHAPE, strict=True))
    scale = fit * np.exp(rng.normal(0, 0.05))
    own = (mm - fit * rng.normal(0, 5, 3)) @ rotation(np.deg2rad(rng.normal(0, 4, 3))) / scale
    head = (own / HEAD) ** 2
    inside = head.sum(-1) < 1
    image = inside * (1 + 0.1 * np.sin(own[..., 1] / 12))
    label = np.zeros(shape, np.uint8)
    for _ in range(3):
        place = np.array([rng.uniform(14, 42), rng.uniform(-32, 32), rng.uniform(-20, 20)])
        for side, sign in ((1, -1), (2, 1)):
            centre = (place + rng.normal(0, 3, 3)) * (sign, 1, 1)
            blob = (((own - centre) / rng.uniform(7, 10, 3)) ** 2).sum(-1) < 1
            label[blob & inside] = side
    image = image + 0.8 * (label > 0)
    return (100 * np.abs(image + rng.normal(0, 0.06, shape))).astype(np.float32), label


def write(path, array, affine, axes=(1, 1, 1)):
    """Stored with the axes of ``axes`` that are −1 turned round, which says the header."""
    turned = np.eye(4)
    for axis, sign in enumerate(axes):
        if sign < 0:
            turned[axis, axis], turned[axis, 3] = -1, array.shape[axis] - 1
    array = array[tuple(slice(None, None, sign) for sign in axes)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(array), affine @ turned), path)


def write_dataset(folder, training=10, test=2, seed=0, shape=SHAPE, turned=False):
    """nnU-Net's raw layout, with ``labelsTs`` of the test cases; ``turned``: every other case is stored with its axes
    turned round."""
    folder = Path(folder)
    rng = np.random.default_rng(seed)
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * SPACING for n in shape]
    for k in range(training + test):
        image, label = make_case(rng, shape)
        axes = (-1, -1, 1) if turned and k % 2 else (1, 1, 1)
        part = "Tr" if k < training else "Ts"
        write(folder / f"images{part}" / f"case_{k:03}_0000.nii.gz", image, affine, axes)
        write(folder / f"labels{part}" / f"case_{k:03}.nii.gz", label, affine, axes)
    dataset = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "left": 1, "right": 2},
        "numTraining": training,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))


def shrink_plans(path, patches, features=(8, 16, 32), batch_size=None):
    """Smaller patches, batches and networks of two convolutions in all than nnU-Net has planned.

    Args:
        patches: patch size per configuration.
    """
    plans = json.loads(Path(path).read_text())
    for name, patch in patches.items():
        configuration = plans["configurations"][name]
        dims = len(patch)
        configuration["patch_size"] = list(patch)
        configuration["batch_size"] = (batch_size or {}).get(name, 2)
        stages = len(features)
        configuration["architecture"]["arch_kwargs"] |= {
            "n_stages": stages,
            "features_per_stage": list(features),
            "kernel_sizes": [[3] * dims] * stages,
            "strides": [[1] * dims] + [[2] * dims] * (stages - 1),
            "n_conv_per_stage": [1] * stages,
            "n_conv_per_stage_decoder": [1] * (stages - 1),
        }
    Path(path).write_text(json.dumps(plans, indent=1))


def nnunet_copy(folder, whole=False):
    """A copy of nnU-Net below ``folder``, and the environment in which its commands use it.

    Where there is no torchvision, nnU-Net's trainers named primus cannot be imported, and its search for any other that
    lies behind them fails: the copy does without them, unless it is to be ``whole``.
    """
    (source,) = find_spec("nnunetv2").submodule_search_locations
    left_out = [] if whole or find_spec("torchvision") else ["primus"]
    shutil.copytree(source, Path(folder) / "nnunetv2", ignore=shutil.ignore_patterns(*left_out), dirs_exist_ok=True)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


def forget_what_needs_torchvision(monkeypatch):
    """The same for searches in this process: nnU-Net finds nothing where it would find what cannot be imported."""
    if find_spec("torchvision") is None:
        name = "nnunetv2.training.nnUNetTrainer.primus.primus_trainers"
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
