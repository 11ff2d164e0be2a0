"""The cases that tests and benchmarks share: what their float64 truth is, strip by strip."""

import pytest

from scp_kernels import scp_reference
from tests.support import cases
from tests.support.cases import Case
from tests.support.problems import evaluate
from tests.support.tolerances import relative_error

ONE_MAP_PER_SAMPLE = [Case(16, 4, 3, (20, 30), per_sample=True, position_dims=k) for k in (None, 3)]


@pytest.mark.parametrize("case", [*ONE_MAP_PER_SAMPLE, Case(16, 4, 2, (9, 7, 8))], ids=str)
def test_strips_of_the_truth_are_the_reference(case, monkeypatch):
    """In strips of some rows, also where every sample has a position map of its own."""
    monkeypatch.setattr(cases, "PIXELS_AT_ONCE", 500)
    inputs, logits, gradients = cases.truth(case.inputs(), case.positions())
    whole_logits, whole_gradients = evaluate(scp_reference, inputs.double(), **case.positions())
    assert relative_error(logits, whole_logits) <= 1e-12
    assert max(relative_error(gradients[name], g) for name, g in whole_gradients.items()) <= 1e-11


def test_samples_with_their_own_maps_lie_in_different_places():
    case = Case(16, 4, 3, (20, 30), per_sample=True)
    assert case.problem().groups == len(case.positions()["affine"].unique(dim=0)) == 3
    assert str(case) == "h16-c4-b3-20x30-per-sample"
