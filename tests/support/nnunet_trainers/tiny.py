"""Trainers for nnUNet_extTrainer that end in seconds."""

import os
from pathlib import Path

import torch
import torch.distributed as dist

from scp_models.nnunet.trainer import nnUNetTrainerSCP


class nnUNetTrainerSCPTiny(nnUNetTrainerSCP):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = int(os.environ.get("TINY_EPOCHS", "1"))
        self.num_iterations_per_epoch = self.num_val_iterations_per_epoch = 2

    def initialize(self):
        torch.set_num_threads(1)  # nnU-Net takes one per core, which wait for each other where others run too
        super().initialize()


class nnUNetTrainerSCPParallel(nnUNetTrainerSCPTiny):
    """One process, or several that share every batch; all begin with three steps on one batch, and leave their weights
    in the folder ``PARALLEL_FOLDER``."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.device, self.grad_scaler = torch.device("cpu"), None  # nnU-Net gives a GPU to each process
        self.processes = dist.get_world_size() if self.is_ddp else 1

    def initialize(self):
        torch.manual_seed(0)
        super().initialize()

    def _build_loss(self):
        loss = super()._build_loss()
        loss.weight_factors = (2 / 3, 1 / 3)  # nnU-Net's last is 1e-6 with several processes, and 0 with one
        return loss

    def on_train_start(self):
        super().on_train_start()
        self.leave_weights("before")
        path = Path(os.environ["PARALLEL_FOLDER"]) / "batch.pt"
        if not path.exists():
            torch.save(next(self.dataloader_train), path)
        batch = torch.load(path, weights_only=False)
        share = slice(self.local_rank, None, self.processes)
        for _ in range(3):
            self.train_step({"data": batch["data"][share], "target": [target[share] for target in batch["target"]]})
        self.leave_weights("after")

    def on_train_end(self):
        super().on_train_end()
        self.leave_weights("end")

    def leave_weights(self, when):
        network = self.network.module if self.is_ddp else self.network
        path = Path(os.environ["PARALLEL_FOLDER"]) / f"{when}-{self.local_rank}-of-{self.processes}.pt"
        torch.save(network.state_dict(), path)
