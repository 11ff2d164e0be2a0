"""Segmenting whole studies: NIfTI in, NIfTI out in the source's grid and affine."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray

from scp_models.data import SourceGrid, Subject, Volume, VolumeReader
from scp_models.files import atomic_path
from scp_models.training.module import SegmentationModule


@dataclass(frozen=True)
class Segmentation:
    """One study's prediction on the network's grid, and the way back to the source's."""

    subject: Subject
    probabilities: NDArray[np.float32]
    """``[H, W, Z]``."""
    grid: SourceGrid
    threshold: float

    def mask(self) -> NDArray[np.uint8]:
        """1 where a lesion is predicted, in the source's grid ``[x, y, z]``; 0 outside the crop that the network
        saw.
        """
        return self.grid.restore(self.probabilities, self.threshold)

    def source_probabilities(self) -> NDArray[np.float32]:
        """Probabilities in the source's grid ``[x, y, z]``; 0 outside the crop."""
        return self.grid.restore(self.probabilities)


class Predictor:
    """Segments subjects with one module, a few slices at a time.

    Args:
        module: a trained module; its task says how images are read.
        threshold: of probabilities; None: the module's own.
        batch_size: slices at a time.
        device: None: a GPU if there is one.
    """

    def __init__(
        self,
        module: SegmentationModule,
        *,
        threshold: float | None = None,
        batch_size: int = 14,
        device: torch.device | str | None = None,
    ) -> None:
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.module = module.to(device).eval()
        self.threshold = module.threshold if threshold is None else threshold
        self.batch_size = batch_size
        self.reader = VolumeReader(module.task)

    def segment(self, subject: Subject) -> Segmentation:
        """Read and segment one subject.

        Raises:
            UserError: its files cannot be read.
        """
        volume = self.reader.read(subject, with_label=False)
        return Segmentation(subject, self.probabilities(volume), volume.grid, self.threshold)

    @torch.inference_mode()
    def probabilities(self, volume: Volume) -> NDArray[np.float32]:
        """Probability of the target at every voxel of the network's grid, ``[H, W, Z]``."""
        slices = volume.image.transpose(3, 0, 1, 2)
        out = np.empty(volume.image.shape[1:], np.float32)
        for start in range(0, len(slices), self.batch_size):
            batch = torch.from_numpy(np.ascontiguousarray(slices[start : start + self.batch_size]))
            p = self.module(batch.to(self.module.device)).float().sigmoid()[:, 0].cpu().numpy()
            out[..., start : start + len(p)] = p.transpose(1, 2, 0)
        return out


def write_segmentation(segmentation: Segmentation, folder: Path, probabilities: bool = False) -> list[Path]:
    """Write ``<subject>.nii.gz`` (uint8), and ``<subject>_probabilities.nii.gz`` (float32) if asked for.

    Header, affine and units are the source's. Files appear whole or not at all.

    Raises:
        UserError: the folder cannot be written.
    """
    arrays: dict[str, NDArray[np.generic]] = {f"{segmentation.subject.name}.nii.gz": segmentation.mask()}
    if probabilities:
        arrays[f"{segmentation.subject.name}_probabilities.nii.gz"] = segmentation.source_probabilities()
    written = []
    for name, array in arrays.items():
        header = segmentation.grid.header.copy()
        header.set_data_dtype(array.dtype)
        header["scl_slope"], header["scl_inter"] = 1, 0
        header["cal_min"], header["cal_max"] = 0, 1
        # A header that spoke of four axes speaks of three now.
        header.set_data_shape(array.shape)
        image = nib.Nifti1Image(array, segmentation.grid.affine, header)
        with atomic_path(folder / name) as path:
            nib.save(image, path)
        written.append(folder / name)
    return written


def predict(predictor: Predictor, subjects: Iterable[Subject], folder: Path, probabilities: bool = False) -> list[Path]:
    """Segment subjects one after the other and write their files; returns all paths."""
    return [
        path for subject in subjects for path in write_segmentation(predictor.segment(subject), folder, probabilities)
    ]
