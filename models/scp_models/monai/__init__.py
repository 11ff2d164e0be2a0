"""For MONAI's pipelines: positions as channels that its transforms move along, and an inferer that mirrors windows."""

from scp_models.monai.coordinates import AddCoordinatesd, SplitCoordinatesd
from scp_models.monai.inferers import MirroringSlidingWindowInferer

__all__ = ["AddCoordinatesd", "MirroringSlidingWindowInferer", "SplitCoordinatesd"]
