"""Which masks of which subjects are scored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scp_models.checkpoints import load_model
from scp_models.data.description import task_of_data_set
from scp_models.data.find import find_subjects
from scp_models.data.names import match_names
from scp_models.data.preprocessing import VolumeReader
from scp_models.data.splits import note_unlabelled, read_split, split_subjects
from scp_models.data.subjects import Subject
from scp_models.data.tasks import Task, with_label_affine
from scp_models.errors import Failures, UserError
from scp_models.evaluation.predictions import PredictionFiles
from scp_models.evaluation.scores import MaskSource
from scp_models.inference.predictor import Predictor


@dataclass(frozen=True)
class DataSet:
    """A data set with references, and the part of it to score."""

    root: Path
    layout: str = "auto"
    split: str = "test"
    """``"training"``, ``"validation"``, ``"test"`` or ``"all"``."""
    split_file: Path | None = None
    """Divides the subjects instead of what the checkpoint records, or the seed."""
    label_affine: str | None = None
    """Which affine of its references counts; None: what the checkpoint records, or ``auto``."""

    def subjects(self, task: Task, failures: Failures) -> list[Subject] | None:
        """The subjects to score, where neither a checkpoint nor a seed has to say who they are.

        ``failures`` takes those of which a file is missing.
        """
        if self.split == "all":
            everyone = find_subjects(self.root, task, self.layout, failures)
            note_unlabelled([subject for subject in everyone if subject.partition != "training"], str(self.root))
            return [subject for subject in everyone if subject.label is not None]
        if (path := self.split_file) is not None:
            return self.divided(task, lambda everyone: read_split(path, everyone)[self.split], failures)
        return None

    def divided(
        self, task: Task, choose: Callable[[list[Subject]], list[Subject]], failures: Failures
    ) -> list[Subject]:
        """Those whom ``choose`` takes of all; ``failures`` takes those of which a file is missing."""
        incomplete = Failures()
        complete = find_subjects(self.root, task, self.layout, incomplete)
        # They count while subjects are chosen: a draw without them would be another one.
        files_missing = [incomplete.subjects.get(name, Subject(name, (), self.root)) for name in incomplete.messages]
        result = []
        for subject in choose([*complete, *files_missing]):
            with failures.skip(subject.name):
                if subject.name in incomplete.messages:
                    raise UserError(incomplete.messages[subject.name])
                result.append(subject)
        return result


def masks_of_checkpoint(
    checkpoint: Path,
    data: DataSet,
    threshold: float | None = None,
    frame: str | None = None,
    failures: Failures | None = None,
) -> tuple[MaskSource, list[Subject]]:
    """A trained model, and by default the subjects that it was not trained with.

    Args:
        checkpoint: of the model.
        data: what to score.
        threshold: of probabilities; None: the model's.
        frame: path of each subject's transform, where they lie elsewhere than in training.
        failures: takes subjects of which a file is missing; None: the first one is an error.

    Raises:
        UserError: a checkpoint or data that cannot be read, or no subject with a reference.
    """
    model = load_model(checkpoint)
    model.check_threshold(threshold, checkpoint)
    if frame is not None:
        model = model.with_transforms(frame)
    failures = failures or Failures(fail_fast=True)
    subjects = data.subjects(model.task, failures)
    if subjects is None:
        recorded = model.split
        subjects = data.divided(
            model.task, lambda everyone: held_out(everyone, recorded, data.split, checkpoint, data.root), failures
        )
    predictor = Predictor(model, threshold=threshold)
    if data.label_affine is not None:
        predictor.reader = VolumeReader(with_label_affine(model.task, data.label_affine))
    return predictor, subjects if failures.messages else _some(subjects, data)


def masks_of_files(
    folder: Path,
    data: DataSet,
    description: Mapping[str, Any],
    threshold: float | None = None,
    failures: Failures | None = None,
) -> tuple[MaskSource, list[Subject]]:
    """Finished predictions, and the subjects of the split of training.

    Args:
        folder: of ``<subject>.nii.gz``.
        data: what they were made from.
        description: what is said of the data instead of what a checkpoint records: ``task``, ``seed``, ``target``,
            ``ignored``, ``modalities``, ``classes``.
        threshold: of probabilities; None: 0.5.
        failures: takes subjects of which a file is missing; None: the first one is an error.

    Raises:
        UserError: data or predictions that cannot be read, no prediction at all, or no subject with a reference.
    """
    given = {key: value for key, value in description.items() if value not in (None, [])}
    if "target" in given:
        given.setdefault("ignored", [])
    name, seed = given.pop("task", "wmh"), given.pop("seed", 0)
    task, _ = task_of_data_set(data.root, name, label_affine=data.label_affine, **given)
    failures = failures or Failures(fail_fast=True)
    subjects = data.subjects(task, failures)
    if subjects is None:
        subjects = data.divided(
            task, lambda everyone: split_subjects(everyone, task.split, seed, str(data.root))[data.split], failures
        )
    if not failures.messages:
        subjects = _some(subjects, data)
    threshold = 0.5 if threshold is None else threshold
    return PredictionFiles(folder, subjects, task, threshold, masks_are_labels="classes" in given), subjects


def held_out(
    subjects: Sequence[Subject], split: Mapping[str, Sequence[str]] | None, part: str, checkpoint: Path, where: Path
) -> list[Subject]:
    """The subjects of one part of the division that a checkpoint was trained with, by name or its unambiguous end.

    Args:
        subjects: all that the data set has.
        split: names by part, as the checkpoint records them.
        part: ``"training"``, ``"validation"`` or ``"test"``.
        checkpoint: what to name in an error.
        where: the data set, to name in an error.

    Raises:
        UserError: no division is recorded, or one of its subjects is not in the data set or has no reference there.
    """
    if split is None:
        raise UserError(f"{checkpoint}: expected a record of the subjects it was trained with, got none")
    by_name = {subject.name: subject for subject in subjects if subject.label is not None}
    matches = match_names(split[part], by_name, str(checkpoint))
    if missing := [name for name in split[part] if name not in matches]:
        raise UserError(
            f"{where}: expected the {part} subjects of {checkpoint} with references, {missing[0]!r} is not there "
            "(other data are scored with --split all or --split-file)"
        )
    return [by_name[matches[name]] for name in split[part]]


def _some(subjects: list[Subject], data: DataSet) -> list[Subject]:
    if not subjects:
        raise UserError(f"{data.root}: expected subjects with a reference, found none")
    return subjects
