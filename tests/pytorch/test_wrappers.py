"""Wrapper tensors of every kind: legacy vmap, functionalization, and what has no type of its own to tell it by."""

import copy

import pytest
import torch
from torch.autograd import forward_ad
from torch.autograd import functional as legacy
from torch.func import functionalize, grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from scp_kernels import FusedSCP
from tests.support.cpu_settings import needs_cpu
from tests.support.tolerances import GRADIENTS, LOGITS, relative_error

pytestmark = [needs_cpu, pytest.mark.filterwarnings("ignore:There is a performance drop")]


@pytest.fixture
def twins():
    """A head with the CPU backend, the same with the reference, and features, all in float64."""
    torch.manual_seed(0)
    head = FusedSCP(4, 2, 8, bias=True, backend="cpu", dtype=torch.float64)
    truth = copy.deepcopy(head)
    truth.backend = "reference"
    return head, truth, torch.randn(2, 4, 3, 3, dtype=torch.float64)


def energy(head):
    return lambda x: head(x).square().sum()


def batched_gradients(head, x):
    x = x.clone().requires_grad_()
    logits = head(x)
    vectors = torch.randn(5, *logits.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(logits, [x, *head.parameters()], vectors, is_grads_batched=True)
    return torch.cat([g.flatten() for g in gradients])


def gradients_after_functionalize(head, x):
    x = x.clone().requires_grad_()
    gradients = torch.autograd.grad(functionalize(energy(head))(x), [x, *head.parameters()])
    return torch.cat([g.flatten() for g in gradients])


def functional_tensor(head, x):
    """A wrapper outside of every mode, whose Python type is that of a plain tensor."""
    wrapped = torch._to_functional_tensor(x.clone())
    assert type(wrapped) is torch.Tensor
    logits = head(wrapped)
    torch._sync(logits)
    return torch._from_functional_tensor(logits)


WORK = {
    "jacobian(vectorize=True)": lambda h, x: legacy.jacobian(h, x, vectorize=True),
    "hessian(vectorize=True)": lambda h, x: legacy.hessian(energy(h), x, vectorize=True),
    "is_grads_batched": batched_gradients,
    "functionalize": lambda h, x: functionalize(h)(x),
    "functionalize without gradients": lambda h, x: torch.no_grad()(functionalize(h))(x),
    "gradients after functionalize": gradients_after_functionalize,
    "vmap of functionalize": lambda h, x: vmap(lambda y: functionalize(h)(y[None]))(x),
    "functionalize of vmap": lambda h, x: functionalize(vmap(lambda y: h(y[None])))(x),
    "make_fx of functionalize": lambda h, x: make_fx(functionalize(h))(x)(x),
    "a functional tensor": functional_tensor,
}
NEED_THE_REFERENCE = {
    "grad of functionalize": lambda h, x: grad(functionalize(energy(h)))(x),
    "functionalize of grad": lambda h, x: functionalize(grad(energy(h)))(x),
    "functionalize of jvp": lambda h, x: functionalize(lambda y: jvp(h, (y,), (y,))[1])(x),
    "forward-mode jacobian(vectorize=True)": lambda h, x: legacy.jacobian(
        h, x, vectorize=True, strategy="forward-mode"
    ),
}


@pytest.mark.parametrize("way", WORK)
def test_compiled_backends_work(twins, way):
    head, truth, x = twins
    expected = WORK[way](truth, x).detach()
    result = WORK[way](head, x).detach()
    assert result.shape == expected.shape
    assert relative_error(result, expected) <= GRADIENTS[torch.float64]


@pytest.mark.parametrize("way", NEED_THE_REFERENCE)
def test_what_needs_the_reference_takes_it_or_says_so(twins, way):
    head, truth, x = twins
    with pytest.raises(NotImplementedError, match=r"backend='cpu': compiled backends .* use backend='reference'"):
        NEED_THE_REFERENCE[way](head, x)
    head.backend = "auto"
    expected = NEED_THE_REFERENCE[way](truth, x).detach()
    assert relative_error(NEED_THE_REFERENCE[way](head, x).detach(), expected) <= GRADIENTS[torch.float64]


def test_gradcheck_of_batched_gradients(twins):
    head, _, x = twins
    x = x[:1, :, :2, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(head, (x,), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(head, (x,), check_batched_grad=True)


def test_tangents_of_a_backward_pass_are_refused_never_dropped(twins):
    """Forward over reverse: the logits' gradient is a dual number, and nothing else is."""
    head, _, x = twins
    x = x.clone().requires_grad_()
    logits = head(x)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.autograd.grad(logits, x, forward_ad.make_dual(torch.ones_like(logits), torch.ones_like(logits)))


def test_a_wrapper_anywhere_is_seen(twins):
    """Features, a parameter, the bias, positions, the logits' gradient."""
    head, truth, x = twins
    expected = truth(x, origin=(1, 2), extent=(9, 8)).detach()
    for name in (None, *dict(head.named_parameters())):
        given = {n: p.detach() for n, p in head.named_parameters()}
        features = x
        if name is None:
            features = torch._to_functional_tensor(x.clone())
        else:
            given[name] = torch._to_functional_tensor(given[name].clone())
        with torch.no_grad():
            logits = torch.func.functional_call(head, given, (features,), {"origin": (1, 2), "extent": (9, 8)})
        torch._sync(logits)
        assert relative_error(torch._from_functional_tensor(logits), expected) <= LOGITS[torch.float64], name
    origin = torch._to_functional_tensor(torch.tensor([1.0, 2.0]).double())
    logits = head(x, origin=origin, extent=(9, 8)).detach()
    torch._sync(logits)
    assert relative_error(torch._from_functional_tensor(logits), expected) <= LOGITS[torch.float64]
