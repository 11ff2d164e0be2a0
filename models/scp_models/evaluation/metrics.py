"""Scores of one subject and their summary: the paper's, and the WMH challenge's own to compare with its leaderboard.

All are taken in 3-D on the source's grid. Voxels that the reference marks with the ignored label are first removed from
the prediction, as the challenge does.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from scp_models.data.classes import IGNORED_AMONG_CLASSES
from scp_models.data.tasks import IGNORED_LABEL, TARGET_LABEL

METRICS = (
    "dice",
    "lesion_dice",
    "lesion_f1",
    "lesion_tpr",
    "lesion_ppv",
    "lesion_precision",
    "hd95_mm",
    "avd",
    "lesion_recall",
    "challenge_f1",
    "reference_lesions",
    "predicted_lesions",
    "reference_ml",
    "predicted_ml",
)
"""The keys of :func:`subject_scores`, in the order of its columns."""

Connectivity = Literal[6, 18, 26]
Mask = NDArray[np.bool_]

# 3 × 3 in the slice plane and nothing across slices, where WMH data are three times as coarse.
IN_PLANE = np.ones((3, 3, 1), dtype=bool)


def subject_scores(
    prediction: NDArray[Any],
    reference: NDArray[Any],
    spacing: Sequence[float],
    *,
    connectivity: Connectivity = 26,
    ignore_label: int | None = IGNORED_LABEL,
) -> dict[str, float]:
    """All metrics of one subject, keyed by :data:`METRICS`.

    With GL and PL the numbers of reference and predicted lesions (3-D connected components), and TP that of the
    reference lesions which overlap the prediction:

    - ``dice``: 2·|A∩B| / (|A| + |B|), voxels.
    - ``lesion_dice``: 2·TP / (GL + PL). The paper prints it without the 2, which all 24 rows of its tables refute. TP
      counts reference lesions, so it can exceed 1, and it rewards one big blob over many lesions: read it beside
      ``challenge_f1``.
    - ``lesion_tpr``: TP / GL. ``lesion_ppv``: TP / PL as the paper prints it; it counts reference lesions, several of
      which one predicted lesion can cover, so it may exceed 1. ``lesion_f1``: their harmonic mean.
    - The challenge's lesion detection: ``lesion_recall``: TP / GL; ``lesion_precision``: predicted lesions that overlap
      the reference / PL; ``challenge_f1``: their harmonic mean.
    - The challenge's ``avd``: volume difference in percent of the reference's volume. Its ``hd95_mm``:
      :func:`hausdorff_95`.
    - ``reference_lesions`` (GL), ``predicted_lesions`` (PL); ``reference_ml``, ``predicted_ml``: volumes in ml.

    Nothing to find and nothing found is perfect: a ratio without a denominator is 1 (recall with nothing to find,
    precision with nothing found), ``avd`` and ``hd95_mm`` of two empty masks are 0. A harmonic mean of zeros is 0.
    Where only the reference is empty (``avd``, ``hd95_mm``) or only the prediction (``hd95_mm``) the number does not
    exist and is NaN on purpose: an empty cell in a CSV, left out of the means and counted by :func:`summarise`.

    Args:
        prediction: ``[X, Y, Z]``, bool, or 0 and 1.
        reference: ``[X, Y, Z]``, 0, 1 and ``ignore_label``.
        spacing: voxel size in mm along the three axes; the third axis runs across slices.
        connectivity: 26, 18 or 6 neighbours; the challenge's is 26.
        ignore_label: label of voxels that are neither target nor background; None: there are none.

    Raises:
        ValueError: shapes, labels, spacing or connectivity other than these.
    """
    predicted, target = masks_of(prediction, reference, ignore_label)
    if len(spacing) != 3 or not all(math.isfinite(size) and size > 0 for size in spacing):
        raise ValueError(f"spacing: expected three positive sizes in mm, got {tuple(spacing)}")
    if connectivity not in get_args(Connectivity):
        raise ValueError(f"connectivity: expected one of {get_args(Connectivity)}, got {connectivity}")

    millilitres = math.prod(float(size) for size in spacing) / 1000
    scores = {
        **count_scores(predicted, target, connectivity),
        "hd95_mm": hausdorff_95(predicted, target, spacing),
        "reference_ml": int(target.sum()) * millilitres,
        "predicted_ml": int(predicted.sum()) * millilitres,
    }
    return {key: scores[key] for key in METRICS}


def count_scores(predicted: Mask, target: Mask, connectivity: Connectivity = 26) -> dict[str, float]:
    """Those of :func:`subject_scores` that come from numbers of voxels and lesions, and need no spacing."""
    reference_voxels, predicted_voxels = int(target.sum()), int(predicted.sum())
    reference_lesions, detected = count_lesions(target, predicted, connectivity)
    predicted_lesions, hits = count_lesions(predicted, target, connectivity)
    tpr = _ratio(detected, reference_lesions)
    ppv = _ratio(detected, predicted_lesions)
    precision = _ratio(hits, predicted_lesions)
    return {
        "dice": _ratio(2 * int((predicted & target).sum()), reference_voxels + predicted_voxels),
        "lesion_dice": _ratio(2 * detected, reference_lesions + predicted_lesions),
        "lesion_f1": harmonic_mean(tpr, ppv),
        "lesion_tpr": tpr,
        "lesion_ppv": ppv,
        "lesion_precision": precision,
        "avd": _volume_difference(predicted_voxels, reference_voxels),
        "lesion_recall": tpr,
        "challenge_f1": harmonic_mean(tpr, precision),
        "reference_lesions": float(reference_lesions),
        "predicted_lesions": float(predicted_lesions),
    }


def class_scores(
    prediction: NDArray[Any],
    reference: NDArray[Any],
    spacing: Sequence[float],
    classes: Sequence[str],
    *,
    connectivity: Connectivity = 26,
    ignore_label: int = IGNORED_AMONG_CLASSES,
) -> dict[str, dict[str, float]]:
    """:func:`subject_scores` of each of several exclusive classes against all else, by name.

    Args:
        prediction: ``[X, Y, Z]``, 0 and the classes' numbers from 1 on.
        reference: the same, and ``ignore_label``.
        spacing: voxel size in mm along the three axes.
        classes: their names, in the order of their numbers.
        connectivity: of lesions.
        ignore_label: label of voxels that count for no class.

    Raises:
        ValueError: shapes, labels, spacing or connectivity other than these.
    """
    numbers = range(1 + len(classes))
    for name, volume, allowed in (
        ("prediction", prediction, (*numbers,)),
        ("reference", reference, (*numbers, ignore_label)),
    ):
        values = np.unique(volume)
        strange = values[~np.isin(values, allowed)]
        if len(strange):
            raise ValueError(f"{name}: expected labels among {allowed}, got also {strange[:5].tolist()}")
    ignored = np.uint8(IGNORED_LABEL) * (reference == ignore_label)
    return {
        name: subject_scores(
            prediction == number,
            ignored + np.uint8(TARGET_LABEL) * (reference == number),
            spacing,
            connectivity=connectivity,
        )
        for number, name in enumerate(classes, start=1)
    }


def count_lesions(mask: Mask, other: Mask, connectivity: Connectivity = 26) -> tuple[int, int]:
    """Number of connected components of ``mask``, and of those among them that share a voxel with ``other``."""
    components, count = cc3d.connected_components(mask, connectivity=connectivity, return_N=True)
    return int(count), len(np.unique(components[mask & other]))


def hausdorff_95(predicted: Mask, target: Mask, spacing: Sequence[float]) -> float:
    """95th percentile Hausdorff distance in mm, as the WMH challenge's script computes it.

    Boundary voxels are those that an erosion by 3 × 3 within the slice removes; the volume's own border makes no
    boundary. The result is the larger of the two directions' 95th percentiles of the distances from boundary voxel to
    nearest boundary voxel. MONAI's ``compute_hausdorff_distance`` erodes across slices too and by a cross, so that its
    numbers are not the leaderboard's.

    Returns:
        0 if both masks are empty; NaN if one is, or has no boundary because it fills every slice that it touches.
    """
    if not predicted.any() and not target.any():
        return 0.0
    a, b = (mask & ~ndimage.binary_erosion(mask, IN_PLANE, border_value=1) for mask in (predicted, target))
    if not a.any() or not b.any():
        return math.nan
    # Distance maps would fill the box around both masks, gigabytes where a CT has false positives all over.
    points_a, points_b = (np.argwhere(boundary) * np.asarray(spacing, dtype=float) for boundary in (a, b))
    # The leaves are the challenge's; with small ones, points of a grid that are all as far take ten times as long.
    to_b, _ = KDTree(points_b, leafsize=100).query(points_a)
    to_a, _ = KDTree(points_a, leafsize=100).query(points_b)
    return float(max(np.percentile(to_b, 95), np.percentile(to_a, 95)))


def harmonic_mean(a: float, b: float) -> float:
    """``2ab / (a + b)``; 0 if both are 0."""
    return 2 * a * b / (a + b) if a + b else 0.0


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, standard deviation and number of subjects of every metric, ready for JSON.

    Args:
        rows: one per subject, as :func:`subject_scores` gives them; other keys (a name, a site) are passed over.

    Returns:
        ``subjects``; ``paper_lesion_f1``, the paper's L-F1: the harmonic mean of the averaged L-TPR and L-PPV, where
        ``lesion_f1`` averages the subjects' own; and for each of :data:`METRICS` an object of ``mean``, ``std`` (n − 1)
        and ``n``, the subjects for whom it is defined. A mean over none, or a deviation over fewer than two, is None.

    Raises:
        ValueError: no rows, or one that lacks a metric.
    """
    if not rows:
        raise ValueError("rows: expected at least one subject, got none")
    summary: dict[str, Any] = {"subjects": len(rows)}
    for key in METRICS:
        lacking = next((k for k, row in enumerate(rows) if key not in row), None)
        if lacking is not None:
            raise ValueError(f"rows: expected {key!r} in each, but row {lacking} lacks it")
        values = np.array([row[key] for row in rows], dtype=float)
        values = values[~np.isnan(values)]
        summary[key] = {
            "mean": float(values.mean()) if len(values) else None,
            "std": float(values.std(ddof=1)) if len(values) > 1 else None,
            "n": len(values),
        }
    summary["paper_lesion_f1"] = harmonic_mean(summary["lesion_tpr"]["mean"], summary["lesion_ppv"]["mean"])
    return summary


def masks_of(prediction: NDArray[Any], reference: NDArray[Any], ignore_label: int | None) -> tuple[Mask, Mask]:
    """The two masks to compare, with ignored voxels removed from the prediction."""
    if prediction.ndim != 3 or prediction.shape != reference.shape:
        raise ValueError(
            f"prediction, reference: expected two volumes of one shape, got {prediction.shape} and {reference.shape}"
        )
    mask_labels = (0, TARGET_LABEL)
    labels = mask_labels if ignore_label is None else (*mask_labels, ignore_label)
    for name, volume, allowed in (("prediction", prediction, mask_labels), ("reference", reference, labels)):
        values = np.unique(volume)
        strange = values[~np.isin(values, allowed)]
        if len(strange):
            raise ValueError(f"{name}: expected labels among {allowed}, got also {strange[:5].tolist()}")
    predicted, target = prediction == TARGET_LABEL, reference == TARGET_LABEL
    return (predicted if ignore_label is None else predicted & (reference != ignore_label)), target


def _volume_difference(predicted: int, reference: int) -> float:
    """In percent of the reference volume; NaN where only that is empty."""
    if reference == 0:
        return math.nan if predicted else 0.0
    return 100 * abs(predicted - reference) / reference


def _ratio(numerator: int, denominator: int) -> float:
    """1 where there is nothing to count: nothing to find, or nothing found, is no error."""
    return numerator / denominator if denominator else 1.0
