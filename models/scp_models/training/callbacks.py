"""Which checkpoints a training keeps, and what it says of its data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from scp_models.data.sampling import SliceSampler


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint``, in which a tie goes to the lower validation loss.

    Ties are the rule at the start of a training: until something is segmented, the Dice of every epoch is 0.
    """

    _loss_of_best = float("inf")

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        loss = float(trainer.callback_metrics.get("val_loss", float("inf")))
        better = super().check_monitor_top_k(trainer, current)
        if not better and current is not None and self.kth_best_model_path:
            tie = bool(current == self.best_k_models[self.kth_best_model_path]) and loss < self._loss_of_best
            better = trainer.strategy.reduce_boolean_decision(tie)
        if better:
            self._loss_of_best = loss
        return better

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "loss_of_best": self._loss_of_best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._loss_of_best = state_dict["loss_of_best"]


class FoundClasses(L.Callback):
    """Whether any validated epoch found something of each class, whatever chooses the best checkpoint.

    Dice does not say so: a subject without lesions has 1 where nothing is segmented, and that of classes is a mean.
    """

    def __init__(self) -> None:
        self.found: list[bool] = []
        """Of each class: a voxel of it was segmented in some epoch. Empty before the first validation."""
        self.present: list[bool] = []
        """Of each class: a validation subject has a voxel of it."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        voxels = getattr(pl_module, "val_voxels", None)
        if trainer.sanity_checking or voxels is None:
            return
        for name, column in (("found", 0), ("present", 1)):
            now = [bool(count > 0) for count in voxels[:, column]]
            before = getattr(self, name) or [False] * len(now)
            setattr(self, name, [a or b for a, b in zip(before, now, strict=True)])

    def state_dict(self) -> dict[str, Any]:
        return {"found": self.found, "present": self.present}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.found, self.present = state_dict["found"], state_dict["present"]

    def warnings(self, classes: Sequence[str], losses: str) -> list[str]:
        """A line on what was never found, with what to look at, and one on what could not be.

        Args:
            classes: their names; empty where there is one target.
            losses: where the losses are.
        """
        names = [f"the class {name!r}" for name in classes] or ["the target"]
        result = []
        if absent := [name for name, there in zip(names, self.present, strict=False) if not there]:
            result.append(
                f"no validation subject has a voxel of {', '.join(absent)}: the validation Dice of it says nothing "
                "(--data.split and --data.split_file choose the subjects)"
            )
        states = zip(names, self.found, self.present, strict=False)
        if missed := [name for name, found, there in states if there and not found]:
            threshold = (
                "A lower threshold may show what it learnt (scp-models evaluate --split validation --threshold 0.3; "
                "0.49 for --model.preset paper). "
            )
            result.append(
                f"no voxel of {', '.join(missed)} was found in the validation subjects in any epoch; best.ckpt "
                f"segments nothing of it. Look at {losses}: still falling, train for longer; level, another "
                f"--model.learning_rate. {'' if classes else threshold}Are the lesions inside the slices "
                "(--data.roi_size), and the target's label right (--data.target, --data.classes)?"
            )
        return result


class NewestCheckpoint(ModelCheckpoint):
    """``last.ckpt``, written after every epoch, validated or not: a run goes on from its newest one."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)


class EpochReport(L.Callback):
    """Says once how many slices of whom make an epoch."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        sampler = getattr(trainer.train_dataloader, "sampler", None)
        if isinstance(sampler, SliceSampler):
            rank_zero_info(sampler.describe())
