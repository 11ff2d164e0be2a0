"""Random problems for the operator, and an evaluation of its definition pixel by pixel in numpy."""

import itertools
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from scp_kernels.positions import origin_affine
from scp_kernels.reference import positions


@dataclass
class Inputs:
    """One call of the operator: features, Φ, w_r, β, in the dtypes that a user would pass."""

    features: Tensor
    phi: tuple[Tensor, ...]
    residual: Tensor
    bias: Tensor | None
    grad_logits: Tensor
    names: tuple[str, ...] = field(default=("features", "w1", "b1", "w2", "b2", "w3", "b3", "residual", "bias"))

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return (self.features, *self.phi, self.residual, self.bias)

    def to(self, target: torch.device | str | torch.dtype) -> "Inputs":
        """The same values on another device or in another dtype."""
        return Inputs(
            self.features.to(target),
            tuple(t.to(target) for t in self.phi),
            self.residual.to(target),
            None if self.bias is None else self.bias.to(target),
            self.grad_logits.to(target),
        )

    def double(self) -> "Inputs":
        """The same values in float64."""
        return self.to(torch.float64)


def make_inputs(
    shape: tuple[int, ...] = (7, 9),
    *,
    batch: int = 2,
    channels: int = 3,
    classes: int = 1,
    hidden: tuple[int, int] = (8, 6),
    dtype: torch.dtype = torch.float32,
    bias: bool = False,
    seed: int = 0,
    position_dims: int | None = None,
) -> Inputs:
    """Standard normal features and PyTorch's default initialisation of linear layers, as the paper's Φ starts."""
    g = torch.Generator().manual_seed(seed)
    parameter_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    h1, h2 = hidden
    columns = 2 * (len(shape) if position_dims is None else position_dims)

    def uniform(*size: int, fan_in: int) -> Tensor:
        return ((torch.rand(*size, generator=g, dtype=torch.float64) * 2 - 1) / fan_in**0.5).to(parameter_dtype)

    phi = (
        uniform(h1, columns, fan_in=columns),
        uniform(h1, fan_in=columns),
        uniform(h2, h1, fan_in=h1),
        uniform(h2, fan_in=h1),
        uniform(classes * channels, h2, fan_in=h2),
        uniform(classes * channels, fan_in=h2),
    )
    return Inputs(
        features=torch.randn(batch, channels, *shape, generator=g).to(dtype),
        phi=phi,
        residual=uniform(classes, channels, fan_in=channels),
        bias=uniform(classes, fan_in=1) if bias else None,
        grad_logits=torch.randn(batch, classes, *shape, generator=g).to(dtype),
    )


def evaluate(function, inputs: Inputs, **options) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and all gradients of ``function(features, phi, residual, bias, **options)``, by name."""
    leaves = [None if t is None else t.detach().clone().requires_grad_(True) for t in inputs.tensors]
    logits = function(leaves[0], tuple(leaves[1:7]), leaves[7], leaves[8], **options)
    wanted = [t for t in leaves if t is not None]
    gradients = torch.autograd.grad(logits, wanted, inputs.grad_logits)
    present = [name for name, t in zip(inputs.names, leaves, strict=True) if t is not None]
    return logits.detach(), dict(zip(present, gradients, strict=True))


def away_from_kinks(inputs: Inputs, **options) -> Inputs:
    """Zero the logits' gradient where some unit's pre-activation is rounding noise, which may fall on either side of 0.

    There float32 of any origin picks one of two gradients, both right; the bound is that of float32 sums.
    """
    w1, b1, w2, b2, *_ = (t.double() for t in inputs.phi)
    shape = inputs.features.shape[2:]
    affine, extent = options.get("affine"), options.get("extent")
    if options.get("origin") is not None:
        origin = torch.as_tensor(options["origin"], dtype=torch.float64)
        affine = origin_affine(origin, len(shape))
    extent = None if extent is None else torch.as_tensor(extent, dtype=torch.float64)
    s = positions(
        shape,
        affine=affine,
        extent=extent,
        position=options.get("position", "pixels"),
        device=inputs.features.device,
    )
    first = w1 @ s + b1[:, None]
    noise = (first.abs() < 1e-6 * (w1.abs() @ s.abs() + b1.abs()[:, None])).any(1)
    hidden = first.relu()
    second = w2 @ hidden + b2[:, None]
    noise |= (second.abs() < 1e-6 * (w2.abs() @ hidden + b2.abs()[:, None])).any(1)
    share = noise.double().mean().item()
    assert share < 0.05, f"{share:.0%} of the pixels lie on kinks: nothing is left to test"
    keep = (~noise).unflatten(1, shape)[:, None]
    return replace(inputs, grad_logits=inputs.grad_logits * keep.to(inputs.grad_logits.dtype))


def by_definition(inputs: Inputs, affine=None, extent=None, position: str = "pixels") -> np.ndarray:
    """Logits by eqs. 5, 12 and 13, one pixel at a time, in numpy float64."""
    x = inputs.features.double().numpy()
    w1, b1, w2, b2, w3, b3 = (t.double().numpy() for t in inputs.phi)
    residual = inputs.residual.double().numpy()
    beta = 0.0 if inputs.bias is None else inputs.bias.double().numpy()
    batch, channels, *shape = x.shape
    classes = residual.shape[0]
    out = np.empty((batch, classes, *shape))
    for b, index in itertools.product(range(batch), np.ndindex(*shape)):
        if affine is None:
            p = np.array(index, dtype=float)
        else:
            a = np.asarray(affine, dtype=float)
            p = (a if a.ndim == 2 else a[b]) @ np.array([*index, 1.0])
        if extent is None:
            size = np.array(shape, dtype=float)
        else:
            e = np.asarray(extent, dtype=float)
            size = e if e.ndim == 1 else e[b]
        s = np.concatenate([p, size - p])
        if position == "centered":
            s = 2 * s / np.concatenate([size, size]) - 1
        assert len(s) == w1.shape[1]
        hidden = np.maximum(w1 @ s + b1, 0)
        hidden = np.maximum(w2 @ hidden + b2, 0)
        weight = (w3 @ hidden + b3).reshape(classes, channels) + residual
        out[(b, slice(None), *index)] = weight @ x[(b, slice(None), *index)] + beta
    return out
