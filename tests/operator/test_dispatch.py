"""The seam for compiled backends: the list, its reasons, and the operators, driven by a backend made for the test."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scp_kernels import BackendUnavailable, FusedSCP, available_backends, dispatch, ops, scp, scp_reference
from scp_kernels.positions import first_layer_coefficients, first_layer_gradients, identity_affine, position_matrix
from scp_kernels.problem import Problem
from tests.support.problems import evaluate, make_inputs
from tests.support.processes import run_python
from tests.support.tolerances import GRADIENTS, LOGITS, relative_error
from tests.support.unavailable_backend import UnavailableBackend


class Spy:
    """A backend written out in plain torch, from the first layer's coefficients on, as compiled ones are."""

    name = "cpu"
    device_type = "cpu"
    calls = 0

    def unavailable_reason(self):
        return None

    def unsupported_reason(self, problem):
        return "float16 features are not for a spy" if problem.dtype == torch.float16 else None

    def _layers(self, matrix, phi, residual, problem):
        axes = [torch.arange(n, dtype=torch.float64) for n in problem.spatial_shape]
        index = torch.stack([*torch.meshgrid(*axes, indexing="ij"), torch.ones(problem.spatial_shape)]).flatten(1)
        w1, b1, w2, b2, w3, b3 = phi
        first = (first_layer_coefficients(w1, b1, matrix) @ index).to(w2.dtype).relu()
        second = (w2 @ first + b2[:, None]).relu()
        weight = (w3 @ second + b3[:, None]).unflatten(1, residual.shape) + residual[..., None]
        return index, first, second, weight

    def forward(self, inputs):
        features, phi, residual, bias, matrix, problem = inputs
        type(self).calls += 1
        *_, weight = self._layers(matrix, phi, residual, problem)
        x = features.to(problem.compute_dtype).flatten(2)
        logits = (weight * x[:, None]).sum(2)
        if bias is not None:
            logits = logits + bias[:, None]
        return logits.unflatten(2, problem.spatial_shape).to(problem.dtype).contiguous()

    def backward(self, inputs, grad_logits, needs):
        features, phi, residual, bias, matrix, problem = inputs
        assert bias is None  # its gradient is not the backend's work
        index, first, second, weight = self._layers(matrix, phi, residual, problem)
        _, _, w2, _, w3, _ = phi
        g = grad_logits.to(problem.compute_dtype).flatten(2)  # [B, N, P]
        of_features = None
        if needs.features:
            of_features = torch.empty_like(features)
            of_features.copy_((g[:, :, None] * weight).sum(1).unflatten(2, problem.spatial_shape))
        if not needs.parameters:
            return of_features, None
        x = features.to(problem.compute_dtype).flatten(2)
        g3 = (g[:, :, None] * x[:, None]).flatten(1, 2)  # [B, N·C, P]
        if problem.groups == 1:
            g3 = g3.sum(0, keepdim=True)
        g2 = (w3.T @ g3) * (second > 0)
        g1 = (w2.T @ g2) * (first > 0)

        def total(a, b):
            return (a @ b.transpose(1, 2)).sum(0)

        of_first = first_layer_gradients(g1.double() @ index.T, matrix)
        return of_features, (*of_first, total(g2, first), g2.sum((0, 2)), total(g3, second), g3.sum((0, 2)))


@pytest.fixture
def spy(monkeypatch):
    backend = Spy()
    Spy.calls = 0
    monkeypatch.setitem(dispatch.BACKENDS, "cpu", backend)
    for name in ("triton", "cuda"):
        monkeypatch.setitem(dispatch.BACKENDS, name, UnavailableBackend(name))
    return backend


def test_the_list_is_ordered_and_every_absence_has_a_reason():
    results = available_backends()
    assert list(results) == ["triton", "cuda", "cpu", "reference"]
    assert results["reference"].usable
    for status in results.values():
        assert status.usable == (status.reason is None)
        assert status.reason is None or len(status.reason) > 10


def test_auto_takes_the_first_that_can(spy):
    inputs = make_inputs((4, 5))
    scp(inputs.features, inputs.phi, inputs.residual)
    assert Spy.calls == 1
    scp(inputs.features.half(), inputs.phi, inputs.residual)
    assert Spy.calls == 1
    scp(inputs.features, inputs.phi, inputs.residual, backend="reference")
    assert Spy.calls == 1


@pytest.mark.parametrize(("capability", "expected"), [(75, "cuda"), (80, "triton"), (90, "triton")])
def test_auto_prefers_by_compute_capability(monkeypatch, capability, expected):
    """Where both can run; where the preferred one cannot, the other does."""

    class Able(UnavailableBackend):
        device_type = "cuda"

        def unavailable_reason(self) -> None:
            return None

        def unsupported_reason(self, problem) -> None:
            return None

    for name in ("triton", "cuda"):
        monkeypatch.setitem(dispatch.BACKENDS, name, Able(name))
    monkeypatch.setattr(dispatch, "_capability", lambda index: capability)
    problem = Problem(1, 3, 1, (4, 4), (5, 5), 1, torch.float32, torch.float32, torch.device("cuda:0"))
    assert dispatch.select(problem, "auto") == expected
    other = "triton" if expected == "cuda" else "cuda"
    monkeypatch.setitem(dispatch.BACKENDS, expected, UnavailableBackend(expected))
    assert dispatch.select(problem, "auto") == other


def test_by_name_or_not_at_all(spy):
    inputs = make_inputs((4, 5))
    with pytest.raises(BackendUnavailable, match=r"backend='cpu': float16 features are not for a spy"):
        scp(inputs.features.half(), inputs.phi, inputs.residual, backend="cpu")
    with pytest.raises(BackendUnavailable, match=r"backend='triton': left out of this test"):
        scp(inputs.features, inputs.phi, inputs.residual, backend="triton")
    assert Spy.calls == 0


def test_environment_override(spy, monkeypatch):
    inputs = make_inputs((4, 5))
    monkeypatch.setenv("SCP_BACKEND", "reference")
    scp(inputs.features, inputs.phi, inputs.residual)
    assert Spy.calls == 0
    scp(inputs.features, inputs.phi, inputs.residual, backend="cpu")
    assert Spy.calls == 1
    monkeypatch.setenv("SCP_BACKEND", "cuda")
    with pytest.raises(BackendUnavailable, match="SCP_BACKEND='cuda'"):
        scp(inputs.features, inputs.phi, inputs.residual)
    monkeypatch.setenv("SCP_BACKEND", "fastest")
    with pytest.raises(ValueError, match="SCP_BACKEND: expected"):
        scp(inputs.features, inputs.phi, inputs.residual)


OPTIONS = [
    {},
    {"position": "centered"},
    {"origin": (3, 1), "extent": (20, 30), "position": "centered"},
    {"affine": [[0.5, 0.1, 3], [-0.2, 2.0, 1]]},
    {"affine": torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(1))},
    {"extent": torch.tensor([[9.0, 12.0], [15.0, 7.0]]), "position": "centered"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_operators_agree_with_the_reference(spy, dtype, options):
    inputs = make_inputs((6, 7), channels=4, classes=2, hidden=(9, 5), bias=True, dtype=dtype)
    truth, true_gradients = evaluate(scp_reference, inputs.double(), **_tensors(options))
    logits, gradients = evaluate(scp, inputs, backend="cpu", **options)
    assert relative_error(logits, truth) <= LOGITS[dtype]
    assert list(gradients) == list(true_gradients)
    for name, gradient in gradients.items():
        assert relative_error(gradient, true_gradients[name]) <= GRADIENTS[dtype], name


def _tensors(options):
    return {
        k: torch.tensor(v, dtype=torch.float64) if k == "affine" and isinstance(v, list) else v
        for k, v in options.items()
    }


def test_only_what_is_needed(spy):
    inputs = make_inputs((4, 5), bias=True)
    _, every_gradient = evaluate(scp, inputs, backend="cpu")
    for name in inputs.names:
        tensors = [t.detach().requires_grad_(n == name) for n, t in zip(inputs.names, inputs.tensors, strict=True)]
        scp(tensors[0], tensors[1:7], tensors[7], tensors[8], backend="cpu").backward(inputs.grad_logits)
        for n, t in zip(inputs.names, tensors, strict=True):
            assert (t.grad is not None) == (n == name)
            if n == name:
                assert relative_error(t.grad, every_gradient[name]) <= 1e-6


@pytest.mark.parametrize("size", [(0, 3, 5, 6), (2, 3, 0, 6)], ids=str)
def test_empty_problems_never_reach_a_backend(spy, size):
    inputs = make_inputs((5, 6), bias=True)
    leaves = [torch.zeros(size), *inputs.tensors[1:]]
    leaves = [t.detach().requires_grad_() for t in leaves]
    logits = scp(leaves[0], leaves[1:7], leaves[7], leaves[8], backend="cpu", position="centered")
    logits.sum().backward()
    assert Spy.calls == 0
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in leaves)


def operator_arguments(per_sample=False):
    inputs = make_inputs((4, 5), hidden=(5, 4), classes=2, bias=True)
    matrix = position_matrix(identity_affine(2, torch.device("cpu")), torch.tensor([4.0, 5.0]).double(), "pixels")
    if per_sample:
        matrix = matrix.repeat(2, 1, 1)
    tensors = [t.clone().requires_grad_() for t in inputs.tensors]
    return [*tensors, matrix, "cpu"], inputs.grad_logits


@pytest.mark.parametrize("per_sample", [False, True])
def test_opcheck(spy, per_sample):
    arguments, grad_logits = operator_arguments(per_sample)
    torch.library.opcheck(ops.scp_forward, arguments)
    features, *parameters, bias, matrix, backend = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
    assert bias is not None
    torch.library.opcheck(
        ops.scp_backward, [grad_logits, features, *parameters, matrix, backend, [True] * 4 + [False] + [True] * 4]
    )


def test_compile_runs_the_operator(spy):
    head = FusedSCP(3, 2, (8, 6), bias=True, backend="cpu")
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (2, 5):
        x = torch.randn(batch, 3, 6, 7, requires_grad=True)
        logits = compiled(x)
        assert relative_error(logits, head(x)) <= 1e-6
        logits.sum().backward()
        (expected,) = torch.autograd.grad(head(x).sum(), x)
        assert relative_error(x.grad, expected) <= 1e-6


def test_flops_are_the_nominal_ones(spy):
    for axes, options, groups in (
        (2, {}, 1),
        (2, {"origin": torch.zeros(3, 2)}, 3),
        (3, {"origin": torch.zeros(3), "extent": (9, 6, 7)}, 1),
        (3, {"origin": torch.zeros(3, 3), "extent": (9, 6, 7)}, 3),
    ):
        inputs = make_inputs((6, 7), batch=3, channels=4, classes=2, hidden=(9, 5), position_dims=axes)
        phi = 2 * axes * 9 + 9 * 5 + 5 * 8
        x = inputs.features.clone().requires_grad_()
        with FlopCounterMode(display=False) as counter:
            logits = scp(x, inputs.phi, inputs.residual, backend="cpu", **options)
        forward = 2 * 42 * (groups * phi + 3 * 8)
        assert counter.get_total_flops() == forward
        with FlopCounterMode(display=False) as counter:
            logits.sum().backward()
        assert counter.get_total_flops() == 2 * forward


OLD_NAME = """
import warnings
import scp_kernels
from scp_kernels.backends import _libraries  # the package stays a package
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    status = scp_kernels.backends()
assert status == scp_kernels.available_backends()
(warning,) = caught
assert warning.category is DeprecationWarning and warning.filename == "<string>"
assert "scp_kernels.available_backends()" in str(warning.message) and "0.2" in str(warning.message)
"""


def test_the_old_name_of_available_backends_works_and_warns():
    run_python("-c", OLD_NAME)
