"""The brain phantoms: the challenge's layout on disk, one seed for every byte, and what the images contain."""

from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scp_models.phantoms import generate_wmh, templates, wmh
from scp_models.phantoms.brain import BrainImages, make_brain
from scp_models.phantoms.lesions import ELLIPSE_CENTER_Y, ELLIPSE_SEMI_AXES, PLACE_ALONE
from scp_models.phantoms.writing import RECORD, subject_seed
from tests.support.digests import digests

SMALL = (48, 64, 6)


@cache
def brain(index: int, decided: bool) -> BrainImages:
    template = templates.load_brain_template()
    kind = "ellipse" if decided else "anatomy"
    return make_brain(template, wmh.grid_of(index, "small"), subject_seed(7, 0, index), decided_by=kind)


@pytest.fixture(scope="module")
def wmh_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wmh")
    generate_wmh(out, 6, seed=3, size=SMALL, progress=False)
    return out


# The brain on disk


def test_wmh_layout(wmh_folder: Path) -> None:
    images = {f"{kind}/{name}.nii.gz" for kind in ("orig", "pre") for name in ("FLAIR", "T1", "3DT1")}
    folders = ("Utrecht/0", "Singapore/50", "Amsterdam/GE3T/100", "Utrecht/1", "Singapore/51", "Amsterdam/GE3T/101")
    expected = {f"training/{folder}/{name}" for folder in folders for name in images | {"wmh.nii.gz"}}
    assert set(digests(wmh_folder)) == expected | {RECORD}


def test_wmh_returns_the_subjects_in_order(tmp_path: Path) -> None:
    folders = generate_wmh(tmp_path, 4, seed=0, size=(16, 16, 2), progress=False)
    names = ["Utrecht/0", "Singapore/50", "Amsterdam/GE3T/100", "Utrecht/1"]
    assert folders == [tmp_path / "training" / name for name in names]


def test_wmh_ids_never_repeat() -> None:
    assert len({wmh.subject_folder(index).name for index in range(1000)}) == 1000


def test_wmh_images_share_a_grid_and_have_the_real_types(wmh_folder: Path) -> None:
    for folder in (p.parent for p in wmh_folder.rglob("wmh.nii.gz")):
        label = nib.load(folder / "wmh.nii.gz")
        assert label.get_data_dtype() == np.float32
        assert set(np.unique(label.dataobj)) <= {0.0, 1.0, 2.0}
        assert 1.0 in np.unique(label.dataobj)
        for name, dtype in (("orig", np.int16), ("pre", np.float32)):
            for modality in ("FLAIR", "T1"):
                image = nib.load(folder / name / f"{modality}.nii.gz")
                assert image.shape == label.shape
                np.testing.assert_array_equal(image.affine, label.affine)
                assert image.get_data_dtype() == dtype
                assert np.isfinite(image.get_fdata()).all()
                assert image.header.get_xyzt_units()[0] == "mm"
            assert nib.load(folder / name / "3DT1.nii.gz").header.get_zooms() == (2.0, 2.0, 2.0)


def test_storage_order_differs_but_the_canonical_grid_does_not(wmh_folder: Path) -> None:
    codes, shapes = {}, {}
    for path in wmh_folder.rglob("wmh.nii.gz"):
        image = nib.load(path)
        codes[path.parent.name] = "".join(nib.aff2axcodes(image.affine))
        shapes[path.parent.name] = image.shape
        assert nib.as_closest_canonical(image).shape == SMALL
    assert codes == {"0": "RAS", "1": "RAS", "50": "LAS", "51": "PLS", "100": "LPS", "101": "LPS"}
    assert shapes["51"] == (SMALL[1], SMALL[0], SMALL[2])


def test_reorientation_gives_back_the_subject_in_every_storage_order(wmh_folder: Path) -> None:
    template = templates.load_brain_template()
    for index in range(6):
        grid, gain = wmh.grid_of(index, SMALL), wmh.scanner_of(index).gains[0]
        made = make_brain(template, grid, subject_seed(3, 0, index))
        folder = wmh_folder / wmh.subject_folder(index)
        flair, label = (nib.as_closest_canonical(nib.load(folder / n)) for n in ("pre/FLAIR.nii.gz", "wmh.nii.gz"))
        np.testing.assert_allclose(flair.affine, grid.affine, atol=1e-4)
        np.testing.assert_array_equal(label.dataobj, made.label)
        # Stored in steps of a quarter.
        np.testing.assert_allclose(flair.dataobj, made.pre_flair * gain, atol=0.126)


def test_full_size_grids_are_the_challenges() -> None:
    assert wmh.grid_of(0, "full").shape == (240, 240, 48)
    assert wmh.grid_of(1, "full").shape == (232, 256, 48)
    assert wmh.grid_of(2, "full").shape == (132, 256, 83)
    for index in range(3):
        assert wmh.grid_of(index, "full").spacing[2] == 3.0
    assert wmh.grid_of(0, "small").shape == (80, 112, 8)
    assert wmh.grid_of(0, "small").spacing == (2.0, 2.0, 5.0)


def test_full_size_subject_and_its_transposed_storage(tmp_path: Path) -> None:
    """Singapore's second subject, the costliest case: 256 × 232 × 48 on disk."""
    template = templates.load_brain_template()
    folder = wmh._BrainPhantoms(tmp_path, template, 0, "full", "anatomy", False, PLACE_ALONE).write_subject(4)
    flair = nib.load(folder / "pre/FLAIR.nii.gz")
    assert folder == tmp_path / "training/Singapore/51"
    assert flair.shape == (256, 232, 48)
    np.testing.assert_allclose(flair.header.get_zooms(), (1.0, 1.0, 3.0))
    label = np.asarray(nib.load(folder / "wmh.nii.gz").dataobj)
    assert label.shape == flair.shape
    assert 0.2 < (label == 1).sum() * 0.003 < 200  # ml


def test_bias_field_is_in_orig_alone(wmh_folder: Path) -> None:
    for folder in (p.parent for p in wmh_folder.rglob("wmh.nii.gz")):
        orig, pre = (nib.load(folder / kind / "T1.nii.gz").get_fdata() for kind in ("orig", "pre"))
        inside = pre > np.percentile(pre, 60)
        ratio = np.log(orig[inside] / pre[inside])
        assert ratio.std() > 0.03
        # Smooth: neighbours have nearly the same ratio, up to the rounding of orig.
        smooth = np.log(np.maximum(orig, 1)) - np.log(np.maximum(pre, 1))
        steps = np.diff(smooth, axis=0)[inside[1:] & inside[:-1]]
        assert np.abs(steps).max() < 0.1


# The brain's contents


@pytest.mark.parametrize("decided", [False, True])
def test_masks_are_disjoint_and_make_the_label(decided: bool) -> None:
    for index in range(6):
        subject = brain(index, decided)
        pathology = subject.pathology
        assert not (pathology.lesion & pathology.lookalike).any()
        assert not ((pathology.lesion | pathology.lookalike) & pathology.other).any()
        np.testing.assert_array_equal(subject.label == 1, pathology.lesion)
        np.testing.assert_array_equal(subject.label == 2, pathology.other)
        assert (subject.head.brain[subject.label > 0] > 0.5).all()
        assert pathology.lesion.any()


def test_lesions_get_rarer_with_distance_from_the_ventricles() -> None:
    edges = (0.5, 5, 10, 16, 30)
    lesion, tissue = np.zeros(4), np.zeros(4)
    for index in range(24):
        subject = brain(index, False)
        distance = subject.head.ventricle
        for k in range(4):
            ring = (distance >= edges[k]) & (distance < edges[k + 1]) & (subject.head.brain > 0.5)
            lesion[k] += (subject.label[ring] == 1).sum()
            tissue[k] += ring.sum()
    density = lesion / tissue
    assert (np.diff(density) < 0).all()
    assert density[0] > 5 * density[2]


def test_lookalikes_are_as_bright_as_lesions_and_lie_elsewhere() -> None:
    brightness: dict[str, list[float]] = {"lesion": [], "lookalike": []}
    distance: dict[str, list[float]] = {"lesion": [], "lookalike": []}
    for index in range(24):
        pathology = brain(index, False).pathology
        for name, mask in (("lesion", pathology.lesion), ("lookalike", pathology.lookalike)):
            brightness[name].extend(pathology.brightness[mask])
            distance[name].extend(brain(index, False).head.ventricle[mask])
    assert np.mean(brightness["lookalike"]) == pytest.approx(np.mean(brightness["lesion"]), rel=0.08)
    assert np.std(brightness["lookalike"]) == pytest.approx(np.std(brightness["lesion"]), rel=0.35)
    assert np.median(distance["lookalike"]) > 2 * np.median(distance["lesion"])


def test_lesions_are_bright_on_flair_and_dark_on_t1() -> None:
    for index in range(6):
        subject = brain(index, False)
        healthy = (subject.head.white > 0.9) & (subject.pathology.strength < 0.02)
        lesion = subject.pathology.lesion & (subject.head.white > 0.9)
        assert subject.pre_flair[lesion].mean() > 1.25 * subject.pre_flair[healthy].mean()
        assert subject.pre_t1[lesion].mean() < 0.95 * subject.pre_t1[healthy].mean()


def test_tissue_contrast_is_that_of_flair_and_t1() -> None:
    subject = brain(0, False)
    healthy = subject.pathology.strength < 0.02
    white, grey, fluid = (getattr(subject.head, name) > 0.9 for name in ("white", "grey", "fluid"))
    flair, t1 = (
        [image[mask & healthy].mean() for mask in (fluid, grey, white)] for image in (subject.pre_flair, subject.pre_t1)
    )
    assert flair[0] < flair[2] < flair[1]
    assert t1[0] < t1[1] < t1[2]


def test_other_pathology_in_four_of_ten() -> None:
    present = [bool((brain(index, False).label == 2).any()) for index in range(60)]
    # 60 draws at 0.4: mean 24, standard deviation 3.8; the bounds are three of them.
    assert 13 <= sum(present) <= 35
    assert not any((brain(index, True).label == 2).any() for index in range(6))


def test_location_decided_label_is_the_ellipse_and_nothing_else() -> None:
    for index in range(6):
        subject = brain(index, True)
        pathology = subject.pathology
        x, y, _ = subject.head.template_point
        inside = (x / ELLIPSE_SEMI_AXES[0]) ** 2 + ((y - ELLIPSE_CENTER_Y) / ELLIPSE_SEMI_AXES[1]) ** 2 < 1
        blob = pathology.lesion | pathology.lookalike
        np.testing.assert_array_equal(pathology.lesion, blob & inside)
        # Every blob is there: bright voxels of the brain outside the label are the look-alikes.
        np.testing.assert_array_equal(blob, (pathology.strength > 0.5) & (subject.head.brain > 0.5))


def test_location_decided_blobs_look_the_same_inside_and_outside() -> None:
    """Local contrast in white matter, measured on the images: no cue but the place."""
    differences = []
    for index in range(24):
        subject = brain(index, True)
        pathology, white = subject.pathology, subject.head.white > 0.9
        differences.append(
            [subject.pre_flair[mask & white].mean() for mask in (pathology.lesion, pathology.lookalike)]
            + [subject.pre_t1[mask & white].mean() for mask in (pathology.lesion, pathology.lookalike)]
        )
    flair_in, flair_out, t1_in, t1_out = np.nanmean(differences, axis=0)
    assert flair_in == pytest.approx(flair_out, rel=0.02)
    assert t1_in == pytest.approx(t1_out, rel=0.02)


def test_location_decided_has_the_studys_lesion_load() -> None:
    """The study's phantoms: 8.1 ml of lesion and 36.7 ml of look-alikes per subject, some 110 blobs."""
    ml = wmh.grid_of(0, "small").voxel_ml
    subjects = [brain(index, True).pathology for index in range(24)]
    assert np.mean([s.lesion.sum() for s in subjects]) * ml == pytest.approx(8.1, rel=0.35)
    assert np.mean([s.lookalike.sum() for s in subjects]) * ml == pytest.approx(36.7, rel=0.25)


def test_wmh_bytes_depend_on_the_seed_alone(wmh_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = digests(wmh_folder)
    monkeypatch.setattr(wmh, "available_cores", lambda: 1)
    generate_wmh(tmp_path / "fewer", 2, seed=3, size=SMALL, progress=False)
    fewer = digests(tmp_path / "fewer")
    assert len(fewer) == 14 + 1
    assert fewer == {name: reference[name] for name in fewer}
    generate_wmh(tmp_path / "other", 1, seed=4, size=SMALL, progress=False)
    other = digests(tmp_path / "other")
    assert all(other[name] != reference[name] for name in other)
