"""Training on patches: a network that never sees a whole slice, and is told where in the slice each patch lies."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from scp_models.data.sampling import Draw
from scp_models.data.slices import SliceDataset


class PatchedSlices(Dataset[dict[str, Tensor]]):
    """A training set's slices, each draw of a numbered sampler cut to a patch at a random place.

    The place depends on the seed, the epoch and the place in the epoch alone.

    Args:
        slices: whole ones.
        size: height and width of patches.
        seed: of their places.

    Raises:
        ValueError: patches that are larger than the slices.
    """

    def __init__(self, slices: SliceDataset, size: tuple[int, int], seed: int) -> None:
        whole = slices[0]["image"].shape[-2:]
        if not all(0 < part <= full for part, full in zip(size, whole, strict=True)):
            raise ValueError(f"size: expected patches of at most {whole[0]} × {whole[1]} pixels, got {size}")
        self.slices = slices
        self.size = size
        self.seed = seed

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        item = self.slices[draw.number]
        shape = item["image"].shape[-2:]
        rng = np.random.default_rng((self.seed, draw.epoch, draw.place))
        corner = [int(rng.integers(full - part + 1)) for full, part in zip(shape, self.size, strict=True)]
        h, w = (slice(start, start + part) for start, part in zip(corner, self.size, strict=True))
        # Where the item has no affine, positions are counted in the whole slice.
        affine = item.get("affine", torch.eye(2, 3)).clone()
        affine[:, 2] += affine[:, :2] @ torch.tensor(corner, dtype=affine.dtype)
        extent = item.get("extent", torch.tensor(shape, dtype=torch.float32))
        image, label = (item[key][..., h, w] for key in ("image", "label"))
        return {**item, "image": image, "label": label, "affine": affine, "extent": extent}
