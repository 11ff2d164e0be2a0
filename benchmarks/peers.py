"""What the operator is measured against: the same head as others write it, and the plain head that it replaces.

Every subject is a module from features to logits whose parameters come in the order of Φ's six tensors and w_r, so that
all are checked and driven alike.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

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


def fused(inputs: Inputs, backend: str) -> FusedSCP:
    """The head with the parameters of ``inputs``."""
    classes, channels = inputs.residual.shape
    head = FusedSCP(
        channels,
        classes,
        (len(inputs.phi[1]), len(inputs.phi[3])),
        spatial_dims=inputs.features.ndim - 2,
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

    def __init__(self, channels: int, classes: int, device: torch.device) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels + 4, classes, 1, bias=False, device=device)

    def forward(self, features: Tensor, affine: Tensor | None = None) -> Tensor:
        places = position_channels(features, position="centered", affine=affine)
        return self.convolution(torch.cat([features, places], 1))


class Precomputed(nn.Module):
    """W + w_r kept as a tensor: what anybody can do in PyTorch once the weights no longer change."""

    def __init__(self, head: FusedSCP, shape: tuple[int, ...]) -> None:
        super().__init__()
        with torch.no_grad():
            self.register_buffer("field", head.weight_field(shape))  # [N, C, *shape]

    def forward(self, features: Tensor) -> Tensor:
        return (self.field * features[:, None]).sum(2).to(features.dtype)


@dataclass
class Peer:
    """One thing that is timed."""

    module: nn.Module
    ours: bool = False
    prepare: Callable[[], None] | None = None
    """Called before each call, outside of the time."""
    positions: dict[str, Tensor] = field(default_factory=dict)
    """Position arguments of the module, if it takes any."""

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
) -> dict[str, Peer]:
    """Everything that is timed in one run, by name, ours last; all but ``OTHER_FUNCTIONS`` compute the same function.

    Args:
        inputs: the case's, on the device that is measured.
        step: ``"forward"`` (gradients off) or ``"training"`` (forward and all gradients).
        compiled: with ``torch.compile``, which takes seconds to compile.
        only: make this one and no other.
    """
    device = inputs.features.device
    affine = case.affine(device)
    positions = {} if affine is None else {"affine": affine}

    def plain() -> Peer:
        convolution = CONVOLUTIONS[len(case.shape)](case.channels, 1, 1, bias=False, device=device, dtype=case.dtype)
        convolution.weight.data.copy_(inputs.residual.reshape(convolution.weight.shape))
        return Peer(convolution)

    def compile_reference() -> Peer:
        torch._dynamo.reset()  # it refuses the ninth specialisation of one function
        return Peer(torch.compile(fused(inputs, "reference"), dynamic=False), positions=positions)

    def changing(name: str) -> Peer:
        head = fused(inputs, name)
        return Peer(head, ours=True, prepare=weights_changed(head), positions=positions)

    makers: dict[str, Callable[[], Peer]] = {
        PLAIN: plain,
        PRODUCT: lambda: Peer(PlainProduct(inputs.residual.to(case.dtype, copy=True))),
        PAPER_STYLE: lambda: Peer(PaperStyle(fused(inputs, "reference")), positions=positions),
        BATCH_SHARED: lambda: Peer(fused(inputs, "reference"), positions=positions),
    }
    if case.per_sample:
        makers[COORDCONV] = lambda: Peer(CoordConv(case.channels, 1, device), positions=positions)
    if compiled:
        makers[COMPILED] = compile_reference
    if step == "forward" and not case.per_sample:
        makers[PRECOMPUTED] = lambda: Peer(Precomputed(fused(inputs, "reference"), case.shape))
    for name in reversed(case.backends(device)):
        if step == "forward" and name == "cpu":
            makers[name + FROZEN] = lambda: Peer(fused(inputs, "cpu"), ours=True, positions=positions)
        makers[name] = partial(changing, name)
    return {name: make() for name, make in makers.items() if only in (None, name)}


def call(subject: Peer, inputs: Inputs, step: str) -> Callable[[], object]:
    """What is timed: a forward with gradients off, or a forward and the gradients of features and parameters."""
    module = subject.module
    if step == "forward":
        return torch.no_grad()(lambda: module(inputs.features, **subject.positions))
    leaves = (inputs.features.detach().requires_grad_(), *subject.parameters)
    return lambda: torch.autograd.grad(module(leaves[0], **subject.positions), leaves, inputs.grad_logits)


def resident_bytes_of_call(case: Case, step: str, name: str) -> int | None:
    """Growth of a fresh process's resident memory at the peak of one call, in bytes (CPU)."""
    inputs = case.inputs()
    subject = peers_of(case, inputs, step, only=name)[name]
    # A small call loads the code. These two know one size only.
    small = inputs if name in (COMPILED, PRECOMPUTED) else replace(case, shape=(24,) * len(case.shape)).inputs()
    call(subject, small, step)()
    return resident_growth(call(subject, inputs, step))


def call_macs(name: str, subject: Peer, case: Case, inputs: Inputs, step: str) -> int:
    """Multiply-adds that one call executes."""
    problem = case.problem(inputs.features.device)
    product = problem.product_macs * (3 if step == "training" else 1)  # Y; the gradients of X and of W
    if name in (PLAIN, PRODUCT, PRECOMPUTED):
        return product
    if name == COORDCONV:  # four more channels, and no gradient of these
        positions = 4 * case.batch * problem.pixels
        return product + (2 * positions if step == "training" else positions)
    if name in (PAPER_STYLE, BATCH_SHARED, COMPILED):
        phi = problem.phi_macs
        if step == "training":  # every layer's gradients of weights and of inputs, but for the positions'
            phi = 3 * phi - problem.pixels * 2 * problem.spatial_dims * case.hidden
        # Paper-style: Φ for every sample, and w_r X apart.
        return case.batch // problem.groups * phi + 2 * product if name == PAPER_STYLE else phi + product
    if subject.prepare is not None:
        subject.prepare()
    with count_macs() as executed:
        call(subject, inputs, step)()
    return executed.macs + product
