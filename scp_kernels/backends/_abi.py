"""``csrc/include/scp.h`` in ctypes: one call of a compiled backend, and its error codes."""

import ctypes
import functools

import torch
from torch import Tensor

from scp_kernels.problem import Problem

DTYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
PHI = ("w1", "b1", "w2", "b2", "w3", "b3")
MOST_UNITS = 2**25
"""Sizes and widths stay below it."""

_OK, _BAD_ARGUMENT, _OUT_OF_MEMORY = range(3)


REPORT_SIZE = 16
"""``SCP_REPORT_SIZE``: numbers in a report."""


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("stride_batch", ctypes.c_int64),
        ("stride_channel", ctypes.c_int64),
        ("stride_spatial", ctypes.c_int64 * 3),
    )


class Call(ctypes.Structure):
    """``struct scp_call``, field by field."""

    _fields_ = (
        *(
            (name, ctypes.c_int32)
            for name in ("spatial_dims", "position_dims", "dtype", "compute_dtype", "threads", "isa_target", "method")
        ),
        *((name, ctypes.c_int64) for name in ("batch", "groups", "channels", "classes", "hidden1", "hidden2")),
        ("size", ctypes.c_int64 * 3),
        *((name, _Tensor) for name in ("features", "logits", "grad_features")),
        *((name, ctypes.c_void_p) for name in ("w1", "b1", "positions", "coefficients")),
        *((name, ctypes.c_void_p) for name in ("w2", "b2", "w3", "b3", "residual", "bias")),
        *((f"grad_{name}", ctypes.c_void_p) for name in (*PHI[:2], "coefficients", *PHI[2:])),
        ("report", ctypes.c_void_p),
        ("cache_bytes", ctypes.c_int64),
    )


def describe_tensor(tensor: Tensor) -> _Tensor:
    """``struct scp_tensor``: where ``[batch, channels, *spatial]`` lies."""
    return _strided(tensor.data_ptr(), tensor.stride())


def _strided(data: int, strides: tuple[int, ...]) -> _Tensor:
    batch, channel, *spatial = strides
    return _Tensor(data, batch, channel, tuple(spatial))


def sized_call(problem: Problem) -> Call:
    """A call that has its sizes and dtypes, and no data."""
    return Call.from_buffer_copy(_sizes(problem))


@functools.lru_cache(maxsize=64)
def _sizes(problem: Problem) -> Call:
    return Call(
        spatial_dims=problem.spatial_dims,
        position_dims=problem.position_dims,
        dtype=DTYPES[problem.dtype],
        compute_dtype=DTYPES[problem.compute_dtype],
        batch=problem.batch,
        groups=problem.groups,
        channels=problem.channels,
        classes=problem.num_classes,
        hidden1=problem.hidden[0],
        hidden2=problem.hidden[1],
        size=problem.spatial_shape,
    )


@functools.lru_cache(maxsize=256)
def _layout(problem: Problem, features: tuple[int, ...], logits: tuple[int, ...]) -> Call:
    """A call with its sizes and its tensors' strides."""
    call = sized_call(problem)
    call.features, call.logits = _strided(0, features), _strided(0, logits)
    return call


def inputs(features: Tensor, logits: Tensor, phi: tuple[Tensor, ...], residual: Tensor, problem: Problem) -> Call:
    """A call with all that is read but positions; the tensors must outlive it."""
    call = Call.from_buffer_copy(_layout(problem, features.stride(), logits.stride()))
    call.features.data, call.logits.data = features.data_ptr(), logits.data_ptr()
    for name, parameter in zip(PHI, phi, strict=True):
        setattr(call, name, parameter.data_ptr())
    call.residual = residual.data_ptr()
    return call


def cannot_describe(problem: Problem) -> str | None:
    """Why the ABI has no words for a call, or None."""
    if problem.dtype not in DTYPES:
        return f"features are {problem.dtype}, expected one of {', '.join(map(str, DTYPES))}"
    if problem.compute_dtype not in (torch.float32, torch.float64):
        return f"computes in float32 or float64, not {problem.compute_dtype}"
    # Sizes of images are left to the library: asked here, they would become conditions of an exported graph.
    if max(*problem.hidden, problem.num_classes * problem.channels) >= MOST_UNITS:
        return f"widths below {MOST_UNITS} are supported"
    return None


def gradients(call: Call, parameters: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """New tensors for the gradients of some parameters, by name, which the call is told of."""
    result = tuple([torch.empty_like(t) for t in parameters.values()])
    for name, gradient in zip(parameters, result, strict=True):
        setattr(call, f"grad_{name}", gradient.data_ptr())
    return result


class Message:
    """Room for the sentence that comes with an error code."""

    def __init__(self) -> None:
        self.size = 256
        self.buffer = ctypes.create_string_buffer(self.size)

    @property
    def text(self) -> str:
        return self.buffer.value.decode()

    def check(self, status: int, backend: str) -> None:
        """Raises the exception that stands for ``enum scp_status``, unless it is SCP_OK."""
        if status != _OK:
            error = {_BAD_ARGUMENT: ValueError, _OUT_OF_MEMORY: MemoryError}.get(status, RuntimeError)
            raise error(f"{backend} backend: {self.text}")
