"""A callback by which every process of a run leaves its own parameters."""

from pathlib import Path

import lightning as L
import torch


class RankWeights(L.Callback):
    """Writes ``rank-<n>.pt`` into the run's folder when training ends."""

    def on_train_end(self, trainer, pl_module) -> None:
        parameters = {name: p.detach() for name, p in pl_module.named_parameters()}
        torch.save(parameters, Path(trainer.default_root_dir) / f"rank-{trainer.global_rank}.pt")
