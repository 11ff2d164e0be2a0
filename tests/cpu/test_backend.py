"""The compiled CPU backend against the float64 reference: every dtype, layout, ISA target and awkward size."""

from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scp_kernels import FusedSCP, scp, scp_reference
from scp_kernels.backends import cpu
from tests.support.agreement import (
    NON_FINITE,
    POSITION_MAPS,
    VIEWS,
    agree,
    agree_where_not_finite,
    agree_with_finite_differences,
    integer_inputs,
)
from tests.support.cpu_settings import ISA_TARGETS, ask_cpu, needs_cpu
from tests.support.problems import away_from_kinks, evaluate, make_inputs
from tests.support.processes import run_python
from tests.support.strategies import shapes, widths
from tests.support.tolerances import GRADIENTS, LOGITS, relative_error

pytestmark = [needs_cpu, pytest.mark.usefixtures("empty_weight_field_cache")]
check = partial(agree, backend="cpu")


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (53, 77), (64, 64), (160, 224)], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_sizes(shape, batch):
    check(away_from_kinks(make_inputs(shape, batch=batch, channels=8, hidden=(64, 64), classes=2, bias=True)))


def test_the_papers_largest_head_and_a_large_image():
    check(away_from_kinks(make_inputs((160, 224), batch=2, channels=32, hidden=(256, 256))))
    inputs = make_inputs((1024, 1024), batch=1, channels=2, hidden=(32, 32))
    truth = scp_reference(inputs.features.double(), [t.double() for t in inputs.phi], inputs.residual.double())
    logits = scp(inputs.features, inputs.phi, inputs.residual, backend="cpu")
    assert relative_error(logits, truth) <= LOGITS[torch.float32]


def test_gradients_on_a_large_image():
    check(away_from_kinks(make_inputs((1024, 1024), batch=1, channels=2, hidden=(12, 8))))


@pytest.mark.parametrize("target", ISA_TARGETS)
def test_a_gradient_stored_non_temporally_at_odd_addresses(monkeypatch, target):
    """16 MiB and more, whose rows begin anywhere."""
    ask_cpu(monkeypatch, isa_target=cpu.ISA_TARGETS[target])
    check(away_from_kinks(make_inputs((365, 363), batch=2, channels=16, hidden=(12, 8))))


def test_as_many_arrays_as_a_deep_tree_of_wide_networks_needs():
    """All units bend at one pixel, as with biases of zero: the boxes around it stay as wide as Φ down to the leaf."""
    at, width = 5003.5, 16384
    inputs = make_inputs((1, width), batch=1, channels=8, classes=92, hidden=(736, 736), dtype=torch.float64)
    w1, b1, _, b2, *_ = inputs.phi
    w1[:, [0, 2, 3]] = 0
    b1.copy_(-at * w1[:, 1])
    b2.zero_()
    logits, _ = evaluate(scp, inputs, backend="cpu")
    assert cpu.last_report().most_unstable_units == (736, 736)
    near = slice(4992, 5008)
    truth = scp_reference(
        inputs.features[..., near], inputs.phi, inputs.residual, origin=(0, near.start), extent=(1, width)
    )
    assert relative_error(logits[..., near], truth) <= LOGITS[torch.float64]


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 90), (17, 20, 23)], ids=str)
@pytest.mark.parametrize("batch", [1, 2])
def test_volumes(shape, batch):
    check(away_from_kinks(make_inputs(shape, batch=batch, channels=6, hidden=(48, 40), classes=2, bias=True)))


@pytest.mark.parametrize(
    ("shape", "position"), [((96, 80), "centered"), ((64, 72), "pixels"), ((16, 18, 20), "centered")]
)
def test_after_training(shape, position):
    """Weights that hundreds of steps of this backend's own gradients have bent towards a wavy target."""
    torch.manual_seed(0)
    head = FusedSCP(4, 1, (40, 32), spatial_dims=len(shape), position=position, bias=True, backend="cpu")
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    features = torch.ones(1, 4, *shape)
    waves = [torch.sin(torch.linspace(0, 9, size)) for size in shape]
    target = sum(torch.meshgrid(*waves, indexing="ij"))[None, None]
    losses = []
    for _ in range(300):
        loss = (head(features) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * min(losses[0], target.square().mean().item())
    inputs = make_inputs(shape, batch=2, channels=4, hidden=(40, 32), bias=True)
    inputs.phi = tuple(p.detach() for k in (0, 2, 4) for p in (head.phi[k].weight, head.phi[k].bias))
    inputs.residual, inputs.bias = head.residual.weight.detach(), head.bias.detach()
    check(away_from_kinks(inputs, position=position), position=position)


@pytest.mark.parametrize("target", ISA_TARGETS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(37, 41), (9, 10, 11)], ids=str)
@pytest.mark.parametrize("batch", [1, 2])
def test_every_isa_target_and_dtype(monkeypatch, target, dtype, shape, batch):
    ask_cpu(monkeypatch, isa_target=cpu.ISA_TARGETS[target])
    inputs = make_inputs(shape, batch=batch, channels=5, hidden=(40, 24), classes=3, bias=True, dtype=dtype)
    check(away_from_kinks(inputs))
    assert cpu.last_report().isa_target == target


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parameters_wider_than_the_features(dtype):
    """Φ is evaluated as finely as its parameters are given; only logits and the features' gradient are rounded."""
    inputs = make_inputs((37, 41), channels=5, hidden=(40, 24), dtype=torch.float64)
    inputs.features, inputs.grad_logits = inputs.features.to(dtype), inputs.grad_logits.to(dtype)
    _, truth = evaluate(scp_reference, inputs.double())
    logits, gradients = evaluate(scp, inputs, backend="cpu")
    assert logits.dtype == dtype and gradients.pop("features").dtype == dtype
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float64
        assert relative_error(gradient, truth[name]) <= GRADIENTS[torch.float64], name


@pytest.mark.parametrize("method", ["tree", "dense"])
def test_both_ways_of_evaluation(monkeypatch, method):
    ask_cpu(monkeypatch, method=cpu.METHODS[method])
    for batch in (1, 2):
        check(away_from_kinks(make_inputs((33, 50), batch=batch, channels=6, hidden=(48, 40), classes=2)))
        assert cpu.last_report().dense == (method == "dense")


@pytest.mark.parametrize("options", POSITION_MAPS, ids=range(len(POSITION_MAPS)))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_position_maps(dtype, options):
    check(away_from_kinks(make_inputs((40, 33), channels=6, hidden=(48, 32), dtype=dtype), **options), **options)


def as_affine(origin):
    return torch.cat([torch.eye(2).expand(len(origin), 2, 2), origin[:, :, None]], 2).double()


def test_samples_with_equal_position_maps_share_one_evaluation():
    g = torch.Generator().manual_seed(0)
    distinct = torch.randn(2, 2, 3, generator=g, dtype=torch.float64) * torch.tensor([1.0, 1.0, 20.0])
    affine = distinct[[0, 0, 1, 0, 1]]
    inputs = make_inputs((30, 35), batch=5, channels=6, hidden=(32, 32), classes=2, bias=True, dtype=torch.float64)
    check(inputs, affine=affine, extent=(99, 80))
    assert cpu.last_report().position_maps == 2
    nodes = cpu.last_report().nodes
    two = make_inputs((30, 35), batch=2, channels=6, hidden=(32, 32), classes=2, bias=True, dtype=torch.float64)
    two.grad_logits = inputs.grad_logits[:2]
    evaluate(scp, two, affine=distinct, extent=(99, 80), backend="cpu")
    assert cpu.last_report().nodes <= nodes < 5 / 2 * cpu.last_report().nodes


def test_one_map_given_for_each_sample_is_the_shared_one():
    inputs = make_inputs((30, 35), batch=3, channels=6, hidden=(32, 32))
    affine = torch.tensor([[0.0, -1.0, 40.0], [0.5, 0.2, -3.0]], dtype=torch.float64)
    shared, shared_gradients = evaluate(scp, inputs, affine=affine, backend="cpu")
    logits, gradients = evaluate(scp, inputs, affine=affine.expand(3, 2, 3).clone(), backend="cpu")
    assert cpu.last_report().position_maps == 1
    assert torch.equal(logits, shared)
    for name, gradient in gradients.items():
        # Those of the first layer are summed over the samples' maps, two of which add zero.
        assert relative_error(gradient, shared_gradients[name]) <= 1e-7, name


@pytest.mark.parametrize("zeroed", [slice(None), [1, 3], [2, 3]], ids=["all", "an axis", "trailing borders"])
def test_maps_that_differ_where_the_first_layer_does_not_look(zeroed):
    """Equal coefficients, hence equal W, but the first layer's gradient has each map's own positions in it."""
    inputs = make_inputs((20, 24), batch=3, channels=4, hidden=(16, 12), dtype=torch.float64)
    inputs.phi[0][:, zeroed] = 0
    maps = {
        "origin": torch.tensor([[0.0, 0.0], [0.0, 60.0], [0.0, 0.0]]),
        "extent": torch.tensor([[160.0, 224.0], [160.0, 224.0], [160.0, 230.0]]),
    }
    inputs = away_from_kinks(inputs, affine=as_affine(maps["origin"]), extent=maps["extent"])
    check(inputs, **maps)


def test_many_position_maps():
    """Points sampled from one image, each a map of its own: the time grows with their number, not with its square."""
    inputs = make_inputs((1, 1), batch=20_000, channels=4, hidden=(8, 8))
    origin = torch.rand(20_000, 2, generator=torch.Generator().manual_seed(0)) * 100
    logits = scp(inputs.features, inputs.phi, inputs.residual, origin=origin, extent=(160, 224), backend="cpu")
    truth = scp_reference(inputs.features, inputs.phi, inputs.residual, origin=origin, extent=(160, 224))
    assert cpu.last_report().position_maps == 20_000
    assert relative_error(logits, truth) <= LOGITS[torch.float32]


def test_one_position_map_per_sample():
    g = torch.Generator().manual_seed(0)
    affine = torch.randn(3, 2, 3, generator=g, dtype=torch.float64) * torch.tensor([1.0, 1.0, 20.0])
    inputs = make_inputs((30, 35), batch=3, channels=6, hidden=(32, 32), dtype=torch.float64)
    check(inputs, affine=affine, extent=torch.tensor([[99.0, 80.0], [64.0, 64.0], [50.0, 70.0]]).double())


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("frozen", [True, False])
def test_strides(view, batch, frozen):
    inputs = away_from_kinks(make_inputs((29, 45), batch=batch, channels=6, hidden=(32, 24)))
    features = VIEWS[view](inputs.features)
    grad = inputs.grad_logits[:1].expand(len(features), 1, 29, 45).contiguous()

    def evaluated(function, dtype, **options):
        leaf = features.detach().to(dtype).requires_grad_()
        *phi, residual = (t.to(dtype).requires_grad_(not frozen) for t in (*inputs.phi, inputs.residual))
        logits = function(leaf, phi, residual, **options)
        wanted = [leaf] if frozen else [leaf, *phi, residual]
        return logits, *torch.autograd.grad(logits, wanted, grad.to(dtype))

    logits, *gradients = evaluated(scp, torch.float32, backend="cpu")
    truth, *true_gradients = evaluated(scp_reference, torch.float64)
    assert relative_error(logits, truth) <= LOGITS[torch.float32]
    for gradient, true_gradient in zip(gradients, true_gradients, strict=True):
        assert relative_error(gradient, true_gradient) <= GRADIENTS[torch.float32]


def test_a_constant_gradient_with_no_strides():
    """What ``logits.sum().backward()`` sends: one number expanded to all pixels."""
    inputs = away_from_kinks(make_inputs((30, 31), channels=4, hidden=(16, 16)))
    leaf = inputs.features.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(scp(leaf, inputs.phi, inputs.residual, backend="cpu").sum(), leaf)
    field = scp_reference(torch.eye(4)[:, :, None, None].expand(4, 4, 30, 31), inputs.phi, inputs.residual)[:, 0]
    assert relative_error(gradient, field.expand_as(gradient)) <= GRADIENTS[torch.float32]


@pytest.mark.parametrize("target", ISA_TARGETS)
@pytest.mark.parametrize("shape", [(32, 48), (8, 12, 16)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_kinks_on_pixels(monkeypatch, target, shape, seed):
    """No pixel is masked here: inactive means zero slope, at zero itself too."""
    ask_cpu(monkeypatch, isa_target=cpu.ISA_TARGETS[target])
    inputs = integer_inputs(shape, (12, 10), seed)
    for parameter in inputs.phi[:4]:
        parameter[0] = 0  # a unit of either layer that is zero everywhere
    check(inputs)


@pytest.mark.parametrize("batch", [1, 2])
def test_kinks_on_edges_and_corners_of_boxes(batch):
    """Lines along the first and last rows and columns of boxes, and diagonals through the corners where boxes meet."""
    height, width = 48, 64
    rows = []
    for at in range(0, 64, 4):
        for offset in (0, -1):
            # S is (i, j, H - i, W - j): i = at, j = at, i + j = at, i - j = at - 24, rising and falling.
            rows += [(1, 0, 0, 0, -at - offset), (0, -1, 0, 0, at + offset)]
            rows += [(1, 1, 0, 0, -at - offset), (-1, 1, 0, 0, at + offset - 24)]
    first = torch.tensor(rows, dtype=torch.float32)
    inputs = integer_inputs((height, width), (len(rows), 10), seed=0)
    inputs.phi = (first[:, :4].contiguous(), first[:, 4].contiguous(), *inputs.phi[2:])
    inputs.features = inputs.features.repeat(batch, 1, 1, 1)[:batch]
    inputs.grad_logits = inputs.grad_logits.repeat(batch, 1, 1, 1)[:batch]
    check(inputs)


@pytest.mark.parametrize(("where", "value"), NON_FINITE)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("target", ISA_TARGETS)
def test_nan_and_inf_as_in_pytorch(monkeypatch, where, value, batch, dtype, target):
    ask_cpu(monkeypatch, isa_target=cpu.ISA_TARGETS[target])
    agree_where_not_finite(where, value, batch, "cpu", dtype)


@pytest.mark.parametrize("where", ["features", "grad_logits"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("batch", [1, 2])
def test_gradients_of_nan_and_inf_as_in_pytorch(where, value, batch):
    """0 · NaN is NaN: it reaches the weights of units that are inactive at its pixel, too."""
    inputs = make_inputs((20, 37), batch=batch, channels=3, hidden=(12, 10))
    getattr(inputs, where)[0, 0, 3, 5] = value
    _, gradients = evaluate(scp, inputs, backend="cpu")
    _, truth = evaluate(scp_reference, inputs)
    assert not all(gradient.isfinite().all() for gradient in truth.values())
    for name, gradient in gradients.items():
        assert torch.equal(gradient.isfinite(), truth[name].isfinite()), name


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_an_infinite_weight_of_the_first_layer_is_never_hidden(value):
    """The layer's coefficients add up ``weight · position``, so infinity meets zero: NaN, PyTorch may have Inf."""
    inputs = make_inputs((20, 37), channels=3, hidden=(12, 10))
    w1 = inputs.phi[0].clone()
    w1[0, 1] = value
    logits = scp(inputs.features, (w1, *inputs.phi[1:]), inputs.residual, backend="cpu")
    truth = scp_reference(inputs.features, (w1, *inputs.phi[1:]), inputs.residual)
    assert not torch.isfinite(truth).all()
    assert not torch.isfinite(logits[~torch.isfinite(truth)]).any()


SHORT_OF_MEMORY = """
import resource, torch
from scp_kernels import FusedSCP

torch.set_num_threads(2)

def step(channels, size):
    head = FusedSCP(channels, position="centered", backend="cpu")
    for k in (0, 2, 4):
        torch.nn.init.zeros_(head.phi[k].bias)  # all kinks meet at a point: deep trees of wide boxes
    head(torch.zeros(1, channels, size, size, requires_grad=True)).sum().backward()

step(96, 128)
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + 3 * 2**27, resource.RLIM_INFINITY))
for _ in range(5):
    try:
        step(160, 200)
    except MemoryError:
        step(96, 128)
    else:
        raise AssertionError("there was enough memory: the test tests nothing")
"""


def test_a_call_that_runs_out_of_memory_gives_it_back():
    # The C library returns each block at once and reserves no address space for threads: what is left is what counts.
    settings = {"MALLOC_MMAP_THRESHOLD_": str(2**17), "MALLOC_ARENA_MAX": "1"}
    run_python("-c", SHORT_OF_MEMORY, env=settings)


def test_the_result_does_not_depend_on_the_number_of_threads():
    inputs = make_inputs((200, 200), batch=2, channels=6, hidden=(48, 48), classes=2)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(evaluate(scp, inputs, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    for logits, gradients in results[1:]:
        assert torch.equal(logits, results[0][0])
        for name, gradient in gradients.items():
            assert torch.equal(gradient, results[0][1][name]), name


@pytest.mark.parametrize("shape", [(18, 17), (7, 7, 7)], ids=str)
def test_gradcheck(shape):
    agree_with_finite_differences(shape, "cpu")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    shape=shapes((40, 60), (9, 9, 20)),
    batch=st.integers(1, 4),
    channels=st.integers(1, 20),
    classes=st.integers(1, 3),
    hidden=widths(40),
    seed=st.integers(0, 10**6),
)
def test_any_size_and_width(shape, batch, channels, classes, hidden, seed):
    inputs = make_inputs(
        shape, batch=batch, channels=channels, classes=classes, hidden=hidden, bias=True, dtype=torch.float64, seed=seed
    )
    check(inputs)


def test_operators_pass_opcheck_and_compile():
    from scp_kernels import ops
    from scp_kernels.positions import identity_affine, position_matrix

    inputs = make_inputs((18, 20), classes=2, bias=True)
    matrix = position_matrix(identity_affine(2, torch.device("cpu")), torch.tensor([18.0, 20.0]).double(), "pixels")
    tensors = [t.clone().requires_grad_() for t in inputs.tensors]
    torch.library.opcheck(ops.scp_forward, [*tensors, matrix, "cpu"])
    head = FusedSCP(3, 2, (8, 6), bias=True, backend="cpu", position="centered")
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (2, 5):
        x = torch.randn(batch, 3, 18, 20)
        assert torch.equal(compiled(x), head(x))


def test_the_report_of_the_last_call():
    inputs = make_inputs((160, 224), batch=1, channels=32, hidden=(256, 256))
    with torch.no_grad():
        scp(inputs.features, inputs.phi, inputs.residual, backend="cpu")
    forward = cpu.last_report()
    assert not forward.dense and forward.pixels == 160 * 224 and forward.leaves > 100
    assert forward.dense_macs == 4 * 256 + 256 * 256 + 256 * 32
    # The claim of the project: exact evaluation with a small part of the operations.
    assert forward.macs < forward.dense_macs / 40
    leaves = [t.clone().requires_grad_() for t in (inputs.features, *inputs.phi, inputs.residual)]
    logits = scp(leaves[0], leaves[1:7], leaves[7], backend="cpu")
    torch.autograd.grad(logits, leaves, inputs.grad_logits)
    backward = cpu.last_report()
    assert backward.nodes == forward.nodes and backward.map_pixels == 160 * 224
    # Both gradients, of every product: about twice a forward for what is adjoint, and W again.
    assert 2 * forward.macs < backward.macs < 2 * forward.dense_macs / 15
    scp(inputs.features[..., :16, :16], inputs.phi, inputs.residual, backend="cpu")
    assert cpu.last_report().dense
