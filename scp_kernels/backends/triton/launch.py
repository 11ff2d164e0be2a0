"""From a call to the sequence of launches that runs it: block sizes, grids, arguments. Nothing here touches a driver.

The same sequences are run on a GPU, run by the interpreter, and compiled without a GPU for every architecture
(with tensors on the ``meta`` device), so what the tests compile is what users run.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from scp_kernels.backends.triton import tables
from scp_kernels.backends.triton.backward_features import scp_bwd_features_kernel
from scp_kernels.backends.triton.backward_parameters import scp_bwd_parameters_kernel
from scp_kernels.backends.triton.forward import scp_fwd_kernel
from scp_kernels.backends.triton.sequence import Launch, LaunchSequence
from scp_kernels.backends.triton.supertiles import FoldedTiles, PreparedNetwork, Slabs
from scp_kernels.backends.triton.tables import Configuration
from scp_kernels.problem import GradientNeeds, Problem, SCPInputs


def precision(problem: Problem, capability: int) -> str:
    """Arithmetic of the products with w₃: exact, unless the user allows TensorFloat-32 and the device has it."""
    allowed = torch.get_float32_matmul_precision() != "highest"
    return "tf32" if allowed and capability >= 80 and problem.compute_dtype == torch.float32 else "ieee"


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def output_blocks(classes: int, channels: int, limit: int, *, classes_first: bool) -> tuple[int, int]:
    """``BLOCK_N, BLOCK_C``, powers of two with a product of 8 (least for ``tl.dot``) to ``limit``.

    The axis that the kernel sums over is to be covered at once where it can be: classes for the features' gradient
    (``classes_first``), channels otherwise.
    """
    block_n, block_c = _power_of_two(classes), _power_of_two(channels)
    if classes_first:
        block_n = min(block_n, limit)
        block_c = min(block_c, limit // block_n)
    else:
        block_c = min(block_c, limit)
        block_n = min(block_n, limit // block_c)
    return block_n, max(block_c, 8 // block_n)


def _strides(tensor: Tensor, prefix: str, channel_name: str) -> dict[str, int]:
    """Strides of ``[B, ·, (D,) H, W]`` by argument name; the depth's is 0 in 2-D."""
    batch, channel, *spatial = tensor.stride()
    depth, height, width = spatial if len(spatial) == 3 else (0, *spatial)
    values = {"b": batch, channel_name: channel, "d": depth, "h": height, "w": width}
    return {f"{prefix}_stride_{axis}": value for axis, value in values.items()}


def configuration_for(kernel: str, problem: Problem, capability: int) -> Configuration:
    outputs = problem.num_classes * problem.channels
    itemsize = problem.compute_dtype.itemsize
    return tables.find_configuration(
        kernel, capability, problem.hidden, outputs, itemsize, precision(problem, capability)
    )


def _on_tiles(problem: Problem, configuration: Configuration, folded: FoldedTiles, first: int) -> dict[str, Any]:
    """Arguments of the kernels that evaluate W on tiles of the chunk that begins with supertile ``first``."""
    h1, h2 = problem.hidden
    return {
        **folded.tiles.of("unit1", "lines", "unit2", "rows", "outputs", "counts"),
        "w2t": folded.network.w2t,
        "w3t": folded.network.w3t,
        "batch": problem.batch // problem.groups,
        "classes": problem.num_classes,
        "channels": problem.channels,
        "h1": h1,
        "h2": h2,
        "capacity": folded.capacity,
        "BLOCK_K": configuration.block_hidden,
        **folded.on_boxes(folded.tiles, first),
    }


def forward_sequence(inputs: SCPInputs, capability: int) -> LaunchSequence:
    """The forward pass, a launch per block of channels (one, up to 64 channels); finishes as the logits."""
    features, phi, residual, bias, position_matrix, problem = inputs
    configuration = configuration_for(tables.FORWARD, problem, capability)
    network = PreparedNetwork(phi, residual)
    folded = FoldedTiles(configuration.tile, network, position_matrix, problem, gradients=False)
    block_n, block_c = output_blocks(
        problem.num_classes, problem.channels, configuration.block_outputs, classes_first=False
    )
    starts = range(0, problem.channels, block_c)
    # Partial sums over channels are not rounded to half precision.
    sum_dtype = problem.dtype if len(starts) == 1 else problem.compute_dtype
    shape = (problem.batch, problem.num_classes, *problem.spatial_shape)
    logits = torch.empty(shape, dtype=sum_dtype, device=features.device)
    arguments = {
        "x": features,
        "y": logits,
        **_strides(features, "x", "c"),
        "y_stride_b": logits.stride(0),
        "y_stride_n": logits.stride(1),
        "y_stride_d": problem.spatial_shape[-1] * problem.spatial_shape[-2],
        "BLOCK_N": block_n,
        "BLOCK_C": block_c,
        "PRECISION": precision(problem, capability),
    }

    def launches(first: int, supertiles: int) -> list[Launch]:
        grid = (supertiles * folded.tiles.per_supertile, triton.cdiv(problem.num_classes, block_n), 1)
        result = []
        for start in starts:
            has_bias = bias is not None and start == 0
            of_channels = {
                "channel_start": start,
                "bias": bias if has_bias else residual,
                "HAS_BIAS": has_bias,
                "ACCUMULATE": start > 0,
                **_on_tiles(problem, configuration, folded, first),
            }
            result.append(Launch(scp_fwd_kernel, grid, arguments | of_channels, configuration.options))
        return result

    return LaunchSequence((*network.launches(), *folded.launches([launches])), lambda: logits.to(problem.dtype))


def backward_sequence(inputs: SCPInputs, grad_logits: Tensor, needs: GradientNeeds, capability: int) -> LaunchSequence:
    """The backward pass; finishes as the gradients of the features, and of Φ (None if not needed).

    Both share one folding, if the table gives them one size of tile.
    """
    features, phi, residual, _, position_matrix, problem = inputs
    call = _Backward(grad_logits, features, problem, capability)
    network = PreparedNetwork(phi, residual)
    needed = {
        kernel: configuration_for(kernel, problem, capability)
        for kernel, is_needed in ((tables.FEATURES, needs.features), (tables.PARAMETERS, needs.parameters))
        if is_needed
    }
    launches = network.launches()
    passes: dict[str, _Pass] = {}
    for tile in dict.fromkeys(configuration.tile for configuration in needed.values()):
        here = [kernel for kernel, configuration in needed.items() if configuration.tile == tile]
        folded = FoldedTiles(tile, network, position_matrix, problem, gradients=tables.PARAMETERS in here)
        for kernel in here:
            make = _features if kernel == tables.FEATURES else _parameters
            passes[kernel] = make(call, needed[kernel], folded)
        launches += folded.launches([passes[kernel].launches for kernel in here])
        launches += [launch for kernel in here for launch in passes[kernel].last]

    def finish() -> tuple[Tensor | None, tuple[Tensor, ...] | None]:
        of_features, of_parameters = (
            passes[kernel].finish() if kernel in passes else None for kernel in (tables.FEATURES, tables.PARAMETERS)
        )
        return of_features, of_parameters

    return LaunchSequence(tuple(launches), finish)


@dataclass(frozen=True)
class _Backward:
    """What both kinds of gradients are made of."""

    grad_logits: Tensor
    features: Tensor
    problem: Problem
    capability: int

    def arguments(self, blocks: tuple[int, int]) -> dict[str, Any]:
        return {
            "grad_logits": self.grad_logits,
            **_strides(self.grad_logits, "g", "n"),
            "BLOCK_N": blocks[0],
            "BLOCK_C": blocks[1],
            "PRECISION": precision(self.problem, self.capability),
        }


@dataclass(frozen=True)
class _Pass:
    """One kind of gradients: its launches for ``first_supertile, supertiles``, its result, and its last launches."""

    launches: Callable[[int, int], list[Launch]]
    finish: Callable[[], Any]
    last: tuple[Launch, ...] = ()


def _features(call: _Backward, configuration: Configuration, folded: FoldedTiles) -> _Pass:
    """The features' gradient, a launch per block of classes (one, up to 64 classes)."""
    problem = call.problem
    block_n, block_c = output_blocks(
        problem.num_classes, problem.channels, configuration.block_outputs, classes_first=True
    )
    starts = range(0, problem.num_classes, block_n)
    gradient = torch.empty_like(call.features)
    total = gradient if len(starts) == 1 else torch.empty_like(gradient, dtype=problem.compute_dtype)
    arguments = call.arguments((block_n, block_c)) | {"grad_features": total, **_strides(total, "x", "c")}

    def launches(first: int, supertiles: int) -> list[Launch]:
        grid = (supertiles * folded.tiles.per_supertile, triton.cdiv(problem.channels, block_c), 1)
        on_tiles = _on_tiles(problem, configuration, folded, first)
        return [
            Launch(
                scp_bwd_features_kernel,
                grid,
                arguments | on_tiles | {"class_start": start, "ACCUMULATE": start > 0},
                configuration.options,
            )
            for start in starts
        ]

    return _Pass(launches, lambda: gradient if total is gradient else gradient.copy_(total))


def _parameters(call: _Backward, configuration: Configuration, folded: FoldedTiles) -> _Pass:
    """The gradients of Φ."""
    problem, features = call.problem, call.features
    block_n, block_c = output_blocks(
        problem.num_classes, problem.channels, configuration.block_outputs, classes_first=False
    )
    outputs = problem.num_classes * problem.channels
    dtype, device = problem.compute_dtype, features.device
    slabs = Slabs(folded.chunk * folded.tiles.per_supertile, problem, device)
    pixels = math.prod(configuration.tile)
    arguments = call.arguments((block_n, block_c)) | {
        "x": features,
        "grad_weight": torch.empty(slabs.count, outputs, pixels, dtype=dtype, device=device),
        "POSITION_DIMS": problem.position_dims,
        **_strides(features, "x", "c"),
    }

    def launches(first: int, supertiles: int) -> list[Launch]:
        count, of_slabs = slabs.deal(supertiles * folded.tiles.per_supertile)
        of_chunk = {
            **folded.tiles.of("grad_outputs", "grad_rows", "moments"),
            **_on_tiles(problem, configuration, folded, first),
            **of_slabs,
        }
        return [
            Launch(scp_bwd_parameters_kernel, (count, 1, 1), arguments | of_chunk, configuration.options),
            *folded.fold_backward(slabs, first, supertiles),
        ]

    return _Pass(launches, lambda: slabs.gradients, (slabs.sums(),))
