"""nnU-Net's trainers with equal small budgets, for nnUNet_extTrainer; see benchmarks/left_right.py."""

import os
import random

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainerNoMirroring,
)

from scp_models.nnunet.trainer import nnUNetTrainerSCP


class Budget:
    """As many steps for each, from a seed, on one thread; without validation at the end, since tests follow."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = int(os.environ["LEFT_RIGHT_EPOCHS"])
        self.num_iterations_per_epoch = int(os.environ["LEFT_RIGHT_STEPS"])
        self.num_val_iterations_per_epoch = 1

    def initialize(self):
        seed = int(os.environ["LEFT_RIGHT_SEED"])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        super().initialize()

    def perform_actual_validation(self, save_probabilities=False):
        pass


class nnUNetTrainerBudget(Budget, nnUNetTrainer):
    pass


class nnUNetTrainerNoMirroringBudget(Budget, nnUNetTrainerNoMirroring):
    pass


class nnUNetTrainerSCPBudget(Budget, nnUNetTrainerSCP):
    pass
