"""The Triton backend inside PyTorch, under Triton's interpreter: what needs no compiler. See ``triton_kernels.py``."""

import copy

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

from scp_kernels import FusedSCP
from scp_kernels.backends.triton import interpreting
from tests.support.problems import make_inputs
from tests.support.tolerances import GRADIENTS, LOGITS, relative_error

assert interpreting(), "TRITON_INTERPRET=1 has to be set before Triton is imported"

BATCH, CHANNELS, SHAPE = 3, 4, (5, 6)


def heads() -> tuple[FusedSCP, FusedSCP, Tensor]:
    """A head, its twin with the reference, and features."""
    torch.manual_seed(0)
    head = FusedSCP(CHANNELS, 2, 8, position="centered", bias=True, backend="triton")
    truth = copy.deepcopy(head)
    truth.backend = "reference"
    return head, truth, make_inputs(SHAPE, batch=BATCH, channels=CHANNELS).features


def gradients(function, head: FusedSCP, x: Tensor) -> tuple[Tensor, ...]:
    x = x.clone().requires_grad_()
    logits = function(x)
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    return (logits.detach(), *torch.autograd.grad((logits.float() * weights).sum(), [x, *head.parameters()]))


def agree(result, expected, dtype: torch.dtype = torch.float32) -> None:
    for k, (tensor, truth) in enumerate(zip(result, expected, strict=True)):
        assert tensor.dtype == truth.dtype
        assert relative_error(tensor, truth) <= (GRADIENTS if k else LOGITS)[dtype]


def test_compiled_without_a_graph_break():
    head, truth, x = heads()
    compiled = torch.compile(head, backend="aot_eager", fullgraph=True)
    agree(gradients(compiled, head, x), gradients(truth, truth, x))


def test_exported():
    head, truth, x = heads()
    program = torch.export.export(head, (x,))
    assert relative_error(program.module()(x), truth(x)) <= LOGITS[torch.float32]


def test_torch_func():
    head, truth, x = heads()
    assert relative_error(vmap(lambda y: head(y[None])[0])(x), truth(x)) <= LOGITS[torch.float32]

    def of_each_sample(module: FusedSCP) -> dict[str, Tensor]:
        def loss(parameters, sample):
            return functional_call(module, parameters, (sample,)).square().sum()

        return vmap(grad(loss), (None, 0))(dict(module.named_parameters()), x[:, None])

    result, expected = of_each_sample(head), of_each_sample(truth)
    for name, gradient in expected.items():
        assert relative_error(result[name], gradient) <= GRADIENTS[torch.float32], name


def test_double_backward():
    head, truth, x = heads()

    def penalty(module: FusedSCP) -> Tensor:
        y = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(module(y).square().sum(), y, create_graph=True)
        return torch.autograd.grad(first.square().sum(), y)[0]

    assert relative_error(penalty(head), penalty(truth)) <= GRADIENTS[torch.float32]


def test_autocast_and_checkpointing():
    head, truth, x = heads()
    half = x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        agree(gradients(head, head, half), gradients(truth, truth, half), torch.bfloat16)
    agree(gradients(lambda y: checkpoint(head, y, use_reentrant=False), head, x), gradients(truth, truth, x))
