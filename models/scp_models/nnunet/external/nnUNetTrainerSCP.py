"""Found by nnU-Net, which looks for trainers by the folders and not by the packages that they lie in."""

from scp_models.nnunet.trainer import nnUNetTrainerSCP

__all__ = ["nnUNetTrainerSCP"]
