"""The Triton kernels under Triton's interpreter, against the float64 reference. Run by ``test_interpreter.py``.

Not collected by itself: ``TRITON_INTERPRET=1`` has to stand in the environment before Triton is first imported, and
must not reach other tests. By hand: ``TRITON_INTERPRET=1 pytest tests/triton/interpreted/triton_kernels.py``.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch

from scp_kernels import available_backends, dispatch, scp, scp_reference
from scp_kernels.backends.triton import interpreting, sequence, tables
from scp_kernels.backends.triton.supertiles import Boxes
from scp_kernels.positions import position_matrix
from scp_kernels.problem import Problem
from tests.support.agreement import VOLUME_MAPS, agree, slices_of_a_volume
from tests.support.allocations import allocated_beyond_results
from tests.support.poison import poison, poisoned_memory  # noqa: F401  (the latter of every test)
from tests.support.problems import Inputs, evaluate, make_inputs
from tests.support.tolerances import LOGITS, relative_error
from tests.support.triton_accesses import random_program_order
from tests.support.triton_interpreter import SMALL
from tests.support.unavailable_backend import UnavailableBackend

assert interpreting(), "TRITON_INTERPRET=1 has to be set before Triton is imported"

pytestmark = pytest.mark.usefixtures("every_access")
check = partial(agree, backend="triton")


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_channels_in_several_launches(small_blocks, dtype):
    check(make_inputs((3, 7), channels=35, classes=2, hidden=(6, 7), bias=True, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_classes_in_several_launches(small_blocks, dtype):
    check(make_inputs((3, 7), channels=2, classes=35, hidden=(6, 7), bias=True, dtype=dtype))


def test_sums_over_launches_are_rounded_once(small_blocks):
    """Half precision is float32's result, rounded: bit for bit, so nothing was rounded on the way."""
    inputs = make_inputs((3, 7), channels=18, classes=18, hidden=(6, 7), dtype=torch.bfloat16)
    single = replace(inputs, features=inputs.features.float(), grad_logits=inputs.grad_logits.float())
    half = gradient_of_features(inputs.features, inputs, inputs.grad_logits)
    for out, exact in zip(half, gradient_of_features(single.features, single, single.grad_logits), strict=True):
        assert torch.equal(out, exact.bfloat16())


@pytest.mark.parametrize("most_slabs", [1, *(pytest.param(n, marks=pytest.mark.thorough) for n in (2, 4)), 7])
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


POISONS = [(torch.nan, None), (0.0, 0), (-3e38, -1)]


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.thorough) for n in range(1, len(POISONS)))])
def test_no_bit_depends_on_program_order_or_fresh_memory(small_blocks, monkeypatch, seed):
    """Programs run in any order on a GPU, and memory holds anything: nothing is read before it is written."""
    monkeypatch.setattr(tables, "MOST_SLABS", 3)
    inputs = make_inputs((7, 19), channels=5, classes=2, hidden=(24, 11), bias=True)
    logits, gradients = evaluate(scp, inputs, backend="triton")
    poison(monkeypatch, *POISONS[seed])
    with random_program_order(seed):
        again, gradients_again = evaluate(scp, inputs, backend="triton")
    assert torch.equal(again, logits)
    for name, gradient in gradients.items():
        assert torch.equal(gradients_again[name], gradient), name


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
    folding = ["scp_classify_fwd_kernel", "scp_fold_hidden_fwd_kernel", "scp_fold_outputs_fwd_kernel"]
    folded = ["scp_prepare_fwd_kernel", *folding * 2]  # supertiles and tiles
    unfold = ["scp_fold_bwd_kernel", "scp_collect_bwd_kernel", "scp_fold_bwd_kernel", "scp_sum_slabs_bwd_kernel"]
    backward = unfold if name != "features" else []
    assert ran == [*folded, "scp_fwd_kernel", *folded, f"scp_bwd_{part}_kernel", *backward]


def launched(monkeypatch) -> list[str]:
    """The kernels launched from here on, by name."""
    ran = []
    run = sequence.Launch.run
    monkeypatch.setattr(sequence.Launch, "run", lambda self: (ran.append(self.kernel.__name__), run(self)))
    return ran


@pytest.mark.parametrize("option", ["centered", "one per sample"])
@pytest.mark.parametrize("supertiles", [1, 3])
def test_any_number_of_chunks_gives_the_same(small_blocks, monkeypatch, option, supertiles):
    """One supertile kept at a time, or three, in several position maps or one, and a smaller last chunk."""
    ran = launched(monkeypatch)
    inputs = make_inputs((7, 9), batch=3, classes=2, hidden=(9, 7), bias=True)
    bytes_of_one = Boxes.bytes_per_box(Problem(**SMALL), True) * (1 + 2)
    monkeypatch.setattr(tables, "FOLDED_BYTES", supertiles * bytes_of_one)
    check(inputs, **OPTIONS[option])
    groups = 3 if option == "one per sample" else 1
    chunks = -(-groups * 2 * 2 // supertiles)  # in the backward pass; the forward keeps more, having no gradients
    assert ran.count("scp_collect_bwd_kernel") == chunks > 1


def test_passes_with_tiles_of_different_sizes_fold_each_its_own(monkeypatch):
    ran = launched(monkeypatch)
    wide = [
        replace(entry, configuration=replace(entry.configuration, tile=(2, 8)))
        if entry.kernel == tables.FEATURES
        else entry
        for entry in tables.TABLE
    ]
    check(make_inputs((7, 19), hidden=(9, 7)))
    assert ran.count("scp_classify_fwd_kernel") == 4
    monkeypatch.setattr(tables, "TABLE", wide)
    check(make_inputs((7, 19), hidden=(9, 7)))
    assert ran.count("scp_classify_fwd_kernel") == 4 + 6


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
    monkeypatch.setattr(tables, "SUPERTILE", (1, 512))
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
    """Of a unit of layer 1 that is inactive everywhere, too: 0 · NaN, as in PyTorch."""
    inputs = make_inputs((3, 4))
    inputs.phi[1][2] = -1e6
    inputs.phi[2][0, 2] = torch.nan
    assert scp(inputs.features, inputs.phi, inputs.residual, backend="triton").isnan().all()


def test_infinite_hidden_units_give_infinite_logits():
    """Not NaN by way of the channels that pad a block."""
    inputs = make_inputs((3, 4), channels=1)
    inputs.phi[3][0] = torch.inf
    assert scp(inputs.features, inputs.phi, inputs.residual, backend="triton").isinf().all()
