"""What each of two processes does in the test of nnU-Net's network under data parallelism."""

import faulthandler
import os

import numpy as np
import torch
import torch.distributed as dist
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from scp_kernels import FusedSCP
from scp_models.data.geometry import coordinate_channels
from scp_models.nnunet.network import PlannedNetwork, attach_to_segmentation_layers

PROCESSES = 2


def build() -> PlannedNetwork:
    """With heads whose positions matter."""
    torch.manual_seed(0)
    network = PlainConvUNet(
        2, 3, (4, 6, 8), nn.Conv2d, 3, (1, 2, 2), 1, 3, 1, conv_bias=True, norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU, deep_supervision=True,
    )  # fmt: skip
    attach_to_segmentation_layers(network, 8)
    for head in network.modules():
        if isinstance(head, FusedSCP):
            nn.init.normal_(head.phi[4].weight)
    return PlannedNetwork(network, 2, 2)


def samples() -> torch.Tensor:
    """Four patches at places of their own."""
    rng = np.random.default_rng(0)
    p = [coordinate_channels(rng.uniform(-1, 1, (3, 4)) / 16, [*map(np.arange, (1, 16, 16))])[:, 0] for _ in range(4)]
    image = torch.randn(4, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    return torch.cat([image, torch.tensor(np.stack(p))], 1)


def gradients(network: nn.Module, data: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a loss that is a mean over samples."""
    sum(output.square().mean() for output in network(data)).backward()
    return {name.removeprefix("module."): p.grad for name, p in network.named_parameters()}


def work(rank: int, folder: str) -> None:
    """As nnU-Net wraps its network; the first process writes the gradients."""
    faulthandler.dump_traceback_later(120, exit=True)  # a process that waits for another for ever says where
    torch.set_num_threads(1)
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    network = DistributedDataParallel(nn.SyncBatchNorm.convert_sync_batchnorm(build()))
    network.module.decoder.deep_supervision = True
    result = gradients(network, samples()[rank::PROCESSES])
    if rank == 0:
        torch.save(result, f"{folder}/gradients.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # a thread of PyTorch's that is still there can abort the process
