"""``nnUNetTrainerSCP``: nnU-Net's trainer with spatially covariant segmentation layers.

What differs from the stock trainer: the network's segmentation layers, and coordinate channels that go with every
image. They are made from what nnU-Net keeps of each image, so that existing preprocessed data sets serve; augmented as
the image is in space, and not in intensity; taken off before the first layer.
"""

from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from scp_models.nnunet.dataset import PositionedDatasets
from scp_models.nnunet.geometry import POSITION_CHANNELS
from scp_models.nnunet.network import PlannedNetwork, attach_to_segmentation_layers
from scp_models.nnunet.preprocessing import PositionedConfiguration


class SetCoordinatesAside(BasicTransform):  # type: ignore[misc]
    """Make the last channels of the image the regression target, which is moved in space and else left alone."""

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Of one sample."""
        image, data_dict["regression_target"] = data_dict["image"].tensor_split([-POSITION_CHANNELS])
        return {**data_dict, "image": image, "image_channels": len(image)}


class PutCoordinatesBack(BasicTransform):  # type: ignore[misc]
    """Put them behind the image's channels again, before what a previous stage has added."""

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Of one sample."""
        image, previous = data_dict["image"].tensor_split([data_dict.pop("image_channels")])
        return {**data_dict, "image": torch.cat([image, data_dict.pop("regression_target"), previous])}


class nnUNetTrainerSCP(nnUNetTrainer):  # type: ignore[misc]
    """nnU-Net's trainer with :class:`scp_kernels.FusedSCP` for every segmentation layer.

    Attributes:
        hidden_channels: width of Φ's two hidden layers.
        position_frame: ``"foreground"``: positions are measured in the box of the head or body; ``"image"``: in the
            box of the image, cropped to what is not zero.
    """

    hidden_channels = 64
    position_frame = "foreground"
    dataset_class: Any

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The planned network with heads. Called by the trainer and by the predictor, whose preprocessor it sets."""
        network = super().build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        attach_to_segmentation_layers(network, cls.hidden_channels)
        PositionedConfiguration.adopt(configuration_manager, cls.position_frame)
        # One scheme for each channel of the image, and none for the labels of a previous stage.
        return PlannedNetwork(network, num_input_channels, len(configuration_manager.normalization_schemes))

    def initialize(self) -> None:
        """Network, optimizer and loss; and data sets with coordinate channels."""
        super().initialize()
        self.dataset_class = PositionedDatasets(
            self.dataset_class, self.plans_manager.transpose_forward, self.position_frame
        )

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> BasicTransform:
        """The stock trainer's augmentation; coordinates take part in what moves the image."""
        transforms = super().get_training_transforms(*args, **kwargs)
        return ComposeTransforms([SetCoordinatesAside(), transforms, PutCoordinatesBack()])
