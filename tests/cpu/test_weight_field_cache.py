"""The CPU backend's cache of weight fields: never stale, bounded, safe among threads."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from scp_kernels import FusedSCP, scp
from scp_kernels.backends import cpu
from tests.support.cpu_settings import ISA_TARGETS, ask_cpu, needs_cpu
from tests.support.problems import make_inputs

pytestmark = [needs_cpu, pytest.mark.usefixtures("empty_weight_field_cache")]


def uncached(monkeypatch, *arguments, **options):
    with monkeypatch.context() as patch:
        ask_cpu(patch, cache_bytes=0)
        logits = scp(*arguments, backend="cpu", **options)
        assert cpu.last_report().field_cache == "unused"
    return logits


CACHED_CASES = {
    "one sample": ((40, 48), {"batch": 1}, {}),
    "rows that fill no whole vectors": ((53, 77), {"batch": 1}, {}),
    "several samples": ((53, 77), {"batch": 3}, {}),
    "bfloat16": ((40, 48), {"batch": 1, "dtype": torch.bfloat16}, {}),
    "float64": ((40, 48), {"batch": 2, "dtype": torch.float64}, {}),
    "a volume": ((9, 10, 11), {"batch": 2}, {}),
    "dense": ((9, 11), {"batch": 1}, {}),
    "a position map per sample": ((40, 48), {"batch": 3}, {"origin": [[0, 0], [5, 9], [0, 0]], "extent": (99, 99)}),
}


@pytest.mark.parametrize("target", ISA_TARGETS)
@pytest.mark.parametrize("case", CACHED_CASES)
def test_frozen_weights_are_evaluated_once(monkeypatch, target, case):
    ask_cpu(monkeypatch, isa_target=cpu.ISA_TARGETS[target])
    shape, sizes, options = CACHED_CASES[case]
    inputs = make_inputs(shape, channels=5, hidden=(40, 24), classes=2, bias=True, **sizes)
    arguments = inputs.phi, inputs.residual, inputs.bias
    truth = uncached(monkeypatch, inputs.features, *arguments, **options)
    for use in ("unused", "stored", "read", "read"):
        assert torch.equal(scp(inputs.features, *arguments, backend="cpu", **options), truth)
        assert cpu.last_report().field_cache == use
    assert cpu.last_report().macs == 0 and cpu.last_report().nodes == 0
    # Only features and β may differ from call to call.
    features = torch.randn(inputs.features.shape, generator=torch.Generator().manual_seed(1)).to(inputs.features.dtype)
    arguments = inputs.phi, inputs.residual, inputs.bias + 1
    truth = uncached(monkeypatch, features, *arguments, **options)
    assert torch.equal(scp(features, *arguments, backend="cpu", **options), truth)
    assert cpu.last_report().field_cache == "read"


@pytest.mark.parametrize("changed", ["w1", "b1", "w2", "b2", "w3", "b3", "residual", "origin", "position"])
def test_a_cached_field_is_never_stale(monkeypatch, changed):
    """A write through ``.data`` leaves no trace in version counters; contents are compared."""
    inputs = make_inputs((40, 48), batch=1, channels=5, hidden=(40, 24))
    options = {"position": "pixels", "origin": (0, 0), "extent": (80, 80)}
    for _ in range(3):
        scp(inputs.features, inputs.phi, inputs.residual, backend="cpu", **options)
    assert cpu.last_report().field_cache == "read"
    tensors = dict(zip(("w1", "b1", "w2", "b2", "w3", "b3"), inputs.phi, strict=True), residual=inputs.residual)
    if changed in tensors:
        tensors[changed].data.view(-1)[-1] += 1
    else:
        options[changed] = {"origin": (3, 0), "position": "centered"}[changed]
    logits = scp(inputs.features, inputs.phi, inputs.residual, backend="cpu", **options)
    assert cpu.last_report().field_cache == "unused"
    assert torch.equal(logits, uncached(monkeypatch, inputs.features, inputs.phi, inputs.residual, **options))


@pytest.mark.parametrize(
    "other",
    [
        lambda x: (x[..., :24, :], {}),
        lambda x: (x[..., :32], {}),
        lambda x: (x.contiguous(memory_format=torch.channels_last), {}),
        lambda x: (x.double(), {}),
        lambda x: (x.expand(2, -1, -1, -1), {"origin": [[0, 0], [0, 0]]}),
    ],
    ids=["fewer rows", "fewer columns", "channels-last", "float64", "equal maps"],
)
def test_a_field_is_not_read_by_a_call_of_other_sizes(monkeypatch, other):
    """Parameters and the first map's coefficients are the same."""
    inputs = make_inputs((40, 48), batch=1, channels=5, hidden=(40, 24))
    arguments, options = (inputs.phi, inputs.residual), {"origin": (0, 0), "extent": (80, 80)}
    calls = [(inputs.features, options)]
    features, changed = other(inputs.features)
    calls.append((features, {**options, **changed}))
    truths = [uncached(monkeypatch, x, *arguments, **given) for x, given in calls]
    for use in ("unused", "stored", "read"):
        for (x, given), truth in zip(calls, truths, strict=True):
            assert torch.equal(scp(x, *arguments, backend="cpu", **given), truth)
            assert cpu.last_report().field_cache == use


@pytest.mark.parametrize("target", ISA_TARGETS)
def test_a_slice_finds_its_field_in_any_batch(monkeypatch, target):
    """Maps a to d, in batches of their own kind: each is evaluated once, and read wherever it comes again."""
    ask_cpu(monkeypatch, isa_target=cpu.ISA_TARGETS[target])
    inputs = make_inputs((40, 53), batch=3, channels=5, hidden=(40, 24))
    origins = {"a": (0, 0), "b": (7, 0), "c": (3, 5), "d": (9, 9)}

    def check(names: str, use: str, maps_read: int) -> None:
        options = {"origin": [origins[name] for name in names], "extent": (80, 80)}
        arguments = inputs.features[: len(names)], inputs.phi, inputs.residual
        logits, report = scp(*arguments, backend="cpu", **options), cpu.last_report()
        assert (report.field_cache, report.maps_read) == (use, maps_read), names
        assert torch.equal(logits, uncached(monkeypatch, *arguments, **options)), names

    check("abc", "unused", 0)
    check("cba", "stored", 0)
    check("ca", "read", 2)
    check("b", "read", 1)
    check("adb", "read", 2)  # d has not been seen before
    check("bda", "stored", 2)
    check("dc", "read", 2)


def test_a_batch_with_a_map_that_is_not_finite(monkeypatch):
    """Such a batch is evaluated densely, maps in the cache too: what comes out does not depend on the cache."""
    inputs = make_inputs((40, 53), batch=2, channels=5, hidden=(40, 24))
    affine = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).repeat(2, 1, 1)
    phi_and_residual = inputs.phi, inputs.residual
    for use in ("unused", "stored", "read"):
        scp(inputs.features[:1], *phi_and_residual, affine=affine[:1], extent=(80, 80), backend="cpu")
        assert cpu.last_report().field_cache == use
    affine[1, 0, 2] = torch.inf
    options = {"affine": affine, "extent": (80, 80)}
    truth = uncached(monkeypatch, inputs.features, *phi_and_residual, **options)
    for _ in range(3):
        logits = scp(inputs.features, *phi_and_residual, backend="cpu", **options)
        assert cpu.last_report().field_cache == "unused"
        torch.testing.assert_close(logits, truth, rtol=0, atol=0, equal_nan=True)


def test_training_caches_nothing():
    torch.manual_seed(0)
    head = FusedSCP(5, 1, (40, 24), position="centered", backend="cpu")
    optimizer = torch.optim.SGD(head.parameters(), lr=1e-3)
    features = torch.randn(1, 5, 40, 48)
    for _ in range(5):
        loss = head(features).square().mean()
        assert cpu.last_report().field_cache == "unused"
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert cpu.weight_field_cache_bytes() < 5 * 40 * 48 * 4


def test_the_admission_threshold_rises_when_a_stored_field_was_not_read():
    """The first layer is frozen, the others are trained: no call in two pays for a field that is never read."""
    inputs = make_inputs((40, 48), batch=1, channels=5, hidden=(40, 24))
    stored = 0
    for _ in range(64):
        inputs.phi[2].data.add_(1e-3)
        scp(inputs.features, inputs.phi, inputs.residual, backend="cpu")
        stored += cpu.last_report().field_cache == "stored"
    assert 1 <= stored <= 6


def test_the_cache_is_bounded(monkeypatch):
    ask_cpu(monkeypatch, cache_bytes=1 << 20)
    uses = set()
    for seed in range(100):
        inputs = make_inputs((64, 64), batch=1, channels=16, hidden=(16, 8), seed=seed)  # W is 256 KiB
        for _ in range(3):
            scp(inputs.features, inputs.phi, inputs.residual, backend="cpu")
            assert cpu.weight_field_cache_bytes() <= 1 << 20
        uses.add(cpu.last_report().field_cache)
    # Fields in use are not pushed out, those that lie idle are.
    assert uses == {"read", "unused"} and cpu.weight_field_cache_bytes() > 1 << 19
    cpu.clear_weight_field_cache()
    assert cpu.weight_field_cache_bytes() == 0
    large = make_inputs((160, 224), batch=1, channels=16, hidden=(16, 8))  # W is 2.2 MiB
    for _ in range(3):
        scp(large.features, large.phi, large.residual, backend="cpu")
    assert cpu.last_report().field_cache == "unused"


def test_fields_of_a_batch_that_do_not_all_fit(monkeypatch):
    """W of each map is 256 KiB: three of five stay, and the others are evaluated without another try to store them."""
    ask_cpu(monkeypatch, cache_bytes=1 << 20)
    inputs = make_inputs((64, 64), batch=5, channels=16, hidden=(16, 8))
    options = {"origin": [[k, 0] for k in range(5)], "extent": (80, 80)}
    reports = []
    for _ in range(5):
        scp(inputs.features, inputs.phi, inputs.residual, backend="cpu", **options)
        assert cpu.weight_field_cache_bytes() <= 1 << 20
        reports.append((cpu.last_report().field_cache, cpu.last_report().maps_read))
    assert reports == [("unused", 0), ("stored", 0), ("read", 3), ("read", 3), ("read", 3)]


def test_fields_of_one_head_share_the_copy_of_its_parameters():
    inputs = make_inputs((8, 8), batch=6, channels=4, hidden=(96, 96))
    options = {"origin": [[k, 0] for k in range(6)], "extent": (80, 80)}
    for _ in range(3):
        scp(inputs.features, inputs.phi, inputs.residual, backend="cpu", **options)
    assert cpu.last_report().maps_read == 6
    w2, coefficients, field = 96 * 96 * 4, 96 * 3 * 8, 8 * 8 * 4 * 4
    assert w2 < cpu.weight_field_cache_bytes() < 2 * w2 + 6 * (coefficients + field)
    inputs.phi[2].data[0, 0] += 1  # all six are dropped, and with the last of them the copy
    scp(inputs.features, inputs.phi, inputs.residual, backend="cpu", **options)
    assert cpu.weight_field_cache_bytes() == 6 * coefficients


def test_many_position_maps_are_not_remembered(monkeypatch):
    """A crop for each sample never comes again; the coefficients alone would be megabytes per call."""
    ask_cpu(monkeypatch, cache_bytes=1 << 20)
    inputs = make_inputs((4, 4), batch=500, channels=4, hidden=(256, 8))
    for seed in range(3):
        origin = torch.rand(500, 2, generator=torch.Generator().manual_seed(seed)) * 100
        scp(inputs.features, inputs.phi, inputs.residual, origin=origin, extent=(160, 224), backend="cpu")
        assert cpu.weight_field_cache_bytes() == 0


@pytest.fixture
def calls_of_frozen_heads(monkeypatch):
    """A function of k that calls one of four heads, now and then after the cache was emptied: was it right?"""
    problems = [make_inputs((40, 48), batch=1, channels=5, hidden=(40, 24), seed=seed) for seed in range(4)]
    truths = [uncached(monkeypatch, p.features, p.phi, p.residual) for p in problems]

    def call(k: int) -> bool:
        inputs = problems[k % 4]
        if k % 17 == 0:
            cpu.clear_weight_field_cache()
        return torch.equal(scp(inputs.features, inputs.phi, inputs.residual, backend="cpu"), truths[k % 4])

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked child cannot start OpenMP's threads again
    yield call
    torch.set_num_threads(threads)


def test_the_cache_serves_many_threads(calls_of_frozen_heads):
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(calls_of_frozen_heads, range(400)))


def test_a_child_forked_among_threads_has_the_cache(calls_of_frozen_heads):
    def fork_and_call() -> int:
        child = os.fork()
        if child == 0:
            os._exit(0 if all(calls_of_frozen_heads(k) for k in range(1, 9)) else 1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    with ThreadPoolExecutor(4) as pool:
        results = pool.map(calls_of_frozen_heads, range(400))
        children = [fork_and_call() for _ in range(4)]
        assert all(results) and children == [0] * 4
