"""The CUDA kernels on a GPU: what the host cannot show. Skipped where there is none.

For races and reads out of bounds: ``compute-sanitizer --tool racecheck`` (then ``memcheck``)
``python -m pytest -q tests/cuda/test_gpu.py -k small``.
"""

import pytest
import torch

from scp_kernels import available_backends, scp
from tests.support.agreement import agree
from tests.support.problems import Inputs, away_from_kinks, evaluate, make_inputs

pytestmark = pytest.mark.skipif(
    not available_backends()["cuda"].usable, reason=f"CUDA backend: {available_backends()['cuda'].reason}"
)

SHAPES = [(160, 224), (37, 151), (1, 3), (9, 20, 33)]
WIDTHS = [
    {"channels": 8, "hidden": (64, 64)},
    {"channels": 32, "hidden": (256, 256)},
    {"channels": 13, "classes": 3, "hidden": (100, 72), "bias": True},
    {"channels": 70, "classes": 5, "hidden": (40, 130)},
]


def check(inputs: Inputs, **options) -> None:
    """The CUDA backend within the table of tolerances of the reference in float64, on the device."""
    dtype, inputs = inputs.features.dtype, inputs.to("cuda")
    if dtype != torch.float64:  # in which nothing but a kink itself is near one
        inputs = away_from_kinks(inputs, **options)
    agree(inputs, "cuda", **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("widths", WIDTHS, ids=range(len(WIDTHS)))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_reference(shape, widths, dtype):
    check(make_inputs(shape, batch=3, dtype=dtype, **widths), position="centered")


def test_a_position_for_each_sample():
    affine = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).cuda()
    check(make_inputs((37, 50), batch=3, hidden=(64, 64)), affine=affine, position="centered")


def test_large_map():
    check(make_inputs((1024, 1024), batch=1, hidden=(64, 64)))


@pytest.mark.parametrize("widths", WIDTHS, ids=range(len(WIDTHS)))
def test_backward_is_reproducible_bit_for_bit(widths):
    inputs = make_inputs((160, 224), batch=5, **widths).to("cuda")
    _, first = evaluate(scp, inputs, backend="cuda")
    for _ in range(5):
        _, again = evaluate(scp, inputs, backend="cuda")
        for name, gradient in first.items():
            assert torch.equal(gradient, again[name]), name


def test_auto_takes_it_for_float64():
    """Which Triton's kernels do not compute in."""
    inputs = make_inputs((40, 50), dtype=torch.float64).to("cuda")
    logits = scp(inputs.features, inputs.phi, inputs.residual)
    assert torch.equal(logits, scp(inputs.features, inputs.phi, inputs.residual, backend="cuda"))


def test_overflow_tiles():
    """All units of layer 1 bend at one pixel: more unstable units than a tile has room for."""
    inputs = make_inputs((40, 60), channels=3, classes=2, hidden=(200, 20), dtype=torch.float64)
    w1, _, *rest = inputs.phi
    inputs.phi = (w1, -(w1 @ torch.tensor([20.25, 30.25, 19.75, 29.75]).double()), *rest)
    check(inputs)


@pytest.mark.parametrize("shape", [(9, 17), (5, 4, 9)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_small(shape, dtype):
    """Every kernel, in little time: what compute-sanitizer is run on."""
    check(make_inputs(shape, channels=5, classes=2, hidden=(40, 24), bias=True, dtype=dtype))
