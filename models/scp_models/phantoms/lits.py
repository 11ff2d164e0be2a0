"""Abdominal phantoms in the layout of LiTS, with the faults of its headers."""

import os
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from scp_models.phantoms.abdomen import make_abdomen
from scp_models.phantoms.nnunet import write_case, write_description
from scp_models.phantoms.writing import (
    available_cores,
    check_arguments,
    check_shape,
    make_image,
    oriented,
    record_options,
    run_all,
    subject_seed,
    write_image,
)

_KIND = 1
_FIRST_BATCH = 28

# The real set's faults, at the real numbers.
NUMBERS_WITHOUT_HEADER = range(28, 48)
NUMBER_WITH_OTHER_AFFINE = 53

# The patients lie on their backs; which way the axes run on disk differs from scan to scan.
ORIENTATIONS = ("LPS", "LAS", "RAS", "RPS")


def volume_path(index: int) -> Path:
    """Where the volume of scan ``index`` lies below the output folder; its segmentation lies beside it."""
    return Path(f"Training Batch {1 if index < _FIRST_BATCH else 2}") / f"volume-{index}.nii"


def segmentation_path(volume: Path) -> Path:
    """The segmentation that belongs to a volume."""
    return volume.with_name(volume.name.replace("volume", "segmentation"))


def _grid(
    size: str | tuple[int, int, int], rng: np.random.Generator, margin: float = 1.0
) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Shape and spacing (mm) of one scan, larger by ``margin``; every size draws the same random numbers."""
    pixel = margin * float(rng.uniform(0.74, 0.86))
    step = float(rng.choice([2.0, 2.5, 3.0, 4.0, 5.0]))
    extent = float(rng.uniform(205, 255))
    if size == "full":
        return (512, 512, round(extent / step)), (pixel, pixel, step)
    if size == "small":
        size = (128, 128, 24)
    x, y, z = check_shape(size)
    # The body always fits, and the slices cover the liver.
    return (x, y, z), (512 * pixel / x, 512 * pixel / y, margin * 176.0 / z)


def generate_lits(
    out: str | os.PathLike[str],
    subjects: int,
    seed: int,
    *,
    size: str | tuple[int, int, int] = "full",
    left_right: bool = False,
    pose: bool = False,
    progress: bool = True,
) -> list[Path]:
    """Write ``subjects`` abdominal phantoms below ``out``; returns the paths of their volumes (``left_right``: of
    their labels), in order.

    Scan N is ``Training Batch 1/volume-N.nii`` (Batch 2 from 28 on) in int16 HU and ``segmentation-N.nii`` in uint8
    (0 background, 1 liver, 2 tumour). As in the real set, in-plane orientation is mixed, about one in ten has no
    tumour, 28 to 47 carry an identity affine and 1 mm, and the affine of segmentation 53 is not its volume's. A seed
    fixes every byte, whatever the number of subjects and threads.

    Args:
        out: the data set's folder.
        subjects: how many.
        seed: fixes every voxel.
        size: ``"full"`` (512 × 512, 41 to 128 slices of 2 to 5 mm), ``"small"`` (128 × 128 × 24) or a shape (X, Y, Z).
        left_right: the labels are the patient's left kidney (1) and right kidney (2), in nnU-Net's raw layout.
        pose: bodies shifted, tilted and scaled in the field of view.
        progress: show a progress bar.

    Raises:
        UserError: a bad argument, or an output folder that cannot be written or holds something else, phantoms of
            another seed for instance.
    """
    _grid(size, np.random.default_rng(0))
    folder = check_arguments(out, subjects, seed)
    # Named where they are asked for only: folders of an older version take more subjects.
    newer = {name: True for name, asked in (("left_right", left_right), ("pose", pose)) if asked}
    record_options(folder, {"kind": "lits", "seed": seed, "size": size, **newer})
    work = partial(_write_scan, folder, seed, size, left_right, pose)
    # Two scans of full size at once stay below 1.5 GB.
    written = run_all(work, subjects, "Abdominal phantoms", progress=progress, workers=min(available_cores(), 4))
    if left_right:
        write_description(folder, ("CT",), ("left_kidney", "right_kidney"))
    return written


def _write_scan(
    out: Path, seed: int, size: str | tuple[int, int, int], left_right: bool, pose: bool, index: int
) -> Path:
    for_scanner, for_patient = subject_seed(seed, _KIND, index).spawn(2)
    rng = np.random.default_rng(for_scanner)
    shape, spacing = _grid(size, rng, 1.15 if pose else 1.0)
    codes = str(rng.choice(ORIENTATIONS, p=[0.4, 0.3, 0.2, 0.1]))
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -np.array(spacing) * (np.array(shape) - 1) / 2 + [*rng.normal(0, 8, 2), rng.uniform(-900, 200)]

    abdomen = make_abdomen(shape, spacing, for_patient, kidneys=left_right, pose=pose)
    if left_right:
        # All are stored alike: nnU-Net takes voxels as they come.
        images = [make_image(abdomen.volume, affine)]
        return write_case(out, f"abdomen_{index:03d}", images, make_image(abdomen.label, affine))
    volume = oriented(make_image(abdomen.volume, affine), codes)
    label = oriented(make_image(abdomen.label, affine), codes)
    if index in NUMBERS_WITHOUT_HEADER:
        volume, label = (make_image(np.asarray(image.dataobj), np.eye(4)) for image in (volume, label))
    if index == NUMBER_WITH_OTHER_AFFINE:
        label = _with_other_affine(label)
    path = out / volume_path(index)
    # The volume is last: one that is there is complete.
    write_image(segmentation_path(path), label)
    write_image(path, volume)
    return path


def _with_other_affine(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The same voxels under an affine that runs the other way from front to back."""
    affine = image.affine.copy()
    affine[:3, 1] *= -1
    affine[:3, 3] -= affine[:3, 1] * (image.shape[1] - 1)
    return make_image(np.asarray(image.dataobj), affine)
