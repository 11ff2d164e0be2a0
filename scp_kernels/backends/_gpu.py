"""What the two backends for NVIDIA GPUs ask of a device."""

from contextlib import AbstractContextManager, nullcontext

import torch

OLDEST_CAPABILITY = 75
"""The kernels run on devices of compute capability 7.5 and newer."""


def capability(device: torch.device | int | None = None) -> int:
    """Compute capability of a CUDA device as 75, 90, …"""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Makes the tensors' device current: kernels are launched there. The host, which tests use, has none."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
