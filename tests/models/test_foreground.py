"""The foreground's box: one for a head in whatever axes it is stored, and what it was for a model that was trained."""

from dataclasses import asdict, astuple, replace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from nibabel.affines import apply_affine

from scp_models.checkpoints import check_resumable, load_model
from scp_models.data import SegmentationDataModule, Subject, VolumeReader, find_subjects, get_task
from scp_models.data.foreground import CoarseGrid, find_foreground
from scp_models.data.slices import SliceCache
from scp_models.data.tasks import FOREGROUND, TASKS, ForegroundSettings
from scp_models.errors import UserError
from scp_models.monai import AddCoordinatesd
from scp_models.nnunet.geometry import position_affine
from scp_models.notes import note
from scp_models.training.module import SegmentationModule
from tests.support.tiny_data import AXIS_CODES, affine_for, save, turned, write_wmh

SHAPE = (200, 211, 40)


@pytest.fixture(scope="module")
def hollow_head():
    """Dark inside as in a FLAIR, cut by the lower border; one saturated axial slice, and noise of air."""
    affine = affine_for("RAS", (1.0, 1.25, 4.0))
    grid = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in SHAPE), indexing="ij", sparse=True)
    middle, radii = (97.0, 110.0, 8.0), (70.0, 85.0, 25.0)
    away = sum(((axis - m) / r) ** 2 for axis, m, r in zip(grid, middle, radii, strict=True))
    image = np.abs(np.random.default_rng(0).normal(size=SHAPE).astype(np.float32))
    image[(away < 1) & (away > 0.7)] += 200
    image[..., -2] = 65535
    return image, affine


def by_reader(image, affine, folder):
    """Of ``fit`` and ``predict``: box in mm, and what a crop cuts off."""
    save(folder / "a.nii", image, affine)
    task = get_task("lits", (120, 120), {"window": [], "resize": False})
    volume = VolumeReader(replace(task, frame="foreground")).read(Subject("a", (folder / "a.nii",), None), False)
    return volume.geometry.foreground, volume.crop_loss


def by_monai(image, affine):
    data = {"image": MetaTensor(torch.from_numpy(image.copy())[None], affine=torch.from_numpy(affine))}
    return box_of(AddCoordinatesd("image")(data)["coordinates"][:3].numpy(), affine)


def by_nnunet(image, affine):
    """Its arrays have the file's axes in the opposite order, and stay float32."""
    to_fraction = position_affine(image.transpose(2, 1, 0), None, affine[:, [2, 1, 0, 3]], "foreground")
    return box_of(to_fraction, affine[:, [2, 1, 0, 3]])


def box_of(fractions, affine):
    """Where fractions of the extent are 0 and 1, in mm; of a map ``[3, 4]``, or of voxels ``[3, *shape]``."""
    if fractions.ndim == 4:
        corners = np.array([[0, 0, 0], *((np.array(fractions.shape[1:]) - 1) * np.eye(3, dtype=int))])
        values = np.stack([fractions[(slice(None), *corner)] for corner in corners]).astype(float)
        index = np.c_[corners, np.ones(4)]
        fractions = np.linalg.solve(index, values).T
    of_mm = fractions @ np.linalg.inv(affine)
    assert np.allclose(of_mm[:, :3], np.diag(of_mm[:, :3].diagonal()), atol=1e-5)
    low = -of_mm[:, 3] / of_mm[:, :3].diagonal()
    return np.stack([low, low + 1 / of_mm[:, :3].diagonal()])


def test_a_head_has_one_box_however_it_is_stored_and_whoever_asks(hollow_head, tmp_path):
    boxes, losses = {}, set()
    for codes in AXIS_CODES:
        image, affine = turned(*hollow_head, codes)
        boxes["fit", codes], loss = by_reader(image, affine, tmp_path)
        boxes["MONAI", codes] = by_monai(image, affine)
        boxes["nnU-Net", codes] = by_nnunet(image, affine)
        losses.add(loss)
    expected = boxes["fit", AXIS_CODES[0]]
    # The head itself: radii of 70, 85 × 1.25 and 25 × 4 mm about its middle, the lower part cut off.
    middle = apply_affine(hollow_head[1], (97, 110, 8))
    radii = np.array([70, 85 * 1.25, 100])
    # 0.2 % of the voxels lie outside the box, which of an ellipsoid is a cap of some 3 % of the radius.
    assert np.abs(expected[1] - (middle + radii)).max() < 6 and np.abs(expected[0] - (middle - radii))[:2].max() < 6
    for who, box in boxes.items():
        # Channels of MONAI are in float32.
        assert np.abs(box - expected).max() < (1e-2 if who[0] == "MONAI" else 1e-6), (who, box - expected)
    assert len(losses) == 1 and losses.pop().foreground_outside > 0


@pytest.mark.parametrize("codes", AXIS_CODES, ids="".join)
def test_filling_is_no_foreground(hollow_head, codes):
    """A saturated slice, in published data the last one, wherever the axes of the file put it."""
    whole, affine = hollow_head
    masks = []
    for end in (whole[..., -1], np.full(SHAPE[:2], 65535, np.float32)):
        image, turned_affine = turned(np.concatenate([whole[..., :-2], end[..., None]], axis=2), affine, codes)
        grid = CoarseGrid(turned_affine, image.shape, FOREGROUND)
        masks.append(find_foreground(image[grid.chosen], grid).mask)
    assert not masks[1][..., -1].any() and np.array_equal(masks[0][..., :-1], masks[1][..., :-1])
    assert masks[0][..., 3].any()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_along_any_axis_may_be_filling(axis):
    image = np.abs(np.random.default_rng(0).normal(size=(30, 32, 34)))
    image[5:25, 6:26, 7:27] = 50 + np.arange(20)
    clean = find_foreground(image, CoarseGrid(np.eye(4), image.shape, FOREGROUND)).mask
    np.moveaxis(image, axis, 0)[-1] = 4095
    mask = find_foreground(image, CoarseGrid(np.eye(4), image.shape, FOREGROUND)).mask
    assert clean.sum() == 20**3 and np.array_equal(mask, clean)


@pytest.mark.parametrize("codes", AXIS_CODES, ids="".join)
def test_every_voxel_of_a_large_volume_is_answered_for(codes):
    """Every which voxel is looked at."""
    shape = (300, 141, 30)
    image = np.zeros(shape, np.float32)
    image[60:240, 20:130, 3:27] = 100
    image[100:110, 50:60, 10:12] = 0  # a hole
    image[10:13, 5:8, 3:5] = 100  # something else in the dark
    stored, affine = turned(image, np.eye(4), codes)
    grid = CoarseGrid(affine, stored.shape, FOREGROUND)
    assert grid.steps == (3, 2, 1)
    area = find_foreground(stored[grid.chosen], grid)
    index = np.stack(np.meshgrid(*(np.arange(-2, n + 2) for n in stored.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    inside = area.contains(index.astype(float))
    place = np.round(apply_affine(affine, index)).astype(int)  # the voxel of the volume as it was
    expected = np.all((place >= (60, 20, 3)) & (place < (240, 130, 27)), axis=1)
    # Where a border falls between two of the voxels looked at.
    border = np.any(
        np.abs(place[:, None] - np.array([(60, 20, 3), (240, 130, 27)])) <= np.array(grid.steps), axis=(1, 2)
    )
    assert np.array_equal(inside[~border], expected[~border]) and expected[~border].sum() > 300_000


def checkpoint(path, task_options):
    module = SegmentationModule(roi_size=(16, 24), capacity=16, levels=1, task_options=task_options)
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), "split": {}}, path)
    return path


def test_a_later_change_of_settings_moves_no_old_model(tmp_path, monkeypatch):
    """A checkpoint has what found its foreground; the cache keeps boxes of each kind apart."""
    root = write_wmh(tmp_path / "data", 3)
    for folder in (root / "training").rglob("pre"):  # brighter from back to front: a box that depends on the threshold
        for path in folder.iterdir():
            image = nib.load(path)
            save(path, (image.get_fdata() * np.linspace(0.01, 1, 24)[:, None]).astype(np.float32), image.affine)
    data = SegmentationDataModule(str(root), roi_size=(16, 24), frame="foreground", cache_dir=str(tmp_path / "cache"))
    assert data.task_options["foreground"] == asdict(ForegroundSettings(max_height=170.0))
    path = checkpoint(tmp_path / "now.ckpt", data.task_options)
    silent = {key: value for key, value in data.task_options.items() if key != "foreground"}
    older = checkpoint(tmp_path / "older.ckpt", silent)
    subject = find_subjects(root, data.task)[0]
    box = VolumeReader(data.task).read(subject).geometry.foreground
    cached = SliceCache(tmp_path, data.task).paths(subject)

    changed = replace(TASKS["wmh"].foreground, threshold=0.5, resolution=8)
    monkeypatch.setitem(TASKS, "wmh", replace(TASKS["wmh"], foreground=changed))
    new = SegmentationDataModule(str(root), roi_size=(16, 24), frame="foreground", cache_dir=str(tmp_path / "cache"))
    assert new.task.foreground == changed and new.task_options["foreground"]["threshold"] == 0.5
    assert not np.allclose(VolumeReader(new.task).read(subject).geometry.foreground, box, atol=1)
    for old in (path, older):
        model = load_model(old)
        assert model.task == data.task
        assert np.array_equal(VolumeReader(model.task).read(subject).geometry.foreground, box)
        assert SliceCache(tmp_path, model.task).paths(subject) == cached
    assert not set(SliceCache(tmp_path, new.task).paths(subject)) & set(cached)
    arguments = {"roi_size": (16, 24), "capacity": 16, "levels": 1}
    resumed = SegmentationModule(**arguments, task_options=data.task_options).hparams
    for old in (path, older):
        check_resumable(old, resumed, {}, {"augment": "none"})
        with pytest.raises(UserError, match="expected a checkpoint of this run, with task_options"):
            other = SegmentationModule(**arguments, task_options=new.task_options).hparams
            check_resumable(old, other, {}, {"augment": "none"})


def test_a_checkpoint_that_does_not_say_is_noted(tmp_path, caplog):
    note.cache_clear()
    load_model(checkpoint(tmp_path / "older.ckpt", {"frame": "foreground"}))
    assert "older.ckpt: does not say how its foreground was found" in caplog.text
    caplog.clear()
    load_model(checkpoint(tmp_path / "slice.ckpt", None))
    load_model(checkpoint(tmp_path / "new.ckpt", {"frame": "foreground", "foreground": asdict(FOREGROUND)}))
    assert caplog.text == ""


def test_other_frames_say_nothing_of_a_foreground(tmp_path):
    root = write_wmh(tmp_path / "data", 3)
    for frame in (None, "slice", "image"):
        assert "foreground" not in (SegmentationDataModule(str(root), frame=frame).task_options or {})


def test_settings_that_this_version_does_not_know():
    with pytest.raises(UserError, match="foreground: expected method 2, this version's, got 3"):
        get_task("wmh", None, {"foreground": {"method": 3}})
    with pytest.raises(UserError, match=r"foreground: expected the fields resolution, threshold.*, got shade"):
        get_task("wmh", None, {"foreground": {"shade": 1}})


def test_the_settings_of_networks_that_keep_none():
    """nnU-Net's checkpoints and pipelines of MONAI have no place for them: with other ones, what was trained with these
    would see other positions.
    """
    assert astuple(FOREGROUND) == (128, 0.1, 0.002, 2.0, None, 2)
