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
from scp_kernels.backends.triton.backward import scp_bwd_features_kernel, scp_bwd_parameters_kernel
from scp_kernels.backends.triton.fold_backward import scp_fold_bwd_w1_kernel, scp_fold_bwd_w2_kernel
from scp_kernels.backends.triton.forward import scp_fwd_kernel
from scp_kernels.backends.triton.sequence import Launch, LaunchSequence
from scp_kernels.backends.triton.tables import Configuration
from scp_kernels.backends.triton.tiles import FoldedTiles
from scp_kernels.problem import GradientNeeds, Problem, SCPInputs


def precision(problem: Problem, capability: int) -> str:
    """Arithmetic of the products with w₃: exact, unless the user allows TensorFloat-32 and the device has it."""
    allowed = torch.get_float32_matmul_precision() != "highest"
    return "tf32" if allowed and capability >= 80 and problem.compute_dtype == torch.float32 else "ieee"


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def output_blocks(classes: int, channels: int, limit: int, *, classes_first: bool) -> tuple[int, int]:
    """``BLOCK_N, BLOCK_C``, powers of two with a product of 16 (least for ``tl.dot``) to ``limit``.

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
    return block_n, max(block_c, 16 // block_n)


def _strides(tensor: Tensor, prefix: str, channel_name: str) -> dict[str, int]:
    """Strides of ``[B, ·, (D,) H, W]`` by argument name; the depth's is 0 in 2-D."""
    batch, channel, *spatial = tensor.stride()
    depth, height, width = spatial if len(spatial) == 3 else (0, *spatial)
    values = {"b": batch, channel_name: channel, "d": depth, "h": height, "w": width}
    return {f"{prefix}_stride_{axis}": value for axis, value in values.items()}


def _transposed(w2: Tensor) -> Tensor:
    """w₂ᵀ: what the kernels load is a unit of layer 1, and a row of this."""
    return w2.t().contiguous()


def configuration_for(kernel: str, problem: Problem, capability: int) -> Configuration:
    outputs = problem.num_classes * problem.channels
    itemsize = problem.compute_dtype.itemsize
    return tables.find(kernel, capability, problem.hidden, outputs, itemsize, precision(problem, capability))


def _shared(
    problem: Problem, configuration: Configuration, tiles: FoldedTiles, phi: tuple[Tensor, ...]
) -> dict[str, Any]:
    """Arguments that the kernels on pixels have in common."""
    h1, h2 = problem.hidden
    return {
        "folded": tiles.folded,
        "w2t": tiles.w2t,
        "w3": phi[4],
        "batch": problem.batch // problem.groups,
        "classes": problem.num_classes,
        "channels": problem.channels,
        "h1": h1,
        "h2": h2,
        "height": problem.spatial_shape[-2],
        "width": problem.spatial_shape[-1],
        "BLOCK_H2": configuration.block_h2,
        **tiles.unstable,
        **tiles.geometry,
    }


def forward(inputs: SCPInputs, capability: int) -> LaunchSequence:
    """The forward pass, a launch per block of channels (one, up to 64 channels); finishes as the logits."""
    features, phi, residual, bias, matrix, problem = inputs
    configuration = configuration_for(tables.FORWARD, problem, capability)
    tiles = FoldedTiles(configuration.tile, phi, _transposed(phi[2]), matrix, problem)
    block_n, block_c = output_blocks(
        problem.num_classes, problem.channels, configuration.block_outputs, classes_first=False
    )
    starts = range(0, problem.channels, block_c)
    # Partial sums over channels are not rounded to half precision.
    sum_dtype = problem.dtype if len(starts) == 1 else problem.compute_dtype
    shape = (problem.batch, problem.num_classes, *problem.spatial_shape)
    logits = torch.empty(shape, dtype=sum_dtype, device=features.device)
    arguments = _shared(problem, configuration, tiles, phi) | {
        "x": features,
        "b3": phi[5],
        "residual": residual,
        "y": logits,
        **_strides(features, "x", "c"),
        "y_stride_b": logits.stride(0),
        "y_stride_n": logits.stride(1),
        "y_stride_d": problem.spatial_shape[-1] * problem.spatial_shape[-2],
        "BLOCK_N": block_n,
        "BLOCK_C": block_c,
        "PRECISION": precision(problem, capability),
    }

    def launches(first_tile: int, count: int) -> list[Launch]:
        grid = (count, triton.cdiv(problem.num_classes, block_n), 1)
        result = []
        for start in starts:
            has_bias = bias is not None and start == 0
            of_channels = {
                "first_tile": first_tile,
                "channel_start": start,
                "bias": bias if has_bias else residual,
                "HAS_BIAS": has_bias,
                "ACCUMULATE": start > 0,
            }
            result.append(Launch(scp_fwd_kernel, grid, arguments | of_channels, configuration.options))
        return result

    return LaunchSequence(tuple(tiles.launches([launches])), lambda: logits.to(problem.dtype))


def backward(inputs: SCPInputs, grad_logits: Tensor, needs: GradientNeeds, capability: int) -> LaunchSequence:
    """The backward pass; finishes as the gradients of the features, and of Φ (None if not needed).

    Both share one folding, if the table gives them one size of tile.
    """
    features, phi, residual, _, matrix, problem = inputs
    call = _Backward(grad_logits, features, phi, residual, problem, capability)
    w2t = _transposed(phi[2])
    by_size: dict[tuple[int, int], tuple[FoldedTiles, list[Callable[[int, int], list[Launch]]]]] = {}
    finishes: list[Callable[[], Any]] = [lambda: None, lambda: None]
    for place, kernel in enumerate((tables.FEATURES, tables.PARAMETERS)):
        if not needs[place]:
            continue
        configuration = configuration_for(kernel, problem, capability)
        if configuration.tile not in by_size:
            by_size[configuration.tile] = FoldedTiles(configuration.tile, phi, w2t, matrix, problem), []
        tiles, passes = by_size[configuration.tile]
        make = _features if kernel == tables.FEATURES else _parameters
        launches, finishes[place] = make(call, configuration, tiles)
        passes.append(launches)
    launched = [item for tiles, passes in by_size.values() for item in tiles.launches(passes)]
    return LaunchSequence(tuple(launched), lambda: tuple(finish() for finish in finishes))


@dataclass(frozen=True)
class _Backward:
    """What both kinds of gradients are made of."""

    grad_logits: Tensor
    features: Tensor
    phi: tuple[Tensor, ...]
    residual: Tensor
    problem: Problem
    capability: int

    def arguments(self, configuration: Configuration, tiles: FoldedTiles, blocks: tuple[int, int]) -> dict[str, Any]:
        return _shared(self.problem, configuration, tiles, self.phi) | {
            "grad_logits": self.grad_logits,
            **_strides(self.grad_logits, "g", "n"),
            "BLOCK_N": blocks[0],
            "BLOCK_C": blocks[1],
            "PRECISION": precision(self.problem, self.capability),
        }


_Pass = tuple[Callable[[int, int], list[Launch]], Callable[[], Any]]


def _features(call: _Backward, configuration: Configuration, tiles: FoldedTiles) -> _Pass:
    """The features' gradient, a launch per block of classes (one, up to 64 classes)."""
    problem = call.problem
    block_n, block_c = output_blocks(
        problem.num_classes, problem.channels, configuration.block_outputs, classes_first=True
    )
    starts = range(0, problem.num_classes, block_n)
    gradient = torch.empty_like(call.features)
    total = gradient if len(starts) == 1 else torch.empty_like(gradient, dtype=problem.compute_dtype)
    arguments = call.arguments(configuration, tiles, (block_n, block_c)) | {
        "b3": call.phi[5],
        "residual": call.residual,
        "grad_features": total,
        **_strides(total, "x", "c"),
    }

    def launches(first_tile: int, count: int) -> list[Launch]:
        grid = (count, triton.cdiv(problem.channels, block_c), 1)
        return [
            Launch(
                scp_bwd_features_kernel,
                grid,
                arguments | {"first_tile": first_tile, "class_start": start, "ACCUMULATE": start > 0},
                configuration.options,
            )
            for start in starts
        ]

    return launches, lambda: gradient if total is gradient else gradient.copy_(total)


@dataclass(frozen=True)
class Slabs:
    """How the tiles of a chunk are dealt to slabs. A slab is a run of tiles with partial gradients of its own."""

    count: int
    tiles_per_slab: int

    @classmethod
    def of(cls, tiles: int, slab_bytes: int, workspace_bytes: int) -> "Slabs":
        """As many slabs as fit the workspace (one at least), and no more than there are tiles."""
        most = max(1, min(tiles, workspace_bytes // slab_bytes, tables.MOST_SLABS))
        tiles_per_slab = triton.cdiv(tiles, most)
        return cls(triton.cdiv(tiles, tiles_per_slab), tiles_per_slab)


def _parameters(call: _Backward, configuration: Configuration, tiles: FoldedTiles) -> _Pass:
    """The gradients of Φ."""
    problem, features = call.problem, call.features
    block_n, block_c = output_blocks(
        problem.num_classes, problem.channels, configuration.block_outputs, classes_first=False
    )
    h1, h2 = problem.hidden
    outputs = problem.num_classes * problem.channels
    sizes = (h1 * h2, h2, outputs * h2, outputs)
    width = 2 * problem.position_dims + 1  # columns of w₁, and b₁
    dtype, device = problem.compute_dtype, features.device
    blocks = triton.cdiv(h2, configuration.block_h2)
    slab_bytes = sum(sizes) * dtype.itemsize + blocks * h1 * width * torch.float64.itemsize
    slabs = Slabs.of(tiles.chunk, slab_bytes, tables.PARTIALS_BYTES)
    partials = torch.zeros(slabs.count, sum(sizes), dtype=dtype, device=device)
    folded_blocks = triton.cdiv(tiles.chunk, tables.FOLD_BACKWARD_W1["BLOCK_TILES"])
    moments = torch.zeros(slabs.count * blocks + folded_blocks, h1, width, dtype=torch.float64, device=device)
    grad_folded = torch.empty_like(tiles.folded)
    arguments = call.arguments(configuration, tiles, (block_n, block_c)) | {
        "x": features,
        "partials": partials,
        "moments": moments,
        "grad_folded": grad_folded,
        **tiles.positions,
        **_strides(features, "x", "c"),
    }

    def launches(first_tile: int, count: int) -> list[Launch]:
        # Of those that there are: a smaller chunk dealt out anew may come to more.
        of_slabs = Slabs.of(count, slab_bytes, slabs.count * slab_bytes)
        of_chunk = {"first_tile": first_tile, "tiles": count, "tiles_per_slab": of_slabs.tiles_per_slab}
        return [
            Launch(scp_bwd_parameters_kernel, (of_slabs.count, blocks, 1), arguments | of_chunk, configuration.options),
            fold_backward_w2(count),
            fold_backward_w1(first_tile, count),
        ]

    def fold_backward_w2(count: int) -> Launch:
        block = tables.FOLD_BACKWARD_W2
        of_units = triton.cdiv(h1, block["BLOCK_H1"]), triton.cdiv(h2, block["BLOCK_H2"])
        row_blocks = triton.cdiv(3 * count, block["BLOCK_ROWS"])
        parts = min(slabs.count, row_blocks, triton.cdiv(tables.ENOUGH_PROGRAMS, math.prod(of_units)))
        rows_per_part = triton.cdiv(row_blocks, parts) * block["BLOCK_ROWS"]
        arguments = {
            "active": tiles.active, "grad_folded": grad_folded, "partials": partials, "rows": 3 * count,
            "rows_per_part": rows_per_part, "partials_stride": partials.stride(0), "h1": h1, "h2": h2, **block,
        }  # fmt: skip
        grid = (*of_units, triton.cdiv(3 * count, rows_per_part))
        return Launch(scp_fold_bwd_w2_kernel, grid, arguments, tables.options(4))

    def fold_backward_w1(first_tile: int, count: int) -> Launch:
        block = tables.FOLD_BACKWARD_W1
        arguments = {
            "active": tiles.active, "grad_folded": grad_folded, "w2": call.phi[2],
            "moments": moments[slabs.count * blocks :], "first_tile": first_tile, "tiles": count, "h1": h1, "h2": h2,
            **tiles.geometry, **tiles.positions, **block,
        }  # fmt: skip
        grid = (triton.cdiv(count, block["BLOCK_TILES"]), triton.cdiv(h1, block["BLOCK_H1"]), 1)
        return Launch(scp_fold_bwd_w1_kernel, grid, arguments, tables.options(4))

    def finish() -> tuple[Tensor, ...]:
        of_w2t, of_b2, of_w3, of_b3 = partials.split(sizes, 1)
        of_w2 = torch.empty(h2, h1, dtype=dtype, device=device)
        torch.sum(of_w2t.unflatten(1, (h1, h2)), 0, out=of_w2.t())
        of_first = moments.sum(0)
        return (
            of_first[:, :-1].to(dtype, memory_format=torch.contiguous_format),
            of_first[:, -1].to(dtype, memory_format=torch.contiguous_format),
            of_w2,
            of_b2.sum(0),
            of_w3.sum(0).view(outputs, h2),
            of_b3.sum(0),
        )

    return launches, finish
