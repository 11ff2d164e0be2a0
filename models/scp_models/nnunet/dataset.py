"""nnU-Net's preprocessed images with coordinate channels behind them, made where they are asked for."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from numpy.typing import NDArray

from scp_models.data.geometry import coordinate_channels
from scp_models.nnunet.geometry import POSITION_CHANNELS, grid_affine, position_affine


def find_positions(
    data: Any, seg: Any, properties: dict[str, Any], transpose_forward: Sequence[int], frame: str
) -> NDArray[np.float64]:
    """:func:`position_affine` of a preprocessed image and the segmentation that says where it was zero (−1)."""
    affine = grid_affine(properties, transpose_forward, data.shape[1:])
    if frame == "image":
        return position_affine(np.empty(data.shape[1:], bool), None, affine, frame)
    return position_affine(data[0], np.asarray(seg[0]) == -1, affine, frame)


class PositionedArray:
    """An image ``[C, z, y, x]`` and 4 coordinate channels, of which only the part that is indexed exists."""

    def __init__(self, data: Any, affine: NDArray[np.float64]) -> None:
        self.data = data
        self.affine = affine
        self.shape = (data.shape[0] + POSITION_CHANNELS, *data.shape[1:])
        self.dtype = data.dtype
        self.ndim = 4

    def __getitem__(self, index: Any) -> NDArray[np.floating]:
        """``[:]``, or all channels of a part: ``[:, z0:z1, y0:y1, x0:x1]``."""
        spatial = (slice(None),) * 3 if index == slice(None) else index[1:]
        axes = [np.arange(n)[part] for n, part in zip(self.shape[1:], spatial, strict=True)]
        channels = coordinate_channels(self.affine, axes)
        return np.concatenate([np.asarray(self.data[(slice(None), *spatial)]), channels])


class PositionedDataset(nnUNetBaseDataset):  # type: ignore[misc]
    """A preprocessed data set whose images have coordinate channels.

    Frames are found when an image is first loaded, by each process that loads.
    """

    def __init__(self, dataset: nnUNetBaseDataset, transpose_forward: Sequence[int], frame: str) -> None:
        self.dataset = dataset
        self.identifiers = dataset.identifiers
        self.source_folder = dataset.source_folder
        self.transpose_forward = list(transpose_forward)
        self.frame = frame
        self._affines: dict[str, NDArray[np.float64]] = {}

    def load_case(self, identifier: str) -> tuple[PositionedArray, Any, Any, dict[str, Any]]:
        """Image, segmentation, that of the previous stage or None, and properties."""
        data, seg, seg_prev, properties = self.dataset.load_case(identifier)
        if identifier not in self._affines:
            self._affines[identifier] = find_positions(data, seg, properties, self.transpose_forward, self.frame)
        return PositionedArray(data, self._affines[identifier]), seg, seg_prev, properties

    @staticmethod
    def save_case(data: Any, seg: Any, properties: Any, output_filename_truncated: str) -> None:
        """Never: nothing of this is kept on disk."""
        raise NotImplementedError("PositionedDataset.save_case: coordinate channels are not written to disk")

    @staticmethod
    def get_identifiers(folder: str) -> list[str]:
        """See :class:`PositionedDatasets`, which knows what kind of files there are."""
        raise NotImplementedError("PositionedDataset.get_identifiers: ask PositionedDatasets")


class PositionedDatasets:
    """What stands in for a dataset class in nnU-Net's trainer: makes :class:`PositionedDataset` of the class's own."""

    def __init__(self, dataset_class: Any, transpose_forward: Sequence[int], frame: str) -> None:
        self.dataset_class = dataset_class
        self.transpose_forward = transpose_forward
        self.frame = frame
        self.get_identifiers = dataset_class.get_identifiers
        self.unpack_dataset = dataset_class.unpack_dataset

    def __call__(self, *args: Any, **kwargs: Any) -> PositionedDataset:
        return PositionedDataset(self.dataset_class(*args, **kwargs), self.transpose_forward, self.frame)
