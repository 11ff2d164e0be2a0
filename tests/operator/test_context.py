"""positioned(): whose calls see a context, and whose do not."""

import asyncio
import contextvars
import copy
import importlib
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext

import pytest
import torch
from torch import nn

from scp_kernels import Placement, context, positioned
from tests.support.shared_network import HERE, THERE, Shared


def test_threads_that_share_a_network_see_their_own_context(shared):
    positions = [HERE, THERE, {"origin": (0.0, 0.0), "extent": (9.0, 10.0)}, {}]
    expected = [shared.logits(**position) for position in positions]
    barrier = threading.Barrier(len(positions))

    def work(k):
        right = []
        for _ in range(20):
            with positioned(shared.network, **positions[k]) if positions[k] else nullcontext():
                barrier.wait(10)  # all are inside
                right.append(torch.equal(shared.call(), expected[k]))
                barrier.wait(10)
        return all(right)

    with ThreadPoolExecutor(len(positions)) as pool:
        assert all(pool.map(work, range(len(positions))))
    assert shared.is_plain() and shared.head.placement is None


def test_contexts_of_threads_may_end_in_any_order(shared):
    inside, entered = threading.Event(), threading.Event()
    results = {}

    def first():
        with positioned(shared.network, **HERE):
            inside.set()
            assert entered.wait(10)
            results["first"] = shared.call()

    def second():
        assert inside.wait(10)
        with positioned(shared.network, **THERE):
            entered.set()
            threads[0].join()
            results["second"] = shared.call()

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(results["first"], shared.logits(**HERE))
    assert torch.equal(results["second"], shared.logits(**THERE))
    assert shared.is_plain()


def test_input_shapes_of_threads_are_their_own():
    """Heads on a coarser grid scale positions by the size of their own call's input."""
    shared = Shared(pooled=True)
    inputs = [torch.randn(1, 4, 8, 8), torch.randn(1, 4, 16, 24)]
    barrier = threading.Barrier(2)

    def expected(k):
        return shared.head(nn.AvgPool2d(2)(inputs[k]), origin=(15.0, 15.5), extent=(32.0, 35.0))

    def work(k):
        right = []
        with torch.no_grad(), positioned(shared.network, **HERE):
            for _ in range(20):
                barrier.wait()
                right.append(torch.allclose(shared.network(inputs[k]), expected(k), rtol=1e-5, atol=1e-5))
        return all(right)

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(work, range(2)))


def test_tasks_of_one_thread_see_their_own_context(shared):
    async def work(position):
        results = []
        with positioned(shared.network, **position):
            for _ in range(3):
                await asyncio.sleep(0)
                results.append(shared.call())
        await asyncio.sleep(0)
        return results, shared.call()

    async def without():
        await asyncio.sleep(0)
        return shared.call()

    async def main():
        return await asyncio.gather(work(HERE), work(THERE), without())

    (here, after_here), (there, after_there), plain = asyncio.run(main())
    assert all(torch.equal(r, shared.logits(**HERE)) for r in here)
    assert all(torch.equal(r, shared.logits(**THERE)) for r in there)
    for result in (after_here, after_there, plain):
        assert torch.equal(result, shared.logits())


def test_a_generators_context_is_its_own(shared):
    """A generator runs in the context of its callers, who are not to see what it holds over a yield."""

    def windows(position):
        with positioned(shared.network, **position):
            for _ in range(2):
                yield shared.call()

    first, second = windows(HERE), windows(THERE)
    for _ in range(2):
        assert torch.equal(next(first), shared.logits(**HERE))
        assert torch.equal(next(second), shared.logits(**THERE))
        assert shared.is_plain()
    first.close()
    assert torch.equal(next(windows(HERE)), shared.logits(**HERE))
    second.close()
    assert shared.is_plain() and not context._entries.get() and not context._open


def test_a_context_made_of_a_generator_is_its_callers(shared):
    @contextmanager
    def at_a_place():
        with positioned(shared.network, **HERE):
            yield

    with at_a_place():
        assert torch.equal(shared.call(), shared.logits(**HERE))
    assert shared.is_plain()


@pytest.mark.parametrize("helper", ["exit stack", "context manager", "context manager with an exit stack", "class"])
def test_a_generators_context_is_its_own_however_it_is_entered(shared, helper):
    class AtAPlace:
        def __enter__(self):
            self.stack = ExitStack()
            self.stack.enter_context(positioned(shared.network, **HERE))

        def __exit__(self, *exception):
            self.stack.close()

    @contextmanager
    def at_a_place():
        with ExitStack() as stack:
            if helper == "context manager":
                with positioned(shared.network, **HERE):
                    yield
            else:
                stack.enter_context(positioned(shared.network, **HERE))
                yield

    def windows():
        with ExitStack() as stack:
            if helper == "exit stack":
                stack.enter_context(positioned(shared.network, **HERE))
            elif helper != "class":
                stack.enter_context(at_a_place())
            with AtAPlace() if helper == "class" else nullcontext():
                for _ in range(2):
                    yield shared.call()

    generator = windows()
    for _ in range(2):
        assert torch.equal(next(generator), shared.logits(**HERE))
        assert shared.is_plain()
    with at_a_place():
        assert torch.equal(shared.call(), shared.logits(**HERE))
    generator.close()
    assert shared.is_plain() and not context._open


def test_an_asynchronous_generators_context_is_its_own_when_a_class_enters_it(shared):
    class AtAPlace:
        async def __aenter__(self):
            self.context = positioned(shared.network, **HERE)
            self.context.__enter__()

        async def __aexit__(self, *exception):
            self.context.__exit__(*exception)

    async def windows():
        async with AtAPlace():
            for _ in range(2):
                yield shared.call()

    async def work():
        return [torch.equal(y, shared.logits(**HERE)) and shared.is_plain() async for y in windows()]

    assert asyncio.run(work()) == [True, True] and not context._open


def test_functions_that_are_left_before_their_body_runs_cannot_be_decorated(shared):
    def generator():
        yield shared.call()

    async def task():
        return shared.call()

    async def asynchronous_generator():
        yield shared.call()

    for function in (generator, task, asynchronous_generator):
        with pytest.raises(TypeError, match="expected a plain function to decorate"):
            positioned(shared.network, **HERE)(function)


def test_a_decorated_function_is_inside(shared):
    @positioned(shared.network, **HERE)
    def call(again):
        result = shared.call()
        return call(again - 1) if again else result

    assert torch.equal(call(2), shared.logits(**HERE))
    assert shared.is_plain()


def test_a_context_is_entered_once(shared):
    here = positioned(shared.network, **HERE)
    with here, pytest.raises(RuntimeError, match="entered already"), here:
        pytest.fail("entered")
    assert shared.is_plain()


def test_exceptions_leave_every_context(shared):
    with pytest.raises(KeyError), positioned(shared.network, **HERE), positioned(shared.network, **THERE):
        raise KeyError
    with pytest.raises(ValueError, match="origin: expected shape"), positioned(shared.network, origin=(1.0, 2.0, 3.0)):
        shared.call()
    assert shared.is_plain() and not context._open


def test_positions_in_half_precision_are_refused_at_once(shared):
    """What a precision of the whole network would make of them: 90.3 mm are 90.5 in bfloat16."""
    for name, values in ({"affine": torch.eye(2, 3)} | {k: torch.tensor(v) for k, v in HERE.items()}).items():
        for make in (lambda **p: positioned(shared.network, **p).__enter__(), Placement):
            with pytest.raises(TypeError, match=f"{name}: expected float32 or float64 .* got torch.bfloat16"):
                make(**{name: values.bfloat16()})
    assert shared.is_plain()


def test_only_the_networks_own_heads_see_it(shared):
    other, copied = Shared(), copy.deepcopy(shared.network)
    with positioned(shared.network, **HERE):
        assert other.is_plain()
        assert torch.equal(copied(shared.x), shared.logits(origin=(0.0, 0.0), extent=(8.0, 10.0)))


def test_a_placement_on_the_head_stands_behind_every_context(shared):
    shared.head.placement = Placement(**HERE)
    assert torch.equal(shared.call(), shared.logits(**HERE))
    with positioned(shared.network, **THERE):
        assert torch.equal(shared.call(), shared.logits(**THERE))
    with positioned(shared.network, origin=(1.0, 2.0)):
        assert torch.equal(shared.call(), shared.logits(origin=(1.0, 2.0), extent=HERE["extent"]))
    assert torch.equal(shared.call(), shared.logits(**HERE))


def test_a_thread_started_inside_takes_a_copy_of_the_context(shared):
    with positioned(shared.network, **HERE), ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(shared.call).result(), shared.logits(origin=(0.0, 0.0), extent=(8.0, 10.0)))
        inside = contextvars.copy_context()
        assert torch.equal(pool.submit(inside.run, shared.call).result(), shared.logits(**HERE))


def replicas_of(network, monkeypatch, count=2):
    """What nn.DataParallel makes of a network, with every device's copy of a tensor on the CPU."""
    data_parallel = importlib.import_module("torch.nn.parallel.replicate")  # a function of the package has its name
    monkeypatch.setattr(data_parallel, "_replicatable_module", lambda module: True)
    monkeypatch.setattr(
        data_parallel,
        "_broadcast_coalesced_reshape",  # what comes back are plain tensors, no parameters
        lambda tensors, devices, detach: [[t.view_as(t) for t in tensors] for _ in range(count)],
    )
    monkeypatch.setattr(data_parallel, "_get_device_index", lambda device, optional: device)
    return data_parallel.replicate(network, list(range(count)))


@pytest.mark.parametrize("pooled", [False, True])
@torch.no_grad()
def test_replicas_of_data_parallel_take_the_context_into_their_threads(pooled, monkeypatch):
    shared = Shared(pooled=pooled)

    class Parallel(nn.Module):  # nn.DataParallel needs GPUs
        def __init__(self):
            super().__init__()
            self.module = shared.network

        def forward(self, x):
            replicas = replicas_of(self.module, monkeypatch)
            with ThreadPoolExecutor(2) as pool:
                return torch.cat(list(pool.map(lambda n, part: n(part), replicas, x.chunk(2))))

    parallel = Parallel()
    with positioned(shared.network, **HERE):
        expected = shared.call()
    plain = shared.call()
    with positioned(parallel, **HERE):
        assert torch.allclose(parallel(shared.x), expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(parallel(shared.x), plain, rtol=1e-5, atol=1e-5)
    with positioned(shared.network, **HERE), pytest.raises(RuntimeError, match="expected the DataParallel module"):
        parallel(shared.x)
    origins = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    with positioned(parallel, origin=origins), pytest.raises(ValueError, match=r"origin: expected shape \[2\]"):
        parallel(shared.x)


@torch.no_grad()
def test_a_replica_may_enter_a_context_itself(shared, monkeypatch):
    """As a network does that reads positions off its input."""

    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = shared.network

        def forward(self, x, origin):
            with positioned(self.network, origin=origin, extent=HERE["extent"]):
                return self.network(x)

    replicas = replicas_of(Inside(), monkeypatch)
    origins = [HERE["origin"], (1.0, 2.0)]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda replica, origin: replica(shared.x, origin), replicas, origins))
    for result, origin in zip(results, origins, strict=True):
        assert torch.allclose(result, shared.logits(origin=origin, extent=HERE["extent"]), rtol=1e-5, atol=1e-5)


def test_a_backward_pass_of_autograds_own_thread_is_in_its_callers_context(shared, monkeypatch):
    """With activation checkpointing on a GPU it calls the head again, in a thread that has no context."""
    with positioned(shared.network, **HERE), ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(context, "in_backward", lambda: True)
        assert torch.equal(pool.submit(shared.call).result(), shared.logits(**HERE))

        def inside():
            with positioned(shared.network, **THERE), ThreadPoolExecutor(1) as autograd:
                return autograd.submit(shared.call).result()

        with pytest.raises(RuntimeError, match="several threads have contexts"):
            pool.submit(inside).result()
    assert shared.is_plain()


def test_checkpointing_calls_the_head_again_in_its_context(shared):
    gradients = []
    for recompute in (False, True):
        x = shared.x.clone().requires_grad_()
        with positioned(shared.network, **HERE):
            call = shared.network
            y = torch.utils.checkpoint.checkpoint(call, x, use_reentrant=False) if recompute else call(x)
            gradients.append(torch.autograd.grad(y.square().sum(), x)[0])
    assert torch.equal(*gradients)
