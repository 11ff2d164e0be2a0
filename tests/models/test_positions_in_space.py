"""Networks on slices of a volume, and positions that went through MONAI's transforms beside the image."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Affine, BorderPad, Flip, Resize, Rotate, Rotate90, SpatialCrop, Zoom

from scp_kernels import FusedSCP, affine_of_coordinates
from scp_models.networks import positioned, sliding_window
from tests.support.agreement import slices_of_a_volume
from tests.support.augmentation import picture_of, with_validity
from tests.support.heads import image, network_of_a_head
from tests.support.tolerances import relative_error

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
    for changes, message in (
        ({"affine": maps["affine"]}, "extent: expected the sizes"),
        ({**maps, "coordinates": coordinates}, "affine, coordinates: expected at most one"),
        ({"affine": maps["affine"], "extent": (40, 50)}, r"affine: expected shape \[2, 3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            sliding_window(network, x, 24, 3, **changes)


_angle, _scale = st.floats(-3.1, 3.1), st.floats(0.75, 1.35)
MONAI_STEPS = st.lists(
    st.one_of(
        st.builds(lambda axis: Flip(spatial_axis=axis), st.integers(0, 1)),
        st.builds(lambda k: Rotate90(k=k), st.integers(1, 3)),
        st.builds(lambda width: BorderPad(spatial_border=width), st.lists(st.integers(0, 6), min_size=4, max_size=4)),
        st.builds(lambda i, j: SpatialCrop(roi_start=(i, j), roi_end=(i + 26, j + 26)), *[st.integers(0, 9)] * 2),
        st.builds(lambda angle: Rotate(angle, keep_size=False, padding_mode="zeros"), _angle),
        st.builds(lambda zoom: Zoom(zoom, mode="bilinear", keep_size=False), _scale),
        st.builds(lambda h, w: Resize((h, w), mode="bilinear"), st.integers(24, 60), st.integers(24, 60)),
        st.builds(
            lambda angle, scale, shift: Affine(
                rotate_params=angle, scale_params=(scale, scale), translate_params=(shift, -shift),
                padding_mode="zeros", image_only=True,
            ),
            _angle, _scale, st.floats(-4, 4),
        ),
    ),
    min_size=1,
    max_size=4,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(steps=MONAI_STEPS, seed=st.integers(0, 100))
def test_a_chain_of_monais_transforms_gives_the_logits_of_its_affine(steps, seed):
    """The affine that MONAI keeps of what it did, from the result's index to the first image's."""
    affine = slices_of_a_volume(1, seed=seed)["affine"]
    channels = torch.cat([image(1, 3, *SHAPE), with_validity(picture_of(affine, SHAPE))], 1)[0]
    picture = MetaTensor(channels, affine=torch.eye(4, dtype=torch.float64))
    for step in steps:
        picture = step(picture)
    done = picture.affine.double()[:2][:, [0, 1, 3]]
    done = torch.cat([done, torch.tensor([[0.0, 0, 1]], dtype=torch.float64)])
    features, coordinates = picture.as_tensor()[None, :3], picture.as_tensor()[None, 3:]
    valid = (coordinates[:, -1:] - 1).abs() <= 1e-5
    assume(valid.sum() >= 50)
    torch.manual_seed(0)
    head = FusedSCP(3, 2, 16, position_dims=3, position="centered", bias=True)
    with torch.no_grad():
        logits = head(features, coordinates=coordinates, extent=EXTENT)
        expected = head(features, affine=affine @ done, extent=EXTENT)
    assert relative_error(logits * valid, expected * valid) <= LOGITS_BY_FLOAT32_COORDINATES


def test_coordinates_may_be_monais_tensors():
    affine = slices_of_a_volume(1)["affine"]
    coordinates = MetaTensor(picture_of(affine, SHAPE))
    result = affine_of_coordinates(coordinates, EXTENT)
    assert type(result) is torch.Tensor
    assert relative_error(result, affine[0]) <= 1e-6
    head = FusedSCP(3, position_dims=3)
    logits = head(image(1, 3, *SHAPE), coordinates=coordinates, extent=EXTENT)
    assert relative_error(logits, head(image(1, 3, *SHAPE), affine=affine, extent=EXTENT)) <= 1e-4
