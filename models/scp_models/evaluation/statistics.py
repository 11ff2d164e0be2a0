"""Paired comparison of two models on the same subjects (paper, Section 4.3 and Fig. 5)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class PairedTest:
    """Outcome of a paired two-tailed t-test of ``a − b``."""

    n: int
    """Subjects."""
    mean_difference: float
    statistic: float
    p_value: float
    cohen_dz: float
    """Effect size: mean difference over the differences' standard deviation."""

    @property
    def stars(self) -> str:
        """The paper's annotation: ``ns`` or one to four stars for p < 0.05, 0.01, 0.001, 0.0001."""
        return "*" * sum(self.p_value < alpha for alpha in (0.05, 0.01, 0.001, 0.0001)) or "ns"


def paired_comparison(a: Sequence[float], b: Sequence[float]) -> PairedTest:
    """Paired two-tailed t-test between the scores of two models, subject by subject.

    Where all differences are the same, t is undefined: p is 1 if they are zero and 0 if they are not (and t and the
    effect size infinite), which is the limit.

    Raises:
        ValueError: different numbers of subjects, fewer than two, or scores that are not finite.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"a, b: expected one score for each subject in both, got shapes {x.shape} and {y.shape}")
    if len(x) < 2:
        raise ValueError(f"a, b: expected at least two subjects, got {len(x)}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("a, b: expected finite scores")
    difference = x - y
    mean, deviation = float(difference.mean()), float(difference.std(ddof=1))
    if deviation <= 1e-12 * max(abs(mean), np.finfo(float).tiny):
        if mean == 0:
            return PairedTest(len(x), 0.0, 0.0, 1.0, 0.0)
        infinite = math.copysign(math.inf, mean)
        return PairedTest(len(x), mean, infinite, 0.0, infinite)
    result = stats.ttest_rel(x, y)
    return PairedTest(len(x), mean, float(result.statistic), float(result.pvalue), mean / deviation)
