"""Forms of the head that the paper discusses and the product does not have, for ablations.

Each changes a network that :func:`scp_models.networks.build_network` made, before it is trained. Heads stay
:class:`scp_kernels.FusedSCP`, so that a network tells them where its pixels lie.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scp_kernels import FusedSCP
from scp_models.networks import SegmentationNetwork


class PixelwiseBias(FusedSCP):
    """Eq. 11 with its second term: Φ gives a bias at every pixel beside W, as the weight of a channel of ones."""

    def __init__(self, in_channels: int, hidden_channels: Any, **options: Any) -> None:
        super().__init__(in_channels + 1, 1, hidden_channels, **options)

    def forward(self, features: Tensor, *arguments: Any, **positions: Any) -> Tensor:
        return super().forward(torch.cat([features, torch.ones_like(features[:, :1])], 1), *arguments, **positions)


class ScaleAndShift(FusedSCP):
    """Eq. 10: ``Y = wᵀ (X ∘ P + Q)``; Φ gives P and Q, 2·C numbers per pixel, evaluated at every pixel.

    ``residual`` holds what P and Q begin with where Φ begins with 0: 1 and 0. Positions are those of the slice's own
    borders, or shared by the batch.
    """

    def __init__(self, in_channels: int, hidden_channels: Any, **options: Any) -> None:
        super().__init__(in_channels, 2, hidden_channels, **options)
        assert isinstance(self.residual, nn.Linear)
        with torch.no_grad():
            self.residual.weight.copy_(torch.tensor([[1.0], [0.0]]).expand(2, in_channels))
        self.classifier = nn.Conv2d(in_channels, 1, 1, bias=False)
        if self.bias is not None:
            # One class: the operator's own bias has one number for P and one for Q.
            self.logit_bias = nn.Parameter(self.bias.detach()[:1].clone())
            self.register_parameter("bias", None)

    def forward(self, features: Tensor, *arguments: Any, **positions: Any) -> Tensor:
        scale, shift = self.weight_field(features.shape[2:], **positions)
        logits = self.classifier(features * scale + shift)
        bias = getattr(self, "logit_bias", None)
        return logits if bias is None else logits + bias


def _head(network: SegmentationNetwork) -> FusedSCP:
    if not isinstance(network.head, FusedSCP):
        raise ValueError(f"network: expected an SCP head to change, got {network.variant!r}")
    return network.head


def _options(head: FusedSCP) -> dict[str, Any]:
    """What a head of another form takes over."""
    return {
        "phi_scale": 1.0 if head.phi_scale is None else float(head.phi_scale),
        "position_dims": head.position_dims,
        "position": head.position,
        "anchored": head.anchored,
        "zero_init": head.zero_init,
        "bias": head.bias is not None,
        "bias_init": head.bias_init,
        "backend": head.backend,
    }


def pixelwise_bias(network: SegmentationNetwork) -> None:
    head = _head(network)
    network.head = PixelwiseBias(head.in_channels, head.hidden_channels, **_options(head))


def scale_and_shift(network: SegmentationNetwork) -> None:
    head = _head(network)
    network.head = ScaleAndShift(head.in_channels, head.hidden_channels, **_options(head))


def _with(**changes: Any) -> Callable[[SegmentationNetwork], None]:
    """The same head with other options."""

    def change(network: SegmentationNetwork) -> None:
        head = _head(network)
        options = {**_options(head), **changes}
        network.head = FusedSCP(head.in_channels, head.num_classes, head.hidden_channels, **options)

    return change


def last_relu(network: SegmentationNetwork) -> None:
    """The layer before the head with its ReLU, as printed."""
    network.last.append(nn.ReLU(inplace=True))


FORMS: dict[str, Callable[[SegmentationNetwork], None]] = {
    "pixelwise bias": pixelwise_bias,
    "scale and shift": scale_and_shift,
    "default initialisation": _with(zero_init=False),  # Φ's last layer as PyTorch does it, not at zero
    "no logit bias": _with(bias=False),
    "last ReLU": last_relu,
    "scaled": _with(phi_scale="adam"),  # W's steps with Adam as small as a convolution's
    "half scaled": _with(phi_scale="sgd"),  # between that and none: the scale for SGD
}
"""What ``Network.change`` names."""
