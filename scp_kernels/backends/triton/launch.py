"""From a call to the kernels it launches: block sizes, grids, arguments. Nothing here touches a driver.

The same lists of launches are run on a GPU, run by the interpreter, and compiled without a GPU for every architecture
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
from scp_kernels.backends.triton.backward import scp_backward_features_kernel, scp_backward_parameters_kernel
from scp_kernels.backends.triton.forward import scp_forward_kernel
from scp_kernels.backends.triton.tables import Configuration
from scp_kernels.problem import Problem


@dataclass(frozen=True)
class Launch:
    """One kernel launch: everything that the JIT compiler specialises on, and the grid."""

    kernel: Any
    grid: tuple[int, int, int]
    arguments: dict[str, Any]
    options: dict[str, Any]

    def run(self) -> None:
        """Launch on the current stream of the current device."""
        self.kernel[self.grid](**self.arguments, **self.options)


@dataclass(frozen=True)
class Plan:
    """Launches in order, and what turns their outputs into the caller's."""

    launches: tuple[Launch, ...]
    finish: Callable[[], Any]

    def run(self) -> Any:
        for launch in self.launches:
            launch.run()
        return self.finish()


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


@dataclass(frozen=True)
class _Tiling:
    """Tiles of a map: how many along rows and columns, and in all (slices counted)."""

    rows: int
    columns: int
    total: int

    @classmethod
    def of(cls, problem: Problem, configuration: Configuration) -> "_Tiling":
        *depth, height, width = problem.spatial_shape
        rows, columns = triton.cdiv(height, configuration.tile[0]), triton.cdiv(width, configuration.tile[1])
        return cls(rows, columns, rows * columns * (depth[0] if depth else 1))


def configuration_for(kernel: str, problem: Problem, capability: int) -> Configuration:
    outputs = problem.num_classes * problem.channels
    itemsize = problem.compute_dtype.itemsize
    return tables.find(kernel, capability, problem.hidden, outputs, itemsize, precision(problem, capability))


def _shared(problem: Problem, configuration: Configuration, tiling: _Tiling, phi: tuple[Tensor, ...]) -> dict[str, Any]:
    """Arguments that all kernels have in common."""
    h1, h2 = problem.hidden
    return {
        "w2t": phi[0].t().contiguous(),
        "b2": phi[1],
        "w3": phi[2],
        "batch": problem.batch // problem.groups,
        "classes": problem.num_classes,
        "channels": problem.channels,
        "h1": h1,
        "h2": h2,
        "height": problem.spatial_shape[-2],
        "width": problem.spatial_shape[-1],
        "tiles_h": tiling.rows,
        "tiles_w": tiling.columns,
        "DIMS": problem.spatial_dims,
        "TILE_H": configuration.tile[0],
        "TILE_W": configuration.tile[1],
        "BLOCK_H1": configuration.block_h1,
        "BLOCK_H2": configuration.block_h2,
    }


def forward(
    features: Tensor,
    phi: tuple[Tensor, ...],
    residual: Tensor,
    bias: Tensor | None,
    coefficients: Tensor,
    problem: Problem,
    capability: int,
) -> Plan:
    """Launches of the forward pass, one for each block of channels (one, up to 64 channels); finishes as the logits."""
    configuration = configuration_for(tables.FORWARD, problem, capability)
    tiling = _Tiling.of(problem, configuration)
    block_n, block_c = output_blocks(
        problem.num_classes, problem.channels, configuration.block_outputs, classes_first=False
    )
    starts = range(0, problem.channels, block_c)
    # Partial sums over channels are not rounded to half precision.
    sum_dtype = problem.dtype if len(starts) == 1 else problem.compute_dtype
    shape = (problem.batch, problem.num_classes, *problem.spatial_shape)
    logits = torch.empty(shape, dtype=sum_dtype, device=features.device)
    arguments = _shared(problem, configuration, tiling, phi) | {
        "x": features,
        "coefficients": coefficients,
        "b3": phi[3],
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
    grid = (tiling.total, problem.groups, triton.cdiv(problem.num_classes, block_n))
    launches = []
    for start in starts:
        has_bias = bias is not None and start == 0
        own = {
            "channel_start": start,
            "bias": bias if has_bias else residual,
            "HAS_BIAS": has_bias,
            "ACCUMULATE": start > 0,
        }
        launches.append(Launch(scp_forward_kernel, grid, arguments | own, configuration.options))
    return Plan(tuple(launches), lambda: logits.to(problem.dtype))


def backward_features(
    grad_logits: Tensor,
    features: Tensor,
    phi: tuple[Tensor, ...],
    residual: Tensor,
    coefficients: Tensor,
    problem: Problem,
    capability: int,
) -> Plan:
    """Launches of the features' gradient, one for each block of classes (one, up to 64); finishes as the gradient."""
    configuration = configuration_for(tables.FEATURES, problem, capability)
    tiling = _Tiling.of(problem, configuration)
    block_n, block_c = output_blocks(
        problem.num_classes, problem.channels, configuration.block_outputs, classes_first=True
    )
    starts = range(0, problem.num_classes, block_n)
    gradient = torch.empty_like(features)
    total = gradient if len(starts) == 1 else torch.empty_like(gradient, dtype=problem.compute_dtype)
    arguments = _shared(problem, configuration, tiling, phi) | {
        "grad_logits": grad_logits,
        "coefficients": coefficients,
        "b3": phi[3],
        "residual": residual,
        "grad_features": total,
        **_strides(grad_logits, "g", "n"),
        **_strides(total, "x", "c"),
        "BLOCK_N": block_n,
        "BLOCK_C": block_c,
        "PRECISION": precision(problem, capability),
    }
    grid = (tiling.total, problem.groups, triton.cdiv(problem.channels, block_c))
    launches = [
        Launch(
            scp_backward_features_kernel,
            grid,
            arguments | {"class_start": start, "ACCUMULATE": start > 0},
            configuration.options,
        )
        for start in starts
    ]
    return Plan(tuple(launches), lambda: gradient if total is gradient else gradient.copy_(total))


@dataclass(frozen=True)
class Slabs:
    """How tiles are dealt to slabs: each takes a part of one group's tiles, or all tiles of several groups."""

    count: int
    slabs_per_group: int
    groups_per_slab: int
    tiles_per_slab: int

    @classmethod
    def of(cls, tiles: int, groups: int, slab_bytes: int, workspace_bytes: int) -> "Slabs":
        """As many slabs as fit the workspace (one at least), and no more than there are tiles."""
        most = max(1, min(workspace_bytes // slab_bytes, tables.MOST_SLABS))
        if most >= groups:
            tiles_per_slab = triton.cdiv(tiles, min(tiles, most // groups))
            slabs_per_group = triton.cdiv(tiles, tiles_per_slab)
            return cls(slabs_per_group * groups, slabs_per_group, 1, tiles_per_slab)
        groups_per_slab = triton.cdiv(groups, most)
        return cls(triton.cdiv(groups, groups_per_slab), 1, groups_per_slab, tiles)


def _workspace(size: int, unwritten: Tensor | None, device: torch.device) -> Tensor:
    """``size`` zeros in float64, in the memory of ``unwritten`` if they fit there."""
    storage = None if unwritten is None else unwritten.untyped_storage()
    if storage is None or storage.nbytes() < size * torch.float64.itemsize:
        return torch.zeros(size, dtype=torch.float64, device=device)
    return torch.empty(0, dtype=torch.float64, device=device).set_(storage, 0, (size,), (1,)).zero_()


def backward_parameters(
    grad_logits: Tensor,
    features: Tensor,
    phi: tuple[Tensor, ...],
    coefficients: Tensor,
    problem: Problem,
    capability: int,
    unwritten: Tensor | None = None,
) -> Plan:
    """The launch of the parameters' gradients; finishes as those of ``(coefficients, w2, b2, w3, b3)``.

    ``unwritten`` is a tensor that is to be written only after this plan has run: its memory may serve as workspace.
    """
    configuration = configuration_for(tables.PARAMETERS, problem, capability)
    tiling = _Tiling.of(problem, configuration)
    block_n, block_c = output_blocks(
        problem.num_classes, problem.channels, configuration.block_outputs, classes_first=False
    )
    h1, h2 = problem.hidden
    outputs = problem.num_classes * problem.channels
    sizes = (h1 * h2, h2, outputs * h2, outputs)
    dtype, device = problem.compute_dtype, features.device
    blocks = triton.cdiv(h2, configuration.block_h2)
    moments_bytes = blocks * coefficients[0].numel() * torch.float64.itemsize  # of a slab and group
    borrowed = 0 if unwritten is None else min(unwritten.untyped_storage().nbytes(), tables.BORROWED_BYTES)
    slabs = Slabs.of(
        tiling.total,
        problem.groups,
        sum(sizes) * dtype.itemsize + moments_bytes,
        max(borrowed, tables.ALLOCATED_BYTES),
    )
    # In units of 16 bytes, the alignment that vector loads want.
    moments_size = triton.cdiv(slabs.count * slabs.groups_per_slab * moments_bytes, 16)
    partials_size = triton.cdiv(slabs.count * sum(sizes) * dtype.itemsize, 16)
    workspace = _workspace(2 * (moments_size + partials_size), unwritten, device)
    moments_shape = (
        slabs.count // slabs.slabs_per_group,
        slabs.slabs_per_group * blocks,
        slabs.groups_per_slab,
        *coefficients.shape[1:],
    )
    moments = workspace[: math.prod(moments_shape)].view(moments_shape)
    partials = workspace[2 * moments_size :].view(dtype)[: slabs.count * sum(sizes)].view(slabs.count, sum(sizes))
    arguments = _shared(problem, configuration, tiling, phi) | {
        "grad_logits": grad_logits,
        "x": features,
        "coefficients": coefficients,
        "partials": partials,
        "moments": moments,
        "groups": problem.groups,
        "tiles": tiling.total,
        "tiles_per_slab": slabs.tiles_per_slab,
        "slabs_per_group": slabs.slabs_per_group,
        "groups_per_slab": slabs.groups_per_slab,
        **_strides(grad_logits, "g", "n"),
        **_strides(features, "x", "c"),
        "BLOCK_N": block_n,
        "BLOCK_C": block_c,
        "PRECISION": precision(problem, capability),
    }
    launch = Launch(
        scp_backward_parameters_kernel,
        (slabs.count, blocks, 1),
        arguments,
        configuration.options,
    )

    def finish() -> tuple[Tensor, ...]:
        of_w2t, of_b2, of_w3, of_b3 = partials.split(sizes, 1)
        of_w2 = torch.empty(h2, h1, dtype=dtype, device=device)
        torch.sum(of_w2t.unflatten(1, (h1, h2)), 0, out=of_w2.t())
        of_coefficients = moments.sum(1).flatten(0, 1)[: problem.groups]
        return of_coefficients, of_w2, of_b2.sum(0), of_w3.sum(0).view(outputs, h2), of_b3.sum(0)

    return Plan((launch,), finish)
