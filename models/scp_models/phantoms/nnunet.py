"""Phantoms in nnU-Net's raw layout: ``imagesTr/<case>_0000.nii.gz``, ``labelsTr/<case>.nii.gz``, ``dataset.json``."""

import json
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib

from scp_models.files import atomic_path
from scp_models.phantoms.writing import write_image


def write_case(folder: Path, case: str, channels: Sequence[nib.Nifti1Image], label: nib.Nifti1Image) -> Path:
    """Write one training case; returns the path of its label, which comes last: a case that has it is complete.

    Raises:
        UserError: the folder cannot be written.
    """
    for k, channel in enumerate(channels):
        write_image(folder / "imagesTr" / f"{case}_{k:04d}.nii.gz", channel)
    path = folder / "labelsTr" / f"{case}.nii.gz"
    write_image(path, label)
    return path


def write_description(folder: Path, channels: Sequence[str], labels: Sequence[str]) -> None:
    """Write ``dataset.json`` for the cases that are there; ``labels`` are called 1, 2, ... in order.

    Raises:
        UserError: the folder cannot be written.
    """
    content = {
        "channel_names": {str(k): name for k, name in enumerate(channels)},
        "labels": {"background": 0, **{name: k + 1 for k, name in enumerate(labels)}},
        "numTraining": len(list((folder / "labelsTr").glob("*.nii.gz"))),
        "file_ending": ".nii.gz",
    }
    with atomic_path(folder / "dataset.json") as path:
        path.write_text(json.dumps(content, indent=2) + "\n")
