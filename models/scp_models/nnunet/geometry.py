"""Where the voxels of a preprocessed image lie in the patient, by what nnU-Net keeps of the image's file."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scp_models.data.foreground import CoarseGrid, find_foreground, foreground_box
from scp_models.data.geometry import LPS_TO_RAS, field_of_view
from scp_models.data.tasks import FOREGROUND

POSITION_DIMS = 3
"""Axes of positions: to the right, to the front, to the top; of 2-D configurations too, whose slices have a height."""
POSITION_CHANNELS = POSITION_DIMS + 1
"""Coordinate channels, and one of validity, which is 0 where padding has filled."""


def file_affine(properties: Mapping[str, Any]) -> NDArray[np.float64]:
    """``[4, 4]``: index ``(k, j, i)`` of the array that nnU-Net's reader gave to mm in the patient, RAS+.

    A reader that keeps no orientation (PNG, TIFF, arrays from memory) leaves the spacing: the axes are taken to run to
    the top, to the front and to the right then.
    """
    if "nibabel_stuff" in properties:
        kept = properties["nibabel_stuff"]
        affine = np.array(kept.get("reoriented_affine", kept["original_affine"]), float)
    elif "sitk_stuff" in properties:
        kept = properties["sitk_stuff"]
        dims = len(kept["spacing"])
        spatial = min(dims, 3)  # a file of several modalities has them along the last axis
        direction = np.array(kept["direction"], float).reshape(dims, dims)[:spatial, :spatial]
        affine = np.eye(4)
        affine[:spatial, :spatial] = direction * np.abs(kept["spacing"][:spatial])
        affine[:spatial, 3] = kept["origin"][:spatial]
        affine = LPS_TO_RAS @ affine
    else:
        affine = np.diag([*map(float, properties["spacing"][::-1]), 1.0])
    return affine[:, [2, 1, 0, 3]]


def grid_affine(
    properties: Mapping[str, Any], transpose_forward: Sequence[int], shape: Sequence[int]
) -> NDArray[np.float64]:
    """``[4, 4]``: index of a preprocessed image to mm in the patient, RAS+.

    Args:
        properties: what nnU-Net's preprocessor says of the image.
        transpose_forward: of the plans; axis n of the preprocessed image is axis ``transpose_forward[n]`` of the array.
        shape: ``[3]`` of the preprocessed image.
    """
    cropped = np.array(properties["shape_after_cropping_and_before_resampling"], float)
    low = np.array([bounds[0] for bounds in properties["bbox_used_for_cropping"]], float)
    scale = cropped / np.array(shape, float)
    to_uncropped = np.diag([*scale, 1.0])
    to_uncropped[:3, 3] = 0.5 * scale - 0.5 + low  # resampling keeps the outer borders of the grid
    to_array = np.zeros((4, 4))
    to_array[[*transpose_forward, 3], range(4)] = 1
    return file_affine(properties) @ to_array @ to_uncropped


def position_affine(
    image: NDArray[np.floating], outside: NDArray[np.bool_] | None, affine: NDArray[np.float64], frame: str
) -> NDArray[np.float64]:
    """``[3, 4]``: index of a preprocessed image to its position, which is 0 and 1 at the frame's borders.

    A function of the preprocessed image alone, so that training on existing data and prediction agree.

    Args:
        image: ``[z, y, x]``, its first channel, normalised or not.
        outside: where the image was found to be zero, which normalisation may have made anything; None: nowhere.
        affine: ``[4, 4]``, index to mm, RAS+.
        frame: ``"foreground"``, the box of the head or body, or ``"image"``, the box of what is left of the image.
            Without foreground the latter stands in.
    """
    z, y, x = image.shape
    if frame == "foreground":
        grid = CoarseGrid(affine, (z, y, x), FOREGROUND)
        coarse = np.asarray(image[grid.chosen], np.float32)
        if outside is not None:
            coarse = np.where(outside[grid.chosen], coarse.min(), coarse)
        box, _ = foreground_box(find_foreground(coarse, grid))
    else:
        box = field_of_view(affine, (z, y, x))
    result = affine[:3].copy()
    result[:, 3] -= box[0]
    return result / (box[1] - box[0])[:, None]
