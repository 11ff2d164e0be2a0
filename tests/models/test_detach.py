"""Taking heads out again, and heads behind layers that stay."""

import copy
import pickle

import pytest
import torch
from monai.networks.nets import BasicUNet, UNet
from torch import nn

from scp_kernels import FusedSCP, positioned
from scp_models.networks import attach, detach
from tests.support.heads import image, randomize_phi


def attached(conv=nn.Conv2d, bias=True, **options):
    torch.manual_seed(0)
    network = nn.Sequential(conv(1, 4, 3, padding=1), conv(4, 2, 1, bias=bias)).eval()
    return attach(network, "1", **options)


@pytest.mark.parametrize("conv", [nn.Conv2d, nn.Conv3d])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("more", [0, 1])
def test_a_head_that_is_told_one_position_becomes_a_convolution(conv, bias, more):
    """With as many position axes as the map has, or one more."""
    dims = 2 if conv is nn.Conv2d else 3
    axes = dims + more
    network = attached(conv, bias, position_dims=axes)
    randomize_phi(network[1])
    x = image(2, 1, *(8, 7, 6)[:dims])
    place = {"affine": [[0.0] * dims + [float(5 * k + 3)] for k in range(axes)], "extent": [40.0] * axes}
    with positioned(network, **place):
        expected = network(x)
    with pytest.raises(ValueError, match="1: expected weights that do not depend on the position"):
        detach(network)
    assert isinstance(network[1], FusedSCP)
    assert detach(network, "1", **place) is network
    assert type(network[1]) is conv and (network[1].bias is not None) == bias
    assert torch.allclose(network(x), expected, rtol=1e-5, atol=1e-5)


def test_weights_of_units_that_see_no_position_are_constant_too():
    network = attached(hidden_channels=(3, 2), anchored=False)
    x, head = image(1, 1, 6, 6), randomize_phi(network[1])
    with torch.no_grad():
        head.phi[2].weight.zero_()
        head.phi[2].bias.fill_(0.5)
        head.phi[4].bias.fill_(0.25)
    expected = network(x)
    with torch.no_grad():
        head.phi[0].weight[1] = 0  # and one more that would matter only through a unit that sees it
    detach(network)
    assert torch.allclose(network(x), expected, rtol=1e-5, atol=1e-6)


def test_one_weight_on_the_way_is_enough_to_refuse():
    network = attached(hidden_channels=(3, 2))
    with torch.no_grad():
        network[1].phi[4].weight[0, 1] = 1e-3
    with pytest.raises(ValueError, match="expected weights that do not depend"):
        detach(network)


def test_an_untrained_head_gives_back_the_layer_with_its_names_dtype_and_what_was_frozen():
    torch.manual_seed(0)
    network = BasicUNet(2, 1, 2, features=(4, 4, 4, 4, 4, 4)).double().eval()
    network.final_conv.weight.requires_grad_(False)
    before, x = copy.deepcopy(network), image(1, 1, 32, 32).double()
    attach(network, "final_conv")
    network = pickle.loads(pickle.dumps(network))  # it is remembered in pickles and copies
    detach(network)
    assert set(network.state_dict()) == set(before.state_dict())
    assert torch.equal(network(x), before(x))
    assert network.final_conv.weight.dtype == torch.float64
    assert not network.final_conv.weight.requires_grad and network.final_conv.bias.requires_grad
    assert not network.final_conv.training


def test_the_state_dict_and_the_submodules_know_nothing_of_the_replaced_layer():
    network = attached()
    assert not [name for name in network.state_dict() if "replaced" in name]
    assert len([m for m in network.modules() if isinstance(m, nn.Conv2d)]) == 1


def test_a_logit_bias_stays_where_the_convolution_had_none():
    network = attached(bias=False, logit_bias=-2.0)
    detach(network)
    assert torch.equal(network[1].bias, torch.full((2,), -2.0))


def test_a_head_that_was_not_attached_becomes_a_convolution():
    network = nn.Sequential(nn.Identity(), FusedSCP(4, 2, spatial_dims=3, zero_init=True))
    x = image(1, 4, 3, 4, 5)
    expected = network(x)
    assert torch.allclose(detach(network)(x), expected, atol=1e-6)
    assert type(network[1]) is nn.Conv3d and network[1].bias is None


def test_an_untrained_head_on_slices_is_taken_out_wherever_they_lie():
    network, x = attached(position_dims=3), image(2, 1, 8, 7)
    with positioned(network, origin=(4, 0, 0), extent=(9, 8, 7)):
        expected = network(x)
    detach(network)
    assert type(network[1]) is nn.Conv2d
    assert torch.allclose(network(x), expected, rtol=1e-5, atol=1e-6)


def test_a_kept_layer_with_a_head_behind_it():
    torch.manual_seed(0)
    network = UNet(2, 1, 3, channels=(4, 8), strides=(2,)).eval()
    before, x = copy.deepcopy(network), image(2, 1, 16, 16)
    attach(network, "model.2", keep_layer=True, hidden_channels=8)
    assert torch.equal(network(x), before(x))
    trained = copy.deepcopy(network)
    detach(network)
    assert set(network.state_dict()) == set(before.state_dict())
    with torch.no_grad():
        trained.model[2][1].residual.weight[0, 1] = 0.5
    expected = trained(x)
    detach(trained)
    assert isinstance(trained.model[2][1], nn.Conv2d)
    assert torch.allclose(trained(x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("nowhere", "layer: expected the path of a layer, got 'nowhere', which Sequential does not have"),
        ("0", "got '0', which is ReLU"),
        ("", "got '', which is Sequential"),
    ],
)
def test_only_layers_that_tell_their_channels_can_be_kept(layer, message):
    with pytest.raises(ValueError, match=message):
        attach(nn.Sequential(nn.ReLU(), nn.Conv2d(1, 2, 3)), layer, keep_layer=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "0"}, r"layer: expected the path of a head \(here: 1\), got '0'"),
        ({"affine": [[0, 0, 1], [0, 0, 1]]}, "affine, extent: expected both or neither"),
        ({"extent": (4, 4)}, "affine, extent: expected both or neither"),
        ({"affine": [[1, 0, 1], [0, 0, 1]], "extent": (4, 4)}, "with zeros in all but the last column"),
        ({"affine": [[0, 0, 1]] * 3, "extent": (4, 4, 4)}, r"affine: expected \[2, 3\]"),
    ],
)
def test_detach_says_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        detach(attached(), **options)


def test_a_network_without_heads_and_a_head_alone_are_refused():
    for network in (nn.Sequential(nn.Conv2d(1, 1, 1)), FusedSCP(2)):
        with pytest.raises(ValueError, match="network: expected a FusedSCP somewhere inside"):
            detach(network)


def test_nothing_is_replaced_if_one_head_cannot_be():
    network = nn.Sequential(FusedSCP(2, 2, zero_init=True), FusedSCP(2, 2))
    with pytest.raises(ValueError, match="1: expected weights"):
        detach(network)
    assert isinstance(network[0], FusedSCP)
