"""``scp-models show``: the picture of a frame lies where the frame does."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from nibabel.affines import apply_affine

from scp_models.data import Subject, VolumeReader, get_task
from scp_models.data.frames import frame_of
from scp_models.report import frames
from scp_models.training.module import SegmentationModule
from tests.support.commands import refused
from tests.support.tiny_data import LAYOUTS, affine_for, save, write_wmh

SHAPE = (40, 44, 18)
COLOURS = {0: "#ff4d4d", 1: "#59d86a", 2: "#37d5e6"}
"""Of the arrows to the right, front and top."""


@pytest.fixture
def oblique(tmp_path):
    """A head off the centre of an oblique LPS volume, with a bright spot in its first modality: subject, spot in mm."""
    affine = affine_for("LPS", (1.5, 1.4, 3.0))
    c, s = np.cos(np.radians(17)), np.sin(np.radians(17))
    affine[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ affine[:3, :3]
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    inside = (((index - (14, 25, 9)) / (9, 14, 7)) ** 2).sum(-1) < 1
    image = np.abs(np.random.default_rng(0).normal(size=SHAPE)) + 100 * inside
    save(tmp_path / "b.nii", image[::-1].astype(np.float32), affine)
    # A voxel that the third of the axial slices goes through, whose index is 10 of 0 to 17.
    spot = (17, 31, 10)
    image[spot] = 1000
    save(tmp_path / "a.nii", image.astype(np.float32), affine)
    return Subject("a", (tmp_path / "a.nii", tmp_path / "b.nii"), None), apply_affine(affine, spot)


@pytest.mark.parametrize("kind", ["foreground", "image"])
def test_the_box_and_its_arrows_lie_where_the_frame_does(oblique, kind):
    subject, spot = oblique
    task = get_task("wmh", (40, 44), {"frame": kind})
    volume = VolumeReader(task).read(subject, with_label=False)
    figure, row = plt.subplots(1, 6)
    frames.draw_subject(row, volume, frame_of(task, subject, volume.geometry), "a")
    # Corners and axes of the box, in mm and in voxels of what is drawn, from its own definition.
    to_index = np.linalg.inv(volume.affine)
    if kind == "foreground":
        corner, high = volume.geometry.foreground
        sides = np.diag(high - corner)
    else:
        geometry = volume.geometry
        corner = apply_affine(geometry.canonical_affine, [-0.5] * 3)
        sides = (geometry.canonical_affine[:3, :3] * geometry.canonical_shape).T
    centre = apply_affine(to_index, corner + sides.sum(0) / 2)
    tips = [apply_affine(to_index, corner + sides.sum(0) / 2 + side / 5) for side in sides]

    at_spot = apply_affine(to_index, spot)
    z = [int(share * (SHAPE[2] - 1)) for share in np.linspace(0.15, 0.85, 4)]
    assert round(at_spot[2]) == z[2]
    picture = row[2].images[0].get_array()  # [w, h]
    assert np.allclose(np.unravel_index(picture.argmax(), picture.shape), at_spot[[1, 0]], atol=1e-3)

    views = [((0, 1), {2: k}) for k in z] + [((1, 2), {0: (SHAPE[0] - 1) // 2}), ((0, 2), {1: (SHAPE[1] - 1) // 2})]
    drawn = 0
    for axes, (shown, fixed) in zip(row, views, strict=True):
        vertices = np.concatenate([path.vertices for lines in axes.collections for path in lines.get_paths()])
        index = np.zeros((len(vertices), 3))
        index[:, shown] = vertices
        for axis, value in fixed.items():
            index[:, axis] = value
        share = np.linalg.solve(sides.T, (apply_affine(volume.affine, index) - corner).T).T
        borders = np.minimum(np.abs(share), np.abs(share - 1)) < 1e-4
        assert borders.any(axis=1).all(), "a line that is no border of the box"
        corners = np.array([[0.0, 0, 0]] * 4)
        corners[:, shown] = [(u, v) for u in (0, SHAPE[shown[0]] - 1) for v in (0, SHAPE[shown[1]] - 1)]
        for axis, value in fixed.items():
            corners[:, axis] = value
        reach = np.linalg.solve(sides.T, (apply_affine(volume.affine, corners) - corner).T).T
        for k in shown:
            for border in (0, 1):  # all that the picture reaches
                if reach[:, k].min() < border < reach[:, k].max():
                    assert (np.abs(share[:, k] - border) < 1e-4).any()
                    drawn += 1
        arrows = {text.arrowprops["color"]: text for text in axes.texts}
        assert set(arrows) == {COLOURS[k] for k in shown}
        for k in shown:
            assert np.allclose(arrows[COLOURS[k]].xyann, centre[list(shown)], atol=1e-6)
            assert np.allclose(arrows[COLOURS[k]].xy, tips[k][list(shown)], atol=1e-6)
    assert drawn >= (20 if kind == "foreground" else 0)
    heights = [(apply_affine(volume.affine, [19.5, 21.5, k]) - corner) @ np.linalg.inv(sides)[:, 2] for k in z]
    for axes, k, height in zip(row, z, heights, strict=False):
        assert axes.get_title().endswith(f"z {k}: {height:.0%}")
    plt.close(figure)


def picture(path, rows):
    """What is drawn, which has so many rows and the red of arrows to the right."""
    pixels = imread(path)[..., :3]
    assert abs(len(pixels) - rows * 2.6 * 90) <= 2
    assert (np.abs(pixels - np.array([0xFF, 0x4D, 0x4D]) / 255).max(-1) < 0.1).sum() > 50 * rows
    return pixels


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(run, tmp_path, layout):
    root = LAYOUTS[layout](tmp_path / "data")
    options = ["--task", "lits"] if layout == "lits" else []
    code, out, err = run("show", root, *options, "--out", tmp_path / "a.png")
    assert code == 0 and out.split() == [str(tmp_path / "a.png")], err
    picture(tmp_path / "a.png", 4)


def test_a_checkpoints_frame(run, tmp_path):
    """Its own, unless told; and what it reads says nothing twice."""
    root = write_wmh(tmp_path / "data", 2)
    seen = {}
    for frame in ("image", "foreground"):
        module = SegmentationModule(capacity=16, levels=1, roi_size=(16, 24), task_options={"frame": frame})
        path = tmp_path / f"{frame}.ckpt"
        torch.save({"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}, path)
        code, _, err = run("show", root, "--checkpoint", path, "--out", tmp_path / f"{frame}.png")
        assert code == 0, err
        seen[frame] = picture(tmp_path / f"{frame}.png", 2)
    code, _, err = run("show", root, "--checkpoint", path, "--frame", "image", "--out", tmp_path / "told.png")
    assert code == 0 and np.array_equal(picture(tmp_path / "told.png", 2), seen["image"]), err
    assert not np.array_equal(seen["foreground"], seen["image"])
    code, _, err = run("show", root, "--checkpoint", path, "--task", "wmh", "--out", tmp_path / "b.png")
    assert code == 2 and "--task, --modality: expected without --checkpoint" in err


def test_the_slice_has_no_box(run, tmp_path):
    root = write_wmh(tmp_path / "data", 1)
    code, _, err = run("show", root, "--frame", "slice", "--out", tmp_path / "b.png")
    assert code == 2 and "got slice: it has no box" in err


def test_many_subjects_take_several_pictures(run, tmp_path, monkeypatch):
    """A picture has less than 2^16 pixels along a side."""
    assert frames._ROWS * frames._SIDE * frames._DPI < 2**16
    monkeypatch.setattr(frames, "_ROWS", 2)
    root = write_wmh(tmp_path / "data", 3)
    code, out, err = run("show", root, "--out", tmp_path / "all.png")
    assert code == 0 and out.split() == [str(tmp_path / f"all-{k}.png") for k in (1, 2)], err
    picture(tmp_path / "all-1.png", 2)
    picture(tmp_path / "all-2.png", 1)


@pytest.mark.parametrize("name", ["frames", "frames.pdfx", "scan.nii.gz"])
def test_a_picture_that_is_no_png_is_refused(run, root, tmp_path, name):
    """Matplotlib writes a name without an ending beside it, and knows nothing of others."""
    (tmp_path / name).write_bytes(b"as it was")
    refused(run("show", root, "--out", tmp_path / name), name, "expected a name that ends in .png")
    assert (tmp_path / name).read_bytes() == b"as it was" and not list(tmp_path.glob(".partial*"))
