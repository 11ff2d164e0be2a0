"""What the operator is measured against: the same head as others write it, and the plain head that it replaces.

Every entrant is a module from features to logits whose parameters come in the order of Φ's six tensors and w_r, so that
all are checked and driven alike.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from scp_kernels import FusedSCP, count_macs
from scp_models.networks.paper_style import PaperStyle
from scp_models.networks.positions import position_channels
from tests.support.cases import Case
from tests.support.memory import resident_growth
from tests.support.problems import Inputs

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
PLAIN, PRODUCT, PAPER_STYLE, BATCH_SHARED = "plain 1x1", "plain product", "paper-style", "batch-shared"
COMPILED, PRECOMPUTED, COORDCONV = "torch.compile", "W precomputed", "CoordConv"
OTHER_FUNCTIONS = (PLAIN, PRODUCT, COORDCONV)
"""What computes another, smaller function: checked against its own float64, and no measure of what Φ costs."""
FROZEN = ", frozen"
ONE_MAP = ", one map"
"""Ours at one sample after another with the map of each, where every sample has its own."""


def fused(inputs: Inputs, backend: str) -> FusedSCP:
    """The head with the parameters of ``inputs``."""
    classes, channels = inputs.residual.shape
    head = FusedSCP(
        channels,
        classes,
        (len(inputs.phi[1]), len(inputs.phi[3])),
        spatial_dims=inputs.features.ndim - 2,
        position_dims=inputs.phi[0].shape[1] // 2,
        backend=backend,
        device=inputs.features.device,
    )
    with torch.no_grad():
        for parameter, value in zip(head.parameters(), (*inputs.phi, inputs.residual), strict=True):
            parameter.copy_(value)
    return head


class PlainProduct(nn.Module):
    """A 1×1 convolution without bias as one matrix product: the same numbers, whichever way a library convolves."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)  # [N, C]

    def forward(self, features: Tensor) -> Tensor:
        return torch.matmul(self.weight, features.flatten(2)).unflatten(2, features.shape[2:])


class CoordConv(nn.Module):
    """A 1×1 convolution of the features and their positions as channels: the plain way to tell a head where it is."""

    def __init__(self, channels: int, classes: int, position_dims: int, device: torch.device) -> None:
        super().__init__()
        self.position_dims = position_dims
        self.convolution = nn.Conv2d(channels + 2 * position_dims, classes, 1, bias=False, device=device)

    def forward(self, features: Tensor, affine: Tensor, extent: Tensor | None = None) -> Tensor:
        places = position_channels(
            features, position="centered", position_dims=self.position_dims, affine=affine, extent=extent
        )
        return self.convolution(torch.cat([features, places], 1))


class Precomputed(nn.Module):
    """W + w_r kept as a tensor: what anybody can do in PyTorch once the weights no longer change."""

    field: Tensor  # [N, C, *shape]

    def __init__(self, head: FusedSCP, shape: tuple[int, ...]) -> None:
        super().__init__()
        with torch.no_grad():
            self.register_buffer("field", head.weight_field(shape))

    def forward(self, features: Tensor) -> Tensor:
        return (self.field * features[:, None]).sum(2).to(features.dtype)


@dataclass
class Entrant:
    """A head that is timed: ours, or a peer."""

    module: nn.Module
    ours: bool = False
    prepare: Callable[[], None] | None = None
    """Called before each call, outside of the time."""
    positions: dict[str, Tensor] = field(default_factory=dict)
    """Position arguments of the module, if it takes any."""
    one_by_one: bool = False
    """Each call takes the next sample of the batch, alone."""

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        return tuple(self.module.parameters())


def weights_changed(head: nn.Module) -> Callable[[], None]:
    """An optimizer's step in miniature: a few units in the last place, always up, so that no weights come twice."""

    @torch.no_grad()
    def step() -> None:
        for parameter in head.parameters():
            parameter.mul_(1 + 2**-22)

    return step


def peers_of(
    case: Case, inputs: Inputs, step: str, *, compiled: bool = True, only: str | None = None
) -> dict[str, Entrant]:
    """Everything that is timed in one run, by name, ours last; all but ``OTHER_FUNCTIONS`` compute the same function.

    Args:
        inputs: the case's, on the device that is measured.
        step: ``"forward"`` (gradients off) or ``"training"`` (forward and all gradients).
        compiled: with ``torch.compile``, which takes seconds to compile.
        only: make this one and no other.
    """
    device = inputs.features.device
    positions = case.positions(device)

    def plain() -> Entrant:
        convolution = CONVOLUTIONS[len(case.shape)](case.channels, 1, 1, bias=False, device=device, dtype=case.dtype)
        convolution.weight.data.copy_(inputs.residual.reshape(convolution.weight.shape))
        return Entrant(convolution)

    def compile_reference() -> Entrant:
        torch.compiler.reset()  # it refuses the ninth specialisation of one function
        network = torch.compile(fused(inputs, "reference"), dynamic=False)
        assert isinstance(network, nn.Module)
        return Entrant(network, positions=positions)

    def changing(name: str, one_by_one: bool = False) -> Entrant:
        head = fused(inputs, name)
        return Entrant(head, ours=True, prepare=weights_changed(head), positions=positions, one_by_one=one_by_one)

    makers: dict[str, Callable[[], Entrant]] = {
        PLAIN: plain,
        PRODUCT: lambda: Entrant(PlainProduct(inputs.residual.to(case.dtype, copy=True))),
        PAPER_STYLE: lambda: Entrant(PaperStyle(fused(inputs, "reference")), positions=positions),
        BATCH_SHARED: lambda: Entrant(fused(inputs, "reference"), positions=positions),
    }
    if case.per_sample:
        makers[COORDCONV] = lambda: Entrant(
            CoordConv(case.channels, 1, case.problem().position_dims, device), positions=positions
        )
    if compiled:
        makers[COMPILED] = compile_reference
    if step == "forward" and not case.per_sample:
        makers[PRECOMPUTED] = lambda: Entrant(Precomputed(fused(inputs, "reference"), case.shape))
    for name in reversed(case.backends(device)):
        if step == "forward" and name == "cpu":
            makers[name + FROZEN] = lambda: Entrant(fused(inputs, "cpu"), ours=True, positions=positions)
        if case.per_sample:
            makers[name + ONE_MAP] = partial(changing, name, one_by_one=True)
        makers[name] = partial(changing, name)
    return {name: make() for name, make in makers.items() if only in (None, name)}


def call(entrant: Entrant, inputs: Inputs, step: str) -> Callable[[], Any]:
    """What is timed: a forward with gradients off, or a forward and the gradients of features and parameters."""
    if not entrant.one_by_one:
        return _call(entrant, entrant.positions, inputs.features, inputs.grad_logits, step)
    samples = []
    for k in range(len(inputs.features)):
        positions = {name: value[k] if name == "affine" else value for name, value in entrant.positions.items()}
        features, grad_logits = (t[k : k + 1].clone() for t in (inputs.features, inputs.grad_logits))
        samples.append(_call(entrant, positions, features, grad_logits, step))
    turns = itertools.cycle(samples)
    return lambda: next(turns)()


def _call(
    entrant: Entrant, positions: dict[str, Tensor], features: Tensor, grad_logits: Tensor, step: str
) -> Callable[[], Any]:
    module = entrant.module
    if step == "forward":
        return torch.no_grad()(lambda: module(features, **positions))
    leaves = (features.detach().requires_grad_(), *entrant.parameters)
    return lambda: torch.autograd.grad(module(leaves[0], **positions), leaves, grad_logits)


def resident_bytes_of_call(case: Case, step: str, name: str) -> int | None:
    """Growth of a fresh process's resident memory at the peak of one call, in bytes (CPU)."""
    inputs = case.inputs()
    entrant = peers_of(case, inputs, step, only=name)[name]
    # A small call loads the code. These two know one size only.
    small = inputs if name in (COMPILED, PRECOMPUTED) else replace(case, shape=(24,) * len(case.shape)).inputs()
    call(entrant, small, step)()
    return resident_growth(call(entrant, inputs, step))


def call_macs(name: str, entrant: Entrant, case: Case, inputs: Inputs, step: str) -> int:
    """Multiply-adds that one call executes."""
    problem = case.problem(inputs.features.device)
    product = problem.product_macs * (3 if step == "training" else 1)  # Y; the gradients of X and of W
    if name in (PLAIN, PRODUCT, PRECOMPUTED):
        return product
    if name == COORDCONV:  # 2K more channels, and no gradient of these
        positions = 2 * problem.position_dims * case.batch * problem.pixels
        return product + (2 * positions if step == "training" else positions)
    if name in (PAPER_STYLE, BATCH_SHARED, COMPILED):
        phi = problem.phi_macs
        if step == "training":  # every layer's gradients of weights and of inputs, but for the positions'
            phi = 3 * phi - problem.groups * problem.pixels * 2 * problem.position_dims * case.hidden
        # Paper-style: Φ for every sample, and w_r X apart.
        return case.batch // problem.groups * phi + 2 * product if name == PAPER_STYLE else phi + product
    if entrant.prepare is not None:
        entrant.prepare()
    run, calls = call(entrant, inputs, step), case.batch if entrant.one_by_one else 1
    with count_macs() as executed:
        for _ in range(calls):
            run()
    return (executed.macs + product) // calls
