"""The scale of Φ's output: steps of W that do not grow with the width, and checkpoints that mean what they meant."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from scp_kernels import FusedSCP, parameter_groups, scp
from scp_kernels.backends import cpu
from tests.operator.test_module import plain_layers
from tests.support.cpu_settings import needs_cpu
from tests.support.heads import make_head
from tests.support.tolerances import LOGITS, relative_error

SHAPE, CHANNELS, STEPS = (16, 20), 8, 20
WIDTHS = (64, 128, 256, 512)
RATES = {"adam": 4e-3, "adamw": 4e-3, "sgd": 1e-2}
OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, RATES["adam"]),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, RATES["adamw"]),
    "sgd": lambda parameters: torch.optim.SGD(parameters, RATES["sgd"], momentum=0.99, nesterov=True),
}
# A map whose every pixel is at the centre: the head is then a 1×1 convolution that is parametrised otherwise.
CONSTANT = torch.tensor([[0.0, 0.0, SHAPE[0] / 2], [0.0, 0.0, SHAPE[1] / 2]])


def head_of(width=32, seed=0, **options):
    return make_head(width=width, seed=seed, **{"phi_scale": "adam", "backend": "reference", **options})


def features_of(seed=0):
    return torch.randn(2, 4, *SHAPE, generator=torch.Generator().manual_seed(seed))


def weight_steps(optimizer, width, phi_scale, affine=None, *, grouped=False, anchored=False):
    """Root mean square step of W + w_r, at every step of a training, relative to that of a 1×1 convolution's weight."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, CHANNELS, *SHAPE, generator=generator)
    target = ((features * torch.randn(CHANNELS, 1, 1, generator=generator)).sum(1, keepdim=True) > 2).float()
    torch.manual_seed(0)
    plain = nn.Conv2d(CHANNELS, 1, 1)
    options = {"position": "centered", "zero_init": True, "bias": True, "backend": "reference"}
    head = FusedSCP(CHANNELS, 1, width, phi_scale=phi_scale, anchored=anchored, **options)
    with torch.no_grad():
        plain.bias.zero_()
        head.residual.weight.copy_(plain.weight.flatten(1))

    def steps(module, weight, **options):
        parameters = parameter_groups(module, RATES[optimizer]) if grouped else module.parameters()
        rule = OPTIMIZERS[optimizer](parameters)
        moved = []
        for _ in range(STEPS):
            before = weight().detach().clone()
            rule.zero_grad()
            binary_cross_entropy_with_logits(module(features, **options), target).backward()
            rule.step()
            moved.append((weight().detach() - before).square().mean().sqrt())
        return torch.stack(moved)

    options = {} if affine is None else {"affine": affine}
    of_head = steps(head, lambda: head.weight_field(SHAPE, **options), **options)
    return (of_head / steps(plain, lambda: plain.weight)).mean().item()


@pytest.mark.parametrize("affine", [None, CONSTANT], ids=["positions", "constant position"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_step_of_the_weights_is_that_of_a_convolution_at_any_width(optimizer, affine):
    name = "sgd" if optimizer == "sgd" else "adam"
    ratios = [weight_steps(optimizer, width, name, affine) for width in WIDTHS]
    assert all(1 / 2 <= ratio <= 2 for ratio in ratios), ratios
    assert max(ratios) <= 1.25 * min(ratios), ratios


def test_without_the_scale_adams_step_grows_with_the_width():
    ratios = [weight_steps("adam", width, 1.0, CONSTANT) for width in (64, 256)]
    assert ratios[0] > 4 and ratios[1] > 2 * ratios[0], ratios


def test_scales_are_powers_of_two_that_fall_with_the_widths():
    scale = {
        (name, h): head_of(h, phi_scale=name).phi_scale.item() for name in ("adam", "sgd") for h in (64, (32, 128))
    }
    assert scale["adam", 64] == scale["adam", (32, 128)]
    assert scale["sgd", 64] == scale["sgd", (32, 128)]
    for width in (3, 48, 100, 1000):
        for name, power in (("adam", 2), ("sgd", 1)):
            value = head_of(width, phi_scale=name).phi_scale.item()
            assert value == 2.0 ** round(torch.tensor(value).log2().item()) <= 1
            expected = scale[name, 64] * (64 / width) ** power
            assert value == 1 or 0.7 < value / expected < 1.42
    assert head_of(2).phi_scale.item() == 1


@pytest.mark.parametrize("phi_scale", ["rmsprop", 0.0, -0.5, 2.0, 0.3, float("nan")])
def test_other_scales_are_refused(phi_scale):
    with pytest.raises(ValueError, match=r"phi_scale: expected 'adam', 'sgd' or a power of two in \(0, 1\], got"):
        head_of(phi_scale=phi_scale)


@pytest.mark.parametrize("phi_scale", ["adam", "sgd", 2.0**-9])
def test_the_function_at_first_is_that_of_the_plain_form(phi_scale):
    plain, scaled = head_of(phi_scale=1.0, dtype=torch.float64), head_of(phi_scale=phi_scale, dtype=torch.float64)
    assert relative_error(scaled.weight_field(SHAPE), plain.weight_field(SHAPE)) <= 1e-12
    scaled.reset_parameters()
    field = scaled.weight_field(SHAPE)
    assert field.std() < 3 * plain.weight_field(SHAPE).std()
    assert not scaled.phi[4].weight.eq(0).any()


def test_the_neutral_value_hands_the_parameters_on_as_they_are():
    head = head_of(phi_scale=1.0)
    assert "phi_scale" not in head.state_dict() and head.phi_scale is None
    assert all(given is own for given, own in zip(head._phi_tensors(), head.phi.parameters(), strict=True))


def scaled_by_hand(head):
    w1, b1, w2, b2, w3, b3 = head.phi.parameters()
    return w1, b1, w2, b2, w3 * head.phi_scale, b3 * head.phi_scale


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_cpu)])
def test_the_head_is_the_function_with_a_scaled_last_layer(backend):
    head, x = head_of(backend=backend, bias=True), features_of()
    options = {"origin": (2, 3), "extent": (40, 50)}
    logits = head(x, **options)
    assert torch.equal(
        logits,
        scp(x, scaled_by_hand(head), head.residual.weight, head.bias, position="centered", backend=backend, **options),
    )
    field = head.weight_field(SHAPE, **options)
    assert relative_error(logits, (field[None] * x[:, None]).sum(2) + head.bias[:, None, None]) <= LOGITS[torch.float32]
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in head.parameters())


def test_macs_are_those_of_the_plain_form():
    assert head_of().macs((160, 224), 3) == head_of(phi_scale=1.0).macs((160, 224), 3)


@needs_cpu
@pytest.mark.usefixtures("empty_weight_field_cache")
def test_frozen_weights_are_cached_with_a_scale_too():
    head, x = head_of(backend="cpu"), features_of()
    with torch.no_grad():
        logits = []
        for use in ("unused", "stored", "read", "read"):
            logits.append(head(x))
            assert cpu.last_report().field_cache == use
        assert all(torch.equal(later, logits[0]) for later in logits)
        head.phi_scale.div_(2)
        assert not torch.equal(head(x), logits[0])


def test_a_checkpoint_of_the_plain_form_keeps_its_meaning():
    old, x = head_of(phi_scale=1.0, seed=1), features_of()
    new = head_of()
    new.load_state_dict(old.state_dict())
    assert new.phi_scale.item() == 1
    assert torch.equal(new(x), old(x))
    phi, residual = plain_layers(channels=4, hidden=(32, 32))
    new = head_of()
    new.load_state_dict(nn.ModuleDict({"phi": phi, "residual": residual}).state_dict())
    expected = FusedSCP.from_layers(phi, residual, position="centered", backend="reference")(x)
    assert torch.equal(new(x), expected)
    network = nn.Sequential(nn.Identity(), head_of())
    network.load_state_dict(nn.Sequential(nn.Identity(), old).state_dict())
    assert torch.equal(network(x), old(x))


def test_a_checkpoint_with_a_scale_loads_into_any_head():
    trained, x = head_of(seed=1), features_of()
    state = trained.state_dict()
    phi, residual = plain_layers(channels=4, hidden=(32, 32))
    for other in (
        head_of(phi_scale=1.0),
        head_of(phi_scale=2.0**-3),
        FusedSCP.from_layers(phi, residual, position="centered", backend="reference"),
    ):
        other.load_state_dict(state)
        assert torch.equal(other(x), trained(x))
        assert torch.equal(other.state_dict()["phi_scale"], state["phi_scale"])
        assert other.phi_scale.data_ptr() != trained.phi_scale.data_ptr()
    half = head_of(phi_scale=1.0).bfloat16()
    half.load_state_dict(state)
    assert half.phi_scale.dtype == torch.bfloat16 and half.phi_scale == trained.phi_scale


def test_a_checkpoint_of_something_else_leaves_the_scale():
    head = head_of()
    head.load_state_dict({"residual.weight": torch.zeros(2, 4)}, strict=False)
    assert head.phi_scale.item() == head_of().phi_scale.item() < 1
    with pytest.raises(RuntimeError, match=r"Missing key.*phi_scale"):
        head.load_state_dict({})


def test_folding_leaves_the_function_and_plain_layers():
    head, x = head_of(bias=True), features_of()
    before = head(x)
    assert head.fold_() is head
    assert head.phi_scale is None and "phi_scale" not in head.state_dict()
    assert torch.equal(head(x), before)
    layers = FusedSCP.from_layers(head.phi, head.residual, position="centered", backend="reference")
    assert relative_error(layers(x) + head.bias[:, None, None], before) <= LOGITS[torch.float32]
    head.fold_()
    assert torch.equal(head(x), before)


def test_folding_refuses_a_last_layer_that_is_computed():
    head = head_of()
    nn.utils.parametrizations.spectral_norm(head.phi[4])
    with pytest.raises(RuntimeError, match="phi\\[4\\]: expected plain parameters"):
        head.fold_()


def test_copies_pickles_and_the_meta_device():
    head, x = head_of(), features_of()
    for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert torch.equal(other(x), head(x))
        assert other.phi_scale is not head.phi_scale
    meta = head_of(device="meta").to_empty(device="cpu")
    meta.reset_parameters()
    assert torch.equal(meta.phi_scale, head.phi_scale)
    meta.load_state_dict(head.state_dict())
    assert torch.equal(meta(x), head(x))
    assert "phi_scale" in repr(head) and "phi_scale" in repr(head_of(device="meta"))


def test_a_pickle_of_a_head_without_the_attribute():
    head, x = head_of(phi_scale=1.0), features_of()
    state = head.__getstate__()
    state["_buffers"] = {}
    del state["_phi_scale_init"]
    older = FusedSCP.__new__(FusedSCP)
    older.__setstate__(state)
    assert torch.equal(older(x), head(x)) and older.phi_scale is None
    older.reset_parameters()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype):
    """As accurate as the plain form in the same dtype: the scale rounds nothing."""
    head = head_of(256)
    exact, x = copy.deepcopy(head).double(), features_of().to(dtype)
    plain = copy.deepcopy(head).fold_().to(dtype)
    truth, logits = exact(x.double()), head.to(dtype)(x)
    assert head.phi_scale.dtype == dtype
    assert relative_error(logits, truth) <= 2 * relative_error(plain(x), truth) + 1e-12


def test_compiled_and_exported():
    head, x = head_of(backend="auto").eval(), features_of()
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(x), head(x)) <= LOGITS[torch.float32]
    program = torch.export.export(head, (x,))
    assert relative_error(program.module()(x), head(x)) <= LOGITS[torch.float32]


def test_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    head, x = head_of(backend="auto").eval(), features_of()
    torch.onnx.export(head, (x,), dynamo=True, verbose=False).save(tmp_path / "head.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "head.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert relative_error(torch.as_tensor(logits), head(x).detach()) <= LOGITS[torch.float32]


def test_an_ensemble_under_vmap():
    heads, x = [head_of(seed=s, phi_scale=2.0**-s) for s in (1, 2, 3)], features_of()
    parameters, buffers = torch.func.stack_module_state(heads)
    of_all = torch.func.vmap(lambda p, b: torch.func.functional_call(heads[0], (p, b), (x,)))(parameters, buffers)
    for logits, head in zip(of_all, heads, strict=True):
        assert relative_error(logits, head(x)) <= LOGITS[torch.float32]
