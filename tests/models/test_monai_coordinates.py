"""AddCoordinatesd and what MONAI's transforms make of its channels."""

import copy

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, MetaTensor, decollate_batch, list_data_collate
from monai.transforms import (
    CenterSpatialCropd,
    Compose,
    ConcatItemsd,
    CropForegroundd,
    EnsureChannelFirstd,
    Flipd,
    Invertd,
    LoadImaged,
    Orientationd,
    Rand3DElasticd,
    RandAffined,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandRotate90d,
    RandSpatialCropd,
    RandZoomd,
    Resized,
    Spacingd,
    SpatialPadd,
    SqueezeDimd,
    Transposed,
)
from nibabel.affines import apply_affine

from scp_kernels import affine_of_coordinates
from scp_models.data import Subject, VolumeReader, get_task
from scp_models.data.frames import Frame, slice_positions
from scp_models.errors import UserError
from scp_models.monai import AddCoordinatesd, SplitCoordinatesd
from scp_models.networks import PositionedNetwork, attach, positioned
from tests.support.heads import image, randomize_phi
from tests.support.tiny_data import affine_for, save

SHAPE = (20, 24, 8)
KEYS = ("image", "coordinates")
ONES = torch.ones(3)


def oblique():
    """Axes to the left, to the back and up, turned by 20° about the first."""
    angle = np.deg2rad(20)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.0, -1.2, 3.0])
    affine[:3, 3] = (30, 40, -25)
    return affine


def head_like(shape=SHAPE):
    """Bright inside of an ellipsoid, noise of air around."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    inside = (grid**2 / np.array([0.6, 0.7, 0.8]).reshape(3, 1, 1, 1) ** 2).sum(0) < 1
    return (100.0 * inside + np.random.default_rng(0).random(shape)).astype(np.float32)


def sample(affine=None, shape=SHAPE):
    affine = oblique() if affine is None else affine
    label = torch.zeros(1, *shape)
    label[0, 8:11, 10:13, 3:5] = 1
    return {
        "image": MetaTensor(torch.from_numpy(head_like(shape))[None], affine=torch.from_numpy(affine)),
        "label": MetaTensor(label, affine=torch.from_numpy(affine)),
    }


def some_frame():
    """An axis order and units of its own."""
    return Frame(np.array([[0.5, 0, 0, 30.0], [0, 1, 0.1, 60.0], [0, 0, 2, 100.0]]), np.array([60.0, 130.0, 250.0]))


def fractions(frame, affine):
    """``[3, 4]``: index to fractions of the frame's extent."""
    return torch.from_numpy(frame.affine @ np.asarray(affine) / frame.extent[:, None])


def test_channels_are_the_frames_positions_of_voxel_centres_and_ones():
    data = sample()
    result = AddCoordinatesd("image", some_frame())(data)
    coordinates = result["coordinates"]
    assert coordinates.shape == (4, *SHAPE) and coordinates.dtype == torch.float32
    assert "coordinates" not in data and result["image"] is data["image"]
    assert torch.equal(coordinates.affine, data["image"].affine)
    for index in ((0, 0, 0), (19, 23, 7), (3, 11, 5)):
        mm = apply_affine(oblique(), index)
        p = (some_frame().affine @ [*mm, 1]) / some_frame().extent
        assert np.allclose(coordinates[(slice(3), *index)], p, atol=1e-6)
    assert (coordinates[3] == 1).all()
    given = AddCoordinatesd("image", lambda data: some_frame(), name="p")(data)["p"]
    assert torch.equal(given.as_tensor(), coordinates.as_tensor())


@pytest.mark.parametrize("codes", [("R", "A", "S"), ("L", "P", "S"), ("A", "S", "R")])
@pytest.mark.parametrize("frame", ["image", "foreground"])
def test_frames_are_those_of_scp_models(frame, codes, tmp_path):
    """What a network that was trained with ``scp-models fit`` is told of the same file."""
    affine = affine_for(codes)
    save(tmp_path / "a.nii.gz", head_like(), affine)
    task = get_task("wmh", None, {"modalities": ["T1"], "frame": frame})
    subject = Subject("a", (tmp_path / "a.nii.gz",), None)
    volume = VolumeReader(task).read(subject, with_label=False)
    positions = slice_positions(task, subject, volume.geometry)
    load = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), Orientationd("image", "RAS", labels=None)])
    data = AddCoordinatesd("image", frame, max_height=170.0)(load({"image": str(tmp_path / "a.nii.gz")}))
    to_index = np.linalg.inv(data["image"].affine.numpy()) @ volume.geometry.affine
    for k in (0, data["image"].shape[-1] - 1):
        place = np.round(to_index @ [80, 112, k, 1])[:3].astype(int)  # the middle of the crop is in the picture
        expected = positions.affine[k] @ torch.tensor([80.0, 112.0, 1.0]) / positions.extent[k]
        assert torch.allclose(data["coordinates"][(slice(3), *place)].as_tensor(), expected, atol=1e-5)


@pytest.mark.parametrize(("unit", "per_millimetre"), [("micron", 1000.0), ("meter", 1e-3), ("unknown", 1.0)])
@pytest.mark.parametrize("frame", ["foreground", "transform", "given"])
def test_a_header_in_another_unit_changes_nothing(frame, unit, per_millimetre, tmp_path):
    """Heights and templates are in mm, whatever the file is in."""
    if frame == "transform":
        sitk = pytest.importorskip("SimpleITK")
        sitk.WriteTransform(sitk.TranslationTransform(3, (4.0, -2.0, 7.0)), str(tmp_path / "frame.tfm"))
    kinds = {"foreground": "foreground", "transform": str(tmp_path / "frame.tfm"), "given": some_frame()}
    channels = []
    for name, scale in (("mm", 1.0), (unit, per_millimetre)):
        stored = nib.Nifti1Image(head_like(), np.diag([scale, scale, scale, 1.0]) @ oblique())
        stored.header.set_xyzt_units(name)
        nib.save(stored, tmp_path / f"{name}.nii.gz")
        load = Compose([LoadImaged("image"), EnsureChannelFirstd("image")])
        data = load({"image": str(tmp_path / f"{name}.nii.gz")})
        channels.append(AddCoordinatesd("image", kinds[frame], max_height=12.0)(data)["coordinates"].as_tensor())
    assert torch.allclose(*channels, atol=1e-5)


def test_a_transform_per_subject_is_the_frame(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    transform = sitk.AffineTransform(3)
    transform.SetTranslation((4.0, -2.0, 7.0))
    sitk.WriteTransform(transform, str(tmp_path / "case_to_template.tfm"))
    save(tmp_path / "case.nii.gz", head_like(), oblique())
    load = Compose([LoadImaged("image"), EnsureChannelFirstd("image")])
    data = load({"image": str(tmp_path / "case.nii.gz")})
    box = (-50, -60, -70, 50, 60, 70)
    add = AddCoordinatesd("image", "{folder}/{subject}_to_template.tfm", frame_box=box)
    coordinates = add(data)["coordinates"]
    # ITK's map takes points of the template to the patient's, with axes to the left and back.
    in_template = apply_affine(oblique(), (3, 4, 5)) - np.array([-4.0, 2.0, 7.0])
    expected = (in_template - np.array(box[:3])) / (np.array(box[3:]) - np.array(box[:3]))
    assert np.allclose(coordinates[:3, 3, 4, 5], expected, atol=1e-6)
    (tmp_path / "case_to_template.tfm").unlink()
    with pytest.raises(UserError, match=r"case_to_template\.tfm: expected a transform"):
        add(data)


def test_an_affine_with_axes_to_the_left_and_back_is_turned():
    data = sample()
    flipped = copy.deepcopy(data)
    lps = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
    flipped["image"].affine = lps @ data["image"].affine
    flipped["image"].meta["space"] = "LPS"
    a, b = (AddCoordinatesd("image", some_frame())(d)["coordinates"].as_tensor() for d in (data, flipped))
    assert torch.allclose(a, b, atol=1e-6)


def test_an_image_without_a_foreground_takes_its_field_of_view(caplog):
    data = sample()
    data["image"] = MetaTensor(torch.zeros(1, *SHAPE), affine=torch.eye(4))
    coordinates = AddCoordinatesd("image")(data)["coordinates"]
    assert "has no foreground" in caplog.text
    assert torch.allclose(coordinates[0, :, 0, 0].as_tensor(), (torch.arange(20) + 0.5) / 20, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keys": ["image", "label"]}, "keys: expected that of one image"),
        ({"frame": "head"}, "frame: expected one of slice, image, foreground, or the path of a transform, got 'head'"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        AddCoordinatesd(**options)


def test_wrong_images_are_named():
    with pytest.raises(TypeError, match="image: expected a MetaTensor"):
        AddCoordinatesd("image")({"image": torch.zeros(1, *SHAPE)})
    with pytest.raises(ValueError, match=r"image: expected a volume \[C, X, Y, Z\], got \[1, 8, 8\]"):
        AddCoordinatesd("image")({"image": MetaTensor(torch.zeros(1, 8, 8))})
    with pytest.raises(ValueError, match=r"image: expected \[C, H, W\] for the frame 'slice'"):
        AddCoordinatesd("image", "slice")(sample())
    with pytest.raises(KeyError):
        AddCoordinatesd("image")({})
    assert AddCoordinatesd("image", allow_missing_keys=True)({}) == {}


LINEAR = {"mode": "bilinear", "keys": KEYS}
CHAINS = {
    "crop, flip, pad": [
        RandSpatialCropd(KEYS, (12, 14, 6), random_size=False),
        RandFlipd(KEYS, prob=1, spatial_axis=(0, 2)),
        SpatialPadd(KEYS, (16, 15, 8)),
    ],
    "turn, zoom": [
        RandRotate90d(KEYS, prob=1, spatial_axes=(0, 1)),
        RandZoomd(KEYS, prob=1, min_zoom=0.8, max_zoom=1.3, mode="trilinear", align_corners=False),
        CenterSpatialCropd(KEYS, (14, 14, 8)),
    ],
    "affine, zeros": [
        RandAffined(
            **LINEAR,
            prob=1,
            rotate_range=0.4,
            scale_range=0.2,
            shear_range=0.1,
            translate_range=3,
            padding_mode="zeros",
        ),
        RandSpatialCropd(KEYS, (12, 12, 6), random_size=False),
    ],
    "affine, reflection": [RandAffined(**LINEAR, prob=1, rotate_range=0.3, translate_range=2)],
    "orientation, spacing": [
        Orientationd(KEYS, "RAS", labels=None),
        Spacingd(**LINEAR, pixdim=(1.5, 1.5, 2.0), padding_mode="zeros"),
        Transposed(KEYS, (0, 3, 1, 2)),
    ],
    "resize, crop to foreground": [
        CropForegroundd(KEYS, source_key="image", margin=1, select_fn=lambda x: x > 50),
        Resized(KEYS, (18, 20, 10), mode="trilinear"),
    ],
}


def told(coordinates):
    return affine_of_coordinates(coordinates[None].as_tensor(), ONES)


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
@pytest.mark.parametrize("name", CHAINS)
def test_channels_and_the_affine_that_monai_keeps_say_the_same(name, lazy):
    """Two ways of keeping track: the pictures that MONAI moved, and the affine that it wrote beside them."""
    chain = [transform for transform in CHAINS[name] if not isinstance(transform, Transposed)]  # it leaves the affine
    pipeline = Compose([AddCoordinatesd("image", some_frame()), *chain], lazy=lazy).set_random_state(3)
    result = pipeline(sample())
    expected = fractions(some_frame(), result["image"].affine)
    assert result["coordinates"].shape[1:] == result["image"].shape[1:]
    indices = torch.tensor(list(np.ndindex(*result["image"].shape[1:])), dtype=torch.float64)
    indices = torch.cat([indices, torch.ones(len(indices), 1)], 1).T
    assert torch.allclose(told(result["coordinates"]).double() @ indices, expected @ indices, atol=2e-4)


def test_every_chain_moves_the_voxels_where_it_says():
    """Where the affine is read, the picture has the values of the first picture: checked on a ramp."""
    for name, chain in CHAINS.items():
        data = sample()
        ramp = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in SHAPE), indexing="ij"))
        data["image"] = MetaTensor(ramp, affine=data["image"].affine)
        steps = [t for t in chain if not isinstance(t, CropForegroundd)]
        result = Compose([AddCoordinatesd("image", some_frame()), *steps]).set_random_state(5)(data)
        shape = result["image"].shape[1:]
        indices = torch.tensor(list(np.ndindex(*shape)), dtype=torch.float64)
        p = told(result["coordinates"]).double() @ torch.cat([indices, torch.ones(len(indices), 1)], 1).T
        from_ramp = fractions(some_frame(), oblique()) @ torch.cat(
            [result["image"].flatten(1).double(), torch.ones(1, p.shape[1])]
        )
        # Where interpolation saw the picture alone.
        valid = ((result["coordinates"][3].flatten() - 1).abs() < 1e-5) & ((p - from_ramp).abs().amax(0) < 1)
        inner = valid & (p > 0).all(0)
        assert inner.sum() > 0.2 * valid.numel(), name
        assert (p - from_ramp)[:, inner].abs().median() < 1e-4, name


class Probe(torch.nn.Module):
    """A backbone of one layer that sees nothing of its neighbours, and a head that positions matter to."""

    def __new__(cls, dims=3):
        torch.manual_seed(0)
        conv = (torch.nn.Conv2d, torch.nn.Conv3d)[dims - 2]
        network = torch.nn.Sequential(conv(1, 4, 1), conv(4, 2, 1)).eval()
        randomize_phi(attach(network, "1", position_dims=3)[1])
        return network


@torch.no_grad()
def test_a_positioned_network_takes_the_channels_off():
    network = Probe()
    pipeline = Compose([AddCoordinatesd("image", some_frame()), *CHAINS["affine, zeros"], ConcatItemsd(KEYS, "image")])
    batch = list_data_collate([pipeline.set_random_state(s)(sample()) for s in range(2)])
    assert batch["image"].shape == (2, 5, 12, 12, 6)
    logits = PositionedNetwork(network, 3)(batch["image"])
    affine = torch.stack([told(c) for c in batch["coordinates"]])
    with positioned(network, affine=affine, extent=ONES):
        assert torch.allclose(logits, network(batch["image"][:, :1].as_tensor()), atol=1e-6)


@torch.no_grad()
def test_slices_of_volumes_for_a_network_in_2d():
    pipeline = Compose(
        [
            AddCoordinatesd("image", some_frame()),
            RandSpatialCropd(KEYS, (-1, -1, 1), random_size=False),
            SqueezeDimd(KEYS, -1),
            RandFlipd(KEYS, prob=1, spatial_axis=0),
            ConcatItemsd(KEYS, "image"),
        ]
    ).set_random_state(1)
    result = pipeline(sample())
    assert result["image"].shape == (5, 20, 24)
    logits = PositionedNetwork(Probe(2), 3)(result["image"][None])
    assert logits.shape == (1, 2, 20, 24) and logits.isfinite().all()


def test_pictures_have_their_own_borders_in_the_frame_slice():
    data = {"image": MetaTensor(torch.zeros(3, 10, 20))}
    coordinates = AddCoordinatesd("image", "slice")(data)["coordinates"]
    assert coordinates.shape == (3, 10, 20)
    # As the paper counts: p is the index, the extent the size.
    assert torch.allclose(coordinates[:2, 4, 15].as_tensor(), torch.tensor([0.4, 0.75]))


def test_elastic_deformations_are_refused_or_fitted():
    elastic = Rand3DElasticd(
        KEYS, sigma_range=(2, 3), magnitude_range=(150, 200), prob=1, mode="bilinear", padding_mode="zeros"
    ).set_random_state(0)
    result = Compose([AddCoordinatesd("image", "image"), elastic, ConcatItemsd(KEYS, "image")])(sample())
    network = Probe()
    with pytest.raises(ValueError, match="coordinates: expected positions that are affine"):
        PositionedNetwork(network, 3)(result["image"][None])
    with torch.no_grad():
        logits = PositionedNetwork(network, 3, coordinates_as="least_squares")(result["image"][None])
        affine = affine_of_coordinates(result["coordinates"][None].as_tensor(), ONES, coordinates_as="least_squares")
        with positioned(network, affine=affine, extent=ONES):
            assert torch.allclose(logits, network(result["image"][None, :1].as_tensor()), atol=1e-6)


def test_cached_loaded_in_batches_and_sampled_many_times():
    pipeline = Compose(
        [
            AddCoordinatesd("image", "foreground"),
            RandCropByPosNegLabeld(
                [*KEYS, "label"], label_key="label", spatial_size=(8, 8, 4), pos=1, neg=1, num_samples=2
            ),
            RandAffined(
                [*KEYS, "label"],
                prob=1,
                rotate_range=0.2,
                mode=("bilinear", "bilinear", "nearest"),
                padding_mode="zeros",
            ),
            ConcatItemsd(KEYS, "image"),
        ]
    )
    data = CacheDataset([sample(), sample(affine_for(("L", "P", "S")))], pipeline, progress=False, num_workers=0)
    (batch,) = DataLoader(data, batch_size=2, collate_fn=list_data_collate)
    assert batch["image"].shape == (4, 5, 8, 8, 4)
    for picture, coordinates in zip(batch["image"], batch["coordinates"], strict=True):
        assert torch.equal(picture[1:].as_tensor(), coordinates.as_tensor())
        told(coordinates)  # an error where it is not affine


def test_predictions_are_inverted_and_channels_go_with_the_inverse():
    pipeline = Compose(
        [
            AddCoordinatesd("image", "image"),
            Flipd(KEYS, 0),
            CenterSpatialCropd(KEYS, (12, 12, 6)),
            ConcatItemsd(KEYS, "image"),
        ]
    )
    batch = list_data_collate([pipeline(sample())])
    batch["pred"] = batch["image"][:, :1] * 2
    invert = Invertd("pred", pipeline, orig_keys="image", nearest_interp=False)
    (result,) = [invert(item) for item in decollate_batch(batch)]
    inside = (slice(None), slice(4, 16), slice(6, 18), slice(1, 7))
    assert result["pred"].shape == (1, *SHAPE)
    assert torch.allclose(result["pred"][inside].as_tensor(), 2 * sample()["image"][inside].as_tensor())

    short = Compose([AddCoordinatesd("image", "image"), Flipd(KEYS, 0)])
    undone = short.inverse(short(sample()))
    assert set(undone) == {"image", "label"}
    assert torch.equal(undone["image"].as_tensor(), sample()["image"].as_tensor())


def test_channels_can_be_split_off_and_put_back():
    data = Compose([AddCoordinatesd("image", "image"), ConcatItemsd(KEYS, "image")])(sample())
    split = SplitCoordinatesd("image", 3, name="p")
    result = split(data)
    assert result["image"].shape == (1, *SHAPE) and torch.equal(result["p"], data["coordinates"])
    assert torch.equal(split.inverse(result)["image"], data["image"]) and "p" not in split.inverse(result)
    assert "p" not in SplitCoordinatesd("image", 3, name=None)(data)
    with pytest.raises(ValueError, match=r"label: expected channels of its own and 4 of positions, got \[1, 20"):
        SplitCoordinatesd("label", 3)(data)
    with pytest.raises(ValueError, match="name: expected a template"):
        SplitCoordinatesd(["image", "label"], 3)


def test_a_positioned_network_says_what_is_wrong():
    network = Probe()
    with pytest.raises(ValueError, match="position_dims: expected 3, as the head '1' has, got 2"):
        PositionedNetwork(network, 2)
    with pytest.raises(ValueError, match="network: expected a FusedSCP"):
        PositionedNetwork(torch.nn.Conv3d(1, 1, 1), 3)
    with pytest.raises(ValueError, match="image: expected channels of its own and 4 of positions"):
        PositionedNetwork(network, 3)(image(1, 4, 4, 4, 4))
    with pytest.raises(TypeError, match="coordinates: expected float32 or float64"):
        PositionedNetwork(network, 3)(image(1, 5, 4, 4, 4).half())
