"""A predictor whose findings are known beforehand."""

import torch

from scp_models.data import VolumeReader
from scp_models.inference.predictor import Predictor
from scp_models.training.module import SegmentationModule


class Brightness(torch.nn.Module):
    """A network whose logit is the last channel's brightness above a level: what it finds is known beforehand."""

    def __init__(self, level):
        super().__init__()
        self.level = level

    def forward(self, image):
        return 20 * (image[:, -1:] - self.level)


def predictor(subject, task="wmh", roi_size=(20, 24), **options):
    """Finds exactly the lesions of ``subject`` inside ``roi_size``: in the tiny data nothing else is as bright."""
    module = SegmentationModule(task=task, roi_size=roi_size, capacity=16, levels=1)
    volume = VolumeReader(module.task).read(subject)
    lesion, rest = volume.image[-1][volume.label == 1], volume.image[-1][volume.label != 1]
    module.network = Brightness((lesion.min() + rest.max()) / 2 if lesion.size else rest.max() + 1)
    return Predictor(module, device="cpu", **options)
