"""The compiled CUDA backend: csrc's C ABI (scp.h) called through ctypes.

The kernels evaluate Φ exactly, tile by tile (csrc/README.md), in float32 or float64, with any strides and any of the
four dtypes of features. Nothing is copied here; workspaces are tensors of this module's making.
"""

import ctypes
import functools

import torch
from torch import Tensor

from scp_kernels import counting
from scp_kernels.backends import _abi, _gpu, _libraries
from scp_kernels.positions import first_layer_coefficients, first_layer_gradients
from scp_kernels.problem import GradientNeeds, Problem, SCPInputs


@functools.cache
def oldest_capability() -> int:
    """The oldest compute capability (86 is 8.6) that the library was built for; newer ones run it too, by its PTX."""
    variants = _libraries.build_record()["cuda"].get("variants", {})
    return min((int(name.rstrip("af")) for name in variants if name != "ptx"), default=_gpu.OLDEST_CAPABILITY)


class CudaCall(ctypes.Structure):
    """``struct scp_cuda_call`` of csrc/include/scp.h, field by field."""

    _fields_ = (
        ("call", _abi.Call),
        ("device", ctypes.c_int32),
        ("stream", ctypes.c_void_p),
        ("multiprocessors", ctypes.c_int32),
        ("shared_limit", ctypes.c_int64),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_int64),
        ("scratch_alias", ctypes.c_void_p),
        ("scratch_alias_bytes", ctypes.c_int64),
    )


class Requirements(ctypes.Structure):
    """``struct scp_cuda_requirements`` of csrc/include/scp.h, field by field."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            "workspace_bytes", "shared_apply", "shared_parameters", "shared_supertiles", "windows", "blocks_apply",
            "blocks_parameters", "chunks", "unstable_capacity",
        )
    )  # fmt: skip


def requirements(loaded: ctypes.CDLL, call: CudaCall, backward: bool) -> Requirements:
    """Workspace, shared memory and launches of a call. Reads no data and needs no device.

    Raises:
        RuntimeError: the device's shared memory (``call.shared_limit``) is too small for the widths.
    """
    result, message = Requirements(), _abi.Message()
    status = loaded.scp_cuda_query_requirements(
        ctypes.byref(call), backward, ctypes.byref(result), message.buffer, message.size
    )
    message.check(status, "CUDA")
    return result


def sized_cuda_call(problem: Problem, shared_limit: int, multiprocessors: int) -> CudaCall:
    """A call without data that asks for every gradient."""
    call = CudaCall(call=_abi.sized_call(problem), shared_limit=shared_limit, multiprocessors=multiprocessors)
    call.call.grad_coefficients = 1  # only its presence matters
    return call


def declare(loaded: ctypes.CDLL) -> ctypes.CDLL:
    """Tells ctypes the types of the library's functions."""
    message = (ctypes.c_char_p, ctypes.c_int64)
    int32, call = ctypes.POINTER(ctypes.c_int32), ctypes.POINTER(CudaCall)
    loaded.scp_cuda_driver.argtypes = (int32, int32)
    loaded.scp_cuda_query_requirements.argtypes = (call, ctypes.c_int32, ctypes.POINTER(Requirements), *message)
    loaded.scp_cuda_forward.argtypes = loaded.scp_cuda_backward.argtypes = (call, *message)
    return loaded


class CudaBackend:
    """The ``"cuda"`` backend: see :class:`scp_kernels.dispatch.Backend`."""

    name = "cuda"
    device_type = "cuda"

    def unavailable_reason(self) -> str | None:
        try:
            loaded = self.library()
        except _libraries.LibraryUnavailable as error:
            return str(error)
        driver, built_with = ctypes.c_int32(), ctypes.c_int32()
        loaded.scp_cuda_driver(ctypes.byref(driver), ctypes.byref(built_with))
        if driver.value == 0:
            return "no NVIDIA driver was found"
        if driver.value // 1000 < built_with.value // 1000:
            return f"the driver supports CUDA {_version(driver.value)}, the library needs {_version(built_with.value)}"
        if torch.version.cuda is None:
            return "PyTorch is a build without CUDA"
        if not torch.cuda.is_available():
            return "no CUDA device is available to PyTorch"
        return None

    def unsupported_reason(self, problem: Problem) -> str | None:
        if problem.device.type != self.device_type:
            return f"tensors are on {problem.device}, not on a CUDA device"
        capability = self.capability(problem.device)
        if capability < (oldest := oldest_capability()):
            built = f"the library was built from {oldest / 10} on"
            return f"{problem.device} has compute capability {capability / 10}; {built}"
        if (reason := _abi.cannot_describe(problem)) is not None:
            return reason
        try:
            # Of the backward too: a forward that cannot be differentiated would be a trap.
            multiprocessors, shared_limit = self.limits(problem.device)
            for backward in (False, True):
                requirements(self.library(), sized_cuda_call(problem, shared_limit, multiprocessors), backward)
        except RuntimeError as error:
            return str(error)
        return None

    def forward(self, inputs: SCPInputs) -> Tensor:
        features, phi, residual, bias, position_matrix, problem = inputs
        logits = torch.empty(
            (problem.batch, problem.num_classes, *problem.spatial_shape), dtype=features.dtype, device=features.device
        )
        call = _abi.inputs(features, logits, phi, residual, problem)
        if bias is not None:
            call.bias = bias.data_ptr()
        coefficients = first_layer_coefficients(phi[0], phi[1], position_matrix).contiguous()
        call.coefficients = coefficients.data_ptr()
        self._run(call, problem, backward=False)
        return logits

    def backward(
        self, inputs: SCPInputs, grad_logits: Tensor, needs: GradientNeeds
    ) -> tuple[Tensor | None, tuple[Tensor, ...] | None]:
        features, phi, residual, _, position_matrix, problem = inputs
        call = _abi.inputs(features, grad_logits, phi, residual, problem)
        coefficients = first_layer_coefficients(phi[0], phi[1], position_matrix).contiguous()
        call.coefficients = coefficients.data_ptr()
        grad_features = torch.empty_like(features) if needs.features else None
        if grad_features is not None:
            call.grad_features = _abi.describe_tensor(grad_features)
        if not needs.parameters:
            self._run(call, problem, backward=True)
            return grad_features, None
        beyond_first = dict(zip(_abi.PHI[2:], phi[2:], strict=True))
        of_coefficients, *others = _abi.gradients(call, {"coefficients": coefficients, **beyond_first})
        self._run(call, problem, backward=True, scratch_alias=grad_features)
        return grad_features, (*first_layer_gradients(of_coefficients, position_matrix), *others)

    # What differs where tests run the kernels' code on the host.

    def library(self) -> ctypes.CDLL:
        return _library()

    def capability(self, device: torch.device) -> int:
        return _gpu.capability(device)

    def limits(self, device: torch.device) -> tuple[int, int]:
        """Multiprocessors of the device, and bytes of shared memory that a block may ask for."""
        properties = torch.cuda.get_device_properties(device)
        available = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]
        # From 9.0 on compilers list the system's own KiB as a kernel's: it may count against what is to be had.
        return properties.multi_processor_count, available - 1024

    def stream(self, device: torch.device) -> int:
        return torch.cuda.current_stream(device).cuda_stream

    def _run(self, described: _abi.Call, problem: Problem, backward: bool, scratch_alias: Tensor | None = None) -> None:
        """Run a call; ``scratch_alias`` is the features' gradient, whose memory is scratch until it is written."""
        device = problem.device
        with _gpu.current_device(device):
            multiprocessors, shared_limit = self.limits(device)
            call = CudaCall(
                call=described,
                device=device.index or 0,
                stream=self.stream(device),
                multiprocessors=multiprocessors,
                shared_limit=shared_limit,
            )
            if scratch_alias is not None:
                call.scratch_alias = scratch_alias.data_ptr()
                call.scratch_alias_bytes = scratch_alias.untyped_storage().nbytes()
            size = requirements(self.library(), call, backward).workspace_bytes
            # The caching allocator keeps it from being reused before the stream is done with it.
            workspace = torch.empty(size, dtype=torch.uint8, device=device)
            call.workspace, call.workspace_bytes = workspace.data_ptr(), size
            if (count := counting.current()) is not None:
                report = torch.zeros(_abi.REPORT_SIZE, dtype=torch.float64, device=device)
                call.call.report = report.data_ptr()
                count.add(report)
            function = self.library().scp_cuda_backward if backward else self.library().scp_cuda_forward
            message = _abi.Message()
            message.check(function(ctypes.byref(call), message.buffer, message.size), "CUDA")


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


@functools.cache
def _library() -> ctypes.CDLL:
    return declare(_libraries.load("cuda"))
