"""What a pass of the Triton backend allocates, counted by PyTorch's dispatcher, with memory or without (``meta``)."""

from contextlib import nullcontext
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scp_kernels import dispatch
from scp_kernels.positions import identity_affine, position_matrix
from scp_kernels.problem import GradientNeeds, SCPInputs, problem_of
from tests.support.problems import Inputs


class Allocations(TorchDispatchMode):
    """Keeps every storage that appears inside the block, so that none is freed and its address taken again."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tensors_of((args, kwargs))}
        for t in tensors_of(out):
            storage = t.untyped_storage()
            if storage._cdata not in given:
                self.storages.setdefault(storage._cdata, storage)
        return out

    def bytes_beyond(self, results: list[torch.Tensor]) -> int:
        kept = {t.untyped_storage()._cdata for t in results}
        return sum(storage.nbytes() for key, storage in self.storages.items() if key not in kept)


def tensors_of(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def allocated_beyond_results(inputs: Inputs) -> dict[str, int]:
    """Bytes that each pass allocates in all and does not hand out: a bound on its peak. On ``meta`` no kernel runs."""
    from scp_kernels.backends.triton.sequence import Launch

    device = inputs.features.device
    shape = inputs.features.shape[2:]
    extent = torch.tensor(shape, dtype=torch.float64)
    matrix = position_matrix(identity_affine(len(shape), torch.device("cpu")), extent, "pixels").to(device)
    features = inputs.features
    problem = problem_of(features, inputs.phi[0], inputs.phi[2], inputs.residual, 1)
    call = SCPInputs(features, inputs.phi, inputs.residual, None, matrix, problem)
    backend = dispatch.BACKENDS["triton"]
    no_kernels = mock.patch.object(Launch, "run", lambda self: None)
    used = {}
    with no_kernels if device.type == "meta" else nullcontext():
        for name in ("forward", "backward", "backward of the parameters alone"):
            with Allocations() as allocations:
                if name == "forward":
                    out = backend.forward(call)
                else:
                    out = backend.backward(call, inputs.grad_logits, GradientNeeds(name == "backward", True))
            used[name] = allocations.bytes_beyond(tensors_of(out))
    return used
