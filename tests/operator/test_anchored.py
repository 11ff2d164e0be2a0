"""Heads whose Φ is zero at the centre: there the classifier is w_r, whatever Φ has learned."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from scp_kernels import FusedSCP, scp_reference
from tests.operator.test_module import plain_layers
from tests.operator.test_phi_scale import CONSTANT, SHAPE, WIDTHS, weight_steps
from tests.support.backend_names import BACKENDS, device_of
from tests.support.heads import make_head
from tests.support.tolerances import GRADIENTS, LOGITS, relative_error

CENTRE = {"affine": [[0.0, 0.0, 5.0], [0.0, 0.0, 7.0]], "extent": [10.0, 14.0]}


def head_of(width=32, seed=0, **options):
    return make_head(width=width, seed=seed, **{"anchored": True, "backend": "reference", **options})


def features_of(seed=0, channels=4):
    return torch.randn(2, channels, *SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("options", [{}, {"phi_scale": "adam"}, {"position_dims": 3}, {"spatial_dims": 3}], ids=str)
def test_at_the_centre_the_classifier_is_the_residual(options):
    head = head_of(**options)
    dims, axes = head.spatial_dims, head.position_dims
    affine = torch.cat([torch.zeros(axes, dims), 5 * torch.ones(axes, 1)], 1)
    field = head.weight_field((2,) * dims, affine=affine, extent=[10.0] * axes)
    assert relative_error(field, head.residual.weight.view(2, 4, *[1] * dims).expand_as(field)) < 1e-6
    away = head.weight_field((2,) * dims, affine=affine + 2, extent=[10.0] * axes)
    assert (away - field).abs().max() > 1e-4


def test_the_field_is_phis_difference_to_its_value_at_the_centre():
    """W(S) = Φ(S) − Φ(S₀), with any bias of the last layer."""
    head = head_of(dtype=torch.float64)
    phi = copy.deepcopy(head.phi)
    phi[4].bias = nn.Parameter(torch.randn(8, dtype=torch.float64))
    i, j = torch.meshgrid(torch.arange(16.0).double(), torch.arange(20.0).double(), indexing="ij")
    s = torch.stack([2 * i / 16 - 1, 2 * j / 20 - 1, 1 - 2 * i / 16, 1 - 2 * j / 20], -1)
    expected = phi(s) - phi(torch.zeros(4, dtype=torch.float64)) + head.residual.weight.flatten()
    assert relative_error(head.weight_field(SHAPE), expected.movedim(-1, 0).unflatten(0, (2, 4))) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_computes_it_and_its_gradients(backend):
    head = head_of(backend=backend)
    x = features_of().to(device_of(backend)).requires_grad_()
    exact = copy.deepcopy(head).double().cpu()
    exact.backend = "reference"
    y = x.detach().double().cpu().requires_grad_()
    logits, expected = head(x), exact(y)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits.backward(weight.to(logits))
    expected.backward(weight)
    assert relative_error(logits.cpu(), expected) <= LOGITS[torch.float32]
    assert relative_error(x.grad.cpu(), y.grad) <= GRADIENTS[torch.float32]
    for (name, parameter), truth in zip(head.named_parameters(), exact.parameters(), strict=True):
        assert relative_error(parameter.grad.cpu(), truth.grad) <= GRADIENTS[torch.float32], name


def test_gradients_are_those_of_finite_differences():
    head = head_of(4, dtype=torch.float64)
    x = features_of().double()[:1, :, :3, :4]
    names = list(dict(head.named_parameters()))

    def call(*parameters):
        return torch.func.functional_call(head, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, tuple(p.detach().requires_grad_() for p in head.parameters()))


def test_at_one_position_the_step_of_the_weights_is_that_of_a_convolution():
    """Of Adam at 4e-3: without the anchor it is 20 to 62 of them (docs/training.md)."""
    for width in WIDTHS:
        assert abs(weight_steps("adam", width, 1.0, CONSTANT, anchored=True) - 1) < 1e-3, width


@pytest.mark.parametrize("width", [64, 256])
def test_told_the_centre_everywhere_a_head_is_trained_as_the_convolution_is(width):
    """The control of the studies: 60 steps of Adam give the same loss and the same logits."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 8, *SHAPE, generator=generator)
    target = ((x * torch.randn(8, 1, 1, generator=generator)).sum(1, keepdim=True) > 2).float()
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 1, 1)
    head = FusedSCP(8, 1, width, position="centered", zero_init=True, bias=True, anchored=True, backend="reference")
    with torch.no_grad():
        plain.bias.zero_()
        head.residual.weight.copy_(plain.weight.flatten(1))
    calls = {plain: lambda: plain(x), head: lambda: head(x, affine=CONSTANT)}
    losses = {module: [] for module in calls}
    for module, call in calls.items():
        optimizer = torch.optim.Adam(module.parameters(), 4e-3)
        for _ in range(60):
            optimizer.zero_grad()
            loss = binary_cross_entropy_with_logits(call(), target)
            loss.backward()
            optimizer.step()
            losses[module].append(loss.item())
    assert relative_error(head(x, affine=CONSTANT), plain(x)) < 1e-4
    assert losses[head] == pytest.approx(losses[plain], rel=1e-5) and losses[plain][-1] < 0.9 * losses[plain][0]


def test_in_training_every_parameter_has_a_gradient():
    """DistributedDataParallel waits for those of all."""
    head = head_of(backend="auto")
    head(features_of()).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())


@pytest.mark.parametrize("scale", [1.0, "adam"])
def test_a_plain_checkpoint_is_the_same_function(scale):
    x = features_of()
    plain = head_of(anchored=False, phi_scale=scale, seed=1, bias=True)
    head = head_of(bias=True)
    head.load_state_dict(plain.state_dict())
    assert head.anchored and relative_error(head(x), plain(x)) <= LOGITS[torch.float32]
    phi, residual = plain_layers(channels=4, hidden=(32, 32))
    head = head_of()
    head.load_state_dict(nn.ModuleDict({"phi": phi, "residual": residual}).state_dict())
    layers = FusedSCP.from_layers(phi, residual, position="centered", backend="reference")
    assert relative_error(head(x), layers(x)) <= LOGITS[torch.float32]


@pytest.mark.parametrize("scale", [1.0, "adam"])
def test_an_anchored_checkpoint_is_the_same_function_in_a_plain_head(scale):
    x, trained = features_of(), head_of(seed=1, phi_scale=scale)
    phi, residual = plain_layers(channels=4, hidden=(32, 32))
    for other in (
        head_of(anchored=False),
        head_of(anchored=False, phi_scale=2.0**-3),
        FusedSCP.from_layers(phi, residual, position="centered", backend="reference"),
    ):
        other.load_state_dict(trained.state_dict())
        assert not other.anchored and relative_error(other(x), trained(x)) <= LOGITS[torch.float32]


def test_of_pixels_an_anchored_checkpoint_lacks_a_bias():
    """Its centre is not at zero."""
    with pytest.raises(RuntimeError, match=r"Missing key.*phi.4.bias"):
        head_of(anchored=False, position="pixels").load_state_dict(head_of().state_dict())
    with pytest.raises(ValueError, match="anchored: expected position='centered', whose centre is 0, got 'pixels'"):
        FusedSCP(4, anchored=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_as_accurate_as_the_plain_form(dtype):
    """Φ(S) and Φ(S₀) are large here and cancel: the bias is not rounded to the parameters' dtype."""

    def errors(anchored):
        head = head_of(128, anchored=anchored)
        with torch.no_grad():
            head.phi[2].bias.fill_(1.0)
            head.phi[4].weight.normal_(generator=torch.Generator().manual_seed(1))
        head.to(dtype)
        exact, x = copy.deepcopy(head).double(), features_of().to(dtype)
        logits, expected = head(x), exact(x.double())
        assert logits.dtype == dtype and head.weight_field(SHAPE).dtype == dtype
        logits.sum().backward()
        expected.sum().backward()
        pairs = zip(head.named_parameters(), exact.parameters(), strict=True)
        of_gradients = {name: relative_error(parameter.grad, truth.grad) for (name, parameter), truth in pairs}
        return head, relative_error(logits, expected), of_gradients

    head, of_logits, of_gradients = errors(True)
    _, _, plain = errors(False)
    assert of_logits <= LOGITS[dtype]
    for name, error in of_gradients.items():
        assert error <= max(GRADIENTS[dtype], 1.5 * plain[name]), name
    assert relative_error(head.weight_field((1, 1), **CENTRE)[..., 0, 0], head.residual.weight) <= 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_checkpoint_in_half_precision_is_converted_in_full(dtype):
    x, plain = features_of(), head_of(anchored=False, seed=1).to(dtype)
    expected = copy.deepcopy(plain).float()(x)
    head = head_of()
    head.load_state_dict(plain.state_dict())
    assert relative_error(head(x), expected) <= LOGITS[torch.float32]
    back = head_of(anchored=False)
    half = copy.deepcopy(head).to(dtype)
    back.load_state_dict(half.state_dict())
    assert relative_error(back(x), copy.deepcopy(half).float()(x)) <= LOGITS[torch.float32]
    meta = head_of(device="meta")
    meta.load_state_dict(plain.state_dict(), assign=True)
    assert {parameter.dtype for parameter in meta.parameters()} == {dtype}


def test_heads_that_share_an_anchored_phi():
    first = head_of()
    second = FusedSCP.from_layers(
        first.phi, nn.Linear(4, 2, bias=False), position="centered", anchored=True, backend="reference"
    )
    assert second.anchored
    field = second.weight_field((1, 1), **CENTRE)[..., 0, 0]
    assert relative_error(field, second.residual.weight) < 1e-6
    for options, message in (
        ({"position": "centered"}, r"phi\[4\]: expected a layer with a bias, got"),
        ({"anchored": True}, "anchored: expected position='centered'"),
    ):
        with pytest.raises(ValueError, match=message):
            FusedSCP.from_layers(first.phi, nn.Linear(4, 2, bias=False), **options)
    phi, residual = plain_layers(channels=4, hidden=(32, 32))
    with pytest.raises(ValueError, match=r"phi\[4\]: expected a layer with no bias, as anchored, got"):
        FusedSCP.from_layers(phi, residual, position="centered", anchored=True)


def test_checkpoints_that_cannot_be_converted_say_so():
    plain = head_of(anchored=False)
    nn.utils.parametrizations.weight_norm(plain.phi[4])
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"phi: expected all of Φ's layers .*anchored=False"):
            head_of().load_state_dict(plain.state_dict(), strict=strict)
    wider = head_of(anchored=False).state_dict() | {"residual.weight": torch.zeros(3, 4)}
    with pytest.raises(RuntimeError, match=r"size mismatch for residual.weight"):
        head_of().load_state_dict(wider)
    bent = head_of(anchored=False).state_dict() | {"phi.2.weight": torch.zeros(32, 8)}
    with pytest.raises(RuntimeError, match=r"size mismatch for phi.2.weight"):
        head_of().load_state_dict(bent)
    for name, value in (("phi.2.weight", torch.zeros(32, 32, 3, 3)), ("phi.0.bias", torch.zeros(()))):
        for anchored in (True, False):
            state = head_of(anchored=not anchored).state_dict() | {name: value}
            with pytest.raises(RuntimeError, match=f"size mismatch for {name}"):
                head_of(anchored=anchored).load_state_dict(state)


def test_a_checkpoint_without_a_scale_into_a_head_on_no_device_yet():
    x, plain = features_of(), head_of(anchored=False, seed=1)
    for anchored in (True, False):
        head = head_of(anchored=anchored, phi_scale=0.5, device="meta")
        head.load_state_dict(plain.state_dict(), assign=True)
        assert head.phi_scale == 1 and relative_error(head(x), plain(x)) <= LOGITS[torch.float32]


def test_loading_changes_nothing_of_the_callers_state():
    plain = head_of(anchored=False)
    state = plain.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    head_of().load_state_dict(state)
    assert state.keys() == before.keys() and all(torch.equal(state[name], before[name]) for name in before)


@pytest.mark.parametrize("scale", [1.0, "adam"])
def test_folding_leaves_the_function_and_plain_layers(scale):
    head, x = head_of(phi_scale=scale), features_of()
    before = head(x)
    assert head.fold_() is head and not head.anchored and head.phi_scale is None
    assert torch.equal(head(x), before)
    layers = FusedSCP.from_layers(head.phi, head.residual, position="centered", backend="reference")
    assert torch.equal(layers(x), before)
    phi = [parameter for layer in (0, 2, 4) for parameter in (head.phi[layer].weight, head.phi[layer].bias)]
    by_hand = scp_reference(x, phi, head.residual.weight, position="centered")
    assert relative_error(by_hand, before) <= LOGITS[torch.float32]


def test_copies_pickles_and_the_meta_device():
    head, x = head_of(zero_init=True), features_of()
    assert not head.phi[4].weight.any() and "anchored=True" in repr(head)
    for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert other.anchored and torch.equal(other(x), head(x))
    meta = head_of(device="meta").to_empty(device="cpu")
    meta.reset_parameters()
    meta.load_state_dict(head.state_dict())
    assert torch.equal(meta(x), head(x))


def test_pruned_and_reparametrised_layers():
    head, x = head_of(), features_of()
    expected = head(x)
    nn.utils.parametrizations.weight_norm(head.phi[4])
    assert head.anchored and relative_error(head(x), expected) <= LOGITS[torch.float32]
    nn.utils.prune.l1_unstructured(head.phi[2], "weight", amount=0.5)
    field = head.weight_field((1, 1), **CENTRE)
    assert relative_error(field[..., 0, 0], head.residual.weight) < 1e-6


def test_autocast_leaves_the_anchor_exact():
    head, x = head_of(256), features_of()
    expected = head.weight_field(SHAPE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head.weight_field(SHAPE), expected)
        assert relative_error(head(x).float(), head(x.bfloat16()).float()) <= LOGITS[torch.bfloat16]


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_compiled_and_exported(backend):
    head, x = head_of(backend=backend).eval(), features_of()
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(x), head(x)) <= LOGITS[torch.float32]
    program = torch.export.export(head, (x,))
    assert relative_error(program.module()(x), head(x)) <= LOGITS[torch.float32]
