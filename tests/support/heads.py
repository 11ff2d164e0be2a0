"""Heads, networks around them, and images."""

import torch
from torch import nn

from scp_kernels import FusedSCP
from tests.support.backend_names import device_of


def make_head(backend="auto", channels=4, num_classes=2, width=16, *, seed=0, **options):
    """A head with a seed's weights, where its backend's tensors live; centered, unless ``options`` say otherwise."""
    torch.manual_seed(seed)
    head = FusedSCP(channels, num_classes, width, backend=backend, **{"position": "centered", **options})
    return head if "device" in options else head.to(device_of(backend))


def randomize_phi(head, seed=1):
    """Give Φ a last layer that makes weights of order 1, so that positions matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.phi[4].parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return head


def network_of_a_head(channels, classes, pooled=False, **options):
    """A network that is its head with a random Φ alone, at full size or at half of it, and the head."""
    from scp_models.networks import attach  # without which the operator's tests do

    before = nn.AvgPool2d(2) if pooled else nn.Identity()
    network = nn.Sequential(before, nn.Conv2d(channels, classes, 1)).eval()
    randomize_phi(attach(network, "1", **options)[1])
    return network, network[1]


def image(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
