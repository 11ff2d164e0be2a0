"""Segmenting whole studies: NIfTI in, NIfTI out in the source's grid and affine."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray

from scp_models.checkpoints import TrainedModel
from scp_models.data.find import find_subjects, subject_of_images
from scp_models.data.foreground import CropLoss, describe_crop
from scp_models.data.frames import SlicePositions, slice_positions
from scp_models.data.preprocessing import SourceGrid, Volume, VolumeReader
from scp_models.data.subjects import Subject
from scp_models.data.tasks import Task
from scp_models.errors import Failures, UserError
from scp_models.files import atomic_path
from scp_models.notes import note


@dataclass(frozen=True)
class Segmentation:
    """One study's prediction on the network's grid, and the way back to the source's."""

    subject: Subject
    probabilities: NDArray[np.float32]
    """``[H, W, Z]`` of the target, or ``[1 + N, H, W, Z]`` of N classes, the background first."""
    grid: SourceGrid
    threshold: float
    crop_loss: CropLoss = field(default_factory=CropLoss)
    """What of the study the network did not see."""

    def mask(self) -> NDArray[np.uint8]:
        """1 where a lesion is predicted, or the classes' numbers from 1 on, in the source's grid ``[x, y, z]``; 0
        outside the crop that the network saw.
        """
        if self.grid.task.classes:
            return self.grid.restore_classes(self.probabilities)
        return self.grid.restore(self.probabilities, self.threshold)

    def label_map(self) -> NDArray[np.integer[Any]]:
        """The mask in the values of the label files: of a class with several values its first."""
        if not self.grid.task.classes:
            return self.mask()
        largest = _largest(self.grid.task)
        dtype: type[np.integer[Any]] = np.uint8 if largest < 2**8 else np.int16 if largest < 2**15 else np.int32
        values = np.array([0, *(members[0] for _, members in self.grid.task.classes)], dtype)
        return values[self.mask()]

    def source_probabilities(self) -> NDArray[np.float32]:
        """Probabilities in the source's grid ``[x, y, z]``, 0 outside the crop; or ``[x, y, z, 1 + N]`` of N classes,
        the background first, which has the rest.
        """
        if not self.grid.task.classes:
            return self.grid.restore(self.probabilities)
        classes = [self.grid.restore(p) for p in self.probabilities[1:]]
        return np.stack([np.clip(1 - sum(classes), 0, 1), *classes], axis=-1)


class Predictor:
    """Segments subjects with one model, a few slices at a time.

    Args:
        model: its task says how images are read.
        threshold: of probabilities; None: the model's own.
        batch_size: slices at a time.
        device: None: a GPU if there is one.
    """

    def __init__(
        self,
        model: TrainedModel,
        *,
        threshold: float | None = None,
        batch_size: int = 14,
        device: torch.device | str | None = None,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.network = model.network.to(self.device).eval()
        self.memory_format = model.memory_format
        self.threshold = model.threshold if threshold is None else threshold
        self.batch_size = batch_size
        self.reader = VolumeReader(model.task)

    def segment(self, subject: Subject) -> Segmentation:
        """Read and segment one subject.

        Raises:
            UserError: its files cannot be read.
        """
        volume = self.reader.read(subject, with_label=False)
        positions = slice_positions(self.reader.task, subject, volume.geometry)
        probabilities = self.probabilities(volume, positions)
        return Segmentation(subject, probabilities, volume.grid, self.threshold, volume.crop_loss)

    def mask_of(self, subject: Subject) -> tuple[NDArray[np.uint8], SourceGrid]:
        """The predicted mask, or the classes' numbers, in the source's grid ``[x, y, z]``, and that grid."""
        segmentation = self.segment(subject)
        return segmentation.mask(), segmentation.grid

    @torch.inference_mode()
    def probabilities(self, volume: Volume, positions: SlicePositions | None = None) -> NDArray[np.float32]:
        """Probability of the target at every voxel of the network's grid, ``[H, W, Z]``; or of the background and each
        of N classes, ``[1 + N, H, W, Z]``.

        Args:
            volume: what the network sees.
            positions: where its slices lie; None: counted from the slices' own borders (the frame ``slice``).
        """
        slices = volume.image.transpose(3, 0, 1, 2)
        outputs = self.reader.task.num_outputs
        out = np.empty((outputs, *volume.image.shape[1:]), np.float32)
        for start in range(0, len(slices), self.batch_size):
            part = slice(start, start + self.batch_size)
            batch = torch.from_numpy(np.ascontiguousarray(slices[part])).to(self.device)
            batch = batch.contiguous(memory_format=self.memory_format)
            places = {} if positions is None else {k: v.to(self.device) for k, v in positions.of(part).items()}
            logits = self.network(batch, **places).float()
            p = (logits.sigmoid() if outputs == 1 else logits.softmax(dim=1)).cpu().numpy()
            out[..., start : start + len(p)] = p.transpose(1, 2, 3, 0)
        return out[0] if outputs == 1 else out


def write_segmentation(segmentation: Segmentation, folder: Path, probabilities: bool = False) -> list[Path]:
    """Write ``<subject>.nii.gz``, and ``<subject>_probabilities.nii.gz`` (float32) if asked for.

    The first is a mask in uint8, or classes in the values of the label files, int16 or int32 where these need it.
    Header, affine and units are the source's. Files appear whole or not at all.

    Raises:
        UserError: the folder cannot be written, or a file of the subject itself would be replaced.
    """
    check_folder([segmentation.subject], folder, probabilities)
    mask_name, *others = _file_names(segmentation.subject, probabilities)
    arrays: dict[str, NDArray[np.generic]] = {mask_name: segmentation.label_map()}
    arrays |= {name: segmentation.source_probabilities() for name in others}
    written = []
    for name, array in arrays.items():
        header = segmentation.grid.file.header.copy()
        header.set_data_dtype(array.dtype)
        header["scl_slope"], header["scl_inter"] = 1, 0
        header["cal_min"], header["cal_max"] = 0, 1 if array.dtype.kind == "f" else _largest(segmentation.grid.task)
        # A header that spoke of four axes speaks of three now.
        header.set_data_shape(array.shape)
        image = nib.Nifti1Image(array, segmentation.grid.file.stored_affine, header)
        if (folder / name).exists():
            note(f"{folder / name}: replaced by the prediction for {segmentation.subject.images[0]}")
        with atomic_path(folder / name) as path:
            nib.save(image, path)
        written.append(folder / name)
    return written


def check_folder(subjects: Iterable[Subject], folder: Path, probabilities: bool = False) -> None:
    """Refuse to write predictions where an image or reference of one of the subjects would be replaced.

    Raises:
        UserError: one would be.
    """
    subjects = list(subjects)
    sources = {file.resolve() for s in subjects for file in (*s.images, *([s.label] if s.label else []))}
    for subject in subjects:
        for name in _file_names(subject, probabilities):
            if (folder / name).resolve() in sources:
                raise UserError(
                    f"{folder / name}: expected another folder for predictions, there they would replace what they are "
                    "made from"
                )


def _file_names(subject: Subject, probabilities: bool) -> list[str]:
    """Of a subject's mask, and of its probabilities if they are wanted."""
    return [f"{subject.name}.nii.gz", *([f"{subject.name}_probabilities.nii.gz"] if probabilities else [])]


def _largest(task: Task) -> int:
    """The largest value of a label map."""
    return max([1, *(members[0] for _, members in task.classes)])


def predict(
    predictor: Predictor,
    subjects: Iterable[Subject],
    folder: Path,
    probabilities: bool = False,
    failures: Failures | None = None,
) -> Iterator[Path]:
    """Segment subjects one after the other and write their files; gives each path once it is written.

    At the end there is a note if the crop to the network's slices cut off part of them.

    Args:
        predictor: the model.
        subjects: who are segmented.
        folder: of the files.
        probabilities: write them too.
        failures: takes subjects who cannot be read, and passes over them; None: the first one is an error.

    Raises:
        UserError: an image cannot be read, or a file cannot be written.
    """
    failures = failures or Failures(fail_fast=True)
    losses = []
    for subject in subjects:
        segmentation = None
        with failures.skip(subject.name):
            segmentation = predictor.segment(subject)
        if segmentation is not None:
            losses.append((subject.name, segmentation.crop_loss))
            yield from write_segmentation(segmentation, folder, probabilities)
    hint = "a network trained with --data.spacing or a larger --data.roi_size sees more"
    if line := describe_crop(predictor.reader.task.roi_size, losses, hint):
        note(line)


def subjects_of(
    inputs: Sequence[Path],
    images: Sequence[Path],
    task: Task,
    layout: str = "auto",
    failures: Failures | None = None,
) -> list[Subject]:
    """The subjects to segment.

    Args:
        inputs: subjects' folders, volumes, data sets, datalists.
        images: the modalities of one more subject.
        task: gives the modalities.
        layout: of the inputs.
        failures: takes subjects of which a file is missing, and of several inputs those in which nobody is found;
            None: the first one is an error.

    Raises:
        UserError: nothing to segment, nothing found, or a subject that is there twice.
    """
    if not inputs and not images:
        raise UserError("predict: expected what to segment, a folder, a volume or --image, none was given")
    alone = len(inputs) + bool(images) == 1
    subjects: list[Subject] = []
    for path in inputs:
        with nullcontext() if failures is None or alone else failures.skip(str(path)):
            subjects += find_subjects(path, task, layout, failures)
    if images:
        subjects.append(subject_of_images(images, task))
    names = [subject.name for subject in subjects]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"{(images or inputs)[-1]}: expected every subject's name once, got {doubled[0]!r} from several inputs"
        )
    return subjects
