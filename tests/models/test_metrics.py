"""Metrics against hand-computed cases, brute force on random masks, and the challenge's own steps in SimpleITK."""

import itertools
import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scp_models.evaluation.metrics import METRICS, count_lesions, harmonic_mean, hausdorff_95, subject_scores, summarise

SPACING = (0.95, 1.2, 3.0)
SHAPE = (7, 6, 4)


def volume(*lesions, shape=(12, 10, 4), label=1):
    """A label volume with a box for each lesion, given as three slices."""
    array = np.zeros(shape, dtype=np.uint8)
    for lesion in lesions:
        array[lesion] = label
    return array


def box(x, y, z, size=2):
    return slice(x, x + size), slice(y, y + size), slice(z, z + 1)


def flood_fill(mask, connectivity):
    """Connected components as sets of voxels, by visiting neighbours one at a time."""
    reach = {6: 1, 18: 2, 26: 3}[connectivity]
    steps = [s for s in itertools.product((-1, 0, 1), repeat=3) if 0 < sum(map(abs, s)) <= reach]
    unvisited = {tuple(int(i) for i in voxel) for voxel in np.argwhere(mask)}
    components = []
    while unvisited:
        component, frontier = set(), [unvisited.pop()]
        while frontier:
            voxel = frontier.pop()
            component.add(voxel)
            for step in steps:
                neighbour = tuple(a + b for a, b in zip(voxel, step, strict=True))
                if neighbour in unvisited:
                    unvisited.remove(neighbour)
                    frontier.append(neighbour)
        components.append(component)
    return components


def boundary_points(mask, spacing):
    """Voxels of which one of the 8 neighbours in the slice lies in the volume and outside the mask, in mm."""
    points = []
    for x, y, z in np.argwhere(mask):
        for dx, dy in itertools.product((-1, 0, 1), repeat=2):
            i, j = x + dx, y + dy
            if 0 <= i < mask.shape[0] and 0 <= j < mask.shape[1] and not mask[i, j, z]:
                points.append(np.array([x, y, z]) * spacing)
                break
    return np.array(points)


def brute_hausdorff_95(a, b, spacing):
    """From all pairwise distances."""
    if not a.any() and not b.any():
        return 0.0
    p, q = boundary_points(a, spacing), boundary_points(b, spacing)
    if not len(p) or not len(q):
        return math.nan
    distances = np.linalg.norm(p[:, None] - q[None], axis=-1)
    return max(np.percentile(distances.min(axis=1), 95), np.percentile(distances.min(axis=0), 95))


def brute_scores(prediction, reference, spacing, connectivity):
    """Every metric from sets of voxels."""
    predicted = (prediction == 1) & (reference != 2)
    target = reference == 1
    a = {tuple(v) for v in np.argwhere(predicted).tolist()}
    b = {tuple(v) for v in np.argwhere(target).tolist()}
    predicted_lesions = flood_fill(predicted, connectivity)
    reference_lesions = flood_fill(target, connectivity)
    tp = sum(not lesion.isdisjoint(a) for lesion in reference_lesions)
    hits = sum(not lesion.isdisjoint(b) for lesion in predicted_lesions)
    gl, pl = len(reference_lesions), len(predicted_lesions)
    tpr = tp / gl if gl else 1
    ppv = tp / pl if pl else 1
    precision = hits / pl if pl else 1
    undefined = math.nan if a else 0
    voxel = spacing[0] * spacing[1] * spacing[2] / 1000
    return {
        "dice": 2 * len(a & b) / (len(a) + len(b)) if a or b else 1,
        "lesion_dice": 2 * tp / (gl + pl) if gl + pl else 1,
        "lesion_f1": 2 * tpr * ppv / (tpr + ppv) if tpr + ppv else 0,
        "lesion_tpr": tpr,
        "lesion_ppv": ppv,
        "lesion_precision": precision,
        "hd95_mm": brute_hausdorff_95(predicted, target, spacing),
        "avd": 100 * abs(len(a) - len(b)) / len(b) if b else undefined,
        "lesion_recall": tpr,
        "challenge_f1": 2 * tpr * precision / (tpr + precision) if tpr + precision else 0,
        "reference_lesions": gl,
        "predicted_lesions": pl,
        "reference_ml": len(b) * voxel,
        "predicted_ml": len(a) * voxel,
    }


labels = arrays(np.uint8, SHAPE, elements=st.sampled_from([0, 0, 0, 1, 2]))
masks = arrays(np.bool_, SHAPE, elements=st.sampled_from([False, False, True]))


@settings(max_examples=60, deadline=None)
@given(prediction=masks, reference=labels, connectivity=st.sampled_from([6, 18, 26]))
def test_all_metrics_equal_brute_force_on_random_masks(prediction, reference, connectivity):
    scores = subject_scores(prediction, reference, SPACING, connectivity=connectivity)
    assert scores == pytest.approx(brute_scores(prediction, reference, SPACING, connectivity), nan_ok=True)


@pytest.mark.parametrize("seed", range(4))
def test_all_metrics_equal_brute_force_on_blobs(seed):
    # Random voxels have no interior; blobs have, so that boundaries and overlaps of many to one occur.
    rng = np.random.default_rng(seed)
    shape = (24, 20, 6)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)

    def blobs(count):
        centres, radii = rng.uniform((0, 0, 0), shape, (count, 3)), rng.uniform(1.5, 5, count)
        return np.any(
            [np.linalg.norm((grid - c) * (1, 1, 3), axis=-1) < r for c, r in zip(centres, radii, strict=True)], axis=0
        )

    reference = blobs(7).astype(np.uint8)
    reference[blobs(2) & (reference == 0)] = 2
    prediction = blobs(7) | (reference == 1) & (rng.random(shape) < 0.5)
    scores = subject_scores(prediction, reference, SPACING)
    assert scores == pytest.approx(brute_scores(prediction, reference, SPACING, 26))
    assert scores["lesion_ppv"] != scores["lesion_precision"]


def test_hand_computed_case():
    # Two reference lesions of 4 voxels, one of them half covered; two predicted lesions of 4, one beside the mark.
    reference = volume(box(1, 1, 1), box(6, 6, 2))
    prediction = volume(box(2, 1, 1), box(9, 1, 3))
    scores = subject_scores(prediction, reference, (1.0, 1.0, 3.0))
    assert scores["dice"] == 2 * 2 / 16
    assert scores["lesion_dice"] == 2 * 1 / 4
    assert scores["lesion_tpr"] == scores["lesion_ppv"] == scores["lesion_precision"] == scores["lesion_f1"] == 1 / 2
    assert scores["avd"] == 0
    assert (scores["reference_lesions"], scores["predicted_lesions"]) == (2, 2)
    assert scores["reference_ml"] == scores["predicted_ml"] == pytest.approx(8 * 3 / 1000)
    assert tuple(scores) == METRICS


def test_one_prediction_over_three_lesions_exceeds_one_in_the_papers_ppv_alone():
    reference = volume(box(0, 0, 0), box(4, 0, 0), box(8, 0, 0))
    prediction = volume((slice(0, 10), slice(0, 2), slice(0, 1)))
    scores = subject_scores(prediction, reference, SPACING)
    assert scores["lesion_ppv"] == 3.0
    assert scores["lesion_precision"] == 1.0
    assert scores["lesion_dice"] == 2 * 3 / 4
    assert scores["lesion_f1"] == 2 * 1 * 3 / 4
    assert scores["challenge_f1"] == 1.0


def test_ignored_voxels_leave_the_prediction_before_anything_is_counted():
    reference = volume(box(1, 1, 1))
    reference[6:9, 6:9, 1] = 2
    prediction = volume(box(1, 1, 1), box(6, 6, 1))
    scores = subject_scores(prediction, reference, SPACING)
    assert scores["dice"] == scores["lesion_dice"] == 1.0
    assert scores["hd95_mm"] == scores["avd"] == 0.0
    assert scores["predicted_lesions"] == 1
    without = subject_scores(prediction, (reference == 1).astype(np.uint8), SPACING, ignore_label=None)
    assert without["predicted_lesions"] == 2


def test_a_component_that_an_ignored_region_cuts_counts_as_two():
    reference = volume((slice(4, 5), slice(0, 10), slice(0, 1)), label=2)
    reference[0, 0, 0] = 1
    prediction = volume((slice(0, 8), slice(0, 10), slice(0, 1)))
    assert subject_scores(prediction, reference, SPACING)["predicted_lesions"] == 2


@pytest.mark.parametrize(("connectivity", "expected"), [(6, 4), (18, 2), (26, 1)])
def test_connectivity_decides_what_is_one_lesion(connectivity, expected):
    mask = np.zeros((6, 6, 6), dtype=bool)
    # A face's corner (no face shared), an edge's, and a corner's neighbour of the one before.
    mask[1, 1, 1] = mask[2, 2, 1] = True
    mask[3, 3, 2] = mask[4, 3, 3] = True
    assert count_lesions(mask, mask, connectivity) == (expected, expected)


EMPTY = volume()
LESION = volume(box(3, 3, 1))


def test_nothing_to_find_and_nothing_found_is_perfect():
    scores = subject_scores(EMPTY, EMPTY, SPACING)
    ones = ("dice", "lesion_dice", "lesion_f1", "lesion_tpr", "lesion_ppv", "lesion_precision", "challenge_f1")
    assert all(scores[key] == 1.0 for key in (*ones, "lesion_recall"))
    assert scores["hd95_mm"] == scores["avd"] == scores["reference_ml"] == 0.0


def test_nothing_found_where_there_is_something():
    scores = subject_scores(EMPTY, LESION, SPACING)
    zeros = ("dice", "lesion_dice", "lesion_f1", "lesion_tpr", "lesion_recall", "challenge_f1")
    assert all(scores[key] == 0.0 for key in zeros)
    assert scores["lesion_ppv"] == scores["lesion_precision"] == 1.0
    assert scores["avd"] == 100.0
    assert math.isnan(scores["hd95_mm"])


def test_something_found_where_there_is_nothing():
    scores = subject_scores(LESION, EMPTY, SPACING)
    zeros = ("dice", "lesion_dice", "lesion_f1", "lesion_ppv", "lesion_precision", "challenge_f1")
    assert all(scores[key] == 0.0 for key in zeros)
    assert scores["lesion_tpr"] == scores["lesion_recall"] == 1.0
    assert math.isnan(scores["hd95_mm"]) and math.isnan(scores["avd"])


def test_hausdorff_distance_is_in_millimetres():
    # Single voxels three apart along each axis in turn.
    for axis, spacing in enumerate(SPACING):
        a, b = np.zeros((9, 9, 9), bool), np.zeros((9, 9, 9), bool)
        a[4, 4, 4] = True
        b[tuple(7 if k == axis else 4 for k in range(3))] = True
        assert hausdorff_95(a, b, SPACING) == pytest.approx(3 * spacing)


def test_hausdorff_distance_of_far_lesions_needs_no_map_of_the_volume():
    a, b = np.zeros((160, 160, 80), bool), np.zeros((160, 160, 80), bool)
    a[2:8, 2:8, 2:8] = b[150:156, 150:156, 70:76] = True
    tracemalloc.start()
    assert hausdorff_95(a, b, (1.0, 1.0, 1.0)) > 200
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The erosion and its complement are masks of the volume; one map of distances would be eight of them.
    assert peak < 6 * a.nbytes


def test_masks_that_fill_their_slices_have_no_boundary():
    full = np.ones((4, 4, 2), dtype=np.uint8)
    assert math.isnan(subject_scores(full, full, SPACING)["hd95_mm"])


def challenge_hausdorff(a, b, spacing):
    """The challenge's steps by the tool it uses: erosion in the slice, difference, percentiles of nearest distances."""
    sitk = pytest.importorskip("SimpleITK")
    from scipy.spatial import KDTree

    clouds = []
    for mask in (a, b):
        image = sitk.GetImageFromArray(np.ascontiguousarray(mask.transpose(2, 1, 0)).astype(np.uint8))
        image.SetSpacing(spacing)
        edge = sitk.GetArrayFromImage(sitk.Subtract(image, sitk.BinaryErode(image, (1, 1, 0))))
        indices = np.argwhere(edge)[:, ::-1].tolist()
        clouds.append(np.array([image.TransformIndexToPhysicalPoint(index) for index in indices]))
    forth, back = KDTree(clouds[0]).query(clouds[1])[0], KDTree(clouds[1]).query(clouds[0])[0]
    return max(np.percentile(forth, 95), np.percentile(back, 95))


@pytest.mark.parametrize("seed", range(5))
def test_hausdorff_distance_is_the_challenges(seed):
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, (30, 28, 8)), indexing="ij"), axis=-1)
    # Some of the balls reach over the volume's border, where the two ideas of a boundary would part.
    a, b = (
        np.any(
            [np.linalg.norm((grid - c) * (1, 1, 2), axis=-1) < 6 for c in rng.uniform(0, (30, 28, 8), (3, 3))], axis=0
        )
        for _ in range(2)
    )
    assert hausdorff_95(a, b, SPACING) == pytest.approx(challenge_hausdorff(a, b, SPACING))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": LESION[:-1]}, "one shape"),
        ({"prediction": LESION[0], "reference": LESION[0]}, "one shape"),
        ({"prediction": LESION * 2}, r"prediction: expected labels among \(0, 1\), got also \[2\]"),
        ({"reference": LESION * 3}, r"reference: expected labels among \(0, 1, 2\), got also \[3\]"),
        ({"reference": LESION * 0.5}, "reference: expected labels"),
        ({"reference": LESION * 2, "ignore_label": None}, "reference: expected labels"),
        ({"spacing": (1.0, 1.0)}, "spacing"),
        ({"spacing": (1.0, 0.0, 1.0)}, "spacing"),
        ({"spacing": (1.0, math.nan, 1.0)}, "spacing"),
        ({"connectivity": 8}, "connectivity"),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = {"prediction": LESION, "reference": LESION, "spacing": SPACING, **change}
    with pytest.raises(ValueError, match=message):
        subject_scores(**arguments)


def test_float_volumes_and_any_strides_as_they_come_from_files():
    assert subject_scores(LESION.astype(float), LESION.astype(np.float32), SPACING)["dice"] == 1.0
    rng = np.random.default_rng(0)
    prediction, reference = (rng.integers(0, 2, (8, 7, 6)) for _ in range(2))
    expected = subject_scores(prediction, reference, SPACING)
    strided = [np.asfortranarray(np.repeat(a, 2, axis=1))[:, ::2] for a in (prediction, reference)]
    assert subject_scores(*strided, SPACING) == expected


def row(**values):
    return {**dict.fromkeys(METRICS, 0.5), "subject": "a name", **values}


def test_summary_of_means_deviations_and_counts():
    summary = summarise([row(dice=0.4), row(dice=0.6), row(dice=0.8)])
    assert summary["subjects"] == 3
    assert summary["dice"] == {"mean": pytest.approx(0.6), "std": pytest.approx(0.2), "n": 3}
    assert "subject" not in summary


def test_the_papers_lesion_f1_is_taken_of_the_averages():
    rows = [row(lesion_tpr=1.0, lesion_ppv=0.2, lesion_f1=1 / 3), row(lesion_tpr=0.2, lesion_ppv=1.0, lesion_f1=1 / 3)]
    summary = summarise(rows)
    assert summary["paper_lesion_f1"] == pytest.approx(0.6)
    assert summary["lesion_f1"]["mean"] == pytest.approx(1 / 3)


# Table 1: L-F1, L-PPV, L-TPR of four rows. Their L-F1 follows from the two printed averages.
@pytest.mark.parametrize(
    ("f1", "ppv", "tpr"), [(57.53, 58.48, 56.62), (66.39, 67.28, 65.53), (72.27, 69.78, 74.95), (38.24, 90.95, 24.21)]
)
def test_the_papers_table_follows_that_definition(f1, ppv, tpr):
    assert harmonic_mean(tpr, ppv) == pytest.approx(f1, abs=0.02)


def test_undefined_scores_are_counted_and_left_out_and_the_summary_is_json():
    summary = summarise([row(hd95_mm=4.0, avd=math.nan), row(hd95_mm=math.nan, avd=math.nan)])
    assert summary["hd95_mm"] == {"mean": 4.0, "std": None, "n": 1}
    assert summary["avd"] == {"mean": None, "std": None, "n": 0}
    json.dumps(summary, allow_nan=False)


def test_a_summary_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one subject"):
        summarise([])
    with pytest.raises(ValueError, match="'dice' in each, but row 1"):
        summarise([row(), {"subject": "x"}])
