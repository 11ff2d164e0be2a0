"""Left and right on patches: a head that knows where it is, in a MONAI network trained with mirroring.

    python examples/left_and_right.py --out pictures

Pictures show pairs of equal structures, one on either side of the midline; the label is the side. A patch does not say
which side it is from, and a mirrored one even less. Two networks with equal weights are trained on the same patches:
one with its own last layer, one with the head in its place, which is told the positions.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.networks.utils import one_hot
from monai.transforms import Compose, ConcatItemsd, RandAffined, RandFlipd, RandSpatialCropd
from monai.utils import set_determinism
from torch import Tensor, nn

from scp_kernels import parameter_groups
from scp_models.monai import AddCoordinatesd, MirroringSlidingWindowInferer
from scp_models.networks import PositionedNetwork, attach

SIZE, PATCH = (96, 128), (48, 48)
KEYS = ["image", "label", "coordinates"]


def pair_of_structures(seed: int) -> dict[str, MetaTensor]:
    """A picture ``[1, 96, 128]`` and its labels: 1 left of the midline, 2 right of it."""
    rng = np.random.default_rng(seed)
    i, j = np.meshgrid(*map(np.arange, SIZE), indexing="ij")
    label = np.zeros(SIZE, np.float32)
    for _ in range(2):
        row, distance, radius = rng.uniform(20, 76), rng.uniform(20, 48), rng.uniform(5, 9)
        for side, column in ((1, 64 - distance), (2, 64 + distance)):
            jitter = rng.uniform(-4, 4, 2)
            label[np.hypot(i - row - jitter[0], j - column - jitter[1]) < radius] = side
    image = (label > 0) + rng.normal(0, 0.25, SIZE).astype(np.float32)
    return {"image": MetaTensor(image[None].astype(np.float32)), "label": MetaTensor(label[None])}


def network(with_head: bool) -> nn.Module:
    set_determinism(0)
    backbone = UNet(2, 1, 16, channels=(8, 16, 32), strides=(2, 2), num_res_units=1)
    net = nn.Sequential(backbone, nn.Conv2d(16, 3, 1))
    return PositionedNetwork(attach(net, "1", hidden_channels=64), position_dims=2) if with_head else net


def train(net: nn.Module, loader: DataLoader, epochs: int, channels: int) -> None:
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True)
    groups = parameter_groups(net, 8e-3)  # Φ's rate is limited
    optimizer = torch.optim.Adam(groups)
    highest = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, highest, total_steps=epochs * len(loader))
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            loss_function(net(batch["image"][:, :channels].as_tensor()), batch["label"].as_tensor()).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def segment(net: nn.Module, image: Tensor) -> Tensor:
    """Labels of whole pictures, from windows that are mirrored both ways."""
    inferer = MirroringSlidingWindowInferer(PATCH, 8, mirror_axes=(0, 1), overlap=0.5, mode="gaussian")
    return inferer(image, net.eval()).argmax(1, keepdim=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder of the picture")
    parser.add_argument("--epochs", type=int, default=40)
    arguments = parser.parse_args()

    # Positions are written before anything is cut, and move with the picture through every transform.
    whole = Compose([AddCoordinatesd("image", "slice"), ConcatItemsd(["image", "coordinates"], "image")])
    patches = Compose(
        [
            AddCoordinatesd("image", "slice"),
            RandSpatialCropd(KEYS, PATCH, random_size=False),
            RandFlipd(KEYS, prob=0.5, spatial_axis=0),
            RandFlipd(KEYS, prob=0.5, spatial_axis=1),
            RandAffined(
                KEYS,
                prob=0.3,
                rotate_range=0.3,
                scale_range=0.1,
                mode=["bilinear", "nearest", "bilinear"],
                padding_mode="zeros",
            ),
            ConcatItemsd(["image", "coordinates"], "image"),
        ]
    )
    training = [pair_of_structures(seed) for seed in range(32)]
    test = [whole(pair_of_structures(1000 + seed)) for seed in range(16)]
    image = torch.stack([item["image"].as_tensor() for item in test])
    label = torch.stack([item["label"].as_tensor() for item in test])

    results = {}
    for name, with_head in (("last layer as it was", False), ("head with positions", True)):
        net = network(with_head)
        patches.set_random_state(0)
        loader = DataLoader(CacheDataset(training, patches, progress=False, num_workers=0), batch_size=16, shuffle=True)
        channels = 4 if with_head else 1
        train(net, loader, arguments.epochs, channels)
        results[name] = segment(net, image[:, :channels])
        dice = DiceMetric(include_background=False, reduction="mean_batch")
        left, right = dice(one_hot(results[name], 3), one_hot(label, 3)).nanmean(0).tolist()
        wrong = (results[name] + label == 3).sum() / (label > 0).sum()
        print(f"{name}: Dice left {left:.2f}, right {right:.2f}; {wrong:.1%} of the voxels on the wrong side")

    figure, axes = plt.subplots(3, 4, figsize=(11, 6.4), layout="constrained")
    for row, axis in zip(range(3), axes, strict=True):
        pictures = {"picture": image[row, 0], "reference": label[row, 0], **{k: v[row, 0] for k, v in results.items()}}
        for one, (name, picture) in zip(axis, pictures.items(), strict=True):
            colours = {"cmap": "gray"} if name == "picture" else {"cmap": "inferno", "vmin": 0, "vmax": 3}
            one.imshow(picture, interpolation="nearest", **colours)
            one.set_title(name if row == 0 else "")
            one.axis("off")
    arguments.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out / "left_and_right.png", dpi=80)
    print(arguments.out / "left_and_right.png")


if __name__ == "__main__":
    main()
