"""Positions for the calls of a context: kept per thread and task, so that a network can be shared.

The truth is one context variable, which threads and tasks each have a value of. Dynamo cannot read it: for graphs, each
head has the same once more in an object whose attributes are per thread, which guards can look at. Where the two could
differ (tasks of one thread, generators), a graph refuses; where a context was carried into a thread, the hooks of the
compiled network make them equal for its call.
"""

import itertools
import sys
import threading
from collections.abc import Sequence
from contextlib import ContextDecorator
from contextvars import ContextVar
from inspect import CO_ASYNC_GENERATOR, CO_GENERATOR, isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from scp_kernels._torch_compat import in_backward, uncompiled
from scp_kernels.checks import ArrayLike, check_alone
from scp_kernels.placement import Placement, affine_of_input


class HeadState(threading.local):
    """A head's placement in the current thread, for graphs; by its identity the head is known in contexts."""

    def __init__(self) -> None:
        self.placement: Placement | None = None


class _Entry:
    """A context that has been entered and not left."""

    def __init__(self, placements: dict[HeadState, Placement], frame: FrameType | None) -> None:
        self.placements = placements
        self.frame = frame
        self.thread = threading.get_ident()

    def holds(self, state: HeadState) -> bool:
        """Whether calls of the head that are made now are inside."""
        if state not in self.placements:
            return False
        if self.frame is None:
            return True
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not self.frame:
            frame = frame.f_back
        return frame is not None


_entries: ContextVar[tuple[_Entry, ...]] = ContextVar("scp_kernels.positioned", default=())
_open: list[_Entry] = []  # of all threads, in the order in which they were entered
_lock = threading.Lock()


def current_placement(state: HeadState, default: Placement | None) -> Placement | None:
    """The placement of a head for the call that is being made: the innermost context's, or ``default``.

    Raises:
        RuntimeError: a graph cannot tell which context it is in; or a backward pass calls the head again in a thread of
            autograd, and several threads have contexts of it.
    """
    if torch.compiler.is_compiling():
        placement = state.placement
        if placement is None:
            return default
        if not placement.in_graphs:
            raise RuntimeError(
                "positioned: entered by an asyncio task or a generator, whose positions a compiled network cannot see; "
                "call it outside of torch.compile, or give the head its position arguments"
            )
        return placement
    return _innermost(state) or default


def _innermost(state: HeadState) -> Placement | None:
    """The placement of the innermost context that the call being made is inside of."""
    entries = _entries.get()
    if not entries and _open and in_backward():
        entries = _entries_of_backward(state)
    for entry in reversed(entries):
        if entry.holds(state):
            return entry.placements[state]
    return None


def _entries_of_backward(state: HeadState) -> tuple[_Entry, ...]:
    """The contexts around a backward pass that autograd runs in a thread of its own (activation checkpointing)."""
    with _lock:
        entries = tuple(entry for entry in _open if state in entry.placements)
    if len({entry.thread for entry in entries}) > 1:
        raise RuntimeError(
            "positioned: a backward pass calls the head again while several threads have contexts of it; "
            "give the head its position arguments, or a network of its own to each thread"
        )
    return entries


class _Positioned(ContextDecorator):
    def __init__(self, network: nn.Module, arguments: dict[str, Any]) -> None:
        self.outermost = network
        self.network = uncompiled(network)
        self.arguments = arguments
        self.entry: _Entry | None = None

    def _recreate_cm(self) -> "_Positioned":
        return _Positioned(self.outermost, self.arguments)

    def __call__(self, function: Any) -> Any:
        if isgeneratorfunction(function) or iscoroutinefunction(function) or isasyncgenfunction(function):
            raise TypeError(
                f"positioned: expected a plain function to decorate, got {function.__qualname__}, which is left before "
                "its body runs; use `with positioned(...)` inside of it"
            )
        return super().__call__(function)

    def __enter__(self) -> None:
        if self.entry is not None:
            raise RuntimeError("positioned: this context is entered already; make one for each `with`")
        heads = _heads(self.network)
        if not heads:
            name = type(self.network).__name__
            raise ValueError(f"network: expected a FusedSCP somewhere in it, got {name}")
        owner = _hook(self.network, heads).number
        if self.outermost is not self.network:
            _tell_graphs_of(self.outermost, heads)
        frame_of_generator = _generator_that_enters(sys._getframe(1))
        placements = {}
        for head in heads:
            device = head.phi[0].weight.device  # replicas of nn.DataParallel have no parameters
            outer = current_placement(head.position_state, head.placement)
            placement = placements[head.position_state] = Placement(**self.arguments, outer=outer, device=device)
            placement.owner = owner
            placement.in_graphs = frame_of_generator is None and not _in_task()
        self.entry = _Entry(placements, frame_of_generator)
        with _lock:
            _open.append(self.entry)
        _entries.set((*_entries.get(), self.entry))
        _tell_graphs(self.entry)

    def __exit__(self, *exception: object) -> None:
        entry, self.entry = self.entry, None
        assert entry is not None
        # By identity: contexts of generators are not left in the order in which they were entered.
        _entries.set(tuple(e for e in _entries.get() if e is not entry))
        with _lock:
            _open.remove(entry)
        _tell_graphs(entry)


def positioned(
    network: nn.Module,
    *,
    origin: ArrayLike | None = None,
    affine: ArrayLike | None = None,
    extent: ArrayLike | None = None,
    coordinates: Tensor | None = None,
    coordinates_as: str = "affine",
) -> _Positioned:
    """Say where a network's input lies in the full image, for a network whose ``forward`` takes the image alone.

    Inside the context, every :class:`scp_kernels.FusedSCP` of ``network`` takes these position arguments, in pixels of
    the network's input::

        with positioned(network, origin=(32, 64), extent=(160, 224)):
            logits = network(patch)

    ``origin`` without ``extent`` places the input in a full image of the input's own size: for a crop, give both.
    ``coordinates`` (with ``extent``) are the position of every pixel of the input as channels, ``[B, K, *spatial]`` or
    with one of validity behind them, in the place of ``affine``, which is read off here, once for all heads
    (:func:`scp_kernels.affine_of_coordinates`).

    A head whose feature map has another size than the input (deep supervision) takes them scaled to its own grid (see
    :class:`scp_kernels.Placement`). An inner context stands before an outer one, and what a call gives itself before
    both; what the inner one does not say, the outer one does. Networks under ``torch.compile`` follow, compiled before
    or inside: numbers become tensors, so other values of them make no new graph. Under activation checkpointing the
    backward pass belongs into the context too, since it calls the head again.

    A context is that of its thread and its asyncio task: others that share the network do not see it, nor do threads
    that are started inside (``contextvars.copy_context().run`` takes it there; ``nn.DataParallel`` does it). One that a
    generator holds over a ``yield`` is the generator's alone. In tasks and in generators compiled networks refuse; a
    context that is carried into a thread reaches the compiled network that it was given, ``torch.compile(network)``.

    Raises:
        ValueError: the network has no such head, or both ``origin`` and ``affine`` are given.
        ValueError, TypeError: values that cannot be positions; wrong shapes are told when the network is called.
    """
    check_alone(origin, affine)
    if coordinates is not None:
        affine = affine_of_input(origin, affine, extent, coordinates, coordinates_as)
    return _Positioned(network, {"origin": origin, "affine": affine, "extent": extent})


def placement_for_replica(state: HeadState, default: Placement | None) -> Placement | None:
    """The placement of a call's replica in ``nn.DataParallel``, which calls it in a thread without the context.

    Raises:
        RuntimeError: the context is that of a network inside, whose replicas would have to see it.
    """
    placement = current_placement(state, default)
    if placement is not None and placement.owner is not None and placement.input_shape is None:
        raise RuntimeError("positioned: expected the DataParallel module itself, got a network inside of it")
    return placement


def _tell_graphs(changed: _Entry) -> None:
    """Give the heads of an entry their innermost open context in this thread, whichever task or generator holds it."""
    thread = threading.get_ident()
    for state in changed.placements:
        with _lock:
            placements = [e.placements[state] for e in _open if e.thread == thread and state in e.placements]
        state.placement = placements[-1] if placements else None


def _generator_that_enters(frame: FrameType | None) -> FrameType | None:
    """The frame that enters a context, if it is a generator's.

    Exit stacks, helpers that ``contextlib`` made contexts of, and classes that are contexts themselves enter it in the
    name of their caller.
    """
    while frame is not None and (_enters_for_its_caller(frame) or _is_of_contextlib(frame.f_back)):
        frame = frame.f_back
    if frame is None or not frame.f_code.co_flags & (CO_GENERATOR | CO_ASYNC_GENERATOR):
        return None
    return frame


def _enters_for_its_caller(frame: FrameType) -> bool:
    return _is_of_contextlib(frame) or frame.f_code.co_name in ("__enter__", "__aenter__")


def _is_of_contextlib(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_globals.get("__name__") == "contextlib"


def _in_task() -> bool:
    asyncio = sys.modules.get("asyncio")
    try:
        return asyncio is not None and asyncio.current_task() is not None
    except RuntimeError:  # no loop is running in this thread
        return False


def _heads(network: nn.Module) -> list[Any]:
    return [module for module in network.modules() if isinstance(getattr(module, "position_state", None), HeadState)]


_numbers = itertools.count()


class _InputShape:
    """A network's hook that tells the placements of its contexts the spatial size of the input.

    It is registered once and stays, since other threads may be calling the network; it goes into copies and pickles.
    """

    def __init__(self, heads: Sequence[Any]) -> None:
        self.heads = heads
        self.number = next(_numbers)

    def __call__(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        for head in self.heads:
            placement = current_placement(head.position_state, None)
            while placement is not None:
                if placement.owner == self.number:
                    placement.input_shape = _image_shape(args, kwargs or {}, head.spatial_dims)
                placement = placement.outer


def _hook(network: nn.Module, heads: Sequence[Any]) -> _InputShape:
    with _lock:
        for hook in network._forward_pre_hooks.values():
            if isinstance(hook, _InputShape):
                if not getattr(network, "_is_replica", False):  # of nn.DataParallel: it shares its original's hooks
                    hook.heads = heads
                return hook
        hook = _InputShape(heads)
        network.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
        return hook


class _CarriedPlacements:
    """Hooks of a compiled network, which run outside of its graph: they tell its heads the contexts of the call.

    They matter where a context was carried into a thread or out of its ``with`` (``asyncio.to_thread``,
    ``contextvars.copy_context().run``), of which the heads' own record per thread knows nothing.
    """

    def __init__(self, heads: Sequence[Any]) -> None:
        self.heads = heads

    def before(self, network: nn.Module, args: tuple[Any, ...]) -> None:
        states = [head.position_state for head in self.heads]
        _replaced.calls.append([(state, state.placement) for state in states])
        for state in states:
            state.placement = _innermost(state)

    def after(self, network: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        for state, placement in _replaced.calls.pop():
            state.placement = placement


class _Replaced(threading.local):
    """What the heads of the calls under way in this thread were told before, call by call."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[HeadState, Placement | None]]] = []


_replaced = _Replaced()


def _tell_graphs_of(compiled: nn.Module, heads: Sequence[Any]) -> None:
    with _lock:
        for hook in compiled._forward_pre_hooks.values():
            if isinstance(owner := getattr(hook, "__self__", None), _CarriedPlacements):
                owner.heads = heads
                return
        hooks = _CarriedPlacements(heads)
        compiled.register_forward_pre_hook(hooks.before)
        compiled.register_forward_hook(hooks.after, always_call=True)


def _image_shape(args: tuple[Any, ...], kwargs: dict[str, Any], spatial_dims: int) -> tuple[int, ...] | None:
    """Spatial size of the first argument that is a batch of images."""
    for argument in (*args, *kwargs.values()):
        if isinstance(argument, Tensor) and argument.ndim == spatial_dims + 2:
            return tuple(argument.shape[2:])
    return None
