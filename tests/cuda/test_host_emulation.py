"""The CUDA kernels' own code, run on the host as a block of threads runs it, against the float64 reference."""

from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scp_kernels import BackendUnavailable, count_macs, scp, scp_reference
from scp_kernels.backends.cuda import requirements, sized_cuda_call
from tests.support.agreement import (
    NON_FINITE,
    POSITION_MAPS,
    VIEWS,
    VOLUME_MAPS,
    agree,
    agree_where_not_finite,
    agree_with_finite_differences,
    integer_inputs,
    slices_of_a_volume,
)
from tests.support.cuda_host import ON_THE_HOST, ORDER_VARIABLE, HostCuda, build, problem_like
from tests.support.poison import poisoned_memory  # noqa: F401  (of every test)
from tests.support.problems import away_from_kinks, evaluate, make_inputs
from tests.support.strategies import shapes, widths
from tests.support.tolerances import GRADIENTS, LOGITS, relative_error

pytestmark = ON_THE_HOST
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
check = partial(agree, backend="cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(37, 41), (9, 10, 11)], ids=str)
def test_every_dtype(dtype, shape):
    check(away_from_kinks(make_inputs(shape, channels=5, hidden=(40, 24), classes=3, bias=True, dtype=dtype)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (64, 64), (8, 16), (1, 1, 9)], ids=str)
def test_sizes(shape):
    check(away_from_kinks(make_inputs(shape, channels=8, hidden=(48, 40), classes=2, bias=True)))


@pytest.mark.parametrize("multiprocessors", [1, 4])
def test_the_papers_largest_head(host, multiprocessors):
    """With supertiles, and from the root; panels of layer 2 are narrower where shared memory is short."""
    inputs = away_from_kinks(make_inputs((40, 64), batch=2, channels=32, hidden=(256, 256)))
    host.multiprocessors = multiprocessors
    for host.shared_memory in (227 * 1024, 64 * 1024):
        check(inputs)


def test_narrow_panels_for_more_blocks():
    """Only where a multiprocessor then holds more blocks; the figures are those of docs/gpu.md."""
    for hidden, narrow, blocks in ((64, False, 4), (128, True, 4), (256, True, 3)):
        head = problem_like(make_inputs((160, 224), channels=hidden // 8, hidden=(hidden, hidden)))
        plenty, short = (
            requirements(build(), sized_cuda_call(head, kib * 1024, 30), False).shared_apply for kib in (227, 64)
        )
        assert (short < plenty) is narrow
        assert min(4, 64 * 1024 // short) == blocks
        assert narrow is (plenty * blocks > 64 * 1024)


@pytest.mark.parametrize("channels", [32, 33, 70])
@pytest.mark.parametrize("classes", [1, 2, 40])
def test_channels_and_classes_in_parts(channels, classes):
    """More of either than a thread holds at a time, and more samples than partial sums are kept for."""
    inputs = make_inputs((9, 18), batch=19, channels=channels, classes=classes, hidden=(12, 9), dtype=torch.float64)
    check(inputs)


@pytest.mark.parametrize("options", POSITION_MAPS, ids=range(len(POSITION_MAPS)))
def test_position_maps(options):
    check(away_from_kinks(make_inputs((40, 33), channels=6, hidden=(48, 32)), **options), **options)


@pytest.mark.parametrize("name", VOLUME_MAPS)
def test_slices_of_a_volume(name):
    options = VOLUME_MAPS[name]
    check(make_inputs((29, 33), batch=3, hidden=(24, 20), dtype=torch.float64, position_dims=3), **options)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dims=st.integers(2, 3), extra=st.integers(0, 2), batch=st.integers(1, 3), seed=st.integers(0, 10**6))
def test_any_number_of_position_axes(dims, extra, batch, seed):
    inputs = make_inputs(
        (9, 13, 4)[:dims], batch=batch, hidden=(12, 9), dtype=torch.float64, seed=seed, position_dims=dims + extra
    )
    check(inputs, position="centered", **slices_of_a_volume(batch, dims, dims + extra, seed))


@pytest.mark.parametrize("d", [2, 3])
def test_one_position_map_per_sample(d):
    g = torch.Generator().manual_seed(0)
    affine = torch.randn(3, d, d + 1, generator=g, dtype=torch.float64)
    inputs = make_inputs((12, 19, 7)[:d], batch=3, channels=6, hidden=(32, 32), dtype=torch.float64)
    check(inputs, affine=affine, extent=torch.full((3, d), 30.0, dtype=torch.float64))


@pytest.mark.parametrize("view", VIEWS)
def test_strides(view):
    inputs = make_inputs((29, 45), batch=2, channels=6, hidden=(32, 24))
    features = VIEWS[view](inputs.features)
    leaf = features.detach().requires_grad_()
    logits = scp(leaf, inputs.phi, inputs.residual, backend="cuda")
    # One number expanded to all pixels: a gradient that has no strides.
    (gradient,) = torch.autograd.grad(logits.sum(), leaf)
    assert gradient.stride() == torch.empty_like(features).stride()
    dense = features.double().clone().requires_grad_()
    truth = scp_reference(dense, [t.double() for t in inputs.phi], inputs.residual.double())
    (true_gradient,) = torch.autograd.grad(truth.sum(), dense)
    assert relative_error(logits, truth) <= LOGITS[torch.float32]
    assert relative_error(gradient, true_gradient) <= GRADIENTS[torch.float32]


@pytest.mark.parametrize("seed", range(4))
def test_kinks_on_pixels(seed):
    """No pixel is masked here: inactive means zero slope, at zero itself too."""
    check(integer_inputs((32, 48), (12, 10), seed))


def concurrent_lines(shape, h1, dtype=torch.float64, concurrent=None):
    """All units of layer 1, or some, bend along lines through one pixel, whose tile has as many unstable units."""
    inputs = make_inputs(shape, channels=3, classes=2, hidden=(h1, 20), dtype=dtype)
    w1, b1, *rest = inputs.phi
    size = torch.tensor([float(n) for n in shape], dtype=dtype)
    at = torch.cat([size // 2 + 0.25, size - size // 2 - 0.25])
    through = torch.arange(h1) < (h1 if concurrent is None else concurrent)
    inputs.phi = (w1, torch.where(through, -(w1 @ at), b1), *rest)
    return inputs


def concurrent_planes(shape, h1, dtype=torch.float64, batch=2):
    """The same where 2-D maps lie in 3-D space, each at a place of its own: the planes along which units bend meet all
    maps, and go through one of the pixels of each. Inputs, and their positions.
    """
    inputs = make_inputs(shape, batch=batch, channels=3, classes=2, hidden=(h1, 20), dtype=dtype, position_dims=3)
    maps = slices_of_a_volume(batch)
    extent, common = maps["extent"][0], torch.tensor([11.0, 23.0, 17.0], dtype=torch.float64)
    w1, _, *rest = inputs.phi
    inputs.phi = (w1, -(w1.double() @ torch.cat([common, extent - common])).to(w1.dtype), *rest)
    linear = maps["affine"][..., :2]
    pixels = torch.tensor([[shape[0] // (3 + b) + 0.25, shape[1] // (2 + b) + 0.25] for b in range(batch)]).double()
    affine = torch.cat([linear, (common - (linear @ pixels[:, :, None])[..., 0])[:, :, None]], 2)
    return inputs, {"affine": affine, "extent": extent}


def requirements_of(inputs, groups=1, multiprocessors=4, backward=True):
    call = sized_cuda_call(problem_like(inputs, groups), HostCuda().shared_memory, multiprocessors)
    return requirements(build(), call, backward)


def capacity(inputs):
    """Unstable units of layer 1 that a tile of the call's backward has room for."""
    return requirements_of(inputs).unstable_capacity


@pytest.mark.parametrize("shape", [(64, 96), (24, 24, 40)], ids=str)
def test_overflow_tiles(shape):
    """More unstable units than there is room for: layer 2 pixel by pixel, and gradients box by box."""
    inputs = concurrent_lines(shape, 90)
    assert capacity(inputs) < 90
    check(inputs)


@pytest.mark.parametrize("concurrent", range(30, 90, 10))
def test_overflow_tiles_of_supertiles(host, concurrent):
    """Of supertiles that have room for their unstable units, and of such that have not."""
    host.multiprocessors = 1
    inputs = concurrent_lines((64, 96), 90, concurrent=concurrent)
    assert capacity(inputs) < 40
    assert all(requirements_of(inputs, multiprocessors=1, backward=b).shared_supertiles > 0 for b in (False, True))
    check(inputs)


@pytest.mark.parametrize("shape", [(57, 96), (20, 24, 40)], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_devices_of_any_size(host, shape, batch):
    """Supertiles, or two pixels per thread in Apply, are for devices with much to do: the same results without."""
    inputs = away_from_kinks(make_inputs(shape, batch=batch, channels=6, classes=2, hidden=(48, 40), bias=True))
    many, some, few = (requirements_of(inputs, multiprocessors=count, backward=False) for count in (1, 5, 1000))
    assert many.shared_supertiles > 0 == some.shared_supertiles == few.shared_supertiles
    assert many.blocks_apply == some.blocks_apply < few.blocks_apply
    for host.multiprocessors in (1, 5, 1000):
        check(inputs)


def test_supertiles_where_they_pay():
    """By tiles, widths, kinds of gradients and multiprocessors; the figures are those of docs/gpu.md."""
    cases = (64, False, False), (64, True, False), (128, False, False), (128, True, True), (256, False, True)
    for hidden, backward, pays in cases:
        inputs = make_inputs((160, 224), channels=hidden // 8, hidden=(hidden, hidden))
        needs = requirements_of(inputs, multiprocessors=30, backward=backward)
        assert (needs.shared_supertiles > 0) is pays, (hidden, backward)
        assert needs.blocks_apply == 140


def test_windows_of_supertiles(host):
    """Folded supertiles so large that not all are in memory at a time; a window may end within a position map."""
    inputs = make_inputs((40, 70), batch=2, channels=32, classes=32, hidden=(60, 12), dtype=torch.float64)
    host.multiprocessors = 1
    assert requirements_of(inputs, groups=2, multiprocessors=1).windows > 1
    check(inputs, affine=torch.eye(2, 3).repeat(2, 1, 1) + torch.arange(2.0)[:, None, None] / 7)


def test_overflow_tiles_of_several_position_maps():
    """The tile in the middle of each map overflows, at another place on each."""
    inputs = concurrent_lines((64, 96), 90)
    assert capacity(inputs) < 90
    shift = torch.tensor([[9.0, -20.0], [-16.0, 30.0]], dtype=torch.float64)
    check(inputs, affine=torch.cat([torch.eye(2, dtype=torch.float64).repeat(2, 1, 1), shift[:, :, None]], 2))


def test_overflow_tiles_of_slices_of_a_volume():
    inputs, options = concurrent_planes((64, 96), 90)
    assert requirements_of(inputs, groups=2).unstable_capacity < 90
    check(inputs, **options)


def test_a_device_older_than_the_build(host, monkeypatch):
    monkeypatch.setattr(host, "capability", lambda device: 61)
    with pytest.raises(BackendUnavailable, match=r"compute capability 6.1; the library was built from \d"):
        check(make_inputs())


def test_small_maps_have_room_for_all():
    """Where a tile is a good part of the map, half of the units may be unstable on it."""
    inputs = concurrent_lines((16, 24), 90)
    assert capacity(inputs) == 90
    check(inputs)


def test_small_shared_memory(host):
    """Room for fewer unstable units, so that most tiles overflow."""
    problem_of = {"channels": 4, "classes": 2, "hidden": (60, 50), "dtype": torch.float64}
    before = check(make_inputs((24, 40), **problem_of))
    host.shared_memory = 54 * 1024
    after = check(make_inputs((24, 40), **problem_of))
    assert not torch.equal(before[1]["w2"], after[1]["w2"]), "the limit changed nothing: the test tests nothing"
    host.shared_memory = 16 * 1024
    with pytest.raises(BackendUnavailable, match="shared memory is too small"):
        check(make_inputs((24, 40), **problem_of))


def test_chunks():
    """Wide enough that partial gradients of all tiles do not fit at once; a chunk may end within a position map."""
    inputs = make_inputs((20, 34), batch=3, channels=64, classes=6, hidden=(6, 512), dtype=torch.float64)
    groups = torch.eye(2, 3, dtype=torch.float64).repeat(3, 1, 1) + torch.arange(3.0).double()[:, None, None] / 7
    call = sized_cuda_call(problem_like(inputs, groups=3), HostCuda().shared_memory, 4)
    assert requirements(build(), call, True).chunks > 1
    check(inputs, affine=groups)


@pytest.mark.parametrize("batch", [9, 14])
def test_samples_in_parts(host, batch):
    """Fewer tiles than a device has room for: several blocks per tile, each with some of the samples."""
    inputs = make_inputs((7, 30), batch=batch, channels=5, classes=2, hidden=(20, 16), dtype=torch.float64)
    host.multiprocessors = 1
    _, one = check(inputs)
    host.multiprocessors = 100
    _, several = check(inputs)
    assert not torch.equal(one["w2"], several["w2"]), "nothing was divided: the test tests nothing"


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("where", "value"), NON_FINITE)
def test_nan_and_inf_as_in_pytorch(where, value, batch):
    agree_where_not_finite(where, value, batch, "cuda")


@pytest.mark.parametrize(("where", "value"), NON_FINITE)
def test_gradients_never_hide_what_is_not_finite(where, value):
    inputs = make_inputs((20, 37), channels=3, hidden=(40, 10))
    names = inputs.names[:8]
    tensors = [t.clone().requires_grad_() for t in inputs.tensors[:8]]
    with torch.no_grad():
        tensors[names.index(where)].view(-1)[1] = value
    gradients = [
        torch.autograd.grad(function(tensors[0], tensors[1:7], tensors[7], **options), tensors, inputs.grad_logits)
        for function, options in ((scp, {"backend": "cuda"}), (scp_reference, {}))
    ]
    for name, gradient, truth in zip(names, *gradients, strict=True):
        assert torch.isfinite(gradient).all() <= torch.isfinite(truth).all(), name


def test_backward_ends_where_all_parameters_are_nan():
    """As after a training that diverged: more units that cannot be told apart than there is room for, on any box."""
    inputs = make_inputs((16, 48), hidden=(90, 20))
    assert capacity(inputs) < 90
    inputs.phi = tuple(torch.full_like(t, torch.nan) for t in inputs.phi)
    _, gradients = evaluate(scp, inputs, backend="cuda")
    assert all(gradients[name].isnan().all() for name in ("features", "w1", "b1", "w2", "b2"))


def test_the_order_of_threads_never_shows(monkeypatch):
    """A missing barrier would let it show. Several tiles, overflow tiles among them, and every kind of panel."""
    for inputs in (
        concurrent_lines((64, 80), 90, torch.float32),
        make_inputs((12, 10, 9), channels=40, hidden=(50, 70)),
    ):
        results = []
        for order in ("0", "1", "2", "3"):
            monkeypatch.setenv(ORDER_VARIABLE, order)
            results.append(evaluate(scp, inputs, backend="cuda"))
        for logits, gradients in results[1:]:
            assert torch.equal(logits, results[0][0])
            for name, gradient in gradients.items():
                assert torch.equal(gradient, results[0][1][name]), name


def test_only_some_gradients():
    inputs = make_inputs((20, 21), channels=4, hidden=(16, 16), dtype=torch.float64)
    _, every = evaluate(scp, inputs, backend="cuda")
    features = inputs.features.clone().requires_grad_()
    of_features = torch.autograd.grad(
        scp(features, inputs.phi, inputs.residual, backend="cuda"), features, inputs.grad_logits
    )
    residual = inputs.residual.clone().requires_grad_()
    of_residual = torch.autograd.grad(
        scp(inputs.features, inputs.phi, residual, backend="cuda"), residual, inputs.grad_logits
    )
    assert torch.equal(of_features[0], every["features"]) and torch.equal(of_residual[0], every["residual"])


@pytest.mark.parametrize("shape", [(18, 17), (7, 7, 7)], ids=str)
def test_gradcheck(shape):
    agree_with_finite_differences(shape, "cuda")


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    shape=shapes((30, 40), (9, 9, 12)),
    batch=st.integers(1, 4),
    channels=st.integers(1, 20),
    classes=st.integers(1, 3),
    hidden=widths(70),
    seed=st.integers(0, 10**6),
)
def test_any_size_and_width(shape, batch, channels, classes, hidden, seed):
    check(
        make_inputs(
            shape, batch=batch, channels=channels, classes=classes, hidden=hidden, bias=True, dtype=torch.float64,
            seed=seed,
        )
    )  # fmt: skip


def all_active(shape, channels, hidden):
    """A head whose units are all active, on the whole map."""
    inputs = make_inputs(shape, batch=1, channels=channels, hidden=hidden)
    w1, b1, w2, b2, *rest = inputs.phi
    inputs.phi = (w1.abs(), b1.abs() + 1, w2.abs(), b2.abs() + 1, *rest)
    return inputs


def executed(inputs):
    """Multiply-adds of a forward, and of both."""
    leaves = [t.clone().requires_grad_() for t in inputs.tensors[:8]]
    with count_macs() as count:
        logits = scp(leaves[0], leaves[1:7], leaves[7], backend="cuda")
        forward = count.macs
        torch.autograd.grad(logits, leaves, inputs.grad_logits)
    return forward, count.macs


def test_executed_multiply_adds_by_hand():
    """One tile, nothing unstable: every product of csrc/cuda can be told from the sizes."""
    h1, h2, channels = 24, 40, 20
    pixels, outputs = 128, 24  # evaluated in eights, folded in fours
    fold = 2 * 2 * h1 + 3 * h1 * h2
    apply = fold + 3 * h2 * channels + pixels * outputs * 2
    parts = (16 + 4) * (2 * 3 * h2 + pixels * 3 + 3)
    parameters = fold + parts + 3 * h1 * h2
    collect = 3 * h1 * h2
    assert executed(all_active((8, 16), channels, (h1, h2))) == (apply, 2 * apply + parameters + collect)


def test_executed_multiply_adds_of_supertiles_by_hand(host):
    """Supertiles of 8 tiles, folded once for both kernels of backward; tiles only recentre and inherit, as in a
    forward."""
    host.multiprocessors = 1
    h1, h2, channels, tiles = 24, 40, 20, 64
    supertiles = 8 * (2 * 2 * h1 + 3 * h1 * h2 + 3 * h2 * channels)
    apply = tiles // 2 * (2 * channels + 2 * 128 * 24 * 2)  # two pixels per thread
    parts = (16 + 4) * (2 * 3 * h2 + 128 * 3 + 3)
    parameters = tiles * (2 * 2 * h1 + 2 * h2 + parts + 3 * h1 * h2)
    collect = tiles * 3 * h1 * h2
    expected = (supertiles + apply, 2 * (supertiles + apply) + parameters + collect)
    assert executed(all_active((64, 128), channels, (h1, h2))) == expected


def test_executed_multiply_adds_of_unstable_units_and_overflow_tiles():
    straight, both = executed(all_active((16, 32), 3, (90, 20)))
    small = concurrent_lines((16, 32), 90, torch.float32)
    unstable, unstable_both = executed(small)
    assert unstable > straight and unstable_both - unstable > both - straight
    # On a larger map the same tile has less capacity, and each overflow tile is cut.
    assert capacity(concurrent_lines((64, 128), 90)) < 90
    overflow, overflow_both = executed(concurrent_lines((64, 128), 90, torch.float32))
    assert overflow > unstable and overflow_both - overflow > unstable_both - unstable
