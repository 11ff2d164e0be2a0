"""positioned() around compiled and exported networks."""

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch

from scp_kernels import positioned
from tests.support.shared_network import HERE, THERE


@torch.no_grad()
def test_compiled_networks_of_threads_see_their_own_context(shared):
    torch.compiler.reset()
    compiled = torch.compile(shared.network, backend="aot_eager", fullgraph=True)
    here, there, plain = shared.logits(**HERE), shared.logits(**THERE), shared.logits()
    for position in ({}, HERE, THERE):  # graphs are made by one thread
        with positioned(compiled, **position):
            compiled(shared.x)
    barrier = threading.Barrier(3)

    def work(position, expected):
        right = []
        for _ in range(5):
            with torch.no_grad(), positioned(compiled, **position) if position else nullcontext():
                barrier.wait(10)
                right.append(torch.allclose(compiled(shared.x), expected, atol=1e-5))
                barrier.wait(10)
        return all(right)

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(work, (HERE, THERE, {}), (here, there, plain)))


def as_dynamo_says(message: str) -> str:
    """A part of what an exception with this message becomes in a graph: Dynamo of PyTorch 2.8 does not repeat it."""

    def refuse(x):
        raise RuntimeError(message)

    with pytest.raises(Exception) as error:
        torch.compile(refuse, backend="eager", fullgraph=True)(torch.zeros(1))
    return message if message in str(error.value) else "Observed exception"


@torch.no_grad()
def test_a_carried_context_reaches_the_compiled_network_that_it_was_given(shared):
    torch.compiler.reset()
    compiled = torch.compile(shared.network, backend="aot_eager", fullgraph=True)

    def is_right(position) -> bool:
        return torch.allclose(compiled(shared.x), shared.logits(**position), atol=1e-5)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(is_right, {}).result()
        with positioned(compiled, **HERE):
            here = contextvars.copy_context()
            assert is_right(HERE) and pool.submit(here.run, is_right, HERE).result()
            with positioned(compiled, **THERE):
                there = contextvars.copy_context()
                assert is_right(THERE) and here.run(is_right, HERE)
            assert is_right(HERE) and pool.submit(is_right, {}).result()
        assert is_right({}) and here.run(is_right, HERE) and there.run(is_right, THERE) and is_right({})
        assert pool.submit(there.run, is_right, THERE).result() and pool.submit(is_right, {}).result()

        def fails(*_):
            raise ZeroDivisionError

        handle = compiled.register_forward_pre_hook(fails)
        with pytest.raises(ZeroDivisionError):
            here.run(compiled, shared.x)
        handle.remove()
        assert is_right({})


@torch.no_grad()
def test_compiled_networks_refuse_tasks_and_generators(shared):
    refusal = as_dynamo_says("entered by an asyncio task or a generator")
    torch.compiler.reset()
    compiled = torch.compile(shared.network, backend="aot_eager", fullgraph=True)

    async def task():
        with positioned(shared.network, **HERE):
            return compiled(shared.x)

    def generator():
        with positioned(shared.network, **HERE):
            yield compiled(shared.x)

    with pytest.raises(Exception, match=refusal):
        asyncio.run(task())
    with pytest.raises(Exception, match=refusal):
        next(generator())
    assert torch.allclose(compiled(shared.x), shared.logits(), atol=1e-5)
    compiled = torch.compile(shared.network, backend="aot_eager")  # the head runs outside of the graph
    assert torch.allclose(asyncio.run(task()), shared.logits(**HERE), atol=1e-5)
    assert torch.allclose(compiled(shared.x), shared.logits(), atol=1e-5)


@pytest.mark.parametrize("strict", [False, True])
@torch.no_grad()
def test_an_exported_network_keeps_the_context_that_it_was_exported_in(shared, strict):
    with positioned(shared.network, **HERE):
        program = torch.export.export(shared.network, (shared.x,), strict=strict).module()
    assert torch.allclose(program(shared.x), shared.logits(**HERE), atol=1e-5)
    plain = torch.export.export(shared.network, (shared.x,), strict=strict).module()
    assert torch.allclose(plain(shared.x), shared.logits(), atol=1e-5)
