"""``FusedSCP``: parameters, initialisation, checkpoints, and the modules it is made of."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from scp_kernels import FusedSCP, scp
from tests.support.problems import make_inputs
from tests.support.tolerances import relative_error


def plain_layers(dims=2, convolutions=True, channels=3, classes=2, hidden=(8, 6)):
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]

    def layer(inputs, outputs, bias=True):
        return conv(inputs, outputs, 1, bias=bias) if convolutions else nn.Linear(inputs, outputs, bias=bias)

    phi = nn.Sequential(
        layer(2 * dims, hidden[0]),
        nn.ReLU(inplace=True),
        layer(*hidden),
        nn.ReLU(),
        layer(hidden[1], classes * channels),
    )
    return phi, layer(channels, classes, bias=False)


def test_defaults_are_the_papers_plain_form():
    head = FusedSCP(16)
    assert head.hidden_channels == (128, 128)
    assert head.position == "pixels" and head.bias is None and head.num_classes == 1
    assert [type(layer) for layer in head.phi] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert list(head.state_dict()) == [
        "phi.0.weight", "phi.0.bias", "phi.2.weight", "phi.2.bias", "phi.4.weight", "phi.4.bias", "residual.weight",
    ]  # fmt: skip
    assert head.phi[4].weight.abs().max() > 0
    assert isinstance(head.residual, nn.Linear) and head.residual.bias is None


def test_zero_init_starts_as_the_plain_classifier():
    head = FusedSCP(4, 2, zero_init=True, bias=True, bias_init=[-3.0, -2.0], position="centered")
    x = torch.randn(2, 4, 6, 7)
    plain = nn.functional.conv2d(x, head.residual.weight[..., None, None], torch.tensor([-3.0, -2.0]))
    assert relative_error(head(x), plain) <= 1e-6
    with torch.no_grad():
        for p in head.parameters():
            p.fill_(7.0)
    head.reset_parameters()
    assert not head.phi[4].weight.any() and head.bias.tolist() == [-3.0, -2.0]
    assert head.phi[0].weight.unique().numel() > 1 and head.residual.weight.unique().numel() > 1


def test_the_module_is_the_function():
    head = FusedSCP(3, 2, (8, 6), bias=True, position="centered")
    x = torch.randn(2, 3, 5, 6)
    phi = tuple(p for k in (0, 2, 4) for p in (head.phi[k].weight, head.phi[k].bias))
    options = {"origin": (1, 2), "extent": (9, 9)}
    expected = scp(x, phi, head.residual.weight, head.bias, position="centered", **options)
    assert torch.equal(head(x, **options), expected)
    assert list(head(x).shape) == [2, 2, 5, 6]


@pytest.mark.parametrize("dims", [2, 3])
def test_weight_field_reproduces_the_logits(dims):
    shape, extent = (4, 5, 3)[:dims], (9, 8, 7)[:dims]
    head = FusedSCP(3, 2, (8, 6), spatial_dims=dims, dtype=torch.float64)
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    field = head.weight_field(shape, origin=(1,) * dims, extent=extent)
    assert list(field.shape) == [2, 3, *shape]
    logits = (field[None] * x[:, None]).sum(2)
    assert relative_error(head(x, origin=(1,) * dims, extent=extent), logits) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@torch.no_grad()
def test_weight_field_in_half_precision_is_that_of_forward(dtype):
    """Positions of raw pixels do not fit half precision: the field is computed as the logits are, and then rounded."""
    head = FusedSCP(3, 2, (8, 6)).to(dtype)
    in_float32 = copy.deepcopy(head).float().weight_field((160, 224))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.float32):
        field = head.weight_field((160, 224))
    assert field.dtype == dtype
    assert torch.equal(field, in_float32.to(dtype))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("convolutions", [True, False])
def test_from_layers_shares_the_weights(dims, convolutions):
    phi, residual = plain_layers(dims, convolutions)
    head = FusedSCP.from_layers(phi, residual)
    assert head.phi is phi and head.residual is residual
    assert (head.in_channels, head.num_classes, head.spatial_dims) == (3, 2, dims)
    x = torch.randn(2, 3, *(4, 5, 3)[:dims])
    head(x).sum().backward()
    assert all(p.grad is not None for p in (*phi.parameters(), *residual.parameters()))
    before = head(x)
    with torch.no_grad():
        residual.weight += 1
    assert not torch.allclose(head(x), before)


def test_from_layers_is_the_papers_operator():
    phi, residual = plain_layers()
    head = FusedSCP.from_layers(phi, residual)
    x = torch.randn(2, 3, 4, 5)
    i, j = torch.meshgrid(torch.arange(4.0), torch.arange(5.0), indexing="ij")
    w = phi(torch.stack([i, j, 4 - i, 5 - j])[None]).view(1, 2, 3, 4, 5)
    assert relative_error(head(x), (w * x[:, None]).sum(2) + residual(x)) <= 1e-6


@pytest.mark.parametrize("convolutions", [True, False])
def test_a_checkpoint_of_plain_layers_loads_as_it_is(convolutions):
    phi, residual = plain_layers(convolutions=convolutions)
    plain = nn.ModuleDict({"phi": phi, "residual": residual})
    fused = FusedSCP(3, 2, (8, 6))
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(fused(x), FusedSCP.from_layers(phi, residual)(x))
    back = FusedSCP.from_layers(*plain_layers(convolutions=not convolutions))
    back.load_state_dict(fused.state_dict())
    assert torch.equal(back(x), fused(x))
    nested = nn.ModuleDict({"net": nn.ModuleDict({"head": FusedSCP(3, 2, (8, 6))})})
    nested.load_state_dict({f"net.head.{k}": v for k, v in plain.state_dict().items()})
    assert torch.equal(nested["net"]["head"](x), fused(x))


def test_a_checkpoint_of_other_widths_is_refused():
    with pytest.raises(RuntimeError, match=r"phi\.0\.weight"):
        FusedSCP(3, 2, (8, 6)).load_state_dict(FusedSCP(3, 2, (9, 6)).state_dict())
    for shape in ((3, 2, 1, 1), (2, 3, 3, 3)):
        with pytest.raises(RuntimeError, match=r"residual\.weight"):
            FusedSCP(3, 2, (8, 6)).load_state_dict({"residual.weight": torch.randn(shape)}, strict=False)


def test_from_layers_without_a_residual():
    phi, _ = plain_layers(classes=1)
    head = FusedSCP.from_layers(phi)
    assert head.residual is None and head.in_channels == 3
    assert list(head.state_dict()) == [f"phi.{k}.{p}" for k in (0, 2, 4) for p in ("weight", "bias")]
    assert list(head(torch.randn(2, 3, 4, 5)).shape) == [2, 1, 4, 5]
    head.reset_parameters()
    assert FusedSCP.from_layers(plain_layers(classes=2)[0], in_channels=3).num_classes == 2


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FusedSCP.from_layers(plain_layers()[0], in_channels=0), "in_channels: expected at least 1, got 0"),
        (lambda: FusedSCP.from_layers(plain_layers()[0], in_channels=-2), "in_channels: expected at least 1, got -2"),
        (lambda: FusedSCP(3, hidden_channels="12"), "hidden_channels: expected one width or two, got '12'"),
        (lambda: FusedSCP(0), "in_channels: expected at least 1, got 0"),
        (lambda: FusedSCP(3, 0), "num_classes: expected at least 1, got 0"),
        (lambda: FusedSCP(3, hidden_channels=(4, 0)), "hidden_channels: expected at least 1, got 0"),
        (lambda: FusedSCP(3, spatial_dims=1), "spatial_dims: expected 2 or 3, got 1"),
        (lambda: FusedSCP(3, hidden_channels=(4, 5, 6)), "hidden_channels: expected one width or two, got"),
        (lambda: FusedSCP(3, backend="tpu"), "backend: expected 'auto' or one of .* got 'tpu'"),
        (lambda: FusedSCP(3, position="raw"), "position: expected one of .* got 'raw'"),
        (lambda: FusedSCP(3, 2, bias=True, bias_init=[1.0]), "bias_init: expected a number or 2 of them"),
        (lambda: FusedSCP.from_layers(nn.Linear(4, 4)), "phi: expected Sequential.* got Linear"),
        (lambda: FusedSCP.from_layers(nn.Sequential(nn.Linear(4, 4))), "phi: expected Sequential"),
        (lambda: FusedSCP.from_layers(plain_layers()[0], nn.Linear(3, 2)), "residual: expected no bias"),
        *(
            (
                lambda options=options: FusedSCP.from_layers(plain_layers()[0], nn.Conv2d(3, 2, bias=False, **options)),
                "residual: expected nn.Linear",
            )
            for options in ({"kernel_size": 3}, {"kernel_size": 1, "stride": 2}, {"kernel_size": 1, "padding": 1})
        ),
        (lambda: FusedSCP.from_layers(plain_layers()[0], nn.Linear(5, 2, bias=False)), "phi: expected N·C = 2·5"),
        (lambda: FusedSCP.from_layers(plain_layers()[0], in_channels=4), "phi: expected N·C = 1·4 outputs"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FusedSCP(2.5), "in_channels: expected an integer, got 2.5"),
        (lambda: FusedSCP(3, None), "num_classes: expected an integer, got None"),
        (lambda: FusedSCP(3, 2, 8.0), "hidden_channels: expected an integer, got 8.0"),
        (lambda: FusedSCP(3, 2, (8, None)), "hidden_channels: expected an integer, got None"),
        (lambda: FusedSCP(3, dtype=torch.complex64), "dtype: expected float64.*got torch.complex64"),
        (lambda: FusedSCP(3)(None), "features: expected a tensor, got NoneType"),
        (lambda: FusedSCP(3)([torch.ones(1, 3, 4, 4)]), "features: expected a tensor, got list"),
        (lambda: FusedSCP(3)(torch.ones(1, 3, 4, 4).to_sparse()), "features: expected a dense tensor"),
    ],
)
def test_wrong_types_are_named(build, message):
    with pytest.raises(TypeError, match=message):
        build()


def test_widths_come_as_whatever_is_an_integer():
    head = FusedSCP(np.int64(3), np.int32(2), (np.int64(8), torch.tensor(6)))
    assert (head.in_channels, head.num_classes, head.hidden_channels) == (3, 2, (8, 6))
    assert FusedSCP(3, 2, np.int64(8)).hidden_channels == (8, 8)
    assert all(type(n) is int for n in (head.in_channels, head.num_classes))


def test_forward_refuses_another_rank_or_channel_count():
    head = FusedSCP(3)
    with pytest.raises(ValueError, match=r"features: expected 4 axes for spatial_dims=2, got shape \[1, 3, 4, 4, 4\]"):
        head(torch.randn(1, 3, 4, 4, 4))
    with pytest.raises(ValueError, match=r"features: expected 3 channels, got shape \[1, 5, 4, 4\]"):
        head(torch.randn(1, 5, 4, 4))


def test_copies_pickles_and_the_meta_device():
    head = FusedSCP(3, 2, bias=True, bias_init=-1.0, position="centered")
    x = torch.randn(1, 3, 4, 5)
    for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert torch.equal(other(x), head(x))
        assert other.phi[0].weight is not head.phi[0].weight
    meta = FusedSCP(3, 2, bias=True, position="centered", device="meta")
    assert all(p.is_meta for p in meta.parameters())
    meta.to_empty(device="cpu").load_state_dict(head.state_dict())
    assert torch.equal(meta(x), head(x))


def test_dtypes():
    assert FusedSCP(3, dtype=torch.float64)(torch.randn(1, 3, 4, 4).double()).dtype == torch.float64
    assert FusedSCP(3).bfloat16()(torch.randn(1, 3, 4, 4).bfloat16()).dtype == torch.bfloat16


def test_compile_without_a_graph_break():
    head = FusedSCP(3, 2, (8, 6), position="centered")
    inputs = make_inputs((6, 7))
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    for options in ({}, {"origin": (1, 2), "extent": (20, 30)}):
        x = inputs.features.clone().requires_grad_()
        logits = compiled(x, **options)
        assert relative_error(logits, head(x, **options)) <= 1e-6
        logits.sum().backward()
        assert x.grad is not None


def pruned(amount=0.5, **options):
    head = FusedSCP(3, 2, (8, 6), **options)
    for layer, name in ((head.phi[2], "weight"), (head.phi[4], "bias"), (head.residual, "weight")):
        prune.l1_unstructured(layer, name, amount)
    return head


def train(head, steps=2):
    optimizer = torch.optim.SGD(head.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        head(torch.randn(2, 3, 5, 6)).square().mean().backward()
        assert all(p.grad is not None for p in head.parameters())
        optimizer.step()
    return head


def test_pruned_layers_train_and_stay_pruned():
    head = train(pruned(position="centered"))
    x = torch.randn(2, 3, 5, 6)
    logits = head(x)
    for layer in (head.phi[2], head.residual):
        assert torch.equal(layer.weight, layer.weight_orig * layer.weight_mask)
        assert (layer.weight_mask == 0).sum() == layer.weight.numel() // 2
    other = pruned(amount=0.0, position="centered")
    other.load_state_dict(head.state_dict())
    assert torch.equal(other(x), logits), "what was loaded, not what was computed before"
    for layer, name in ((head.phi[2], "weight"), (head.phi[4], "bias"), (head.residual, "weight")):
        prune.remove(layer, name)
    assert torch.equal(head(x), logits)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    "reparametrise",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
    ],
)
def test_reparametrised_layers(reparametrise):
    head = FusedSCP(3, 2, (8, 6), position="centered")
    layers = [head.phi[0], head.phi[2], head.residual]
    for layer in layers:
        reparametrise(layer)
    train(head).eval()
    x = torch.randn(2, 3, 5, 6)
    plain = FusedSCP(3, 2, (8, 6), position="centered")
    for layer in layers:  # an ordinary call computes the weight that the head has to read
        layer(torch.eye(layer.weight.shape[1]))
    with torch.no_grad():
        for k in (0, 2, 4):
            plain.phi[k].weight.copy_(head.phi[k].weight)
            plain.phi[k].bias.copy_(head.phi[k].bias)
        plain.residual.weight.copy_(head.residual.weight)
    assert torch.equal(head(x), plain(x))


def test_hooks_that_would_change_a_layers_input_are_refused():
    head = pruned()
    head.phi[2].register_forward_pre_hook(lambda layer, inputs: (torch.zeros(1, 8),))
    with pytest.raises(RuntimeError, match="expected hooks that leave the layer's input alone"):
        head(torch.randn(1, 3, 4, 4))
