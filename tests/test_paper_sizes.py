"""Every backend of this machine at the paper's sizes: logits and gradients against the float64 reference."""

import pytest
import torch
from cases import PAPER, Case, truth
from problems import evaluate
from tolerances import GRADIENTS, LOGITS, relative_error

from scp_kernels import dispatch, scp

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def compiled_backends(case: Case, device: str) -> list[str]:
    """Those of ``"auto"``'s list that run the case on the device (not Triton's interpreter)."""
    return [
        name
        for name, backend in dispatch.BACKENDS.items()
        if not getattr(backend, "only_by_name", False)
        and backend.unusable() is None
        and backend.cannot_run(case.problem(device)) is None
    ]


# A batch of 14 costs the float64 reference seconds and shows nothing that 160 × 224 does not.
@pytest.mark.parametrize("case", [case for case in PAPER if case.batch == 1 or case.hidden == 64], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_against_the_reference(case, device):
    names = compiled_backends(case, device)
    if not names:
        pytest.skip("no compiled backend runs here")
    inputs, true_logits, true_gradients = truth(case.inputs(device))
    for name in names:
        logits, gradients = evaluate(scp, inputs, backend=name)
        assert relative_error(logits, true_logits) <= LOGITS[case.dtype], name
        for of, gradient in gradients.items():
            assert relative_error(gradient, true_gradients[of]) <= GRADIENTS[case.dtype], (name, of)
