"""Memory beyond the results that a call of the CUDA backend takes, on the host."""

from functools import partial

import pytest
import torch

from scp_kernels import scp
from scp_kernels.backends import cuda
from scp_kernels.backends.cuda import requirements, sized_cuda_call
from scp_kernels.problem import Problem
from tests.support.agreement import agree
from tests.support.cuda_host import ON_THE_HOST, HostCuda, build, problem_like
from tests.support.poison import poisoned_memory  # noqa: F401  (of every test)
from tests.support.problems import away_from_kinks, evaluate, make_inputs

pytestmark = ON_THE_HOST
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
check = partial(agree, backend="cuda")


def test_partial_gradients_lie_in_the_features_gradient():
    """Which is written last: where it is large enough, backward needs next to no memory of its own."""
    inputs = make_inputs((21, 40), batch=16, channels=8, hidden=(24, 20), classes=2, bias=True)
    call = sized_cuda_call(problem_like(inputs), HostCuda().shared_memory, 4)
    alone = requirements(build(), call, True).workspace_bytes
    call.scratch_alias_bytes = inputs.features.nbytes
    assert requirements(build(), call, True).workspace_bytes < alone / 8
    check(away_from_kinks(inputs))
    for call.scratch_alias_bytes in range(0, inputs.features.nbytes, 64):
        assert alone - requirements(build(), call, True).workspace_bytes <= call.scratch_alias_bytes


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_scratch_alias_is_no_larger_than_the_features_gradient(monkeypatch, dtype):
    sizes_of_alias = []

    def recorded(loaded, call, backward):
        sizes_of_alias.append(call.scratch_alias_bytes)
        return requirements(loaded, call, backward)

    monkeypatch.setattr(cuda, "requirements", recorded)
    inputs = make_inputs(dtype=dtype)
    evaluate(scp, inputs, backend="cuda")
    assert sizes_of_alias[-1] == inputs.features.nbytes


@pytest.mark.parametrize("channels", [8, 40])
def test_three_blocks_of_the_parameters_gradients(channels):
    """Where a multiprocessor has 64 KiB of shared memory, at h = 64, whatever the number of outputs."""
    head = Problem(1, channels, 1, (64, 64), (160, 224), 1, torch.float32, torch.float32, torch.device("cpu"))
    assert 3 * requirements(build(), sized_cuda_call(head, 64 * 1024, 30), True).shared_parameters <= 64 * 1024


def test_workspace_is_bounded():
    """At the paper's largest head, and at maps of any size."""
    head = Problem(14, 32, 1, (256, 256), (160, 224), 1, torch.float32, torch.float32, torch.device("cpu"))
    call = sized_cuda_call(head, 227 * 1024, 132)
    assert requirements(build(), call, True).workspace_bytes < 32 * 2**20
    call.scratch_alias_bytes = 14 * 32 * 160 * 224 * 4
    assert requirements(build(), call, True).workspace_bytes < 2 * 2**20
    large = Problem(1, 32, 1, (256, 256), (4096, 4096), 1, torch.float32, torch.float32, torch.device("cpu"))
    flags = 4 * (4096 * 4096 // 128)
    assert requirements(build(), sized_cuda_call(large, 227 * 1024, 132), True).workspace_bytes < 32 * 2**20 + flags
