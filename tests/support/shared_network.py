"""A network whose calls the tests of positioned() tell apart."""

import torch
from torch import nn

from scp_kernels import FusedSCP

HERE = {"origin": (30.0, 31.0), "extent": (64.0, 70.0)}
THERE = {"affine": [[0.0, 1.0, 7.0], [-1.0, 0.0, 50.0]], "extent": (60.0, 71.0)}


class Shared:
    """A network that several share, a batch, and the right logits without a context, here and there."""

    def __init__(self, *, pooled: bool = False) -> None:
        torch.manual_seed(0)
        self.head = FusedSCP(4, 2, 16, position="centered", backend="reference")
        self.network = nn.Sequential(nn.AvgPool2d(2) if pooled else nn.Identity(), self.head)
        self.x = torch.randn(2, 4, 8, 10)
        self.plain = self.call()

    @torch.no_grad()
    def logits(self, **position) -> torch.Tensor:
        return self.head(self.x, **position)

    @torch.no_grad()
    def call(self) -> torch.Tensor:
        return self.network(self.x)

    def is_plain(self) -> bool:
        return torch.equal(self.call(), self.plain)
