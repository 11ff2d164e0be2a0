"""Parameters and multiply-adds of the compared networks, beside the complexity columns of the paper's Table 1."""

import copy
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from scp_kernels import FusedSCP
from scp_models.networks import SegmentationNetwork, build_network

ComplexityRow = dict[str, str | int | float]


class PaperRatios(NamedTuple):
    """A row of Table 1: ratios to Base 128 at 3 × 160 × 224."""

    macs: float
    parameters: float


TITLES = {"base": "Base", "base_f": "Base F", "base_b": "Base B", "scp": "SCP"}
PAPER_TABLE = {
    128: {
        "base": PaperRatios(1.00, 1.00),
        "base_f": PaperRatios(1.02, 1.00),
        "base_b": PaperRatios(1.02, 1.00),
        "scp": PaperRatios(1.42, 1.02),
    },
    256: {
        "base": PaperRatios(3.96, 4.02),
        "base_f": PaperRatios(4.00, 4.02),
        "base_b": PaperRatios(4.00, 4.02),
        "scp": PaperRatios(5.51, 4.06),
    },
    512: {
        "base": PaperRatios(15.71, 16.06),
        "base_f": PaperRatios(15.80, 16.08),
        "base_b": PaperRatios(15.82, 16.08),
        "scp": PaperRatios(21.76, 16.22),
    },
}


def count_parameters(network: nn.Module) -> int:
    """Number of parameters, trained or frozen; batch norm's running statistics are none."""
    return sum(parameter.numel() for parameter in network.parameters())


def nominal_macs(network: SegmentationNetwork, height: int, width: int) -> int:
    """Nominal multiply-adds of one image of ``height`` × ``width`` pixels: convolutions, Φ and the head's product.

    Convolutions are counted by PyTorch's ``FlopCounterMode`` from the shapes that really run. The head is counted by
    formula, because what a backend executes differs by backend (a tile-linear one hardly evaluates Φ at all) while the
    paper's count is nominal: Φ's three layers at every pixel, then N·C for the pixel's own classifier. A bias is one
    more input that is always 1, so a layer costs ``outputs · (inputs + 1)``: without it SCP 128 would come out 2 %
    below the paper. Batch norm, activations, upsampling and the positions are not counted. Φ serves a whole batch:
    its share does not grow with it.
    """
    # On the meta device shapes are computed and nothing else: no memory, no time.
    on_meta = copy.deepcopy(network).to("meta").eval()
    positions = {}
    if network.position_dims != 2:
        # Any place: positions are not counted.
        positions = {"affine": torch.zeros(network.position_dims, 3), "extent": torch.ones(network.position_dims)}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        on_meta.features(torch.empty(1, network.in_channels, height, width, device="meta"), **positions)
    return counter.get_total_flops() // 2 + height * width * _head_macs(network.head)


def _head_macs(head: nn.Conv2d | FusedSCP) -> int:
    """Multiply-adds of the head at one pixel."""
    has_bias = head.bias is not None
    if isinstance(head, FusedSCP):
        # Φ's layers use each weight and bias once per pixel.
        return count_parameters(head.phi) + head.num_classes * (head.in_channels + has_bias)
    return head.out_channels * (head.in_channels + has_bias)


def complexity_table(height: int = 160, width: int = 224, in_channels: int = 3) -> list[ComplexityRow]:
    """The twelve networks of Table 1 in the paper's form, with ratios to Base 128.

    Args:
        height, width, in_channels: of the image; the defaults are the paper's.

    Returns:
        One row per network, ready for JSON: ``model``, ``nc``, ``parameters``, ``macs``, ``parameters_ratio``,
        ``macs_ratio``, and the paper's own ratios as ``paper_parameters_ratio`` and ``paper_macs_ratio``.
    """
    counts = []
    for nc, variants in PAPER_TABLE.items():
        for variant, paper in variants.items():
            network = build_network(variant, in_channels=in_channels, capacity=nc, preset="paper")
            counts.append((TITLES[variant], nc, count_parameters(network), nominal_macs(network, height, width), paper))
    base_parameters, base_macs = counts[0][2:4]
    return [
        {
            "model": title,
            "nc": nc,
            "parameters": parameters,
            "macs": macs,
            "parameters_ratio": parameters / base_parameters,
            "macs_ratio": macs / base_macs,
            "paper_parameters_ratio": paper.parameters,
            "paper_macs_ratio": paper.macs,
        }
        for title, nc, parameters, macs, paper in counts
    ]


def bytes_saved_for_backward(forward: Callable[[], object], known: Iterable[Tensor] = ()) -> int:
    """Bytes of distinct storages that autograd keeps between forward and backward, beyond those of ``known``."""
    inputs = {tensor.untyped_storage().data_ptr() for tensor in known}
    saved: dict[int, int] = {}
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in inputs:
            saved[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)  # else its memory could be given to another tensor and be counted once
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(saved.values())


def as_rich_table(rows: Sequence[Mapping[str, str | int | float]]) -> Table:
    """The rows of :func:`complexity_table` as a table for the terminal."""
    table = Table(
        title="Complexity, as ratios to Base 128 (in brackets: the paper's Table 1)",
        caption="Multiply-adds of convolutions and Φ, nominal, for one image.",
    )
    for heading in ("Model", "Nc", "Parameters", "ratio", "Multiply-adds", "ratio"):
        table.add_column(heading, justify="left" if heading == "Model" else "right")
    for k, row in enumerate(rows):
        table.add_row(
            str(row["model"]),
            str(row["nc"]),
            f"{float(row['parameters']) / 1e6:.4f} M",
            f"{row['parameters_ratio']:.2f} ({row['paper_parameters_ratio']:.2f})",
            f"{float(row['macs']) / 1e9:.3f} G",
            f"{row['macs_ratio']:.2f} ({row['paper_macs_ratio']:.2f})",
            end_section=k + 1 < len(rows) and rows[k + 1]["nc"] != row["nc"],
        )
    return table


def main(*, as_json: bool = False) -> None:
    """Print the table: for people, or as a JSON list of objects."""
    rows = complexity_table()
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        Console().print(as_rich_table(rows))
