"""The paper's networks, and a way to give any network a spatially covariant head."""

from scp_models.networks.attach import attach, positioned
from scp_models.networks.segmentation import (
    PRESETS,
    VARIANTS,
    Preset,
    SegmentationNetwork,
    build_network,
)

__all__ = ["PRESETS", "VARIANTS", "Preset", "SegmentationNetwork", "attach", "build_network", "positioned"]
