"""Coordinate channels that meet contexts and placements: what each says, in graphs and out of them."""

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from scp_kernels import FusedSCP, Placement, affine_of_coordinates, positioned
from tests.support.agreement import slices_of_a_volume
from tests.support.augmentation import picture_of, with_validity
from tests.support.problems import make_inputs
from tests.support.tolerances import LOGITS, relative_error

SHAPE = (12, 10)
EXTENT = torch.tensor([20.0, 40.0, 50.0])
OTHER_EXTENT = torch.tensor([30.0, 20.0, 70.0])


def head_of(axes: int = 3) -> FusedSCP:
    torch.manual_seed(0)
    return FusedSCP(3, 2, 16, position_dims=axes, bias=True)


def coordinates_of(seed: int = 0, axes: int = 3) -> Tensor:
    return with_validity(picture_of(slices_of_a_volume(2, axes=axes, seed=seed)["affine"], SHAPE))


FEATURES = make_inputs(SHAPE).features


@torch.no_grad()
def test_a_calls_coordinates_take_the_extent_of_what_is_around():
    """What the inner one does not say, the outer one does; a context's own map is no part of the call."""
    head, c = head_of(), coordinates_of()
    network = nn.Sequential(nn.Identity(), head)
    expected = head(FEATURES, coordinates=c, extent=EXTENT)
    affine = slices_of_a_volume(2, seed=1)["affine"]
    with positioned(network, extent=EXTENT):
        assert torch.equal(head(FEATURES, coordinates=c), expected)
        with positioned(network, affine=affine):
            assert torch.equal(head(FEATURES, coordinates=c), expected)
            assert torch.equal(head(FEATURES), head(FEATURES, affine=affine, extent=EXTENT))
        with positioned(network, extent=OTHER_EXTENT):
            assert torch.equal(head(FEATURES, coordinates=c), head(FEATURES, coordinates=c, extent=OTHER_EXTENT))
            assert torch.equal(head(FEATURES, coordinates=c, extent=EXTENT), expected)
    head.placement = Placement(affine=affine, extent=EXTENT)
    assert torch.equal(head(FEATURES, coordinates=c), expected)
    head.placement = Placement(affine=affine)
    with pytest.raises(ValueError, match=r"extent: expected \[3\] sizes .* got none"):
        head(FEATURES, coordinates=c)


class Downsampled(nn.Module):
    """Takes the coordinates of its input to the coarser grid of its head."""

    def __init__(self, head: FusedSCP) -> None:
        super().__init__()
        self.head = head

    def forward(self, image: Tensor) -> Tensor:
        x = image[..., ::2, ::2]
        return self.head(x[:, :3], coordinates=x[:, 3:])


@torch.no_grad()
def test_coordinates_on_a_coarser_grid_keep_the_unit_of_the_extent():
    network = Downsampled(head_of(axes=2))
    c, extent = coordinates_of(axes=2), torch.tensor([40.0, 50.0])
    with positioned(network, extent=extent):
        logits = network(torch.cat([FEATURES, c], 1))
    expected = network.head(FEATURES[..., ::2, ::2], coordinates=c[..., ::2, ::2], extent=extent)
    assert torch.equal(logits, expected)


@torch.no_grad()
def test_a_placement_of_coordinates_is_that_of_their_map():
    head, c = head_of(), coordinates_of()
    expected = head(FEATURES, affine=affine_of_coordinates(c, EXTENT), extent=EXTENT)
    head.placement = Placement(coordinates=c, extent=EXTENT)
    assert torch.equal(head(FEATURES), expected)
    assert torch.equal(
        head(FEATURES, extent=OTHER_EXTENT), head(FEATURES, affine=head.placement.affine, extent=OTHER_EXTENT)
    )
    bent = (
        c
        + 0.3
        * torch.randn(c.shape, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1, 1, 1, 0])[:, None, None]
    )
    head.placement = Placement(coordinates=bent, extent=EXTENT, coordinates_as="least_squares")
    assert torch.equal(head(FEATURES), head(FEATURES, coordinates=bent, extent=EXTENT, coordinates_as="least_squares"))
    for changes, message in (
        ({"coordinates": bent}, "affine in the pixel index"),
        ({"extent": None}, "extent: expected the sizes of the space"),
        ({"origin": (0, 0, 0)}, "coordinates: expected neither origin nor affine"),
        ({"coordinates_as": "pixelwise"}, "coordinates_as: expected 'affine' or 'least_squares'"),
    ):
        with pytest.raises(ValueError, match=message):
            Placement(**{"coordinates": c, "extent": EXTENT, **changes})


@torch.no_grad()
def test_a_network_compiled_in_one_graph_follows_a_contexts_coordinates():
    torch.compiler.reset()
    head = head_of()
    network = nn.Sequential(nn.AvgPool2d(2), head)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(network, backend=counter, fullgraph=True)
    for seed in range(3):
        with positioned(compiled, coordinates=coordinates_of(seed), extent=EXTENT):
            assert relative_error(compiled(FEATURES), network(FEATURES)) <= LOGITS[torch.float32]
    assert counter.frame_count == 1
    with positioned(network, extent=EXTENT):
        compiled = torch.compile(head, backend="aot_eager", fullgraph=True)
        expected = head(FEATURES, coordinates=coordinates_of(), extent=EXTENT)
        assert relative_error(compiled(FEATURES, coordinates=coordinates_of()), expected) <= LOGITS[torch.float32]


@pytest.mark.parametrize("strict", [False, True])
@torch.no_grad()
def test_an_exported_network_keeps_the_coordinates_of_its_context(strict):
    network = nn.Sequential(nn.AvgPool2d(2), head_of())
    with positioned(network, coordinates=coordinates_of(), extent=EXTENT):
        expected = network(FEATURES)
        program = torch.export.export(network, (FEATURES,), strict=strict).module()
    assert relative_error(program(FEATURES), expected) <= LOGITS[torch.float32]
