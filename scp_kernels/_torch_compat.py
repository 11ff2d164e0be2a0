"""All that the package uses of PyTorch's private interfaces: each with the public one that was tried instead.

A name that the installed PyTorch lacks is listed in :data:`MISSING`, and the package takes the path that public
interfaces allow: slower, with the same results. The dictionaries of ``nn.Module`` that subclasses may use
(``_parameters``, ``_buffers``, ``_modules``, ``_forward_pre_hooks``) and what a tensor subclass overrides are not
counted as private.
"""

import pkgutil
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import has_torch_function

Function = TypeVar("Function", bound=Callable[..., Any])

PRIVATE = {
    "torch._C._dispatch_keys": "a plain tensor cannot be told from a wrapper, and every call goes by the dispatcher",
    "torch._C._dispatch_tls_local_include_set": "modes and tracers are not seen, and every call goes by the dispatcher",
    "torch._C.DispatchKeySet.raw_repr": "as without _dispatch_keys",
    "torch.autograd._profiler_enabled": "a profiler is not seen, and every call goes by the dispatcher",
    "torch._C._are_functorch_transforms_active": "every call goes by an autograd.Function that transforms take",
    "torch._C._functorch.get_interpreter_stack": "as without _are_functorch_transforms_active",
    "torch._C._current_graph_task_id": "a backward pass in a thread of autograd does not see the context around it",
    "torch._library.autograd.make_autograd_impl": "an operator called by itself takes a dual number for a constant",
    "torch._library.autograd.Info": "as without make_autograd_impl",
    "torch.autograd.forward_ad._current_level": "every tensor is asked for a tangent",
}
"""Names, and what is done without them."""

MISSING: list[str] = []
"""Those that the installed PyTorch lacks."""


def _find(path: str) -> Any:
    """What has this name in PyTorch, or None."""
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError):
        MISSING.append(path)
        return None


_private = {path: _find(path) for path in PRIVATE}
_dispatch_keys = _private["torch._C._dispatch_keys"]
_included_keys = _private["torch._C._dispatch_tls_local_include_set"]
_raw_repr = _private["torch._C.DispatchKeySet.raw_repr"]
_profiler_enabled = _private["torch.autograd._profiler_enabled"]
_transforms_active = _private["torch._C._are_functorch_transforms_active"]
_interpreter_stack = _private["torch._C._functorch.get_interpreter_stack"]
_graph_task = _private["torch._C._current_graph_task_id"]
_make_autograd_impl = _private["torch._library.autograd.make_autograd_impl"]
_Info = _private["torch._library.autograd.Info"]

_PLAIN_KEYS = {f"{prefix}{device}" for prefix in ("", "Autograd", "Autocast") for device in ("CPU", "CUDA")}
_PLAIN_KEYS |= {"ADInplaceOrView", "BackendSelect"}
_plain_tensors: set[int] = set()
_plain_threads: set[int] = set()


def constant_to_dynamo(function: Function) -> Function:
    """Let Dynamo run ``function`` while it traces, and keep the answer.

    All that ``torch.compiler.assume_constant_result`` does, but for importing the compiler, which takes seconds. A
    PyTorch that does not look for the mark traces the function, or breaks the graph there.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_to_dynamo  # it guards the level that it found at first, and enters those of a jvp that it traces
def _dual_level() -> int:
    return forward_ad._current_level


def in_forward_mode(tensors: Sequence[Tensor]) -> bool:
    """Whether forward-mode derivatives are being computed. ``forward_ad.unpack_dual`` tells it of one tensor alone."""
    return _dual_level() >= 0


if "torch.autograd.forward_ad._current_level" in MISSING:

    def in_forward_mode(tensors: Sequence[Tensor]) -> bool:
        return any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def needs_dispatcher(tensors: Sequence[Tensor]) -> bool:
    """Whether a call on these tensors has to go by PyTorch's dispatcher, which takes longer than a small head.

    It does where somebody is to see the operators (a compiler, a tracer, a mode, a transform of ``torch.func``, legacy
    vmap, a profiler, forward mode), and where memory does not say a tensor's values: subclasses, wrappers of every
    kind, the negative bit, tensors of zeros without memory.

    A tensor's dispatch keys tell all of the latter, those of a future PyTorch too, and a thread's included keys most of
    the former. Publicly there are ``torch.overrides.has_torch_function`` (subclasses and function modes: it is used),
    ``torch.jit.is_tracing`` and ``Tensor.is_neg``; nothing tells of dispatch modes, of transforms, of functional and of
    batched tensors, or of profilers.
    """
    return (
        torch.compiler.is_compiling()
        or in_forward_mode(tensors)
        or has_torch_function(tensors)
        or _profiler_enabled()
        or (_raw_repr(_included_keys()) not in _plain_threads and not _learn(_plain_threads, _included_keys()))
        or (
            not _plain_tensors.issuperset(map(_raw_repr, map(_dispatch_keys, tensors)))
            and not all([_learn(_plain_tensors, _dispatch_keys(t)) for t in tensors])
        )
    )


def _learn(known: set[int], keys: Any) -> bool:
    """Whether a set of dispatch keys holds plain ones alone; if so, it is known from now on (names are slow)."""
    plain = _PLAIN_KEYS.issuperset(re.findall(r"\w+", str(keys))[1:])  # DispatchKeySet(CPU, AutogradCPU, …)
    if plain:
        known.add(_raw_repr(keys))
    return plain


if None in (_dispatch_keys, _included_keys, _raw_repr, _profiler_enabled):

    def needs_dispatcher(tensors: Sequence[Tensor]) -> bool:
        return True


def transforms() -> set[str]:
    """The transforms of ``torch.func`` around a call: ``"Grad"``, ``"Vmap"``, ``"Jvp"``, ``"Functionalize"``.

    Nothing public tells. Without the private names the answer is ``{"Grad"}``, whose path the others can take too, but
    for functionalize, which then refuses compiled backends.
    """
    if torch.compiler.is_compiling() or (_transforms_active is not None and not _transforms_active()):
        return set()
    if _transforms_active is None or _interpreter_stack is None:
        return {"Grad"}
    return {interpreter.key().name for interpreter in _interpreter_stack()}


def in_backward() -> bool:
    """Whether autograd is running a backward pass in this thread. Nothing public tells."""
    return _graph_task is not None and _graph_task() >= 0


def autograd_kernel(operator: Any, backward: Callable[..., Any], setup_context: Callable[..., Any]) -> Any:
    """The kernel that ``torch.library.register_autograd`` registers, or None.

    That one drops tangents without a word, so that the derivative is zero; this one can be wrapped by what refuses.
    """
    if _make_autograd_impl is None or _Info is None:
        return None
    return _make_autograd_impl(operator, _Info(backward, setup_context))


def uncompiled(module: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` has wrapped, or the module itself. Nothing public tells."""
    return getattr(module, "_orig_mod", module)
