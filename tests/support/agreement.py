"""How compiled backends are held to the float64 reference, and inputs that are hard on all of them."""

import numpy as np
import torch
from torch import Tensor

from scp_kernels import scp, scp_reference
from tests.support.problems import Inputs, evaluate, make_inputs
from tests.support.tolerances import GRADIENTS, LOGITS, relative_error

POSITION_MAPS = [
    {"position": "centered"},
    {"origin": (30, 11), "extent": (160, 224), "position": "centered"},
    {"affine": torch.tensor([[0.0, -1.0, 40.0], [0.5, 0.2, -3.0]], dtype=torch.float64), "extent": (64, 64)},
]


def slices_of_a_volume(batch: int, dims: int = 2, axes: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """Position maps of maps with ``dims`` axes in a space with ``axes`` of them: one per sample, oblique, scaled."""
    g = torch.Generator().manual_seed(seed)
    affine = torch.randn(batch, axes, dims + 1, generator=g, dtype=torch.float64)
    affine[..., -1] += 20
    return {"affine": affine, "extent": 30 + 10 * torch.rand(batch, axes, generator=g, dtype=torch.float64)}


VOLUME_MAPS = {
    "slice": {"origin": torch.tensor([7.0, 3, 4]), "extent": torch.tensor([20.0, 64, 48])},
    "slices": {
        "origin": torch.tensor([[0.0, 0, 0], [1, 0, 0], [19, 5, 0]]),
        "extent": torch.tensor([20.0, 48, 64]),
        "position": "centered",
    },
    "oblique": {"position": "centered", **slices_of_a_volume(3)},
    "one oblique map": {name: values[0] for name, values in slices_of_a_volume(1, seed=1).items()},
    "slices mirrored": {
        "affine": torch.tensor([[0.0, 0, 5], [0, -1, 47], [1, 0, 0]], dtype=torch.float64),
        "extent": torch.tensor([[20.0, 48, 64], [21, 48, 64], [22, 40, 64]]),
    },
}
"""2-D maps of three samples in a 3-D space: one position map for all, or one per sample."""

VIEWS = {
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "strided": lambda x: torch.stack([x, x], -1)[..., 1],
    "channel slice": lambda x: torch.cat([x, x], 1)[:, x.shape[1] :],
    "expanded batch": lambda x: x[:1].expand(3, -1, -1, -1),
    "crop": lambda x: torch.nn.functional.pad(x, (2, 3, 1, 4), value=float("nan"))[..., 1:-4, 2:-3],
}
"""Features in memory as they may come."""

NON_FINITE = [
    (where, value)
    for where in ("features", "w1", "b1", "w2", "b2", "w3", "residual")
    for value in (float("nan"), float("inf"), float("-inf"))
    if where != "w1" or value != value
]


def agree(inputs: Inputs, backend: str, **options) -> tuple[Tensor, dict[str, Tensor]]:
    """Assert that a backend's logits and all its gradients are within the table of tolerances, and return them."""
    dtype = inputs.features.dtype
    truth, true_gradients = evaluate(scp_reference, inputs.double(), **options)
    logits, gradients = evaluate(scp, inputs, backend=backend, **options)
    assert logits.dtype == dtype and logits.is_contiguous()
    assert relative_error(logits, truth) <= LOGITS[dtype]
    assert list(gradients) == list(true_gradients)
    for name, gradient in gradients.items():
        assert relative_error(gradient, true_gradients[name]) <= GRADIENTS[dtype], name
    return logits, gradients


def agree_where_not_finite(
    where: str, value: float, batch: int, backend: str, dtype: torch.dtype = torch.float32
) -> None:
    """Assert that NaN and infinities are in the pixels and samples in which PyTorch has them."""
    inputs = make_inputs((20, 37), batch=batch, channels=3, hidden=(12, 10), dtype=dtype)
    tensors = [t.clone() for t in inputs.tensors[:8]]
    tensors[inputs.names.index(where)].view(-1)[2] = value
    result = scp(tensors[0], tensors[1:7], tensors[7], backend=backend)
    truth = scp_reference(tensors[0], tensors[1:7], tensors[7])
    assert torch.equal(torch.isnan(result), torch.isnan(truth))
    assert torch.equal(torch.isinf(result), torch.isinf(truth))
    assert torch.allclose(result, truth, rtol=1e-4, atol=1e-4, equal_nan=True)


def agree_with_finite_differences(shape: tuple[int, ...], backend: str) -> None:
    """Assert what ``torch.autograd.gradcheck`` asserts, in float64."""
    inputs = make_inputs(shape, batch=1, channels=2, classes=2, hidden=(6, 5), bias=True, dtype=torch.float64)
    leaves = [t.clone().requires_grad_(True) for t in inputs.tensors]

    def function(x, w1, b1, w2, b2, w3, b3, residual, bias):
        return scp(x, (w1, b1, w2, b2, w3, b3), residual, bias, position="centered", backend=backend)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


def integer_inputs(shape: tuple[int, ...], hidden: tuple[int, int], seed: int) -> Inputs:
    """Integer weights: kinks run exactly through pixels and corners of boxes, and every sum is exact."""
    rng = np.random.default_rng(seed)
    inputs = make_inputs(shape, channels=3, hidden=hidden, dtype=torch.float32, seed=seed)
    h1, h2 = hidden
    sizes = ((h1, 2 * len(shape)), (h1,), (h2, h1), (h2,), (3, h2), (3,))
    ranges = (2, 40, 2, 60, 2, 3)
    values = (rng.integers(-r, r + 1, size) for size, r in zip(sizes, ranges, strict=True))
    inputs.phi = tuple(torch.from_numpy(v).float() for v in values)
    inputs.residual = torch.ones(1, 3)
    inputs.features = inputs.features.mul(4).round()
    inputs.grad_logits = inputs.grad_logits.mul(4).round()
    return inputs
