"""``scp()``: what it refuses, and how it says so; what it accepts beyond the plain case."""

import numpy as np
import pytest
import torch

from scp_kernels import BackendUnavailable, functional, pixel_positions, positions, scp
from scp_kernels.positions import identity_affine, position_matrix, whole_image_matrix, whole_image_matrix_on
from scp_kernels.problem import problem_of
from tests.support.agreement import VIEWS
from tests.support.problems import make_inputs
from tests.support.tolerances import LOGITS, relative_error


def call(**changes):
    inputs = make_inputs((5, 6), batch=2, channels=3, classes=2, hidden=(8, 7), bias=True)
    names = ("w1", "b1", "w2", "b2", "w3", "b3")
    phi = [changes.pop(name, tensor) for name, tensor in zip(names, inputs.phi, strict=True)]
    arguments = {"features": inputs.features, "phi": phi, "residual": inputs.residual, "bias": inputs.bias, **changes}
    return scp(**arguments)


ones, nan = torch.ones, float("nan")
BAD = [
    ({"features": [1.0]}, TypeError, r"features: expected a tensor, got list"),
    ({"features": ones(2, 3, 5, 6, dtype=torch.int64)}, TypeError, r"features: expected float64.* got torch.int64"),
    ({"features": ones(2, 3, 5, 6, dtype=torch.complex64)}, TypeError, r"features: .* got torch.complex64"),
    ({"features": ones(3, 5, 6)}, ValueError, r"features: expected \[B, C, H, W\].* got shape \[3, 5, 6\]"),
    ({"features": ones(2, 4, 5, 6)}, ValueError, r"w3: expected N·C rows .* C = 4 .* got 6"),
    ({"features": ones(2, 0, 5, 6)}, ValueError, r"features: expected at least one channel"),
    ({"features": ones(2, 3, 4, 5, 6)}, ValueError, r"w1: expected shape \[8, 6\].* got \[8, 4\]"),
    (
        {"w1": ones(8, 6)},
        ValueError,
        r"affine, origin: expected one of the two.* affine \[3, 3\].* origin \[3\].* neither",
    ),
    ({"w1": ones(8, 6), "extent": (9, 5, 6)}, ValueError, r"affine, origin: expected one of the two"),
    ({"w1": ones(8, 6), "origin": (4, 0, 0)}, ValueError, r"extent: expected \[3\] sizes .* got none"),
    (
        {"w1": ones(8, 6), "origin": (0, 0), "extent": (9, 5, 6)},
        ValueError,
        r"origin: expected shape \[3\], .* got \[2\]",
    ),
    (
        {"w1": ones(8, 6), "affine": torch.eye(2, 3), "extent": (9, 5, 6)},
        ValueError,
        r"affine: expected shape \[3, 3\]",
    ),
    ({"w1": ones(8, 6), "origin": (4, 0, 0), "extent": (5, 6)}, ValueError, r"extent: expected shape \[3\]"),
    ({"phi": [ones(8, 4)]}, ValueError, r"phi: expected the six tensors .* got 1 of them"),
    ({"w1": ones(8, 5)}, ValueError, r"w1: expected shape \[8, 4\].* got \[8, 5\]"),
    ({"w1": ones(8, 4, 3, 3)}, ValueError, r"w1: expected the weight of a linear layer or of a 1×1 convolution"),
    ({"w1": ones(0, 4)}, ValueError, r"w1: expected at least one hidden unit, got none"),
    ({"w2": ones(0, 8)}, ValueError, r"w2: expected at least one hidden unit, got none"),
    ({"b1": ones(7)}, ValueError, r"b1: expected shape \[8\].* got \[7\]"),
    ({"w2": ones(7, 9)}, ValueError, r"w2: expected shape \[7, 8\].* got \[7, 9\]"),
    ({"b2": ones(8)}, ValueError, r"b2: expected shape \[7\]"),
    ({"w3": ones(0, 7)}, ValueError, r"w3: expected N·C rows .* got 0"),
    ({"w3": ones(6, 8)}, ValueError, r"w3: expected shape \[6, 7\]"),
    ({"b3": ones(5)}, ValueError, r"b3: expected shape \[6\]"),
    ({"b3": None}, TypeError, r"b3: expected a tensor, got NoneType"),
    ({"residual": ones(3, 2)}, ValueError, r"residual: expected shape \[2, 3\].* got \[3, 2\]"),
    ({"bias": ones(3)}, ValueError, r"bias: expected shape \[2\].* got \[3\]"),
    ({"w2": ones(7, 8).double()}, TypeError, r"w2: expected torch.float32 as w1 has .* got torch.float64"),
    ({"residual": ones(2, 3, device="meta")}, ValueError, r"residual: expected on cpu as features are, got on meta"),
    ({"position": "corners"}, ValueError, r"position: expected one of .* got 'corners'"),
    ({"origin": (0, 0), "affine": torch.eye(2, 3)}, ValueError, r"origin, affine: expected at most one"),
    ({"origin": (1, 2, 3)}, ValueError, r"origin: expected shape \[2\], or \[2, 2\] .* got \[3\]"),
    ({"affine": torch.eye(3)}, ValueError, r"affine: expected shape \[2, 3\], or \[2, 2, 3\] .* got \[3, 3\]"),
    ({"affine": torch.eye(2, 3).expand(3, 2, 3)}, ValueError, r"affine: .* got \[3, 2, 3\]"),
    ({"affine": torch.eye(2, 3).requires_grad_()}, ValueError, r"affine: positions are not differentiable"),
    ({"affine": "identity"}, TypeError, r"affine: expected numbers of shape \[2, 3\], got 'identity'"),
    ({"extent": (5, 6, 7)}, ValueError, r"extent: expected shape \[2\]"),
    ({"extent": (5, 0)}, ValueError, r"extent: expected positive sizes in pixels, got \(5, 0\)"),
    ({"extent": np.array([5, 0])}, ValueError, r"extent: expected positive sizes in pixels"),
    ({"extent": torch.tensor([5, 0])}, ValueError, r"extent: expected positive sizes in pixels, got \[5, 0\]"),
    ({"extent": "ab"}, TypeError, r"extent: expected numbers of shape \[2\], got 'ab'"),
    ({"extent": [None, 3]}, TypeError, r"extent: expected numbers of shape \[2\], got \[None, 3\]"),
    ({"extent": [1j, 3]}, TypeError, r"extent: expected numbers"),
    ({"extent": {"height": 5}}, TypeError, r"extent: expected numbers"),
    ({"extent": (5, nan)}, ValueError, r"extent: expected finite numbers, got \(5, nan\)"),
    ({"origin": (nan, 5)}, ValueError, r"origin: expected finite numbers, got \(nan, 5\)"),
    ({"affine": [[1, 0, -np.inf], [0, 1, 0]]}, ValueError, r"affine: expected finite numbers"),
    ({"affine": torch.eye(2, 3, device="meta")}, ValueError, r"affine: expected on cpu as features are, got on meta"),
    ({"features": ones(2, 3, 5, 6).to_sparse()}, TypeError, r"features: expected a dense tensor, got layout torch.spa"),
    ({"features": ones(2, 3, 5, 6).to_mkldnn()}, TypeError, r"features: expected a dense tensor, got layout"),
    ({"extent": ones(2, dtype=torch.complex64)}, TypeError, r"extent: expected real numbers"),
    (
        {"affine": torch.eye(2, 3).bfloat16()},
        TypeError,
        r"affine: expected float32 or float64 .*fewer.* got torch.bfloat16",
    ),
    ({"origin": ones(2).half()}, TypeError, r"origin: expected float32 or float64 .* got torch.float16"),
    ({"extent": 9 * ones(2).bfloat16()}, TypeError, r"extent: expected float32 or float64 .* got torch.bfloat16"),
    ({"extent": ones(2).to(torch.float8_e5m2)}, TypeError, r"extent: expected float32 or float64 .* got torch.float8"),
    ({"origin": np.ones(2, np.float16)}, TypeError, r"origin: expected float32 or float64 .* got float16"),
    ({"origin": [1, ones(()).half()]}, TypeError, r"origin: expected float32 or float64 .* got torch.float16"),
    ({"backend": "tpu"}, ValueError, r"backend: expected 'auto' or one of .* got 'tpu'"),
]


@pytest.mark.parametrize(
    ("changes", "error", "message"), BAD, ids=[f"{next(iter(b[0]))}-{k}" for k, b in enumerate(BAD)]
)
def test_refusals_name_the_argument(changes, error, message):
    with pytest.raises(error, match=message):
        call(**changes)


def test_a_backend_asked_for_by_name_never_falls_back():
    from scp_kernels import available_backends

    for name, status in available_backends().items():
        if not status.usable:
            with pytest.raises(BackendUnavailable, match=name):
                call(backend=name)


def test_nested_features_are_refused():
    for layout in (torch.strided, torch.jagged):
        features = torch.nested.nested_tensor([ones(3, 5, 6), ones(3, 5, 6)], layout=layout)
        with pytest.raises(TypeError, match="features: expected a dense tensor, got a nested tensor"):
            call(features=features)


def test_positions_come_as_whatever_holds_numbers():
    expected = call(origin=(1.0, 2.0), extent=(9, 8))
    for kind in (
        np.array,
        torch.tensor,
        lambda v: torch.tensor(v).to(torch.int16),
        lambda v: [np.float32(x) for x in v],
        lambda v: [torch.tensor(x) for x in v],
    ):
        assert torch.equal(call(origin=kind([1.0, 2.0]), extent=kind([9, 8])), expected)


def test_parameters_come_in_a_parameter_list():
    inputs = make_inputs((5, 6))
    phi = torch.nn.ParameterList(inputs.phi)
    assert torch.equal(scp(inputs.features, phi, None), scp(inputs.features, inputs.phi, None))


def test_weights_of_convolutions_are_taken_as_they_are():
    inputs = make_inputs((5, 6))
    w1, b1, w2, b2, w3, b3 = inputs.phi
    expected = scp(inputs.features, inputs.phi, inputs.residual)
    phi = (w1[..., None, None], b1, w2[..., None, None], b2, w3[..., None, None], b3)
    assert torch.equal(scp(inputs.features, phi, inputs.residual[..., None, None]), expected)


def test_no_residual_is_a_residual_of_zeros():
    inputs = make_inputs((5, 6), classes=2)
    expected = scp(inputs.features, inputs.phi, torch.zeros_like(inputs.residual))
    assert torch.equal(scp(inputs.features, inputs.phi, None), expected)


@pytest.mark.parametrize("size", [(0, 3, 5, 6), (2, 3, 0, 6), (2, 3, 5, 0)], ids=str)
def test_empty_inputs_have_gradients(size):
    inputs = make_inputs((5, 6), channels=3)
    leaves = [torch.zeros(size, requires_grad=True), *(t.clone().requires_grad_() for t in inputs.phi)]
    logits = scp(leaves[0], leaves[1:], inputs.residual, position="centered")
    assert logits.shape == (size[0], 1, *size[2:])
    logits.sum().backward()
    for leaf in leaves:
        assert leaf.grad is not None and leaf.grad.shape == leaf.shape
        assert not leaf.grad.any()


@pytest.mark.parametrize("view", VIEWS)
def test_strides_do_not_matter(view):
    inputs = make_inputs((5, 6), channels=4)
    features = VIEWS[view](inputs.features)
    assert relative_error(
        scp(features, inputs.phi, inputs.residual), scp(features.contiguous(), inputs.phi, inputs.residual)
    ) <= 1e-6  # fmt: skip


def test_positions_outside_the_extent_are_legal():
    inputs = make_inputs((4, 4), dtype=torch.float64)
    padded = scp(inputs.features, inputs.phi, inputs.residual, origin=(-2, -2), extent=(3, 3))
    assert torch.isfinite(padded).all()


@pytest.mark.parametrize("position", ["pixels", "centered"])
def test_positions_of_every_pixel(position):
    """Eq. 5 written out in numpy, at one affine per sample."""
    rng = np.random.default_rng(0)
    affine, extent = rng.normal(size=(2, 2, 3)), rng.uniform(5, 40, size=2)
    image = torch.zeros(2, 1, 4, 5, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        s = pixel_positions(image, affine=affine, extent=extent, position=position)
    i, j = np.mgrid[:4, :5]
    p = np.einsum("bkm,mhw->bkhw", affine, np.stack([i, j, np.ones_like(i)]))
    size = extent[:, None, None]
    expected = np.concatenate([p, size - p], 1)
    if position == "centered":
        expected = 2 * expected / np.concatenate([size, size]) - 1
    assert s.dtype == torch.float64
    assert relative_error(s, torch.from_numpy(expected)) <= LOGITS[torch.float64]


def test_positions_of_a_whole_image_are_shared_by_the_batch():
    assert pixel_positions(torch.zeros(3, 2, 4, 5, 6)).shape == (1, 6, 4, 5, 6)
    assert pixel_positions(torch.zeros(3, 2, 4, 5), origin=torch.zeros(3, 2)).shape == (3, 4, 4, 5)
    with pytest.raises(ValueError, match=r"affine: expected shape \[2, 3\]"):
        pixel_positions(torch.zeros(3, 2, 4, 5), affine=torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"features: expected \[B, C, H, W\]"):
        pixel_positions(torch.zeros(4, 5))


def test_parameters_in_half_precision_are_computed_in_float32():
    inputs = make_inputs((6, 7), channels=8, hidden=(16, 16), dtype=torch.bfloat16)
    half = [t.bfloat16() for t in inputs.phi]
    logits = scp(inputs.features, half, inputs.residual.bfloat16())
    expected = scp(inputs.features, [t.float() for t in half], inputs.residual.bfloat16().float())
    assert logits.dtype == torch.bfloat16
    assert torch.equal(logits, expected)


def test_double_backward_through_the_reference():
    inputs = make_inputs((3, 4), hidden=(5, 4), dtype=torch.float64)

    def function(x, residual, w2):
        phi = (*inputs.phi[:2], w2, *inputs.phi[3:])
        return scp(x, phi, residual, backend="reference")

    leaves = [t.clone().requires_grad_() for t in (inputs.features, inputs.residual, inputs.phi[2])]
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("position", ["pixels", "centered"])
@pytest.mark.parametrize("shape", [(7, 9), (160, 224), (5, 6, 7)], ids=str)
def test_the_matrix_of_a_whole_image_from_plain_numbers(shape, position):
    device = torch.device("cpu")
    extent = torch.tensor(shape, dtype=torch.float64)
    expected = position_matrix(identity_affine(len(shape), device), extent, position)
    assert torch.equal(whole_image_matrix(shape, position), expected)


def problem_on(device):
    features = torch.empty(2, 3, 6, 7, device=device)
    weights = (torch.empty(8, 4), torch.empty(8, 8), torch.empty(1, 3))
    return problem_of(features, *weights, 1)


def test_the_matrix_of_a_whole_image_is_made_once_per_device(monkeypatch):
    """On another device than the CPU: the first call copies it, the others launch nothing."""
    made = []
    monkeypatch.setattr(positions, "_on_devices", {})
    original = positions.position_matrix
    monkeypatch.setattr(positions, "position_matrix", lambda *a: made.append(a) or original(*a))
    described = problem_on("meta")

    def matrix():
        return functional._matrix_of_call(None, None, described, "centered", False)

    with monkeypatch.context() as capturing:
        capturing.setattr(positions, "_capturing", lambda device: True)
        assert matrix().is_meta
        assert len(made) == 1 and not positions._on_devices, "nothing is copied into a graph"
    with torch.inference_mode():
        first = matrix()
    assert first.is_meta and first.dtype == torch.float64 and not first.is_inference() and len(made) == 1
    with monkeypatch.context() as capturing:
        capturing.setattr(positions, "_capturing", lambda device: True)
        assert matrix() is first, "a graph may read what is there, and what is there stays"
    assert matrix() is first and len(made) == 1
    assert functional._matrix_of_call(None, None, described, "pixels", False) is not first
    through_dispatcher = functional._matrix_of_call(None, None, described, "centered", True)
    assert through_dispatcher is not first, "whoever watches sees operations"


def test_what_is_kept_on_a_device_is_the_matrix(monkeypatch):
    monkeypatch.setattr(positions, "_on_devices", {})
    kept = whole_image_matrix_on(torch.device("cpu"), (6, 7), "centered")
    assert torch.equal(kept, whole_image_matrix((6, 7), "centered"))
    if torch.cuda.is_available():
        kept = whole_image_matrix_on(torch.device("cuda", 0), (6, 7), "centered")
        assert kept.is_cuda and torch.equal(kept.cpu(), whole_image_matrix((6, 7), "centered"))
