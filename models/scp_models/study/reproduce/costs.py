"""What the twelve networks cost at the paper's size, with the paper's operator and with this one."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scp_kernels import FusedSCP, count_macs
from scp_models.networks import SegmentationNetwork, build_network
from scp_models.networks.complexity import PAPER_TABLE, bytes_saved_for_backward, count_parameters, nominal_macs
from scp_models.networks.paper_style import PaperStyle
from scp_models.study.reproduce.paper import PRINTED_CAPACITIES, PRINTED_MEMORY, PRINTED_VARIANTS

PRINTED_SHAPE = (3, 160, 224)
PAPER_OPERATOR = "paper's operator"


@dataclass(frozen=True)
class CostRow:
    """One network at 3 × 160 × 224, batch 1: as ratios to Base 128, and the paper's."""

    name: str
    operator: str
    """Empty where there is no SCP head."""
    memory: float
    macs: float
    """Multiply-adds: what is executed with this operator, what is nominal with the paper's."""
    parameters: float
    paper: tuple[float, float, float] | None
    """Memory, FLOPs, parameters; None where the paper has no such row."""


def measure_printed_costs(advance: Callable[[str], object] = lambda name: None) -> list[CostRow]:
    """The networks in the printed form, SCP with either operator.

    Memory is what a training step keeps for backward beyond the parameters and the image: bytes of distinct storages
    that autograd saves. On a GPU the peak is more, by what a step needs for moments.
    """
    torch.manual_seed(0)
    channels, height, width = PRINTED_SHAPE
    image = torch.randn(1, *PRINTED_SHAPE)
    measured: list[tuple[str, str, int, int, int]] = []
    for capacity in PRINTED_CAPACITIES:
        for title, variant in PRINTED_VARIANTS.items():
            name = f"{title} {capacity}"
            network = build_network(variant, in_channels=channels, capacity=capacity, preset="paper")
            nominal, parameters = nominal_macs(network, height, width), count_parameters(network)
            advance(name)
            if not isinstance(network.head, FusedSCP):
                measured.append((name, "", _kept(network, image), nominal, parameters))
                continue
            with count_macs() as count:
                kept = _kept(network, image)
            phi = height * width * count_parameters(network.head.phi)
            # Where the backend cannot count (the reference), it executes what is nominal.
            executed = nominal - phi + count.macs if count.macs else nominal
            measured.append((name, "ours", kept, executed, parameters))
            head = network.head
            network.head = PaperStyle(head)  # type: ignore[assignment]
            measured.append((name, PAPER_OPERATOR, _kept(network, image), nominal, parameters))
    _, _, memory, macs, parameters = measured[0]
    return [
        CostRow(name, operator, kept / memory, executed / macs, count / parameters, _paper(name, operator))
        for name, operator, kept, executed, count in measured
    ]


def _paper(name: str, operator: str) -> tuple[float, float, float] | None:
    if operator == "ours":
        return None
    title, _, capacity = name.rpartition(" ")
    ratios = PAPER_TABLE[int(capacity)][PRINTED_VARIANTS[title]]
    return PRINTED_MEMORY[name], ratios.macs, ratios.parameters


def _kept(network: SegmentationNetwork, image: Tensor) -> int:
    """What autograd keeps between forward and backward, beyond the image and the parameters."""
    return bytes_saved_for_backward(lambda: network.train()(image).sum(), (image, *network.parameters()))
