"""Data parallelism and sharded parameters over two processes: what one process would have learned."""

import pytest
import sharded
import torch
from tolerances import relative_error

from scp_kernels import backends

ON_A_CPU = [name for name in ("reference", "cpu") if backends()[name].usable]


@pytest.mark.parametrize("backend", ON_A_CPU)
@pytest.mark.parametrize("wrapping", ["ddp", "fully_shard"])
def test_two_processes_learn_what_one_does(wrapping, backend, tmp_path):
    torch.multiprocessing.spawn(sharded.work, (wrapping, backend, str(tmp_path)), nprocs=sharded.PROCESSES)
    found = torch.load(tmp_path / "parameters.pt", weights_only=True)
    for name, expected in sharded.alone(backend).items():
        assert relative_error(found[name], expected) <= 1e-5, name
