"""The torch operators: schemas, fakes, autograd, vmap and FLOP formulas. Nothing else registers anything.

``scp_kernels::scp_forward`` and ``scp_kernels::scp_backward`` run a compiled backend, named by their last argument.
They own what all backends share: empty problems, dtypes, and the gradients of w_r and β. The reference needs no
operator: it is plain PyTorch. Second derivatives of compiled backends are those of the reference.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from scp_kernels import _torch_compat, dispatch
from scp_kernels._torch_compat import needs_dispatcher
from scp_kernels.problem import GradientNeeds, Problem, SCPInputs, problem_of
from scp_kernels.reference import classify, map_indices

_PARAMETERS = "Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor w3, Tensor b3, Tensor residual"

torch.library.define(
    "scp_kernels::scp_forward",
    f"(Tensor features, {_PARAMETERS}, Tensor? bias, Tensor position_matrix, str backend) -> Tensor",
)
# Gradients of the features, of the seven parameters, and of the bias; those not asked for are empty. Nine tensors and
# no list of them: legacy vmap runs an operator sample by sample only if all that it returns are tensors.
_GRADIENTS = ("features", "w1", "b1", "w2", "b2", "w3", "b3", "residual", "bias")
torch.library.define(
    "scp_kernels::scp_backward",
    f"(Tensor grad_logits, Tensor features, {_PARAMETERS}, Tensor position_matrix, str backend, bool[] needs)"
    f" -> ({', '.join(f'Tensor grad_{name}' for name in _GRADIENTS)})",
)

scp_forward = torch.ops.scp_kernels.scp_forward.default
scp_backward = torch.ops.scp_kernels.scp_backward.default


def _canonical(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous and in ``dtype``: itself, if it is. (Asking costs less than calling what would return it.)"""
    if parameter.dtype == dtype and parameter.is_contiguous():
        return parameter
    return parameter.to(dtype).contiguous()


def _forward(
    problem: Problem, features: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, b3: Tensor,
    residual: Tensor, bias: Tensor | None, position_matrix: Tensor, backend: str,
) -> Tensor:  # fmt: skip
    if problem.is_empty:
        return features.new_empty(problem.batch, problem.num_classes, *problem.spatial_shape)
    dtype = problem.compute_dtype
    phi = tuple([_canonical(t, dtype) for t in (w1, b1, w2, b2, w3, b3)])
    bias = None if bias is None else _canonical(bias, dtype)
    inputs = SCPInputs(features, phi, _canonical(residual, dtype), bias, position_matrix, problem)
    return dispatch.BACKENDS[backend].forward(inputs)


def _backward(
    problem: Problem, grad_logits: Tensor, features: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
    w3: Tensor, b3: Tensor, residual: Tensor, position_matrix: Tensor, backend: str, needs: Sequence[bool],
) -> list[Tensor | None]:  # fmt: skip
    parameters = (w1, b1, w2, b2, w3, b3, residual)
    backend_needs, needs_bias = GradientNeeds(needs[0], any(needs[1:8])), needs[8]
    gradients: list[Tensor | None] = [None] * len(needs)
    if needs_bias:
        axes = [0, *range(2, grad_logits.ndim)]
        gradients[8] = grad_logits.sum(axes, dtype=problem.compute_dtype).to(w1.dtype)
    if problem.is_empty:
        if backend_needs.features:
            gradients[0] = torch.empty_like(features)
        for k, parameter in enumerate(parameters, start=1):
            if needs[k]:
                gradients[k] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
    elif any(backend_needs):
        dtype = problem.compute_dtype
        phi = tuple([_canonical(t, dtype) for t in (w1, b1, w2, b2, w3, b3)])
        inputs = SCPInputs(features, phi, _canonical(residual, dtype), None, position_matrix, problem)
        gradients[0], of_phi = dispatch.BACKENDS[backend].backward(inputs, grad_logits, backend_needs)
        if of_phi is not None:
            # w_r and b3 enter the weight field alike, so their gradients are the same numbers.
            of_parameters = (*of_phi, of_phi[5].view_as(residual).clone())
            for k, (parameter, gradient) in enumerate(zip(parameters, of_parameters, strict=True), start=1):
                if needs[k]:
                    dtype = parameter.dtype
                    gradients[k] = gradient if gradient.dtype == dtype else gradient.to(dtype)
    return gradients


def _forward_kernel(features: Tensor, *arguments: Any) -> Tensor:
    return _forward(_problem_of(features, arguments, arguments[8]), features, *arguments)


def _backward_kernel(grad_logits: Tensor, features: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    gradients = _backward(_problem_of(features, arguments, arguments[7]), grad_logits, features, *arguments)
    return tuple([features.new_empty(0) if gradient is None else gradient for gradient in gradients])


def _problem_of(features: Tensor, parameters: Sequence[Tensor], position_matrix: Tensor) -> Problem:
    groups = position_matrix.shape[0] if position_matrix.ndim == 3 else 1
    return problem_of(features, parameters[0], parameters[2], parameters[6], groups)


torch.library.impl("scp_kernels::scp_forward", "CompositeExplicitAutograd", _forward_kernel)
torch.library.impl("scp_kernels::scp_backward", "CompositeExplicitAutograd", _backward_kernel)


@torch.library.register_fake("scp_kernels::scp_forward")
def _forward_fake(features: Tensor, *args: Any) -> Tensor:
    residual = args[6]
    return features.new_empty(features.shape[0], residual.shape[0], *features.shape[2:])


@torch.library.register_fake("scp_kernels::scp_backward")
def _backward_fake(grad_logits: Tensor, features: Tensor, *args: Any) -> tuple[Tensor, ...]:
    parameters, needs = args[:7], args[-1]
    like = [torch.empty_like(features)]
    like += [torch.empty_like(p, memory_format=torch.contiguous_format) for p in parameters]
    like += [parameters[0].new_empty(parameters[6].shape[0])]
    return tuple(t if need else features.new_empty(0) for t, need in zip(like, needs, strict=True))


_FORWARD_MODE = "compiled backends have no forward-mode derivative (jvp, jacfwd, hessian)"


def limit_of_operators(tensors: Sequence[Tensor]) -> str | None:
    """What is being done around the call that only plain PyTorch can do, as a sentence, or None."""
    if _torch_compat.in_forward_mode(tensors):
        return _FORWARD_MODE
    if {"Grad", "Functionalize"} <= _torch_compat.transforms():
        return "compiled backends cannot be differentiated by torch.func inside or around functionalize"
    return None


def refuse(backend: str, limit: str) -> None:
    """Raise what stands for a limit. Of forward mode: without it, autograd would give a tangent of zeros."""
    raise NotImplementedError(f"backend={backend!r}: {limit}; use backend='reference', or 'auto'")


def _register_autograd(name: str, formula: Any, setup_context: Any, backend_index: int) -> None:
    """What ``torch.library.register_autograd`` does, and a refusal of tangents, which it would drop.

    ``scp`` has refused them already, unless the operator is called by itself or from an exported program.
    """
    operator = getattr(torch.ops.scp_kernels, name).default
    differentiate = _torch_compat.autograd_kernel(operator, formula, setup_context)
    if differentiate is None:
        torch.library.register_autograd(operator, formula, setup_context=setup_context)
        return

    def kernel(keyset: Any, *arguments: Any) -> Any:
        tensors = [a for a in arguments if isinstance(a, Tensor)]
        if _torch_compat.in_forward_mode(tensors) and any(
            forward_ad.unpack_dual(t).tangent is not None for t in tensors
        ):
            refuse(arguments[backend_index], _FORWARD_MODE)
        return differentiate(keyset, *arguments)

    _autograd_kernels.impl(name, kernel, "Autograd", with_keyset=True)


_autograd_kernels = torch.library.Library("scp_kernels", "IMPL")  # lives as long as the registrations


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, bias, position_matrix, ctx.backend = inputs
    ctx.problem = None
    ctx.save_for_backward(*tensors, position_matrix)
    ctx.has_bias = bias is not None


def _differentiate(ctx: Any, grad_logits: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, position_matrix = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:9])
    needs[8] = needs[8] and ctx.has_bias
    arguments = (grad_logits, *tensors, position_matrix, ctx.backend, needs)
    if "Grad" in _torch_compat.transforms():
        gradients = _TransformableBackward.apply(*arguments)
    elif ctx.problem is None or torch.is_grad_enabled() or needs_dispatcher((grad_logits,)):
        gradients = scp_backward(*arguments)
    else:
        gradients = _backward(ctx.problem, *arguments)
    return (*[g if need else None for g, need in zip(gradients, needs, strict=True)], None, None)


_register_autograd("scp_forward", _differentiate, _setup_context, backend_index=-1)


def _setup_backward_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, _, ctx.needs = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_twice(ctx: Any, *cotangents: Any) -> tuple[Tensor | None, ...]:
    """Derivatives of scp_backward, through the reference; they are differentiable again."""
    grad_logits, features, *parameters, position_matrix = ctx.saved_tensors
    s = map_indices(position_matrix, features.shape[2:])

    def logits(features: Tensor, *parameters: Tensor) -> Tensor:
        *phi, residual, bias = parameters
        return classify(features, s, phi, residual, bias)

    def gradients(grad_logits: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        every_gradient = torch.func.vjp(logits, *inputs)[1](grad_logits)
        return tuple(g for g, need in zip(every_gradient, ctx.needs, strict=True) if need)

    bias = parameters[0].new_zeros(parameters[-1].shape[0])  # its value has no part in any gradient
    first, vjp = torch.func.vjp(gradients, grad_logits, features, *parameters, bias)  # type: ignore[misc]
    wanted = (c for c, need in zip(cotangents, ctx.needs, strict=True) if need)
    given = tuple(torch.zeros_like(g) if c is None else c for g, c in zip(first, wanted, strict=True))
    return (*vjp(given)[:-1], None, None, None)


_register_autograd("scp_backward", _differentiate_twice, _setup_backward_context, backend_index=-2)


def forward(problem: Problem, *arguments: Any, through_dispatcher: bool) -> Tensor:
    """``scp_forward``, in a form that ``torch.func`` can differentiate too, and without detours where it can be.

    Args:
        problem: that of the arguments.
        arguments: of ``scp_forward``.
        through_dispatcher: what :func:`needs_dispatcher` says of the tensors.
    """
    if through_dispatcher:
        if "Grad" in _torch_compat.transforms():
            return _TransformableForward.apply(*arguments)
        return scp_forward(*arguments)
    if torch.is_grad_enabled() and any([t is not None and t.requires_grad for t in arguments[:9]]):
        return _EagerFunction.apply(*arguments, problem)
    return _forward(problem, *arguments)


class _EagerFunction(torch.autograd.Function):
    """The kernels, called as they are."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        arguments, problem = inputs[:-1], inputs[-1]
        logits = _forward(problem, *arguments)
        _setup_context(ctx, arguments, logits)
        ctx.problem = problem
        return logits

    @staticmethod
    def backward(ctx: Any, grad_logits: Tensor) -> tuple[Tensor | None, ...]:
        return (*_differentiate(ctx, grad_logits), None)


# Registered autograd formulas are closed to torch.func's grad and vjp; an autograd.Function of them is not.
class _TransformableForward(torch.autograd.Function):
    generate_vmap_rule = True
    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_differentiate)

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return scp_forward(*arguments)


class _TransformableBackward(torch.autograd.Function):
    generate_vmap_rule = True
    setup_context = staticmethod(_setup_backward_context)
    backward = staticmethod(_differentiate_twice)

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return scp_backward(*arguments)


def _fold(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """A tensor ``[B, …]`` that vmap maps over ``dim`` as one of ``size·B`` samples."""
    tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.flatten(0, 1)


def _fold_matrix(position_matrix: Tensor, dim: int | None, size: int, batch: int) -> Tensor:
    """The position matrices of the folded batch: one for all where there was one, else one per sample."""
    if dim is None:
        return position_matrix if position_matrix.ndim == 2 else _fold(position_matrix, None, size)
    position_matrix = position_matrix.movedim(dim, 0)
    if position_matrix.ndim == 3:
        position_matrix = position_matrix.unsqueeze(1).expand(size, batch, *position_matrix.shape[1:])
    return position_matrix.flatten(0, 1)


def _one_by_one(operator: Any, size: int, in_dims: Sequence[Any], arguments: Sequence[Any]) -> tuple[Tensor, ...]:
    """Each of the operator's results (one, or several), stacked over the samples of a vmap."""
    pairs = list(zip(arguments, in_dims, strict=True))
    if size == 0:  # the shapes are those of a sample of zeros
        pairs = [(a.new_zeros((*a.shape[:d], 1, *a.shape[d + 1 :])) if isinstance(d, int) else a, d) for a, d in pairs]
    results = [operator(*(a.select(d, k) if isinstance(d, int) else a for a, d in pairs)) for k in range(size or 1)]
    rows = [(result,) if isinstance(result, Tensor) else result for result in results]
    return tuple(torch.stack(column)[:size] for column in zip(*rows, strict=True))


def _samples(features: Tensor, dim: int | None) -> int:
    """B of features that vmap maps over ``dim``."""
    return features.shape[0 if dim is None or dim > 0 else 1]


def _mapped(in_dims: Sequence[Any]) -> bool:
    return any(dim is not None for dim in in_dims)


@torch.library.register_vmap("scp_kernels::scp_forward")
def _forward_vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
    features, *parameters, position_matrix, backend = arguments
    size = info.batch_size
    if _mapped(in_dims[1:9]):  # every sample has a Φ of its own: there is nothing to share
        return _one_by_one(scp_forward, size, in_dims, arguments)[0], 0
    folded, batch = _fold(features, in_dims[0], size), _samples(features, in_dims[0])
    position_matrix = _fold_matrix(position_matrix, in_dims[9], size, batch)
    logits = scp_forward(folded, *parameters, position_matrix, backend)
    return logits.unflatten(0, (size, batch)), 0


@torch.library.register_vmap("scp_kernels::scp_backward")
def _backward_vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    grad_logits, features, *parameters, position_matrix, backend, needs = arguments
    size = info.batch_size
    if _mapped(in_dims[2:9]) or any(needs[1:]):  # parameters' gradients are sums over a batch, here wanted apart
        return _one_by_one(scp_backward, size, in_dims, arguments), (0,) * len(needs)
    folded, batch = _fold(features, in_dims[1], size), _samples(features, in_dims[1])
    position_matrix = _fold_matrix(position_matrix, in_dims[9], size, batch)
    of_features, *empty = scp_backward(
        _fold(grad_logits, in_dims[0], size), folded, *parameters, position_matrix, backend, needs
    )
    if needs[0]:
        of_features = of_features.unflatten(0, (size, batch))
    return (of_features, *empty), tuple(0 if need else None for need in needs)


def _flops(features: Sequence[int], w1: Sequence[int], w2: Sequence[int], residual: Sequence[int], m: Sequence[int]):
    """Nominal FLOPs (two per multiply-add) of a forward, from shapes; Φ counts once per pixel, whatever the batch."""
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
