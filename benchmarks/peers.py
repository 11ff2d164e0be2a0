"""What the operator is measured against: the same head as others write it, and the plain head that it replaces."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scp_kernels import FusedSCP, backends, scp_reference


@dataclass(frozen=True)
class Case:
    """One size of the paper: widths of Φ, channels of the features, image, batch."""

    hidden: int
    channels: int
    batch: int
    height: int = 160
    width: int = 224

    def __str__(self) -> str:
        return f"h{self.hidden}-c{self.channels}-b{self.batch}-{self.height}x{self.width}"

    def features(self) -> Tensor:
        g = torch.Generator().manual_seed(0)
        return torch.randn(self.batch, self.channels, self.height, self.width, generator=g)

    def head(self, backend: str = "reference") -> FusedSCP:
        torch.manual_seed(0)
        return FusedSCP(self.channels, hidden_channels=self.hidden, backend=backend)


CASES = [Case(h, c, b) for h, c in ((64, 8), (128, 16), (256, 32)) for b in (1, 14)]


class PaperStyle(nn.Module):
    """The operator as the paper describes it: positions expanded over the batch, 1×1 convolutions, W materialized."""

    def __init__(self, head: FusedSCP) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for layer in head.phi:
            if isinstance(layer, nn.Linear):
                convolution = nn.Conv2d(layer.in_features, layer.out_features, 1)
                convolution.load_state_dict(
                    {k: v[..., None, None] if v.ndim == 2 else v for k, v in layer.state_dict().items()}
                )
                layer = convolution
            layers.append(layer)
        self.phi = nn.Sequential(*layers)
        self.residual = nn.Conv2d(head.in_channels, head.num_classes, 1, bias=False)
        self.residual.load_state_dict({"weight": head.residual.weight[..., None, None]})

    def forward(self, features: Tensor) -> Tensor:
        batch, channels, height, width = features.shape
        i = torch.arange(height, dtype=features.dtype, device=features.device)[:, None].expand(height, width)
        j = torch.arange(width, dtype=features.dtype, device=features.device)[None, :].expand(height, width)
        s = torch.stack([i, j, height - i, width - j]).expand(batch, -1, -1, -1).contiguous()
        weight = self.phi(s).unflatten(1, (-1, channels))
        return (weight * features[:, None]).sum(2) + self.residual(features)


def peers(case: Case) -> dict[str, Callable[[Tensor], Tensor]]:
    """Everything that is timed in one run, by name; all but ``plain 1x1`` compute the same function."""
    head = case.head()
    found: dict[str, Callable[[Tensor], Tensor]] = {
        "plain 1x1": nn.Conv2d(case.channels, 1, 1, bias=False),
        "paper-style": PaperStyle(head),
    }
    for name, status in backends().items():
        if status.usable:
            found[name] = case.head(name)
    return found


def truth(case: Case, features: Tensor) -> Tensor:
    """Float64 logits of the case's head."""
    head = case.head().double()
    phi = [p for k in (0, 2, 4) for p in (head.phi[k].weight, head.phi[k].bias)]
    with torch.no_grad():
        return scp_reference(features.double(), phi, head.residual.weight)
