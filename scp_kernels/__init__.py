"""Spatially covariant segmentation heads for PyTorch.

``FusedSCP`` replaces a segmentation network's last 1×1 convolution by the spatially covariant pixel-aligned classifier
(SCP) of "Spatially Covariant Lesion Segmentation" (IJCAI 2023), evaluated without materializing its per-pixel weights.
"""

from scp_kernels import backends
from scp_kernels.context import positioned
from scp_kernels.coordinates import affine_of_coordinates
from scp_kernels.counting import count_macs
from scp_kernels.dispatch import BackendStatus, BackendUnavailable, available_backends
from scp_kernels.functional import pixel_positions, scp
from scp_kernels.layers import is_pointwise
from scp_kernels.module import FusedSCP
from scp_kernels.parameter_groups import parameter_groups
from scp_kernels.placement import Placement
from scp_kernels.ptflops import ptflops_hook
from scp_kernels.reference import scp_reference
from scp_kernels.version import __version__

__all__ = [
    "BackendStatus",
    "BackendUnavailable",
    "FusedSCP",
    "Placement",
    "__version__",
    "affine_of_coordinates",
    "available_backends",
    "backends",
    "count_macs",
    "is_pointwise",
    "parameter_groups",
    "pixel_positions",
    "positioned",
    "ptflops_hook",
    "scp",
    "scp_reference",
]
