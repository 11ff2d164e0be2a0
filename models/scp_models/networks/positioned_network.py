"""A network whose input carries its positions along, as channels beside its own."""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from scp_kernels import FusedSCP, affine_of_coordinates, positioned

READING_POINTS = 32
"""Voxels along each axis of what is valid, at most, of which the affine map of a large patch is read."""


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
        image_channels: how many of the network's own channels lie before the coordinate channels, where others lie
            behind them; None: all of them.

    Raises:
        ValueError: a network without such a head, or one of another K.
    """

    def __init__(
        self,
        network: nn.Module,
        position_dims: int,
        *,
        coordinates_as: str = "affine",
        image_channels: int | None = None,
    ) -> None:
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
        self.image_channels = image_channels

    def forward(self, image: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the network returns for its own channels of ``image``, ``[B, C + K + 1, *spatial]``.

        A network in half precision gets these in its own dtype; the whole of ``image`` stays in float32 or float64,
        since fewer bits do not hold a position.

        Raises:
            ValueError: positions that are not affine in the index, see :func:`scp_kernels.scp`.
            TypeError: positions in half precision.
        """
        own, coordinates = self.split(image)
        extent = torch.ones(self.position_dims, device=image.device)
        affine = read_map(coordinates, extent, self.coordinates_as)
        with positioned(self.network, affine=affine, extent=extent):
            return self.network(self._in_its_dtype(own), *args, **kwargs)

    def _in_its_dtype(self, own: Tensor) -> Tensor:
        dtype = next((p.dtype for p in self.network.parameters() if p.is_floating_point()), own.dtype)
        return own.to(dtype) if dtype in (torch.float16, torch.bfloat16) else own

    def split(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The network's own channels ``[B, C, *spatial]``, and the coordinate channels ``[B, K + 1, *spatial]``.

        Raises:
            ValueError: there are too few channels for both.
        """
        count = self.position_dims + 1
        before = image.shape[1] - count if self.image_channels is None else self.image_channels
        if before < 1 or image.shape[1] < before + count:
            raise ValueError(
                f"image: expected channels of its own and {count} of positions behind them, "
                f"got shape {list(image.shape)}"
            )
        own = image[:, :before]
        if image.shape[1] > before + count:
            own = torch.cat([own, image[:, before + count :]], 1)
        return own, image[:, before : before + count].detach()


def read_map(coordinates: Tensor, extent: Tensor, coordinates_as: str) -> Tensor:
    """The map ``[B, K, d + 1]`` of coordinate channels, see :func:`scp_kernels.affine_of_coordinates`.

    An affine map is known from some 16 to 32 voxels along each axis of what is valid, and reading takes as long as
    there are many. All voxels decide the closest map of positions that are not affine, and any map of an exported
    network, whose sizes are not known yet.
    """
    if coordinates_as != "affine" or torch.compiler.is_exporting():
        return affine_of_coordinates(coordinates, extent, coordinates_as=coordinates_as)
    if hasattr(coordinates, "as_tensor"):  # MONAI's MetaTensor, whose own bookkeeping would follow
        coordinates = coordinates.as_tensor()
    if all(size < 2 * READING_POINTS for size in coordinates.shape[2:]) or coordinates.numel() == 0:
        return affine_of_coordinates(coordinates, extent)
    chosen, first, steps = _some_voxels(coordinates)
    affine = affine_of_coordinates(chosen, extent)
    slopes = affine[..., :-1] / (steps[:, None] if affine.ndim == 3 else steps)
    moved = slopes * (first[:, None] if affine.ndim == 3 else first)  # no product of matrices: autocast would halve it
    return torch.cat([slopes, affine[..., -1:] - moved.sum(-1, keepdim=True)], -1)


def _some_voxels(coordinates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Channels at equally spaced voxels of the smallest box around a sample's valid ones; the first voxel ``[B, d]``
    and the steps ``[B, d]``. A box of the whole picture could have next to nothing but padding on its lattice.
    """
    batch, channels, *shape = coordinates.shape
    dims, device = len(shape), coordinates.device

    def along(values: Tensor, axis: int) -> Tensor:  # [B, …] of one axis, as of a picture
        return values.reshape(batch, *(values.shape[1] if a == axis else 1 for a in range(dims)))

    # Which of these are valid, to the last digit, the reading tells. Bytes: PyTorch's `any` goes one by one.
    valid = (coordinates[:, -1] > 0.5).to(torch.uint8)
    places, inside, first, steps = [], [], [], []
    for axis, size in enumerate(shape):
        line = valid.amax(tuple(1 + a for a in range(dims) if a != axis))  # [B, n]
        low, high = line.argmax(1), size - 1 - line.flip(1).argmax(1)
        step = (high - low) // READING_POINTS + 1
        place = low[:, None] + step[:, None] * torch.arange(min(size, READING_POINTS), device=device)
        inside.append(along(place <= high[:, None], axis))
        places.append(along(place.clamp(max=size - 1), axis)[:, None])
        first.append(low)
        steps.append(step)
    of_all = [
        torch.arange(n, device=device).reshape(-1, *[1] * after) for n, after in ((batch, dims + 1), (channels, dims))
    ]
    chosen = coordinates[(*of_all, *places)]
    within = functools.reduce(torch.logical_and, inside)
    chosen = torch.cat([chosen[:, :-1], torch.where(within[:, None], chosen[:, -1:], 0.0)], 1)
    return chosen, torch.stack(first, 1), torch.stack(steps, 1)
