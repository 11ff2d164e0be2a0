"""Two processes that score parts of the same subjects."""

import os
from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist

from scp_models.evaluation import challenge_metrics, paper_metrics

PROCESSES = 2
SPACING = (0.95, 1.2, 3.0)


def subjects(count: int = 5) -> tuple[Tensor, Tensor]:
    """Predictions and references with ignored voxels ``[B, X, Y, Z]``; nothing to find in the last, nothing found in
    the one before.
    """
    generator = torch.Generator().manual_seed(3)
    target = (torch.rand((count, 14, 12, 5), generator=generator) > 0.9).to(torch.uint8)
    target[:, :4, :4] *= 2
    preds = (torch.rand(target.shape, generator=generator) > 0.9) | (target == 1) & (
        torch.rand(target.shape, generator=generator) > 0.4
    )
    target[-1], preds[-2] = 0, False
    return preds, target


def collections():
    return {"paper": paper_metrics(ignore_label=2), "challenge": challenge_metrics()}


def work(rank: int, folder: str) -> None:
    """The first process scores four of the subjects, the second one."""
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES)
    preds, target = subjects()
    part = slice(0, 4) if rank == 0 else slice(4, 5)
    results = {}
    for name, metrics in collections().items():
        for k in range(part.start, part.stop):
            metrics.update(preds[k : k + 1], target[k : k + 1], spacing=SPACING)
        results[name] = {key: float(value) for key, value in metrics.compute().items()}
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
