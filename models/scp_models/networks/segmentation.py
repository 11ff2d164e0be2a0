"""Base, Base F, Base B and SCP: the encoder-decoder whose FLOPs and parameters are those of the paper's Table 1.

The paper prints no list of layers. With capacity ``Nc`` the network has ``levels`` levels of widths
``Nc/16 · 2^level``; each is two layers (3×3 convolution without bias, batch norm, ReLU) going down and, but for the
deepest, two going up. Down is a 3×3 convolution of stride 2, width kept; up is a 1×1 convolution to the upper level's
width, then nearest-neighbour upsampling to that level's size; the skip is a concatenation. One more layer at full
resolution leads to the head.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from scp_kernels import FusedSCP
from scp_models.networks.positions import PositionLike, constant_affine, position_channels

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
    anchored: bool = False
    """Whether Φ is zero at the centre, where positions are centered: see :class:`scp_kernels.FusedSCP`."""
    phi_scale: float | str = 1.0
    """Scale of Φ's output: see :class:`scp_kernels.FusedSCP`."""


PRESETS = {
    "recommended": Preset(position="centered", zero_init=True, last_relu=False, logit_bias=True, anchored=True),
    "paper": Preset(position="pixels", zero_init=False, last_relu=True, logit_bias=False),
}
"""``recommended``: never seen to collapse. ``paper``: the printed form.

The paper's form can collapse in training, SCP and Base alike: with non-negative features and no logit bias, the network
may drive a lesion's features to zero, so that its logit is exactly 0 (p = 0.5) while the background goes to −40. The
loss looks content and the threshold p > 0.5 finds nothing, where one just below (logit > −0.01) finds the lesions.
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
        logit_bias: float | None,
        constant_position: bool,
        position_dims: int,
        backend: str,
        exclusive: bool,
    ) -> None:
        super().__init__()
        widths = [capacity // 16 * 2**level for level in range(levels)]
        self.variant = variant
        self.in_channels = in_channels
        self.position = preset.position
        self.constant_position = constant_position
        self.position_dims = position_dims
        position_channels = 2 * position_dims
        has_bias = preset.logit_bias and logit_bias is not None
        inputs = in_channels + position_channels * (variant == "base_f")
        self.encoder = nn.ModuleList(Level(i, o) for i, o in zip([inputs, *widths], widths, strict=False))
        self.down = nn.ModuleList(nn.Conv2d(w, w, 3, stride=2, padding=1, bias=False) for w in widths[:-1])
        # From the level below, which is twice as wide.
        self.up = nn.ModuleList(nn.Conv2d(2 * w, w, 1, bias=False) for w in widths[:-1])
        self.decoder = nn.ModuleList(Level(2 * w, w) for w in widths[:-1])
        width = widths[0]
        self.last = Layer(width + position_channels * (variant == "base_b"), width, relu=preset.last_relu)
        self.head: nn.Conv2d | FusedSCP
        if variant == "scp":
            self.head = FusedSCP(
                width,
                num_classes,
                hidden_channels if hidden_channels is not None else capacity // 2,
                position_dims=position_dims,
                position=preset.position,
                zero_init=preset.zero_init,
                anchored=preset.anchored,
                phi_scale=preset.phi_scale,
                bias=has_bias,
                bias_init=logit_bias or 0.0,
                backend=backend,
            )
        else:
            self.head = nn.Conv2d(width, num_classes, 1, bias=has_bias)
            if self.head.bias is not None:
                nn.init.constant_(self.head.bias, logit_bias or 0.0)
        if exclusive and self.head.bias is not None:
            # Of a softmax only differences count: the background's logit is what the others' log-odds refer to.
            with torch.no_grad():
                self.head.bias[0] = 0.0

    def features(
        self,
        image: Tensor,
        *,
        origin: PositionLike | None = None,
        affine: PositionLike | None = None,
        extent: PositionLike | None = None,
    ) -> Tensor:
        """What the head sees, ``[B, Nc/16, H, W]``; arguments as in :meth:`forward`."""
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ValueError(f"image: expected [B, {self.in_channels}, H, W], got shape {list(image.shape)}")
        origin, affine = self._placement(image, origin, affine, extent)
        x = image
        if self.variant == "base_f":
            x = self._with_positions(x, origin, affine, extent)
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
        if self.variant == "base_b":
            x = self._with_positions(x, origin, affine, extent)
        return self.last(x)

    def forward(
        self,
        image: Tensor,
        *,
        origin: PositionLike | None = None,
        affine: PositionLike | None = None,
        extent: PositionLike | None = None,
    ) -> Tensor:
        """Logits ``[B, N, H, W]`` of images ``[B, in_channels, H, W]``, of any height and width.

        Where ``image`` is a crop or a mirrored or rotated view of a larger one, the position arguments say so: they are
        those of ``scp_kernels.scp``, and serve the position channels of Base F and Base B alike. Base has no positions
        and ignores them. With three position axes the others need ``affine`` or ``origin``, and ``extent``.

        Raises:
            ValueError: an image of another shape, or a position argument of a wrong one.
        """
        x = self.features(image, origin=origin, affine=affine, extent=extent)
        if not isinstance(self.head, FusedSCP):
            return self.head(x)
        origin, affine = self._placement(image, origin, affine, extent)
        return self.head(x, origin=origin, affine=affine, extent=extent)

    def _placement(
        self, image: Tensor, origin: PositionLike | None, affine: PositionLike | None, extent: PositionLike | None
    ) -> tuple[PositionLike | None, PositionLike | None]:
        return (
            (None, constant_affine(image, extent, self.position_dims)) if self.constant_position else (origin, affine)
        )

    def _with_positions(
        self, x: Tensor, origin: PositionLike | None, affine: PositionLike | None, extent: PositionLike | None
    ) -> Tensor:
        channels = position_channels(
            x, position=self.position, position_dims=self.position_dims, origin=origin, affine=affine, extent=extent
        )
        return torch.cat([x, channels], dim=1)


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
    last_relu: bool | None = None,
    anchored: bool | None = None,
    phi_scale: float | str | None = None,
    logit_bias: float | None = -3.0,
    constant_position: bool = False,
    position_dims: int = 2,
    backend: str = "auto",
    exclusive: bool = False,
) -> SegmentationNetwork:
    """One of the paper's networks.

    Args:
        variant: ``"base"`` (1×1 head), ``"base_f"`` (position channels beside the image), ``"base_b"`` (position
            channels in front of the last 3×3 layer), ``"scp"`` (spatially covariant head).
        in_channels: channels of the image: 2 (T1, FLAIR) for WMH, 1 (CT) for LiTS, 3 in Table 1.
        num_classes: N, logits for each pixel; each is a sigmoid of its own, unless they are ``exclusive``.
        capacity: Nc, any positive multiple of 16; the head sees Nc/16 channels.
        levels: resolutions, 5 in the paper.
        hidden_channels: widths of Φ, ``Nc/2`` if None.
        preset: ``"recommended"`` or ``"paper"``: see :data:`PRESETS` and its warning.
        position: overrides the preset's scale of positions, ``"pixels"`` or ``"centered"``.
        last_relu: overrides whether the layer before the head has its ReLU.
        anchored: overrides whether Φ is zero at the centre; None: the preset's, and not with ``"pixels"``.
        phi_scale: overrides the preset's scale of Φ's output, 1: ``"adam"``, ``"sgd"`` or a power of two.
        logit_bias: initial value of the logit bias where the preset has one, the class's log-odds (−3: one pixel in
            twenty); None: no bias. The preset ``"paper"`` has none whatever this says.
        constant_position: the control of a comparison: every pixel is told the position of the image's centre, so that
            an SCP head has Φ's reparameterisation but no location.
        position_dims: K, axes of positions: 2, or 3 of a slice in a volume. Φ, Base F and Base B have 2K of them.
        backend: of the SCP head.
        exclusive: the N logits are those of a softmax, the background's first; its bias begins at 0.

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
    if position_dims not in (2, 3):
        raise ValueError(f"position_dims: expected 2 or 3, got {position_dims}")
    if position not in (None, "pixels", "centered"):
        raise ValueError(f"position: expected 'pixels' or 'centered', got {position!r}")
    if constant_position and variant == "base":
        raise ValueError("constant_position: expected a variant with positions to hold constant, got 'base'")
    if exclusive and num_classes < 2:
        raise ValueError(f"num_classes: expected background and at least one class where exclusive, got {num_classes}")
    options = PRESETS[preset]
    position = options.position if position is None else position
    if anchored is None:
        anchored = options.anchored and position == "centered"
    return SegmentationNetwork(
        variant,
        in_channels=in_channels,
        num_classes=num_classes,
        capacity=capacity,
        levels=levels,
        hidden_channels=hidden_channels,
        preset=replace(
            options,
            position=position,
            last_relu=options.last_relu if last_relu is None else last_relu,
            anchored=anchored,
            phi_scale=options.phi_scale if phi_scale is None else phi_scale,
        ),
        logit_bias=logit_bias,
        constant_position=constant_position,
        position_dims=position_dims,
        backend=backend,
        exclusive=exclusive,
    )
