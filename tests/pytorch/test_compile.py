"""torch.compile with inductor: no graph break, one graph for every batch and size, the numbers of eager mode."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from scp_kernels import FusedSCP
from tests.support.backend_names import BACKENDS, COMPILED_BACKENDS, device_of
from tests.support.tolerances import GRADIENTS, LOGITS, relative_error


class Network(nn.Module):
    """A head behind an activation. (Not a convolution: inductor makes a new graph for another width of its images.)"""

    def __init__(self, backend: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.GELU()
        self.head = FusedSCP(4, 2, 16, position="centered", bias=True, backend=backend)

    def forward(self, image: Tensor, origin: Tensor | None = None) -> Tensor:
        extent = None if origin is None else (64, 64)
        return self.head(2 * self.backbone(image), origin=origin, extent=extent)


def image_of(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(size[0]))


def check(compiled: Callable[..., Tensor], network: Network, *inputs: Tensor) -> None:
    """Logits and the gradients of image and parameters, compiled and eager."""
    results = []
    for function in (compiled, network):
        image = inputs[0].clone().requires_grad_()
        logits = function(image, *inputs[1:])
        gradient = torch.linspace(-1, 1, logits.numel(), device=logits.device).view_as(logits)
        results.append((logits.detach(), torch.autograd.grad(logits, [image, *network.parameters()], gradient)))
    (logits, gradients), (true_logits, true_gradients) = results
    assert relative_error(logits, true_logits) <= LOGITS[torch.float32]
    for gradient, truth in zip(gradients, true_gradients, strict=True):
        assert relative_error(gradient, truth) <= GRADIENTS[torch.float32]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("backend", COMPILED_BACKENDS)
def test_one_graph_serves_every_batch_and_size(backend):
    network = Network(backend).to(device_of(backend))
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(network, backend=counter, fullgraph=True, dynamic=True)
    # No two sizes alike in the first image: the compiler takes equal ones for one.
    for size in ((3, 4, 20, 24), (5, 4, 20, 24), (7, 4, 33, 17)):
        check(compiled, network, image_of(*size).to(device_of(backend)))
        assert counter.frame_count == 1


@pytest.mark.parametrize("backend", COMPILED_BACKENDS)
def test_another_batch_recompiles_once_at_most(backend):
    """``dynamic=None``, the default: static at first, and from the second batch on dynamic for good."""
    network = Network(backend).to(device_of(backend))
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(network, backend=counter, fullgraph=True)
    for batch in (3, 5, 7, 6):
        check(compiled, network, image_of(batch, 4, 20, 24).to(device_of(backend)))
    assert counter.frame_count == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_positions_are_inputs_of_the_graph(backend):
    network = Network(backend).to(device_of(backend))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(network, backend=counter, fullgraph=True)
    image = image_of(3, 4, 20, 24).to(device_of(backend))
    for origin in ([0.0, 0.0], [31.0, 7.0], [44.0, 40.0]):
        check(compiled, network, image, torch.tensor(origin, device=image.device))
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", COMPILED_BACKENDS)
def test_without_gradients(backend):
    network = Network(backend).to(device_of(backend)).eval()
    image = image_of(3, 4, 20, 24).to(device_of(backend))
    compiled = torch.compile(network, fullgraph=True)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert relative_error(compiled(image), network(image)) <= LOGITS[torch.float32]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("backend", BACKENDS)
def test_cuda_graphs(backend):
    network = Network(backend).cuda()
    compiled = torch.compile(network, mode="reduce-overhead", fullgraph=True)
    image = image_of(3, 4, 20, 24).cuda()
    for _ in range(3):  # warm up, record, replay
        torch.compiler.cudagraph_mark_step_begin()
        check(compiled, network, image)
    with torch.no_grad():
        for _ in range(3):
            torch.compiler.cudagraph_mark_step_begin()
            assert relative_error(compiled(image).clone(), network(image)) <= LOGITS[torch.float32]
