"""The claims about whole networks that need no clock, at 3 × 160 × 224 as in the paper; the verdict's text."""

import pytest
import torch

from benchmarks import claims
from benchmarks.networks import CAPACITIES, STEPS, activation_bytes, build, image, network_macs
from benchmarks.noise import Noise
from scp_models.networks.complexity import count_parameters
from tests.support.cpu_settings import needs_cpu
from tests.support.memory import cuda_peak

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

MACHINE = {"device": "A", "cores": 2, "kind": "cpu", "vectors": "AVX2"}


def test_scp_256_has_three_quarters_fewer_parameters_than_base_512():
    scp, base = ({"parameters": count_parameters(build(name))} for name in (claims.SCP_256, claims.BASE_512))
    claim = claims.parameters(scp, base)
    assert claim.holds and claim.measured == claim.paper == "−74.7%"


@needs_cpu
def test_scp_256_executes_74_percent_fewer_operations_than_base_512():
    scp, base = (
        {"executed_macs": network_macs(build(*of))} for of in ((claims.SCP_256, "cpu", "cpu"), (claims.BASE_512,))
    )
    assert claims.operations(scp, base).holds


@needs_cpu
def test_scp_256_keeps_half_of_what_base_512_keeps():
    scp, base = ({"saved_bytes": activation_bytes(build(name), image(1))} for name in (claims.SCP_256, claims.BASE_512))
    assert claims.memory(scp, base, "cpu").holds


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
    def peak(name: str) -> dict[str, int]:
        network = build(name, "cuda")
        step = STEPS["training"](network, image(1, "cuda"))
        step()  # workspaces that libraries keep
        network.zero_grad(set_to_none=True)
        state = sum(t.nbytes for t in (*network.parameters(), *network.buffers()))
        return {"peak_bytes": cuda_peak(step) + state}

    assert claims.memory(peak(claims.SCP_256), peak(claims.BASE_512), "cuda").holds


def operator_race(paper_style: float, compiled: float, plain: float, noise: Noise | None = None) -> dict:
    ours = {"clock": "seconds", "seconds": {"median": 2e-3}, "ratio": 1.0, "ours": True}
    peers = {claims.PAPER_STYLE: paper_style, claims.COMPILED: compiled, claims.PLAIN: plain}
    race = {
        "what": "operator",
        "step": "forward",
        "case": claims.SHOWN_CASE,
        "ours": "cpu",
        "subjects": {**{name: {"ratio": ratio, "ours": False} for name, ratio in peers.items()}, "cpu": ours},
    }
    return race if noise is None else {**race, "noise": noise.record()}


def network_race(saved: int, executed: int, parameters: int) -> dict:
    figures = {
        claims.SCP_256: {"saved_bytes": saved, "executed_macs": executed, "parameters": parameters},
        claims.BASE_512: {"saved_bytes": 1000, "executed_macs": 1000, "parameters": 1000},
    }
    return {"what": "verdict", "step": "training", "batch": 1, "subjects": figures}


def test_each_claim_holds_or_does_not_by_its_own_figures():
    races = {"n": network_race(500, 260, 254), "a": operator_race(8.0, 3.0, 2.0), "b": operator_race(1.5, 0.9, 20)}
    verdict = claims.verdict(races, "cpu")
    assert [claim.answer for claim in verdict] == ["holds", "holds", "does not hold", "holds", "does not hold", "holds"]
    assert verdict[0].measured == "−50.0%" and verdict[0].paper == "−23.8%"
    assert verdict[4].measured == "0.90 to 3.00 ×; faster in 1 of 2 races"
    assert [claim.holds for claim in claims.verdict({"n": network_race(501, 261, 253)}, "cpu")] == [False, False, True]


def test_the_times_of_the_largest_head_are_named():
    (sentence, _) = claims.sentences(MACHINE, {"a": operator_race(8.0, 3.0, 0.5)})
    assert "a forward takes 2.00 ms (paper-style 8.00 ×, torch.compile 3.00 ×, plain 1x1 0.50 ×)" in sentence


@pytest.mark.parametrize(
    ("noise", "words"),
    [
        (Noise([0.010, 0.011], 0.05, 2), "quiet (the same fixed work took up to 10% longer, other programs took 0.1"),
        (Noise([0.010, 0.013], 0.05, 2), "busy: repeat on a quiet one (the same fixed work took up to 30% longer"),
        (Noise([0.010, 0.010], 0.90, 2), "busy: repeat on a quiet one (the same fixed work took up to 0% longer"),
        (Noise([0.010, 0.010], None, 2), "quiet (the same fixed work took up to 0% longer)."),
        (None, "Its noise was not recorded."),
    ],
)
def test_a_busy_machine_is_named(noise, words):
    races = {"a": operator_race(8.0, 3.0, 2.0, noise), "b": operator_race(8.0, 3.0, 2.0, noise)}
    assert words in claims.machine_sentence(MACHINE, races)
