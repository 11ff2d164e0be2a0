"""The Triton kernels under Triton's interpreter, against the float64 reference. Run by ``test_triton_interpreter.py``.

Not collected by itself: ``TRITON_INTERPRET=1`` has to stand in the environment before Triton is first imported, and
must not reach other tests. By hand: ``TRITON_INTERPRET=1 pytest tests/triton/interpreted/triton_kernels.py``.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks import tune
from scp_kernels import available_backends, count_macs, dispatch, scp, scp_reference
from scp_kernels.backends.triton import executed_macs, interpreting, launch, sequence, tables
from scp_kernels.positions import first_layer_coefficients, identity_affine, position_matrix
from scp_kernels.problem import Problem, SCPInputs
from tests.support.agreement import VOLUME_MAPS, agree, slices_of_a_volume
from tests.support.allocations import allocated_beyond_results
from tests.support.poison import poisoned_memory  # noqa: F401  (of every test)
from tests.support.problems import Inputs, evaluate, make_inputs
from tests.support.tolerances import GRADIENTS, LOGITS, relative_error
from tests.support.triton_accesses import checked_accesses
from tests.support.unavailable_backend import UnavailableBackend

assert interpreting(), "TRITON_INTERPRET=1 has to be set before Triton is imported"

check = partial(agree, backend="triton")


@pytest.fixture(autouse=True)
def every_access():
    """Is within its tensor, and races with no other, in all of these tests."""
    with checked_accesses():
        yield


SIZES = {
    "one pixel": {"shape": (1, 1), "batch": 1, "channels": 1, "hidden": (1, 1)},
    "no tile divides": {"shape": (7, 19)},
    "one row": {"shape": (1, 37), "channels": 5},
    "one column": {"shape": (21, 1), "channels": 17},
    "widths above a block": {"shape": (6, 17), "channels": 7, "hidden": (37, 71)},
    "layer 2 wider": {"shape": (5, 6), "hidden": (3, 65)},
    "classes": {"shape": (5, 18), "classes": 3, "channels": 6, "bias": True},
    "many classes": {"shape": (3, 5), "classes": 21, "channels": 5, "hidden": (8, 8), "bias": True},
    "3-D": {"shape": (3, 5, 6), "classes": 2, "bias": True},
}


@pytest.mark.parametrize("size", SIZES)
def test_sizes(size):
    check(make_inputs(**SIZES[size]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [1, 2])
def test_half_precision(dtype, classes):
    check(make_inputs((5, 18), classes=classes, channels=6, bias=True, dtype=dtype))


OPTIONS = {
    "centered": {"position": "centered"},
    "patch": {"origin": torch.tensor([3.0, 1.0]), "extent": torch.tensor([20.0, 30.0]), "position": "centered"},
    "affine": {"affine": torch.tensor([[0.5, 0.1, 3], [-0.2, 2.0, 1]], dtype=torch.float64)},
    "one per sample": {"affine": torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)},
    "outside": {"origin": torch.tensor([-9.0, -30.0]), "extent": torch.tensor([4.0, 4.0])},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_positions(option):
    check(make_inputs((6, 17), batch=3, classes=2, hidden=(18, 12)), **OPTIONS[option])


@pytest.mark.parametrize("option", VOLUME_MAPS)
def test_slices_of_a_volume(option):
    check(make_inputs((6, 17), batch=3, classes=2, hidden=(18, 12), position_dims=3), **VOLUME_MAPS[option])


@pytest.mark.parametrize(("shape", "axes"), [((5, 6), 4), ((3, 5, 6), 4)], ids=str)
def test_any_number_of_position_axes(shape, axes):
    inputs = make_inputs(shape, batch=2, hidden=(18, 12), position_dims=axes)
    check(inputs, position="centered", **slices_of_a_volume(2, len(shape), axes))


def test_float64_is_refused_with_a_reason():
    inputs = make_inputs((4, 5), dtype=torch.float64)
    with pytest.raises(dispatch.BackendUnavailable, match="float64 is not among"):
        scp(inputs.features, inputs.phi, inputs.residual, backend="triton")


def test_auto_never_picks_the_interpreter(monkeypatch):
    assert available_backends()["triton"].usable
    for name in ("cuda", "cpu"):
        monkeypatch.setitem(dispatch.BACKENDS, name, UnavailableBackend(name))
    problem = Problem(1, 3, 1, (4, 4), (5, 5), 1, torch.float32, torch.float32, torch.device("cpu"))
    assert dispatch.select(problem, "auto") == "reference"
    assert dispatch.select(problem, "triton") == "triton"


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks so small that channels and classes take several launches, and slabs several tiles and groups."""
    table = tuple(
        replace(entry, configuration=replace(entry.configuration, tile=(4, 4), block_outputs=16))
        for entry in tables.TABLE
    )
    monkeypatch.setattr(tables, "TABLE", table)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_channels_in_several_launches(small_blocks, dtype):
    check(make_inputs((3, 7), channels=35, classes=2, hidden=(6, 7), bias=True, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_classes_in_several_launches(small_blocks, dtype):
    check(make_inputs((3, 7), channels=2, classes=35, hidden=(6, 7), bias=True, dtype=dtype))


def test_sums_over_launches_are_rounded_once(small_blocks):
    """Half precision is float32's result, rounded: bit for bit, so nothing was rounded on the way."""
    inputs = make_inputs((3, 7), channels=35, classes=35, hidden=(6, 7), dtype=torch.bfloat16)
    single = replace(inputs, features=inputs.features.float(), grad_logits=inputs.grad_logits.float())
    half = gradient_of_features(inputs.features, inputs, inputs.grad_logits)
    for out, exact in zip(half, gradient_of_features(single.features, single, single.grad_logits), strict=True):
        assert torch.equal(out, exact.bfloat16())


@pytest.mark.parametrize("most_slabs", [1, 2, 4, 7])
def test_any_number_of_slabs_gives_the_same_sums(small_blocks, monkeypatch, most_slabs):
    """Slabs of several groups (three), parts of one group, and a last slab with less to do than the others."""
    monkeypatch.setattr(tables, "MOST_SLABS", most_slabs)
    check(make_inputs((7, 9), batch=3, hidden=(9, 7)), affine=OPTIONS["one per sample"]["affine"])


def gradient_of_features(features: torch.Tensor, inputs: Inputs, grad_logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    leaf = features.detach().requires_grad_()
    logits = scp(leaf, inputs.phi, inputs.residual, inputs.bias, backend="triton")
    return logits.detach(), *torch.autograd.grad(logits, leaf, grad_logits)


@pytest.mark.parametrize("dims", [2, 3])
def test_strides_are_addressed_not_copied(dims):
    """Channels-last, sliced and expanded features and gradients give what contiguous ones give, bit for bit."""
    inputs = make_inputs((6, 9) if dims == 2 else (2, 4, 5), channels=5, classes=2)
    expected, expected_gradient = gradient_of_features(inputs.features, inputs, inputs.grad_logits)
    form = torch.channels_last if dims == 2 else torch.channels_last_3d
    padded = torch.full([2 * n for n in inputs.features.shape], torch.nan)
    sliced = padded[tuple(slice(None, None, 2) for _ in inputs.features.shape)]
    sliced.copy_(inputs.features)
    for features in (inputs.features.contiguous(memory_format=form), sliced):
        logits, gradient = gradient_of_features(features, inputs, inputs.grad_logits.contiguous(memory_format=form))
        assert torch.equal(logits, expected) and torch.equal(gradient, expected_gradient)
        assert gradient.stride() == torch.empty_like(features).stride()
    _, gradient = gradient_of_features(inputs.features, inputs, torch.ones(1).expand_as(inputs.grad_logits))
    _, same = gradient_of_features(inputs.features, inputs, torch.ones_like(inputs.grad_logits))
    assert torch.equal(gradient, same)


def test_position_maps_of_any_strides():
    """The kernels read a map as if it were contiguous; a caller's need not be."""
    inputs = make_inputs((5, 6), batch=3)
    affine = OPTIONS["one per sample"]["affine"]
    matrix = position_matrix(affine, torch.tensor([5.0, 6.0]).double(), "pixels")
    logits = scp(inputs.features, inputs.phi, inputs.residual, affine=affine, backend="triton")
    strided = matrix.mT.contiguous().mT
    operator = torch.ops.scp_kernels.scp_forward
    assert torch.equal(operator(inputs.features, *inputs.phi, inputs.residual, None, strided, "triton"), logits)


def test_backward_is_reproducible_bit_for_bit():
    inputs = make_inputs((9, 20), channels=5, hidden=(20, 10))
    _, first = evaluate(scp, inputs, backend="triton")
    _, second = evaluate(scp, inputs, backend="triton")
    for name, gradient in first.items():
        assert torch.equal(gradient, second[name]), name


@pytest.mark.parametrize("name", ["features", "w1", "b3"])
def test_only_the_kernels_that_are_needed_run(monkeypatch, name):
    inputs = make_inputs((4, 5))
    ran = []
    run = sequence.Launch.run
    monkeypatch.setattr(sequence.Launch, "run", lambda self: (ran.append(self.kernel.__name__), run(self)))
    tensors = [
        t if t is None else t.clone().requires_grad_(n == name)
        for n, t in zip(inputs.names, inputs.tensors, strict=True)
    ]
    scp(tensors[0], tensors[1:7], tensors[7], backend="triton").backward(inputs.grad_logits)
    part = "features" if name == "features" else "parameters"
    folding = ["scp_classify_fwd_kernel", "scp_fold_fwd_kernel"]
    unfolding = ["scp_fold_bwd_w2_kernel", "scp_fold_bwd_w1_kernel"] if name != "features" else []
    assert ran == [*folding, "scp_fwd_kernel", *folding, f"scp_bwd_{part}_kernel", *unfolding]


def launched(monkeypatch) -> list[str]:
    """The kernels launched from here on, by name."""
    ran = []
    run = sequence.Launch.run
    monkeypatch.setattr(sequence.Launch, "run", lambda self: (ran.append(self.kernel.__name__), run(self)))
    return ran


@pytest.mark.parametrize("option", ["centered", "one per sample"])
@pytest.mark.parametrize("folded_bytes", [1, 1700])
def test_any_number_of_chunks_gives_the_same(small_blocks, monkeypatch, option, folded_bytes):
    """One folded tile kept at a time, or four, in several position maps or one, and a smaller last chunk."""
    ran = launched(monkeypatch)
    inputs = make_inputs((7, 9), batch=3, classes=2, hidden=(9, 7), bias=True)
    monkeypatch.setattr(tables, "FOLDED_BYTES", folded_bytes)
    check(inputs, **OPTIONS[option])
    assert ran.count("scp_classify_fwd_kernel") == 2 * ran.count("scp_fwd_kernel") > 2


def test_a_smaller_last_chunk_has_no_slabs_of_its_own(small_blocks, monkeypatch):
    """Four tiles are dealt to two slabs; the three that are left would fill three, of which one does not exist."""
    monkeypatch.setattr(tables, "FOLDED_BYTES", 1700)
    monkeypatch.setattr(tables, "MOST_SLABS", 3)
    check(make_inputs((3, 25), hidden=(9, 7)))


def test_passes_with_tiles_of_different_sizes_fold_each_its_own(monkeypatch):
    ran = launched(monkeypatch)
    wide = [
        replace(entry, configuration=replace(entry.configuration, tile=(2, 8)))
        if entry.kernel == tables.FEATURES
        else entry
        for entry in tables.TABLE
    ]
    check(make_inputs((7, 19), hidden=(9, 7)))
    assert ran.count("scp_classify_fwd_kernel") == 2
    monkeypatch.setattr(tables, "TABLE", wide)
    check(make_inputs((7, 19), hidden=(9, 7)))
    assert ran.count("scp_classify_fwd_kernel") == 2 + 3


def test_allocations_are_those_of_the_meta_device():
    """Real allocations of both passes are what the same calls allocate without memory (on ``meta``)."""
    inputs = make_inputs((6, 17), channels=5, hidden=(9, 7))
    with_memory = allocated_beyond_results(inputs)
    assert with_memory == allocated_beyond_results(inputs.to("meta"))
    assert max(with_memory.values()) <= tables.FOLDED_BYTES + tables.PARTIALS_BYTES


def kinked(shape: tuple[int, int], **options) -> Inputs:
    """Integers throughout, so that many kinks of both layers lie exactly on pixels and nothing is rounded."""
    inputs = make_inputs(shape, hidden=(12, 9), **options)
    g = torch.Generator().manual_seed(3)
    w1, b1, w2, b2, *rest = inputs.phi
    w1 = torch.randint(-1, 2, w1.shape, generator=g).float()
    b1 = torch.randint(-3, 4, b1.shape, generator=g).float()
    w2 = torch.randint(-1, 2, w2.shape, generator=g).float()
    b2 = torch.randint(-3, 4, b2.shape, generator=g).float()
    return replace(inputs, phi=(w1, b1, w2, b2, *rest))


def test_kinks_on_pixels():
    """ReLU'(0) = 0 in both layers."""
    inputs = kinked((8, 17))
    w1, b1, w2, b2, *_ = inputs.phi
    i, j = torch.meshgrid(torch.arange(8.0), torch.arange(17.0), indexing="ij")
    first = w1 @ torch.stack([i, j, 8 - i, 17 - j]).flatten(1) + b1[:, None]
    second = w2 @ first.relu() + b2[:, None]
    assert (first == 0).sum() > 20 and (second == 0).sum() > 20
    check(inputs)


def test_kinks_keep_their_places_far_out(monkeypatch):
    """Every unit bends within the last pixels of a long row; float32 coordinates would lose their last digits there."""
    table = [replace(entry, configuration=replace(entry.configuration, tile=(1, 128))) for entry in tables.TABLE]
    monkeypatch.setattr(tables, "TABLE", table)
    width = 3072
    inputs = make_inputs((1, width), batch=1, channels=2, hidden=(24, 8))
    w1, _, *rest = inputs.phi
    bends = width - 3 - 10 * torch.rand(24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s = torch.stack([torch.zeros_like(bends), bends, torch.ones_like(bends), width - bends])  # [4, h₁]
    inputs = replace(inputs, phi=(w1, -(w1.double().T * s).sum(0).float(), *rest))
    truth = scp_reference(inputs.features.double(), [t.double() for t in inputs.phi], inputs.residual.double())
    logits = scp(inputs.features, inputs.phi, inputs.residual, backend="triton")
    assert relative_error(logits[..., -16:], truth[..., -16:]) <= LOGITS[torch.float32]
    assert relative_error(logits, truth) <= LOGITS[torch.float32]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_bad_features_stay_bad_and_stay_where_they_are(value):
    inputs = make_inputs((4, 18), classes=2)
    inputs.features[1, 2, 3, 17] = value
    logits = scp(inputs.features, inputs.phi, inputs.residual, backend="triton")
    bad = ~logits.isfinite()
    assert bad[1, :, 3, 17].all() and bad.sum() == 2


def test_nan_in_the_first_layers_parameters_reaches_the_logits():
    inputs = make_inputs((3, 4))
    inputs.phi[1][2] = torch.nan
    assert scp(inputs.features, inputs.phi, inputs.residual, backend="triton").isnan().all()


def test_nan_in_the_second_layers_weights_reaches_the_logits():
    """Of a unit of layer 1 that is off everywhere, too: 0 · NaN, as in PyTorch."""
    inputs = make_inputs((3, 4))
    inputs.phi[1][2] = -1e6
    inputs.phi[2][0, 2] = torch.nan
    assert scp(inputs.features, inputs.phi, inputs.residual, backend="triton").isnan().all()


def test_infinite_hidden_units_give_infinite_logits():
    """Not NaN by way of the channels that pad a block."""
    inputs = make_inputs((3, 4), channels=1)
    inputs.phi[3][0] = torch.inf
    assert scp(inputs.features, inputs.phi, inputs.residual, backend="triton").isinf().all()


def test_unstable_units_are_those_that_change_sign_on_a_tile():
    """On a tile, an affine function changes its sign at a corner or nowhere."""
    inputs = make_inputs((13, 37), channels=3, hidden=(21, 18))
    matrix = position_matrix(identity_affine(2, torch.device("cpu")), torch.tensor([13.0, 37.0]).double(), "pixels")
    coefficients = first_layer_coefficients(*inputs.phi[:2], matrix)
    problem = Problem(1, 3, 1, (21, 18), (13, 37), 1, torch.float32, torch.float32, torch.device("cpu"))
    call = SCPInputs(inputs.features[:1], inputs.phi, inputs.residual, None, matrix, problem)
    passes = launch.forward(call, 75)
    passes.run()
    item = passes.launches[-1]
    height, width = item.arguments["TILE_H"], item.arguments["TILE_W"]
    found = []
    for row in range(0, 13, height):
        for column in range(0, 37, width):
            corners = [[i, j, 1.0] for i in (row, row + height - 1) for j in (column, column + width - 1)]
            values = coefficients[0] @ torch.tensor(corners, dtype=torch.float64).T  # [h1, 4]
            found.append(int(((values > 0).any(1) & (values < 0).any(1)).sum()))
    assert executed_macs.unstable_units(item).tolist() == found and sum(found) > 0


def test_executed_multiply_adds():
    """Without unstable units they are known from the sizes; each unstable unit adds to them."""
    inputs = make_inputs((8, 16), batch=1, channels=16, hidden=(32, 64))
    w1, b1, *rest = inputs.phi

    def executed(bias: torch.Tensor) -> tuple[int, int]:
        leaf = inputs.features.clone().requires_grad_()
        parameters = [t.clone().requires_grad_() for t in (w1, bias, *rest)]
        with count_macs() as count:
            logits = scp(leaf, parameters, inputs.residual, backend="triton")
            forward = count.macs
            torch.autograd.grad(logits.sum(), [leaf, *parameters])
        return forward, count.macs - forward

    pixels, tiles, classified = 8 * 16, forward_tiles(inputs), 32 * 3 * 4
    forward, backward = executed(b1 + 1e4)
    folded = 32 * 64 * 32  # rows of all tiles, padded to a block
    assert 3 * tiles <= 32
    assert forward == tiles * classified + folded + pixels * 64 * (2 + 16)
    assert backward > 2 * forward
    unstable_forward, unstable_backward = executed(b1)
    assert unstable_forward > forward and unstable_backward > backward


def forward_tiles(inputs: Inputs) -> int:
    """Tiles of the forward kernel, which divide this map."""
    problem = Problem(1, 16, 1, (32, 64), (8, 16), 1, torch.float32, torch.float32, torch.device("cpu"))
    matrix = torch.zeros(4, 3, dtype=torch.float64)
    passes = launch.forward(SCPInputs(inputs.features, inputs.phi, inputs.residual, None, matrix, problem), 75)
    height, width = (passes.launches[-1].arguments[name] for name in ("TILE_H", "TILE_W"))
    assert 8 % height == 0 and 16 % width == 0
    return 8 * 16 // (height * width)


@pytest.mark.parametrize("kernel", tune.KERNELS)
def test_the_tuner_compares_like_with_like(kernel):
    """Another configuration gives what the table's own gives: the same inputs, whatever each allocates beside them."""
    problem = Problem(1, 8, 1, (9, 17), (6, 20), 1, torch.float32, torch.float32, torch.device("meta"))

    def result() -> torch.Tensor:
        return tune.result(tune.on_device(tune.launches_of(kernel, problem, 75), problem, torch.device("cpu")), kernel)

    own = result()
    with tune.first_in_table(kernel, tables.Configuration((8, 8), 32, 16, 4)):
        assert relative_error(result(), own) <= GRADIENTS[torch.float32]
    assert own.norm() > 0
