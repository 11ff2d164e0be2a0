"""Compiling the kernels without a GPU, for any architecture, and what the compiler says about the result.

A launch's specialisation (types, alignment, values that become constants) is worked out by the JIT's own code, so that
the kernel compiled here is the one that a GPU of that architecture would run.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, make_backend
from triton.runtime.jit import create_function_from_signature

from scp_kernels.backends.triton import launch, tables
from scp_kernels.backends.triton.sequence import Launch, LaunchSequence
from scp_kernels.problem import GradientNeeds, Problem, SCPInputs


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes on one architecture."""

    kernel: str
    capability: int
    registers: int
    """Registers per thread."""
    stack_bytes: int
    """Stack per thread: anything above 0 means spilled registers."""
    shared_bytes: int
    """Shared memory per block."""
    threads: int

    @property
    def shared_limit(self) -> int:
        return tables.SHARED_MEMORY_KIB[self.capability] * 1024

    @property
    def faults(self) -> list[str]:
        """Why the kernel is not fit for the architecture; empty if it is."""
        result = []
        if self.stack_bytes:
            result.append(f"spills: {self.stack_bytes} bytes of stack per thread")
        if self.shared_bytes > self.shared_limit:
            result.append(f"{self.shared_bytes} bytes of shared memory, {self.shared_limit} are the limit")
        return result


def abstract_sequences(problem: Problem, capability: int, *, channels_last: bool = False) -> Iterator[LaunchSequence]:
    """The launches of a problem's three passes (the gradients one by one), with tensors that have no memory.

    ``problem.device`` must be ``meta``.
    """
    h1, h2 = problem.hidden
    d, rows = problem.spatial_dims, 2 * problem.position_dims
    outputs = problem.num_classes * problem.channels

    def empty(*shape: int, dtype: torch.dtype = problem.compute_dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    features = empty(problem.batch, problem.channels, *problem.spatial_shape, dtype=problem.dtype)
    if channels_last:
        form = torch.channels_last if d == 2 else torch.channels_last_3d
        features = features.contiguous(memory_format=form)
    grad_logits = empty(problem.batch, problem.num_classes, *problem.spatial_shape, dtype=problem.dtype)
    phi = (empty(h1, rows), empty(h1), empty(h2, h1), empty(h2), empty(outputs, h2), empty(outputs))
    residual, bias = empty(problem.num_classes, problem.channels), empty(problem.num_classes)
    matrix = empty(*([problem.groups] if problem.groups > 1 else []), rows, d + 1, dtype=torch.float64)
    inputs = SCPInputs(features, phi, residual, bias, matrix, problem)
    yield launch.forward_sequence(inputs, capability)
    for needs in (GradientNeeds(True, False), GradientNeeds(False, True)):
        yield launch.backward_sequence(inputs, grad_logits, needs, capability)


def compile_kernel(item: Launch, capability: int) -> tuple[CompiledKernel, list[str]]:
    """Compiles one launch's kernel for ``capability`` (75, 80, …). Needs no GPU and no driver.

    Returns:
        The kernel, and the names of the arguments that its machine code takes, in order; others have become constants.
    """
    target = GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    binder = create_function_from_signature(item.kernel.signature, item.kernel.params, backend)
    keywords = item.options | {"debug": False}
    bound, specialization, options = binder(**item.arguments, **keywords)
    options, signature, constants, attributes = item.kernel._pack_args(
        backend, keywords, bound, specialization, options
    )
    source = ASTSource(item.kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=target, options=options.__dict__)
    return compiled, [name for name, kind in signature.items() if kind != "constexpr"]


def compile_launch(item: Launch, capability: int) -> Resources:
    """What the kernel of one launch takes on ``capability``."""
    return resources_of(compile_kernel(item, capability)[0], capability)


def resources_of(kernel: CompiledKernel, capability: int) -> Resources:
    """What a compiled kernel takes."""
    registers, stack = _usage(kernel.asm["cubin"])
    metadata = kernel.metadata
    return Resources(metadata.name, capability, registers, stack, metadata.shared, 32 * metadata.num_warps)


def cuobjdump(cubin: bytes, option: str) -> str:
    """What the tool in Triton's wheel says of machine code."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        return subprocess.run([tool, option, path], check=True, capture_output=True, text=True).stdout


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack per thread, from the machine code itself."""
    report = cuobjdump(cubin, "-res-usage")
    usage = re.search(r"REG:(\d+) STACK:(\d+)", report)
    if usage is None:
        raise RuntimeError(f"cuobjdump reports no usage: {report!r}")
    return int(usage[1]), int(usage[2])
