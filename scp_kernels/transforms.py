"""The operator inside ``torch.func`` transforms: ``grad`` and ``vmap`` of the compiled backends.

Operators registered with ``torch.library`` have no rule for ``grad`` there; an ``autograd.Function`` with a separate
``setup_context`` has. ``vmap`` over features folds its axis into the batch, so that Φ is still evaluated once; over
parameters (ensembles), and for gradients of the parameters (one set a sample), it is a loop.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scp_kernels import ops

# Positions of arguments in scp_forward(features, w1 … b3, residual, bias, matrix, backend) and in
# scp_backward(grad_logits, features, w1 … b3, residual, matrix, backend, needs).
_FEATURES, _BIAS, _MATRIX = 0, 8, 9
_GRAD, _GRAD_FEATURES, _GRAD_MATRIX, _NEEDS = 0, 1, 9, 11


class Forward(torch.autograd.Function):
    """``scp_forward`` with rules for ``grad`` and ``vmap``."""

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return ops.scp_forward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ops.setup_context(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad_logits: Tensor) -> tuple[Tensor | None, ...]:
        return ops.differentiate(ctx, grad_logits, Backward.apply)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
        parameters = in_dims[_FEATURES + 1 : _BIAS + 1]
        if any(d is not None for d in parameters):
            return _loop(Forward.apply, info.batch_size, in_dims, arguments)
        folded = list(arguments)
        folded[_FEATURES], folded[_MATRIX] = _fold(
            info.batch_size, (arguments[_FEATURES],), (in_dims[_FEATURES],), arguments[_MATRIX], in_dims[_MATRIX]
        )
        logits = Forward.apply(*folded)
        return logits.unflatten(0, (info.batch_size, len(logits) // info.batch_size)), 0


class Backward(torch.autograd.Function):
    """``scp_backward``; itself not differentiable."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return tuple(ops.scp_backward(*arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        ops.no_double_backward(ctx, *gradients)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[tuple[Tensor, ...], Any]:
        parameters = in_dims[_GRAD_FEATURES + 1 : _GRAD_MATRIX]
        if any(arguments[_NEEDS][1:]) or any(d is not None for d in parameters):
            return _loop(Backward.apply, info.batch_size, in_dims, arguments)
        folded = list(arguments)
        folded[_GRAD], folded[_GRAD_FEATURES], folded[_GRAD_MATRIX] = _fold(
            info.batch_size, arguments[:2], in_dims[:2], arguments[_GRAD_MATRIX], in_dims[_GRAD_MATRIX]
        )
        gradient, *empty = Backward.apply(*folded)
        gradient = gradient.unflatten(0, (info.batch_size, len(gradient) // info.batch_size))
        return (gradient, *empty), (0, *[None] * len(empty))


def _fold(
    size: int, tensors: Sequence[Tensor], dims: Sequence[int | None], matrix: Tensor, matrix_dim: int | None
) -> tuple[Tensor, ...]:
    """``tensors`` ``[B, …]`` with their mapped axis in front of the batch and merged with it, and the positions."""

    def mapped_first(tensor: Tensor, dim: int | None) -> Tensor:
        return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

    unfolded = [mapped_first(t, d) for t, d in zip(tensors, dims, strict=True)]
    if matrix_dim is not None or matrix.ndim == 3:  # a position map a sample, once folded
        matrix = mapped_first(matrix, matrix_dim)
        if matrix.ndim == 3:
            matrix = matrix.unsqueeze(1)
        matrix = matrix.expand(size, unfolded[0].shape[1], *matrix.shape[2:]).flatten(0, 1)
    return (*(t.flatten(0, 1) for t in unfolded), matrix)


def _loop(call: Callable[..., Any], size: int, in_dims: Sequence[Any], arguments: Sequence[Any]) -> Any:
    """One call for each index of the mapped axis, and the axis in which the results lie."""
    found = [
        call(*(a.select(d, k) if isinstance(d, int) else a for a, d in zip(arguments, in_dims, strict=True)))
        for k in range(size)
    ]
    if isinstance(found[0], Tensor):
        return torch.stack(found), 0
    return tuple(torch.stack(tensors) for tensors in zip(*found, strict=True)), (0,) * len(found[0])
