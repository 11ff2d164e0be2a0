"""The operator in ten lines: where a pixel lies decides its class, and the features say nothing of it.

    python examples/ten_lines.py --out pictures

Every pixel has the same features but for noise. A 1×1 convolution cannot tell them apart; the head gives each pixel
weights of its own.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from scp_kernels import FusedSCP


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder of the picture")
    folder = parser.parse_args().out
    torch.manual_seed(0)

    # The ten lines.
    features = 1 + 0.1 * torch.randn(4, 8, 80, 112)
    i, j = torch.meshgrid(torch.arange(80.0), torch.arange(112.0), indexing="ij")
    ring = ((((i - 40) / 28) ** 2 + ((j - 56) / 40) ** 2 - 0.7).abs() < 0.3).float().expand(4, 1, 80, 112)
    heads = {"1×1 convolution": nn.Conv2d(8, 1, 1), "FusedSCP": FusedSCP(8, 1, 64, position="centered", bias=True)}
    for head in heads.values():
        optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
        for _ in range(300):
            optimizer.zero_grad()
            binary_cross_entropy_with_logits(head(features), ring).backward()
            optimizer.step()

    figure, axes = plt.subplots(1, 4, figsize=(12, 2.6), layout="constrained")
    pictures = {"one feature": features[0, 0], "what is asked for": ring[0, 0]}
    with torch.no_grad():
        for name, head in heads.items():
            pictures[name] = head(features)[0, 0].sigmoid()
            right = ((pictures[name] > 0.5) == ring[0, 0].bool()).float().mean()
            print(f"{name}: {right:.1%} of the pixels right, {sum(p.numel() for p in head.parameters())} parameters")
    for axis, (name, picture) in zip(axes, pictures.items(), strict=True):
        axis.imshow(picture, vmin=0, vmax=2 if name == "one feature" else 1, cmap="gray")
        axis.set_title(name)
        axis.axis("off")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "ten_lines.png", dpi=80)
    print(folder / "ten_lines.png")


if __name__ == "__main__":
    main()
