"""The one table of tolerances: relative norms against the float64 reference on the same inputs.

``relative_error`` is ``‖out − ref‖ / ‖ref‖``. The figures are the project's promise to its users (docs/design.md), not
what the code happens to give: a test that misses one has found a fault.
"""

import torch

LOGITS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
GRADIENTS = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def relative_error(out: torch.Tensor, ref: torch.Tensor) -> float:
    """Relative norm of the difference; exact zeros are demanded where the reference is zero."""
    assert out.shape == ref.shape, f"shape {tuple(out.shape)} instead of {tuple(ref.shape)}"
    difference = (out.detach().double() - ref.detach().double()).norm()
    norm = ref.detach().double().norm()
    return (difference / norm if norm > 0 else difference).item()
