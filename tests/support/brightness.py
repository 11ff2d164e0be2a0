"""A predictor whose predictions are known beforehand."""

import torch

from scp_models.checkpoints import TrainedModel
from scp_models.data.preprocessing import VolumeReader
from scp_models.data.tasks import get_task
from scp_models.inference.predictor import Predictor


class Brightness(torch.nn.Module):
    """A network whose logit is the last channel's brightness above a level."""

    def __init__(self, level):
        super().__init__()
        self.level = level

    def forward(self, image):
        return 20 * (image[:, -1:] - self.level)


def predictor(subject, task="wmh", roi_size=(20, 24), task_options=None, **options):
    """Finds exactly the lesions of ``subject`` inside ``roi_size``: in the tiny data nothing else is as bright."""
    preset = get_task(task, roi_size, task_options)
    volume = VolumeReader(preset).read(subject)
    lesion, rest = volume.image[-1][volume.label == 1], volume.image[-1][volume.label != 1]
    network = Brightness((lesion.min() + rest.max()) / 2 if lesion.size else rest.max() + 1)
    return Predictor(TrainedModel(network, preset, 0.5, torch.contiguous_format), device="cpu", **options)
