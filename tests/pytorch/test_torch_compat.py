"""PyTorch's private interfaces: those that the package uses are there, and without them it is slower and right."""

import os
import re
from pathlib import Path

import pytest
import torch

import scp_kernels
from scp_kernels import FusedSCP, _torch_compat, ops
from tests.support.cpu_settings import needs_cpu
from tests.support.processes import run_python

# Hides names of PyTorch from the package alone, since PyTorch itself needs them.
WITHOUT = """
import pkgutil, sys
import torch
resolve = pkgutil.resolve_name
def hide(path):
    if path in sys.argv[1:]:
        raise AttributeError(path)
    return resolve(path)
pkgutil.resolve_name = hide
from scp_kernels import FusedSCP, _torch_compat, ops
assert set(_torch_compat.MISSING) == set(sys.argv[1:]), _torch_compat.MISSING
direct = []
original = ops._EagerFunction.apply
ops._EagerFunction.apply = lambda *a: direct.append(1) or original(*a)

torch.manual_seed(0)
head, truth = FusedSCP(3, 2, 8, bias=True, backend="cpu"), FusedSCP(3, 2, 8, bias=True, backend="reference")
truth.load_state_dict(head.state_dict())
auto = FusedSCP(3, 2, 8, bias=True)
auto.load_state_dict(head.state_dict())
x = torch.randn(4, 3, 9, 8)
def agree(function, *heads):
    expected = function(truth)
    for h in heads or (head, auto):
        result = function(h)
        assert torch.linalg.vector_norm(result - expected) <= 1e-5 * torch.linalg.vector_norm(expected), function
def gradient(h):
    leaf = x.clone().requires_grad_()
    h.zero_grad()
    h(leaf).square().sum().backward()
    return torch.cat([leaf.grad.flatten(), *(p.grad.flatten() for p in h.parameters())])
agree(lambda h: h(x).detach())
agree(lambda h: h(x, origin=(3, 4), extent=(20, 30)).detach())
agree(gradient)
agree(lambda h: torch.compile(h, backend="aot_eager", fullgraph=True)(x).detach())
agree(lambda h: torch.func.vmap(lambda y: h(y[None])[0])(x).detach())
agree(lambda h: torch.func.vmap(torch.func.grad(lambda y: h(y[None]).square().sum()))(x).detach())
agree(lambda h: torch.func.jvp(h, (x,), (x.square(),))[1].detach(), auto)
agree(lambda h: torch.func.grad(lambda y: torch.func.grad(lambda z: h(z).square().sum())(y).square().sum())(x).detach())
agree(lambda h: h(torch.complex(x, x).conj().imag).detach())
try:
    torch.func.jvp(head, (x,), (x,))
except NotImplementedError as error:
    assert "no forward-mode derivative" in str(error)
else:
    raise AssertionError("a tangent was dropped")
print("direct calls:", len(direct))
"""


@pytest.mark.parametrize("path", _torch_compat.PRIVATE)
def test_a_private_name_is_there(path):
    assert path not in _torch_compat.MISSING, (
        f"PyTorch {torch.__version__} has no {path}: {_torch_compat.PRIVATE[path]}. "
        "Look for what took its place, or lift the bound of torch in pyproject.toml no further"
    )


def test_dynamo_keeps_what_is_marked_constant():
    @_torch_compat.constant_to_dynamo
    def opaque() -> int:
        return len(os.listdir("/"))  # nothing that a graph can hold

    compiled = torch.compile(lambda x: x + opaque(), backend="eager", fullgraph=True)
    with torch.no_grad():
        assert compiled(torch.zeros(1)).item() > 0, (
            f"Dynamo of PyTorch {torch.__version__} does not look for _dynamo_marked_constant: "
            "see torch.compiler.assume_constant_result for what took its place"
        )


@needs_cpu
def test_plain_calls_go_past_the_dispatcher(monkeypatch):
    """What the private names are for; a PyTorch with other dispatch keys would take the slower path unseen."""
    head = FusedSCP(3, 2, 8, backend="cpu")

    def refuse(*arguments):
        raise AssertionError(f"dispatch keys of PyTorch {torch.__version__} are not those that _torch_compat knows")

    monkeypatch.setattr(ops, "scp_forward", refuse)
    monkeypatch.setattr(ops, "scp_backward", refuse)
    head(torch.randn(1, 3, 4, 5, requires_grad=True)).sum().backward()
    with torch.inference_mode():
        head(torch.randn(1, 3, 4, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        head(torch.randn(1, 3, 4, 5))


MISSING = {
    "dispatch keys, autograd kernel": ["torch._C._dispatch_keys", "torch._library.autograd.make_autograd_impl"],
    "transforms, forward mode": [
        "torch._C._functorch.get_interpreter_stack",
        "torch.autograd.forward_ad._current_level",
    ],
    "all": list(_torch_compat.PRIVATE),
}


@needs_cpu
@pytest.mark.parametrize(
    "missing", [pytest.param(name, marks=[] if name == "all" else pytest.mark.thorough) for name in MISSING]
)
def test_without_private_names_results_are_the_same(missing):
    done = run_python("-W", "ignore", "-c", WITHOUT, *MISSING[missing])
    assert ("direct calls: 0" in done.stdout) == ("torch._C._dispatch_keys" in MISSING[missing]), done.stdout


def test_the_module_inside_of_a_compiled_one_is_found():
    layer = torch.nn.Linear(2, 2)
    assert _torch_compat.uncompiled(layer) is layer
    assert _torch_compat.uncompiled(torch.compile(layer, backend="eager")) is layer, (
        f"PyTorch {torch.__version__} keeps a compiled module under another name than _orig_mod"
    )


# The dictionaries of nn.Module that subclasses may use are no more private than their names say.
PRIVATE_USE = re.compile(
    r"\btorch(\.\w+)*\._(?!_)\w+|\bfrom torch[\w.]* import [^\n]*\b_\w+|\b_(orig_mod|dynamo_\w+)\b"
)


def test_private_interfaces_of_pytorch_are_used_in_one_place():
    package = Path(scp_kernels.__file__).parent
    for path in package.rglob("*.py"):
        if path.name != "_torch_compat.py":
            used = [match[0] for match in PRIVATE_USE.finditer(path.read_text(encoding="utf-8"))]
            assert not used, f"{path.relative_to(package)}: {used}"
    assert PRIVATE_USE.search(Path(_torch_compat.__file__).read_text(encoding="utf-8"))
