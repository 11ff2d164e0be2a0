"""Brain phantoms in the layout of the WMH segmentation challenge (current release)."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from nibabel.processing import resample_to_output

from scp_models.phantoms.anatomy import Grid
from scp_models.phantoms.brain import make_brain
from scp_models.phantoms.templates import BrainTemplate, load_brain_template
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

_KIND = 0  # of the seeds: brains and abdomens with one seed share no random numbers
_SUBJECTS_WITH_REAL_IDS = 150
_SLAB_FIELD_OF_VIEW = (160.0, 224.0)
_SLAB_SPACING = 5.0
_SLAB_CENTER = (0.0, -18.0, 12.0)


@dataclass(frozen=True)
class Scanner:
    """``shape``, ``spacing`` and ``center`` (mm) are RAS; ``stored``: axes on disk, by turns; gains of FLAIR and T1."""

    folder: str
    first_id: int
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    center: tuple[float, float, float]
    stored: tuple[str, ...]
    gains: tuple[float, float]


# Shapes are the challenge's. The axes' order and direction are invented: mixed, so that a reader has to reorient.
SCANNERS = (
    Scanner("Utrecht", 0, (240, 240, 48), (0.958, 0.958, 3.0), (0.0, -18.0, 18.0), ("RAS",), (900.0, 700.0)),
    Scanner("Singapore", 50, (232, 256, 48), (1.0, 1.0, 3.0), (0.0, -18.0, 18.0), ("LAS", "PLS"), (400.0, 500.0)),
    Scanner("Amsterdam/GE3T", 100, (132, 256, 83), (1.2, 0.977, 3.0), (0.0, -18.0, -35.0), ("LPS",), (1500.0, 1800.0)),
)


def scanner_of(index: int) -> Scanner:
    """The scanner of subject ``index``: they take turns."""
    return SCANNERS[index % len(SCANNERS)]


def subject_folder(index: int) -> Path:
    """Where subject ``index`` lies below the output folder; the challenge's ids, then ids that follow them."""
    scanner = scanner_of(index)
    number = scanner.first_id + index // len(SCANNERS) if index < _SUBJECTS_WITH_REAL_IDS else index
    return Path("training") / scanner.folder / str(number)


def grid_of(index: int, size: str | tuple[int, int, int]) -> Grid:
    """The RAS grid of subject ``index``.

    ``"full"`` is the scanner's. ``"small"`` is 80 × 112 × 8 voxels of 2 × 2 × 5 mm through the ventricles; a shape
    (X, Y, Z) covers the same 160 × 224 mm with Z slices of 5 mm.

    Raises:
        UserError: another size.
    """
    if size == "full":
        scanner = scanner_of(index)
        return Grid(scanner.shape, scanner.spacing, scanner.center)
    if size == "small":
        size = (80, 112, 8)
    x, y, z = check_shape(size)
    return Grid((x, y, z), (_SLAB_FIELD_OF_VIEW[0] / x, _SLAB_FIELD_OF_VIEW[1] / y, _SLAB_SPACING), _SLAB_CENTER)


def generate_wmh(
    out: str | os.PathLike[str],
    subjects: int,
    seed: int,
    *,
    size: str | tuple[int, int, int] = "full",
    location_decided: bool = False,
    progress: bool = True,
) -> list[Path]:
    """Write ``subjects`` brain phantoms below ``out``; returns their folders, in order.

    Each is ``training/<scanner>/<id>`` with ``orig/`` and ``pre/`` (``FLAIR``, ``T1``, ``3DT1``; bias field in
    ``orig/`` alone) and ``wmh.nii.gz`` (float32, exactly 0 background, 1 lesion, 2 other pathology). A seed fixes
    every byte, whatever the number of subjects and threads.

    Args:
        size: ``"full"``, ``"small"`` or a shape (X, Y, Z); see ``grid_of``.
        location_decided: identical blobs everywhere, of which those in a central ellipse are the lesions; brain without
            skull and scalp, and no label 2.
        progress: show a progress bar.

    Raises:
        UserError: a bad argument, nilearn or its templates missing, or an output folder that cannot be written or holds
            something else, phantoms of another seed for instance.
    """
    grid_of(0, size)
    folder = check_arguments(out, subjects, seed)
    template = load_brain_template()
    options = {"kind": "wmh", "seed": seed, "size": size, "location_decided": location_decided}
    record_options(folder, options)
    work = partial(_write_subject, folder, template, seed, size, location_decided)
    return run_all(work, subjects, "Brain phantoms", progress=progress, workers=min(available_cores(), 8))


def _write_subject(
    out: Path, template: BrainTemplate, seed: int, size: str | tuple[int, int, int], location_decided: bool, index: int
) -> Path:
    scanner, grid = scanner_of(index), grid_of(index, size)
    brain = make_brain(template, grid, subject_seed(seed, _KIND, index), decided=location_decided)
    codes = scanner.stored[index // len(SCANNERS) % len(scanner.stored)]
    folder = out / subject_folder(index)
    flair_gain, t1_gain = scanner.gains
    for kind, flair, t1 in (("orig", brain.orig_flair, brain.orig_t1), ("pre", brain.pre_flair, brain.pre_t1)):
        # Scanners deliver integers; bias correction makes floats of them.
        step, dtype = (1.0, np.int16) if kind == "orig" else (0.25, np.float32)
        flair_image, t1_image = (
            make_image((np.rint(values * np.float32(gain / step)) * np.float32(step)).astype(dtype), grid.affine)
            for values, gain in ((flair, flair_gain), (t1, t1_gain))
        )
        write_image(folder / kind / "FLAIR.nii.gz", oriented(flair_image, codes))
        write_image(folder / kind / "T1.nii.gz", oriented(t1_image, codes))
        isotropic = resample_to_output(t1_image, 2.0, order=1)
        values = (np.rint(np.asarray(isotropic.dataobj) / step) * step).astype(dtype)
        write_image(folder / kind / "3DT1.nii.gz", oriented(make_image(values, isotropic.affine), "PSR"))
    # The label is last: a folder that has it is complete.
    label = make_image(brain.label.astype(np.float32), grid.affine)
    write_image(folder / "wmh.nii.gz", oriented(label, codes))
    return folder
