"""Sliding windows over an image, for networks whose head asks where each window lies."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scp_kernels import positioned


def sliding_window(
    network: nn.Module, image: Tensor, roi_size: Sequence[int] | int, sw_batch_size: int = 4, **options: Any
) -> Any:
    """MONAI's ``sliding_window_inference``, with every window at its own place in ``image``.

    Where the image is smaller than the window, MONAI pads it on both sides first, and gives coordinates in what is
    padded; here they are those in the image itself, negative in the padding.

    Args:
        network: holds a :class:`scp_kernels.FusedSCP` (see :func:`attach`).
        image: the full image, ``[B, C, H, W]`` or ``[B, C, D, H, W]``; it stands before any :func:`positioned` around.
        roi_size, sw_batch_size, options: as in MONAI's function.

    Returns:
        What MONAI's function returns: logits of the image's size, or a tuple or dict of them.

    Raises:
        ValueError: the network has no such head.
    """
    # Importing MONAI takes two seconds, which a network alone need not wait for.
    from monai.inferers.utils import sliding_window_inference
    from monai.utils.misc import fall_back_tuple

    size = tuple(image.shape[2:])
    window = fall_back_tuple(roi_size, size)
    padding = [max(w - s, 0) // 2 for w, s in zip(window, size, strict=True)]

    def predict(windows: Tensor, coordinates: Sequence[Sequence[slice]], *args: Any, **kwargs: Any) -> Any:
        starts = [[axis.start - p for axis, p in zip(c[2:], padding, strict=True)] for c in coordinates]
        with positioned(network, origin=torch.tensor(starts, dtype=torch.float64), extent=size):
            return network(windows, *args, **kwargs)

    return sliding_window_inference(image, roi_size, sw_batch_size, predict, with_coord=True, **options)
