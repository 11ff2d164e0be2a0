"""A callback that kills its own process, as a power cut would, or tells it to end, as a scheduler does."""

import os
import signal

import lightning as L


class KillAt(L.Callback):
    """A signal, SIGKILL if not told, before the given batch of the given epoch."""

    def __init__(self, epoch: int, batch: int, number: int = signal.SIGKILL.value) -> None:
        self.epoch, self.batch, self.number = epoch, batch, number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.current_epoch == self.epoch and batch_idx == self.batch:
            os.kill(os.getpid(), self.number)
