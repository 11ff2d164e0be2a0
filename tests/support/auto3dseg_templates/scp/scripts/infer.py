"""Predictions of one fold's network, for Auto3DSeg's ensemble."""

import torch
from monai.bundle import ConfigParser

from scp_models.monai import MirroringSlidingWindowInferer


class InferClass:
    def __init__(self, config_file, **override):
        self.parser = ConfigParser()
        self.parser.read_config(config_file)
        self.network = self.parser.get_parsed_content("network_def").eval()
        self.network.load_state_dict(torch.load(f"{self.parser['folder']}/model.pt"))
        self.reading = self.parser.get_parsed_content("reading")
        self.windows = MirroringSlidingWindowInferer((16, 16, 8), sw_batch_size=4, mirror_axes=(0,))

    @torch.no_grad()
    def infer(self, item):
        """Probabilities ``[classes, X, Y, Z]`` of an image of the data list."""
        image = self.reading(item)["image"]
        return self.windows(image[None], self.network)[0].softmax(0)
