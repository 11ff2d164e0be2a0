"""A head in MONAI's networks and in two of plain torch: what holds before, in and after training."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.exc import Unsupported

from scp_kernels import FusedSCP
from scp_models.networks import attach, detach, positioned
from tests.support.heads import image, randomize_phi
from tests.support.monai_networks import CASES

ALL = [pytest.param(name, dims, id=f"{name} {dims}-D") for name in CASES for dims in (2, 3)]
SLOW = {"BasicUNet", "SwinUNETR", "UNETR"}  # to compile: 2-D stands for both
COMPILED = [param for param in ALL if param.values[1] == 2 or param.values[0] not in SLOW]
HIDDEN = (6, 5)


def built(name, dims, seed=0):
    torch.manual_seed(seed)
    return CASES[name].build(dims).eval()


def with_heads(network, name, seed=None):
    """With heads, untrained ones, or with a Φ that makes positions matter."""
    for layer in CASES[name].layers:
        attach(network, layer, keep_layer=CASES[name].keep_layer, hidden_channels=HIDDEN)
    heads = [module for module in network.modules() if isinstance(module, FusedSCP)]
    assert len(heads) == len(CASES[name].layers)
    for head in heads if seed is not None else ():
        randomize_phi(head, seed)
    return network, heads


def tensors(outputs):
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def place(dims):
    """A crop, turned and mirrored, of a larger picture."""
    linear = -torch.eye(dims).roll(1, 0)
    return {"affine": torch.cat([linear, torch.full((dims, 1), 90.0)], 1), "extent": [100.0] * dims}


@pytest.mark.parametrize(("name", "dims"), ALL)
def test_a_head_changes_nothing_learns_and_is_saved(name, dims):
    network = built(name, dims)
    names, x = set(network.state_dict()), image(1, 1, *CASES[name].sizes[dims])
    with torch.no_grad():
        before = tensors(network(x))
    _, heads = with_heads(network, name)
    with torch.no_grad():
        after = tensors(network(x))
    assert len(after) == len(before)
    for a, b in zip(after, before, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6 * float(b.abs().max()))
    # Untrained, it can be taken out again, and leaves nothing behind.
    undone = detach(copy.deepcopy(network))
    assert set(undone.state_dict()) == names
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(tensors(undone(x)), before, strict=True))

    for k, head in enumerate(heads):
        randomize_phi(head, k)
    outputs = tensors(network(x))
    with positioned(network, **place(dims)), torch.no_grad():
        elsewhere = tensors(network(x))
    assert all(not torch.allclose(a, b, rtol=1e-2, atol=1e-2) for a, b in zip(outputs, elsewhere, strict=True))
    if name == "DynUNet":  # its other heads are heard in training mode alone
        network.train()
        outputs = tensors(network(x))
    if name == "SegResNetDS":
        network.train()
        outputs = tensors(network(x))
        assert len(outputs) == 2
    sum(t.square().sum() for t in outputs).backward()
    network.eval()
    for head in heads:
        for parameter in head.parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Conv3d))
    assert first.weight.grad.abs().max() > 0

    other, _ = with_heads(built(name, dims, seed=1), name, seed=5)
    other.load_state_dict(network.state_dict())
    with positioned(other, **place(dims)), torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(tensors(other(x)), elsewhere, strict=True))


@pytest.mark.parametrize(("name", "dims"), COMPILED)
def test_a_network_with_a_head_compiles(name, dims):
    torch.compiler.reset()
    x = image(1, 1, *CASES[name].sizes[dims])
    if not CASES[name].fullgraph:  # the network as it is has no one graph
        with torch.no_grad(), pytest.raises(Unsupported):
            torch.compile(built(name, dims), backend="eager", fullgraph=True)(x)
        torch.compiler.reset()
    network, _ = with_heads(built(name, dims), name, seed=1)
    compiled = torch.compile(network, backend="eager", fullgraph=CASES[name].fullgraph)
    with torch.no_grad(), positioned(network, **place(dims)):
        expected, result = tensors(network(x)), tensors(compiled(x))
    for a, b in zip(result, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))
