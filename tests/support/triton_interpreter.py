"""Sizes that the interpreter's tests of the Triton kernels share."""

import torch

SMALL = {
    "batch": 3, "channels": 3, "num_classes": 2, "hidden": (9, 7), "spatial_shape": (7, 9), "groups": 1,
    "dtype": torch.float32, "compute_dtype": torch.float32, "device": torch.device("cpu"),
}  # fmt: skip
