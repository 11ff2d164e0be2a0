"""Base, Base F, Base B and SCP: the encoder-decoder whose FLOPs and parameters are those of the paper's Table 1.

The paper prints no list of layers. With capacity ``Nc`` the network has ``levels`` levels of widths ``Nc/16 · 2^level``;
each is two layers (3×3 convolution without bias, batch norm, ReLU) going down and, but for the deepest, two going up.
Down is a 3×3 convolution of stride 2, width kept; up is a 1×1 convolution to the upper level's width, then nearest-neighbour
upsampling to that level's size; the skip is a concatenation. One more layer at full resolution leads to the head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from scp_kernels import FusedSCP

VARIANTS = ("base", "base_f", "base_b", "scp")


@dataclass(frozen=True)
class Preset:
    """How a network begins its training; the same for every compared variant."""

    position: str
    """Scale of positions: see :class:`scp_kernels.FusedSCP`."""
    zero_init: bool
    """Zero the last layer of Φ."""
    last_relu: bool
    """Whether the layer before the head has its ReLU."""
    logit_bias: bool
    """Whether the head has a bias (initialised at the class's log-odds)."""


PRESETS = {
    "recommended": Preset(position="centered", zero_init=True, last_relu=False, logit_bias=True),
    "paper": Preset(position="pixels", zero_init=False, last_relu=True, logit_bias=False),
}
"""``recommended``: never seen to collapse. ``paper``: the printed form.

The paper's form can collapse in training: with non-negative features and no logit bias, the network may drive a lesion's
features to zero, so that its logit is exactly 0 (p = 0.5) while the background goes to −40. The loss looks content and the
threshold p > 0.5 finds nothing, where a threshold just below (logit > −0.01) finds the lesions.
"""


class Layer(nn.Sequential):
    """3×3 convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, *, relu: bool = True) -> None:
        modules: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)]
        super().__init__(*modules, *([nn.ReLU(inplace=True)] if relu else []))


class Level(nn.Sequential):
    """Two layers at one resolution."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(Layer(inputs, width), Layer(width, width))


class PositionChannels(nn.Module):
    """The four position channels of Base F and Base B (CoordConv), by the same map that the SCP head uses.

    An SCP head whose Φ is the identity would give them; a plain evaluation of eq. 5 is enough here.
    """

    def __init__(self, position: str) -> None:
        super().__init__()
        self.position = position

    def forward(self, like: Tensor, origin: Tensor | None, affine: Tensor | None, extent: Tensor | None) -> Tensor:
        """``[B, 4, H, W]`` in the dtype of ``like`` ``[B, C, H, W]``; position arguments as in ``scp_kernels.scp``."""
        height, width = like.shape[2:]
        index = torch.stack(
            torch.meshgrid(
                torch.arange(height, dtype=torch.float64, device=like.device),
                torch.arange(width, dtype=torch.float64, device=like.device),
                indexing="ij",
            )
        )  # [2, H, W]
        if affine is not None:
            a = torch.as_tensor(affine, dtype=torch.float64, device=like.device)
            p = torch.einsum("...pd,dhw->...phw", a[..., :2], index) + a[..., 2, None, None]
        elif origin is not None:
            p = index + torch.as_tensor(origin, dtype=torch.float64, device=like.device)[..., None, None]
        else:
            p = index
        size = torch.as_tensor((height, width) if extent is None else extent, dtype=torch.float64, device=like.device)
        size = size[..., None, None]
        trailing = size - p
        s = torch.cat([p.expand_as(trailing), trailing], dim=-3)
        if self.position == "centered":
            s = 2 * s / torch.cat([size, size], dim=-3) - 1
        return s.to(like.dtype).expand(like.shape[0], -1, -1, -1)


class SegmentationNetwork(nn.Module):
    """The encoder-decoder with one of the four heads; made by :func:`build_network`, which documents the arguments."""

    def __init__(
        self,
        variant: str,
        *,
        in_channels: int,
        num_classes: int,
        capacity: int,
        levels: int,
        hidden_channels: int | tuple[int, int] | None,
        preset: Preset,
        position: str,
        logit_bias: float,
        constant_position: bool,
        backend: str,
    ) -> None:
        super().__init__()
        widths = [capacity // 16 * 2**level for level in range(levels)]
        self.variant = variant
        self.constant_position = constant_position
        self.front = PositionChannels(position) if variant == "base_f" else None
        self.back = PositionChannels(position) if variant == "base_b" else None
        inputs = in_channels + (4 if self.front else 0)
        self.encoder = nn.ModuleList(Level(i, o) for i, o in zip([inputs, *widths], widths, strict=False))
        self.down = nn.ModuleList(nn.Conv2d(w, w, 3, stride=2, padding=1, bias=False) for w in widths[:-1])
        self.up = nn.ModuleList(
            nn.Conv2d(2 * w, w, 1, bias=False) for w in widths[:-1]
        )  # each from the level below it, twice as wide
        self.decoder = nn.ModuleList(Level(2 * w, w) for w in widths[:-1])
        width = widths[0]
        self.last = Layer(width + (4 if self.back else 0), width, relu=preset.last_relu)
        self.head: nn.Conv2d | FusedSCP
        if variant == "scp":
            self.head = FusedSCP(
                width,
                num_classes,
                hidden_channels if hidden_channels is not None else capacity // 2,
                position=position,
                zero_init=preset.zero_init,
                bias=preset.logit_bias,
                bias_init=logit_bias,
                backend=backend,
            )
        else:
            self.head = nn.Conv2d(width, num_classes, 1, bias=preset.logit_bias)
            if self.head.bias is not None:
                nn.init.constant_(self.head.bias, logit_bias)

    def features(
        self,
        image: Tensor,
        *,
        origin: Tensor | None = None,
        affine: Tensor | None = None,
        extent: Tensor | None = None,
    ) -> Tensor:
        """What the head sees, ``[B, Nc/16, H, W]``."""
        x = image
        if self.front is not None:
            x = torch.cat([x, self.front(image, origin, affine, extent)], dim=1)
        skips = []
        for level, encode in enumerate(self.encoder):
            x = encode(x)
            if level < len(self.down):
                skips.append(x)
                x = self.down[level](x)
        for level in reversed(range(len(self.up))):
            # Upsampling to the skip's own size serves heights and widths that 2^(levels − 1) does not divide.
            x = interpolate(self.up[level](x), size=skips[level].shape[2:], mode="nearest")
            x = self.decoder[level](torch.cat([skips[level], x], dim=1))
        if self.back is not None:
            x = torch.cat([x, self.back(x, origin, affine, extent)], dim=1)
        return self.last(x)

    def forward(
        self,
        image: Tensor,
        *,
        origin: Tensor | None = None,
        affine: Tensor | None = None,
        extent: Tensor | None = None,
    ) -> Tensor:
        """Logits ``[B, N, H, W]`` of images ``[B, in_channels, H, W]``; position arguments as in ``scp_kernels.scp``."""
        x = self.features(image, origin=origin, affine=affine, extent=extent)
        if not isinstance(self.head, FusedSCP):
            return self.head(x)
        if self.constant_position:
            height, width = image.shape[2:] if extent is None else extent
            affine, origin = torch.tensor([[0.0, 0.0, height / 2], [0.0, 0.0, width / 2]], device=x.device), None
        return self.head(x, origin=origin, affine=affine, extent=extent)


def build_network(
    variant: str = "scp",
    *,
    in_channels: int = 2,
    num_classes: int = 1,
    capacity: int = 256,
    levels: int = 5,
    hidden_channels: int | tuple[int, int] | None = None,
    preset: str = "recommended",
    position: str | None = None,
    logit_bias: float = -3.0,
    constant_position: bool = False,
    backend: str = "auto",
) -> SegmentationNetwork:
    """One of the paper's networks.

    Args:
        variant: ``"base"`` (1×1 head), ``"base_f"`` (position channels beside the image), ``"base_b"`` (position channels in
            front of the last 3×3 layer), ``"scp"`` (spatially covariant head).
        in_channels: channels of the image: 2 (T1, FLAIR) for WMH, 1 (CT) for LiTS, 3 in Table 1.
        num_classes: N, logits for each pixel; each is a sigmoid of its own.
        capacity: Nc, any positive multiple of 16; the head sees Nc/16 channels.
        levels: resolutions, 5 in the paper.
        hidden_channels: widths of Φ, ``Nc/2`` if None.
        preset: ``"recommended"`` or ``"paper"``: see :data:`PRESETS` and its warning.
        position: overrides the preset's scale of positions, ``"pixels"`` or ``"centered"``.
        logit_bias: initial value of the logit bias where the preset has one: the class's log-odds.
        constant_position: the control of a comparison: an SCP head that sees the image's centre at every pixel, so that
            it has Φ's reparameterisation but no location.
        backend: of the SCP head.

    Raises:
        ValueError: an argument out of its range.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant: expected one of {VARIANTS}, got {variant!r}")
    if preset not in PRESETS:
        raise ValueError(f"preset: expected one of {tuple(PRESETS)}, got {preset!r}")
    if capacity < 16 or capacity % 16:
        raise ValueError(f"capacity: expected a positive multiple of 16, got {capacity}")
    for name, value in {"in_channels": in_channels, "num_classes": num_classes, "levels": levels}.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if constant_position and variant != "scp":
        raise ValueError(f"constant_position: expected variant 'scp', got {variant!r}")
    return SegmentationNetwork(
        variant,
        in_channels=in_channels,
        num_classes=num_classes,
        capacity=capacity,
        levels=levels,
        hidden_channels=hidden_channels,
        preset=PRESETS[preset],
        position=position or PRESETS[preset].position,
        logit_bias=logit_bias,
        constant_position=constant_position,
        backend=backend,
    )
