"""The Triton backend: NVIDIA GPUs, and CPU tensors under Triton's interpreter. Importing this imports no Triton.

The kernels: ``prepare`` and ``folding`` come first in every pass, then ``forward``, or ``backward_features``,
``backward_parameters``, ``fold_backward`` and ``slabs``; ``boxes``, ``weights`` and ``rounding`` hold device functions
that they share. The host: ``launch`` (with ``supertiles``) turns a call into a ``sequence`` of launches by the
configurations of ``tables``, and ``executed_macs`` counts what these execute.
"""

import atexit
import functools
import importlib
import importlib.util
import os
import re
import shutil
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scp_kernels import counting
from scp_kernels.backends import _gpu
from scp_kernels.problem import GradientNeeds, Problem, SCPInputs

if TYPE_CHECKING:
    from scp_kernels.backends.triton.sequence import LaunchSequence

# One axis of a CUDA grid holds 2³¹ − 1 programs, the other two 2¹⁶ − 1; indices of parameters are 32-bit.
_MOST_TILES, _MOST_GROUPS, _MOST_INDEX = 2**31 - 1, 2**16 - 1, 2**31 - 1
_OLDEST_TRITON = (3, 6)  # the oldest that the tests have passed with


def interpreting() -> bool:
    """Whether Triton's interpreter takes the place of the GPU (``TRITON_INTERPRET=1``, set before the first call)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def _capability(device: torch.device) -> int:
    """Compute capability as 75, 90, …; under the interpreter that of the newest table line without TensorFloat-32."""
    if device.type != "cuda":
        return _gpu.OLDEST_CAPABILITY
    return _gpu.capability(device)


@functools.cache
def _not_installed() -> str | None:
    try:
        spec = importlib.util.find_spec("triton")
    except ValueError:  # something that is no module stands in its place
        spec = None
    if spec is None:
        return "Triton is not installed (it comes with PyTorch's CUDA builds for Linux; `pip install triton`)"
    if spec.origin is None:  # a namespace package: any folder of this name on the path makes one
        folders = ", ".join(spec.submodule_search_locations or ())
        return f"Triton is not installed; {folders} has its name and is a folder without a package"
    return None


@functools.cache
def _not_importable() -> str | None:
    """Why Triton, or the kernels with it, cannot be imported. It is imported here, and no driver is started."""
    try:
        import triton

        numbers = re.match(r"(\d+)\.(\d+)", triton.__version__)
        version = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
        if version < _OLDEST_TRITON:
            oldest = ".".join(map(str, _OLDEST_TRITON))
            return f"Triton {triton.__version__} is too old for these kernels; {oldest} is the oldest"
        importlib.import_module("scp_kernels.backends.triton.launch")
        _give_cache_folder(Path(triton.knobs.cache.dir))
    except Exception as error:
        return f"Triton is installed and cannot be imported: {type(error).__name__}: {error}"
    return None


def _give_cache_folder(folder: Path) -> None:
    """Send Triton's compiled kernels to a folder of this process where ``folder``, its own, cannot be written.

    A container that runs as another user has no home folder, or none that it may write to; Triton raises there.
    """
    if folder.is_absolute():  # without a home it is "~"
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
            return
    temporary = tempfile.mkdtemp(prefix="scp_kernels-triton-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    os.environ["TRITON_CACHE_DIR"] = temporary
    warnings.warn(
        f"{folder}: Triton cannot keep compiled kernels there; {temporary} takes them until this process ends "
        "(TRITON_CACHE_DIR chooses another folder)",
        RuntimeWarning,
        stacklevel=2,
    )


class TritonBackend:
    """See :class:`scp_kernels.dispatch.Backend`."""

    name = "triton"
    # CPU tensors, which the interpreter takes, come by name only: it is thousands of times slower than the reference.
    device_type = "cuda"

    def unavailable_reason(self) -> str | None:
        if (reason := _not_installed()) is not None:
            return reason
        if not interpreting():
            if torch.version.hip is not None:
                return "AMD GPUs have never been tried with these kernels"
            if not torch.cuda.is_available():
                return "no CUDA device is available to PyTorch (no NVIDIA GPU or driver, or a CPU build of PyTorch)"
        return _not_importable()  # asked last: importing takes a second

    def unsupported_reason(self, problem: Problem) -> str | None:
        if problem.compute_dtype == torch.float64:
            return "float64 is not among the dtypes of the Triton kernels (float32, float16, bfloat16)"
        if interpreting():
            if problem.device.type != "cpu":
                return f"under TRITON_INTERPRET=1 tensors must be on the CPU, not on {problem.device}"
        elif problem.device.type != "cuda":
            return f"tensors are on {problem.device}, not on a CUDA device"
        elif (capability := _capability(problem.device)) < (oldest := _gpu.OLDEST_CAPABILITY):
            return f"{problem.device} has compute capability {capability / 10}; {oldest / 10} is the least"
        if problem.groups > _MOST_GROUPS:
            return f"{problem.groups} position maps in one call; {_MOST_GROUPS} are the most"
        if problem.pixels > _MOST_TILES:
            return f"{problem.pixels} pixels in a map; {_MOST_TILES} are the most"
        h1, h2 = problem.hidden
        if max(h1 * h2, (max(h1, h2) + 3) * problem.num_classes * problem.channels) > _MOST_INDEX:
            return f"a layer of Φ has more than {_MOST_INDEX} weights"
        return None

    def forward(self, inputs: SCPInputs) -> Tensor:
        from scp_kernels.backends.triton import launch

        device = inputs.problem.device
        with _gpu.current_device(device):
            return _run(launch.forward_sequence(inputs, _capability(device)))

    def backward(
        self, inputs: SCPInputs, grad_logits: Tensor, needs: GradientNeeds
    ) -> tuple[Tensor | None, tuple[Tensor, ...] | None]:
        from scp_kernels.backends.triton import launch

        device = inputs.problem.device
        with _gpu.current_device(device):
            return _run(launch.backward_sequence(inputs, grad_logits, needs, _capability(device)))


def _run(sequence: "LaunchSequence") -> Any:
    """Run the launches, and count what they execute where somebody wants to know."""
    if (count := counting.current()) is None:
        return sequence.run()
    from scp_kernels.backends.triton import executed_macs

    for item in sequence.launches:
        item.run()
        count.add(executed_macs.macs(item))  # before a later chunk overwrites what it goes by
    return sequence.finish()
