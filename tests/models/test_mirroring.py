"""Test-time mirroring: the mean over mirrored pictures, whose positions are mirrored with them."""

import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch import nn

from scp_kernels import pixel_positions, positioned
from scp_models.monai import MirroringSlidingWindowInferer
from scp_models.networks import PositionedNetwork, attach, average_over_mirrors, sliding_window
from tests.support.heads import image, randomize_phi


def pixelwise(dims=2, position_dims=None):
    """A network of 1×1 layers: wherever a picture is mirrored, its logits are the same ones mirrored, if positions are
    right.
    """
    torch.manual_seed(0)
    conv = (nn.Conv2d, nn.Conv3d)[dims - 2]
    network = nn.Sequential(conv(1, 4, 1), conv(4, 2, 1)).eval()
    randomize_phi(attach(network, "1", position_dims=position_dims)[1])
    return network


def with_coordinates(x):
    """The picture with positions as fractions of its size, and validity."""
    dims, sizes = x.ndim - 2, torch.tensor(x.shape[2:])
    p = pixel_positions(x)[:, :dims].float() / sizes.reshape(1, -1, *[1] * dims)
    return torch.cat([x, p.expand(len(x), *p.shape[1:]), torch.ones_like(x[:, :1])], 1)


@pytest.mark.parametrize("size", [(40, 30), (20, 50), (20, 17, 18)], ids=str)
@torch.no_grad()
def test_windows_are_told_their_mirrored_positions(size):
    network, x = pixelwise(len(size)), image(2, 1, *size)
    axes = range(len(size))
    result = sliding_window(network, x, 16, overlap=0.5, mode="gaussian", mirror_axes=axes)
    assert torch.allclose(result, network(x), rtol=1e-4, atol=1e-4)
    # Without being told, mirrored windows have other logits: the test can fail.
    unaware = average_over_mirrors(lambda w, _: network(w), x, axes)
    assert not torch.allclose(unaware, network(x), rtol=1e-1, atol=1e-1)


@torch.no_grad()
def test_mirrored_windows_of_turned_samples_in_a_space_with_more_axes():
    network, x = pixelwise(2, 3), image(2, 1, 24, 20)
    affine = torch.tensor(
        [[[0.0, 0, 12], [0, 1, 3], [-1, 0, 30]], [[0.1, 0, 4], [1, 0, 0], [0, 1, 2]]], dtype=torch.float64
    )
    extent = torch.tensor([[40.0, 50, 60], [20, 30, 40]])
    with positioned(network, affine=affine, extent=extent):
        expected = network(x)
    result = sliding_window(network, x, 12, 3, affine=affine, extent=extent, mirror_axes=(1,))
    assert torch.allclose(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
@torch.no_grad()
def test_channels_are_mirrored_with_the_windows_by_whoever_mirrors_them(dims):
    network, x = pixelwise(dims), image(2, 1, *(24, 20, 18)[:dims])
    inferer = MirroringSlidingWindowInferer((16,) * dims, 4, mirror_axes=range(dims), overlap=0.25)
    wrapped = PositionedNetwork(network, dims)
    assert torch.allclose(inferer(with_coordinates(x), wrapped), network(x), rtol=1e-4, atol=1e-4)
    # MONAI's own inferer pads what is smaller than a window with zeros: they are not valid.
    stock = SlidingWindowInferer((32,) * dims, 4)
    assert torch.allclose(stock(with_coordinates(x), wrapped), network(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_mean_is_over_all_subsets_of_axes():
    """Of a network that is not symmetric, by hand; with outputs in a tuple, a list and a dict."""
    torch.manual_seed(0)
    network, x = nn.Conv2d(1, 1, 3, padding=1), image(1, 1, 6, 7)
    called = []

    def predict(picture, axes):
        called.append(axes)
        y = network(picture)
        return {"a": y, "b": (y[:, :, ::2], [y[None]])}

    result = average_over_mirrors(predict, x, (1, 0))
    flips = [(), (2,), (3,), (2, 3)]
    expected = sum(network(x.flip(f)).flip(f) for f in flips) / 4
    assert sorted(called) == [(), (0,), (1,), (1, 0)]
    assert torch.allclose(result["a"], expected, atol=1e-6)
    assert torch.allclose(result["b"][1][0][0], expected, atol=1e-6)
    assert result["b"][0].shape == (1, 1, 3, 7)
    called.clear()
    assert torch.equal(average_over_mirrors(predict, x, ())["a"], network(x)) and called == [()]


def test_axes_that_are_not_there_are_refused():
    for axes in ((2,), (-1,), (0, 0)):
        with pytest.raises(ValueError, match="mirror_axes: expected different spatial axes from 0 to 1"):
            sliding_window(pixelwise(), image(1, 1, 8, 8), 8, mirror_axes=axes)


def test_what_would_not_be_mirrored_is_refused():
    with pytest.raises(ValueError, match="with_coord: expected False"):
        MirroringSlidingWindowInferer(8, mirror_axes=(0,), with_coord=True)
    x = image(1, 1, 8, 8)
    with pytest.raises(ValueError, match="condition: expected none"):
        MirroringSlidingWindowInferer((8, 8), mirror_axes=(0,))(x, nn.Identity(), condition=x)
    with pytest.raises(ValueError, match="condition: expected none with mirror_axes"):
        sliding_window(pixelwise(), x, 8, mirror_axes=(0,), condition=x)
