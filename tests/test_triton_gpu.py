"""The Triton kernels on a GPU, at full size; the same checks at tiny sizes under Triton's interpreter.

Skipped where there is neither. What only a device has (streams, graphs, memory) is in ``TestOnTheDevice``.
"""

import pytest
import torch
from cases import Case, truth
from problems import Inputs, away_from_kinks, evaluate, make_inputs
from tolerances import GRADIENTS, LOGITS, relative_error

from scp_kernels import scp, scp_reference
from scp_kernels.backends.triton import TritonBackend, interpreting, tables

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
    found, found_gradients = evaluate(scp, inputs, backend="triton", **options)
    assert found.dtype == dtype
    assert relative_error(found, logits) <= LOGITS[dtype]
    for name, gradient in found_gradients.items():
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


@pytest.mark.skipif(TINY, reason="the interpreter has no streams, graphs, or memory of its own")
class TestOnTheDevice:
    def small(self, **sizes) -> Inputs:
        return make_inputs((160, 224), **({"channels": 32, "hidden": (64, 64)} | sizes)).to("cuda")

    def test_current_stream(self):
        """The kernels wait for what the stream does before them; on another stream they would read zeros."""
        inputs = self.small()
        expected = scp(inputs.features, inputs.phi, inputs.residual, backend="triton")
        features = torch.zeros_like(inputs.features)
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(100_000_000)
            features.copy_(inputs.features)
            logits = scp(features, inputs.phi, inputs.residual, backend="triton")
        torch.cuda.synchronize()
        assert torch.equal(logits, expected)

    def test_two_streams_at_once(self):
        problems = [self.small(seed=seed) for seed in (0, 1)]
        expected = [evaluate(scp, inputs, backend="triton") for inputs in problems]
        streams = [torch.cuda.Stream() for _ in problems]
        torch.cuda.synchronize()
        found = []
        for _ in range(10):
            for stream, inputs in zip(streams, problems, strict=True):
                with torch.cuda.stream(stream):
                    found.append(evaluate(scp, inputs, backend="triton"))
        torch.cuda.synchronize()
        for n, (logits, gradients) in enumerate(found):
            true_logits, true_gradients = expected[n % 2]
            assert torch.equal(logits, true_logits)
            for name, gradient in gradients.items():
                assert torch.equal(gradient, true_gradients[name]), name

    def test_no_host_synchronisation(self):
        inputs = self.small(bias=True)
        evaluate(scp, inputs, backend="triton")
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            evaluate(scp, inputs, backend="triton")
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_cuda_graph(self):
        """Forward and backward captured once, replayed on other features."""
        inputs = self.small(channels=16)
        parameters = [t.requires_grad_() for t in (*inputs.phi, inputs.residual)]
        features = inputs.features.clone().requires_grad_()

        def step() -> tuple[torch.Tensor, ...]:
            logits = scp(features, parameters[:6], parameters[6], backend="triton")
            return logits.detach(), *torch.autograd.grad(logits, [features, *parameters], inputs.grad_logits)

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # capture wants everything compiled, and cuBLAS awake, on a stream of its own
            expected = step()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = step()
        with torch.no_grad():
            features.zero_()
        graph.replay()
        assert not found[0].any()
        with torch.no_grad():
            features.copy_(inputs.features)
        graph.replay()
        for out, true in zip(found, expected, strict=True):
            assert torch.equal(out, true)

    @pytest.mark.parametrize("batch", [1, 14])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize(("hidden", "channels"), [(64, 8), (128, 16), (256, 32)])
    @pytest.mark.parametrize("frozen_features", [False, True])
    def test_peak_memory(self, hidden, channels, dtype, batch, frozen_features):
        """A plan, partial sums and 1 MiB above inputs, outputs and gradients, as requested of the allocator."""
        inputs = Case(hidden, channels, batch, dtype=dtype).inputs("cuda")
        parameters = [t.requires_grad_() for t in (*inputs.phi, inputs.residual)]
        features = inputs.features.requires_grad_(not frozen_features)
        wanted = parameters if frozen_features else [features, *parameters]
        for attempt in ("compiles", "counts"):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_stats()["requested_bytes.all.current"]
            logits = scp(features, parameters[:6], parameters[6], backend="triton")
            gradients = torch.autograd.grad(logits, wanted, inputs.grad_logits)
            peak = torch.cuda.memory_stats()["requested_bytes.all.peak"]
            results = sum(t.numel() * t.itemsize for t in (logits, *gradients))
            if attempt == "compiles":
                del logits, gradients
        assert peak - before - results <= tables.PLAN_BYTES + tables.PARTIALS_BYTES + 2**20

    def test_more_than_2_to_the_31_elements(self):
        """Offsets, and a batch stride, beyond 32 bits; the last rows against the reference on a crop."""
        free, _ = torch.cuda.mem_get_info()
        if free < 24 * 2**30:
            pytest.skip(f"needs 24 GiB of free GPU memory, {free / 2**30:.0f} are there")
        height, width, rows = 8192, 8200, 8
        parameters = make_inputs((8, 8), channels=16, hidden=(16, 16)).to("cuda")
        g = torch.Generator("cuda").manual_seed(0)
        features = torch.randn(2, 16, height, width, generator=g, device="cuda", dtype=torch.bfloat16)
        assert features.numel() > 2**31
        options = {"position": "centered", "extent": (float(height), float(width))}
        leaf = features.requires_grad_()
        logits = scp(leaf, parameters.phi, parameters.residual, backend="triton", **options)
        (gradient,) = torch.autograd.grad(logits, leaf, logits.detach())
        last = features.detach()[:, :, -rows:].double().requires_grad_()
        phi = [t.double() for t in parameters.phi]
        origin = (float(height - rows), 0.0)
        expected = scp_reference(last, phi, parameters.residual.double(), origin=origin, **options)
        assert relative_error(logits.detach()[:, :, -rows:], expected) <= LOGITS[torch.bfloat16]
        (expected_gradient,) = torch.autograd.grad(expected, last, logits.detach()[:, :, -rows:].double())
        assert relative_error(gradient[:, :, -rows:], expected_gradient) <= GRADIENTS[torch.bfloat16]
        del gradient, logits

        far = torch.as_strided(features.detach(), (2, 16, 8, 8), (2**31 + 16, 64, 8, 1))
        near = far.clone(memory_format=torch.contiguous_format)
        logits = [scp(x, parameters.phi, parameters.residual, backend="triton") for x in (far, near)]
        assert torch.equal(*logits)

    def test_auto_picks_triton(self):
        """Unless the compiled CUDA kernels are installed, which may come first."""
        assert TritonBackend().unusable() is None
        inputs = self.small()
        logits = scp(inputs.features, inputs.phi, inputs.residual)
        assert relative_error(logits, scp(inputs.features, inputs.phi, inputs.residual, backend="triton")) <= 4e-6
