"""Heads and images for tests of networks."""

import torch


def randomize_phi(head, seed=1):
    """Give Φ a last layer that makes weights of order 1, so that positions matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.phi[4].parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return head


def image(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
