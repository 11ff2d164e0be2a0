"""Training steps and inference of whole networks, as ratios to Base 128 beside the paper's Table 1 and Fig. 6."""

from collections.abc import Mapping, Sequence

import pytest
import torch

from benchmarks.claims import BASE_512, SCP_256
from benchmarks.networks import (
    CAPACITIES,
    PAPER_STYLE,
    STEPS,
    activation_bytes,
    build,
    image,
    names,
    network_macs,
    resident_bytes_of_network,
)
from benchmarks.race import TimedCall
from scp_models.networks.complexity import complexity_table, count_parameters
from scp_models.study.reproduce.paper import PRINTED_MEMORY
from tests.support.memory import cuda_peak
from tests.support.tolerances import LOGITS, relative_error

ANCHOR = "Base 128"
# The verdict's networks, and all of Table 1; 512 in batches of 14 is minutes per round on a few cores.
VERDICT = (ANCHOR, BASE_512, f"{SCP_256} {PAPER_STYLE}", SCP_256)
NETWORK_RUNS = [
    pytest.param("training", 1, VERDICT, "verdict", id="training-verdict"),
    *(
        pytest.param(step, batch, networks, size, id=f"{step}-{size}", marks=pytest.mark.slow)
        for batch, networks, size in (
            (1, names(CAPACITIES), "b1"),
            (14, names(CAPACITIES[:2]), "b14"),
            (14, names(CAPACITIES[2:]), "b14-512"),
        )
        for step in STEPS
    ),
]


def check_heads(networks: Mapping[str, torch.nn.Module], x: torch.Tensor) -> None:
    """The fused and the paper-style network give the same logits: not further from float64 than twice plain PyTorch."""
    for name in networks:
        if not name.endswith(PAPER_STYLE):
            continue
        title = name.removesuffix(f" {PAPER_STYLE}")
        exact = build(title, str(x.device), backend="reference").double().eval()
        with torch.no_grad():
            true = exact(x.double())
            error, peers = (relative_error(networks[n].eval()(x), true) for n in (title, name))
        assert error <= max(2 * peers, LOGITS[torch.float32]), f"{title}: logits are off by {error:.1e}"


@pytest.mark.parametrize(("step", "batch", "wanted", "size"), NETWORK_RUNS)
def test_networks(benchmark, bench_session, step: str, batch: int, wanted: Sequence[str], size: str):
    device = bench_session.device
    benchmark.group = f"networks {step}"
    ours = SCP_256 if SCP_256 in wanted else f"SCP {CAPACITIES[-1]}"
    peers = dict.fromkeys(name for name in (ANCHOR, *wanted) if name != ours)
    networks = {name: build(name, device) for name in (*peers, ours)}
    x = image(batch, device)
    check_heads(networks, x[:1])
    executed = {name: network_macs(network, batch) for name, network in networks.items()}
    kept = {name: activation_bytes(network, x) for name, network in networks.items()} if step == "training" else {}
    steps = {name: STEPS[step](network, x) for name, network in networks.items()}

    figures, noise = bench_session.race(benchmark, {name: TimedCall(call) for name, call in steps.items()})
    if not figures:
        return
    paper = {f"{row['model']} {row['nc']}": row for row in complexity_table()}
    for name, figure in figures.items():
        network = networks[name]
        parameters = count_parameters(network)
        if device == "cuda":
            state = sum(t.nbytes for t in (*network.parameters(), *network.buffers()))
            network.zero_grad(set_to_none=True)
            peak = cuda_peak(steps[name]) + state
        else:
            peak = bench_session.fresh(resident_bytes_of_network, name, batch, step)
        figure |= {
            "saved_bytes": kept.get(name),
            "peak_bytes": peak,
            "executed_macs": executed[name],
            "parameters": parameters,
            "ours": "SCP" in name and not name.endswith(PAPER_STYLE),
        }
        if row := paper.get(name.removesuffix(f" {PAPER_STYLE}")):
            figure["paper"] = {
                "memory_ratio": PRINTED_MEMORY[f"{row['model']} {row['nc']}"],
                "macs_ratio": row["paper_macs_ratio"],
                "parameters_ratio": row["paper_parameters_ratio"],
            }
    result = {
        "what": "verdict" if size == "verdict" else "networks",
        "step": step,
        "batch": batch,
        "anchor": ANCHOR,
        "ours": ours,
        "subjects": figures,
    }
    bench_session.report(benchmark, f"networks {step} {size}", result, noise)
