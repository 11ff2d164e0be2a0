"""White matter lesions, what looks like them, and other pathology, placed in one person's head."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from scp_models.phantoms.anatomy import Head
from scp_models.phantoms.fields import Blobs, SmoothField, sample_voxels

OTHER_PATHOLOGY_SHARE = 0.4

# Blobs per millilitre where they may appear (integral of the density, in ml), at unit load.
_LESIONS_PER_ML = 0.6
_CORTICAL_PER_ML = 0.075
_JUXTACORTICAL_PER_ML = 0.09
_EVERYWHERE_PER_ML = 0.165  # the study's 110 blobs in its slab of 665 ml of tissue

_PAIRS = (6, 11)
# Of a pair's blobs: least distance in mm from the midline, and of one from its partner's mirror image.
_FROM_MIDLINE, _PAIR_JITTER_MM = 18.0, 3.0

# The honest comparison's ellipse: semi-axes in mm to the side and to the front, centre in front-back (MNI).
ELLIPSE_SEMI_AXES = (26.0, 44.0)
ELLIPSE_CENTER_Y = -18.0
# Above it (MNI, mm) a blob is a lesion in the height-decided phantom; half of the tissue is above.
LESIONS_ABOVE_Z = 12.0


@dataclass(frozen=True)
class Pathology:
    """Added brightness and masks on the head's grid.

    ``brightness`` float32: what is added to FLAIR, in units of the image before scanner gain, the same law for lesions
    and look-alikes; ``strength`` float32 in [0, 1]: the share of damaged tissue (darkens T1). ``lesion``,
    ``lookalike``, ``other``: bool, disjoint. ``scar`` float32: 0 outside ``other``, up to 1 in its fluid-filled core.
    ``label`` uint8: 1 lesion, 2 other; or, of paired structures, 1 on the left and 2 on the right of the patient.
    """

    brightness: np.ndarray
    strength: np.ndarray
    lesion: np.ndarray
    lookalike: np.ndarray
    other: np.ndarray
    scar: np.ndarray
    label: np.ndarray


@dataclass(frozen=True)
class BlobRule:
    """What tells lesions from look-alikes among blobs that lie everywhere, beside their place."""

    certainty: float = 1.0
    """Probability that a blob is what its place says; 0.5: its place says nothing."""
    lookalike_brightness: float = 1.0
    """Of look-alikes, as a share of the lesions'; 0: there are none to be seen."""


PLACE_ALONE = BlobRule()


def in_ellipse(head: Head) -> np.ndarray:
    """Where a blob is a lesion in the location-decided phantom: a bool mask, fixed in the template's coordinates."""
    x, y, _ = head.template_point
    return (x / ELLIPSE_SEMI_AXES[0]) ** 2 + ((y - ELLIPSE_CENTER_Y) / ELLIPSE_SEMI_AXES[1]) ** 2 < 1


def _roughness(head: Head, rng: np.random.Generator, scale: float) -> np.ndarray:
    axes = head.grid.axes
    return SmoothField(rng, [a[0] for a in axes], [a[-1] for a in axes], scale)(*axes)


def _scatter(
    blobs: Blobs,
    head: Head,
    density: np.ndarray,
    per_ml: float,
    radii: tuple[float, float],
    strengths: tuple[float, float],
    rng: np.random.Generator,
    *,
    elongation: float = 0.25,
    least_height: float = 0.0,
    at_least: int = 0,
) -> None:
    """Add a random number of blobs, log-uniform in radius (mm), proportionally to ``density``."""
    volume = float(density.sum(dtype=np.float64)) * head.grid.voxel_ml
    count = max(at_least, rng.poisson(per_ml * volume))
    for center in sample_voxels(density, count, rng):
        axes = np.exp(rng.uniform(*np.log(radii))) * np.exp(rng.normal(0, elongation, 3))
        axes[2] = max(axes[2], least_height)
        blobs.add(center, axes, rng.uniform(*strengths))


def periventricular(head: Head, rng: np.random.Generator) -> Pathology:
    """Lesions as in the paper's Fig. 2: dense around the ventricles, rarer with distance; look-alikes elsewhere.

    Lesions are a rim and caps along the ventricles plus blobs in the white matter. Look-alikes (cortex and sulci, the
    white matter under the cortex, the choroid plexus) have the same shapes and the same brightness and are labelled 0.
    """
    roughness = _roughness(head, rng, 3.2)
    waviness = _roughness(head, rng, 9.0)
    load = float(rng.lognormal(0, 0.6))
    level = rng.uniform(0.36, 0.48)
    strengths = (0.85 * level, 1.15 * level)

    lesions = Blobs(roughness, head.grid.spacing)
    deep = (head.white > 0.7) & (head.depth > 6)
    near = deep * np.exp(-head.ventricle / np.float32(7.0))
    _scatter(lesions, head, near, _LESIONS_PER_ML * load, (1.8, 5.5), strengths, rng, at_least=3)
    thickness = 1.0 + 1.3 * load ** np.float32(0.7)
    rim = np.exp(-0.69 * (head.ventricle / (thickness * np.exp(0.45 * waviness))) ** 2) * np.clip(
        head.white * 1.6 - 0.3, 0, 1
    )
    rim *= (head.ventricle < 12) & (roughness > -1.2)
    damage = np.maximum(lesions.profile, rim) * np.clip(head.white * 1.8, 0, 1)
    brightness = np.where(lesions.profile > rim, lesions.strength, np.float32(level))

    lookalikes = Blobs(roughness, head.grid.spacing)
    far = head.ventricle > 14
    # depth reaches 0 at the surface: at 1.5 mm and more a blob is tissue, not scalp.
    cortex = (far & (head.depth > 1.5) & (head.depth < 9) & ((head.grey > 0.4) | (head.depth < 4))).astype(np.float32)
    _scatter(lookalikes, head, cortex, _CORTICAL_PER_ML, (1.8, 5.0), strengths, rng)
    under_cortex = ((head.white > 0.7) & (head.depth > 3) & (head.ventricle > 22)).astype(np.float32)
    _scatter(lookalikes, head, under_cortex, _JUXTACORTICAL_PER_ML, (1.8, 4.0), strengths, rng)
    plexus = ((head.ventricle < 0.5) & (head.fluid > 0.5)).astype(np.float32)
    _scatter(lookalikes, head, plexus, 0.12, (1.6, 3.2), strengths, rng)

    lesion = (damage > 0.5) & (head.brain > 0.5)
    elsewhere = np.where(lesion, 0, lookalikes.profile) * (head.brain > 0.5)
    brightness = np.where(elsewhere > damage, lookalikes.strength, brightness)
    strength = np.maximum(damage, elsewhere)
    other, scar = _other_pathology(head, roughness, rng)
    lesion &= ~other
    lookalike = (elsewhere > 0.5) & ~lesion & ~other
    label = lesion + np.uint8(2) * other
    return Pathology(brightness * strength, strength, lesion, lookalike, other, scar, label)


def _other_pathology(head: Head, roughness: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An old cortical infarct in four subjects of ten: a fluid-filled core with a bright rim. Returns (mask, core)."""
    present = rng.random() < OTHER_PATHOLOGY_SHARE
    cortex = ((head.grey > 0.5) & (head.depth > 2) & (head.depth < 12) & (head.ventricle > 18)).astype(np.float32)
    radii = np.exp(rng.uniform(*np.log((7.0, 13.0)))) * np.exp(rng.normal(0, 0.2, 3))
    infarct = Blobs(roughness, head.grid.spacing)
    centers = sample_voxels(cortex, 1, rng)
    if present and len(centers):
        infarct.add(centers[0], radii, 1.0)
    mask = (infarct.profile > 0.5) & (head.brain > 0.5)
    core = np.clip((infarct.profile - 0.66) * 8, 0, 1) * (head.brain > 0.5)
    return mask, core.astype(np.float32)


def location_decided(head: Head, rng: np.random.Generator, rule: BlobRule = PLACE_ALONE) -> Pathology:
    """Identical blobs everywhere in the parenchyma; those voxels that lie inside a central ellipse are the lesions.

    Nothing but position tells a lesion from a look-alike: the phantom of the comparison with and without SCP.
    """
    return _blobs_everywhere(head, rng, in_ellipse(head), rule)


def height_decided(head: Head, rng: np.random.Generator, rule: BlobRule = PLACE_ALONE) -> Pathology:
    """Identical blobs everywhere in the parenchyma; those voxels that lie in the brain's upper half are the lesions.

    Where a voxel lies in its slice says nothing: height alone tells a lesion from a look-alike.
    """
    return _blobs_everywhere(head, rng, head.template_point[2] > LESIONS_ABOVE_Z, rule)


def _tissue(head: Head) -> np.ndarray:
    return ((head.brain > 0.6) & (head.fluid < 0.4) & (head.depth > 4)).astype(np.float32)


def _blobs_everywhere(head: Head, rng: np.random.Generator, lesions: np.ndarray, rule: BlobRule) -> Pathology:
    roughness = _roughness(head, rng, 4.0)
    tissue = _tissue(head)
    blobs = Blobs(roughness, head.grid.spacing)
    density = _EVERYWHERE_PER_ML * float(rng.lognormal(0, 0.2))
    # At least 3 mm high, so that a blob is seen in its slice however thick the slices are.
    shape: dict[str, Any] = {"elongation": 0.2, "least_height": 3.5}
    _scatter(blobs, head, tissue, density * rule.certainty, (2.9, 5.9), (0.42, 0.42), rng, **shape)
    profile = blobs.profile
    if rule.certainty < 1:
        # The others are the contrary of what their place says.
        contrary = Blobs(roughness, head.grid.spacing)
        _scatter(contrary, head, tissue, density * (1 - rule.certainty), (2.9, 5.9), (0.42, 0.42), rng, **shape)
        lesions = lesions ^ (contrary.profile > profile)
        profile = np.maximum(profile, contrary.profile)
    inside = head.brain > 0.5
    blob = (profile > 0.5) & inside
    lesion = blob & lesions
    strength = profile * inside
    if rule.lookalike_brightness != 1:
        strength *= np.where(lesions, np.float32(1), np.float32(rule.lookalike_brightness))
    none = np.zeros(head.grid.shape, np.float32)
    return Pathology(
        np.float32(0.42) * strength, strength, lesion, blob & ~lesion, none > 0, none, lesion.astype(np.uint8)
    )


def paired(head: Head, rng: np.random.Generator) -> Pathology:
    """Pairs of blobs, one in each hemisphere, at places that mirror each other but for a few millimetres; all of one
    brightness. The patient's left ones are label 1, the right ones label 2: nothing but the side tells them apart.
    """
    roughness = _roughness(head, rng, 4.0)
    blobs = Blobs(roughness, head.grid.spacing)
    x = head.template_point[0]
    right = _tissue(head) * (x > _FROM_MIDLINE)
    for center in sample_voxels(right, int(rng.integers(*_PAIRS)), rng):
        place = head.template_point[(slice(None), *center)].astype(np.float64)
        for side in (-1.0, 1.0):
            target = place * (side, 1.0, 1.0) + rng.normal(0, _PAIR_JITTER_MM, 3)
            target[0] = side * max(side * target[0], _FROM_MIDLINE)
            radii = np.exp(rng.uniform(*np.log((7.0, 11.0)))) * np.exp(rng.normal(0, 0.15, 3))
            # At least as high as a thick slice, so that none lies between two.
            radii[2] = max(radii[2], 0.8 * head.grid.spacing[2])
            distance = sum((head.template_point[k] - np.float32(target[k])) ** 2 for k in range(3))
            nearest = np.unravel_index(int(distance.argmin()), distance.shape)
            # A head that is not wholly in the field of view may show one of the two.
            if distance[nearest] < 2 * max(head.grid.spacing) ** 2:
                blobs.add(np.array(nearest), radii, 0.42)
    inside = head.brain > 0.5
    blob = (blobs.profile > 0.5) & inside
    strength = blobs.profile * inside
    none = np.zeros(head.grid.shape, np.float32)
    label = np.where(x < 0, np.uint8(1), np.uint8(2)) * blob
    return Pathology(np.float32(0.42) * strength, strength, blob, none > 0, none > 0, none, label)
