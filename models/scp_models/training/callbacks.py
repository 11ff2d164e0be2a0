"""Which checkpoints a training keeps, and what it says of its data."""

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

    @property
    def nothing_segmented(self) -> bool:
        """Whether the validation Dice was 0 in every epoch."""
        return self.monitor == "val_dice" and self.best_model_score is not None and float(self.best_model_score) == 0


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
