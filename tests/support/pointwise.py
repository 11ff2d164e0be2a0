"""A network that sees one pixel at a time: what it says depends on a pixel's value and place alone."""

import torch
from torch import nn

from scp_models.networks import build_network
from tests.support.heads import randomize_phi

VARIANTS = ("base_f", "base_b", "scp")
"""Networks that are told positions."""


def pointwise(variant, position_dims, capacity=32, **options):
    """Its 3×3 kernels are zero but for their centres, and Φ's weights are random."""
    torch.manual_seed(0)
    network = build_network(variant, capacity=capacity, levels=1, position_dims=position_dims, **options).eval()
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                centre = layer.weight[..., 1, 1].clone()
                layer.weight.zero_()
                layer.weight[..., 1, 1] = 6 * centre
    if variant == "scp":
        randomize_phi(network.head)
    return network
