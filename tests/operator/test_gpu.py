"""What only a GPU has: streams, CUDA graphs, host synchronisation, memory, offsets beyond 32 bits. Of both backends.

Skipped where there is no GPU.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from scp_kernels import FusedSCP, available_backends, positioned, scp, scp_reference
from scp_kernels.backends.triton import tables
from tests.support.agreement import slices_of_a_volume
from tests.support.augmentation import picture_of, with_validity
from tests.support.cases import Case
from tests.support.problems import Inputs, evaluate, make_inputs
from tests.support.tolerances import GRADIENTS, LOGITS, relative_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZE = (160, 224)


@pytest.fixture(params=["triton", "cuda"])
def backend(request):
    status = available_backends()[request.param]
    if not status.usable:
        pytest.skip(status.reason)
    return request.param


def small(**sizes) -> Inputs:
    return make_inputs(SIZE, **({"channels": 32, "hidden": (64, 64)} | sizes)).to("cuda")


def test_current_stream(backend):
    """The kernels wait for what the stream does before them; on another stream they would read zeros."""
    inputs = small()
    expected = scp(inputs.features, inputs.phi, inputs.residual, backend=backend)
    features = torch.zeros_like(inputs.features)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)
        features.copy_(inputs.features)
        logits = scp(features, inputs.phi, inputs.residual, backend=backend)
    torch.cuda.synchronize()
    assert torch.equal(logits, expected)


def test_two_streams_at_once(backend):
    problems = [small(seed=seed) for seed in (0, 1)]
    expected = [evaluate(scp, inputs, backend=backend) for inputs in problems]
    streams = [torch.cuda.Stream() for _ in problems]
    torch.cuda.synchronize()
    results = []
    for _ in range(10):
        for stream, inputs in zip(streams, problems, strict=True):
            with torch.cuda.stream(stream):
                results.append(evaluate(scp, inputs, backend=backend))
    torch.cuda.synchronize()
    for n, (logits, gradients) in enumerate(results):
        true_logits, true_gradients = expected[n % 2]
        assert torch.equal(logits, true_logits)
        for name, gradient in gradients.items():
            assert torch.equal(gradient, true_gradients[name]), name


def test_no_host_synchronisation(backend):
    inputs = small(bias=True)
    evaluate(scp, inputs, backend=backend)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        evaluate(scp, inputs, backend=backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def captured(step: Callable[[], tuple[torch.Tensor, ...]]) -> tuple[tuple[torch.Tensor, ...], torch.cuda.CUDAGraph]:
    """A graph of ``step``, and the results that each replay writes."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # capture wants everything compiled, and cuBLAS awake, on a stream of its own
        step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return results, graph


def test_cuda_graph(backend):
    """Forward and backward captured once, replayed on other features."""
    inputs = small(channels=16)
    parameters = [t.requires_grad_() for t in (*inputs.phi, inputs.residual)]
    features = inputs.features.clone().requires_grad_()

    def step() -> tuple[torch.Tensor, ...]:
        logits = scp(features, parameters[:6], parameters[6], backend=backend)
        return logits.detach(), *torch.autograd.grad(logits, [features, *parameters], inputs.grad_logits)

    expected = step()
    results, graph = captured(step)
    with torch.no_grad():
        features.zero_()
    graph.replay()
    assert not results[0].any()
    with torch.no_grad():
        features.copy_(inputs.features)
    graph.replay()
    for out, true in zip(results, expected, strict=True):
        assert torch.equal(out, true)


class Slices:
    """A head at slices of a volume that is told where they lie in one of several ways, and a step of its training."""

    def __init__(self, way: str, backend: str) -> None:
        inputs = small()
        torch.manual_seed(0)
        head = FusedSCP(32, 1, (64, 64), position_dims=3, position="centered", backend=backend, device="cuda")
        self.network = nn.Sequential(nn.Identity(), head)
        self.head, self.way = head, way
        self.features, self.grad_logits = inputs.features.requires_grad_(), inputs.grad_logits
        self.affine, self.extent = (t.cuda() for t in slices_of_a_volume(2).values())
        self.coordinates = with_validity(picture_of(self.affine, SIZE))

    def move(self, seed: int) -> None:
        """Put the slices elsewhere, into the same memory."""
        self.affine.copy_(slices_of_a_volume(2, seed=seed)["affine"])
        self.coordinates[:, :3] = picture_of(self.affine, SIZE)

    def logits(self) -> torch.Tensor:
        if self.way == "affine":
            return self.head(self.features, affine=self.affine, extent=self.extent)
        if self.way == "coordinates":
            return self.head(self.features, coordinates=self.coordinates, extent=self.extent)
        with positioned(self.network, coordinates=self.coordinates, extent=self.extent):
            return self.network(self.features)

    def step(self) -> tuple[torch.Tensor, ...]:
        logits = self.logits()
        leaves = [self.features, *self.head.parameters()]
        return logits.detach(), *torch.autograd.grad(logits, leaves, self.grad_logits)


WAYS = ["affine", "coordinates", "context"]


@pytest.mark.parametrize("way", WAYS)
def test_no_host_synchronisation_where_positions_are_told(backend, way):
    slices = Slices(way, backend)
    slices.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        slices.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("way", WAYS)
def test_cuda_graph_where_positions_are_told(backend, way):
    """Captured once, replayed at other positions in the same memory: they are read in the graph."""
    slices = Slices(way, backend)
    results, graph = captured(slices.step)
    for seed in (1, 2, 0):
        slices.move(seed)
        expected = slices.step()
        graph.replay()
        assert relative_error(results[0], expected[0]) <= LOGITS[torch.float32]
        for gradient, true in zip(results[1:], expected[1:], strict=True):
            assert relative_error(gradient, true) <= GRADIENTS[torch.float32]


@pytest.mark.parametrize("batch", [1, 14])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("hidden", "channels"), [(64, 8), (128, 16), (256, 32)])
@pytest.mark.parametrize("frozen_features", [False, True])
def test_peak_memory(backend, hidden, channels, dtype, batch, frozen_features):
    """What a backend says that it takes above inputs, outputs and gradients, as requested of the allocator."""
    inputs = Case(hidden, channels, batch, dtype=dtype).inputs("cuda")
    parameters = [t.requires_grad_() for t in (*inputs.phi, inputs.residual)]
    features = inputs.features.requires_grad_(not frozen_features)
    wanted = parameters if frozen_features else [features, *parameters]
    for attempt in ("compiles", "counts"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_stats()["requested_bytes.all.current"]
        logits = scp(features, parameters[:6], parameters[6], backend=backend)
        gradients = torch.autograd.grad(logits, wanted, inputs.grad_logits)
        peak = torch.cuda.memory_stats()["requested_bytes.all.peak"]
        results = sum(t.numel() * t.itemsize for t in (logits, *gradients))
        if attempt == "compiles":
            del logits, gradients
    # The CUDA kernels' partial gradients then lie in the gradient of the features.
    aliased = not frozen_features and features.nbytes > 32 * 2**20
    most = {"triton": tables.FOLDED_BYTES + tables.PARTIALS_BYTES + 2**20, "cuda": (2 if aliased else 32) * 2**20}
    assert peak - before - results <= most[backend]


def test_more_than_2_to_the_31_elements(backend):
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
    logits = scp(leaf, parameters.phi, parameters.residual, backend=backend, **options)
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
    logits = [scp(x, parameters.phi, parameters.residual, backend=backend) for x in (far, near)]
    assert torch.equal(*logits)


def test_heads_of_many_sizes_in_many_threads(backend):
    """One kernel, launched at once with more and with less shared memory."""
    problems = [make_inputs((40, 60), channels=8, hidden=(h, h), seed=h).to("cuda") for h in (64, 256, 512)]
    expected = [evaluate(scp, inputs, backend=backend) for inputs in problems]

    def run(n: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return evaluate(scp, problems[n % 3], backend=backend)

    with ThreadPoolExecutor(6) as threads:
        for n, (logits, gradients) in enumerate(threads.map(run, range(60))):
            assert torch.equal(logits, expected[n % 3][0])
            for name, gradient in gradients.items():
                assert torch.equal(gradient, expected[n % 3][1][name]), name


def test_auto_is_one_of_ours():
    """The compiled kernels, whichever come first; never the reference."""
    chosen = next((name for name in ("triton", "cuda") if available_backends()[name].usable), None)
    if chosen is None:
        pytest.skip("no compiled backend is usable here")
    inputs = small()
    logits = scp(inputs.features, inputs.phi, inputs.residual)
    assert torch.equal(logits, scp(inputs.features, inputs.phi, inputs.residual, backend=chosen))
