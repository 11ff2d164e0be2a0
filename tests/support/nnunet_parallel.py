"""What each of two processes does in the test of nnU-Net's ``-num_gpus``."""

import faulthandler
import os

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.support.left_right import forget_what_needs_torchvision

PROCESSES = 2


def work(rank: int, folder: str, arguments: tuple[object, ...]) -> None:
    """nnU-Net's own function of each process, with gloo and processors for nccl and GPUs."""
    faulthandler.dump_traceback_later(900, exit=True)  # a process that waits for another for ever says where
    torch.set_num_threads(1)
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    from nnunetv2.run import run_training
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer

    def meet(rank: int, processes: int) -> None:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=processes)

    with pytest.MonkeyPatch.context() as patch:
        forget_what_needs_torchvision(patch)
        patch.setattr(run_training, "setup_ddp", meet)
        patch.setattr(torch.cuda, "set_device", lambda device: None)
        patch.setattr(nnUNetTrainer, "DDP", lambda network, device_ids: DistributedDataParallel(network))
        run_training.run_ddp(rank, *arguments, PROCESSES)
    os._exit(0)  # a thread of PyTorch's that is still there can abort the process
