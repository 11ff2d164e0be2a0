"""Sliding windows over an image, for networks whose head asks where each window lies."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scp_kernels import affine_of_coordinates, positioned
from scp_models.networks.mirroring import MirrorAxes, average_over_mirrors
from scp_models.networks.positions import PositionLike


def sliding_window(
    network: nn.Module,
    image: Tensor,
    roi_size: Sequence[int] | int,
    sw_batch_size: int = 4,
    *,
    affine: PositionLike | None = None,
    extent: PositionLike | None = None,
    coordinates: Tensor | None = None,
    coordinates_as: str = "affine",
    mirror_axes: Sequence[int] = (),
    **options: Any,
) -> Any:
    """MONAI's ``sliding_window_inference``, with every window at its own place in ``image``.

    Where the image is smaller than the window, MONAI pads it on both sides first, and gives coordinates in what is
    padded; here they are those in the image itself, negative in the padding.

    Args:
        network: holds a :class:`scp_kernels.FusedSCP` (see :func:`attach`).
        image: the full image, ``[B, C, H, W]`` or ``[B, C, D, H, W]``; it stands before any :func:`positioned` around.
        roi_size, sw_batch_size, options: as in MONAI's function.
        affine: ``[K, d + 1]`` or ``[B, K, d + 1]``, from an index of the image to its position, where that is not the
            index itself: a slice of a volume, a frame of the patient. ``extent`` goes with it.
        extent: ``[K]`` or ``[B, K]``; None: the image's size.
        coordinates: ``[B, K, *spatial]``, or with a channel of validity: the position of every pixel of the image, in
            the place of ``affine``; read once for all windows. ``coordinates_as``: see
            :func:`scp_kernels.affine_of_coordinates`.
        mirror_axes: spatial axes along which windows are mirrored too, 0 the first; logits are the mean over all 2ⁿ
            mirrored windows (test-time augmentation), each of which is told its mirrored positions.

    Returns:
        What MONAI's function returns: logits of the image's size, or a tuple or dict of them.

    Raises:
        ValueError: the network has no such head; ``affine`` and ``coordinates``, or one of them without ``extent``; a
            ``condition`` of MONAI's with ``mirror_axes``, which would have to be mirrored too and is not.
    """
    if mirror_axes and options.get("condition") is not None:
        raise ValueError("condition: expected none with mirror_axes, it would not be mirrored with the windows")
    # Importing MONAI takes two seconds, which a network alone need not wait for.
    from monai.inferers.utils import sliding_window_inference
    from monai.utils.misc import fall_back_tuple

    size = tuple(image.shape[2:])
    window = fall_back_tuple(roi_size, size)
    padding = [max(w - s, 0) // 2 for w, s in zip(window, size, strict=True)]
    maps, extents = _of_samples(image, affine, extent, coordinates, coordinates_as)

    def predict(windows: Tensor, places: Sequence[Sequence[slice]], *args: Any, **kwargs: Any) -> Any:
        starts = [[axis.start - p for axis, p in zip(c[2:], padding, strict=True)] for c in places]
        samples = torch.tensor([c[0].start for c in places], device=maps.device)
        linear, offset = maps[samples, :, :-1], maps[samples, :, -1:]
        offset = offset + linear @ torch.tensor(starts, dtype=maps.dtype, device=maps.device)[:, :, None]

        def at(mirrored: Tensor, axes: MirrorAxes) -> Any:
            # Index i of a mirrored axis of n pixels is index n − 1 − i of the window.
            step, last = torch.ones(len(size)).to(maps), torch.zeros(len(size), 1).to(maps)
            for axis in axes:
                step[axis], last[axis] = -1, windows.shape[2 + axis] - 1
            affine = torch.cat([linear * step, offset + linear @ last], 2)
            with positioned(network, affine=affine, extent=extents[samples]):
                return network(mirrored, *args, **kwargs)

        return average_over_mirrors(at, windows, mirror_axes)

    return sliding_window_inference(image, roi_size, sw_batch_size, predict, with_coord=True, **options)


def _of_samples(
    image: Tensor,
    affine: PositionLike | None,
    extent: PositionLike | None,
    coordinates: Tensor | None,
    coordinates_as: str,
) -> tuple[Tensor, Tensor]:
    """Affine maps ``[B, K, d + 1]`` and extents ``[B, K]`` of the samples of an image, in float64."""
    batch, dims = len(image), image.ndim - 2
    if affine is not None and coordinates is not None:
        raise ValueError("affine, coordinates: expected at most one of the two, which say the same")
    if extent is None:
        if affine is not None or coordinates is not None:
            raise ValueError("extent: expected the sizes of the space that positions are measured in, got none")
        extent = list(image.shape[2:])
    for name, given in (("affine", affine), ("extent", extent)):
        if isinstance(given, Tensor) and given.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(
                f"{name}: expected float32 or float64 (fewer bits do not hold a pixel's position), got {given.dtype}"
            )
    sizes = torch.as_tensor(extent, dtype=torch.float64)
    if coordinates is not None:
        maps = affine_of_coordinates(coordinates, sizes, coordinates_as=coordinates_as).double()
    elif affine is not None:
        maps = torch.as_tensor(affine, dtype=torch.float64)
    else:
        maps = torch.eye(dims, dims + 1, dtype=torch.float64)
    axes = sizes.shape[-1]
    for name, value, shape in (("affine", maps, (axes, dims + 1)), ("extent", sizes, (axes,))):
        if tuple(value.shape) not in (shape, (batch, *shape)):
            expected = f"{list(shape)}, or {[batch, *shape]} for one per sample"
            raise ValueError(f"{name}: expected shape {expected}, got {list(value.shape)}")
    return maps.expand(batch, axes, dims + 1), sizes.to(maps.device).expand(batch, axes)
