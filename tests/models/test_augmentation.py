"""Augmentation: picture, label and positions move together; every draw is reproducible; only training sees it."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn.functional import max_pool2d, pad

from scp_kernels import FusedSCP, affine_of_coordinates
from scp_models.data.augmentation import Augmentation, AugmentOptions, IntensityAugmentation, SpatialAugmentation
from scp_models.networks.positions import position_channels
from tests.support.data_modules import prepared_module
from tests.support.tiny_data import affine_for, save, write_wmh
from tests.support.tolerances import relative_error

SIZE = (30, 37)
ALWAYS = AugmentOptions(moved=1.0, mirror=1.0)
OFTEN = dict(noise=1.0, blur=1.0, brightness=1.0, contrast=1.0, low_resolution=1.0, gamma=1.0)
# Of positions in float64 that were interpolated several times and read back: docs/positions.md.
LOGITS = 1e-5


def item(dims, size=SIZE, seed=0):
    """A slice with random features, in float64; K = 2 is the frame ``slice``, whose items say no place."""
    g = torch.Generator().manual_seed(seed)
    result = {
        "image": torch.randn(3, *size, generator=g, dtype=torch.float64),
        "label": torch.randint(0, 3, (1, *size), generator=g, dtype=torch.uint8),
        "subject": torch.tensor(0),
    }
    if dims == 3:
        result["affine"] = torch.eye(3, dtype=torch.float64) + torch.randn(3, 3, generator=g, dtype=torch.float64) / 4
        result["extent"] = torch.tensor([60.0, 70, 50])
    return result


def place_of(item):
    """Affine and extent that the network goes by."""
    size = item["image"].shape[1:]
    return item.get("affine", torch.eye(2, 3, dtype=torch.float64)), item.get("extent", torch.tensor(size).float())


def with_coordinates(item):
    """The item with the position of every pixel as more channels of the image, as any library would move them."""
    affine, _ = place_of(item)
    size = item["image"].shape[1:]
    i, j = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij")
    p = torch.einsum("km,mhw->khw", affine.double(), torch.stack([i, j, torch.ones_like(i)]))
    return {**item, "affine": affine, "extent": place_of(item)[1], "image": torch.cat([item["image"], p])}


@settings(max_examples=40, deadline=None)
@given(
    dims=st.sampled_from([2, 3]),
    seed=st.integers(0, 10**6),
    steps=st.integers(1, 3),
    pixel=st.tuples(st.floats(0.7, 1.5), st.floats(0.7, 1.5)),
)
def test_positions_follow_as_coordinate_channels_do(dims, seed, steps, pixel):
    """The composed affine gives the logits, and Base F's and Base B's channels, of coordinates that were moved."""
    moved = with_coordinates(item(dims, seed=seed))
    # The border is interpolated with its own repetition: it is ignored, as what lies beyond it.
    moved["label"] = pad(torch.zeros(1, SIZE[0] - 2, SIZE[1] - 2, dtype=torch.uint8), (1, 1, 1, 1), value=2)
    spatial = SpatialAugmentation(AugmentOptions(moved=0.7, mirror=0.5, degrees=40)).set_random_state(seed)
    for _ in range(steps):
        moved = spatial(moved, pixel)
        near = max_pool2d((moved["label"] == 2).float(), 5, stride=1, padding=2)
        outside = pad(near[:, 1:-1, 1:-1], (1, 1, 1, 1), value=1) > 0
        moved["label"] = outside.to(torch.uint8) * 2
    valid = ~outside[None]
    assume(valid.sum() >= 50)
    assert moved["affine"].dtype == torch.float64
    features, coordinates = moved["image"][None, :3], moved["image"][None, 3:]
    torch.manual_seed(seed)
    head = FusedSCP(3, 2, 16, position_dims=dims, position="centered", bias=True).double()
    place = {"affine": moved["affine"][None], "extent": moved["extent"]}
    with torch.no_grad():
        carried = torch.cat([coordinates, valid.double()], 1)
        expected = head(features, coordinates=carried, extent=moved["extent"]) * valid
        assert relative_error(head(features, **place) * valid, expected) <= LOGITS
    channels = position_channels(features, position="centered", position_dims=dims, **place)
    share = coordinates / moved["extent"].double().reshape(-1, 1, 1)
    expected = torch.cat([2 * share - 1, 1 - 2 * share], 1)
    assert relative_error(channels * valid, expected * valid) <= LOGITS


@pytest.mark.parametrize("dims", [2, 3])
def test_a_mirrored_slice_is_exact(dims):
    before = item(dims)
    after = SpatialAugmentation(AugmentOptions(moved=0, mirror=1)).set_random_state(0)(before, (1, 2))
    assert torch.equal(after["image"], before["image"].flip(1)) and torch.equal(after["label"], before["label"].flip(1))
    affine, extent = place_of(before)
    index = torch.tensor([[-1.0, 0, SIZE[0] - 1], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    assert torch.allclose(after["affine"].double(), affine.double() @ index, rtol=1e-6)
    assert torch.equal(after["extent"], extent)
    same = SpatialAugmentation(AugmentOptions(moved=0, mirror=0))(before, (1, 2))
    assert torch.equal(same["image"], before["image"]) and torch.equal(same["affine"].double(), affine.double())


def test_angles_and_scales_are_those_in_mm():
    """A circle stays one, whatever a pixel measures; it grows by the scale and moves by the shift."""
    pixel = np.array([0.5, 1.5])
    size = (120, 40)
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1) - (np.array(size) - 1) / 2
    picture = torch.from_numpy((np.linalg.norm(grid * pixel, axis=-1) < 12).astype(np.float32))[None]
    before = {"image": picture, "label": picture.to(torch.uint8), "subject": torch.tensor(0)}
    options = AugmentOptions(moved=1, mirror=0, degrees=180, scale=(1.2, 1.2), shift=0.1)
    spatial = SpatialAugmentation(options).set_random_state(3)
    for _ in range(5):
        after = spatial(before, pixel)["label"][0].numpy() == 1
        points = np.argwhere(after) * pixel
        assert len(points) == pytest.approx(math.pi * (12 * 1.2) ** 2 / pixel.prod(), rel=0.02)
        covariance = np.cov(points.T)
        assert np.abs(covariance / np.trace(covariance) - np.eye(2) / 2).max() < 0.01
        away = points.mean(0) - (np.array(size) - 1) / 2 * pixel
        assert np.abs(away).max() > 0.3 and (np.abs(away) <= 0.1 * np.array(size) * pixel + 0.3).all()


@pytest.mark.parametrize("ignored", [2, 255])
def test_labels_stay_integers_and_what_is_outside_is_ignored(ignored):
    before = item(2)
    before["label"][before["label"] == 2] = ignored
    spatial = SpatialAugmentation(AugmentOptions(moved=1, scale=(0.5, 0.5)), ignored).set_random_state(1)
    after = spatial(before, (1, 1))
    assert after["label"].dtype == torch.uint8 and after["label"].shape == before["label"].shape
    # Half the size: a quarter of the picture, the rest is from outside.
    known = after["label"] != ignored
    assert known.float().mean().item() == pytest.approx(0.25 * 2 / 3, abs=0.05)
    index = (
        torch.from_numpy(spatial.matrix)
        @ torch.stack(
            [
                *(k.flatten().double() for k in torch.meshgrid(*map(torch.arange, SIZE), indexing="ij")),
                torch.ones(30 * 37),
            ]
        ).double()
    )
    nearest = index[:2].round().long()
    inside = (nearest >= 0).all(0) & (nearest[0] < SIZE[0]) & (nearest[1] < SIZE[1])
    expected = torch.full((30 * 37,), ignored, dtype=torch.uint8)
    expected[inside] = before["label"][0][nearest[0][inside], nearest[1][inside]]
    assert torch.equal(after["label"].flatten(), expected)
    assert after["image"].abs().max() <= before["image"].abs().max()  # interpolated and repeated, nothing is filled in


def test_intensities_change_and_nothing_else():
    g = torch.Generator().manual_seed(0)
    image = torch.randn(2, *SIZE, generator=g)
    kept = image.clone()
    never = IntensityAugmentation(AugmentOptions(**dict.fromkeys(OFTEN, 0.0))).set_random_state(0)
    assert torch.equal(never(image), image)
    for name in OFTEN:
        once = IntensityAugmentation(AugmentOptions(**{**dict.fromkeys(OFTEN, 0.0), name: 1.0})).set_random_state(0)
        changed = once(image)
        assert type(changed) is torch.Tensor and changed.dtype == torch.float32 and changed.shape == image.shape
        assert all(not torch.equal(changed[k], image[k]) for k in range(2)), name
        assert relative_error(changed, image) < (1.0 if name in ("blur", "low_resolution") else 0.5), name
        # Each channel by a draw of its own.
        assert not torch.allclose(once(image[:1].expand(2, -1, -1))[0], once(image[:1].expand(2, -1, -1))[1]), name
    assert torch.equal(image, kept)
    constant = IntensityAugmentation(AugmentOptions(**OFTEN)).set_random_state(0)(torch.zeros(1, *SIZE))
    assert constant.isfinite().all()


FRAMES = ["slice", "image", "foreground", "file"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_wmh(tmp_path_factory.mktemp("wmh"), 4, shape=(20, 24, 7), codes=("L", "P", "S"))


def frame_option(frame, root, tmp_path):
    if frame != "file":
        return frame
    sitk = pytest.importorskip("SimpleITK")
    turned = sitk.AffineTransform(3)
    turned.Rotate(0, 1, 0.3)
    sitk.WriteTransform(turned, str(tmp_path / "to_template.tfm"))
    return str(tmp_path / "to_template.tfm")


def batches(data, epoch=0):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


@pytest.mark.parametrize("frame", FRAMES)
def test_every_frame_follows(root, tmp_path, frame):
    """In the loader's batches: the affine is the slice's own behind the map that moved its pixels."""
    frame = frame_option(frame, root, tmp_path)
    plain = prepared_module(root, tmp_path, frame=frame)
    data = prepared_module(root, tmp_path, frame=frame, augment="spatial", augment_options=ALWAYS)
    dataset = data.train_dataloader().dataset
    sampler = data.train_dataloader().sampler
    draws = list(sampler)
    assert [draw.number for draw in draws] == list(plain.train_dataloader().sampler)
    k = 2 if frame == "slice" else 3
    for draw in draws[:3]:
        before = plain.train_dataloader().dataset[draw.number]
        after = dataset[draw]
        assert after["affine"].shape == (k, 3) and after["affine"].dtype == torch.float32
        affine, extent = place_of(before)
        matrix = torch.from_numpy(dataset.augmentation.spatial.matrix)
        assert torch.allclose(after["affine"].double(), affine.double() @ matrix, atol=1e-4)
        assert torch.equal(after["extent"], extent)
        carried = dataset.augmentation.set_random_state(0).spatial
        carried.options = AugmentOptions(moved=1, mirror=1, degrees=30)
        moved = carried(with_coordinates(before), dataset.slices.pixel_sizes[0])
        read = affine_of_coordinates(moved["image"][None, 2:], extent)
        assert relative_error(moved["affine"], read) <= LOGITS
        carried.options = ALWAYS


def test_one_affine_puts_left_to_right_whatever_the_files_axes(tmp_path):
    """The first axis of a slice is left-right: mirroring leaves the frame's front and top alone."""
    for codes in (("R", "A", "S"), ("L", "P", "S"), ("P", "R", "S"), ("I", "L", "P")):
        shape = tuple({"R": 20, "L": 20, "A": 24, "P": 24, "S": 7, "I": 7}[c] for c in codes)
        root = write_wmh(tmp_path / "".join(codes), 3, shape=shape, codes=codes)
        mirror = AugmentOptions(moved=0, mirror=1)
        data = prepared_module(root, tmp_path, frame="image", augment="spatial", augment_options=mirror)
        for batch in batches(data):
            right, front, top = batch["affine"].unbind(1)
            assert torch.equal(right, torch.tensor([-1.0, 0, 20 - 2.5]).expand_as(right))
            assert torch.equal(front, torch.tensor([0.0, 1, 2.5]).expand_as(front))
            assert (top[:, :2] == 0).all()


def test_only_training_is_augmented(root, tmp_path):
    plain = prepared_module(root, tmp_path, frame="image")
    data = prepared_module(root, tmp_path, frame="image", augment="all", augment_options=AugmentOptions(**OFTEN))
    for expected, batch in zip(plain.val_dataloader(), data.val_dataloader(), strict=True):
        assert expected.keys() == batch.keys()
        assert all(torch.equal(expected[key], batch[key]) for key in expected)
    assert not any(
        torch.equal(a["image"], b["image"])
        for a, b in zip(plain.train_dataloader(), data.train_dataloader(), strict=True)
    )
    untouched = prepared_module(root, tmp_path, frame="slice", augment="intensity")
    assert "affine" not in next(iter(untouched.train_dataloader()))


def equal(first, second):
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        for a, b in zip(first, second, strict=True)
    )


def test_draws_depend_on_seed_epoch_and_place_alone(root, tmp_path):
    options = dict(frame="foreground", augment="all", augment_options=AugmentOptions(moved=1, **OFTEN))
    first = batches(prepared_module(root, tmp_path, **options), epoch=2)
    torch.manual_seed(1)
    np.random.seed(1)
    for workers in (1, 2):
        assert equal(batches(prepared_module(root, tmp_path, num_workers=workers, **options), epoch=2), first)
    data = prepared_module(root, tmp_path, **options)
    batches(data, epoch=0)  # a run that was not interrupted
    assert equal(batches(data, epoch=2), first)
    assert not equal(batches(data, epoch=3), first)
    assert not equal(batches(prepared_module(root, tmp_path, seed=1, **options), epoch=2), first)
    again = pickle.loads(pickle.dumps(data.train_dataloader().dataset))
    draw = next(iter(data.train_dataloader().sampler))
    assert equal([again[draw]], [data.train_dataloader().dataset[draw]])
    later = draw._replace(place=draw.place + 1)
    assert not torch.equal(again[later]["image"], again[draw]["image"])


def test_processes_share_the_draws_of_one(root, tmp_path):
    from scp_models.data.sampling import SliceSampler, SubjectSampler

    dataset = prepared_module(root, tmp_path).train_dataloader().dataset
    for kind in (SliceSampler, SubjectSampler):
        alone = list(kind(dataset, 1, 0, seed=0, numbered=True))
        parts = [list(kind(dataset, 2, rank, seed=0, numbered=True)) for rank in range(2)]
        assert [draw for turn in zip(*parts, strict=True) for draw in turn] == alone


def write_sides(root):
    """Two like spots in every slice, one on each side; only the right one is a lesion."""
    for k in range(3):
        shape = (20, 24, 6)
        rng = np.random.default_rng(k)
        image, label = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
        for z in range(shape[2]):
            x, y = rng.integers(2, 6), rng.integers(6, 16)
            image[x : x + 3, y : y + 3, z] = image[17 - x : 20 - x, y : y + 3, z] = 1
            label[17 - x : 20 - x, y : y + 3, z] = 1
        folder = root / "training" / "Utrecht" / str(k)
        for name in ("T1", "FLAIR"):
            save(folder / "pre" / f"{name}.nii.gz", image, affine_for("RAS"))
        save(folder / "wmh.nii.gz", label, affine_for("RAS"))
    return root


@pytest.mark.parametrize("frame", ["slice", "image"])
def test_a_lesion_that_depends_on_the_side_is_told_under_mirroring(tmp_path, frame):
    """Half of the slices are mirrored in training; positions that did not follow would say nothing."""
    data = prepared_module(
        write_sides(tmp_path / "data"), tmp_path, frame=frame, augment="spatial", batch_size=6,
        augment_options=AugmentOptions(moved=0.3, mirror=0.5),
    )  # fmt: skip
    dims = data.task.position_dims

    def trained(follow):
        torch.manual_seed(0)
        head = FusedSCP(2, 1, 16, position_dims=dims, position="centered", zero_init=True, bias=True, bias_init=-1.0)
        optimizer = torch.optim.Adam(head.parameters(), 0.1)
        for epoch in range(20):
            for batch in batches(data, epoch):
                place = {"affine": batch["affine"], "extent": batch["extent"]}
                if not follow:  # the places of slices that nobody moved
                    place["affine"] = (
                        torch.eye(2, 3) if dims == 2 else torch.tensor([[1.0, 0, 2.5], [0, 1, 2.5], [0, 0, 3]])
                    )
                logits = head(batch["image"], **place)
                known = batch["label"] != 2
                target = (batch["label"] == 1).float()
                loss = torch.nn.functional.binary_cross_entropy_with_logits(logits[known], target[known])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        (batch,) = list(data.val_dataloader())
        place = {key: batch[key] for key in ("affine", "extent") if key in batch}
        with torch.no_grad():
            predicted = head(batch["image"], **place) > 0
        target = batch["label"] == 1
        return (2 * (predicted & target).sum() / (predicted.sum() + target.sum())).item()

    assert trained(follow=True) > 0.9
    assert trained(follow=False) < 0.8


def test_a_kind_does_what_it_says():
    parts = {kind: Augmentation(kind, ALWAYS) for kind in ("spatial", "intensity", "all")}
    assert {kind: (part.spatial is not None, part.intensity is not None) for kind, part in parts.items()} == {
        "spatial": (True, False), "intensity": (False, True), "all": (True, True),
    }  # fmt: skip
