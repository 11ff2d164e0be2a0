"""What each of two processes does in tests of data parallelism and sharding."""

import copy
import os
from pathlib import Path

import torch
import torch.distributed as dist
from problems import make_inputs
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from scp_kernels import FusedSCP

PROCESSES = 2
STEPS = 3


def build(backend: str) -> FusedSCP:
    torch.manual_seed(0)
    return FusedSCP(4, 2, 16, position="centered", bias=True, backend=backend)


def train(network: torch.nn.Module, features: torch.Tensor) -> None:
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(STEPS):
        optimizer.zero_grad()
        network(features).square().mean().backward()
        optimizer.step()


def alone(backend: str) -> dict[str, torch.Tensor]:
    """The same training in one process, on all samples."""
    head = build(backend)
    train(head, samples())
    return head.state_dict()


def samples() -> torch.Tensor:
    return make_inputs((19, 23), batch=2 * PROCESSES, channels=4).features


def work(rank: int, wrapping: str, backend: str, folder: str) -> None:
    """Train on this process's samples; the first process writes the parameters that come of it."""
    torch.set_num_threads(1)
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    head = build(backend)
    mine = samples()[rank::PROCESSES]
    if wrapping == "ddp":
        network = DistributedDataParallel(head)
    else:
        network = torch.nn.Sequential(copy.deepcopy(head))
        mesh = init_device_mesh("cpu", (PROCESSES,))
        fully_shard(network[0], mesh=mesh)
        network = fully_shard(network, mesh=mesh)
        head = network[0]
        assert all(isinstance(p, DTensor) for p in head.parameters())
    train(network, mine)
    whole = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in head.state_dict().items()}
    if rank == 0:
        torch.save(whole, Path(folder) / "parameters.pt")
    dist.destroy_process_group()
