"""Segmenting subjects whose slices are prepared already."""

import numpy as np
from numpy.typing import NDArray

from scp_models.data.preprocessing import Volume
from scp_models.data.slices import SliceCache
from scp_models.data.subjects import Subject
from scp_models.inference.predictor import Predictor


def segment(predictor: Predictor, cache: SliceCache, subject: Subject) -> tuple[NDArray[np.float32], Volume]:
    """Probabilities on the network's grid, of the slices that are prepared already."""
    image, label = cache.open(subject)
    volume = Volume(
        np.asarray(image).transpose(1, 2, 3, 0).astype(np.float32),
        np.asarray(label).transpose(1, 2, 0),
        predictor.reader.grid(subject),
        cache.about(subject).geometry,
    )
    return predictor.probabilities(volume, cache.positions(subject)), volume
