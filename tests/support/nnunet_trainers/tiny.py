"""A trainer for nnUNet_extTrainer that ends in seconds."""

import os

import torch

from scp_models.nnunet.trainer import nnUNetTrainerSCP


class nnUNetTrainerSCPTiny(nnUNetTrainerSCP):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = int(os.environ.get("TINY_EPOCHS", "1"))
        self.num_iterations_per_epoch = self.num_val_iterations_per_epoch = 2

    def initialize(self):
        torch.set_num_threads(1)  # nnU-Net takes one per core, which wait for each other where others run too
        super().initialize()
