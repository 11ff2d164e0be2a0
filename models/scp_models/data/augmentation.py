"""Augmentation of training slices: the picture moves, and its label and its positions with it.

A slice is turned, scaled and shifted in its plane and mirrored left to right; what the network is told about its place,
the affine from its pixels to positions, is composed with the same map. So a mirrored right side still has the positions
of the right side, in every frame and for every network that takes positions. Intensities change as in nnU-Net.

The map is put together by MONAI's functions and applied here, not by its ``RandAffined``: that one turns and scales in
pixels, which shears a head whose pixels are no squares, and gives no label for what comes from outside of the slice.
Here angles are those in the patient, what nobody knows is ignored, and one matrix in float64 moves image, label and
positions.

Every draw depends on the seed, the epoch and the place in the epoch alone: see :class:`AugmentedSlices`.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from monai.transforms import (
    Compose,
    RandAdjustContrast,
    RandGaussianNoise,
    RandGaussianSmooth,
    Randomizable,
    RandScaleIntensity,
    RandScaleIntensityFixedMean,
    RandSimulateLowResolution,
)
from monai.transforms.utils import create_rotate, create_scale, create_translate
from monai.utils import convert_to_tensor
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torch.utils.data import Dataset

from scp_models.data.sampling import Draw
from scp_models.data.slices import SliceDataset
from scp_models.data.tasks import IGNORED_LABEL
from scp_models.errors import UserError

AUGMENTATIONS = ("none", "spatial", "intensity", "all")

# Axes of a slice [.., H, W]: the first is the patient's left-right, whatever the axes of the file.
_LEFT_RIGHT = 0


@dataclass(frozen=True)
class AugmentOptions:
    """How often and how far slices are changed. Probabilities of intensities are for each modality on its own; their
    ranges are nnU-Net's.

    Args:
        moved: probability that a slice is turned, scaled and shifted, in one interpolation.
        degrees: it is turned by at most so much, either way.
        scale: smallest and largest magnification, both sides of the geometric mean as likely.
        shift: at most this share of the slice's height and width, either way.
        mirror: probability that left and right change places.
        noise: probability of Gaussian noise, standard deviation up to 0.1.
        blur: probability of a Gaussian blur, 0.5 to 1 pixels.
        brightness: probability of a factor of 0.75 to 1.25.
        contrast: probability of a factor of 0.75 to 1.25 about the mean, within the range of the slice.
        low_resolution: probability of a detour over 0.5 to 1 times as many pixels along each axis.
        gamma: probability of a power of 0.7 to 1.5 of intensities; for inverted ones a third of it.
    """

    moved: float = 0.4
    degrees: float = 15.0
    scale: tuple[float, float] = (0.8, 1.25)
    shift: float = 0.05
    mirror: float = 0.5
    noise: float = 0.1
    blur: float = 0.1
    brightness: float = 0.15
    contrast: float = 0.15
    low_resolution: float = 0.125
    gamma: float = 0.3

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name not in ("degrees", "scale", "shift") and not 0 <= value <= 1:
                raise UserError(f"augment_options.{name}: expected a probability, 0 to 1, got {value}")
        for name in ("degrees", "shift"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"augment_options.{name}: expected 0 or more, got {getattr(self, name)}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise UserError(f"augment_options.scale: expected two positive numbers, smaller first, got {self.scale}")


class SpatialAugmentation(Randomizable):
    """Turns, scales and shifts a slice in its plane, and mirrors it left to right.

    Angles are those in the patient, whatever the pixels measure. Images are interpolated linearly, labels by the
    nearest pixel. What comes from outside the slice repeats the image's border and is ignored in the label: nobody
    knows what is there.

    Args:
        options: how often, how far.
        ignored_label: what is neither trained on nor scored, in labels.
    """

    def __init__(self, options: AugmentOptions, ignored_label: int = IGNORED_LABEL) -> None:
        self.options = options
        self.ignored_label = ignored_label

    def randomize(self, data: Any) -> None:
        """Draw a map for a slice.

        Args:
            data: size in pixels and size of a pixel in mm, both along height and width.
        """
        options = self.options
        size, pixel = (np.asarray(values, float) for values in data)
        self.mirrored = self.R.random() < options.mirror
        self.moves = self.R.random() < options.moved
        angle = math.radians(self.R.uniform(-options.degrees, options.degrees))
        scale = math.exp(self.R.uniform(*np.log(options.scale)))
        shift = self.R.uniform(-options.shift, options.shift, 2) * size
        self.motion: NDArray[np.float64] = np.eye(3)
        """``[3, 3]``: pixel ``(h, w, 1)`` of the result, before it is mirrored, to that of the slice."""
        if self.moves:
            centre = (size - 1) / 2
            turn = create_rotate(2, -angle) @ create_scale(2, (1 / scale, 1 / scale))
            in_mm = create_scale(2, list(pixel))
            about_centre = np.linalg.inv(in_mm) @ turn @ in_mm @ create_translate(2, list(-shift))
            self.motion = create_translate(2, list(centre)) @ about_centre @ create_translate(2, list(-centre))
        self.matrix = self.motion
        """``[3, 3]``: pixel ``(h, w, 1)`` of the result to that of the slice."""
        if self.mirrored:
            self.matrix = self.motion @ np.array([[-1.0, 0, size[_LEFT_RIGHT] - 1], [0, 1, 0], [0, 0, 1]])

    def __call__(self, item: dict[str, Tensor], pixel: Sequence[float]) -> dict[str, Tensor]:
        """A changed copy of an item of :class:`scp_models.data.slices.SliceDataset`.

        Args:
            item: where it has no ``affine``, positions are counted in the slice as it was.
            pixel: size of a pixel along height and width, in mm.
        """
        image, label = item["image"], item["label"]
        size = image.shape[-2:]
        self.randomize((size, pixel))
        affine = item.get("affine", torch.eye(2, 3))
        extent = item.get("extent", torch.tensor(size, dtype=torch.float32))
        composed = affine.double() @ torch.from_numpy(self.matrix)
        if self.moves:
            image, label = self._moved(image, label)
        if self.mirrored:
            image, label = (picture.flip(_LEFT_RIGHT - 2) for picture in (image, label))
        return {**item, "image": image, "label": label, "affine": composed.to(affine.dtype), "extent": extent}

    def _moved(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        height, width = image.shape[-2:]
        # From halves of the picture (x, y) about its middle, which affine_grid counts in, to pixels (h, w).
        to_pixel = np.array([[0, height / 2, (height - 1) / 2], [width / 2, 0, (width - 1) / 2], [0, 0, 1]])
        theta = torch.from_numpy((np.linalg.inv(to_pixel) @ self.motion @ to_pixel)[None, :2]).to(image.dtype)
        grid = affine_grid(theta, [1, 1, height, width], align_corners=False)
        moved = grid_sample(image[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
        # Zero is what lies outside.
        marks = label[None].to(image.dtype) - self.ignored_label
        marks = grid_sample(marks, grid, mode="nearest", padding_mode="zeros", align_corners=False)[0]
        return moved, (marks + self.ignored_label).to(label.dtype)


class IntensityAugmentation(Randomizable):
    """Noise, blur, brightness, contrast, low resolution and gamma, in nnU-Net's order, of each channel on its own."""

    def __init__(self, options: AugmentOptions) -> None:
        blur, factors, power = (0.5, 1.0), (-0.25, 0.25), (0.7, 1.5)
        self.steps = Compose(
            [
                RandGaussianNoise(options.noise, std=0.1),
                RandGaussianSmooth(blur, blur, blur, prob=options.blur),
                RandScaleIntensity(factors, prob=options.brightness),
                RandScaleIntensityFixedMean(options.contrast, factors, preserve_range=True),
                RandSimulateLowResolution(options.low_resolution, upsample_mode="bilinear", zoom_range=(0.5, 1.0)),
                RandAdjustContrast(options.gamma / 3, power, invert_image=True, retain_stats=True),
                RandAdjustContrast(options.gamma, power, retain_stats=True),
            ]
        )

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> "IntensityAugmentation":
        super().set_random_state(seed, state)
        for step in self.steps.transforms:
            step.set_random_state(state=self.R)
        return self

    def __call__(self, image: Tensor) -> Tensor:
        """``[C, H, W]``, float32."""
        # Plain tensors again: MONAI makes its own, which bring their bookkeeping into every later operation.
        return torch.cat([convert_to_tensor(self.steps(channel[None]), track_meta=False) for channel in image])


class Augmentation(Randomizable):
    """All that is done to a slice in training.

    Args:
        kind: ``"spatial"``, ``"intensity"`` or ``"all"``.
        options: how often, how far.
        ignored_label: see :class:`SpatialAugmentation`.
    """

    def __init__(self, kind: str, options: AugmentOptions, ignored_label: int = IGNORED_LABEL) -> None:
        self.spatial = SpatialAugmentation(options, ignored_label) if kind in ("spatial", "all") else None
        self.intensity = IntensityAugmentation(options) if kind in ("intensity", "all") else None

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> "Augmentation":
        super().set_random_state(seed, state)
        for part in (self.spatial, self.intensity):
            if part is not None:
                part.set_random_state(state=self.R)
        return self

    def __call__(self, item: dict[str, Tensor], pixel: Sequence[float]) -> dict[str, Tensor]:
        """See :class:`SpatialAugmentation`."""
        if self.spatial is not None:
            item = self.spatial(item, pixel)
        if self.intensity is not None:
            item = {**item, "image": self.intensity(item["image"])}
        return item


class AugmentedSlices(Dataset[dict[str, Tensor]]):
    """A training set's slices, changed anew for every draw of a numbered sampler.

    The random state is set for each draw from the seed, the epoch and the place in the epoch, so that neither the
    number of loading processes nor an interruption changes anything.
    """

    def __init__(self, slices: SliceDataset, augmentation: Augmentation, seed: int) -> None:
        self.slices = slices
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        source = np.random.MT19937(np.random.SeedSequence((self.seed, draw.epoch, draw.place)))
        self.augmentation.set_random_state(state=np.random.RandomState(source))
        item = self.slices[draw.number]
        return self.augmentation(item, self.slices.pixel_sizes[int(item["subject"])])
