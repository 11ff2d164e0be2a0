"""The paper's networks, and a way to give any network a spatially covariant head."""

from scp_kernels import positioned
from scp_models.networks.attach import attach
from scp_models.networks.detach import detach
from scp_models.networks.mirroring import average_over_mirrors
from scp_models.networks.positioned_network import PositionedNetwork
from scp_models.networks.segmentation import (
    PRESETS,
    VARIANTS,
    Preset,
    SegmentationNetwork,
    build_network,
)
from scp_models.networks.sliding import sliding_window

__all__ = [
    "PRESETS",
    "VARIANTS",
    "PositionedNetwork",
    "Preset",
    "SegmentationNetwork",
    "attach",
    "average_over_mirrors",
    "build_network",
    "detach",
    "positioned",
    "sliding_window",
]
