"""A planned network whose segmentation layers are told where its patch lies, by channels of its input."""

import re
from typing import Any

import torch
from torch import Tensor, nn

from scp_kernels import affine_of_coordinates, positioned
from scp_models.errors import UserError
from scp_models.networks import attach
from scp_models.nnunet.geometry import POSITION_CHANNELS, POSITION_DIMS

_SEGMENTATION_LAYER = re.compile(r"(.*\.)?seg_layers\.\d+")


class PlannedNetwork(nn.Module):
    """Takes coordinate channels off its input, and gives them to the heads of ``backbone``.

    It has the backbone's parameters, buffers and modules as its own, under the same names, so that nnU-Net finds
    ``decoder`` where it looks for it, and weights of a plain network fit.

    Args:
        backbone: the network of ``image_channels`` and what a previous stage adds; with :class:`scp_kernels.FusedSCP`
            for segmentation layers, of 3 position axes.
        input_channels: of the backbone.
        image_channels: how many channels of the input lie before the coordinate channels.
    """

    backbone: nn.Module

    def __init__(self, backbone: nn.Module, input_channels: int, image_channels: int) -> None:
        super().__init__()
        for name in ("_modules", "_parameters", "_buffers"):
            object.__setattr__(self, name, getattr(backbone, name))
        object.__setattr__(self, "backbone", backbone)  # no submodule: its names would get a prefix
        self.input_channels = input_channels
        self.image_channels = image_channels

    def train(self, mode: bool = True) -> "PlannedNetwork":
        """Of the backbone's own flag too."""
        self.backbone.training = mode
        return super().train(mode)

    # Compiled networks run this as it is, and the backbone as a graph: contexts are none of a graph's.
    @torch.compiler.disable(recursive=False)
    def forward(self, data: Tensor) -> Any:
        """The backbone's outputs for ``[B, image + 4 + previous stage, *spatial]``.

        Raises:
            UserError: there are no coordinate channels.
        """
        expected = self.input_channels + POSITION_CHANNELS
        if data.shape[1] != expected:
            raise UserError(
                f"nnUNetTrainerSCP: expected {expected} channels, of which {POSITION_CHANNELS} are coordinates, "
                f"got {data.shape[1]}; data come from nnU-Net's predictor or from this trainer's data sets"
            )
        coordinates = data[:, self.image_channels :][:, :POSITION_CHANNELS]
        image = torch.cat([data[:, : self.image_channels], data[:, self.image_channels + POSITION_CHANNELS :]], 1)
        # An affine map is known from some 32 to 64 voxels along each axis, and reading takes as long as there are many.
        steps = [max(size // 32, 1) for size in data.shape[2:]]
        chosen: Any = (..., *(slice(None, None, step) for step in steps))
        extent = torch.ones(POSITION_DIMS, device=data.device)
        affine = affine_of_coordinates(coordinates[chosen].float(), extent)
        for axis, step in enumerate(steps):
            affine[..., axis] /= step
        with positioned(self.backbone, affine=affine, extent=extent):
            return self.backbone(image)


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
        attach(network, layer, hidden_channels=hidden_channels, position_dims=POSITION_DIMS, phi_scale=1.0)
