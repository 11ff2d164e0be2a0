"""The compiled CPU backend: csrc's C ABI (scp.h) called through ctypes.

The kernels evaluate Φ exactly by the kd-tree of specialised networks (csrc/README.md). They take any strides and any of
the four dtypes of features, so nothing is copied here.

The ISA target is the best that the machine has; the environment variable ``SCP_CPU_ISA`` (``avx512``, ``avx2``,
``portable``) chooses another, for tests and comparisons. Environment variables are read once, at the first call.

With frozen weights the field W is cached: from the third forward with the same parameters and positions on, it is read.
Each position map of a batch has a field of its own, so a slice finds its field whatever others it comes with.
Parameters are compared by content, so a cached field is never stale, and the logits are the same bit for bit. The cache
takes at most 64 MiB, or what the environment variable ``SCP_CPU_KEEP_MB`` says; 0 turns it off.
:func:`weight_field_cache_bytes` tells how much it holds, :func:`clear_weight_field_cache` empties it.
"""

import ctypes
import functools
import os
import threading
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from scp_kernels import counting
from scp_kernels.backends import _abi, _libraries
from scp_kernels.problem import GradientNeeds, Problem, SCPInputs

ISA_TARGETS = {"portable": 1, "avx2": 2, "avx512": 3}
METHODS = {"auto": 0, "tree": 1, "dense": 2}
ISA_VARIABLE = "SCP_CPU_ISA"
FORMER_ISA_VARIABLE = "SCP_CPU_LEVEL"
"""Deprecated name, read until 0.2."""
METHOD_VARIABLE = "SCP_CPU_METHOD"
CACHE_VARIABLE = "SCP_CPU_KEEP_MB"
CACHE_MB = 64

_FIELD_CACHE = ("unused", "stored", "read")


@dataclass(frozen=True)
class CallReport:
    """What the last call did, counted while it was done. Multiply-adds are Φ's, per pixel of a position map."""

    isa_target: str
    """ISA target that ran."""
    dense: bool
    """No tree was built: every pixel was evaluated with the full network."""
    nodes: int
    leaves: int
    pixels: int
    """Pixels at the leaves, over all position maps (a backward that evaluates W first counts them twice)."""
    map_pixels: int
    """Pixels of one position map."""
    unstable_units: tuple[float, float]
    """Mean number of unstable units at a pixel's leaf, of layers 1 and 2."""
    most_unstable_units: tuple[int, int]
    """The same, at the worst leaf."""
    build_macs: float
    """Multiply-adds per pixel spent in building the tree; in a backward also in its adjoint."""
    leaf_macs: float
    """Multiply-adds per pixel spent at the leaves, up to W; in a backward also from W's gradient back."""
    dense_macs: float
    """Multiply-adds per pixel of the plain evaluation of Φ, forward."""
    position_maps: int
    """Distinct position maps: samples with equal ones share one evaluation of Φ."""
    field_cache: str
    """``"stored"``: W of some position maps was evaluated and cached; else ``"read"``: that of some is of an earlier
    call; else ``"unused"``."""
    maps_read: int
    """Position maps whose W is that of an earlier call."""

    @property
    def macs(self) -> float:
        """Multiply-adds per pixel executed in all."""
        return self.build_macs + self.leaf_macs

    @property
    def total_macs(self) -> int:
        """Multiply-adds executed over all pixels of all position maps."""
        return round(self.macs * self.position_maps * self.map_pixels)


class _Last(threading.local):
    """A thread's last call: its report, and the problem, None before the first."""

    def __init__(self) -> None:
        self.problem: Problem | None = None
        self.report = (ctypes.c_double * _abi.REPORT_SIZE)()
        self.message = _abi.Message()


_last = _Last()


def last_report() -> CallReport:
    """What this thread's last call of the CPU backend did.

    Raises:
        RuntimeError: the thread has made none.
    """
    report, problem = _last.report, _last.problem
    if problem is None:
        raise RuntimeError("last_report: this thread has not called the CPU backend yet")
    isa_target, dense, nodes, leaves, pixels, unstable1, unstable2, most1, most2, build, leaf = report[:11]
    maps, cache, maps_read = report[11:14]
    scale = 1 / max(pixels, 1.0)
    per_pixel = 1 / max(maps * problem.pixels, 1.0)
    return CallReport(
        isa_target=_isa_target_name(int(isa_target)),
        dense=bool(dense),
        nodes=int(nodes),
        leaves=int(leaves),
        pixels=int(pixels),
        map_pixels=problem.pixels,
        unstable_units=(unstable1 * scale, unstable2 * scale),
        most_unstable_units=(int(most1), int(most2)),
        build_macs=build * per_pixel,
        leaf_macs=leaf * per_pixel,
        dense_macs=problem.phi_macs / (problem.groups * problem.pixels),
        position_maps=int(maps),
        field_cache=_FIELD_CACHE[int(cache)],
        maps_read=int(maps_read),
    )


def _isa_target_name(number: int) -> str:
    return next(name for name, target in ISA_TARGETS.items() if target == number)


def weight_field_cache_bytes() -> int:
    """Memory, in bytes, of the weight fields that are cached for frozen weights."""
    return _library().scp_cpu_weight_field_cache_bytes()


def clear_weight_field_cache() -> None:
    """Empty the cache; calls that are under way keep the field that they read until they end."""
    _library().scp_cpu_clear_weight_field_cache()


class CpuBackend:
    """The ``"cpu"`` backend: see :class:`scp_kernels.dispatch.Backend`."""

    name = "cpu"
    device_type = "cpu"

    def unavailable_reason(self) -> str | None:
        try:
            loaded = _library()
        except _libraries.LibraryUnavailable as error:
            return str(error)
        target = settings().isa_target
        if target and not loaded.scp_cpu_isa_targets() >> target & 1:
            raise ValueError(
                f"{ISA_VARIABLE}={_isa_target_name(target)}: this machine does not have these instructions"
            )
        return None

    def unsupported_reason(self, problem: Problem) -> str | None:
        if problem.device.type != "cpu":
            return f"features are on {problem.device}, this backend runs on the CPU"
        return _abi.cannot_describe(problem)

    def forward(self, inputs: SCPInputs) -> Tensor:
        features, phi, residual, bias, position_matrix, problem = inputs
        logits = torch.empty(
            (problem.batch, problem.num_classes, *problem.spatial_shape), dtype=features.dtype, device=features.device
        )
        position_matrix = position_matrix.contiguous()
        call = _call(features, logits, phi, residual, position_matrix, problem)
        if bias is not None:
            call.bias = bias.data_ptr()
        call.cache_bytes = settings().cache_bytes
        _run(_library().scp_cpu_forward, call, problem)
        return logits

    def backward(
        self, inputs: SCPInputs, grad_logits: Tensor, needs: GradientNeeds
    ) -> tuple[Tensor | None, tuple[Tensor, ...] | None]:
        features, phi, residual, _, position_matrix, problem = inputs
        position_matrix = position_matrix.contiguous()
        call = _call(features, grad_logits, phi, residual, position_matrix, problem)
        grad_features = torch.empty_like(features) if needs.features else None
        if grad_features is not None:
            call.grad_features = _abi.describe_tensor(grad_features)
        parameters = _abi.gradients(call, dict(zip(_abi.PHI, phi, strict=True))) if needs.parameters else None
        _run(_library().scp_cpu_backward, call, problem)
        return grad_features, parameters


@dataclass(frozen=True)
class Settings:
    """What the environment asks of the kernels, as ``struct scp_call`` says it."""

    isa_target: int
    method: int
    cache_bytes: int


@functools.cache
def settings() -> Settings:
    """The environment's settings.

    Raises:
        ValueError: a variable has a value that it cannot have.
    """
    target = os.environ.get(ISA_VARIABLE)
    if not target and (target := os.environ.get(FORMER_ISA_VARIABLE)):
        message = f"{FORMER_ISA_VARIABLE} is now {ISA_VARIABLE}; the old name goes in version 0.2"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
    if target and target not in ISA_TARGETS:
        raise ValueError(f"{ISA_VARIABLE}: expected one of {tuple(ISA_TARGETS)}, got {target!r}")
    method = os.environ.get(METHOD_VARIABLE) or "auto"
    if method not in METHODS:
        raise ValueError(f"{METHOD_VARIABLE}: expected one of {tuple(METHODS)}, got {method!r}")
    megabytes = os.environ.get(CACHE_VARIABLE) or str(CACHE_MB)
    if not megabytes.isdecimal():
        raise ValueError(f"{CACHE_VARIABLE}: expected a number of MiB, got {megabytes!r}")
    return Settings(ISA_TARGETS[target] if target else 0, METHODS[method], int(megabytes) << 20)


_loaded: ctypes.CDLL | None = None


def _library() -> ctypes.CDLL:
    global _loaded
    if _loaded is None:
        loaded = _libraries.load("cpu")
        for function in (loaded.scp_cpu_forward, loaded.scp_cpu_backward):
            function.argtypes = (ctypes.POINTER(_abi.Call), ctypes.c_char_p, ctypes.c_int64)
            function.restype = ctypes.c_int
        loaded.scp_cpu_isa_targets.argtypes = ()
        loaded.scp_cpu_isa_targets.restype = ctypes.c_int
        loaded.scp_cpu_weight_field_cache_bytes.argtypes = loaded.scp_cpu_clear_weight_field_cache.argtypes = ()
        loaded.scp_cpu_weight_field_cache_bytes.restype = ctypes.c_int64
        loaded.scp_cpu_clear_weight_field_cache.restype = None
        _loaded = loaded
    return _loaded


def _call(
    features: Tensor,
    logits: Tensor,
    phi: tuple[Tensor, ...],
    residual: Tensor,
    position_matrix: Tensor,
    problem: Problem,
) -> _abi.Call:
    call = _abi.inputs(features, logits, phi, residual, problem)
    call.positions = position_matrix.data_ptr()
    options = settings()
    call.threads, call.isa_target, call.method = torch.get_num_threads(), options.isa_target, options.method
    return call


def _run(function, call: _abi.Call, problem: Problem) -> None:
    last = _last
    call.report = ctypes.addressof(last.report)
    last.message.check(function(ctypes.byref(call), last.message.buffer, last.message.size), "CPU")
    last.problem = problem
    if (count := counting.current()) is not None:
        count.add(last_report().total_macs)
