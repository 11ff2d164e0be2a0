"""Brain phantoms in the layout of the WMH segmentation challenge (current release)."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.processing import resample_to_output

from scp_models.errors import UserError
from scp_models.phantoms.anatomy import Grid
from scp_models.phantoms.brain import BrainImages, DecidedBy, make_brain
from scp_models.phantoms.lesions import BlobRule
from scp_models.phantoms.nnunet import write_case, write_description
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
# Of the phantoms in which height counts, and of a head that may lie anywhere: so much more on each side.
_BRAIN_HEIGHT, _BRAIN_CENTER = 168.0, (0.0, -18.0, 4.0)
_POSE_MARGIN = 20.0


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


def grid_of(
    index: int, size: str | tuple[int, int, int], decided_by: DecidedBy = "anatomy", pose: bool = False
) -> Grid:
    """The RAS grid of subject ``index``.

    ``"full"`` is the scanner's. ``"small"`` is 80 × 112 × 8 voxels of 2 × 2 × 5 mm through the ventricles; a shape
    (X, Y, Z) covers the same 160 × 224 mm with Z slices of 5 mm. Where height or side decide, ``"small"`` is
    80 × 112 × 24, and it and any shape cover the whole brain, 168 mm; with ``pose``, 20 mm more on each side (within
    slices only, where it is a slab).

    Raises:
        UserError: another size.
    """
    if size == "full":
        scanner = scanner_of(index)
        return Grid(scanner.shape, scanner.spacing, scanner.center)
    whole = decided_by in ("height", "side")
    if size == "small":
        size = (80, 112, 24 if whole else 8)
    x, y, z = check_shape(size)
    margin = 2 * _POSE_MARGIN if pose else 0.0
    step = (_BRAIN_HEIGHT + margin) / z if whole else _SLAB_SPACING
    spacing = ((_SLAB_FIELD_OF_VIEW[0] + margin) / x, (_SLAB_FIELD_OF_VIEW[1] + margin) / y, step)
    return Grid((x, y, z), spacing, _BRAIN_CENTER if whole else _SLAB_CENTER)


def generate_wmh(
    out: str | os.PathLike[str],
    subjects: int,
    seed: int,
    *,
    size: str | tuple[int, int, int] = "full",
    location_decided: bool = False,
    height_decided: bool = False,
    left_right: bool = False,
    pose: bool = False,
    certainty: float = 1.0,
    lookalike_brightness: float = 1.0,
    progress: bool = True,
) -> list[Path]:
    """Write ``subjects`` brain phantoms below ``out``; returns their folders (``left_right``: labels), in order.

    Each is ``training/<scanner>/<id>`` with ``orig/`` and ``pre/`` (``FLAIR``, ``T1``, ``3DT1``; bias field in
    ``orig/`` alone) and ``wmh.nii.gz`` (float32, exactly 0 background, 1 lesion, 2 other pathology). A seed fixes
    every byte, whatever the number of subjects and threads.

    Args:
        out: the data set's folder.
        subjects: how many.
        seed: fixes every voxel.
        size: ``"full"``, ``"small"`` or a shape (X, Y, Z); see ``grid_of``.
        location_decided: identical blobs everywhere, of which those in a central ellipse are the lesions; brain without
            skull and scalp, and no label 2.
        height_decided: the same, with the lesions in the brain's upper half.
        left_right: pairs of blobs of equal contrast, 1 on the patient's left and 2 on the right, in nnU-Net's raw
            layout with the channels T1 and FLAIR.
        pose: heads shifted, tilted and scaled in the field of view.
        certainty: where ellipse or height decide, the probability that a blob is what its place says; the others are
            the contrary, so that with 0.5 the place says nothing.
        lookalike_brightness: where ellipse or height decide, that of look-alikes as a share of the lesions'; 0: none
            is to be seen.
        progress: show a progress bar.

    Raises:
        UserError: a bad argument, nilearn or its templates missing, or an output folder that cannot be written or holds
            something else, phantoms of another seed for instance.
    """
    grid_of(0, size)
    ways: dict[DecidedBy, bool] = {"ellipse": location_decided, "height": height_decided, "side": left_right}
    chosen = [way for way, asked in ways.items() if asked]
    if len(chosen) > 1:
        raise UserError("--location-decided, --height-decided, --left-right: expected one of them at most")
    decided_by = chosen[0] if chosen else "anatomy"
    rule = BlobRule(certainty, lookalike_brightness)
    for name, share in asdict(rule).items():
        if not 0 <= share <= 1 or (share != 1 and decided_by not in ("ellipse", "height")):
            raise UserError(f"{name}: expected 0 to 1, less than 1 only where ellipse or height decide, got {share}")
    folder = check_arguments(out, subjects, seed)
    template = load_brain_template()
    options: dict[str, Any] = {"kind": "wmh", "seed": seed, "size": size, "location_decided": location_decided}
    # Named where they are asked for only: folders of an older version take more subjects.
    newer = {"height_decided": height_decided, "left_right": left_right, "pose": pose}
    options |= {name: True for name, asked in newer.items() if asked}
    options |= {name: share for name, share in asdict(rule).items() if share != 1}
    record_options(folder, options)
    phantoms = _BrainPhantoms(folder, template, seed, size, decided_by, pose, rule)
    work = phantoms.write_case if left_right else phantoms.write_subject
    written = run_all(work, subjects, "Brain phantoms", progress=progress, workers=min(available_cores(), 8))
    if left_right:
        write_description(folder, ("T1", "FLAIR"), ("left", "right"))
    return written


@dataclass(frozen=True)
class _BrainPhantoms:
    """What all subjects of a folder are made with, and how they are written."""

    out: Path
    template: BrainTemplate
    seed: int
    size: str | tuple[int, int, int]
    decided_by: DecidedBy
    pose: bool
    rule: BlobRule

    def make(self, index: int) -> BrainImages:
        grid = grid_of(index, self.size, self.decided_by, self.pose)
        seed = subject_seed(self.seed, _KIND, index)
        return make_brain(self.template, grid, seed, decided_by=self.decided_by, pose=self.pose, rule=self.rule)

    def write_case(self, index: int) -> Path:
        """One case of nnU-Net's layout. All are stored alike: nnU-Net takes voxels as they come."""
        brain = self.make(index)
        affine = brain.head.grid.affine
        flair_gain, t1_gain = scanner_of(index).gains
        channels = [
            make_image(_quantised(values, gain, *_CORRECTED), affine)
            for values, gain in ((brain.pre_t1, t1_gain), (brain.pre_flair, flair_gain))
        ]
        return write_case(self.out, f"brain_{index:03d}", channels, make_image(brain.label, affine))

    def write_subject(self, index: int) -> Path:
        """One subject of the challenge's layout."""
        scanner, brain = scanner_of(index), self.make(index)
        affine = brain.head.grid.affine
        codes = scanner.stored[index // len(SCANNERS) % len(scanner.stored)]
        folder = self.out / subject_folder(index)
        flair_gain, t1_gain = scanner.gains
        for kind, flair, t1, number in (
            ("orig", brain.orig_flair, brain.orig_t1, _DELIVERED),
            ("pre", brain.pre_flair, brain.pre_t1, _CORRECTED),
        ):
            flair_image, t1_image = (
                make_image(_quantised(values, gain, *number), affine)
                for values, gain in ((flair, flair_gain), (t1, t1_gain))
            )
            write_image(folder / kind / "FLAIR.nii.gz", oriented(flair_image, codes))
            write_image(folder / kind / "T1.nii.gz", oriented(t1_image, codes))
            isotropic = resample_to_output(t1_image, 2.0, order=1)
            values = _quantised(np.asarray(isotropic.dataobj), 1.0, *number)
            write_image(folder / kind / "3DT1.nii.gz", oriented(make_image(values, isotropic.affine), "PSR"))
        # The label is last: a folder that has it is complete.
        label = make_image(brain.label.astype(np.float32), affine)
        write_image(folder / "wmh.nii.gz", oriented(label, codes))
        return folder


# Step and dtype of intensities: scanners deliver integers; bias correction makes floats of them.
_DELIVERED, _CORRECTED = (1.0, np.int16), (0.25, np.float32)


def _quantised(values: np.ndarray, gain: float, step: float, dtype: type[np.number]) -> np.ndarray:
    """``gain · values`` in whole steps."""
    return (np.rint(values * np.float32(gain / step)) * np.float32(step)).astype(dtype)
