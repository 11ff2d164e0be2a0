"""What a pass of the Triton backend allocates, counted by PyTorch's dispatcher, with memory or without (``meta``)."""

from contextlib import nullcontext
from unittest import mock

import torch
from problems import Inputs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scp_kernels import dispatch, ops
from scp_kernels.problem import first_layer_coefficients, identity_affine, position_matrix


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
    from scp_kernels.backends.triton import launch

    device = inputs.features.device
    shape = inputs.features.shape[2:]
    extent = torch.tensor(shape, dtype=torch.float64)
    matrix = position_matrix(identity_affine(len(shape), torch.device("cpu")), extent, "pixels").to(device)
    w1, b1, w2, b2, w3, b3 = inputs.phi
    features = inputs.features
    problem = ops._problem(features, w1, w2, inputs.residual, matrix)
    backend = dispatch.BACKENDS["triton"]
    no_kernels = mock.patch.object(launch.Launch, "run", lambda self: None)
    used = {}
    with no_kernels if device.type == "meta" else nullcontext():
        for name in ("forward", "backward", "backward of the parameters alone"):
            with Allocations() as allocations:
                coefficients = first_layer_coefficients(w1, b1, matrix)
                if name == "forward":
                    out = backend.forward(features, (w2, b2, w3, b3), inputs.residual, None, coefficients, problem)
                else:
                    out = backend.backward(
                        inputs.grad_logits, features, (w2, b2, w3, b3), inputs.residual, coefficients, problem,
                        name == "backward", True,
                    )  # fmt: skip
            used[name] = allocations.bytes_beyond(tensors_of(out))
    return used
