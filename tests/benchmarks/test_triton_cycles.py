"""What Triton compiles for 7.5 runs on the host, right, and its cycles are predicted."""

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import triton_cycles
from scp_kernels import scp_reference
from scp_kernels.backends.triton import interpreting
from tests.support.cases import Case
from tests.support.poison import poison
from tests.support.problems import away_from_kinks, evaluate
from tests.support.tolerances import GRADIENTS, LOGITS, relative_error

pytestmark = pytest.mark.skipif(interpreting(), reason="TRITON_INTERPRET=1 leaves nothing to compile")
CASE = Case(64, 8, 2, (37, 53))
POISONS = (torch.nan, None, 0x7FC00000), (-3e38, -1, 1)
"""Fresh memory: floats, integers, and words of shared memory."""


def run_on_host(monkeypatch, inputs, backward: bool, seed: int):
    """Results of a pass and its launches; fresh memory holds anything, and programs run in an order of their own."""
    *fresh, word = POISONS[seed]
    poison(monkeypatch, *fresh)
    sequence = triton_cycles.sequence_of(inputs, CASE.problem(), backward)
    launches = list(triton_cycles.run_launches(sequence.launches, fill=word, seed=seed))
    return sequence.finish(), launches


@pytest.fixture(scope="module")
def inputs():
    return away_from_kinks(CASE.inputs())


@pytest.fixture(scope="module")
def truth(inputs):
    return evaluate(scp_reference, inputs.double())


def test_the_compiled_forward_is_right(monkeypatch, inputs, truth):
    """In any order of programs, with anything in fresh memory; and what the models go by is there."""
    logits, launches = run_on_host(monkeypatch, inputs, False, 0)
    assert relative_error(logits, truth[0]) <= LOGITS[torch.float32]
    again, _ = run_on_host(monkeypatch, inputs, False, 1)
    assert torch.equal(again, logits)
    assert not any(launched.reads_of_unwritten or launched.disagreements for launched in launches)
    assert len(launches) == 8
    for launched in launches:
        assert launched.launch.waves >= 1 and launched.launch.loads >= 1 and launched.alone > 0
        assert min(launched.by_constants, launched.by_latencies) >= launched.launch.issue > 0
    last = launches[-1].launch
    assert last.kernel == "scp_fwd_kernel" and last.passes > 0 and last.barriers > 1
    assert last.new_bytes >= CASE.batch * 37 * 53 * (CASE.channels + 1) * 4, "features and logits pass the bus"


def test_the_compiled_backward_is_right(monkeypatch, inputs, truth):
    (of_features, of_parameters), launches = run_on_host(monkeypatch, inputs, True, 0)
    names = ("features", "w1", "b1", "w2", "b2", "w3", "b3")
    results = dict(zip(names, (of_features, *of_parameters), strict=True))
    for name, gradient in results.items():
        assert relative_error(gradient, truth[1][name]) <= GRADIENTS[torch.float32], name
    (of_features, of_parameters), _ = run_on_host(monkeypatch, inputs, True, 1)
    for name, gradient in zip(names, (of_features, *of_parameters), strict=True):
        assert torch.equal(gradient, results[name]), name
    assert not any(launched.reads_of_unwritten or launched.disagreements for launched in launches)
    assert len(launches) == 13


def test_the_models_are_as_good_as_they_say():
    """Latencies: each simulated pass within 30 %. Constants: forward passes alone, within 20 %."""
    pytest.importorskip("scipy")
    ratios = triton_cycles.ratios_of_passes()
    assert len(ratios) == 3
    for name, (by_constants, by_latencies) in ratios.items():
        assert 0.7 < by_latencies < 1.3, name
        assert (0.8 < by_constants < 1.2) == name.startswith("forward"), name


def test_the_report_sets_triton_beside_cuda(monkeypatch, capsys):
    monkeypatch.setattr(triton_cycles.cycles, "SIMULATED_CASES", {"small": (CASE, False)})
    triton_cycles.report_triton_cycles({"small": 1000.0})
    *kernels, together = (line for line in capsys.readouterr().out.splitlines() if line.startswith("small "))
    assert len(kernels) == 8
    sums = [sum(float(line.split()[column].replace(",", "")) for line in kernels) for column in (2, 3)]
    *totals, by_constants, _, by_latencies, _ = together.replace(",", "").split()[2:8]
    for total, ratio, expected in zip(totals, (by_constants, by_latencies), sums, strict=True):
        assert float(total) == pytest.approx(expected, abs=9) and float(ratio) == pytest.approx(
            expected / 1000, abs=0.1
        )
