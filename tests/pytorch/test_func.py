"""torch.func and forward-mode differentiation, for compiled backends and the reference."""

import copy

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacrev, jvp, stack_module_state, vmap

from scp_kernels import FusedSCP, available_backends, dispatch, scp
from tests.support.backend_names import BACKENDS, device_of
from tests.support.problems import make_inputs
from tests.support.tolerances import GRADIENTS, LOGITS, relative_error

BATCH, CHANNELS, SHAPE = 4, 3, (9, 8)
COMPILED = next((name for name in ("triton", "cuda", "cpu") if available_backends()[name].usable), None)
needs_a_compiled_backend = pytest.mark.skipif(COMPILED is None, reason="no compiled backend can run here")


class Twins:
    """One head and its features twice: with a backend, and with the reference in float64."""

    def __init__(self, backend: str) -> None:
        self.device = device_of(backend)
        self.head = self.make(backend, seed=0)
        self.truth = self.make("reference", seed=0).double()
        self.features = make_inputs(SHAPE, batch=BATCH, channels=CHANNELS).features.to(self.device)
        self.origins = torch.rand(BATCH, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 10

    def make(self, backend: str, seed: int) -> FusedSCP:
        torch.manual_seed(seed)
        return FusedSCP(CHANNELS, 2, 8, bias=True, backend=backend).to(self.device)

    def agree(self, function, tolerance: dict[torch.dtype, float]) -> None:
        """``function(head, features)`` gives a tensor, or a dict of them."""
        results, expected = function(self.head, self.features), function(self.truth, self.features.double())
        if isinstance(results, Tensor):
            results, expected = {"": results}, {"": expected}
        assert results.keys() == expected.keys()
        for name, tensor in results.items():
            assert tensor.dtype == torch.float32
            assert relative_error(tensor, expected[name]) <= tolerance[torch.float32], name


def loss(head: FusedSCP):
    """Of parameters and features, for functional calls."""
    return lambda parameters, features: functional_call(head, parameters, (features,)).square().sum()


@pytest.fixture(params=BACKENDS)
def twins(request):
    return Twins(request.param)


def test_grad_of_a_functional_call(twins):
    twins.agree(lambda head, x: grad(loss(head))(dict(head.named_parameters()), x), GRADIENTS)
    twins.agree(lambda head, x: grad(lambda y: head(y).square().sum())(x), GRADIENTS)


def test_vmap_over_samples(twins):
    twins.agree(lambda head, x: vmap(lambda y: head(y[None])[0])(x), LOGITS)
    twins.agree(lambda head, x: vmap(lambda y: head(y[None])[0], in_dims=-1, out_dims=1)(x.movedim(0, -1)), LOGITS)
    twins.agree(lambda head, x: vmap(vmap(lambda y: head(y[None])[0]))(torch.stack([x, 2 * x])), LOGITS)


def test_vmap_over_positions(twins):
    extent, origins = (30, 30), twins.origins
    twins.agree(lambda head, x: vmap(lambda y, o: head(y[None], origin=o, extent=extent)[0])(x, origins), LOGITS)
    twins.agree(lambda head, x: vmap(lambda o: head(x, origin=o, extent=extent))(origins), LOGITS)
    twins.agree(
        lambda head, x: vmap(lambda y: head(y, origin=origins, extent=extent))(torch.stack([x, -x, 2 * x])), LOGITS
    )


def test_gradients_of_each_sample(twins):
    twins.agree(lambda head, x: vmap(grad(loss(head)), (None, 0))(dict(head.named_parameters()), x[:, None]), GRADIENTS)
    twins.agree(lambda head, x: vmap(grad(lambda y: head(y[None]).square().sum()))(x), GRADIENTS)
    twins.agree(lambda head, x: jacrev(lambda y: head(y[None])[0, 0, 4])(x[0]), GRADIENTS)


def test_ensembles(twins):
    others = [twins.make("reference", seed=seed) for seed in (1, 2)]

    def ensemble(head):
        heads = [head, *(other.to(head.residual.weight.dtype) for other in others)]
        return {name: stacked.detach() for name, stacked in stack_module_state(heads)[0].items()}

    twins.agree(lambda head, x: vmap(lambda p: functional_call(head, p, (x,)))(ensemble(head)), LOGITS)
    twins.agree(lambda head, x: vmap(grad(loss(head)), (0, None))(ensemble(head), x), GRADIENTS)


def test_an_empty_batch_inside_vmap(twins):
    empty = twins.features.new_zeros(3, 0, CHANNELS, *SHAPE)
    assert vmap(twins.head)(empty).shape == (3, 0, 2, *SHAPE)


def test_vmap_over_no_samples(twins):
    head, none = twins.head, twins.features[:0]
    parameters = dict(head.named_parameters())
    assert vmap(lambda y: head(y[None])[0])(none).shape == (0, 2, *SHAPE)
    assert vmap(head, in_dims=1)(twins.features[:, None][:, :0]).shape == (0, BATCH, 2, *SHAPE)
    assert vmap(grad(lambda y: head(y[None]).sum()))(none).shape == none.shape
    assert vmap(lambda o: head(twins.features, origin=o))(twins.origins[:0]).shape == (0, BATCH, 2, *SHAPE)
    for name, gradient in vmap(grad(loss(head)), (None, 0))(parameters, none[:, None]).items():
        assert gradient.shape == (0, *parameters[name].shape)
    no_heads = {name: p.detach().expand(0, *p.shape) for name, p in parameters.items()}
    assert vmap(lambda p: functional_call(head, p, (twins.features,)))(no_heads).shape == (0, BATCH, 2, *SHAPE)


@needs_a_compiled_backend
def test_the_compiled_backend_is_what_runs(monkeypatch):
    calls = []
    forward = dispatch.BACKENDS[COMPILED].forward
    monkeypatch.setattr(dispatch.BACKENDS[COMPILED], "forward", lambda i: calls.append(i.features.shape) or forward(i))
    twins = Twins(COMPILED)
    twins.head.backend = "auto"
    vmap(lambda y: twins.head(y[None])[0])(twins.features)
    assert calls == [(BATCH, CHANNELS, *SHAPE)]


def test_double_backward_in_torch_func(twins):
    def penalty(head, x):
        return grad(lambda y: grad(lambda z: head(z).square().sum())(y).square().sum())(x)

    twins.agree(penalty, GRADIENTS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_double_backward(backend):
    """Through the reference, whatever backend ran the first: with respect to every input, for every gradient."""
    inputs = make_inputs((3, 4), batch=2, classes=2, hidden=(5, 4), dtype=torch.float64, bias=True)
    leaves = [t.to(device_of(backend)).requires_grad_() for t in inputs.tensors]

    def function(x, *parameters):
        return scp(x, parameters[:6], parameters[6], parameters[7], backend=backend)

    first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
    assert all(gradient.requires_grad for gradient in first)  # gradgradcheck passes over those that do not
    assert torch.autograd.gradgradcheck(function, leaves)


@needs_a_compiled_backend
def test_what_compiled_backends_cannot_do_is_refused_never_wrong():
    twins = Twins(COMPILED)
    head, x = twins.head, twins.features
    with pytest.raises(NotImplementedError, match=r"no forward-mode derivative .* use backend='reference'"):
        jvp(head, (x,), (x,))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        head(forward_ad.make_dual(x, x))


def test_forward_mode_goes_through_the_reference():
    twins = Twins("cpu" if COMPILED == "cpu" else "reference")
    twins.head.backend = "auto"
    twins.agree(lambda head, x: jvp(head, (x,), (x.square(),))[1], LOGITS)
    twins.agree(lambda head, x: hessian(lambda y: head(y[None, :, :2, :3]).square().sum())(x[0]).flatten(), GRADIENTS)


def tangent_of(head: FusedSCP, x: Tensor, tangent: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(head(forward_ad.make_dual(x, tangent))).tangent


FORWARD_MODE = {
    "compiled jvp": lambda h, x, v: torch.compile(lambda y: jvp(h, (y,), (v,))[1], backend="aot_eager")(x),
    "jvp of compiled": lambda h, x, v: jvp(torch.compile(h, backend="aot_eager"), (x,), (v,))[1],
    "compiled dual numbers": lambda h, x, v: torch.compile(tangent_of, backend="aot_eager")(h, x, v),
    "dual numbers into compiled": lambda h, x, v: tangent_of(torch.compile(h, backend="aot_eager"), x, v),
    "compiled jacfwd": lambda h, x, v: torch.compile(torch.func.jacfwd(lambda t: h(x + t * v)), backend="aot_eager")(
        x.new_zeros(())
    ),
}


@needs_a_compiled_backend
@pytest.mark.parametrize("way", FORWARD_MODE)
def test_forward_mode_in_a_graph_is_never_a_silent_zero(way):
    torch.compiler.reset()
    head = Twins(COMPILED).head.requires_grad_(False)
    x = Twins(COMPILED).features
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        FORWARD_MODE[way](head, x, x.square())
    truth = copy.deepcopy(head)
    head.backend, truth.backend = "auto", "reference"
    expected = jvp(truth, (x,), (x.square(),))[1]
    torch.compiler.reset()
    assert relative_error(FORWARD_MODE[way](head, x, x.square()), expected) <= LOGITS[torch.float32]


@needs_a_compiled_backend
def test_an_exported_program_refuses_tangents():
    twins = Twins(COMPILED)
    program = torch.export.export(twins.head.requires_grad_(False), (twins.features,)).module()
    for way in (
        lambda: jvp(program, (twins.features,), (twins.features,)),
        lambda: tangent_of(program, *[twins.features] * 2),
    ):
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            way()
    assert torch.equal(program(twins.features), twins.head(twins.features))
