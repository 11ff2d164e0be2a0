"""Every backend of this machine at the paper's sizes: logits and gradients against the float64 reference."""

import pytest
import torch

from scp_kernels import scp
from tests.support.cases import PAPER, truth
from tests.support.problems import evaluate
from tests.support.tolerances import GRADIENTS, LOGITS, relative_error

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


# A batch of 14 costs the float64 reference seconds and shows nothing that 160 × 224 does not.
@pytest.mark.parametrize("case", [case for case in PAPER if case.batch == 1 or case.hidden == 64], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_against_the_reference(case, device):
    names = case.backends(device)
    if not names:
        pytest.skip("no compiled backend runs here")
    inputs, true_logits, true_gradients = truth(case.inputs(device))
    for name in names:
        logits, gradients = evaluate(scp, inputs, backend=name)
        assert relative_error(logits, true_logits) <= LOGITS[case.dtype], name
        for of, gradient in gradients.items():
            assert relative_error(gradient, true_gradients[of]) <= GRADIENTS[case.dtype], (name, of)
