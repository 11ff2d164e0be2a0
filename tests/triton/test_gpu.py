"""The Triton kernels on a GPU, at full size; the same checks at tiny sizes under Triton's interpreter.

Skipped where there is neither. What only a device has (streams, graphs, memory) is in ``test_device_gpu.py``.
"""

import pytest
import torch

from scp_kernels import scp, scp_reference
from scp_kernels.backends.triton import interpreting
from tests.support.cases import Case, truth
from tests.support.problems import Inputs, away_from_kinks, evaluate, make_inputs
from tests.support.tolerances import GRADIENTS, LOGITS, relative_error

TINY = interpreting()
DEVICE = "cpu" if TINY else "cuda"
pytestmark = pytest.mark.skipif(not (torch.cuda.is_available() or TINY), reason="needs a CUDA device")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
if TINY:
    WIDTHS = [{"channels": 3, "classes": 2, "hidden": (9, 7), "bias": True}]
    SIZES = [(shape, 0, dtype) for shape in ((5, 18), (2, 3, 5)) for dtype in DTYPES]
    LARGE = [Case(8, 3, 2, (9, 17)), Case(8, 3, 1, (2, 3, 5))]
else:
    WIDTHS = [
        {"channels": 8, "hidden": (64, 64)},
        {"channels": 32, "hidden": (256, 256)},
        {"channels": 13, "classes": 3, "hidden": (100, 72), "bias": True},
        {"channels": 70, "classes": 5, "hidden": (40, 130)},
    ]
    # Not every combination: each compiles three kernels.
    SIZES = [
        ((160, 224), 0, torch.float32),
        ((1, 3), 0, torch.float32),
        *(((160, 224), 1, dtype) for dtype in DTYPES),
        ((37, 151), 1, torch.float32),
        *(((37, 151), 2, dtype) for dtype in DTYPES),
        ((9, 20, 33), 2, torch.float32),
        ((37, 151), 3, torch.float32),
        ((9, 20, 33), 3, torch.bfloat16),
    ]
    LARGE = [
        *(Case(h, c, 14, shape) for h, c in ((128, 16), (256, 32)) for shape in ((160, 224), (256, 256))),
        Case(256, 32, 14, dtype=torch.bfloat16),
        Case(128, 16, 1, (1024, 1024)),
        Case(128, 16, 1, (96, 96, 96)),
    ]


def affines(dims: int) -> torch.Tensor:
    """A rotation, scaling and shift of its own for each of three samples, ``[3, d, d + 1]``."""
    noise = torch.randn(3, dims, dims + 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (noise + torch.eye(dims, dims + 1)).to(DEVICE)


def compare(inputs: Inputs, logits: torch.Tensor, gradients: dict[str, torch.Tensor], **options) -> None:
    """The Triton backend within the table of tolerances of the given truth."""
    dtype = inputs.features.dtype
    result, result_gradients = evaluate(scp, inputs, backend="triton", **options)
    assert result.dtype == dtype
    assert relative_error(result, logits) <= LOGITS[dtype]
    for name, gradient in result_gradients.items():
        assert relative_error(gradient, gradients[name]) <= GRADIENTS[dtype], name


@pytest.mark.parametrize("position", ["pixels", "centered"])
@pytest.mark.parametrize(("shape", "widths", "dtype"), SIZES, ids=str)
def test_against_the_reference(shape, widths, dtype, position):
    inputs = make_inputs(shape, batch=3, dtype=dtype, **WIDTHS[widths]).to(DEVICE)
    inputs = away_from_kinks(inputs, position=position)
    compare(inputs, *evaluate(scp_reference, inputs.double(), position=position), position=position)


@pytest.mark.parametrize("shape", [(5, 18), (2, 3, 5)] if TINY else [(37, 50), (9, 10, 17)], ids=str)
def test_a_position_for_each_sample(shape):
    options = {"affine": affines(len(shape)), "extent": [40.0] * len(shape), "position": "centered"}
    inputs = make_inputs(shape, batch=3, hidden=(9, 7) if TINY else (64, 64)).to(DEVICE)
    inputs = away_from_kinks(inputs, **options)
    compare(inputs, *evaluate(scp_reference, inputs.double(), **options), **options)


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_full_size(case):
    compare(*truth(case.inputs(DEVICE)))


@pytest.mark.parametrize("widths", WIDTHS, ids=range(len(WIDTHS)))
def test_backward_is_reproducible_bit_for_bit(widths):
    inputs = make_inputs((5, 18) if TINY else (160, 224), batch=5, **widths).to(DEVICE)
    _, first = evaluate(scp, inputs, backend="triton")
    for _ in range(1 if TINY else 5):
        _, again = evaluate(scp, inputs, backend="triton")
        for name, gradient in first.items():
            assert torch.equal(gradient, again[name]), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_channels_last(dtype):
    inputs = make_inputs((5, 18) if TINY else (61, 77), channels=5, hidden=(20, 12), dtype=dtype).to(DEVICE)
    expected, expected_gradients = evaluate(scp, inputs, backend="triton")
    inputs.features = inputs.features.contiguous(memory_format=torch.channels_last)
    logits, gradients = evaluate(scp, inputs, backend="triton")
    assert gradients["features"].is_contiguous(memory_format=torch.channels_last)
    assert relative_error(logits, expected) <= LOGITS[dtype]
    assert relative_error(gradients["features"], expected_gradients["features"]) <= GRADIENTS[dtype]
