"""Cycles that each Triton kernel is predicted to take on a GPU, without one.

What Triton compiles for the GPU runs on the host (:mod:`benchmarks.ptx_machine`), where every access to memory is
counted as the warps of a GPU make it; registers and the instruction mix are those of the machine code. Two models turn
the counts into cycles:

- "constants": the one of :mod:`benchmarks.cycles`, with the three constants that are fitted to the CUDA kernels;
- "latencies": ``waves · alone + passes + new bytes / bandwidth``, where "alone" is what an average block takes by
  itself (:mod:`benchmarks.ptx_timeline`), and a multiprocessor makes one pass over shared memory per cycle, for all
  warps of all its blocks. No constant is fitted. That latencies and passes are added, as if nothing overlapped, was
  chosen when the simulated figures were known.

Neither predicts less than what the schedulers need ("issue"). Launches cost nothing.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from benchmarks import cycles, ptx, sass, static_cuda
from benchmarks.cycles import CAPABILITY, MULTIPROCESSOR_COUNT, SCHEDULERS, SimulatedLaunch
from benchmarks.ptx_machine import Machine, WarpCounts
from benchmarks.ptx_memory import SECTOR, GlobalMemory
from scp_kernels.backends.triton import launch, offline
from scp_kernels.backends.triton.sequence import Launch, LaunchSequence
from scp_kernels.positions import whole_image_matrix
from scp_kernels.problem import GradientNeeds, Problem, SCPInputs
from tests.support.problems import Inputs


@dataclass(frozen=True)
class TritonLaunch:
    """What both models go by."""

    launch: SimulatedLaunch
    alone: float
    """Cycles of an average block that has a multiprocessor to itself."""
    passes: float
    """Passes over shared memory that a multiprocessor makes, of all its blocks."""
    reads_of_unwritten: int = 0
    """Words of shared memory that were read before anybody wrote them."""
    disagreements: int = 0
    """Words that two threads of a warp write in one instruction, and not the same to the last bit."""

    @property
    def by_constants(self) -> float:
        return cycles.predicted(self.launch)

    @property
    def by_latencies(self) -> float:
        waits = self.launch.waves * self.alone + self.passes + self.launch.streaming
        return max(waits, self.launch.issue)


def triton_launch(
    kernel: str, counts: WarpCounts, threads: int, registers: int, shared_bytes: int, instructions_per_access: float = 0
) -> TritonLaunch:
    """With the blocks that run at once, from the registers of the compiled kernel, and with what its code issues."""
    resident = static_cuda.resident_blocks(CAPABILITY, threads, registers, shared_bytes)
    simulated = SimulatedLaunch(
        kernel,
        max(1.0, counts.blocks / MULTIPROCESSOR_COUNT / resident),
        counts.longest_loads / counts.blocks,
        counts.longest_passes / counts.blocks,
        counts.barriers / counts.blocks,
        counts.new_sectors * SECTOR,
        counts.accesses * instructions_per_access / SCHEDULERS / MULTIPROCESSOR_COUNT,
    )
    return TritonLaunch(simulated, counts.alone / counts.blocks, counts.passes / MULTIPROCESSOR_COUNT)


# WarpCounts of the kernels of commit 75daff4, compiled by Triton 3.9 for 7.5, at 160 × 224 in float32, B = 1, threads,
# registers and bytes of shared memory; and the cycles that a simulation gave the whole pass, good to 30 to 50 %.
SIMULATED_PASSES = {
    "forward, h 64": (
        (
            triton_launch(
                "scp_classify_kernel", WarpCounts(560, 560, 19040, 0, 26100, 15545, 239120, 0, 2605680), 32, 73, 0
            ),
            triton_launch(
                "scp_fold_kernel", WarpCounts(53, 583, 689, 41552, 65492, 13960, 339624, 166208, 223501), 128, 72, 8192
            ),
            triton_launch(
                "scp_forward_kernel",
                WarpCounts(560, 6160, 12620, 802480, 917440, 40386, 4838192, 6419840, 2964234),
                256,
                80,
                20480,
            ),
        ),
        255000,
    ),
    "forward, h 256": (
        (
            triton_launch(
                "scp_classify_kernel", WarpCounts(560, 560, 76160, 0, 102304, 57537, 874160, 0, 10259760), 32, 73, 0
            ),
            triton_launch(
                "scp_fold_kernel",
                WarpCounts(212, 7420, 10388, 644480, 1014896, 61984, 5021856, 2577920, 3270100),
                128,
                72,
                8192,
            ),
            triton_launch(
                "scp_forward_kernel",
                WarpCounts(560, 9520, 117580, 4482800, 5968320, 148872, 32108928, 35862400, 18409636),
                256,
                80,
                24576,
            ),
        ),
        1700000,
    ),
    "backward, h 64": (
        (
            triton_launch(
                "scp_classify_kernel", WarpCounts(560, 560, 19040, 0, 26100, 15545, 239120, 0, 2605680), 32, 73, 0
            ),
            triton_launch(
                "scp_fold_kernel", WarpCounts(53, 583, 689, 41552, 65492, 13960, 339624, 166208, 223501), 128, 72, 8192
            ),
            triton_launch(
                "scp_backward_features_kernel",
                WarpCounts(560, 2800, 12620, 790720, 893920, 40386, 4511152, 6325760, 2610314),
                256,
                80,
                20480,
            ),
            triton_launch(
                "scp_backward_parameters_kernel",
                WarpCounts(280, 35616, 50804, 354972, 1440948, 82701, 11670904, 2839776, 10892795),
                256,
                162,
                24576,
            ),
            triton_launch(
                "scp_backward_second_weight_kernel",
                WarpCounts(210, 1050, 3990, 36120, 65520, 50040, 471240, 144480, 306810),
                128,
                64,
                8192,
            ),
            triton_launch(
                "scp_backward_first_weight_kernel",
                WarpCounts(70, 3850, 3430, 66780, 129150, 3312, 691880, 267120, 1199170),
                128,
                80,
                3072,
            ),
        ),
        994000,
    ),
}


def ratios_of_passes() -> dict[str, tuple[float, float]]:
    """Predicted over simulated cycles of each entry of the calibration, by constants and by latencies."""
    return {
        name: (
            sum(launched.by_constants for launched in launches) / simulated,
            sum(launched.by_latencies for launched in launches) / simulated,
        )
        for name, (launches, simulated) in SIMULATED_PASSES.items()
    }


def sequence_of(inputs: Inputs, problem: Problem, backward: bool) -> LaunchSequence:
    """The launches of a forward or a backward pass."""
    positions = whole_image_matrix(problem.spatial_shape, "pixels")
    call = SCPInputs(inputs.features, inputs.phi, inputs.residual, None, positions, problem)
    if backward:
        needs = GradientNeeds(features=True, parameters=True)
        return launch.backward_sequence(call, inputs.grad_logits, needs, CAPABILITY)
    return launch.forward_sequence(call, CAPABILITY)


def run_launches(
    launches: tuple[Launch, ...], *, fill: int = 0, seed: int | None = None, checked: bool = True
) -> Iterator[TritonLaunch]:
    """Runs launches on the host, by the code that is compiled for a GPU, and leaves their results in their tensors.

    Args:
        launches: of one pass.
        fill: what every word of shared memory holds at first.
        seed: of the order of programs; None: as they are numbered.
        checked: whether accesses to shared memory are checked, which takes most of the time.
    """
    memory = GlobalMemory(
        [value for item in launches for value in item.arguments.values() if isinstance(value, Tensor)]
    )
    for item in launches:
        kernel, names = offline.compile_kernel(item, CAPABILITY)
        resources = offline.resources_of(kernel, CAPABILITY)
        values = [item.arguments[name] for name in names]
        arguments = [memory.address(value) if isinstance(value, Tensor) else value for value in values]
        function = ptx.parse(kernel.asm["ptx"])
        arguments += [0] * (len(function.parameter_types) - len(arguments))  # scratch memory, of which there is none
        machine = Machine(function, arguments, resources.threads, resources.shared_bytes, memory, fill, checked)
        order = None if seed is None else np.random.default_rng(seed).permutation(math.prod(item.grid))
        counts = machine.run(item.grid, order)
        phases = sass.phases_of(offline.cuobjdump(kernel.asm["cubin"], "-sass"))
        mix = sass.Mix(function.name, "float32", None, phases)
        launched = triton_launch(
            function.name, counts, resources.threads, resources.registers, resources.shared_bytes,
            mix.instructions_per_access,
        )  # fmt: skip
        yield replace(launched, reads_of_unwritten=machine.reads_of_unwritten, disagreements=machine.disagreements)
    memory.copy_back()


def of_pytorch(sequence: LaunchSequence) -> float:
    """Cycles of the bus for what PyTorch zeroes before the kernels."""
    return sum(tensor.nbytes for tensor in sequence.zeroed()) / cycles.BYTES_PER_CYCLE


def report_triton_cycles(of_cuda: Mapping[str, float]) -> None:
    """Prints one line per launch of the cases of :mod:`benchmarks.cycles`, beside the CUDA backend's cycles.

    Args:
        of_cuda: predicted cycles of the CUDA backend's passes, by the case's name; empty if there are none.
    """
    print("\nPredicted cycles of the Triton kernels on an RTX 2060, float32, 160×224, by two models.")
    for name, (by_constants, by_latencies) in ratios_of_passes().items():
        print(f"{name}: {by_constants - 1:+.0%} off by constants, {by_latencies - 1:+.0%} by latencies")
    headings = [("constants", 10), ("latencies", 10), ("issue", 8), ("waves", 7), ("alone", 8), ("loads", 7)]
    headings += [("passes", 8), ("all passes", 11), ("barriers", 9), ("new KB", 7)]
    print(f"\n{'case':16} {'kernel':28}", "".join(f"{heading:>{width}}" for heading, width in headings))
    for name, (case, backward) in cycles.SIMULATED_CASES.items():
        sequence = sequence_of(case.inputs(), case.problem(), backward)
        together = np.full(2, of_pytorch(sequence))
        for launched in run_launches(sequence.launches, checked=False):
            simulated = launched.launch
            together += launched.by_constants, launched.by_latencies
            print(
                f"{name:16} {simulated.kernel:28} {launched.by_constants:10,.0f}{launched.by_latencies:10,.0f}"
                f"{simulated.issue:8,.0f}{simulated.waves:7.2f}{launched.alone:8,.0f}{simulated.loads:7.0f}"
                f"{simulated.passes:8.0f}{launched.passes:11,.0f}{simulated.barriers:9.1f}"
                f"{simulated.new_bytes / 1e3:7,.0f}",
                flush=True,
            )
        if pytorch := of_pytorch(sequence):
            print(f"{name:16} {'PyTorch, zeroing':28} {pytorch:10,.0f}{pytorch:10,.0f}")
        beside = ""
        if name in of_cuda:
            beside = "   {:.1f} and {:.1f} times CUDA's {:,.0f}".format(*together / of_cuda[name], of_cuda[name])
        print(f"{name:16} {'together':28} {together[0]:10,.0f}{together[1]:10,.0f}{beside}", flush=True)
