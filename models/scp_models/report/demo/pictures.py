"""The demo report's pictures, made from its results; which subjects and slices are shown follows stated rules."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scp_models.data.tasks import TARGET_LABEL
from scp_models.report import figures
from scp_models.report.figures import LossCurve, OutlinedSlice
from scp_models.report.html import TESTED_COLUMNS, Comparison, ModelResult, Picture

QUARTILES = (0.25, 0.5, 0.75)
SELECTION = (
    "Shown are the test subjects at the lower quartile, the median and the upper quartile of Dice averaged over all "
    "models, each at the slice with the most reference lesion; predictions are those of each model's first seed."
)


def typical_subjects(models: Sequence[ModelResult]) -> dict[str, str]:
    """Subject names by "lower quartile", "median", "upper quartile" of Dice averaged over all the models.

    No model is favoured: the average ranks subjects, not models. With few subjects the names may fall together; then
    each is named once.
    """
    mean = pd.concat([model.scores["dice"] for model in models], axis=1).mean(axis=1)
    ranked = mean.sort_values(kind="stable").index
    chosen: dict[str, str] = {}
    for title, quantile in zip(("lower quartile", "median", "upper quartile"), QUARTILES, strict=True):
        name = str(ranked[round(quantile * (len(ranked) - 1))])
        if name not in chosen.values():
            chosen[title] = name
    return chosen


def fullest_slice(reference: NDArray[np.integer], num_classes: int = 1) -> int:
    """The index along Z of the slice with the most lesion pixels, or pixels of any of several classes."""
    counted = (reference >= TARGET_LABEL) & (reference <= num_classes)
    return int(counted.sum((0, 1)).argmax())


def slices_picture(
    title: str,
    subject: str,
    image: NDArray[np.floating],
    reference: NDArray[np.integer],
    predictions: Mapping[str, NDArray[np.integer]],
    dice: Mapping[str, float],
    spacing: tuple[float, float],
    classes: Sequence[str] = (),
) -> Picture:
    """One subject's fullest slice with every model's prediction; arrays ``[X, Y, Z]`` of one grid, spacing in mm.

    ``classes`` are the names of several classes, whose numbers the arrays then hold.
    """
    z = fullest_slice(reference, max(1, len(classes)))
    panels = [OutlinedSlice("reference", image[..., z], reference[..., z])]
    panels += [
        OutlinedSlice(f"{name}\nDice {dice[name]:.2f}", image[..., z], reference[..., z], prediction[..., z])
        for name, prediction in predictions.items()
    ]
    scores = "; ".join(f"{name} {dice[name]:.2f}" for name in predictions)
    return Picture(
        figures.outline_slices(panels, spacing=spacing, classes=classes),
        f"{title[0].upper()}{title[1:]}: {subject}, slice {z + 1} of {reference.shape[2]}, FLAIR. Dice is the whole "
        "subject's. Front up, the patient's left on the left.",
        f"Slice {z + 1} of {subject}, once with the reference lesions outlined and once per model with its prediction "
        f"outlined beside them. Dice of the whole subject: {scores}.",
    )


def weight_pictures(
    weight_field: NDArray[np.floating], frequency: NDArray[np.floating], spacing: tuple[float, float], trained_on: int
) -> list[Picture]:
    """The statistics of W ``[N, C, X, Y]`` and, beside them, how often a training slice has a lesion at each pixel."""
    mean = weight_field[0].mean(0)
    relation = correlation(mean, frequency)
    related = (
        f"Over the pixels, the mean of W and the lesion frequency correlate with r = {relation:.2f}."
        if relation is not None
        else "One of the maps is constant, so that they cannot be correlated."
    )
    return [
        Picture(
            figures.weight_field_statistics(weight_field, spacing=spacing),
            "W, the part of SCP's classifier that depends on the position (without the residual weight), after "
            "training with the first seed: its maximum, mean, minimum, L2 norm and standard deviation along the "
            f"channels, as in the paper's Figure 7. Each map is scaled to its own range, printed above it. {related}",
            "Five maps of the learned weights' statistics over the slice. " + related,
        ),
        Picture(
            figures.lesion_frequency(frequency, spacing=spacing),
            f"In how many per cent of the slices of the {trained_on} training subjects each pixel is lesion.",
            f"Map of the lesion frequency, at most {100 * float(frequency.max()):.0f} per cent.",
        ),
    ]


def correlation(a: NDArray[np.floating], b: NDArray[np.floating]) -> float | None:
    """Pearson's r of two maps, None where one is constant."""
    if a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def score_pictures(models: Sequence[ModelResult], comparisons: Sequence[Comparison], model: str) -> list[Picture]:
    """Dice and L-Dice of every test subject with every model, and the marks of ``model``'s tests against the others."""
    pictures = []
    for metric in TESTED_COLUMNS:
        marks = {
            c.other: c.test.stars if c.verdict != "few" and c.test is not None else "too few"
            for c in comparisons
            if c.model == model and c.metric == metric.title
        }
        scores = {m.name: m.scores[metric.key].to_numpy(dtype=float) for m in models}
        medians = "; ".join(f"{name} {np.nanmedian(values):.2f}" for name, values in scores.items())
        pictures.append(
            Picture(
                figures.score_comparison(scores, metric=metric.title, marks=marks, compared_with=model),
                f"{metric.title} of each of the {len(models[0].scores)} test subjects, averaged over the seeds, "
                f"joined across the models; bars are medians. Above: the paired t-test of “{model}” against another, "
                "uncorrected; * p < 0.05, ** p < 0.01, *** p < 0.001, **** p < 0.0001, ns: not significant.",
                f"Every test subject's {metric.title} by model. Medians: {medians}.",
                vector=True,
            )
        )
    return pictures


def loss_picture(losses: pd.DataFrame) -> Picture:
    """Losses of all runs; columns ``model``, ``seed``, ``epoch``, ``training``, ``validation``."""
    curves: list[LossCurve] = []
    last: dict[str, list[float]] = {}
    for (model, _), run in losses.sort_values("epoch").groupby(["model", "seed"], sort=False):
        validation = None if run["validation"].isna().any() else run["validation"].tolist()
        curves.append(LossCurve(str(model), run["training"].tolist(), validation))
        last.setdefault(str(model), []).append(run["training"].iloc[-1])
    final = "; ".join(f"{model} {np.mean(values):.2f}" for model, values in last.items())
    return Picture(
        figures.loss_curves(curves),
        "Binary cross-entropy plus soft Dice, the mean over each epoch; one line per training. Validation is on "
        "subjects that are neither trained nor tested on.",
        f"Loss against the epoch. Training loss after the last epoch: {final}.",
        vector=True,
    )
