"""Networks that are told where their input lies: positioned(), sliding windows, and layers held under several names."""

import copy
import pickle
import re
from pathlib import Path

import pytest
import torch
from monai.networks.nets import DynUNet
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from scp_kernels import FusedSCP, affine_of_coordinates
from scp_models.networks import PositionedNetwork, attach, positioned, sliding_window
from scp_models.networks.positioned_network import read_map
from tests.support.heads import image, network_of_a_head, randomize_phi

PATCH, ORIGIN, EXTENT = (12, 10), (3, 5), (24, 20)
HERE = {"origin": (32, 64), "extent": (160, 224)}
ELSEWHERE = {"affine": [[0.0, 1.0, 7.0], [-1.0, 0.0, 50.0]], "extent": (60, 70)}


def test_positioned_tells_an_attached_network_where_its_crop_lies():
    network = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 1, 1)).eval()
    randomize_phi(attach(network, "1")[1])
    full = image(1, 2, *EXTENT)
    rows, columns = (slice(o, o + p) for o, p in zip(ORIGIN, PATCH, strict=True))
    whole, patch = network(full)[..., rows, columns], full[..., rows, columns]
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    with positioned(network, origin=ORIGIN, extent=EXTENT):
        assert torch.allclose(network(patch)[inside], whole[inside], atol=1e-5)
    assert not torch.allclose(network(patch)[inside], whole[inside], atol=1e-2)
    with pytest.raises(ValueError, match="expected a FusedSCP"), positioned(nn.Conv2d(1, 1, 1)):
        pass


def attached(position="centered"):
    """With a random Φ, so that explicit arguments say what is expected; and an image."""
    return *network_of_a_head(2, 1, position=position), image(2, 2, *PATCH)


@torch.no_grad()
def test_inner_contexts_stand_before_outer_ones_and_arguments_before_both():
    network, head, x = attached()
    plain, here, elsewhere = head(x), head(x, **HERE), head(x, **ELSEWHERE)
    with positioned(network, **HERE):
        assert torch.equal(network(x), here)
        with positioned(network, **ELSEWHERE):
            assert torch.equal(network(x), elsewhere)
            assert torch.equal(head(x, **HERE), here)
            assert torch.equal(head(x, origin=(0, 0), extent=PATCH), plain)
        assert torch.equal(network(x), here)
        with positioned(network, affine=ELSEWHERE["affine"]):
            assert torch.equal(network(x), head(x, affine=ELSEWHERE["affine"], extent=HERE["extent"]))
        with pytest.raises(KeyError), positioned(network, extent=(99, 99)):
            assert torch.equal(network(x), head(x, origin=HERE["origin"], extent=(99, 99)))
            raise KeyError
        assert torch.equal(network(x), here)
    assert torch.equal(network(x), plain)
    assert len(network._forward_pre_hooks) == 1, "one hook for all contexts"


@pytest.mark.parametrize(
    ("position", "message"),
    [
        ({"origin": (0, 0), "affine": [[1, 0, 0], [0, 1, 0]]}, "origin, affine: expected at most one"),
        ({"extent": (0, 3)}, "extent: expected positive sizes"),
        ({"origin": (float("nan"), 3)}, "origin: expected finite numbers"),
    ],
)
def test_positioned_refuses_wrong_values_at_once(position, message):
    network, head, x = attached()
    with pytest.raises(ValueError, match=message), positioned(network, **position):
        pytest.fail("entered")
    assert torch.equal(network(x), head(x))


@pytest.mark.parametrize("way", ["compiled", "in place", "in a function"])
@torch.no_grad()
def test_a_network_compiled_before_follows_its_position(way):
    torch.compiler.reset()
    network, head, x = attached()
    plain = head(x)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = network
    if way == "in place":
        network.compile(backend=counter, fullgraph=True)
    else:
        function = network if way == "compiled" else lambda y: network(y)
        compiled = torch.compile(function, backend=counter, fullgraph=True)
    assert torch.equal(compiled(x), plain)
    for k in range(10):
        position = {"origin": (k, 2 * k), "extent": (50 + k, 60)}
        with positioned(network if way == "in a function" else compiled, **position):
            assert torch.allclose(compiled(x), head(x, **position), atol=1e-6)
        assert torch.equal(compiled(x), plain)
    assert counter.frame_count == 2, "one graph in all positions, and one without"


@torch.no_grad()
def test_positions_of_each_sample_and_in_tensors():
    network, head, x = attached()
    origins, extent = torch.tensor([[0, 0], [7, 2]]), torch.tensor([24.0, 20.0])
    with positioned(network, origin=origins, extent=extent):
        assert torch.equal(network(x), head(x, origin=origins, extent=extent))
    with positioned(network, origin=origins[:1]), pytest.raises(ValueError, match="origin: expected shape"):
        network(x)


@torch.no_grad()
def test_copies_made_inside_a_context_are_free_of_it():
    network, head, x = attached()
    plain = head(x)
    with positioned(network, **HERE):
        assert not [key for key in network.state_dict() if "placement" in key]
        copied, unpickled = copy.deepcopy(network), pickle.loads(pickle.dumps(network))
    for other in (copied, unpickled):
        assert torch.equal(other(x), plain)
        with positioned(other, **HERE):
            assert torch.equal(other(x), head(x, **HERE))


def dyn_unet():
    torch.manual_seed(0)
    options = {"kernel_size": [3] * 4, "strides": [1, 2, 2, 2], "upsample_kernel_size": [2] * 3}
    network = DynUNet(2, 1, 2, **options, filters=[4, 8, 8, 8], deep_supervision=True, deep_supr_num=2)
    return network, image(1, 1, 32, 48)


@pytest.mark.parametrize("layer", ["deep_supervision_heads.0", "deep_supervision_heads.0.conv.conv"])
def test_attach_replaces_a_layer_under_all_its_names(layer):
    """MONAI's DynUNet holds its heads for deep supervision twice, and calls those that are not in the list."""
    network, x = dyn_unet()
    before = network(x)
    attach(network, layer)
    head = randomize_phi(network.get_submodule(layer))
    called = []
    head.register_forward_hook(lambda *_: called.append(1))
    after = network(x)
    assert called and torch.equal(after[:, 0], before[:, 0])
    assert not torch.allclose(after[:, 1], before[:, 1], atol=1e-2)
    after.sum().backward()
    assert head.phi[0].weight.grad is not None


def test_attach_replaces_a_layer_in_a_plain_list():
    network = nn.Sequential(nn.Conv2d(2, 1, 1))
    network.heads = [network[0]]
    attach(network, "0")
    assert network.heads == [network[0]] and isinstance(network[0], FusedSCP)


@pytest.mark.parametrize("position", ["pixels", "centered"])
@torch.no_grad()
def test_heads_of_deep_supervision_take_positions_on_their_own_grids(position):
    network, x = dyn_unet()
    layers = ("output_block", "deep_supervision_heads.0", "deep_supervision_heads.1")
    heads = [randomize_phi(attach(network, layer, position=position).get_submodule(layer)) for layer in layers]
    seen = {}
    for head in heads:
        head.register_forward_hook(lambda head, args, logits: seen.update({head: (args[0], logits)}))
    whole = network(x)
    with positioned(network, origin=(0, 0), extent=(32, 48)):
        assert torch.allclose(network(x=x), whole, rtol=1e-5, atol=1e-5)
    with positioned(network, affine=[[0.0, 2.0, 8.0], [-1.0, 0.0, 40.0]], extent=(160, 224)):
        network(x)
    for scale, head in zip((1, 2, 4), heads, strict=True):
        features, logits = seen[head]
        assert features.shape[2:] == (32 // scale, 48 // scale)
        affine = [[0.0, 2.0, 8 / scale], [-1.0, 0.0, 40 / scale]]
        expected = head(features, affine=affine, extent=(160 / scale, 224 / scale))
        assert torch.allclose(logits, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_each_of_nested_contexts_is_in_pixels_of_its_own_networks_input():
    network, head, _ = attached("pixels")
    network[0] = nn.AvgPool2d(2)
    outer = nn.Sequential(nn.AvgPool2d(2), network)
    x = image(1, 2, 24, 20)
    features = network[0](outer[0](x))
    with positioned(network, extent=(40, 60)), positioned(network, origin=(8, 4)):
        assert torch.equal(network(outer[0](x)), head(features, origin=(4, 2), extent=(20, 30)))
    with positioned(outer, extent=(80, 120)), positioned(network, origin=(8, 4)):
        assert torch.equal(outer(x), head(features, origin=(4, 2), extent=(20, 30)))


@torch.no_grad()
def test_compiled_networks_with_deep_supervision_follow_their_position():
    torch.compiler.reset()
    network, head, _ = attached("pixels")
    network[0] = nn.AvgPool2d(2)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    for size in ((12, 10), (16, 20), (8, 8)):
        x = image(1, 2, *size)
        compiled(x)
        with positioned(network, origin=(8, 4), extent=(40, 60)):
            result = compiled(x)
        expected = head(network[0](x), origin=(4, 2), extent=(20, 30))
        assert torch.allclose(result, expected, rtol=1e-5, atol=1e-5)


def pixelwise(spatial_dims=2):
    """A network of 1×1 layers: its logits on windows are those on the image, if positions are right."""
    torch.manual_seed(0)
    conv = (nn.Conv2d, nn.Conv3d)[spatial_dims - 2]
    network = nn.Sequential(conv(1, 4, 1), conv(4, 2, 1)).eval()
    randomize_phi(attach(network, "1")[1])
    return network


@pytest.mark.parametrize("size", [(96, 80), (20, 80), (21, 17), (32, 32), (40, 33, 50)], ids=str)
@pytest.mark.parametrize("batch", [1, 4])
@torch.no_grad()
def test_sliding_windows_give_the_whole_images_logits(size, batch):
    network, x = pixelwise(len(size)), image(2, 1, *size)
    with positioned(network, origin=[3] * len(size)):  # the image is the full one, whatever is around
        result = sliding_window(network, x, 32, batch, overlap=0.5, mode="gaussian")
    assert torch.allclose(result, network(x), rtol=1e-4, atol=1e-4)
    assert torch.allclose(sliding_window(network, x, (0, *size[1:])), network(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_documented_use_of_monais_sliding_windows():
    text = (Path(__file__).parents[2] / "docs" / "torch.md").read_text(encoding="utf-8")
    (snippet,) = [s for s in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "with_coord" in s]
    names = {"torch": torch, "network": pixelwise(), "image": image(2, 1, 96, 80)}
    exec(snippet, names)
    assert torch.allclose(names["logits"], names["network"](names["image"]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", ["affine", "least_squares"])
@torch.no_grad()
def test_channels_of_large_patches_are_read_at_some_pixels_unless_the_closest_map_is_asked_for(way):
    """A corner that lies elsewhere is left out of an affine map, and counts for the closest one."""
    network, _, _ = attached()
    i, j = torch.meshgrid(torch.arange(130) / 130, torch.arange(70) / 70, indexing="ij")
    x = torch.cat([image(1, 2, 130, 70), torch.stack([i, j, torch.ones_like(i)])[None]], 1)
    x[:, 2:4, :40, :30] += 0.3
    affine = affine_of_coordinates(x[:, 2:], (1, 1), coordinates_as=way)
    with positioned(network, affine=affine, extent=(1, 1)):
        expected = network(x[:, :2])
    result = PositionedNetwork(network, 2, coordinates_as=way)(x)
    assert torch.allclose(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(512, 130), (70, 66, 128)], ids=str)
@pytest.mark.parametrize("width", [1, 2, 12])
@torch.no_grad()
def test_channels_are_read_however_little_of_a_large_patch_is_valid(shape, width):
    """A window that the padded picture only just reaches into; each sample is valid elsewhere."""
    place = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij")) / 600
    coordinates = torch.zeros(3, len(shape) + 1, *shape)
    bands = [(0, slice(shape[0] - width, None)), (1, slice(5, 5 + width)), (0, slice(None))]
    for picture, (axis, band) in zip(coordinates, bands, strict=True):
        part = (slice(None),) * (1 + axis) + (band,)
        picture[part] = torch.cat([place, torch.ones_like(place[:1])])[part]
    extent = torch.ones(len(shape))
    index = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij")).double()

    def away(affine, sample):
        p = (affine[:, :-1] @ index.flatten(1)).unflatten(1, shape) + affine[:, -1].reshape(-1, *[1] * len(shape))
        return ((p - sample[:-1]) * sample[-1]).abs().max()

    affines = read_map(coordinates, extent, "affine")
    for sample, affine in zip(coordinates, affines, strict=True):
        assert away(affine, sample) < 1e-6
        assert away(read_map(sample[None], extent, "affine"), sample) < 1e-6
    assert read_map(coordinates[:0], extent, "affine").shape == (0, *affines.shape[1:])
    assert read_map(coordinates[:, :, :0], extent, "affine").shape == affines.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@torch.no_grad()
def test_a_network_in_half_precision_takes_positions_in_float32(dtype):
    network, _, _ = attached()
    network.to(dtype)
    place = torch.stack(torch.meshgrid(torch.arange(30) / 90, torch.arange(40) / 70, indexing="ij"))
    x = torch.cat([image(1, 2, 30, 40), place[None], torch.ones(1, 1, 30, 40)], 1)
    with positioned(network, coordinates=x[:, 2:], extent=(1, 1)):
        expected = network(x[:, :2].to(dtype))
    result = PositionedNetwork(network, 2)(x)
    assert result.dtype == dtype and torch.equal(result, expected)
    with pytest.raises(TypeError, match="coordinates: expected float32 or float64"):
        PositionedNetwork(network, 2)(x.to(dtype))
