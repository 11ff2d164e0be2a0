"""FLAIR and T1 of one brain phantom: contrast, scalp and skull, bias field, noise."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import ndimage as ndi

from scp_models.phantoms.anatomy import POSE, Grid, Head, Variability, make_head
from scp_models.phantoms.fields import SmoothField
from scp_models.phantoms.lesions import (
    PLACE_ALONE,
    BlobRule,
    Pathology,
    height_decided,
    location_decided,
    paired,
    periventricular,
)
from scp_models.phantoms.templates import BrainTemplate

# The settings of the study that the demo repeats: less variety, so that the network's view and not anatomy is tested.
_STUDY_VARIABILITY = Variability(2.0, 0.03, 2.0, 1.2, 0.9, (0.0, 0.0))

DecidedBy = Literal["anatomy", "ellipse", "height", "side"]
"""What decides the label of a bright blob: where in the anatomy it lies, a central ellipse, its height, its side."""

# (FLAIR, T1) of each tissue, in units of the scanner's gain.
_WHITE, _GREY, _FLUID = (0.62, 0.95), (0.76, 0.66), (0.14, 0.24)
_FAT, _MUSCLE, _MARROW, _BONE = (0.86, 1.22), (0.34, 0.46), (0.38, 0.66), (0.07, 0.10)


@dataclass(frozen=True)
class BrainImages:
    """One subject on ``head.grid``; images are float32 in units of the scanner's gain, ``label`` uint8 0/1/2.

    ``orig_*`` carry the bias field, ``pre_*`` the same noise without it.
    """

    head: Head
    pathology: Pathology
    label: np.ndarray
    orig_flair: np.ndarray
    orig_t1: np.ndarray
    pre_flair: np.ndarray
    pre_t1: np.ndarray


def make_brain(
    template: BrainTemplate,
    grid: Grid,
    seed: np.random.SeedSequence,
    *,
    decided_by: DecidedBy = "anatomy",
    pose: bool = False,
    rule: BlobRule = PLACE_ALONE,
) -> BrainImages:
    """Draw one subject.

    Args:
        template: the average anatomy.
        grid: of the images.
        seed: fixes every voxel.
        decided_by: of the label; ``"ellipse"`` and ``"height"`` are of a brain without skull, as in the study.
        pose: the head lies anywhere in the field of view, tilted, larger or smaller.
        rule: where ellipse or height decide, how far they do.
    """
    decided = decided_by in ("ellipse", "height")
    for_shape, for_lesions, for_look, for_noise = (np.random.default_rng(s) for s in seed.spawn(4))
    people = _STUDY_VARIABILITY if decided else Variability()
    head = make_head(template, grid, replace(people, **POSE) if pose else people, for_shape)
    if decided_by == "anatomy":
        pathology = periventricular(head, for_lesions)
    elif decided_by == "side":
        pathology = paired(head, for_lesions)
    else:
        pathology = {"ellipse": location_decided, "height": height_decided}[decided_by](head, for_lesions, rule)
    clean = _contrast(head, pathology, for_look, brain_only=decided)
    level = 0.05 if decided else float(for_look.uniform(0.025, 0.04))

    orig, pre = [], []
    for image in clean:
        axes = grid.axes
        field = SmoothField(for_look, [a[0] for a in axes], [a[-1] for a in axes], 75.0)
        bias = np.exp(np.float32(0.18) * field(*axes))
        real = image * bias + np.float32(level) * for_noise.standard_normal(grid.shape, dtype=np.float32)
        imaginary = np.float32(level) * for_noise.standard_normal(grid.shape, dtype=np.float32)
        measured = np.hypot(real, imaginary)  # magnitude images have Rician noise
        orig.append(measured)
        pre.append(measured / bias)
    return BrainImages(head, pathology, pathology.label, *orig, *pre)


def _contrast(head: Head, pathology: Pathology, rng: np.random.Generator, *, brain_only: bool) -> list[np.ndarray]:
    """Noise-free FLAIR and T1 after the scanner's point spread."""
    axes = head.grid.axes
    low, high = [a[0] for a in axes], [a[-1] for a in axes]
    texture = SmoothField(rng, low, high, 2.5)(*axes)
    patchiness = SmoothField(rng, low, high, 14.0)(*axes)
    scalp_weights = None if brain_only else _scalp(head, texture)
    images = []
    for channel in (0, 1):
        white, grey, fluid = (tissue[channel] * np.exp(rng.normal(0, 0.03)) for tissue in (_WHITE, _GREY, _FLUID))
        image = np.float32(white) * head.white + np.float32(grey) * head.grey + np.float32(fluid) * head.fluid
        # Healthy white matter is not uniform: dirty-appearing in places, brighter towards the back.
        image *= 1 + np.float32(0.025) * patchiness + np.float32(0.015) * texture
        if channel == 0:
            image += pathology.brightness * (1 - np.float32(0.6) * head.fluid)
            image += np.float32(0.4) * pathology.other * (1 - pathology.scar)
        else:
            image *= 1 - np.float32(0.3) * pathology.strength
            image *= 1 - np.float32(0.35) * pathology.other
        image += pathology.scar * (np.float32(fluid) * 1.3 - image)
        if scalp_weights is not None:
            for tissue, weight in zip((_FAT, _MUSCLE, _MARROW, _BONE), scalp_weights, strict=True):
                image += np.float32(tissue[channel]) * weight
        images.append(ndi.gaussian_filter(image, (0.5, 0.5, 0.0)))
    return images


def _scalp(head: Head, texture: np.ndarray) -> list[np.ndarray]:
    """Shares of fat, muscle, marrow and bone at each voxel outside the brain."""
    outside = 1 - np.clip(head.brain, 0, 1)
    skin, hull = head.skin + np.float32(0.25) * texture, head.hull + np.float32(0.3) * texture
    inside_head = np.clip(head.skin, 0, 1) * outside
    skull = np.clip((hull - 1.2) * 1.5, 0, 1) * np.clip((7.2 - hull) * 1.5, 0, 1) * np.clip((skin - 4.0), 0, 1)
    marrow = np.exp(-(((hull - 4.3) / 1.3) ** 2)) * skull
    fat = np.clip((skin - 1.2) * 1.2, 0, 1) * np.clip((5.6 - skin) * 1.2, 0, 1) * (1 - skull)
    beyond = np.clip((hull - 1.2) * 1.5, 0, 1)  # between brain and skull there is fluid, dark in both images
    muscle = (1 - np.maximum(fat, skull)) * beyond * (1 + np.float32(0.15) * texture)
    return [fat * inside_head, muscle * inside_head, marrow * inside_head, (skull - marrow) * inside_head]
