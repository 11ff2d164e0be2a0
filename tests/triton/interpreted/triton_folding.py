"""Folding under Triton's interpreter: which units are unstable, and what is executed. See ``triton_kernels.py``."""

import itertools
from functools import partial

import pytest
import torch

from benchmarks import tune
from scp_kernels import count_macs
from scp_kernels.backends import triton as triton_backend
from scp_kernels.backends.triton import executed_macs, interpreting, launch, supertiles, tables
from scp_kernels.backends.triton.folding import OUTSIDE
from scp_kernels.positions import first_layer_coefficients, identity_affine, position_matrix
from scp_kernels.problem import GradientNeeds, Problem, SCPInputs
from tests.support.agreement import agree, slices_of_a_volume
from tests.support.poison import poisoned_memory  # noqa: F401  (of every test)
from tests.support.problems import make_inputs
from tests.support.tolerances import GRADIENTS, relative_error
from tests.support.triton_interpreter import SMALL

assert interpreting(), "TRITON_INTERPRET=1 has to be set before Triton is imported"

pytestmark = pytest.mark.usefixtures("every_access")
check = partial(agree, backend="triton")


@pytest.mark.parametrize(("capacity", "overflows"), [(0, (6, 10)), (8, (4, 6)), (12, (2, 0))])
def test_overflow_boxes_are_exact(small_blocks, monkeypatch, capacity, overflows):
    """With more unstable units than a box may have: all boxes, supertiles and some of their tiles, supertiles alone."""
    monkeypatch.setattr(supertiles, "row_capacity", lambda problem: capacity)
    inputs = make_inputs((7, 19), classes=2, hidden=(24, 11), bias=True, seed=3)
    check(inputs, position="centered")
    problem = Problem(**SMALL | {"hidden": (24, 11), "spatial_shape": (7, 19), "batch": 2})
    extent = torch.tensor([7.0, 19.0]).double()
    matrix = position_matrix(identity_affine(2, extent.device), extent, "centered")
    passes = launch.forward_sequence(SCPInputs(inputs.features, inputs.phi, inputs.residual, None, matrix, problem), 75)
    passes.run()
    sizes = {}
    for item in passes.launches:
        if item.kernel.__name__ == "scp_fold_hidden_fwd_kernel":
            sizes[item.arguments["ROOT"]] = executed_macs.unstable_units(item)[0]
    assert tuple(int((sizes[root] > capacity).sum()) for root in (True, False)) == overflows


@pytest.mark.parametrize("programs", [1, 2])
def test_programs_take_turns_at_rows(small_blocks, monkeypatch, programs):
    """Tiles have up to 12 unstable units (above), and a program folds the outputs of 8 at a time."""
    monkeypatch.setattr(tables, "TILE_ROW_PROGRAMS", programs)
    check(make_inputs((7, 19), classes=2, hidden=(24, 11), bias=True, seed=3), position="centered")


@pytest.mark.parametrize("capacity", [pytest.param(0, marks=pytest.mark.thorough), 4])
def test_overflow_boxes_of_slices_of_a_volume(small_blocks, monkeypatch, capacity):
    """Two maps in 3-D space: boxes overflow, and every access is looked at."""
    monkeypatch.setattr(supertiles, "row_capacity", lambda problem: capacity)
    inputs = make_inputs((7, 19), batch=2, hidden=(24, 11), bias=True, seed=3, position_dims=3)
    maps = slices_of_a_volume(2)
    check(inputs, **maps)
    problem = Problem(
        **SMALL | {"hidden": (24, 11), "spatial_shape": (7, 19), "batch": 2, "num_classes": 1, "groups": 2}
    )
    matrix = position_matrix(maps["affine"], maps["extent"], "pixels")
    passes = launch.forward_sequence(SCPInputs(inputs.features, inputs.phi, inputs.residual, None, matrix, problem), 75)
    passes.run()
    folds = [item for item in passes.launches if item.kernel.__name__ == "scp_fold_hidden_fwd_kernel"]
    unstable = [executed_macs.unstable_units(item)[0] for item in folds]
    assert any((sizes > capacity).any() for sizes in unstable)


def test_unstable_units_of_layer_1_are_those_that_change_sign_on_a_tile(small_blocks):
    """On a tile, an affine function changes its sign at a corner or nowhere."""
    inputs = make_inputs((13, 37), channels=3, hidden=(21, 18))
    extent = torch.tensor([13.0, 37.0]).double()
    matrix = position_matrix(identity_affine(2, extent.device), extent, "pixels")
    coefficients = first_layer_coefficients(*inputs.phi[:2], matrix)
    problem = Problem(**SMALL | {"batch": 1, "num_classes": 1, "hidden": (21, 18), "spatial_shape": (13, 37)})
    passes = launch.forward_sequence(
        SCPInputs(inputs.features[:1], inputs.phi, inputs.residual, None, matrix, problem), 75
    )
    passes.run()
    expected = []
    for super_row, super_column, column in itertools.product(range(0, 13, 4), range(0, 37, 8), (0, 4)):
        if super_column + column >= 37:
            continue
        corners = [[super_row + i, super_column + column + j, 1.0] for i in (0, 3) for j in (0, 3)]
        values = coefficients[0] @ torch.tensor(corners, dtype=torch.float64).T  # [h1, 4]
        expected.append(int(((values > 0).any(1) & (values < 0).any(1)).sum()))
    unstable1, _ = executed_macs.unstable_units(passes.launches[-1])
    assert unstable1.tolist() == expected and sum(expected) > 0


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.thorough) for n in (1, 2))])
def test_no_unit_of_layer_2_that_changes_sign_is_folded(seed):
    """On a box every unit is listed with its class; one that is above 0 at a pixel and below at another is unstable."""
    height, width = 40, 32
    inputs = make_inputs((height, width), channels=3, hidden=(32, 40), seed=seed)
    extent = torch.tensor([height, width], dtype=torch.float64)
    matrix = position_matrix(identity_affine(2, extent.device), extent, "pixels")
    problem = Problem(**SMALL | {"batch": 2, "num_classes": 1, "hidden": (32, 40), "spatial_shape": (height, width)})
    passes = launch.forward_sequence(SCPInputs(inputs.features, inputs.phi, inputs.residual, None, matrix, problem), 75)
    i, j = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    w1, b1, w2, b2, *_ = (t.double() for t in inputs.phi)
    s = torch.stack([i, j, height - i, width - j]).flatten(1).double()
    z = (w2 @ (w1 @ s + b1[:, None]).relu() + b2[:, None]).view(40, height, width)
    bends = 0
    for item in passes.launches[:-1]:
        item.run()
        if item.kernel.__name__ != "scp_fold_hidden_fwd_kernel":
            continue
        box = item.arguments["BOX_H"]
        for number, (hidden, counts) in enumerate(
            zip(item.arguments["unit2"], item.arguments["counts"].tolist(), strict=True)
        ):
            supertile, inner = divmod(number, (32 // box) ** 2)
            row, column = 32 * supertile + inner // (32 // box) * box, inner % (32 // box) * box
            if row >= height:
                continue
            values = z[:, row : row + box, column : column + box].flatten(1)
            changes = (values > 1e-6).any(1) & (values < -1e-6).any(1)
            unstable = torch.zeros(40, dtype=torch.bool)
            unstable[hidden[40 - counts[3] :].long()] = True
            assert not (changes & ~unstable).any()
            bends += int(changes.sum())
            assert (values[hidden[: counts[2]].long()] > 0).all(), "active units"
    assert bends > 50


def test_executed_multiply_adds():
    """Without unstable units they are known from the sizes; each unstable unit adds to them."""
    inputs = make_inputs((32, 32), batch=1, channels=16, hidden=(32, 64))
    w1, b1, w2, b2, *rest = inputs.phi
    every_unit = torch.full_like(w2, 0.1)

    def executed(second: torch.Tensor, bias: torch.Tensor, backward: bool) -> int:
        problem = Problem(1, 16, 1, (32, 64), (32, 32), 1, torch.float32, torch.float32, torch.device("cpu"))
        extent = torch.tensor([32.0, 32.0]).double()
        matrix = position_matrix(identity_affine(2, extent.device), extent, "pixels")
        phi = (w1, bias, second, b2, *rest)
        call = SCPInputs(inputs.features, phi, inputs.residual, None, matrix, problem)
        if backward:
            sequence = launch.backward_sequence(call, inputs.grad_logits, GradientNeeds(True, True), 75)
        else:
            sequence = launch.forward_sequence(call, 75)
        with count_macs() as count:
            triton_backend._run(sequence)
        return count.macs

    # All units of both layers are active on the supertile, and no tile has anything left to classify.
    classify, fold_hidden, fold_outputs = 32 * 3 * 4, 3 * 32 * 128, 3 * 64 * 16
    on_tiles = 16 * 16 * 2  # recentring
    pixels = 32 * 32 * 16 * 2  # two slopes
    forward = executed(every_unit, b1 + 1e4, False)
    assert forward == classify + fold_hidden + fold_outputs + on_tiles + pixels
    backward = executed(every_unit, b1 + 1e4, True)
    unfold = 2 * 64 * 16 * 3 + 6 * 32 * 64 + 32 * 3 * 8
    assert backward == forward + pixels + on_tiles + unfold
    assert executed(w2, b1, False) > forward and executed(w2, b1, True) > backward


def test_collecting_counts_tiles_outside_of_the_map():
    """All tiles of a supertile are loaded at once, those outside as 0: masked lanes execute, too."""
    inputs = make_inputs((32, 8), batch=1, channels=16, hidden=(32, 64))
    problem = Problem(1, 16, 1, (32, 64), (32, 8), 1, torch.float32, torch.float32, torch.device("cpu"))
    extent = torch.tensor([32.0, 8.0]).double()
    matrix = position_matrix(identity_affine(2, extent.device), extent, "pixels")
    call = SCPInputs(inputs.features, inputs.phi, inputs.residual, None, matrix, problem)
    sequence = launch.backward_sequence(call, inputs.grad_logits, GradientNeeds(False, True), 75)
    (collect,) = (item for item in sequence.launches if item.kernel.__name__ == "scp_collect_bwd_kernel")
    inside = torch.arange(16) % 4 == 0
    collect.arguments["counts"][:, 0] = torch.where(inside, 5, OUTSIDE.value)  # active units of layer 1
    collect.arguments["counts"][:, 1] = 0
    collect.arguments["parent_counts"][:] = torch.tensor([20, 6, 0, 40])
    block_u, block_k = tables.COLLECT["BLOCK_U"], tables.COLLECT["BLOCK_K"]
    rows = 2 * 16 * -(-40 // block_k) * block_k
    assert executed_macs.macs(collect) == rows + 16 * (2 * 16 + 3 * 4 * -(-5 // block_u) * block_u)


@pytest.mark.parametrize("kernel", tune.KERNELS)
def test_the_tuner_compares_like_with_like(kernel):
    """Another configuration gives what the table's own gives: the same inputs, whatever each allocates beside them."""
    problem = Problem(1, 8, 1, (9, 17), (6, 20), 1, torch.float32, torch.float32, torch.device("meta"))

    def result() -> torch.Tensor:
        sequence = tune.on_device(tune.launches_of(kernel, problem, 75), problem, torch.device("cpu"))
        first = tune.result(sequence, kernel)
        assert torch.equal(tune.result(sequence, kernel), first), "what is timed again and again is a whole pass"
        return first

    expected = result()
    with tune.first_in_table(kernel, tables.Configuration((4, 16), 16, 16, 4)):
        assert relative_error(result(), expected) <= GRADIENTS[torch.float32]
    assert expected.norm() > 0
