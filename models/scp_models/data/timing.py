"""How much of an epoch is spent waiting for data."""

import time
from collections.abc import Iterator
from typing import Any

import lightning as L
from torch.utils.data import DataLoader


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
    """Logs ``data_wait``, the share of each training epoch spent waiting for batches (0 to 1)."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin = time.perf_counter()
        self._waited = self._total(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        share = (self._total(trainer) - self._waited) / (time.perf_counter() - self._begin)
        # Each process waits for its own batches; the slowest is what an epoch waits for.
        pl_module.log("data_wait", share, sync_dist=True, reduce_fx="max", prog_bar=False)

    @staticmethod
    def _total(trainer: L.Trainer) -> float:
        loader = trainer.train_dataloader
        return loader.waited if isinstance(loader, TimedDataLoader) else 0.0
