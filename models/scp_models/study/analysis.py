"""What a study's scores show: means with their two spreads, and paired differences with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scp_models.evaluation.statistics import PairedInterval, paired_interval
from scp_models.study.design import NetworkPair
from scp_models.study.record import Record

METRIC = "dice"
"""In which networks are compared; the others are only shown."""


@dataclass(frozen=True)
class Spread:
    """A score of one network on one data set."""

    mean: float
    seeds: float | None
    """Standard deviation over seeds of the mean over subjects; None with one seed."""
    subjects: float
    """Standard deviation over subjects of the mean over seeds."""


@dataclass(frozen=True)
class Difference:
    """One comparison's outcome."""

    comparison: NetworkPair
    interval: PairedInterval


def spread(record: Record, data: str, network: str, metric: str) -> Spread:
    """Mean and spreads of a score."""
    scores = record.scores(data, network, metric)
    by_seed = scores.mean(axis=1)
    by_subject = scores.mean(axis=0)
    return Spread(
        float(scores.mean()),
        float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None,
        float(by_subject.std(ddof=1)),
    )


def differences(record: Record, metric: str = METRIC) -> list[Difference]:
    """All comparisons that the study decided on, with intervals widened for how many they are."""
    comparisons = record.comparisons
    return [Difference(c, paired_difference(record, c, metric, len(comparisons))) for c in comparisons]


def paired_difference(record: Record, comparison: NetworkPair, metric: str, comparisons: int) -> PairedInterval:
    """Of each subject the difference is averaged over the seeds; the bootstrap is over subjects."""
    first, second = (
        record.scores(comparison.data, network, metric) for network in (comparison.network, comparison.other)
    )
    return paired_interval((first - second).mean(axis=0).tolist(), comparisons)


def thresholds(record: Record, data: str, network: str) -> tuple[float, float]:
    """The lowest and the highest that the validation subjects chose."""
    chosen = [run["threshold"] for run in record.runs(data, network)]
    return min(chosen), max(chosen)


def training_seconds(record: Record, data: str, network: str) -> float:
    """Median over runs."""
    return float(np.median([run["seconds"]["training"] for run in record.runs(data, network)]))


def of_network(found: Sequence[Difference], data: str, network: str, other: str) -> Difference | None:
    """The one of these two on this data set, if it was decided on."""
    wanted = NetworkPair(data, network, other)
    return next((d for d in found if d.comparison == wanted), None)
