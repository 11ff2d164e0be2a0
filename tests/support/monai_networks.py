"""The networks that the head is attached to in tests: small ones of each architecture, in 2-D and 3-D."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from monai.networks.nets import (
    UNETR,
    AttentionUnet,
    BasicUNet,
    DynUNet,
    FlexibleUNet,
    SegResNet,
    SegResNetDS,
    SwinUNETR,
    UNet,
    VNet,
)
from torch import Tensor, nn

CLASSES = 2


class EncoderDecoder(nn.Module):
    """A network of plain torch with one skip connection."""

    def __init__(self, conv: type[nn.Module], pool: type[nn.Module]) -> None:
        super().__init__()
        self.down = nn.Sequential(conv(1, 4, 3, padding=1), nn.ReLU())
        self.pool = pool(2)
        self.bottom = nn.Sequential(conv(4, 4, 3, padding=1), nn.ReLU())
        self.up = nn.Upsample(scale_factor=2)
        self.classify = conv(8, CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        fine = self.down(image)
        return self.classify(torch.cat([fine, self.up(self.bottom(self.pool(fine)))], 1))


@dataclass(frozen=True)
class Case:
    """How a small network is built, and which of its layers get a head."""

    build: Callable[[int], nn.Module]
    """Of 2 or 3 spatial axes."""
    layers: tuple[str, ...]
    sizes: dict[int, tuple[int, ...]]
    keep_layer: bool = False
    """It ends in no 1×1 convolution, and the head goes behind its last layer."""
    fullgraph: bool = True
    """Whether the network itself compiles into one graph."""


def size(n: int) -> dict[int, tuple[int, ...]]:
    return {2: (n, n), 3: (n, n, n)}


def _unet(units: int, outputs: int = CLASSES) -> Callable[[int], nn.Module]:
    return lambda d: UNet(d, 1, outputs, channels=(4, 8, 8), strides=(2, 2), num_res_units=units)


def _dyn_unet(d: int) -> nn.Module:
    options = {"kernel_size": [3] * 4, "strides": [1, 2, 2, 2], "upsample_kernel_size": [2] * 3}
    return DynUNet(d, 1, CLASSES, **options, filters=[4, 4, 4, 4], deep_supervision=True, deep_supr_num=2)


def _swin_unetr(d: int) -> nn.Module:
    return SwinUNETR(1, CLASSES, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), feature_size=12, spatial_dims=d)


def _flexible_unet(d: int) -> nn.Module:
    return FlexibleUNet(1, CLASSES, "resnet10", decoder_channels=(8, 8, 8, 8, 8), spatial_dims=d)


CASES = {
    "BasicUNet": Case(
        lambda d: BasicUNet(d, 1, CLASSES, features=(4, 4, 4, 8, 8, 4)), ("final_conv",), size(32), fullgraph=False
    ),
    "UNet": Case(_unet(0), ("model.2",), size(16), keep_layer=True),
    "UNet, residual": Case(_unet(2), ("model.2",), size(16), keep_layer=True),
    "UNet and a 1×1 convolution": Case(
        lambda d: nn.Sequential(_unet(2, 8)(d), (nn.Conv2d, nn.Conv3d)[d - 2](8, CLASSES, 1)), ("1",), size(16)
    ),
    "DynUNet": Case(
        _dyn_unet, ("output_block", "deep_supervision_heads.0", "deep_supervision_heads.1"), {2: (32, 32), 3: (16,) * 3}
    ),
    "SegResNet": Case(
        lambda d: SegResNet(d, 4, 1, CLASSES, blocks_down=(1, 1), blocks_up=(1,), norm=("group", {"num_groups": 2})),
        ("conv_final.2",),
        size(16),
    ),
    "SegResNetDS": Case(
        lambda d: SegResNetDS(d, 4, 1, CLASSES, blocks_down=(1, 1, 1), dsdepth=2, norm="instance"),
        ("up_layers.0.head", "up_layers.1.head"),
        size(16),
    ),
    "AttentionUnet": Case(
        lambda d: AttentionUnet(d, 1, CLASSES, channels=(4, 8, 8), strides=(2, 2)), ("model.2",), size(16)
    ),
    "UNETR": Case(
        lambda d: UNETR(1, CLASSES, (32, 32, 16)[:d], 4, 24, 32, 2, spatial_dims=d),
        ("out",),
        {2: (32, 32), 3: (32, 32, 16)},
    ),
    "SwinUNETR": Case(_swin_unetr, ("out",), {2: (64, 64), 3: (64, 32, 32)}, fullgraph=False),
    "VNet": Case(lambda d: VNet(d, 1, CLASSES), ("out_tr.conv2",), size(16)),
    "FlexibleUNet": Case(
        _flexible_unet, ("segmentation_head.0",), {2: (64, 64), 3: (32,) * 3}, keep_layer=True, fullgraph=False
    ),
    "plain, in a row": Case(
        lambda d: nn.Sequential(
            (nn.Conv2d, nn.Conv3d)[d - 2](1, 6, 3, padding=1),
            nn.ReLU(),
            (nn.Conv2d, nn.Conv3d)[d - 2](6, CLASSES, 1),
        ),
        ("2",),
        {2: (12, 9), 3: (7, 6, 5)},
    ),
    "plain, with a skip": Case(
        lambda d: EncoderDecoder((nn.Conv2d, nn.Conv3d)[d - 2], (nn.MaxPool2d, nn.MaxPool3d)[d - 2]),
        ("classify",),
        size(8),
    ),
}
"""By name; the table of docs/monai.md has the same."""
