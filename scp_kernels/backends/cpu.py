"""The compiled CPU backend: csrc's C ABI (scp.h) called through ctypes.

The kernels evaluate Φ exactly by the kd-tree of specialised networks (csrc/README.md). They take any strides and any of
the four dtypes of features, so nothing is copied here.

The vector level is the best that the machine has; the environment variable ``SCP_CPU_LEVEL`` (``avx512``, ``avx2``,
``portable``) chooses another, for tests and comparisons. Environment variables are read once, at the first call.

With frozen weights the field W is kept: from the third forward with the same parameters and positions on, it is read.
Parameters are compared by content, so a kept field is never stale, and the logits are the same bit for bit. All that is
kept takes at most 64 MiB, or what the environment variable ``SCP_CPU_KEEP_MB`` says; 0 keeps nothing.
:func:`kept_bytes` tells how much there is, :func:`release_kept` frees it.
"""

import ctypes
import functools
import os
import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from scp_kernels import counting
from scp_kernels.backends import abi, library
from scp_kernels.problem import GradientNeeds, Problem, SCPInputs

LEVELS = {"portable": 1, "avx2": 2, "avx512": 3}
METHODS = {"auto": 0, "tree": 1, "dense": 2}
LEVEL_VARIABLE = "SCP_CPU_LEVEL"
METHOD_VARIABLE = "SCP_CPU_METHOD"
KEEP_VARIABLE = "SCP_CPU_KEEP_MB"
KEEP_MB = 64

_KEPT = ("no", "stored", "read")


@dataclass(frozen=True)
class Plan:
    """What the last call did, counted while it was done. Multiply-adds are Φ's, for a pixel of a position map."""

    level: str
    """Vector level that ran."""
    dense: bool
    """No tree was built: every pixel was evaluated with the full network."""
    nodes: int
    leaves: int
    pixels: int
    """Pixels at the leaves, over all position maps (a backward that evaluates W first counts them twice)."""
    map_pixels: int
    """Pixels of one position map."""
    mixed_units: tuple[float, float]
    """Mean number of mixed units at a pixel's leaf, of layers 1 and 2."""
    most_mixed_units: tuple[int, int]
    """The same, at the worst leaf."""
    build_macs: float
    """Multiply-adds a pixel spent in building the tree; in a backward also in its adjoint."""
    leaf_macs: float
    """Multiply-adds a pixel spent at the leaves, up to W; in a backward also from W's gradient back."""
    dense_macs: float
    """Multiply-adds a pixel of the plain evaluation of Φ, forward."""
    position_maps: int
    """Distinct position maps: samples with equal ones share one evaluation of Φ."""
    kept: str
    """``"no"``; ``"stored"``: W was evaluated and kept; ``"read"``: W is that of an earlier call, not evaluated."""

    @property
    def macs(self) -> float:
        """Multiply-adds a pixel executed in all."""
        return self.build_macs + self.leaf_macs

    @property
    def total_macs(self) -> int:
        """Multiply-adds executed over all pixels of all position maps."""
        return round(self.macs * self.position_maps * self.map_pixels)


class _Last(threading.local):
    """A thread's last call: its report, and the problem, None before the first."""

    def __init__(self) -> None:
        self.problem: Problem | None = None
        self.report = (ctypes.c_double * abi.REPORT_SIZE)()
        self.message = abi.Message()


_last = _Last()


def last_plan() -> Plan:
    """The plan of this thread's last call of the CPU backend.

    Raises:
        RuntimeError: the thread has made none.
    """
    report, problem = _last.report, _last.problem
    if problem is None:
        raise RuntimeError("last_plan: this thread has not called the CPU backend yet")
    level, dense, nodes, leaves, pixels, mixed1, mixed2, most1, most2, build, leaf, maps, kept = report[:13]
    scale = 1 / max(pixels, 1.0)
    a_pixel = 1 / max(maps * problem.pixels, 1.0)
    return Plan(
        level=_level_name(int(level)),
        dense=bool(dense),
        nodes=int(nodes),
        leaves=int(leaves),
        pixels=int(pixels),
        map_pixels=problem.pixels,
        mixed_units=(mixed1 * scale, mixed2 * scale),
        most_mixed_units=(int(most1), int(most2)),
        build_macs=build * a_pixel,
        leaf_macs=leaf * a_pixel,
        dense_macs=problem.phi_macs / (problem.groups * problem.pixels),
        position_maps=int(maps),
        kept=_KEPT[int(kept)],
    )


def _level_name(number: int) -> str:
    return next(name for name, level in LEVELS.items() if level == number)


def kept_bytes() -> int:
    """Memory, in bytes, of what is kept between calls for frozen weights."""
    return _library().scp_cpu_kept_bytes()


def release_kept() -> None:
    """Free what is kept between calls; calls that are under way keep what they read until they end."""
    _library().scp_cpu_release_kept()


class CpuBackend:
    """The ``"cpu"`` backend: see :class:`scp_kernels.dispatch.Backend`."""

    name = "cpu"
    device_type = "cpu"

    def unavailable_reason(self) -> str | None:
        try:
            loaded = _library()
        except library.LibraryUnavailable as error:
            return str(error)
        level = settings().level
        if level and not loaded.scp_cpu_levels() >> level & 1:
            raise ValueError(f"{LEVEL_VARIABLE}={_level_name(level)}: this machine does not have these vectors")
        return None

    def unsupported_reason(self, problem: Problem) -> str | None:
        if problem.device.type != "cpu":
            return f"features are on {problem.device}, this backend runs on the CPU"
        return abi.cannot_describe(problem)

    def forward(self, inputs: SCPInputs) -> Tensor:
        features, phi, residual, bias, matrix, problem = inputs
        logits = torch.empty(
            (problem.batch, problem.num_classes, *problem.spatial_shape), dtype=features.dtype, device=features.device
        )
        matrix = matrix.contiguous()
        call = _call(features, logits, phi, residual, matrix, problem)
        if bias is not None:
            call.bias = bias.data_ptr()
        call.keep_bytes = settings().keep_bytes
        _run(_library().scp_cpu_forward, call, problem)
        return logits

    def backward(
        self, inputs: SCPInputs, grad_logits: Tensor, needs: GradientNeeds
    ) -> tuple[Tensor | None, tuple[Tensor, ...] | None]:
        features, phi, residual, _, matrix, problem = inputs
        matrix = matrix.contiguous()
        call = _call(features, grad_logits, phi, residual, matrix, problem)
        grad_features = torch.empty_like(features) if needs.features else None
        if grad_features is not None:
            call.grad_features = abi.describe(grad_features)
        parameters = abi.gradients(call, dict(zip(abi.PHI, phi, strict=True))) if needs.parameters else None
        _run(_library().scp_cpu_backward, call, problem)
        return grad_features, parameters


@dataclass(frozen=True)
class Settings:
    """What the environment asks of the kernels, as ``struct scp_call`` says it."""

    level: int
    method: int
    keep_bytes: int


@functools.cache
def settings() -> Settings:
    """The environment's settings.

    Raises:
        ValueError: a variable has a value that it cannot have.
    """
    level = os.environ.get(LEVEL_VARIABLE)
    if level and level not in LEVELS:
        raise ValueError(f"{LEVEL_VARIABLE}: expected one of {tuple(LEVELS)}, got {level!r}")
    method = os.environ.get(METHOD_VARIABLE) or "auto"
    if method not in METHODS:
        raise ValueError(f"{METHOD_VARIABLE}: expected one of {tuple(METHODS)}, got {method!r}")
    keep = os.environ.get(KEEP_VARIABLE) or str(KEEP_MB)
    if not keep.isdecimal():
        raise ValueError(f"{KEEP_VARIABLE}: expected a number of MiB, got {keep!r}")
    return Settings(LEVELS[level] if level else 0, METHODS[method], int(keep) << 20)


_loaded: ctypes.CDLL | None = None


def _library() -> ctypes.CDLL:
    global _loaded
    if _loaded is None:
        loaded = library.load("cpu")
        for function in (loaded.scp_cpu_forward, loaded.scp_cpu_backward):
            function.argtypes = (ctypes.POINTER(abi.Call), ctypes.c_char_p, ctypes.c_int64)
            function.restype = ctypes.c_int
        loaded.scp_cpu_levels.argtypes = ()
        loaded.scp_cpu_levels.restype = ctypes.c_int
        loaded.scp_cpu_kept_bytes.argtypes = loaded.scp_cpu_release_kept.argtypes = ()
        loaded.scp_cpu_kept_bytes.restype = ctypes.c_int64
        loaded.scp_cpu_release_kept.restype = None
        _loaded = loaded
    return _loaded


def _call(
    features: Tensor, logits: Tensor, phi: tuple[Tensor, ...], residual: Tensor, matrix: Tensor, problem: Problem
) -> abi.Call:
    call = abi.inputs(features, logits, phi, residual, problem)
    call.positions = matrix.data_ptr()
    asked = settings()
    call.threads, call.level, call.method = torch.get_num_threads(), asked.level, asked.method
    return call


def _run(function, call: abi.Call, problem: Problem) -> None:
    last = _last
    call.report = ctypes.addressof(last.report)
    last.message.check(function(ctypes.byref(call), last.message.buffer, last.message.size), "CPU")
    last.problem = problem
    if (count := counting.current()) is not None:
        count.add(last_plan().total_macs)
