"""The registered operators: opcheck, exact fakes, FLOP formulas."""

import io
import warnings

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from scp_kernels import FusedSCP, Placement, count_macs, ops, ptflops_hook, scp
from scp_kernels.backends import cpu
from scp_kernels.positions import identity_affine, position_matrix
from tests.support.agreement import slices_of_a_volume
from tests.support.backend_names import BACKENDS, device_of
from tests.support.cpu_settings import needs_cpu
from tests.support.problems import make_inputs

PROBLEMS = {
    "plain": {},
    "bias": {"bias": True, "classes": 2},
    "3-D": {"shape": (3, 4, 5), "bias": True},
    "half": {"dtype": torch.bfloat16, "bias": True},
    "double": {"dtype": torch.float64},
    "no samples": {"batch": 0, "bias": True},
    "no pixels": {"shape": (0, 7), "bias": True},
    "one map per sample": {"batch": 3},
    "slices of a volume": {"batch": 3, "position_dims": 3, "bias": True},
    "channels last": {},
    "flat channels": {},
    "expanded": {},
    "transposed weights": {"classes": 2},
    "transposed weights, no samples": {"classes": 2, "batch": 0},
}


def arguments(name):
    """Features, parameters, bias and position matrix of a problem, and its logits' gradient."""
    options = dict(PROBLEMS[name])
    inputs = make_inputs(options.pop("shape", (6, 7)), **options)
    features, *phi, residual, bias = inputs.tensors
    d = features.ndim - 2
    extent = torch.tensor([float(n) for n in features.shape[2:]], dtype=torch.float64)
    matrix = position_matrix(identity_affine(d, features.device), extent, "pixels")
    if name == "one map per sample":
        matrix = torch.stack([matrix, 2 * matrix, 3 * matrix])
    if name == "slices of a volume":
        matrix = position_matrix(*slices_of_a_volume(3).values(), "centered")
    if name == "channels last":
        features = features.contiguous(memory_format=torch.channels_last)
    if name == "flat channels":
        features = torch.cat([features, features], 1)[:, :3]
    if name == "expanded":
        features = features[:1].expand(2, -1, -1, -1)
    if name.startswith("transposed"):
        phi = [w.t().contiguous().t() if w.ndim == 2 else w for w in phi]
    return [features, *phi, residual, bias, matrix], inputs.grad_logits


def described(tensor):
    return tensor.shape, tensor.dtype, tensor.stride(), tensor.device


@needs_cpu
@pytest.mark.parametrize("name", PROBLEMS)
def test_fakes_are_exact(name):
    tensors, grad = arguments(name)
    *inputs, bias, matrix = tensors
    everything = [True] * 8 + [bias is not None]
    results = [ops.scp_forward(*tensors, "cpu")]
    for needs in (everything, [True] + [False] * 8, [False] * 7 + everything[7:]):
        results += ops.scp_backward(grad, *inputs, matrix, "cpu", needs)
    with FakeTensorMode() as mode:
        tensors, grad = [None if t is None else mode.from_tensor(t) for t in tensors], mode.from_tensor(grad)
        *inputs, bias, matrix = tensors
        fakes = [ops.scp_forward(*tensors, "cpu")]
        for needs in (everything, [True] + [False] * 8, [False] * 7 + everything[7:]):
            fakes += ops.scp_backward(grad, *inputs, matrix, "cpu", needs)
    assert [described(t) for t in fakes] == [described(t) for t in results]


@needs_cpu
@pytest.mark.parametrize(
    "name", ["plain", "bias", "3-D", "double", "no samples", "one map per sample", "channels last"]
)
def test_opcheck(name):
    tensors, grad = arguments(name)
    leaves = [t if t is None else t.clone().requires_grad_() for t in tensors[:-1]]
    torch.library.opcheck(ops.scp_forward, [*leaves, tensors[-1], "cpu"])
    *inputs, bias, matrix = tensors
    for needs in ([True] * 8 + [bias is not None], [True] + [False] * 8):
        torch.library.opcheck(ops.scp_backward, [grad, *inputs, matrix, "cpu", needs])
    # Twice differentiable too; the ahead-of-time trace of a second derivative is out of AOTAutograd's reach.
    inputs = [t.clone().requires_grad_() for t in inputs]
    arguments_ = [grad.clone().requires_grad_(), *inputs, matrix, "cpu", [True] * 8 + [False]]
    torch.library.opcheck(
        ops.scp_backward, arguments_, test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
    )


@needs_cpu
def test_flops_are_nominal_and_the_report_tells_the_executed_ones():
    inputs = make_inputs((64, 64), batch=2, channels=8, classes=2, hidden=(64, 64))
    phi = 4 * 64 + 64 * 64 + 64 * 16
    x = inputs.features.clone().requires_grad_()
    with FlopCounterMode(display=False) as counter:
        logits = scp(x, inputs.phi, inputs.residual, backend="cpu")
    assert counter.get_total_flops() == 2 * 64 * 64 * (phi + 2 * 16)
    report = cpu.last_report()
    assert report.dense_macs == phi and report.macs < phi / 2
    with FlopCounterMode(display=False) as counter:
        logits.sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 64 * 64 * (phi + 2 * 16)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_executed_is_counted_on_every_device(backend):
    inputs = make_inputs((64, 64), channels=8, hidden=(64, 64), seed=11).to(device_of(backend))
    counted = []
    for _ in range(2):
        leaves = [t.clone().requires_grad_() for t in inputs.tensors[:8]]
        with count_macs() as count:
            logits = scp(leaves[0], leaves[1:7], leaves[7], backend=backend)
            forward = count.macs
            torch.autograd.grad(logits.sum(), leaves)
        counted.append((forward, count.macs - forward))
    assert counted[0] == counted[1], "the same work"
    forward, backward = counted[0]
    if backend == "reference":
        assert forward == backward == 0
    else:
        assert 0 < forward < backward
        assert forward < 64 * 64 * (4 * 64 + 64 * 64 + 64 * 8)


@needs_cpu
def test_what_is_executed_is_counted_in_and_out_of_a_graph():
    inputs = make_inputs((64, 64), channels=8, hidden=(64, 64))
    x = inputs.features.clone().requires_grad_()
    with count_macs() as count:
        logits = scp(x, inputs.phi, inputs.residual, backend="cpu")
        forward = cpu.last_report().total_macs
        assert count.macs == forward > 0
        logits.sum().backward()
        assert count.macs == forward + cpu.last_report().total_macs > forward
        with pytest.raises(RuntimeError, match="under way"), count_macs():
            pass
    total = count.macs
    scp(x, inputs.phi, inputs.residual, backend="cpu")
    assert count.macs == total, "counted after its end"
    compiled = torch.compile(scp, backend="aot_eager", fullgraph=True)
    cpu.clear_weight_field_cache()  # else W would be read, and nothing be executed
    with count_macs() as count, torch.no_grad():
        compiled(inputs.features, inputs.phi, inputs.residual, backend="cpu")
    assert count.macs == forward


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("axes", [2, 3])
def test_ptflops_counts_the_head(backend, axes):
    ptflops = pytest.importorskip("ptflops")  # not among what tests on a GPU need
    head = FusedSCP(8, 2, (16, 24), position_dims=axes, backend=backend)
    if axes == 3:  # which has no default
        head.placement = Placement(origin=(4, 0, 0), extent=(9, 20, 30), device=torch.device(device_of(backend)))
    convolution = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    macs, parameters = ptflops.get_model_complexity_info(
        nn.Sequential(convolution, head).to(device_of(backend)),
        (3, 20, 30),
        as_strings=False,
        print_per_layer_stat=False,
        backend="pytorch",
        backend_specific_config={"count_functional": False},
        custom_modules_hooks={FusedSCP: ptflops_hook},
    )
    assert head.macs((20, 30)) == 20 * 30 * (2 * axes * 16 + 16 * 24 + 24 * 16 + 16)
    assert head.macs((20, 30), batch=3) == head.macs((20, 30)) + 2 * 20 * 30 * 16, "Φ is evaluated once for a batch"
    assert macs == 20 * 30 * 27 * 8 + head.macs((20, 30))
    assert parameters == sum(p.numel() for p in (*convolution.parameters(), *head.parameters()))


@needs_cpu
def test_whoever_watches_sees_the_operators():
    """Where nobody does, eager calls go past them; the results are the same."""
    head = FusedSCP(3, 2, 16, backend="cpu")
    x = torch.randn(2, 3, 18, 20, requires_grad=True)
    tensors = [x, *head.parameters()]
    logits = head(x)
    gradients = torch.autograd.grad(logits, tensors, torch.ones_like(logits))

    seen = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    with Recorder():
        dispatched_logits = head(x)
        dispatched_gradients = torch.autograd.grad(dispatched_logits, tensors, torch.ones_like(dispatched_logits))
    assert [f for f in seen if f.namespace == "scp_kernels"] == [ops.scp_forward, ops.scp_backward]
    assert torch.equal(dispatched_logits, logits)
    assert all(torch.equal(a, b) for a, b in zip(dispatched_gradients, gradients, strict=True))

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.autograd.grad(head(x).sum(), tensors)
    assert {"scp_kernels::scp_forward", "scp_kernels::scp_backward"} <= {event.key for event in profile.key_averages()}


@needs_cpu
def test_a_trace_holds_the_operator_and_no_constant():
    head = FusedSCP(3, 2, 16, backend="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and the checks of arguments are traced away
        traced = torch.jit.trace(head, torch.randn(1, 3, 18, 20))
    other = torch.randn(1, 3, 18, 20)
    assert torch.equal(traced(other), head(other))


def test_a_symbolic_trace_takes_the_head_as_a_leaf():
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, FusedSCP) or super().is_leaf_module(module, name)

    network = nn.Sequential(nn.Conv2d(2, 3, 1), FusedSCP(3, 2, 16))
    x = torch.randn(1, 2, 18, 20)
    assert torch.equal(torch.fx.GraphModule(network, Tracer().trace(network))(x), network(x))
    with pytest.raises(TypeError, match="features: expected a tensor, got Proxy"):
        torch.fx.symbolic_trace(network)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_what_is_documented_not_to_work_says_so():
    x = torch.randn(1, 3, 18, 20)
    with pytest.raises(Exception):  # noqa: B017  # PyTorch's own, of no documented type
        torch.jit.script(FusedSCP(3, 2, 16))
    with pytest.raises(TypeError):
        torch.onnx.export(FusedSCP(3, 2, 16), (x,), io.BytesIO(), dynamo=False)
    quantized = torch.ao.quantization.quantize_dynamic(FusedSCP(3, 2, 16), {nn.Linear})
    with pytest.raises(TypeError, match="w1: expected a tensor, got method"):
        quantized(x)
