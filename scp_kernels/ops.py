"""The torch operators: schemas, fakes, autograd and FLOP formulas. Nothing else registers anything.

``scp_kernels::scp_forward`` and ``scp_kernels::scp_backward`` run a compiled backend, named by their last argument.
They own what all backends share: empty problems, dtypes, and the chain from the first layer's coefficients to its
weight and bias. The reference needs no operator: it is plain PyTorch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from scp_kernels import dispatch
from scp_kernels.problem import Problem, first_layer_coefficients, first_layer_gradients

_PARAMETERS = "Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor w3, Tensor b3, Tensor residual"

torch.library.define(
    "scp_kernels::scp_forward",
    f"(Tensor features, {_PARAMETERS}, Tensor? bias, Tensor position_matrix, str backend) -> Tensor",
)
# Gradients of the features, of the seven parameters, and of the bias; those not asked for are empty.
torch.library.define(
    "scp_kernels::scp_backward",
    f"(Tensor grad_logits, Tensor features, {_PARAMETERS}, Tensor position_matrix, str backend, bool[] needs)"
    " -> Tensor[]",
)

scp_forward = torch.ops.scp_kernels.scp_forward.default
scp_backward = torch.ops.scp_kernels.scp_backward.default


def _problem(features: Tensor, w1: Tensor, w2: Tensor, residual: Tensor, matrix: Tensor) -> Problem:
    return Problem(
        batch=features.shape[0],
        channels=features.shape[1],
        num_classes=residual.shape[0],
        hidden=(w1.shape[0], w2.shape[0]),
        spatial_shape=tuple(features.shape[2:]),
        groups=matrix.shape[0] if matrix.ndim == 3 else 1,
        dtype=features.dtype,
        compute_dtype=torch.promote_types(torch.promote_types(features.dtype, w1.dtype), torch.float32),
        device=features.device,
    )


@torch.library.impl("scp_kernels::scp_forward", "CompositeExplicitAutograd")
def _forward(
    features: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, b3: Tensor, residual: Tensor,
    bias: Tensor | None, position_matrix: Tensor, backend: str,
) -> Tensor:  # fmt: skip
    problem = _problem(features, w1, w2, residual, position_matrix)
    if problem.is_empty:
        return features.new_empty(problem.batch, problem.num_classes, *problem.spatial_shape)
    dtype = problem.compute_dtype
    w2, b2, w3, b3, residual = (t.to(dtype).contiguous() for t in (w2, b2, w3, b3, residual))
    bias = None if bias is None else bias.to(dtype).contiguous()
    coefficients = first_layer_coefficients(w1, b1, position_matrix)
    run = dispatch.BACKENDS[backend].forward
    return run(features, (w2, b2, w3, b3), residual, bias, coefficients, problem)


@torch.library.impl("scp_kernels::scp_backward", "CompositeExplicitAutograd")
def _backward(
    grad_logits: Tensor, features: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, b3: Tensor,
    residual: Tensor, position_matrix: Tensor, backend: str, needs: Sequence[bool],
) -> list[Tensor]:  # fmt: skip
    parameters = (w1, b1, w2, b2, w3, b3, residual)
    problem = _problem(features, w1, w2, residual, position_matrix)
    needs_features, needs_parameters, needs_bias = needs[0], any(needs[1:8]), needs[8]
    gradients = [features.new_empty(0) for _ in needs]
    if needs_bias:
        axes = [0, *range(2, grad_logits.ndim)]
        gradients[8] = grad_logits.sum(axes, dtype=problem.compute_dtype).to(w1.dtype)
    if problem.is_empty:
        if needs_features:
            gradients[0] = torch.empty_like(features)
        for k, parameter in enumerate(parameters, start=1):
            if needs[k]:
                gradients[k] = torch.zeros_like(parameter)
        return gradients
    if not (needs_features or needs_parameters):
        return gradients
    dtype = problem.compute_dtype
    canonical = tuple(t.to(dtype).contiguous() for t in (w2, b2, w3, b3))
    of_features, of_parameters = dispatch.BACKENDS[backend].backward(
        grad_logits,
        features,
        canonical,
        residual.to(dtype).contiguous(),
        first_layer_coefficients(w1, b1, position_matrix),
        problem,
        needs_features,
        needs_parameters,
    )
    if of_features is not None:
        gradients[0] = of_features
    if of_parameters is not None:
        coefficients, g2, gb2, g3, gb3 = of_parameters
        g1, gb1 = first_layer_gradients(coefficients, position_matrix)
        # w_r and b3 enter the weight field alike, so their gradients are the same numbers.
        found = (g1, gb1, g2, gb2, g3, gb3, gb3.view_as(residual).clone())
        for k, (parameter, gradient) in enumerate(zip(parameters, found, strict=True), start=1):
            if needs[k]:
                gradients[k] = gradient.to(parameter.dtype)
    return gradients


@torch.library.register_fake("scp_kernels::scp_forward")
def _forward_fake(features: Tensor, *args: Any) -> Tensor:
    residual = args[6]
    return features.new_empty(features.shape[0], residual.shape[0], *features.shape[2:])


@torch.library.register_fake("scp_kernels::scp_backward")
def _backward_fake(grad_logits: Tensor, features: Tensor, *args: Any) -> list[Tensor]:
    parameters, needs = args[:7], args[-1]
    like = [torch.empty_like(features)]
    like += [torch.empty_like(p, memory_format=torch.contiguous_format) for p in parameters]
    like += [parameters[0].new_empty(parameters[6].shape[0])]
    return [t if need else features.new_empty(0) for t, need in zip(like, needs, strict=True)]


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """What ``scp_forward`` keeps for its backward: its inputs, nothing else."""
    *tensors, bias, matrix, ctx.backend = inputs
    ctx.save_for_backward(*tensors, matrix)
    ctx.has_bias = bias is not None


def differentiate(
    ctx: Any, grad_logits: Tensor, backward: Callable[..., Sequence[Tensor]] = scp_backward
) -> tuple[Tensor | None, ...]:
    """Gradients of ``scp_forward``'s inputs; those that need none are None."""
    *tensors, matrix = ctx.saved_tensors
    needs = [bool(n) for n in ctx.needs_input_grad[:9]]
    needs[8] = needs[8] and ctx.has_bias
    gradients = backward(grad_logits, *tensors, matrix, ctx.backend, needs)
    return (*(g if need else None for g, need in zip(gradients, needs, strict=True)), None, None)


torch.library.register_autograd("scp_kernels::scp_forward", differentiate, setup_context=setup_context)


def no_double_backward(ctx: Any, *gradients: Any) -> None:
    """Raises: silently incomplete second derivatives would be worse."""
    raise RuntimeError(
        "scp_kernels: a compiled backend's backward is not itself differentiable; "
        "use backend='reference' for double backward"
    )


torch.library.register_autograd("scp_kernels::scp_backward", no_double_backward)


def _flops(features: Sequence[int], w1: Sequence[int], w2: Sequence[int], residual: Sequence[int], m: Sequence[int]):
    """Nominal FLOPs (two a multiply-add) of a forward, from shapes; Φ counts once a pixel, whatever the batch."""
    pixels = 1
    for size in features[2:]:
        pixels *= size
    classes_channels = residual[0] * residual[1]
    groups = m[0] if len(m) == 3 else 1
    phi = w1[0] * w1[1] + w2[0] * w2[1] + w2[0] * classes_channels
    return 2 * pixels * (groups * phi + features[0] * classes_channels)


@register_flop_formula(torch.ops.scp_kernels.scp_forward)
def _forward_flops(features, w1, b1, w2, b2, w3, b3, residual, bias, position_matrix, *args, **kwargs) -> int:
    return _flops(features, w1, w2, residual, position_matrix)


@register_flop_formula(torch.ops.scp_kernels.scp_backward)
def _backward_flops(grad, features, w1, b1, w2, b2, w3, b3, residual, position_matrix, *args, **kwargs) -> int:
    return 2 * _flops(features, w1, w2, residual, position_matrix)
