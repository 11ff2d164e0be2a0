"""What each of two processes does in tests of data parallelism and sharding."""

import faulthandler
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from scp_kernels import FusedSCP
from tests.support.problems import make_inputs

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


def work(rank: int, backend: str, folder: str) -> None:
    """Train on this process's samples, each way; the first process writes the parameters that come of it."""
    faulthandler.dump_traceback_later(300, exit=True)  # a process that waits for another for ever says where
    torch.set_num_threads(1)
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    share = samples()[rank::PROCESSES]

    parallel = DistributedDataParallel(build(backend))
    train(parallel, share)
    learned = {"ddp": parallel.module.state_dict()}

    mesh = init_device_mesh("cpu", (PROCESSES,))
    network = torch.nn.Sequential(build(backend))
    fully_shard(network[0], mesh=mesh)
    fully_shard(network, mesh=mesh)
    assert all(isinstance(p, DTensor) for p in network.parameters())
    train(network, share)
    learned["fully_shard"] = {name: tensor.full_tensor() for name, tensor in network[0].state_dict().items()}

    if rank == 0:
        torch.save(learned, Path(folder) / "learned.pt")
    dist.barrier()
    dist.destroy_process_group()
    # Seen once in a dozen runs: a thread of PyTorch's, still there when the interpreter goes, aborts the process. It is
    # not what is tested here.
    sys.stdout.flush()
    os._exit(0)
