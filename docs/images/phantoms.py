"""Draw docs/images/phantoms.png: python docs/images/phantoms.py"""

from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from PIL import Image

from scp_models.phantoms.abdomen import make_abdomen
from scp_models.phantoms.brain import make_brain
from scp_models.phantoms.templates import load_brain_template
from scp_models.phantoms.wmh import grid_of
from scp_models.phantoms.writing import subject_seed

RED, CYAN, YELLOW, GREEN = "#ff4d4d", "#37d5e6", "#ffd23f", "#59d86a"


def show(axes: Axes, image: np.ndarray, spacing: tuple[float, ...], limits: tuple[float, float], title: str) -> None:
    """One axial slice ``[X, Y]`` (RAS) in radiological convention: front up, the patient's right on the left."""
    aspect = spacing[1] / spacing[0]
    axes.imshow(image[::-1].T, cmap="gray", vmin=limits[0], vmax=limits[1], origin="lower", aspect=aspect)
    axes.set_title(title, fontsize=7.5, pad=3)


def outline(axes: Axes, mask: np.ndarray, color: str) -> None:
    if mask.any():
        axes.contour(mask[::-1].T, [0.5], colors=color, linewidths=0.9, origin="lower")


def brain_row(row: np.ndarray, index: int, seed: int, size: str, decided: bool, offset: int) -> None:
    grid = grid_of(index, size)
    kind = "ellipse" if decided else "anatomy"
    brain = make_brain(load_brain_template(), grid, subject_seed(seed, 0, index), decided_by=kind)
    lesions = (brain.label == 1).sum(axis=(0, 1))
    z = int(np.argmax(lesions))
    other = min(max(z + offset, 0), grid.shape[2] - 1)
    limits = (0.04, 1.25)
    name = "location-decided" if decided else f"{'×'.join(map(str, grid.shape))}"
    pictures = (
        (brain.orig_flair, z, f"FLAIR, orig ({name})", False),
        (brain.pre_t1, z, "T1, pre", False),
        (brain.pre_flair, z, "FLAIR, pre, with labels", True),
        (brain.pre_flair, other, "another slice", True),
    )
    edge = 25 if size == "full" else 0
    inside = slice(edge, grid.shape[0] - edge), slice(edge // 2, grid.shape[1] - edge // 2)
    for axes, (image, k, title, marked) in zip(row, pictures, strict=True):
        show(axes, image[..., k][inside], grid.spacing, limits, title)
        if marked:
            outline(axes, brain.pathology.lookalike[..., k][inside], YELLOW)
            outline(axes, brain.label[..., k][inside] == 2, CYAN)
            outline(axes, brain.label[..., k][inside] == 1, RED)


def abdomen_row(row: np.ndarray, index: int, seed: int) -> None:
    spacing = (1.3, 1.3, 5.0)
    abdomen = make_abdomen((300, 300, 44), spacing, subject_seed(seed, 1, index))
    most = int(np.argmax((abdomen.label == 2).sum(axis=(0, 1))))
    inside = slice(20, -20), slice(45, -55)
    for axes, k in zip(row, (9, 17, most, 34), strict=True):
        show(axes, abdomen.volume[..., k][inside], spacing, (-160, 240), f"CT, slice {k + 1} of 44")
        if k in (most, 34):
            outline(axes, abdomen.label[..., k][inside] > 0, GREEN)
            outline(axes, abdomen.label[..., k][inside] == 2, RED)


def main() -> None:
    figure, axes = plt.subplots(5, 4, figsize=(8.4, 10.6), facecolor="white", height_ratios=(1.2, 1.2, 1.2, 0.8, 0.8))
    brain_row(axes[0], 0, 2, "full", False, 5)
    brain_row(axes[1], 1, 11, "full", False, -7)
    brain_row(axes[2], 0, 6, "small", True, 3)
    abdomen_row(axes[3], 3, 6)
    abdomen_row(axes[4], 1, 4)
    for one in axes.ravel():
        one.axis("off")
    figure.tight_layout(pad=0.4)
    buffer = BytesIO()
    figure.savefig(buffer, dpi=85)
    # Noise hardly compresses. A palette of greys, and of the outlines fading into them, halves the file.
    shades = [(g, g, g) for g in range(0, 256, 4)]
    for color in (RED, CYAN, YELLOW, GREEN):
        pure = np.multiply(to_rgb(color), 255)
        shades += [
            tuple(np.rint(share * pure + (1 - share) * g)) for share in (0.35, 0.65, 1.0) for g in (40, 120, 200)
        ]
    palette = Image.new("P", (1, 1))
    palette.putpalette([int(value) for shade in shades for value in shade])
    small = Image.open(buffer).convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE)
    small.save(Path(__file__).with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main()
