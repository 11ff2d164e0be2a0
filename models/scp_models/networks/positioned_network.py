"""A network whose input carries its positions along, as channels behind its own."""

from typing import Any

import torch
from torch import Tensor, nn

from scp_kernels import FusedSCP, positioned


class PositionedNetwork(nn.Module):
    """Takes coordinate channels off its input and tells them to the heads of the network inside.

    Whatever cuts windows from the input, mirrors or pads it moves its positions too, and needs to know nothing of them:
    trainers, sliding windows, test-time augmentation of any library. The network inside gets its own channels alone, so
    that pretrained weights fit.

    Args:
        network: holds a :class:`scp_kernels.FusedSCP` (see :func:`attach`).
        position_dims: K. Channels behind the network's own are p as fractions of the extent, K of them, and one of
            validity, 1 inside of the picture (:class:`scp_models.monai.AddCoordinatesd` makes them).
        coordinates_as: ``"affine"``, or ``"least_squares"`` where elastic deformations are among the augmentations:
            see :func:`scp_kernels.affine_of_coordinates`.

    Raises:
        ValueError: a network without such a head, or one of another K.
    """

    def __init__(self, network: nn.Module, position_dims: int, *, coordinates_as: str = "affine") -> None:
        super().__init__()
        heads = {path: module for path, module in network.named_modules() if isinstance(module, FusedSCP)}
        if not heads:
            raise ValueError(f"network: expected a FusedSCP somewhere in it, got {type(network).__name__}")
        for path, head in heads.items():
            if head.position_dims != position_dims:
                raise ValueError(
                    f"position_dims: expected {head.position_dims}, as the head {path!r} has, got {position_dims}"
                )
        self.network = network
        self.position_dims = position_dims
        self.coordinates_as = coordinates_as

    def forward(self, image: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the network returns for the first channels of ``image``, ``[B, C + K + 1, *spatial]``.

        Raises:
            ValueError: positions that are not affine in the index, see :func:`scp_kernels.scp`.
            TypeError: positions in half precision.
        """
        own = image.shape[1] - self.position_dims - 1
        if own < 1:
            raise ValueError(
                f"image: expected channels of its own and {self.position_dims + 1} of positions behind them, "
                f"got shape {list(image.shape)}"
            )
        coordinates = image[:, own:].detach()
        extent = torch.ones(self.position_dims, device=image.device)
        with positioned(self.network, coordinates=coordinates, extent=extent, coordinates_as=self.coordinates_as):
            return self.network(image[:, :own], *args, **kwargs)
