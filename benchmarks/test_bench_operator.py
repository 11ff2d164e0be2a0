"""The operator at the paper's sizes beside its peers, timed in one run; each result is checked before its time counts.

``pytest benchmarks/ --benchmark-only`` prints the table; ratios between rows of one group are what it is for.
"""

import pytest
import torch
from peers import CASES, Case, peers, truth

from scp_kernels import backends

NAMES = ["plain 1x1", "paper-style", *(name for name, status in backends().items() if status.usable)]


def bytes_saved_for_backward(function, features: torch.Tensor) -> int:
    """Bytes of distinct storages that autograd keeps between forward and backward, beyond features and parameters."""
    inputs = {features.untyped_storage().data_ptr()}
    if isinstance(function, torch.nn.Module):
        inputs |= {p.untyped_storage().data_ptr() for p in function.parameters()}
    saved: dict[int, int] = {}
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in inputs:
            saved[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(features)
    return sum(saved.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("step", ["forward", "training"])
def test_operator(benchmark, step: str, case: Case, name: str):
    benchmark.group = f"{step} {case}"
    function = peers(case)[name]
    features = case.features().requires_grad_(step == "training")
    if name != "plain 1x1":
        with torch.no_grad():
            error = (
                function(features).double() - (expected := truth(case, features.detach()))
            ).norm() / expected.norm()
        # Positions of hundreds of pixels and |W| of hundreds: the naive form is itself at the edge of the table.
        assert error <= 2e-6, f"relative error {error:.1e}"
    benchmark.extra_info.update(
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        saved_bytes=bytes_saved_for_backward(function, features),
    )

    def forward():
        with torch.no_grad():
            function(features)

    def training():
        function(features).sum().backward()

    rounds = 3 if case.batch > 1 else 5
    benchmark.pedantic({"forward": forward, "training": training}[step], rounds=rounds, warmup_rounds=1)
