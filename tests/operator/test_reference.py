"""The reference against the definition, evaluated one pixel at a time in numpy."""

import numpy as np
import pytest
import torch

from scp_kernels import scp, scp_reference
from tests.support.problems import by_definition, evaluate, make_inputs
from tests.support.tolerances import GRADIENTS, LOGITS, relative_error

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("position", ["pixels", "centered"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("classes", [1, 3])
def test_logits_are_the_definition(shape, classes, position):
    inputs = make_inputs(shape, classes=classes, bias=classes > 1, dtype=torch.float64)
    logits = scp_reference(inputs.features, inputs.phi, inputs.residual, inputs.bias, position=position)
    expected = torch.from_numpy(by_definition(inputs, position=position))
    assert relative_error(logits, expected) <= LOGITS[torch.float64]


@pytest.mark.parametrize("position", ["pixels", "centered"])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("per_sample", [False, True])
def test_affine_and_extent(dims, per_sample, position):
    rng = np.random.default_rng(dims)
    shape = (4, 5, 3)[:dims]
    lead = (2,) if per_sample else ()
    affine = rng.normal(size=(*lead, dims, dims + 1)) * 3
    extent = rng.uniform(5, 40, size=(*lead, dims))
    inputs = make_inputs(shape, dtype=torch.float64)
    logits = scp(
        inputs.features, inputs.phi, inputs.residual,
        affine=torch.from_numpy(affine), extent=torch.from_numpy(extent), position=position, backend="reference",
    )  # fmt: skip
    expected = by_definition(inputs, affine=affine, extent=extent, position=position)
    assert relative_error(logits, torch.from_numpy(expected)) <= LOGITS[torch.float64]


@pytest.mark.parametrize("position", ["pixels", "centered"])
def test_a_crop_gives_the_crop_of_the_logits(position):
    inputs = make_inputs((9, 11), dtype=torch.float64)
    whole = scp(inputs.features, inputs.phi, inputs.residual, position=position)
    patch = inputs.features[:, :, 2:8, 3:7]
    for function in (scp, scp_reference):
        crop = function(patch, inputs.phi, inputs.residual, origin=(2, 3), extent=(9, 11), position=position)
        assert relative_error(crop, whole[:, :, 2:8, 3:7]) <= LOGITS[torch.float64]


def test_a_flip_and_a_rotation_by_their_affines():
    inputs = make_inputs((6, 8), dtype=torch.float64)
    whole = scp(inputs.features, inputs.phi, inputs.residual)
    flipped = scp(inputs.features.flip(-1), inputs.phi, inputs.residual, affine=[[1, 0, 0], [0, -1, 7]])
    assert relative_error(flipped.flip(-1), whole) <= LOGITS[torch.float64]
    turned = scp(
        inputs.features.rot90(1, (2, 3)), inputs.phi, inputs.residual, affine=[[0, 1, 0], [-1, 0, 7]], extent=(6, 8)
    )
    assert relative_error(turned.rot90(-1, (2, 3)), whole) <= LOGITS[torch.float64]


def test_one_origin_a_sample():
    inputs = make_inputs((4, 4), batch=3, dtype=torch.float64)
    origins = [(0, 0), (5, 2), (1, 7)]
    together = scp(inputs.features, inputs.phi, inputs.residual, origin=origins, extent=(12, 12))
    for b, origin in enumerate(origins):
        alone = scp(inputs.features[b : b + 1], inputs.phi, inputs.residual, origin=origin, extent=(12, 12))
        assert relative_error(together[b : b + 1], alone) <= LOGITS[torch.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(53, 77), (160, 224), (6, 7, 8)], ids=str)
def test_every_dtype_within_the_table(dtype, shape):
    inputs = make_inputs(shape, channels=8, hidden=(64, 64), classes=2, bias=True, dtype=dtype)
    truth, true_gradients = evaluate(scp_reference, inputs.double())
    logits, gradients = evaluate(scp_reference, inputs)
    assert logits.dtype == dtype
    assert relative_error(logits, truth) <= LOGITS[dtype]
    for name, gradient in gradients.items():
        assert gradient.dtype == inputs.tensors[inputs.names.index(name)].dtype
        assert relative_error(gradient, true_gradients[name]) <= GRADIENTS[dtype], name


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 3)], ids=str)
def test_gradcheck(shape):
    inputs = make_inputs(shape, classes=2, hidden=(5, 4), bias=True, dtype=torch.float64)
    leaves = [t.clone().requires_grad_(True) for t in inputs.tensors]

    def function(x, w1, b1, w2, b2, w3, b3, residual, bias):
        return scp_reference(x, (w1, b1, w2, b2, w3, b3), residual, bias, position="centered")

    assert torch.autograd.gradcheck(function, leaves)


def test_relu_has_slope_zero_at_zero():
    """Kinks lying on pixels: every first-layer unit is exactly zero on column 2."""
    w1 = torch.tensor([[0, 1.0, 0, 0], [0, -1.0, 0, 0]]).double()
    b1 = torch.tensor([-2.0, 2.0]).double().requires_grad_(True)
    eye, zero = torch.eye(2).double(), torch.zeros(2).double()
    w3, b3 = torch.ones(1, 2).double(), torch.zeros(1).double()
    x = torch.ones(1, 1, 1, 4).double()
    logits = scp_reference(x, (w1, b1, eye, zero, w3, b3), torch.zeros(1, 1).double())
    assert logits.flatten().tolist() == [2.0, 1.0, 0.0, 1.0]
    (gradient,) = torch.autograd.grad(logits[..., 2].sum(), b1)
    assert gradient.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_propagate(value):
    inputs = make_inputs((3, 4))
    features = inputs.features.clone()
    features[0, 1, 2, 3] = value
    logits = scp_reference(features, inputs.phi, inputs.residual)
    assert not torch.isfinite(logits[0, 0, 2, 3])
    logits[0, 0, 2, 3] = 0
    assert torch.isfinite(logits).all()
    b2 = inputs.phi[3].clone()
    b2[0] = float("nan")
    poisoned = scp_reference(inputs.features, (*inputs.phi[:3], b2, *inputs.phi[4:]), inputs.residual)
    assert torch.isnan(poisoned).all()


def test_half_features_beside_float32_parameters_under_autocast():
    inputs = make_inputs((12, 13), channels=8, hidden=(16, 16), dtype=torch.bfloat16)
    outside = scp_reference(inputs.features, inputs.phi, inputs.residual)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = scp_reference(inputs.features, inputs.phi, inputs.residual)
    assert inside.dtype == torch.bfloat16
    assert torch.equal(inside, outside)


def test_positions_lie_where_the_features_do_whatever_the_default_device():
    inputs = make_inputs((4, 5))
    options = {"origin": [1, 2], "extent": [9, 9]}
    expected = scp_reference(inputs.features, inputs.phi, inputs.residual, **options)
    with torch.device("meta"):
        assert torch.equal(scp_reference(inputs.features, inputs.phi, inputs.residual, **options), expected)


def test_parameters_wider_than_the_features():
    inputs = make_inputs((12, 13), dtype=torch.float64)
    features = inputs.features.float()
    logits = scp_reference(features, inputs.phi, inputs.residual)
    assert torch.equal(logits, scp_reference(features.double(), inputs.phi, inputs.residual).float())
