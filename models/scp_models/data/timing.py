"""How much of an epoch is spent waiting for data."""

import time
from collections.abc import Iterator
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader

WAIT_LIMIT = 0.1
"""Share of a training's time above which waiting for data is worth a hint."""


class TimedDataLoader(DataLoader[Any]):
    """A DataLoader that adds up the seconds during which its consumer waits."""

    waited: float = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        begin = time.perf_counter()
        batches = super().__iter__()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                self.waited += time.perf_counter() - begin
                return
            self.waited += time.perf_counter() - begin
            yield batch
            begin = time.perf_counter()


class DataWaitMonitor(L.Callback):
    """Logs ``data_wait``, the share of each training epoch spent waiting for batches (0 to 1), and says at the end what
    it was over all epochs.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seconds, self._seconds_waited = 0.0, 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin = time.perf_counter()
        self._waited = self._total(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seconds, waited = time.perf_counter() - self._begin, self._total(trainer) - self._waited
        self._seconds += seconds
        self._seconds_waited += waited
        # Each process waits for its own batches; the slowest is what an epoch waits for.
        pl_module.log("data_wait", waited / seconds, sync_dist=True, reduce_fx="max", prog_bar=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._seconds:
            share = self._seconds_waited / self._seconds
            hint = "" if share < WAIT_LIMIT else ": more --data.num_workers, up to the free processor cores, shorten it"
            rank_zero_info(f"{100 * share:.1f} % of the training's time went by waiting for data{hint}")

    @staticmethod
    def _total(trainer: L.Trainer) -> float:
        loader = trainer.train_dataloader
        return loader.waited if isinstance(loader, TimedDataLoader) else 0.0
