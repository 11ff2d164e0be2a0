"""The paper's networks, and a way to give any network a spatially covariant head."""

from scp_kernels import positioned
from scp_models.networks.attach import attach
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
    "Preset",
    "SegmentationNetwork",
    "attach",
    "build_network",
    "positioned",
    "sliding_window",
]
