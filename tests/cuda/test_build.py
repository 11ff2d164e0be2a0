"""The compiled CUDA library without a GPU: what it says of the machine, its refusals, and its machine code."""

import ctypes

import pytest
import torch

from benchmarks import static_cuda
from scp_kernels import BackendUnavailable, available_backends, scp
from scp_kernels.backends import _abi, _libraries, cuda
from scp_kernels.problem import Problem

try:
    BUILT = cuda.declare(_libraries.load("cuda"))
except _libraries.LibraryUnavailable as error:
    pytest.skip(f"the CUDA library: {error}", allow_module_level=True)


def problem(**changes) -> Problem:
    sizes = {
        "batch": 2, "channels": 8, "num_classes": 1, "hidden": (64, 64), "spatial_shape": (30, 40), "groups": 1,
        "dtype": torch.float32, "compute_dtype": torch.float32, "device": torch.device("cpu"),
    }  # fmt: skip
    return Problem(**(sizes | changes))


def call(**changes) -> cuda.CudaCall:
    return cuda.sized_cuda_call(problem(**changes), 64 * 1024, 40)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_a_reason():
    reason = available_backends()["cuda"].reason
    assert any(word in reason for word in ("driver", "without CUDA", "no CUDA device")), reason
    x, w = torch.zeros(1, 2, 3, 3), torch.zeros(4, 4)
    phi = (w, torch.zeros(4), w, torch.zeros(4), torch.zeros(2, 4), torch.zeros(2))
    with pytest.raises(BackendUnavailable, match="backend='cuda'"):
        scp(x, phi, torch.zeros(1, 2), backend="cuda")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: setattr(c.call, "spatial_dims", 4), "spatial_dims: expected 2 or 3"),
        (lambda c: setattr(c.call, "groups", 3), "groups: expected 1 or the batch size"),
        (lambda c: setattr(c.call, "dtype", 0), "compute_dtype: expected float64"),
        (lambda c: setattr(c.call, "channels", 2**40), "too large"),
    ],
)
def test_calls_that_make_no_sense(change, message):
    wrong = call()
    change(wrong)
    with pytest.raises(ValueError, match=message):
        cuda.requirements(BUILT, wrong, True)


def test_data_that_is_missing():
    message = _abi.Message()
    for function in (BUILT.scp_cuda_forward, BUILT.scp_cuda_backward):
        status = function(ctypes.byref(call()), message.buffer, len(message.buffer))
        with pytest.raises(ValueError, match="coefficients: expected data"):
            message.check(status, "CUDA")


def test_widths_that_do_not_fit():
    with pytest.raises(RuntimeError, match="shared memory is too small for such hidden widths"):
        cuda.requirements(BUILT, call(hidden=(8192, 64)), False)
    with pytest.raises(RuntimeError, match="at most 65535"):
        cuda.requirements(BUILT, call(hidden=(64, 70000)), False)
    # What any GPU from compute capability 7.5 on must take.
    cuda.requirements(BUILT, call(hidden=(1024, 1024), channels=128), True)


@pytest.mark.skipif(static_cuda.find_cuobjdump() is None, reason="needs cuobjdump")
def test_no_kernel_spills():
    kernels = static_cuda.compiled()
    assert {k.name for k in kernels} == {
        "Prepare",
        "FoldSupertiles",
        "Apply1",
        "Apply2",
        "ParameterGradients",
        "Collect",
    }
    assert {k.dtype for k in kernels} == {"float32", "float64"}
    for kernel in kernels:
        assert kernel.registers > 16
        assert not kernel.faults, kernel


def test_a_kernel_that_spills_is_seen():
    name = (
        "_ZN3scp6common43_GLOBAL__N__8808b98c_10_kernels_cu_deabe7a410scp_kernelINS0_18ParameterGradientsIfLi2EEEEEvT_"
    )
    text = f"arch = sm_86\n Function {name}:\n  REG:168 STACK:16 SHARED:1024 LOCAL:0"
    (kernel,) = static_cuda.kernels(text)
    assert kernel == static_cuda.Kernel("ParameterGradients", "float32", 2, 86, 168, 16, 1024)
    assert kernel.faults == ["spills: 16 bytes of stack per thread"]
    # 65,536 registers hold three blocks of 128 threads, 100 KiB one of 60 and a reserved one.
    assert kernel.blocks(0) == 3 and kernel.blocks(60 * 1024) == 1
