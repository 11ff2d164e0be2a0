"""What training does with a module: autocast, scaling, checkpointing, views, memory formats, changed weights."""

import copy
import io
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from scp_kernels import FusedSCP, ops, scp, scp_reference
from scp_kernels.positions import whole_image_matrix
from tests.support.backend_names import BACKENDS, device_of
from tests.support.heads import make_head
from tests.support.problems import away_from_kinks, evaluate, make_inputs
from tests.support.tolerances import GRADIENTS, LOGITS, relative_error

SHAPE = (19, 23)


def head_of(backend: str, **options) -> FusedSCP:
    return make_head(backend, **{"bias": True, **options})


def features_of(backend: str, batch: int = 3) -> Tensor:
    return make_inputs(SHAPE, batch=batch, channels=4).features.to(device_of(backend))


def gradients(head: nn.Module, logits: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1, 1, logits.numel(), device=logits.device).view_as(logits)
    return torch.autograd.grad((logits * weights).sum(), [*others, *head.parameters()])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend, dtype):
    device = device_of(backend)
    head = head_of(backend)
    network = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1).to(device), head)
    x = features_of(backend)
    with torch.autocast(device, dtype=dtype):
        features = network[0](x).detach().requires_grad_()
        logits = head(features)
        loss = network(x).float().square().mean()
    assert features.dtype == logits.dtype == dtype
    truth = copy.deepcopy(head).double()
    truth.backend = "reference"
    exact = features.detach().double().requires_grad_()
    expected = truth(exact)
    assert relative_error(logits, expected) <= LOGITS[dtype]
    results = gradients(head, logits, features)
    for gradient, parameter, true in zip(
        results, (features, *head.parameters()), gradients(truth, expected, exact), strict=True
    ):
        assert gradient.dtype == parameter.dtype
        assert relative_error(gradient, true) <= GRADIENTS[dtype]
    loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in network.parameters())


@pytest.mark.parametrize("backend", BACKENDS)
def test_grad_scaler_finds_infinities_and_trains(backend):
    device = device_of(backend)
    head = head_of(backend)
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**10)
    x, before = features_of(backend), copy.deepcopy(head.state_dict())
    losses = []
    for step in range(4):
        with torch.autocast(device, dtype=torch.float16):
            loss = head(x).float().square().mean()
            if step == 1:
                loss = loss * float("inf")
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert scaler.get_scale() == 2.0**9  # halved by the one infinite step, which was skipped
    assert losses[3] < losses[2] < losses[0]
    assert all(not torch.equal(tensor, before[name]) for name, tensor in head.state_dict().items())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_activation_checkpointing(backend, reentrant):
    head, x = head_of(backend), features_of(backend).requires_grad_()
    expected = gradients(head, head(x), x)
    logits = checkpoint(head, x, use_reentrant=reentrant)
    weights = torch.linspace(-1, 1, logits.numel(), device=logits.device).view_as(logits)
    (logits * weights).sum().backward()
    for tensor, gradient in zip((x, *head.parameters()), expected, strict=True):
        assert torch.equal(tensor.grad, gradient)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.values != ("reference",)])
@pytest.mark.parametrize("policy", [CheckpointPolicy.MUST_SAVE, CheckpointPolicy.MUST_RECOMPUTE], ids=str)
def test_selective_checkpointing_knows_the_operator(backend, policy, monkeypatch):
    head, x = head_of(backend), features_of(backend).requires_grad_()
    plain = gradients(head, head(x), x)

    def decide(context, operator, *args, **kwargs):
        return policy if operator is ops.scp_forward else CheckpointPolicy.PREFER_RECOMPUTE

    calls = []
    run = ops.dispatch.BACKENDS[backend].forward
    monkeypatch.setattr(ops.dispatch.BACKENDS[backend], "forward", lambda *a: calls.append(1) or run(*a))
    logits = checkpoint(head, x, use_reentrant=False, context_fn=lambda: create_selective_checkpoint_contexts(decide))
    for gradient, expected in zip(gradients(head, logits, x), plain, strict=True):
        assert torch.equal(gradient, expected)
    assert len(calls) == (1 if policy == CheckpointPolicy.MUST_SAVE else 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_whole_modules_are_saved_and_loaded(backend):
    head, x = head_of(backend), features_of(backend)
    buffer = io.BytesIO()
    torch.save(head, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert loaded.backend == backend and torch.equal(loaded(x), head(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_from_the_meta_device_to_a_real_one(backend):
    with torch.device("meta"):
        head = FusedSCP(4, 2, 16, backend=backend)
    assert {p.device.type for p in head.parameters()} == {"meta"}
    head = head.to_empty(device=device_of(backend))
    head.load_state_dict(head_of(backend, bias=False).state_dict())
    expected = head_of(backend, bias=False, position="pixels")
    assert torch.equal(head(features_of(backend)), expected(features_of(backend)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_channels_last(backend):
    head, x = head_of(backend), features_of(backend)
    expected = gradients(head, head(x.requires_grad_()), x)
    head = head.to(memory_format=torch.channels_last)
    y = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    assert not y.is_contiguous()
    results = gradients(head, head(y), y)
    if backend != "reference":  # plain PyTorch gives it the format that its last step has
        assert results[0].is_contiguous(memory_format=torch.channels_last)
    for gradient, truth in zip(results, expected, strict=True):
        assert relative_error(gradient, truth) <= GRADIENTS[torch.float32]


VIEWS = {
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every second": lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
    "behind an offset": lambda x: torch.cat([x[:1], x])[1:],
    "channels of a wider map": lambda x: torch.cat([x, x], dim=1)[:, 4:],
    "one sample expanded": lambda x: x[:1].expand(3, -1, -1, -1),
    "one row expanded": lambda x: x[:, :, :1].expand(-1, -1, 19, -1),
    "turned": lambda x: x.flip(2).flip(2),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_views(backend, view):
    head = head_of(backend)
    x = VIEWS[view](features_of(backend)).detach().requires_grad_()
    y = x.detach().contiguous().requires_grad_()
    assert relative_error(head(x), head(y)) <= LOGITS[torch.float32]
    for gradient, truth in zip(gradients(head, head(x), x), gradients(head, head(y), y), strict=True):
        assert relative_error(gradient, truth) <= GRADIENTS[torch.float32]


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_subset_of_gradients(backend):
    inputs = away_from_kinks(make_inputs(SHAPE, channels=3, bias=True)).to(device_of(backend))
    _, expected = evaluate(scp_reference, inputs.double())
    groups = (("features",), ("w1", "b1"), ("w2",), ("b2", "w3"), ("b3", "residual"), ("bias",))
    for chosen in itertools.chain.from_iterable(itertools.combinations(groups, k) for k in (1, 2, 5)):
        wanted = {name for group in chosen for name in group}
        leaves = {
            name: t.clone().requires_grad_(name in wanted) for name, t in zip(inputs.names, inputs.tensors, strict=True)
        }
        x, *phi, residual, bias = leaves.values()
        scp(x, tuple(phi), residual, bias, backend=backend).backward(inputs.grad_logits)
        for name, leaf in leaves.items():
            assert (leaf.grad is not None) == (name in wanted), name
            if leaf.grad is not None:
                assert relative_error(leaf.grad, expected[name]) <= GRADIENTS[torch.float32], name


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batches(backend):
    head, x = head_of(backend), features_of(backend)[:0].requires_grad_()
    logits = head(x)
    assert logits.shape == (0, 2, *SHAPE)
    results = torch.autograd.grad(logits.sum(), [x, *head.parameters()])
    assert results[0].shape == x.shape and not any(g.any() for g in results[1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_deterministic_mode(backend):
    head, x = head_of(backend), features_of(backend).requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (gradients(head, head(x), x) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("change", ["in place", "through .data", "by an optimizer", "a new tensor"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_changed_parameters_are_noticed(backend, change):
    """Whatever a backend keeps between calls without gradients."""
    head, x = head_of(backend), features_of(backend)
    truth = copy.deepcopy(head).double()
    truth.backend = "reference"
    for _ in range(3):
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                for _ in range(3):
                    assert relative_error(head(x), truth(x.double())) <= LOGITS[torch.float32]
        for parameter in head.parameters():
            if change == "in place":
                with torch.no_grad():
                    parameter.mul_(1.25)
            elif change == "through .data":
                parameter.data.mul_(1.25)
            elif change == "a new tensor":
                parameter.data = parameter.data * 1.25
            else:
                parameter.grad = -0.25 * parameter.detach()
        if change == "by an optimizer":
            torch.optim.SGD(head.parameters(), lr=1.0).step()
        truth.load_state_dict(head.state_dict())


@pytest.mark.parametrize("backend", BACKENDS)
def test_inference_tensors(backend):
    with torch.inference_mode():
        head, x = head_of(backend), features_of(backend)
        logits = head(x)
        assert logits.is_inference()
        head.residual.weight.mul_(2)
        assert not torch.equal(head(x), logits)


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_at_a_size_first_seen_in_inference_mode(backend):
    """What is remembered for a size must be no inference tensor: autograd cannot save those."""
    head, x = head_of(backend), features_of(backend)[..., :17, :13]
    whole_image_matrix.cache_clear()
    with torch.inference_mode():
        logits = head(x)
    head(x).sum().backward()
    assert torch.equal(head(x), logits) and head.residual.weight.grad is not None


def negated(tensor: Tensor) -> Tensor:
    """The same values, as a view with PyTorch's negative bit."""
    view = torch._neg_view(-tensor)
    assert view.is_neg()
    return view


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_negative_bit(backend):
    """``z.conj().imag`` is a view that says "negate me": kernels, which read memory, must not miss it."""
    head, x = head_of(backend), features_of(backend)
    with torch.no_grad():
        assert torch.equal(head(negated(x)), head(x))
        parameters = (*head._phi_tensors(), head.residual.weight, head.bias)
        views = [negated(t) for t in parameters]
        expected = scp(x, parameters[:6], *parameters[6:], backend=backend)
        assert torch.equal(scp(x, views[:6], *views[6:], backend=backend), expected)
        affine, extent = (
            torch.tensor([[1.0, 0, 3], [0, 1, 4]]).double().to(x.device),
            torch.tensor([30.0, 40.0]).double(),
        )
        result = head(x, affine=negated(affine), extent=negated(extent.to(x.device)))
        assert torch.equal(result, head(x, affine=affine, extent=extent))
    leaf = x.clone().requires_grad_()
    tensors = [leaf, *head.parameters()]
    grad_logits = torch.randn_like(head(x))
    expected = torch.autograd.grad(head(leaf), tensors, grad_logits)
    for features, gradient in ((leaf, negated(grad_logits)), (torch._neg_view(-leaf), grad_logits)):
        results = torch.autograd.grad(head(features), tensors, gradient)
        assert all(relative_error(a, b) <= GRADIENTS[torch.float32] for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensors_of_zeros_without_memory(backend):
    head, x = head_of(backend), features_of(backend)
    zeros = torch._efficientzerotensor(x.shape, device=x.device)
    assert torch.equal(head(zeros), head(torch.zeros_like(x)))
    leaf = x.clone().requires_grad_()
    logits = head(leaf)
    no_gradient = torch._efficientzerotensor(logits.shape, device=x.device)
    for gradient in torch.autograd.grad(logits, [leaf, *head.parameters()], no_gradient):
        assert not gradient.any()
