"""What the compared networks cost on this machine: parameters, multiply-adds, seconds."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

from scp_models.networks import SegmentationNetwork
from scp_models.networks.complexity import count_parameters, nominal_macs
from scp_models.training.losses import SegmentationLoss


@dataclass(frozen=True)
class Cost:
    """Of one network; ``macs`` (nominal) are of one slice, ``inference_seconds`` a slice's share of a batch's forward
    pass, ``step_seconds`` of a batch.
    """

    parameters: int
    macs: int
    step_seconds: float
    inference_seconds: float


def measure_costs(
    networks: Sequence[SegmentationNetwork],
    image: Tensor,
    label: Tensor,
    *,
    repeats: int = 15,
    advance: Callable[[], None] = lambda: None,
) -> list[Cost]:
    """Medians over ``repeats`` rounds, in each of which every network has its turn: a busy moment hits them all.

    Args:
        networks: left as they are; copies are trained.
        image, label: a training batch, ``[B, C, H, W]`` and ``[B, 1, H, W]``, on the device to measure.
        repeats: rounds; one more before them is not counted.
        advance: called after each of the ``repeats + 1`` rounds.
    """
    steps = [_training_step(network, image, label) for network in networks]
    forwards = [_inference(network, image) for network in networks]
    step_times: list[list[float]] = [[] for _ in networks]
    inference_times: list[list[float]] = [[] for _ in networks]
    for repeat in range(repeats + 1):
        for k in range(len(networks)):
            step, inference = _seconds(steps[k], image), _seconds(forwards[k], image)
            if repeat:
                step_times[k].append(step)
                inference_times[k].append(inference / len(image))
        advance()
    return [
        Cost(count_parameters(network), nominal_macs(network, *image.shape[2:]), median(step), median(inference))
        for network, step, inference in zip(networks, step_times, inference_times, strict=True)
    ]


def _training_step(network: SegmentationNetwork, image: Tensor, label: Tensor) -> Callable[[], object]:
    network = copy.deepcopy(network).to(image.device).train()
    loss, optimizer = SegmentationLoss(), torch.optim.Adam(network.parameters(), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        loss(network(image), label).backward()
        optimizer.step()

    return step


def _inference(network: nn.Module, image: Tensor) -> Callable[[], object]:
    network = copy.deepcopy(network).to(image.device).eval()
    return torch.inference_mode()(lambda: network(image))


def _seconds(work: Callable[[], object], image: Tensor) -> float:
    start = perf_counter()
    work()
    if image.is_cuda:
        torch.cuda.synchronize(image.device)
    return perf_counter() - start
