"""Which backend runs a call: one ordered list, and a reason for each that cannot."""

import os
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from scp_kernels._torch_compat import constant_to_dynamo
from scp_kernels.backends import _gpu
from scp_kernels.backends.cpu import CpuBackend
from scp_kernels.backends.cuda import CudaBackend
from scp_kernels.backends.triton import TritonBackend
from scp_kernels.problem import GradientNeeds, Problem, SCPInputs


class BackendUnavailable(RuntimeError):
    """A backend asked for by name cannot run the call; the message says what is missing."""


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend can be used on this machine, and if not, why not."""

    usable: bool
    reason: str | None = None

    def __str__(self) -> str:
        return "usable" if self.usable else f"not usable: {self.reason}"


class Backend(Protocol):
    """The few functions that every compiled backend offers. Reasons are sentences; None means "yes"."""

    name: str
    device_type: str
    """Type of the devices on which ``"auto"`` considers the backend."""

    def unavailable_reason(self) -> str | None:
        """Why this machine cannot run the backend at all (not built, no driver …).

        Raises:
            ValueError: the environment asks of it what it cannot do; ``"auto"`` does not pass over that.
        """

    def unsupported_reason(self, problem: Problem) -> str | None:
        """Why a usable backend does not take this call (device, dtype …)."""

    def forward(self, inputs: SCPInputs) -> Tensor:
        """Logits ``[B, N, *spatial]``, contiguous, in the features' dtype.

        Never called for an empty problem.
        """

    def backward(
        self, inputs: SCPInputs, grad_logits: Tensor, needs: GradientNeeds
    ) -> tuple[Tensor | None, tuple[Tensor, ...] | None]:
        """Gradient of the features (in their dtype and strides), and those of Φ's six tensors, as wide or wider.

        ``inputs.bias`` is None. The gradient of ``residual`` is that of ``b3``, and β's is a plain sum of
        ``grad_logits``: neither is the backend's work.
        """


# In the order in which "auto" tries them; "reference", plain PyTorch, always runs and comes last.
BACKENDS: dict[str, Backend] = {
    "triton": TritonBackend(),
    "cuda": CudaBackend(),
    "cpu": CpuBackend(),
}
NAMES = (*BACKENDS, "reference")
# By compute capability the backend that "auto" prefers where several can run: the faster one by the records in
# benchmarks/results, which has none of a GPU yet. Elsewhere the order of BACKENDS holds, in which Triton stands first
# because it executes fewer multiply-adds (docs/gpu.md). On 7.5 a cycle-level simulation of both found CUDA C++ faster.
PREFERRED_ON_CAPABILITY = {75: "cuda"}
ENVIRONMENT_VARIABLE = "SCP_BACKEND"


def available_backends() -> dict[str, BackendStatus]:
    """Every backend, in the order in which ``backend="auto"`` tries them: usable or not, and why not."""
    status = {name: _status(backend) for name, backend in BACKENDS.items()}
    return {**status, "reference": BackendStatus(usable=True)}


def _status(backend: Backend) -> BackendStatus:
    try:
        reason = backend.unavailable_reason()
    except ValueError as error:
        reason = str(error)
    return BackendStatus(usable=reason is None, reason=reason)


def select(problem: Problem, backend: str) -> str:
    """Name of the backend that runs the call.

    ``"auto"`` (or what the environment variable ``SCP_BACKEND`` puts in its place) is the one preferred on the GPU, or
    else the first of the list that can; a name is that backend or an error.

    Raises:
        ValueError: no backend has this name, or a variable of the environment has a value that it cannot have.
        BackendUnavailable: the backend named cannot run here, or not this call.
    """
    source = "backend"
    if backend == "auto" and (override := os.environ.get(ENVIRONMENT_VARIABLE)):
        backend, source = override, ENVIRONMENT_VARIABLE
    if backend == "auto":
        automatic = (name for name, b in BACKENDS.items() if b.device_type == problem.device.type)
        candidates = [name for name in automatic if _reason(name, problem) is None]
        if len(candidates) > 1:
            preferred = PREFERRED_ON_CAPABILITY.get(_capability(problem.device.index))
            return preferred if preferred in candidates else candidates[0]
        return candidates[0] if candidates else "reference"
    check_name(backend, source)
    if backend != "reference" and (reason := _reason(backend, problem)) is not None:
        raise BackendUnavailable(f"{source}={backend!r}: {reason}")
    return backend


def check_name(backend: str, source: str = "backend") -> None:
    """Raises ValueError unless ``backend`` is ``"auto"`` or the name of a backend, usable or not."""
    if backend not in ("auto", *NAMES):
        raise ValueError(f"{source}: expected 'auto' or one of {NAMES}, got {backend!r}")


def _reason(name: str, problem: Problem) -> str | None:
    return _unavailable_reason(name) or BACKENDS[name].unsupported_reason(problem)


# Looking for libraries and drivers is no part of a graph.
@constant_to_dynamo
def _unavailable_reason(name: str) -> str | None:
    return BACKENDS[name].unavailable_reason()


@constant_to_dynamo
def _capability(device_index: int | None) -> int:
    """Compute capability of a CUDA device, as 75, 90, …"""
    return _gpu.capability(device_index)
