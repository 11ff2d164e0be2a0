"""Groups of parameters in which a wide Φ learns more slowly."""

import pytest
import torch
from torch import nn

from scp_kernels import FusedSCP, parameter_groups
from tests.operator.test_phi_scale import WIDTHS, weight_steps
from tests.support.heads import make_head


def rates_of(module, learning_rate):
    """Rate of every parameter, by name; each has to be in one group."""
    groups = parameter_groups(module, learning_rate)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rates) == len(list(module.parameters()))
    return {name: rates[id(parameter)] for name, parameter in module.named_parameters()}


def test_up_to_its_limit_a_network_is_one_group_in_its_own_order():
    for width, rate in ((64, 4e-3), (256, 1e-3), ((64, 1024), 1e-3), (8, 3e-2)):
        network = nn.Sequential(nn.Conv2d(3, 4, 3), make_head(width=width))
        (group,) = parameter_groups(network, rate)
        assert group["lr"] == rate
        assert all(own is given for own, given in zip(network.parameters(), group["params"], strict=True))


def test_above_it_every_phi_has_the_rate_of_its_width():
    network = nn.ModuleDict({"last": nn.Conv2d(3, 4, 3), "wide": make_head(width=256), "narrow": make_head(width=64)})
    expected = {"wide.phi": 1e-3, "narrow.phi": 4e-3}
    for name, rate in rates_of(network, 4e-3).items():
        assert rate == expected.get(".".join(name.split(".")[:2]), 4e-3), name
    assert parameter_groups(network, 8e-3)[0]["lr"] == 8e-3, "the rest comes first: what a schedule logs"
    assert set(rates_of(network, 8e-3).values()) == {8e-3, 4e-3, 1e-3}


def test_scaled_heads_have_their_steps_from_the_scale():
    assert set(rates_of(make_head(width=256, phi_scale="adam"), 4e-3).values()) == {4e-3}


def test_layers_that_heads_share_are_in_one_group():
    first = make_head(width=256)
    second = FusedSCP.from_layers(first.phi, nn.Conv2d(4, 2, 1, bias=False))
    rates = rates_of(nn.ModuleList([first, second]), 4e-3)
    assert sorted(set(rates.values())) == [1e-3, 4e-3] and rates["1.residual.weight"] == 4e-3
    wider = make_head(width=(256, 1024))
    wider.phi[0] = first.phi[0]
    for heads in ([first, wider], [wider, first]):
        shared = next(rate for name, rate in rates_of(nn.ModuleList(heads), 4e-3).items() if "phi.0.weight" in name)
        assert shared == 5e-4


@pytest.mark.parametrize("rate", [-1e-3, float("nan")])
def test_what_is_no_rate_or_no_network_is_refused(rate):
    with pytest.raises(ValueError, match="learning_rate: expected at least 0"):
        parameter_groups(make_head(), rate)
    with pytest.raises(TypeError, match="module: expected a network, got generator"):
        parameter_groups(make_head().parameters(), 1e-3)


def test_optimizers_take_them_frozen_parameters_and_none():
    head = make_head(width=256)
    head.phi.requires_grad_(False)
    optimizer = torch.optim.AdamW(parameter_groups(head, 4e-3), weight_decay=1e-2)
    assert [group["lr"] for group in optimizer.param_groups] == [4e-3, 1e-3]
    assert {group["weight_decay"] for group in optimizer.param_groups} == {1e-2}
    assert parameter_groups(nn.ReLU(), 4e-3) == []


def test_the_step_of_the_weights_does_not_grow_with_the_width():
    ratios = [weight_steps("adam", width, 1.0, grouped=True) for width in WIDTHS]
    assert ratios[0] == weight_steps("adam", 64, 1.0)
    assert max(ratios) <= 1.1 * min(ratios) and 1.5 * ratios[2] < weight_steps("adam", 256, 1.0), ratios


def test_nor_does_it_of_anchored_heads():
    ratios = [weight_steps("adam", width, 1.0, grouped=True, anchored=True) for width in WIDTHS]
    assert max(ratios) == ratios[0] < 0.75 * weight_steps("adam", 64, 1.0), ratios
