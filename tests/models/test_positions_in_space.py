"""Networks on slices of a volume, and positions that went through MONAI's transforms beside the image."""

import itertools

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Affine, BorderPad, Flip, Resize, Rotate, Rotate90, SpatialCrop, Zoom

from scp_kernels import FusedSCP, affine_of_coordinates
from scp_models.networks import PositionedNetwork, positioned, sliding_window
from tests.support.agreement import slices_of_a_volume
from tests.support.augmentation import picture_of, with_validity
from tests.support.heads import image, network_of_a_head
from tests.support.tolerances import LOGITS, relative_error

# Of positions in float32 that were interpolated several times; logits differ by no more than some ten times that.
LOGITS_BY_FLOAT32_COORDINATES = 2e-5
EXTENT = torch.tensor([20.0, 40.0, 50.0])
SHAPE = (30, 37)


def attached(position="centered", pooled=False):
    return network_of_a_head(3, 2, pooled, position_dims=3, position=position)


@torch.no_grad()
def test_a_context_places_slices():
    network, head = attached()
    x, maps = image(2, 3, *SHAPE), slices_of_a_volume(2)
    expected = head(x, **maps)
    with positioned(network, **maps):
        assert torch.equal(network(x), expected)
    with positioned(network, coordinates=picture_of(maps["affine"], SHAPE), extent=maps["extent"]):
        assert relative_error(network(x), expected) <= LOGITS_BY_FLOAT32_COORDINATES
        expected = head(x, coordinates=picture_of(maps["affine"] * 2, SHAPE), extent=EXTENT)
    assert torch.equal(expected, head(x, coordinates=picture_of(maps["affine"] * 2, SHAPE), extent=EXTENT))
    with positioned(network, extent=EXTENT), positioned(network, origin=(3, 1, 2)):
        assert torch.equal(network(x), head(x, origin=(3, 1, 2), extent=EXTENT))
    with positioned(network, extent=EXTENT), pytest.raises(ValueError, match="affine, origin: expected one of the two"):
        network(x)


def test_a_context_refuses_what_is_no_map_at_once():
    network, _ = attached()
    coordinates = picture_of(slices_of_a_volume(1)["affine"], SHAPE)
    elastic = coordinates + image(*coordinates.shape)
    for changes, message in (
        ({"extent": None}, "extent: expected the sizes"),
        ({"origin": (0, 0, 0)}, "coordinates: expected neither origin nor affine"),
        ({"coordinates_as": "pixelwise"}, "coordinates_as: expected 'affine' or 'least_squares'"),
        ({"coordinates": elastic}, "affine in the pixel index"),
        ({"coordinates": coordinates[0]}, r"coordinates: expected \[B, K, H, W\]"),
    ):
        arguments = {"coordinates": coordinates, "extent": EXTENT, **changes}
        with pytest.raises(ValueError, match=message), positioned(network, **arguments):
            pytest.fail("entered")
    with positioned(network, coordinates=elastic, extent=EXTENT, coordinates_as="least_squares"):
        assert network(image(1, 3, *SHAPE)).isfinite().all()


@pytest.mark.parametrize("position", ["centered", "pixels"])
@torch.no_grad()
def test_heads_at_half_the_size_keep_the_unit_of_the_space(position):
    """Index i of their map is index 2·i of the input; positions and extent are those of the space."""
    network, head = attached(position, pooled=True)
    x, maps = image(2, 3, 12, 10), slices_of_a_volume(2)
    half = maps["affine"] * torch.tensor([2.0, 2, 1])
    expected = head(network[0](x), affine=half, extent=maps["extent"])
    with positioned(network, **maps):
        assert relative_error(network(x), expected) <= 1e-6
    with positioned(network, coordinates=picture_of(maps["affine"], (12, 10)), extent=maps["extent"]):
        assert relative_error(network(x), expected) <= LOGITS_BY_FLOAT32_COORDINATES
    with positioned(network, origin=(3, 1, 2), extent=EXTENT):
        at_origin = torch.tensor([[0.0, 0, 3], [2, 0, 1], [0, 2, 2]])
        assert relative_error(network(x), head(network[0](x), affine=at_origin, extent=EXTENT)) <= 1e-6


@pytest.mark.parametrize("size", [(40, 50), (20, 50)], ids=["image", "smaller than a window"])
@torch.no_grad()
def test_sliding_windows_over_slices(size):
    network, head = attached()
    x, maps = image(2, 3, *size), slices_of_a_volume(2)
    expected = head(x, **maps)
    coordinates = with_validity(picture_of(maps["affine"], size))
    for arguments in (maps, {"coordinates": coordinates, "extent": maps["extent"]}):
        result = sliding_window(network, x, 24, 3, overlap=0.5, **arguments)
        assert relative_error(result, expected) <= LOGITS_BY_FLOAT32_COORDINATES
    one = {"affine": maps["affine"][0], "extent": maps["extent"][0]}
    assert relative_error(sliding_window(network, x, 24, 3, **one), head(x, **one)) <= LOGITS_BY_FLOAT32_COORDINATES
    for name, values in maps.items():  # which would put windows elsewhere without a word
        with pytest.raises(TypeError, match=f"{name}: expected float32 or float64 .* got torch.bfloat16"):
            sliding_window(network, x, 24, 3, **(maps | {name: values.bfloat16()}))
    for changes, message in (
        ({"affine": maps["affine"]}, "extent: expected the sizes"),
        ({**maps, "coordinates": coordinates}, "affine, coordinates: expected at most one"),
        ({"affine": maps["affine"], "extent": (40, 50)}, r"affine: expected shape \[2, 3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            sliding_window(network, x, 24, 3, **changes)


def monai_chains(dims):
    """Chains of MONAI's transforms; in volumes milder ones, since a border is a larger part of them."""
    most, window, last, sizes, scales = (
        (4, 26, 9, (24, 60), (0.75, 1.35)) if dims == 2 else (3, 13, 3, (14, 24), (0.85, 1.25))
    )
    linear = {2: "bilinear", 3: "trilinear"}[dims]
    angle, scale = st.floats(-3.1, 3.1), st.floats(*scales)
    angles = angle if dims == 2 else st.tuples(angle, angle, angle)
    starts = st.tuples(*[st.integers(0, last)] * dims)
    widths = st.lists(st.integers(0, 6), min_size=2 * dims, max_size=2 * dims)
    return st.lists(
        st.one_of(
            st.builds(lambda axis: Flip(spatial_axis=axis), st.integers(0, dims - 1)),
            st.builds(
                lambda k, axes: Rotate90(k=k, spatial_axes=axes),
                st.integers(1, 3), st.sampled_from([*itertools.combinations(range(dims), 2)]),
            ),
            st.builds(lambda width: BorderPad(spatial_border=width), widths),
            st.builds(lambda start: SpatialCrop(roi_start=start, roi_end=[s + window for s in start]), starts),
            st.builds(lambda angle: Rotate(angle, keep_size=False, padding_mode="zeros"), angles),
            st.builds(lambda zoom: Zoom(zoom, mode=linear, keep_size=False), scale),
            st.builds(lambda *size: Resize(size, mode=linear), *[st.integers(*sizes)] * dims),
            st.builds(
                lambda angle, scale, shift: Affine(
                    rotate_params=angle, scale_params=(scale,) * dims, translate_params=(shift, -shift, shift)[:dims],
                    padding_mode="zeros", image_only=True,
                ),
                angles, scale, st.floats(-4, 4),
            ),
        ),
        min_size=1,
        max_size=most,
    )  # fmt: skip


@pytest.mark.parametrize("shape", [SHAPE, (18, 21, 16)], ids=str)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=st.integers(0, 100))
def test_a_chain_of_monais_transforms_gives_the_logits_of_its_affine(shape, data, seed):
    """The affine that MONAI keeps of what it did, from the result's index to the first image's."""
    dims = len(shape)
    steps, affine = data.draw(monai_chains(dims)), slices_of_a_volume(1, dims, seed=seed)["affine"]
    channels = torch.cat([image(1, 3, *shape), with_validity(picture_of(affine, shape))], 1)[0]
    picture = MetaTensor(channels, affine=torch.eye(4, dtype=torch.float64))
    for step in steps:
        picture = step(picture)
    kept = [*range(dims), 3]
    affine = affine @ picture.affine.double()[kept][:, kept]
    features, coordinates = picture.as_tensor()[None, :3], picture.as_tensor()[None, 3:]
    valid = (coordinates[:, -1:] - 1).abs() <= 1e-5
    assume(valid.sum() >= 50)
    if dims == 3:  # borders that were repeated are a larger part of a volume: less than half is to be off the map
        exact = picture_of(affine, tuple(features.shape[2:]), torch.float64)
        off = (coordinates[:, :-1] - exact).abs().amax(1, keepdim=True)
        assume((valid & (off <= 1e-4 * EXTENT.min())).sum() >= 2 / 3 * valid.sum())
    torch.manual_seed(0)
    head = FusedSCP(3, 2, 16, spatial_dims=dims, position_dims=3, position="centered", bias=True)
    with torch.no_grad():
        logits = head(features, coordinates=coordinates, extent=EXTENT)
        expected = head(features, affine=affine, extent=EXTENT)
    assert relative_error(logits * valid, expected * valid) <= LOGITS_BY_FLOAT32_COORDINATES


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@torch.no_grad()
def test_a_network_that_reads_positions_off_its_input_is_exported(dynamic):
    """With the reading: another picture with other positions has its own logits."""
    network = PositionedNetwork(attached()[0], 3)

    def pictures(seed, batch, *shape):
        maps = slices_of_a_volume(batch, seed=seed)
        fractions = picture_of(maps["affine"], shape) / maps["extent"][:, :, None, None].float()
        return torch.cat([image(batch, 3, *shape), with_validity(fractions)], 1)

    sizes = {0: torch.export.Dim("b"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    program = torch.export.export(network, (pictures(0, 2, *SHAPE),), dynamic_shapes=(sizes,) if dynamic else None)
    for seed, size in ((0, (2, *SHAPE)), (1, (2, *SHAPE)), (2, (3, 17, 40)))[: 3 if dynamic else 2]:
        x = pictures(seed, *size)
        assert relative_error(program.module()(x), network(x)) <= LOGITS[torch.float32]


def test_coordinates_may_be_monais_tensors():
    affine = slices_of_a_volume(1)["affine"]
    coordinates = MetaTensor(picture_of(affine, SHAPE))
    result = affine_of_coordinates(coordinates, EXTENT)
    assert type(result) is torch.Tensor
    assert relative_error(result, affine[0]) <= 1e-6
    head = FusedSCP(3, position_dims=3)
    logits = head(image(1, 3, *SHAPE), coordinates=coordinates, extent=EXTENT)
    assert relative_error(logits, head(image(1, 3, *SHAPE), affine=affine, extent=EXTENT)) <= 1e-4
