"""Phantoms in which side or height decides, and those that lie anywhere in the field of view."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage as ndi
from scipy.spatial import KDTree

from scp_models.data import find_subjects, get_task
from scp_models.data.description import task_of_data_set
from scp_models.errors import UserError
from scp_models.phantoms import generate_lits, generate_wmh, templates, wmh
from scp_models.phantoms.brain import BrainImages, make_brain
from scp_models.phantoms.lesions import LESIONS_ABOVE_Z
from scp_models.phantoms.writing import RECORD, subject_seed
from tests.support.commands import scp_models
from tests.support.digests import digests

BRAIN, BODY = (40, 44, 20), (64, 64, 32)


def brain(index: int, **options) -> BrainImages:
    grid = wmh.grid_of(index, BRAIN, options["decided_by"], options.get("pose", False))
    return make_brain(templates.load_brain_template(), grid, subject_seed(7, 0, index), **options)


def loaded(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and affine of a file."""
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def centre(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """In mm, RAS+."""
    return nib.affines.apply_affine(affine, np.argwhere(mask).mean(axis=0))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pairs") / "Dataset501_Pairs"
    generate_wmh(out, 6, seed=3, size=BRAIN, left_right=True, progress=False)
    return out


@pytest.fixture(scope="module")
def kidneys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kidneys") / "Dataset502_Kidneys"
    generate_lits(out, 4, seed=3, size=BODY, left_right=True, progress=False)
    return out


# On disk


def test_pairs_are_a_data_set_of_nnunet(pairs: Path) -> None:
    cases = [f"brain_{k:03d}" for k in range(6)]
    files = {f"imagesTr/{case}_{k:04d}.nii.gz" for case in cases for k in range(2)}
    assert set(digests(pairs)) == files | {f"labelsTr/{case}.nii.gz" for case in cases} | {RECORD, "dataset.json"}
    assert json.loads((pairs / "dataset.json").read_text()) == {
        "channel_names": {"0": "T1", "1": "FLAIR"},
        "labels": {"background": 0, "left": 1, "right": 2},
        "numTraining": 6,
        "file_ending": ".nii.gz",
    }
    for case in cases:
        label, affine = loaded(pairs / f"labelsTr/{case}.nii.gz")
        assert label.dtype == np.uint8 and label.shape == BRAIN and set(np.unique(label)) == {0, 1, 2}
        assert nib.aff2axcodes(affine) == ("R", "A", "S")
        for k in range(2):
            image, other = loaded(pairs / f"imagesTr/{case}_{k:04d}.nii.gz")
            assert image.dtype == np.float32 and image.shape == BRAIN
            np.testing.assert_array_equal(other, affine)


def test_kidneys_are_a_data_set_of_nnunet(kidneys: Path) -> None:
    described = json.loads((kidneys / "dataset.json").read_text())
    assert described["channel_names"] == {"0": "CT"}
    assert described["labels"] == {"background": 0, "left_kidney": 1, "right_kidney": 2}
    assert described["numTraining"] == len(list((kidneys / "labelsTr").iterdir())) == 4


@pytest.mark.parametrize(("name", "task"), [("pairs", "wmh"), ("kidneys", "lits")])
def test_the_readers_take_them(name: str, task: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(name)
    subjects = find_subjects(root, get_task(task))
    assert len(subjects) in (4, 6)
    described, _ = task_of_data_set(root, task)
    assert [values for _, values in described.classes] == [(1,), (2,)] and described.ignored == ()
    assert all(s.label is not None and s.partition == "training" for s in subjects)


@pytest.mark.parametrize("generate", [generate_wmh, generate_lits])
def test_bytes_depend_on_the_seed_alone_and_cases_can_be_added(tmp_path: Path, generate) -> None:
    size = (16, 16, 8)
    options = {"size": size, "left_right": True, "pose": True, "progress": False}
    generate(tmp_path / "few", 1, 0, **options)
    first = digests(tmp_path / "few")
    generate(tmp_path / "few", 3, 0, **options)
    after = digests(tmp_path / "few")
    assert {k for k in first if first[k] != after[k]} == {"dataset.json"}
    assert json.loads((tmp_path / "few/dataset.json").read_text())["numTraining"] == 3
    generate(tmp_path / "other", 1, 1, **options)
    other = digests(tmp_path / "other")
    assert all(other[name] != first[name] for name in first if name.startswith("images"))


# What is in them


def test_label_1_is_the_patients_left(pairs: Path, kidneys: Path) -> None:
    for path in sorted(pairs.glob("labelsTr/*")) + sorted(kidneys.glob("labelsTr/*")):
        label, affine = loaded(path)
        assert centre(label == 1, affine)[0] < -8 - 3
        assert centre(label == 2, affine)[0] > 8 + 3


def test_pairs_differ_in_nothing_but_their_side() -> None:
    shown: dict[str, list] = {"flair": [], "t1": [], "volume": []}
    places = []
    for index in range(12):
        subject = brain(index, decided_by="side")
        x, y, z = subject.head.template_point
        white = subject.head.white > 0.6
        sides = [subject.label == k for k in (1, 2)]
        assert (x[sides[0]] < 0).all() and (x[sides[1]] > 0).all()
        np.testing.assert_array_equal(subject.pathology.lesion, sides[0] | sides[1])
        assert not subject.pathology.lookalike.any() and not subject.pathology.other.any()
        for name, image in (("flair", subject.pre_flair), ("t1", subject.pre_t1)):
            shown[name].append([image[side & white].mean() for side in sides])
        shown["volume"].append([side.sum() for side in sides])
        places.append([np.stack([x, y, z], axis=-1)[side] for side in sides])
    means = {name: np.nanmean(values, axis=0) for name, values in shown.items()}
    assert means["flair"][0] == pytest.approx(means["flair"][1], rel=0.03)
    assert means["t1"][0] == pytest.approx(means["t1"][1], rel=0.03)
    assert means["volume"][0] == pytest.approx(means["volume"][1], rel=0.2)
    # Pairs: mirrored, the left ones lie on the right ones, and not on those of somebody else.
    own, others = (
        [np.median(KDTree(places[(k + shift) % 12][1]).query(places[k][0] * (-1, 1, 1))[0]) for k in range(12)]
        for shift in (0, 1)
    )
    assert np.mean(own) < 0.5 * np.mean(others)


def test_kidneys_are_kidneys(kidneys: Path) -> None:
    for k in range(4):
        label, _ = loaded(kidneys / f"labelsTr/abdomen_{k:03d}.nii.gz")
        volume, _ = loaded(kidneys / f"imagesTr/abdomen_{k:03d}_0000.nii.gz")
        density = [np.median(volume[label == side]) for side in (1, 2)]
        assert 110 < density[0] < 230
        assert density[0] == pytest.approx(density[1], abs=25)
        for side in (1, 2):
            parts, count = ndi.label(label == side)
            assert np.bincount(parts.ravel())[1:].max() > 0.9 * (label == side).sum(), count


def test_height_alone_decides() -> None:
    places = []
    for index in range(8):
        subject = brain(index, decided_by="height")
        pathology, (x, y, z) = subject.pathology, subject.head.template_point
        blob = pathology.lesion | pathology.lookalike
        np.testing.assert_array_equal(pathology.lesion, blob & (z > LESIONS_ABOVE_Z))
        np.testing.assert_array_equal(subject.label, pathology.lesion)
        assert 0.25 < pathology.lesion.sum() / blob.sum() < 0.75
        near = np.abs(z - LESIONS_ABOVE_Z) < 25
        places.append(
            [[axis[mask & near].mean() for axis in (x, y)] for mask in (pathology.lesion, pathology.lookalike)]
        )
    # Where a blob lies in its slice does not tell.
    lesion, lookalike = np.mean(places, axis=0)
    np.testing.assert_allclose(lesion, lookalike, atol=8)


# Anywhere in the field of view


@pytest.mark.parametrize("kind", ["anatomy", "ellipse", "height", "side"])
def test_heads_are_shifted_scaled_and_tilted(kind) -> None:
    spread = {}
    for pose in (False, True):
        shifts, sizes, tilts = [], [], []
        for index in range(10):
            grid = wmh.grid_of(index, (14, 16, 10), kind, pose)
            head = make_brain(
                templates.load_brain_template(), grid, subject_seed(5, 0, index), decided_by=kind, pose=pose
            ).head
            points = head.template_point.reshape(3, -1).T
            mm = np.stack(np.meshgrid(*grid.axes, indexing="ij"), -1).reshape(-1, 3)
            fitted, *_ = np.linalg.lstsq(np.c_[points, np.ones(len(points))], mm, rcond=None)
            shifts.append(np.array([0, -18, 18, 1]) @ fitted)
            sizes.append(np.linalg.norm(fitted[:3], axis=1))
            tilts.append(np.rad2deg(np.arctan2(fitted[0, 1], fitted[0, 0])))
        spread[pose] = (np.std(shifts, axis=0).mean(), np.std(sizes), np.std(tilts))
    assert spread[True][0] > 7 and spread[True][1] > 0.05 and spread[True][2] > 3.5
    assert all(posed > 1.5 * fixed for posed, fixed in zip(spread[True], spread[False], strict=True))


def test_bodies_are_shifted_scaled_and_tilted(tmp_path: Path) -> None:
    middles, tilts = {}, {}
    for pose in (False, True):
        out = tmp_path / str(pose)
        generate_lits(out, 8, 0, size=(48, 48, 24), left_right=True, pose=pose, progress=False)
        where, angles = [], []
        for path in sorted(out.glob("labelsTr/*")):
            label, affine = loaded(path)
            # Of the field of view: the origin of the scanner's own millimetres differs from scan to scan.
            zooms = np.linalg.norm(affine[:3, :3], axis=0)
            left, right = ((np.argwhere(label == k).mean(axis=0) - np.array(label.shape) / 2) * zooms for k in (1, 2))
            assert left[0] < right[0]
            where.append((left + right) / 2)
            angles.append(np.rad2deg(np.arctan2((right - left)[1], (right - left)[0])))
        middles[pose], tilts[pose] = np.std(where, axis=0), np.std(angles)
    assert (middles[True][:2] > 7).all()
    assert middles[True].mean() > 1.4 * middles[False].mean()
    assert tilts[True] > 1.5 * tilts[False]


# Refusals


def test_one_thing_decides(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--location-decided, --height-decided, --left-right: expected one of them"):
        generate_wmh(tmp_path / "out", 1, 0, left_right=True, height_decided=True)
    with pytest.raises(UserError, match=r"phantoms.json: expected phantoms made with .*pose True, got kind wmh"):
        generate_wmh(tmp_path / "one", 1, 0, size=(8, 8, 2), progress=False)
        generate_wmh(tmp_path / "one", 1, 0, size=(8, 8, 2), pose=True, progress=False)


def test_from_the_command_line(tmp_path: Path) -> None:
    done = scp_models(
        "phantom", "lits", tmp_path / "a", "--subjects", "1", "--size", "24x20x8", "--left-right", "--pose"
    )
    assert done.stdout.splitlines()[-1] == str(tmp_path / "a")
    assert nib.load(tmp_path / "a/labelsTr/abdomen_000.nii.gz").shape == (24, 20, 8)
    for arguments, message in (
        (("lits", "--height-decided"), "--height-decided: expected with wmh only"),
        (("wmh", "--size", "64x64"), "--size 64x64: expected full, small or a shape of three positive numbers"),
    ):
        task, *options = arguments
        done = scp_models("phantom", task, tmp_path / "b", *options, check=False)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr
