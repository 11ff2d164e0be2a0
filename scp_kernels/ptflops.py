"""For ptflops, which counts multiply-adds by modules: it knows layers, not registered operators."""

from typing import Any

from torch import Tensor

from scp_kernels.module import FusedSCP


def ptflops_hook(head: FusedSCP, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
    """Count the multiply-adds of a :class:`FusedSCP` for ptflops.

    ``get_model_complexity_info(net, shape, custom_modules_hooks={FusedSCP: ptflops_hook},
    backend_specific_config={"count_functional": False})``. The last argument keeps ptflops from also counting the
    plain PyTorch of ``backend="reference"``.
    """
    batch, _, *spatial_shape = logits.shape
    counted: Any = head  # ptflops has given it a counter
    counted.__flops__ += head.macs(spatial_shape, batch)
