"""The claims about whole networks that need no clock, at 3 × 160 × 224 as in the paper's Table 1."""

import pytest
import torch

from benchmarks.networks import CAPACITIES, STEPS, activation_bytes, build, executed_macs, image
from scp_models.networks.complexity import count_parameters
from tests.support.cpu_settings import needs_cpu
from tests.support.memory import cuda_peak

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def reduction(of: float, against: float) -> float:
    return 1 - of / against


def test_scp_256_has_three_quarters_fewer_parameters_than_base_512():
    saved = reduction(count_parameters(build("SCP 256")), count_parameters(build("Base 512")))
    assert round(saved, 3) == 0.747


@needs_cpu
def test_scp_256_executes_74_percent_fewer_operations_than_base_512():
    assert reduction(executed_macs(build("SCP 256", backend="cpu")), executed_macs(build("Base 512"))) >= 0.74


@needs_cpu
@pytest.mark.parametrize("capacity", CAPACITIES[:2])
@pytest.mark.parametrize("batch", [1, 2])
def test_scp_keeps_what_base_keeps(capacity, batch):
    x = image(batch)
    fused, plain = (activation_bytes(build(f"{name} {capacity}"), x) for name in ("SCP", "Base"))
    assert fused == pytest.approx(plain, rel=0.01)
    # The measure sees what the paper-style head adds.
    assert activation_bytes(build(f"SCP {capacity} paper-style"), x) > 1.3 * plain


@needs_cuda
def test_a_training_step_of_scp_256_needs_half_the_memory_of_base_512():
    def peak(name: str) -> int:
        network = build(name, "cuda")
        step = STEPS["training"](network, image(1, "cuda"))
        step()  # workspaces that libraries keep
        network.zero_grad(set_to_none=True)
        return cuda_peak(step) + sum(t.nbytes for t in (*network.parameters(), *network.buffers()))

    assert reduction(peak("SCP 256"), peak("Base 512")) >= 0.5
