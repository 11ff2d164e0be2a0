"""Data parallelism and sharded parameters over two processes: what one process would have learned."""

import pytest
import torch

from scp_kernels import available_backends
from tests.support import sharded
from tests.support.tolerances import relative_error

ON_A_CPU = [name for name in ("reference", "cpu") if available_backends()[name].usable]


@pytest.mark.parametrize("backend", ON_A_CPU)
def test_two_processes_learn_what_one_does(backend, tmp_path):
    torch.multiprocessing.spawn(sharded.work, (backend, str(tmp_path)), nprocs=sharded.PROCESSES)
    learned = torch.load(tmp_path / "learned.pt", weights_only=True)
    assert list(learned) == ["ddp", "fully_shard"]
    expected = sharded.alone(backend)
    for wrapping, parameters in learned.items():
        for name, tensor in expected.items():
            assert relative_error(parameters[name], tensor) <= 1e-5, (wrapping, name)
