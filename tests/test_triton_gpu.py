"""The Triton kernels on a GPU: what the interpreter cannot show. Skipped where there is none."""

import pytest
import torch
from problems import Inputs, evaluate, make_inputs
from tolerances import GRADIENTS, LOGITS, relative_error

from scp_kernels import scp, scp_reference
from scp_kernels.backends.triton import TritonBackend, interpreting

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or interpreting(), reason="needs a CUDA device, and no TRITON_INTERPRET"
)

SHAPES = [(160, 224), (37, 151), (1, 3), (9, 20, 33)]
WIDTHS = [
    {"channels": 8, "hidden": (64, 64)},
    {"channels": 32, "hidden": (256, 256)},
    {"channels": 13, "classes": 3, "hidden": (100, 72), "bias": True},
    {"channels": 70, "classes": 5, "hidden": (40, 130)},
]


def on_gpu(inputs: Inputs) -> Inputs:
    phi = tuple(t.cuda() for t in inputs.phi)
    bias = None if inputs.bias is None else inputs.bias.cuda()
    return Inputs(inputs.features.cuda(), phi, inputs.residual.cuda(), bias, inputs.grad_logits.cuda())


def check(inputs: Inputs, dtype: torch.dtype, **options) -> None:
    truth, true_gradients = evaluate(scp_reference, inputs.double(), **options)
    logits, gradients = evaluate(scp, inputs, backend="triton", **options)
    assert relative_error(logits, truth) <= LOGITS[dtype]
    for name, gradient in gradients.items():
        assert relative_error(gradient, true_gradients[name]) <= GRADIENTS[dtype], name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("widths", WIDTHS, ids=range(len(WIDTHS)))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_reference(shape, widths, dtype):
    check(on_gpu(make_inputs(shape, batch=3, dtype=dtype, **widths)), dtype, position="centered")


def test_a_position_for_each_sample():
    affine = torch.randn(3, 2, 3, dtype=torch.float64, device="cuda")
    check(on_gpu(make_inputs((37, 50), batch=3, hidden=(64, 64))), torch.float32, affine=affine, position="centered")


def test_large_map():
    check(on_gpu(make_inputs((1024, 1024), batch=1, hidden=(64, 64))), torch.float32)


@pytest.mark.parametrize("widths", WIDTHS, ids=range(len(WIDTHS)))
def test_backward_is_reproducible_bit_for_bit(widths):
    inputs = on_gpu(make_inputs((160, 224), batch=5, **widths))
    _, first = evaluate(scp, inputs, backend="triton")
    for _ in range(5):
        _, again = evaluate(scp, inputs, backend="triton")
        for name, gradient in first.items():
            assert torch.equal(gradient, again[name]), name


def test_current_stream():
    """The kernels wait for what the stream does before them; on another stream they would read zeros."""
    inputs = on_gpu(make_inputs((160, 224), channels=32, hidden=(64, 64)))
    expected = scp(inputs.features, inputs.phi, inputs.residual, backend="triton")
    features = torch.zeros_like(inputs.features)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)
        features.copy_(inputs.features)
        logits = scp(features, inputs.phi, inputs.residual, backend="triton")
    torch.cuda.synchronize()
    assert torch.equal(logits, expected)


def test_cuda_graph():
    inputs = on_gpu(make_inputs((40, 50), channels=16, hidden=(64, 64)))
    features = inputs.features.clone()
    expected = scp(features, inputs.phi, inputs.residual, backend="triton")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = scp(features, inputs.phi, inputs.residual, backend="triton")
    features.zero_()
    graph.replay()
    assert not logits.any()
    features.copy_(inputs.features)
    graph.replay()
    assert torch.equal(logits, expected)


def test_auto_picks_triton():
    assert TritonBackend().unusable() is None
    inputs = on_gpu(make_inputs((40, 50)))
    logits = scp(inputs.features, inputs.phi, inputs.residual)
    assert torch.equal(logits, scp(inputs.features, inputs.phi, inputs.residual, backend="triton"))
