"""The sizes that matter to users, shared by tests and benchmarks: the paper's, larger ones, and lines of scaling."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scp_kernels import dispatch, scp_reference
from scp_kernels.problem import Problem
from tests.support.problems import Inputs, away_from_kinks, evaluate, make_inputs

# Float64 activations of Φ at h = 256 take 2 KiB per pixel, layer and position map: strips of this many pixels and maps
# stay below 200 MiB.
PIXELS_AT_ONCE = 2**14


@dataclass(frozen=True)
class Case:
    """One call of the head: widths of Φ, channels of the features, batch, image or volume, dtype of the features."""

    hidden: int
    channels: int
    batch: int
    shape: tuple[int, ...] = (160, 224)
    dtype: torch.dtype = torch.float32
    per_sample: bool = False
    """One position map per sample, as patches and augmentation give, where one for all is the default."""
    position_dims: int | None = None
    """K; None: d. With more than d, and one map per sample, the samples are slices of a volume."""

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        dtype = "" if self.dtype == torch.float32 else f"-{self.dtype_name}"
        maps = "-per-sample" if self.per_sample else ""
        axes = f"-k{self.position_dims}" if self.extra_position_dims else ""
        return f"h{self.hidden}-c{self.channels}-b{self.batch}-{size}{dtype}{maps}{axes}"

    @property
    def extra_position_dims(self) -> int:
        """Axes of positions beyond those of the map: K − d."""
        return 0 if self.position_dims is None else self.position_dims - len(self.shape)

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def inputs(self, device: torch.device | str = "cpu") -> Inputs:
        """Random features and parameters, the same for each device."""
        return make_inputs(
            self.shape,
            batch=self.batch,
            channels=self.channels,
            hidden=(self.hidden, self.hidden),
            dtype=self.dtype,
            position_dims=self.position_dims,
        ).to(device)

    def positions(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Position arguments of the call; none: one map for all, which is the whole image.

        ``affine`` ``[B, K, d + 1]`` is a small rotation (of the first two axes), scaling and shift per sample. Axes
        that the map does not have come first: samples lie at heights in the middle half of a volume as high as the
        image is wide, tilted by up to a tenth; ``extent`` ``[K]`` is its size.
        """
        if not self.per_sample:
            return {}
        d, extra = len(self.shape), self.extra_position_dims
        g = torch.Generator().manual_seed(2)
        angle, scale, *shifts = (torch.rand(d + 2, self.batch, generator=g, dtype=torch.float64) * 2 - 1).unbind()
        angle, scale = angle * math.radians(10), 1 + 0.1 * scale
        linear = torch.eye(d, dtype=torch.float64).repeat(self.batch, 1, 1)
        linear[:, 0, 0], linear[:, 0, 1] = angle.cos(), -angle.sin()
        linear[:, 1, 0], linear[:, 1, 1] = angle.sin(), angle.cos()
        linear *= scale[:, None, None]
        center = torch.tensor(self.shape, dtype=torch.float64) / 2
        offset = center - linear @ center + torch.stack(shifts, 1) * center / 10
        affine = torch.cat([linear, offset[:, :, None]], 2)
        if not extra:
            return {"affine": affine.to(device)}
        height = float(self.shape[-1])
        tilt = (torch.rand(self.batch, extra, d, generator=g, dtype=torch.float64) * 2 - 1) / 10
        heights = (0.25 + torch.arange(self.batch, dtype=torch.float64) / (2 * self.batch)) * height
        offset = heights[:, None] - tilt @ center  # of each slice's middle
        above = torch.cat([tilt, offset[:, :, None]], 2)
        extent = torch.cat([torch.full((extra,), height, dtype=torch.float64), 2 * center])
        return {"affine": torch.cat([above, affine], 1).to(device), "extent": extent.to(device)}

    def problem(self, device: torch.device | str = "cpu") -> Problem:
        return Problem(
            batch=self.batch,
            channels=self.channels,
            num_classes=1,
            hidden=(self.hidden, self.hidden),
            spatial_shape=self.shape,
            groups=self.batch if self.per_sample else 1,
            dtype=self.dtype,
            compute_dtype=torch.promote_types(self.dtype, torch.float32),
            device=torch.device(device),
            extra_position_dims=self.extra_position_dims,
        )

    def backends(self, device: torch.device | str = "cpu") -> list[str]:
        """Compiled backends that take the case, in the order of ``"auto"``; none that the device has by name only."""
        problem = self.problem(device)
        return [
            name
            for name, backend in dispatch.BACKENDS.items()
            if backend.device_type == problem.device.type
            and backend.unavailable_reason() is None
            and backend.unsupported_reason(problem) is None
        ]


WIDTHS = ((64, 8), (128, 16), (256, 32))
PAPER = [Case(h, c, b, shape) for h, c in WIDTHS for shape in ((160, 224), (256, 256)) for b in (1, 14)]
# Lines through (128, 16), batch 1, 160 × 224 along width, image and batch; the paper's cases lie on them too.
SCALING = [
    Case(32, 4, 1),
    *(Case(128, 16, 1, (size, size)) for size in (64, 128)),
    *(Case(128, 16, batch) for batch in (2, 4, 8)),
]
# Every sample with a position map of its own, in a space with three axes: slices of volumes, cropped or augmented.
PER_SAMPLE = [Case(h, c, 14, per_sample=True, position_dims=3) for h, c in WIDTHS]
LARGE = [
    Case(512, 64, 1),
    *(Case(128, 16, 1, shape) for shape in ((512, 512), (1024, 1024), (96, 96, 96))),
    Case(256, 32, 1, (1024, 1024)),
]


def truth(inputs: Inputs, places: dict[str, Tensor] | None = None) -> tuple[Inputs, Tensor, dict[str, Tensor]]:
    """Float64 logits and gradients of ``inputs``, in strips of rows, so that memory does not grow with the image.

    Args:
        inputs: whole images or volumes.
        places: their positions, as :meth:`Case.positions` gives them; None: those of the index.

    Returns:
        The inputs with their logits' gradient zeroed at kinks (:func:`problems.away_from_kinks`), the logits, and the
        gradients by name.
    """
    shape = inputs.features.shape[2:]
    places = {} if places is None else places
    affine, extent = places.get("affine"), places.get("extent", tuple(shape))
    rows = max(1, PIXELS_AT_ONCE // (shape[1:].numel() * (1 if affine is None else len(affine))))
    masked, logits, of_features = [], [], []
    sums: dict[str, Tensor] = {}
    for start in range(0, shape[0], rows):
        here = slice(start, start + rows)
        part = replace(inputs, features=inputs.features[:, :, here], grad_logits=inputs.grad_logits[:, :, here])
        place: dict[str, object] = {"extent": extent}
        if affine is None:
            place["origin"] = (start, *(0 for _ in shape[1:]))
        else:  # the strip's own first row is the image's row `start`
            offset = affine[:, :, -1] + start * affine[:, :, 0]
            place["affine"] = torch.cat([affine[:, :, :-1], offset[:, :, None]], 2)
        part = away_from_kinks(part, **place)
        some_logits, gradients = evaluate(scp_reference, part.double(), **place)
        masked.append(part.grad_logits)
        logits.append(some_logits)
        of_features.append(gradients.pop("features"))
        sums = {name: sums[name] + g if sums else g for name, g in gradients.items()}
    return (
        replace(inputs, grad_logits=torch.cat(masked, 2)),
        torch.cat(logits, 2),
        {"features": torch.cat(of_features, 2), **sums},
    )
