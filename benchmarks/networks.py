"""The twelve networks of the paper's Table 1, and SCP with the head as the paper describes it."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers import PAPER_STYLE
from scp_kernels import FusedSCP, count_macs, dispatch
from scp_kernels.backends import cpu
from scp_kernels.layers import pointwise_layers
from scp_kernels.problem import problem_of
from scp_models.networks import SegmentationNetwork, build_network
from scp_models.networks.complexity import TITLES, bytes_saved_for_backward
from scp_models.networks.paper_style import PaperStyle
from tests.support.memory import resident_growth

CHANNELS, HEIGHT, WIDTH = 3, 160, 224
CAPACITIES = (128, 256, 512)
VARIANT_BY_TITLE = {title: variant for variant, title in TITLES.items()}


def names(capacities: tuple[int, ...] = CAPACITIES) -> list[str]:
    """Like ``"Base F 256"``; ``"SCP 256 paper-style"`` has the same weights as ``"SCP 256"``."""
    heads = [*TITLES.values(), f"{TITLES['scp']} {PAPER_STYLE}"]
    return [head.replace(TITLES["scp"], f"{TITLES['scp']} {nc}") if "SCP" in head else f"{head} {nc}"
            for nc in capacities for head in heads]  # fmt: skip


def build(name: str, device: str = "cpu", backend: str = "auto") -> SegmentationNetwork:
    """The network in the paper's form, with the same random weights at each call."""
    title, _, capacity = name.removesuffix(f" {PAPER_STYLE}").rpartition(" ")
    torch.manual_seed(0)
    network = build_network(
        VARIANT_BY_TITLE[title], in_channels=CHANNELS, capacity=int(capacity), preset="paper", backend=backend
    )
    if name.endswith(PAPER_STYLE):
        assert isinstance(network.head, FusedSCP)
        network.head = PaperStyle(network.head)  # type: ignore[assignment]
    return network.to(device)


def image(batch: int, device: str = "cpu") -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randn(batch, CHANNELS, HEIGHT, WIDTH, generator=g).to(device)


def inference(network: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    network.eval()
    return torch.no_grad()(lambda: network(x))


def training_step(network: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward, loss, backward and a step of plain SGD; gradients are made anew each time."""
    network.train()
    target = (x[:, :1] > 1).to(x.dtype)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        binary_cross_entropy_with_logits(network(x), target).backward()
        optimizer.step()

    return step


STEPS = {"inference": inference, "training": training_step}


def activation_bytes(network: nn.Module, x: Tensor) -> int:
    """What autograd keeps between the passes of a training step, beyond image, parameters and statistics."""
    network.train()
    known = (x, *network.parameters(), *network.buffers())
    kept = []
    return bytes_saved_for_backward(lambda: kept.append(network(x)), known)


def resident_bytes_of_network(name: str, batch: int, step: str) -> int | None:
    """Growth of a fresh process's resident memory at the peak of one step, in bytes (CPU)."""
    x = image(batch)
    STEPS[step](build(name), x[:1, :, :32, :32])()  # loads the code
    return resident_growth(STEPS[step](build(name), x))


def network_macs(network: SegmentationNetwork, batch: int = 1) -> int:
    """Multiply-adds executed in an inference: convolutions, and what the head's backend really does for Φ."""
    on_meta = copy.deepcopy(network).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        features = on_meta.features(torch.empty(batch, CHANNELS, HEIGHT, WIDTH, device="meta"))
    product = features.numel()
    macs = counter.get_total_flops() // 2 + product
    head = network.head
    if isinstance(head, nn.Conv2d):
        return macs
    if isinstance(head, PaperStyle):
        return macs + batch * _phi_macs(head) + product  # W·X and w_r·X apart
    inputs = torch.zeros(features.shape, device=next(network.parameters()).device)
    first, second, _ = pointwise_layers(head.phi)
    assert head.residual is not None
    problem = problem_of(inputs, first.weight, second.weight, head.residual.weight, groups=1)
    backend = dispatch.select(problem, head.backend)
    if backend == "reference":
        return macs + _phi_macs(head)
    if backend == "cpu":
        cpu.clear_weight_field_cache()  # else nothing might be left to execute
    with torch.no_grad(), count_macs() as executed:
        head(inputs)
    return macs + executed.macs


def _phi_macs(head: PaperStyle | FusedSCP) -> int:
    """Of Φ, evaluated as printed at each pixel."""
    return HEIGHT * WIDTH * sum(layer.weight.numel() for layer in pointwise_layers(head.phi))
