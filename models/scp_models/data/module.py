"""``SegmentationDataModule``: subjects, splits, cache and loaders, for Lightning."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch.distributed
from torch.utils.data import Dataset, DistributedSampler

from scp_models.data.augmentation import AUGMENTATIONS, Augmentation, AugmentedSlices, AugmentOptions
from scp_models.data.classes import describe_classes
from scp_models.data.description import task_of_data_set
from scp_models.data.duplicates import describe_duplicates
from scp_models.data.find import find_subjects
from scp_models.data.sampling import SAMPLINGS, make_sampler
from scp_models.data.slices import (
    SliceCache,
    SliceDataset,
    default_cache_dir,
    note_volumes,
    temporary_cache_dir,
)
from scp_models.data.splits import describe_split, read_split, split_subjects
from scp_models.data.subjects import Subject
from scp_models.data.tasks import SLICE_FRAME
from scp_models.data.timing import TimedDataLoader
from scp_models.data.transforms import read_transform, transform_path
from scp_models.errors import Failures, UserError
from scp_models.files import ensure_writable
from scp_models.notes import note


class SegmentationDataModule(L.LightningDataModule):
    """Slices of a segmentation data set, divided by subjects.

    Batches are dicts of ``image`` ``[B, C, H, W]`` float32, ``label`` ``[B, 1, H, W]`` uint8 (0 background, 1 target,
    2 ignored; with several classes their numbers from 1 on, and 255 ignored) and ``subject`` ``[B]`` int64; and, unless
    the frame is ``slice``, where each slice lies in it: ``affine`` ``[B, 3, 3]`` and ``extent`` ``[B, 3]``, float32.
    The order of training slices depends on ``seed`` and the epoch alone, and so does augmentation, so that a resumed
    run sees what the uninterrupted one would have. Slices for validation are never augmented.

    Args:
        root: a data set in one of the known layouts: see ``layout``.
        task: ``"wmh"`` or ``"lits"``: preset of modalities, preprocessing, meaning of labels.
        modalities: names of the input channels; None: the ``dataset.json``'s, if the data set has one, or the preset's.
        target: value or values in the label files that are the target, against all else; None: the ``dataset.json``'s
            only label, or the preset's, unless there are classes.
        ignored: value or values that are neither trained on nor scored, ``[]`` for none; None: the ``dataset.json``'s
            ``ignore``, or the preset's.
        window: intensities clipped to this and mapped to [−1, 1], ``[]`` for the z-score; None: the preset's.
        sampling: ``"subjects"``: an epoch has as many slices of every subject; ``"slices"``, the paper's: every slice
            once, so that subjects with thin slices count for more. None: ``"subjects"``, and on the command line
            ``"slices"`` with ``--model.preset paper``.
        resize: slices are resized to ``roi_size``, or cropped and padded around their centre; None: the preset's.
        spacing: pixel size in mm to which slices are resampled before the crop, one number or two (left-right,
            back-front); None: that of the files.
        frame: what positions are measured in: ``"slice"``, the paper's, from the borders of the slice as the network
            sees it; ``"image"``, in the volume's grid; ``"foreground"``, in the box of the body or head; or the path of
            each subject's transform, with ``{subject}`` and ``{folder}`` for its name and folder: see docs/frames.md.
            None: ``"slice"`` in Python; on the command line ``"foreground"``, and ``"slice"`` with ``--model.preset
            paper``.
        frame_box: with a transform: lower and upper corner, in mm, of the box in its template that positions are
            measured in; None: MNI152's.
        classes: exclusive classes instead of one target: ``"all"`` for every foreground label of the ``dataset.json``,
            a list of label values or names, or values by name, ``{"liver": 1, "tumour": [2, 3]}``; its key
            ``background`` names values that are none of them. None: all, where the ``dataset.json`` has several that
            are not the preset's and no target is given; otherwise one target.
        label_affine: whether a label lies where its own ``header`` says or on its ``image``'s voxels; None or ``auto``:
            measured where the two disagree.
        augment: how slices for training are changed: ``"none"``, ``"spatial"`` (moved and mirrored, their positions
            with them), ``"intensity"`` or ``"all"``: see docs/augmentation.md. None: ``"none"`` in Python; on the
            command line ``"all"``, and ``"none"`` with ``--model.preset paper``.
        augment_options: how often and how far.
        layout: ``"auto"``, ``"wmh"``, ``"lits"``, ``"datalist"`` or ``"nnunet"``.
        roi_size: height and width of slices; None: the task's (160 × 224, 256 × 256).
        batch_size: slices in a batch, on each device. An incomplete last batch of training is dropped (batch norm over
            one or two slices is noise), unless it is the only one.
        split: subjects (or fractions) for training, validation and test; None: the paper's, scaled to the subjects
            there are. Subjects that the data set publishes for validation or test stay that.
        split_file: JSON of three lists of names, instead.
        seed: of split, order and augmentation.
        num_workers: processes that read and augment slices. None: 0 in Python, where the network waits for what is
            done to slices; 2 on the command line.
        cache_dir: where preprocessed slices are kept; None: ``$XDG_CACHE_HOME/scp_models``.
        pin_memory: for copies to a GPU.

    Attributes:
        task_options: what of the preset is replaced, for :func:`scp_models.data.get_task`; None: nothing.
        subjects: after ``setup``: the lists ``training``, ``validation``, ``test``.
    """

    def __init__(
        self,
        root: str,
        task: str = "wmh",
        layout: str = "auto",
        roi_size: tuple[int, int] | None = None,
        batch_size: int = 14,
        split: Sequence[float] | None = None,
        split_file: str | None = None,
        seed: int = 0,
        num_workers: int | None = None,
        cache_dir: str | None = None,
        pin_memory: bool = False,
        modalities: list[str] | None = None,
        target: int | list[int] | None = None,
        ignored: int | list[int] | None = None,
        window: list[float] | None = None,
        resize: bool | None = None,
        sampling: str | None = None,
        spacing: float | list[float] | None = None,
        label_affine: str | None = None,
        frame: str | None = None,
        frame_box: list[float] | None = None,
        augment: str | None = None,
        augment_options: AugmentOptions = AugmentOptions(),  # noqa: B008 - it is frozen
        classes: dict[str, int | list[int]] | list[int | str] | str | None = None,
    ) -> None:
        super().__init__()
        augment, sampling = augment or "none", sampling or "subjects"
        if augment not in AUGMENTATIONS:
            raise UserError(f"augment: expected one of {', '.join(AUGMENTATIONS)}, got {augment!r}")
        if batch_size < 1:
            raise UserError(f"batch_size: expected at least 1, got {batch_size}")
        if sampling not in SAMPLINGS:
            raise UserError(f"sampling: expected one of {SAMPLINGS}, got {sampling!r}")
        self.sampling = sampling
        self.augment = augment
        self.augment_options = augment_options
        self.root = Path(root)
        self.task, self.task_options = task_of_data_set(
            root,
            task,
            roi_size,
            modalities=modalities,
            target=target,
            ignored=ignored,
            window=window,
            resize=resize,
            spacing=spacing,
            label_affine=label_affine,
            # Named only where it is not the default, so that checkpoints of one kind of training are alike.
            frame=None if frame == SLICE_FRAME else frame,
            frame_box=frame_box,
            classes=classes,
        )
        self.layout = layout
        self.batch_size = batch_size
        self.split = tuple(split) if split is not None else self.task.split
        self.split_file = split_file
        self.seed = seed
        self.num_workers = num_workers or 0
        self.cache = SliceCache(Path(cache_dir) if cache_dir else default_cache_dir(), self.task)
        self.pin_memory = pin_memory
        self.subjects: dict[str, list[Subject]] = {}

    @property
    def augmentation(self) -> dict[str, Any]:
        """What decides how slices are changed, for checkpoints: ``augment``, and its options unless it is ``none``."""
        options = {} if self.augment == "none" else asdict(self.augment_options)
        return {"augment": self.augment, **options}

    @property
    def train_subjects(self) -> list[Subject]:
        return self.subjects["training"]

    @property
    def val_subjects(self) -> list[Subject]:
        return self.subjects["validation"]

    @property
    def test_subjects(self) -> list[Subject]:
        return self.subjects["test"]

    def divide(self) -> dict[str, list[Subject]]:
        """The three lists of subjects; reads no image."""
        subjects = find_subjects(self.root, self.task, self.layout)
        if self.split_file is not None:
            return read_split(Path(self.split_file), subjects)
        return split_subjects(subjects, self.split, self.seed, str(self.root))

    def describe_split(self) -> str:
        """One line: the counts of the division and where they come from; reads no image."""
        return describe_split(self.divide(), self.split_file or f"drawn with seed {self.seed}")

    def prepare_data(self) -> None:
        """Preprocess what the cache does not have yet, on one process of each node."""
        from rich.progress import track

        subjects = self.divide()
        wanted = [s for part in ("training", "validation") for s in subjects[part]]
        if self.task.has_transforms:
            for subject in wanted:
                read_transform(transform_path(self.task.frame, subject))
        missing = [s for s in wanted if not all(path.is_file() for path in self.cache.paths(s))]
        if missing:
            ensure_writable(self.cache.folder)
            if self.cache.folder == temporary_cache_dir():
                note(
                    f"there is no home folder to write to: preprocessed slices are kept in {self.cache.folder} "
                    "(--data.cache_dir or XDG_CACHE_HOME choose another folder)"
                )
            failures = Failures()
            for subject in track(missing, description="Preprocessing", transient=True):
                with failures.skip(subject.name):
                    self.cache.prepare(subject)
            if failures.messages:
                (_, first), *others = failures.messages.items()
                for _, message in others:
                    note(message)
                more = f" (and {len(others)} more: {', '.join(other for other, _ in others)})" if others else ""
                raise UserError(first + more)
        for line in describe_duplicates(subjects, "--data.split_file keeps them together"):
            note(line)
        note_volumes(self.cache, wanted, str(self.root), "--data.spacing or --data.roi_size lets the network see more")
        self._check_target(subjects["training"])

    def _check_target(self, subjects: Sequence[Subject]) -> None:
        """A training without a single target voxel learns that there is none, and scores 1."""
        missing = self._missing_classes(subjects)
        if len(missing) < max(1, len(self.task.classes)):
            for number in missing:
                name = describe_classes(self.task.classes[number - 1 : number])
                note(
                    f"{self.root}: the class {name} has no voxel in any of {len(subjects)} training subjects: it "
                    "cannot be learnt"
                )
            return
        labels = sorted({label for subject in subjects for label in self.cache.reader.stored_labels(subject)})
        cropped = set(labels) & set(self.task.target)
        option = "--data.classes" if self.task.classes else "--data.target"
        where = (
            f"inside slices of {self.task.roi_size[0]} × {self.task.roi_size[1]}" if cropped else "in the references"
        )
        raise UserError(
            f"{self.root}: expected the target label {list(self.task.target)} {where} of at least one of "
            f"{len(subjects)} training subjects, found none; the files hold the labels {labels} "
            f"({'--data.roi_size' if cropped else option} chooses)"
        )

    def _missing_classes(self, subjects: Sequence[Subject]) -> list[int]:
        """Numbers of the classes, or of the target, that no subject has a voxel of."""
        missing = list(range(1, max(2, self.task.num_outputs)))
        for subject in subjects:
            label = self.cache.open(subject)[1]
            missing = [number for number in missing if not (label == number).any()]
            if not missing:
                break
        return missing

    def setup(self, stage: str | None = None) -> None:
        self.subjects = self.divide()

    def train_dataloader(self) -> TimedDataLoader:
        dataset = SliceDataset(self.cache, self.train_subjects)
        sampler = make_sampler(self.sampling, dataset, self.seed, *_replicas(), numbered=self.augment != "none")
        drop_last = len(sampler) >= self.batch_size
        if self.augment == "none":
            return self._loader(dataset, sampler, drop_last)
        augmentation = Augmentation(self.augment, self.augment_options, self.task.ignored_label)
        return self._loader(AugmentedSlices(dataset, augmentation, self.seed), sampler, drop_last)

    def val_dataloader(self) -> TimedDataLoader:
        replicas, rank = _replicas()
        dataset = SliceDataset(self.cache, self.val_subjects, multiple_of=replicas)
        sampler: DistributedSampler[object] = DistributedSampler(dataset, replicas, rank, shuffle=False)
        return self._loader(dataset, sampler, drop_last=False)

    def _loader(self, dataset: Dataset[Any], sampler: DistributedSampler[object], drop_last: bool) -> TimedDataLoader:
        return TimedDataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.pin_memory,
        )


def _replicas() -> tuple[int, int]:
    """Number of processes and this one's rank."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size(), torch.distributed.get_rank()
    return 1, 0
