"""The operator beside its peers, round-robin in one race per case; each is checked before its time counts.

``pytest benchmarks/ --benchmark-only`` prints the tables; the ratios are what they are for.
"""

import copy
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from benchmarks.peers import (
    COMPILED,
    FROZEN,
    OTHER_FUNCTIONS,
    Entrant,
    call,
    call_macs,
    peers_of,
    resident_bytes_of_call,
)
from benchmarks.race import TimedCall
from scp_models.networks.complexity import bytes_saved_for_backward
from tests.support import cases
from tests.support.cases import Case
from tests.support.memory import cuda_peak
from tests.support.problems import Inputs
from tests.support.tolerances import GRADIENTS, LOGITS, relative_error

# The table is our promise, not that of others: plain PyTorch in raw pixels is itself at its edge. A wrong formula would
# be off by far more than this.
PEERS_SLACK = 10


@lru_cache(maxsize=1)  # a case's two steps follow each other
def exact_results(case: Case, device: str) -> tuple[Inputs, Tensor, list[Tensor]]:
    inputs, logits, gradients = cases.truth(case.inputs(device), case.positions(device))
    return inputs, logits, list(gradients.values())


def exact_plain(entrant: Entrant, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
    """Float64 logits and gradients of a head that computes another function."""
    module = copy.deepcopy(entrant.module).double()
    leaves = [inputs.features.double().requires_grad_(), *module.parameters()]
    logits = module(leaves[0], **entrant.positions)
    return logits.detach(), list(torch.autograd.grad(logits, leaves, inputs.grad_logits.double()))


def check(name: str, entrant: Entrant, case: Case, device: str, step: str) -> tuple[dict[str, float], int | None]:
    """Relative errors of logits and gradients against float64, within tolerance; bytes that a training step keeps."""
    inputs, true_logits, true_gradients = exact_results(case, device)
    if name in OTHER_FUNCTIONS:
        true_logits, true_gradients = exact_plain(entrant, inputs)
    gradients: tuple[Tensor, ...] = ()
    saved = None
    run = call(entrant, inputs, step)
    if step == "forward" and entrant.one_by_one:
        logits = torch.cat([run() for _ in range(case.batch)])
    elif step == "forward":
        # What a backend keeps for unchanged weights is in use from the second call on.
        for _ in range(3 if name.endswith(FROZEN) else 1):
            logits = run()
    elif entrant.one_by_one:
        logits = torch.no_grad()(entrant.module)(inputs.features, **entrant.positions)
        of_features, *of_parameters = zip(*(run() for _ in range(case.batch)), strict=True)
        gradients = (torch.cat(of_features), *(torch.stack(each).sum(0) for each in of_parameters))
    else:
        leaves = (inputs.features.detach().requires_grad_(), *entrant.parameters)
        results: list[Tensor] = []
        saved = bytes_saved_for_backward(lambda: results.append(entrant.module(leaves[0], **entrant.positions)), leaves)
        logits = results[0]
        gradients = torch.autograd.grad(logits, leaves, inputs.grad_logits)
    slack = 1 if entrant.ours else PEERS_SLACK
    errors = {"logits": relative_error(logits, true_logits)}
    assert errors["logits"] <= slack * LOGITS[case.dtype], f"{name}: logits are off by {errors['logits']:.1e}"
    if gradients:
        pairs = zip(gradients, true_gradients, strict=True)
        error = max(relative_error(gradient, true.reshape(gradient.shape)) for gradient, true in pairs)
        assert error <= slack * GRADIENTS[case.dtype], f"{name}: a gradient is off by {error:.1e}"
        errors["gradients"] = error
    return errors, saved


def bytes_moved(case: Case, step: str) -> int:
    """Bytes that nobody can avoid: X in and Y out; in training also Y's gradient and X in again, X's gradient out."""
    pixels = case.batch * case.problem().pixels * case.dtype.itemsize
    return pixels * (case.channels + 1 + (2 * case.channels + 1 if step == "training" else 0))


@pytest.mark.parametrize("step", ["forward", "training"])
def test_operator(benchmark, bench_session, case: Case, step: str):
    device = bench_session.device
    name = f"operator {step} {case}"
    benchmark.group = f"operator {step}"
    inputs = exact_results(case, device)[0]
    entered = peers_of(case, inputs, step, compiled=not bench_session.short)
    checked, wrong = {}, {}
    for who, entrant in list(entered.items()):
        try:
            checked[who] = check(who, entrant, case, device, step)
        except Exception as error:  # its time does not count, that of the others does
            wrong[who] = f"{type(error).__name__}: {error}"
            del entered[who]
    assert any(entrant.ours for entrant in entered.values()), wrong
    calls = {who: call(entrant, inputs, step) for who, entrant in entered.items()}
    executed = {who: call_macs(who, entrant, case, inputs, step) for who, entrant in entered.items()}

    figures, noise = bench_session.race(
        benchmark, {who: TimedCall(calls[who], entered[who].prepare) for who in entered}
    )
    moved = bytes_moved(case, step)
    for who, figure in figures.items():
        clock = figure[figure["clock"]]
        peak = cuda_peak(calls[who]) if device == "cuda" else None
        # Compiling once more takes longer than all the rest of a race; of one sample, nothing is asked but its time.
        fresh = (bench_session.slow or who != COMPILED) and not entered[who].one_by_one
        if bench_session.fresh is not None and fresh:
            peak = bench_session.fresh(resident_bytes_of_call, case, step, who)
        errors, saved = checked[who]
        bandwidth = moved / (case.batch if entered[who].one_by_one else 1) / clock["median"]
        figure |= {
            "saved_bytes": saved,
            "peak_bytes": peak,
            "executed_macs": executed[who],
            "bandwidth": bandwidth,
            "bandwidth_share": bandwidth / bench_session.copy_bandwidth,
            "errors": errors,
            "ours": entered[who].ours,
        }
    if figures:
        problem = case.problem()
        nominal = problem.phi_macs + problem.product_macs
        described = {
            "hidden": case.hidden,
            "channels": case.channels,
            "batch": case.batch,
            "shape": list(case.shape),
            "dtype": case.dtype_name,
            **({"per_sample": True} if case.per_sample else {}),
            **({"position_dims": case.position_dims} if case.extra_position_dims else {}),
        }
        result = {
            "what": "operator",
            "step": step,
            "case": described,
            "bytes_moved": moved,
            "nominal_macs": nominal * (3 if step == "training" else 1),
            "ours": list(entered)[-1],
            "subjects": figures,
            "wrong": wrong,
        }
        bench_session.report(benchmark, name, result, noise)
    assert not wrong
