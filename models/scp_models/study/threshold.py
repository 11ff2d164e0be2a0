"""The threshold of a training: what its validation subjects choose, and among what."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scp_models.data.tasks import IGNORED_LABEL, TARGET_LABEL

_LIMIT, _STEPS_PER_UNIT = 7, 4
# Evenly spaced log-odds: a network that is sure of itself has its best threshold far beyond 0.95.
THRESHOLDS = tuple(
    round(1 / (1 + math.exp(-k / _STEPS_PER_UNIT)), 5)
    for k in range(-_LIMIT * _STEPS_PER_UNIT, _LIMIT * _STEPS_PER_UNIT + 1)
)
"""0.00091 to 0.99909, a quarter of a unit of log-odds apart."""
THRESHOLD_GRID = {"lowest": THRESHOLDS[0], "highest": THRESHOLDS[-1], "number": len(THRESHOLDS)}
"""What of them is written into records."""


def choose_threshold(validation: Sequence[tuple[NDArray[np.floating], NDArray[np.integer]]]) -> float:
    """The threshold of :data:`THRESHOLDS` with the highest mean Dice; of equals the nearest to 0.5.

    Args:
        validation: probabilities and labels of each subject, on the network's grid.
    """
    dice = np.zeros(len(THRESHOLDS))
    for probabilities, label in validation:
        target, scored = label == TARGET_LABEL, label != IGNORED_LABEL
        predicted, hits = (_numbers_above(probabilities[mask]) for mask in (scored, target))
        total = predicted + int(target.sum())
        dice += np.where(total, 2 * hits / np.maximum(total, 1), 1.0)
    best = np.flatnonzero(dice >= dice.max() - 1e-12)
    return THRESHOLDS[min(best, key=lambda k: abs(THRESHOLDS[k] - 0.5))]


def _numbers_above(values: NDArray[np.floating]) -> NDArray[np.int64]:
    """How many values exceed each threshold, in their own precision, as masks are made."""
    return len(values) - np.searchsorted(np.sort(values), np.array(THRESHOLDS, values.dtype), side="right")
