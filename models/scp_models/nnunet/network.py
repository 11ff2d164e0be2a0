"""A planned network whose segmentation layers are told where its patch lies, by channels of its input."""

import re

import torch
from torch import Tensor, nn

from scp_models.errors import UserError
from scp_models.networks import PositionedNetwork, attach
from scp_models.nnunet.geometry import POSITION_CHANNELS, POSITION_DIMS

_SEGMENTATION_LAYER = re.compile(r"(.*\.)?seg_layers\.\d+")


class PlannedNetwork(PositionedNetwork):
    """A :class:`scp_models.networks.PositionedNetwork` that nnU-Net takes for the network inside.

    It has that network's parameters, buffers and modules as its own, under the same names, so that nnU-Net finds
    ``decoder`` where it looks for it, and weights of a plain network fit. Its input has the channels of
    the image, the coordinates and the previous stage, in this order.

    Args:
        network: of the image's channels and what a previous stage adds; with :class:`scp_kernels.FusedSCP` for
            segmentation layers, of 3 position axes.
        input_channels: of the network.
        image_channels: how many of these lie before the coordinate channels.
    """

    def __init__(self, network: nn.Module, input_channels: int, image_channels: int) -> None:
        super().__init__(network, POSITION_DIMS, image_channels=image_channels)
        for name in ("_modules", "_parameters", "_buffers"):
            object.__setattr__(self, name, getattr(network, name))
        object.__setattr__(self, "network", network)  # no submodule: its names would get a prefix
        self.input_channels = input_channels

    # Compiled networks run this as it is, and the network inside as a graph: contexts are none of a graph's.
    forward = torch.compiler.disable(PositionedNetwork.forward, recursive=False)

    def train(self, mode: bool = True) -> "PlannedNetwork":
        """Of the inner network's own flag too."""
        self.network.training = mode
        return super().train(mode)

    def split(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The network's own channels, and the coordinate channels.

        Raises:
            UserError: there are no coordinate channels.
        """
        expected = self.input_channels + POSITION_CHANNELS
        if image.shape[1] != expected:
            raise UserError(
                f"nnUNetTrainerSCP: expected {expected} channels, of which {POSITION_CHANNELS} are coordinates, "
                f"got {image.shape[1]}; data come from nnU-Net's predictor or from this trainer's data sets"
            )
        return super().split(image)


def attach_to_segmentation_layers(network: nn.Module, hidden_channels: int) -> None:
    """Put a head in the place of every layer ``seg_layers.N``, whatever its resolution.

    Raises:
        UserError: the network has no such layers.
    """
    layers = [name for name, _ in network.named_modules() if _SEGMENTATION_LAYER.fullmatch(name)]
    if not layers:
        raise UserError(
            f"nnUNetTrainerSCP: expected a network with segmentation layers seg_layers.0, seg_layers.1 …, as nnU-Net "
            f"plans them, got {type(network).__name__}"
        )
    for layer in layers:
        # nnU-Net trains with SGD, and docs/nnunet.md was measured with s = 1.
        attach(network, layer, hidden_channels=hidden_channels, position_dims=POSITION_DIMS, anchored=False)
