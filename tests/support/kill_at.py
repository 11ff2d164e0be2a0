"""A callback that kills its own process, as a power cut would."""

import os
import signal

import lightning as L


class KillAt(L.Callback):
    """SIGKILL before the given batch of the given epoch."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.epoch, self.batch = epoch, batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.current_epoch == self.epoch and batch_idx == self.batch:
            os.kill(os.getpid(), signal.SIGKILL)
