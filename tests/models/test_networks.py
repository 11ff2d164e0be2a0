"""The four variants, their presets and positions, and attach() to other people's networks."""

import copy

import pytest
import torch
from monai.networks.nets import BasicUNet, SegResNet, UNet
from torch import nn

from scp_kernels import FusedSCP
from scp_models.networks import VARIANTS, attach, build_network
from scp_models.networks.positions import position_channels
from tests.support.heads import image, randomize_phi

SMALL = {"in_channels": 2, "capacity": 32, "levels": 3}
PATCH, ORIGIN, EXTENT = (12, 10), (3, 5), (24, 20)


def small(variant, seed=0, **options):
    """A small network whose batch norms know their features' scale, so that what goes in matters to what comes out."""
    torch.manual_seed(seed)
    network = build_network(variant, **{**SMALL, **options})
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(image(4, 2, 24, 20, seed=9))
    return network.eval()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [(16, 16), (13, 9), (1, 1), (5, 32)])
def test_logits_have_the_images_size_at_any_height_and_width(variant, size):
    network = small(variant, num_classes=3)
    x = image(2, 2, *size)
    assert network(x).shape == (2, 3, *size)
    assert network.features(x).shape == (2, 2, *size)


@pytest.mark.parametrize("variant", VARIANTS)
def test_five_levels_at_sizes_that_sixteen_does_not_divide(variant):
    network = build_network(variant, in_channels=1, capacity=16)
    assert network(image(2, 1, 37, 50)).shape == (2, 1, 37, 50)


@pytest.mark.parametrize("capacity", [16, 48, 128])
@pytest.mark.parametrize("levels", [1, 2, 5])
def test_capacity_sets_the_first_width_and_each_level_doubles_it(capacity, levels):
    network = build_network("scp", capacity=capacity, levels=levels)
    widths = [level[0][0].out_channels for level in network.encoder]
    assert widths == [capacity // 16 * 2**level for level in range(levels)]
    assert network.head.in_channels == capacity // 16
    assert network.head.hidden_channels == (capacity // 2, capacity // 2)


def test_the_head_is_a_plain_convolution_or_the_fused_one():
    assert isinstance(small("scp").head, FusedSCP)
    for variant in ("base", "base_f", "base_b"):
        assert isinstance(small(variant).head, nn.Conv2d)


def test_position_channels_enter_where_the_variant_says():
    assert small("base_f").encoder[0][0][0].in_channels == 2 + 4
    assert small("base_b").last[0].in_channels == 2 + 4
    for variant in ("base", "scp"):
        network = small(variant)
        assert (network.encoder[0][0][0].in_channels, network.last[0].in_channels) == (2, 2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_recommended_preset(variant):
    network = small(variant, logit_bias=-2.5)
    assert not any(isinstance(module, nn.ReLU) for module in network.last)
    assert torch.equal(network.head.bias, torch.tensor([-2.5]))
    assert network.position == "centered"
    if variant == "scp":
        assert network.head.position == "centered"
        assert all((parameter == 0).all() for parameter in network.head.phi[4].parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_papers_preset(variant):
    network = small(variant, preset="paper")
    assert isinstance(network.last[-1], nn.ReLU)
    assert network.head.bias is None
    assert network.position == "pixels"
    if variant == "scp":
        assert network.head.position == "pixels"
        assert (network.head.phi[4].weight != 0).any()


def test_options_override_the_preset():
    network = small("scp", preset="paper", position="centered", last_relu=False, hidden_channels=(5, 7))
    assert network.head.position == "centered"
    assert not any(isinstance(module, nn.ReLU) for module in network.last)
    assert network.head.hidden_channels == (5, 7)
    assert small("base", logit_bias=None).head.bias is None
    assert small("base", last_relu=True).last[-1].__class__ is nn.ReLU


def test_scp_starts_as_base():
    """With the same weights and Φ's last layer at zero, SCP's logits are Base's."""
    base, scp = small("base"), small("scp")
    weights = base.state_dict()
    weights["residual"] = weights.pop("head.weight").flatten(1)
    scp.load_state_dict({k: v for k, v in weights.items() if not k.startswith(("head", "residual"))}, strict=False)
    with torch.no_grad():
        scp.head.residual.weight.copy_(weights["residual"])
    x = image(2, 2, 12, 12)
    assert torch.allclose(scp(x), base(x), atol=1e-6)


@pytest.mark.parametrize("position", ["pixels", "centered"])
def test_position_channels_are_the_papers_equation_5(position):
    """What Base B's last layer is given, against the formula for each pixel."""
    network = small("base_b", position=position)
    seen = []
    network.last.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    network(image(2, 2, *PATCH), origin=ORIGIN, extent=EXTENT)
    channels = seen[0][:, -4:]
    for i, j in ((0, 0), (11, 9), (4, 7)):
        p, q = i + ORIGIN[0], j + ORIGIN[1]
        s = torch.tensor([p, q, EXTENT[0] - p, EXTENT[1] - q], dtype=torch.float32)
        if position == "centered":
            s = 2 * s / torch.tensor(EXTENT * 2) - 1
        assert torch.allclose(channels[:, :, i, j], s.expand(2, 4))


def test_position_channels_in_half_precision_are_rounded_once():
    x = torch.zeros(1, 1, 301, 302)
    exact = position_channels(x, position="centered")
    assert torch.equal(position_channels(x.bfloat16(), position="centered"), exact.bfloat16())


@pytest.mark.parametrize("preset", ["recommended", "paper"])
def test_position_channels_are_those_of_the_fused_head(preset):
    """A Φ that passes one position on turns the head into a probe of the positions it uses."""
    network = small("base_f", preset=preset)
    probe = FusedSCP(1, 1, 2, position=network.position)
    affine = [[0.5, -1.0, 7.0], [0.25, 1.5, -2.0]]
    seen = []
    network.encoder.register_module("0", nn.Sequential(nn.Identity(), network.encoder[0]))
    network.encoder[0][0].register_forward_hook(lambda module, args, output: seen.append(args[0]))
    network(image(1, 2, *PATCH), affine=affine, extent=EXTENT)
    for channel in range(4):
        with torch.no_grad():
            for parameter in (*probe.phi.parameters(), probe.residual.weight):
                parameter.zero_()
            # ReLU(s) − ReLU(−s) = s through both hidden layers.
            probe.phi[0].weight[0, channel], probe.phi[0].weight[1, channel] = 1.0, -1.0
            probe.phi[2].weight.copy_(torch.eye(2))
            probe.phi[4].weight.copy_(torch.tensor([[1.0, -1.0]]))
        expected = probe(torch.ones(1, 1, *PATCH), affine=affine, extent=EXTENT)[0, 0]
        assert torch.allclose(seen[0][0, 2 + channel], expected, atol=1e-5)


def crop_of_the_full_image(variant, **kwargs):
    """Logits of a one-level network (no padding effects far inside) on an image and on a crop of it."""
    network = small(variant, levels=1)
    if variant == "scp":
        randomize_phi(network.head)
    full = image(1, 2, *EXTENT)
    rows, columns = (slice(o, o + p) for o, p in zip(ORIGIN, PATCH, strict=True))
    whole = network(full)[..., rows, columns]
    return network, full[..., rows, columns], whole, (slice(None), slice(None), slice(4, -4), slice(4, -4))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_crop_that_says_where_it_lies_gives_the_full_images_logits(variant):
    network, patch, whole, inside = crop_of_the_full_image(variant)
    assert torch.allclose(network(patch, origin=ORIGIN, extent=EXTENT)[inside], whole[inside], atol=1e-5)
    if variant != "base":
        assert not torch.allclose(network(patch)[inside], whole[inside], atol=1e-2)


@pytest.mark.parametrize("variant", ["base_f", "base_b", "scp"])
def test_each_sample_can_lie_elsewhere(variant):
    network = small(variant)
    if variant == "scp":
        randomize_phi(network.head)
    x = image(2, 2, *PATCH)
    origins, extents = torch.tensor([[0, 0], [7, 2]]), torch.tensor([[24, 20], [40, 30]])
    together = network(x, origin=origins, extent=extents)
    for k in range(2):
        alone = network(x[k : k + 1], origin=origins[k], extent=extents[k])
        assert torch.allclose(together[k], alone[0], atol=1e-5)
    assert not torch.allclose(together[1], network(x)[1], atol=1e-2)


@pytest.mark.parametrize("variant", ["base_f", "base_b", "scp"])
def test_constant_position_is_the_centre_for_every_pixel_and_placement(variant):
    control, network = small(variant, constant_position=True), small(variant)
    if variant == "scp":
        randomize_phi(network.head)
    control.load_state_dict(network.state_dict())
    x = image(2, 2, *PATCH)
    centre = [[0.0, 0.0, EXTENT[0] / 2], [0.0, 0.0, EXTENT[1] / 2]]
    expected = network(x, affine=centre, extent=EXTENT)
    assert torch.allclose(control(x, origin=ORIGIN, extent=EXTENT), expected, atol=1e-6)
    assert torch.allclose(control(x), network(x, affine=[[0, 0, 6.0], [0, 0, 5.0]]), atol=1e-6)
    result = control(x, extent=torch.tensor([EXTENT, (31, 40)]))
    assert torch.allclose(result[0], expected[0], atol=1e-6)
    centre = [[0.0, 0.0, 15.5], [0.0, 0.0, 20.0]]
    assert torch.allclose(result[1], network(x, affine=centre, extent=(31, 40))[1], atol=1e-6)
    assert not torch.allclose(network(x), control(x), atol=1e-2)


def test_constant_position_makes_the_weight_field_constant():
    control = small("scp", constant_position=True)
    randomize_phi(control.head)
    network = copy.deepcopy(control)
    network.constant_position = False
    # With equal features at every pixel, logits differ from pixel to pixel only through the positions.
    for net in (control, network):
        net.encoder = nn.ModuleList()
        net.up, net.down, net.last = nn.ModuleList(), nn.ModuleList(), nn.Identity()
    ones = torch.ones(1, 2, 8, 8)
    assert control(ones).std() < 1e-5
    assert network(ones).std() > 1e-2


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_gets_a_gradient(variant):
    network = small(variant).train()
    if variant == "scp":
        randomize_phi(network.head)
    network(image(3, 2, 16, 12)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    assert all((p.grad != 0).any() for p in network.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast(variant):
    network = small(variant)
    x = image(2, 2, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(x)
    assert logits.dtype == torch.bfloat16
    reference = network(x)
    assert (logits.float() - reference).norm() / reference.norm() < 0.05


@pytest.mark.parametrize("variant", VARIANTS)
def test_state_dicts_round_trip(variant):
    one, other = small(variant, seed=0), small(variant, seed=1)
    x = image(1, 2, 8, 8)
    assert not torch.equal(one(x), other(x))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "unet"}, "variant"),
        ({"capacity": 0}, "multiple of 16"),
        ({"capacity": -16}, "multiple of 16"),
        ({"capacity": 100}, "multiple of 16, got 100"),
        ({"levels": 0}, "levels"),
        ({"in_channels": 0}, "in_channels"),
        ({"num_classes": 0}, "num_classes"),
        ({"hidden_channels": 0}, "hidden_channels"),
        ({"preset": "best"}, "preset"),
        ({"position": "metres", "variant": "base_f"}, "position"),
        ({"variant": "base", "constant_position": True}, "constant_position"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_network(**{"variant": "scp", **options})


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (2, 8, 8), (1, 2, 4, 8, 8)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"image: expected \[B, 2, H, W\]"):
        small("scp")(torch.zeros(shape))


@pytest.mark.parametrize("variant", ["base_f", "base_b", "scp"])
@pytest.mark.parametrize(
    "position",
    [
        {"origin": (0, 0), "affine": [[1, 0, 0], [0, 1, 0]]},
        {"origin": (0, 0, 0)},
        {"affine": [[1, 0], [0, 1]]},
        {"extent": (8, 8, 8)},
        {"extent": torch.ones(3, 2)},
    ],
)
def test_positions_of_a_wrong_shape_are_refused_alike(variant, position):
    with pytest.raises(ValueError, match=r"origin|affine|extent"):
        small(variant)(image(2, 2, 8, 8), **position)


def basic_unet(spatial_dims):
    torch.manual_seed(0)
    features = (4, 4, 8, 8, 8, 4)
    return BasicUNet(spatial_dims=spatial_dims, in_channels=1, out_channels=3, features=features).eval()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_attach_leaves_a_monai_networks_outputs_as_they_were(spatial_dims):
    network, x = basic_unet(spatial_dims), image(2, 1, *[32] * spatial_dims)
    before = network(x)
    assert attach(network, "final_conv") is network
    assert isinstance(network.final_conv, FusedSCP)
    assert network.final_conv.spatial_dims == spatial_dims
    assert torch.allclose(network(x), before, atol=1e-5)
    randomize_phi(network.final_conv)
    assert not torch.allclose(network(x), before, atol=1e-2)


def test_attach_by_a_path_into_containers():
    torch.manual_seed(0)
    network = SegResNet(spatial_dims=2, init_filters=8, out_channels=2).eval()
    x = image(1, 1, 16, 16)
    before = network(x)
    attach(network, "conv_final.2")
    assert isinstance(network.conv_final[2], FusedSCP)
    assert torch.allclose(network(x), before, atol=1e-5)


def test_attach_without_zero_initialisation_changes_the_outputs():
    network, x = basic_unet(2), image(1, 1, 32, 32)
    before = network(x)
    attach(network, "final_conv", zero_init=False, position="pixels", hidden_channels=6)
    assert network.final_conv.hidden_channels == (6, 6)
    assert not torch.allclose(network(x), before, atol=1e-2)


def test_attach_keeps_dtype_mode_and_what_was_frozen():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 1)).double().eval()
    network[1].weight.requires_grad_(False)
    attach(network, "1")
    head = network[1]
    assert {p.dtype for p in head.parameters()} == {torch.float64}
    assert not head.training
    assert not head.residual.weight.requires_grad
    assert head.bias.requires_grad and head.phi[0].weight.requires_grad
    assert attach(nn.Sequential(nn.Conv2d(1, 2, 1)).train(), "0")[0].training
    frozen = attach(nn.Sequential(nn.Conv2d(1, 2, 1).requires_grad_(False)), "0")[0]
    assert not frozen.bias.requires_grad and frozen.phi[0].weight.requires_grad


def test_attach_and_the_logit_bias():
    def attached(bias, **options):
        return attach(nn.Sequential(nn.Conv2d(3, 2, 1, bias=bias)), "0", **options)[0].bias

    assert attached(False) is None
    assert torch.equal(attached(False, logit_bias=-3.0), torch.full((2,), -3.0))
    assert torch.equal(attached(True, logit_bias=-3.0), torch.full((2,), -3.0))


def test_a_whole_network_can_be_its_last_layer_alone_only_by_a_path():
    with pytest.raises(ValueError, match="layer: expected the path"):
        attach(nn.Conv2d(1, 1, 1), "")


@pytest.mark.parametrize(
    ("layer", "description"),
    [
        (nn.Conv2d(2, 2, 3, padding=1), r"kernel_size=\(3, 3\)"),
        (nn.Conv2d(2, 2, 1, stride=2), r"stride=\(2, 2\)"),
        (nn.Conv2d(2, 2, 1, padding=1), r"padding=\(1, 1\)"),
        (nn.Conv2d(2, 2, 1, groups=2), "groups=2"),
        (nn.ConvTranspose2d(2, 2, 1), "ConvTranspose2d"),
        (nn.Linear(2, 2), "Linear"),
        (nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU()), "Sequential"),
    ],
)
def test_attach_refuses_other_layers_and_names_what_it_found(layer, description):
    network = nn.ModuleDict({"body": nn.Conv2d(1, 2, 1), "head": layer})
    with pytest.raises(ValueError, match=f"here: body.*'head', which is.*{description}"):
        attach(network, "head")


def test_attach_refuses_a_monai_unet_which_ends_in_a_strided_layer():
    network = UNet(spatial_dims=2, in_channels=1, out_channels=1, channels=(4, 8), strides=(2,))
    with pytest.raises(ValueError, match=r"there is none.*'model\.2', which is ConvTranspose2d"):
        attach(network, "model.2")
    with pytest.raises(ValueError, match="'final', which UNet does not have"):
        attach(network, "final")
