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
    """Over subjects, of the mean over seeds."""
    by_seed: tuple[float, ...]
    """Mean over subjects with each seed."""

    @property
    def verdict(self) -> str:
        """``"higher"`` or ``"lower"`` where the widened interval leaves out 0 and all seeds, two or more, have the same
        sign; else ``"none"``. An interval over subjects alone takes the accidents of one training for a difference.
        """
        if len(self.by_seed) < 2:
            return "none"
        agreed = all(value > 0 for value in self.by_seed) or all(value < 0 for value in self.by_seed)
        return self.interval.verdict if agreed else "none"


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
    """All comparisons that are finished, with intervals widened for how many the study decided on."""
    return [paired_difference(record, c, metric, record.family) for c in record.comparisons]


def paired_difference(record: Record, comparison: NetworkPair, metric: str, comparisons: int) -> Difference:
    """Of each subject the difference is averaged over the seeds; the bootstrap is over subjects.

    Args:
        record: of the study.
        comparison: who with whom, and on what.
        metric: of the scores.
        comparisons: how many the interval is widened for.
    """
    first, second = (
        record.scores(comparison.data, network, metric) for network in (comparison.network, comparison.other)
    )
    pairs = first - second
    by_seed = tuple(float(value) for value in pairs.mean(axis=1))
    return Difference(comparison, paired_interval(pairs.mean(axis=0).tolist(), comparisons), by_seed)


def thresholds(record: Record, data: str, network: str) -> tuple[float, float] | None:
    """The lowest and the highest that the validation subjects chose; None of exclusive classes, which have none."""
    chosen = [run["threshold"] for run in record.runs(data, network)]
    return None if None in chosen else (min(chosen), max(chosen))


def training_seconds(record: Record, data: str, network: str) -> float:
    """Median over runs."""
    return float(np.median([run["seconds"]["training"] for run in record.runs(data, network)]))


def of_network(differences: Sequence[Difference], data: str, network: str, other: str) -> Difference | None:
    """The one of these two on this data set, if it was decided on."""
    wanted = NetworkPair(data, network, other)
    return next((d for d in differences if d.comparison == wanted), None)
