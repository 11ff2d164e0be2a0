"""The torch operators: schemas, fakes, autograd, vmap and FLOP formulas. Nothing else registers anything.

``scp_kernels::scp_forward`` and ``scp_kernels::scp_backward`` run a compiled backend, named by their last argument.
They own what all backends share: empty problems, dtypes, and the gradients of w_r and β. The reference needs no
operator: it is plain PyTorch. Second derivatives of compiled backends are those of the reference.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._library.autograd import Info, make_autograd_impl
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from scp_kernels import dispatch
from scp_kernels.problem import GradientNeeds, SCPInputs, problem_of
from scp_kernels.reference import classify, map_indices

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


def _groups(matrix: Tensor) -> int:
    return matrix.shape[0] if matrix.ndim == 3 else 1


def _canonical(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous and in ``dtype``: itself, if it is. (Asking costs less than calling what would return it.)"""
    if parameter.dtype == dtype and parameter.is_contiguous():
        return parameter
    return parameter.to(dtype).contiguous()


def _in_memory(tensor: Tensor) -> Tensor:
    """The tensor itself, unless its memory does not say its values.

    Kernels read memory: they see neither the negative bit of a view (of ``z.conj().imag``) nor that a tensor of zeros
    has no memory at all. PyTorch's dispatcher looks after that; who goes past it has to.
    """
    if tensor.is_neg():
        return tensor.resolve_neg()
    return tensor.clone() if tensor._is_zerotensor() else tensor


def _forward(
    features: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, b3: Tensor, residual: Tensor,
    bias: Tensor | None, position_matrix: Tensor, backend: str,
) -> Tensor:  # fmt: skip
    problem = problem_of(features, w1, w2, residual, _groups(position_matrix))
    if problem.is_empty:
        return features.new_empty(problem.batch, problem.num_classes, *problem.spatial_shape)
    dtype = problem.compute_dtype
    phi = tuple([_canonical(t, dtype) for t in (w1, b1, w2, b2, w3, b3)])
    bias = None if bias is None else _canonical(bias, dtype)
    inputs = SCPInputs(features, phi, _canonical(residual, dtype), bias, position_matrix, problem)
    return dispatch.BACKENDS[backend].forward(inputs)


def _backward(
    grad_logits: Tensor, features: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, b3: Tensor,
    residual: Tensor, position_matrix: Tensor, backend: str, needs: Sequence[bool],
) -> list[Tensor]:  # fmt: skip
    parameters = (w1, b1, w2, b2, w3, b3, residual)
    problem = problem_of(features, w1, w2, residual, _groups(position_matrix))
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
        gradients[0], of_parameters = dispatch.BACKENDS[backend].backward(inputs, grad_logits, backend_needs)
        if of_parameters is not None:
            # w_r and b3 enter the weight field alike, so their gradients are the same numbers.
            found = (*of_parameters, of_parameters[5].view_as(residual).clone())
            for k, (parameter, gradient) in enumerate(zip(parameters, found, strict=True), start=1):
                if needs[k]:
                    gradients[k] = gradient.to(parameter.dtype)
    return [features.new_empty(0) if gradient is None else gradient for gradient in gradients]


torch.library.impl("scp_kernels::scp_forward", "CompositeExplicitAutograd", _forward)
torch.library.impl("scp_kernels::scp_backward", "CompositeExplicitAutograd", _backward)


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


def refuse_forward_mode(backend: str) -> None:
    """Say that there is no forward-mode derivative: without it, autograd would give a tangent of zeros."""
    raise NotImplementedError(
        f"backend={backend!r}: compiled backends have no forward-mode derivative (jvp, jacfwd, hessian); "
        "use backend='reference', or 'auto'"
    )


def _register_autograd(name: str, formula: Any, setup_context: Any, backend_index: int) -> None:
    """What ``torch.library.register_autograd`` does, and a refusal of tangents, which it would drop.

    ``scp`` has refused them already, unless the operator is called by itself or from an exported program.
    """
    operator = getattr(torch.ops.scp_kernels, name).default
    differentiate = make_autograd_impl(operator, Info(formula, setup_context))

    def kernel(keyset: Any, *arguments: Any) -> Any:
        if forward_ad._current_level >= 0:
            tensors = [a for a in arguments if isinstance(a, Tensor)]
            if any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
                refuse_forward_mode(arguments[backend_index])
        return differentiate(keyset, *arguments)

    _autograd_kernels.impl(name, kernel, "Autograd", with_keyset=True)


_autograd_kernels = torch.library.Library("scp_kernels", "IMPL")  # lives as long as the registrations


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, bias, matrix, ctx.backend = inputs
    ctx.unwatched = False
    ctx.save_for_backward(*tensors, matrix)
    ctx.has_bias = bias is not None


def _differentiate(ctx: Any, grad_logits: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, matrix = ctx.saved_tensors
    needs = [bool(n) for n in ctx.needs_input_grad[:9]]
    needs[8] = needs[8] and ctx.has_bias
    if _transforming():
        backward = _TransformableBackward.apply
    elif not ctx.unwatched or torch.is_grad_enabled() or watched(grad_logits, *tensors):
        backward = scp_backward
    else:
        backward, grad_logits = _backward, _in_memory(grad_logits)
    gradients = backward(grad_logits, *tensors, matrix, ctx.backend, needs)
    return (*(g if need else None for g, need in zip(gradients, needs, strict=True)), None, None)


_register_autograd("scp_forward", _differentiate, _setup_context, backend_index=-1)


def _setup_backward_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, _, ctx.needs = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_twice(ctx: Any, *cotangents: Any) -> tuple[Tensor | None, ...]:
    """Derivatives of scp_backward, through the reference; they are differentiable again."""
    if len(cotangents) == 1:  # a registered formula is given the list, an autograd.Function its elements
        (cotangents,) = cotangents
    grad_logits, features, *parameters, matrix = ctx.saved_tensors
    s = map_indices(matrix, features.shape[2:])

    def logits(features: Tensor, *parameters: Tensor) -> Tensor:
        *phi, residual, bias = parameters
        return classify(features, s, phi, residual, bias)

    def gradients(grad_logits: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        found = torch.func.vjp(logits, *inputs)[1](grad_logits)
        return tuple(g for g, need in zip(found, ctx.needs, strict=True) if need)

    bias = parameters[0].new_zeros(parameters[-1].shape[0])  # its value has no part in any gradient
    first, vjp = torch.func.vjp(gradients, grad_logits, features, *parameters, bias)  # type: ignore[misc]
    wanted = (c for c, need in zip(cotangents, ctx.needs, strict=True) if need)
    given = tuple(torch.zeros_like(g) if c is None else c for g, c in zip(first, wanted, strict=True))
    return (*vjp(given)[:-1], None, None, None)


_register_autograd("scp_backward", _differentiate_twice, _setup_backward_context, backend_index=-2)


def forward(*arguments: Any) -> Tensor:
    """``scp_forward``, in a form that ``torch.func`` can differentiate too, and without detours where it can be."""
    if _transforming():
        return _TransformableForward.apply(*arguments)
    tensors = [t for t in arguments[:-1] if t is not None]
    if watched(*tensors):
        return scp_forward(*arguments)
    if tensors[0]._is_zerotensor() or any(map(Tensor.is_neg, tensors)):
        arguments = tuple(_in_memory(a) if isinstance(a, Tensor) else a for a in arguments)
    if torch.is_grad_enabled() and any([t.requires_grad for t in tensors]):
        return _Unwatched.apply(*arguments)
    return _forward(*arguments)


def watched(*tensors: Tensor) -> bool:
    """Whether somebody is to see the registered operators: a compiler, a tracer, a mode, a profiler, a subclass.

    Where nobody is, their kernels are called as they are: PyTorch's dispatcher takes longer than a small head.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or torch.autograd._profiler_enabled()
        or not _PLAIN_TYPES.issuperset(map(type, tensors))
    )


_PLAIN_TYPES = {Tensor, torch.nn.Parameter}


class _Unwatched(torch.autograd.Function):
    backward = staticmethod(_differentiate)

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        logits = _forward(*arguments)
        _setup_context(ctx, arguments, logits)
        ctx.unwatched = True
        return logits


def _transforming() -> bool:
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


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
        return tuple(scp_backward(*arguments))


def _fold(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """A tensor ``[B, …]`` that vmap maps over ``dim`` as one of ``size·B`` samples."""
    tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.flatten(0, 1)


def _fold_matrix(matrix: Tensor, dim: int | None, size: int, batch: int) -> Tensor:
    """The position matrices of the folded batch: one for all where there was one, else one a sample."""
    if dim is None:
        return matrix if matrix.ndim == 2 else _fold(matrix, None, size)
    matrix = matrix.movedim(dim, 0)
    if matrix.ndim == 3:
        matrix = matrix.unsqueeze(1).expand(size, batch, *matrix.shape[1:])
    return matrix.flatten(0, 1)


def _one_by_one(operator: Any, size: int, in_dims: Sequence[Any], arguments: Sequence[Any]) -> list[Tensor]:
    """Each of the operator's results (one, or a list), stacked over the samples of a vmap."""
    pairs = list(zip(arguments, in_dims, strict=True))
    if size == 0:  # the shapes are those of a sample of zeros
        pairs = [(a.new_zeros((*a.shape[:d], 1, *a.shape[d + 1 :])) if isinstance(d, int) else a, d) for a, d in pairs]
    found = [operator(*(a.select(d, k) if isinstance(d, int) else a for a, d in pairs)) for k in range(size or 1)]
    columns = [[f] if isinstance(f, Tensor) else f for f in found]
    return [torch.stack(column)[:size] for column in zip(*columns, strict=True)]


def _samples(features: Tensor, dim: int | None) -> int:
    """B of features that vmap maps over ``dim``."""
    return features.shape[0 if dim is None or dim > 0 else 1]


def _mapped(in_dims: Sequence[Any]) -> bool:
    return any(dim is not None for dim in in_dims)


@torch.library.register_vmap("scp_kernels::scp_forward")
def _forward_vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
    features, *parameters, matrix, backend = arguments
    size = info.batch_size
    if _mapped(in_dims[1:9]):  # every sample has a Φ of its own: there is nothing to share
        return _one_by_one(scp_forward, size, in_dims, arguments)[0], 0
    folded, batch = _fold(features, in_dims[0], size), _samples(features, in_dims[0])
    matrix = _fold_matrix(matrix, in_dims[9], size, batch)
    logits = scp_forward(folded, *parameters, matrix, backend)
    return logits.unflatten(0, (size, batch)), 0


@torch.library.register_vmap("scp_kernels::scp_backward")
def _backward_vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[list[Tensor], list[int | None]]:
    grad_logits, features, *parameters, matrix, backend, needs = arguments
    size = info.batch_size
    if _mapped(in_dims[2:9]) or any(needs[1:]):  # parameters' gradients are sums over a batch, here wanted apart
        return _one_by_one(scp_backward, size, in_dims, arguments), [0] * len(needs)
    folded, batch = _fold(features, in_dims[1], size), _samples(features, in_dims[1])
    matrix = _fold_matrix(matrix, in_dims[9], size, batch)
    gradients = scp_backward(_fold(grad_logits, in_dims[0], size), folded, *parameters, matrix, backend, needs)
    if needs[0]:
        gradients[0] = gradients[0].unflatten(0, (size, batch))
    return gradients, [0 if need else None for need in needs]


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
