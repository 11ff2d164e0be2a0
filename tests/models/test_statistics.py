"""The paired test against textbook numbers and scipy's other road to them."""

import math

import numpy as np
import pytest
from scipy import stats

from scp_models.evaluation.statistics import PairedTest, paired_comparison, paired_interval


def test_hand_computed_case():
    # Differences 1, 2, 3: mean 2, standard deviation 1, so d_z = 2 and t = 2·√3 with 2 degrees of freedom, for which
    # the two-tailed p is 1 − t/√(2 + t²).
    test = paired_comparison([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    t = 2 * math.sqrt(3)
    assert (test.n, test.mean_difference) == (3, 2.0)
    assert test.cohen_dz == pytest.approx(2.0)
    assert test.statistic == pytest.approx(t)
    assert test.p_value == pytest.approx(1 - t / math.sqrt(2 + t**2))
    assert test.stars == "ns"


def test_agrees_with_the_one_sample_test_of_the_differences():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.6, 0.1, 28), rng.normal(0.55, 0.1, 28)
    test = paired_comparison(a, b)
    expected = stats.ttest_1samp(a - b, 0.0)
    assert test.p_value == pytest.approx(expected.pvalue)
    assert test.statistic == pytest.approx(expected.statistic)
    assert test.statistic == pytest.approx(test.cohen_dz * math.sqrt(test.n))


def test_exchanging_the_models_changes_the_sign_alone():
    a, b = [0.7, 0.8, 0.75, 0.9], [0.6, 0.85, 0.7, 0.8]
    one, other = paired_comparison(a, b), paired_comparison(b, a)
    assert one.p_value == pytest.approx(other.p_value)
    assert one.mean_difference == pytest.approx(-other.mean_difference)
    assert one.cohen_dz == pytest.approx(-other.cohen_dz)


@pytest.mark.parametrize(
    ("p", "stars"),
    [(0.2, "ns"), (0.05, "ns"), (0.049, "*"), (0.01, "*"), (0.0099, "**"), (0.00099, "***"), (0.000099, "****")],
)
def test_stars_are_those_of_the_papers_figure_5(p, stars):
    assert PairedTest(10, 0.1, 2.0, p, 0.5).stars == stars


def test_identical_models():
    assert paired_comparison([0.5, 0.6, 0.7], [0.5, 0.6, 0.7]) == PairedTest(3, 0.0, 0.0, 1.0, 0.0)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_same_difference_for_every_subject(sign):
    # The three differences of 0.1 are not bitwise alike in floating point; t would be some 10¹⁵ or so by chance.
    b = np.array([0.1, 0.6, 0.7])
    a = b + sign * 0.1
    assert len(set(a - b)) > 1
    test = paired_comparison(a, b)
    assert test.p_value == 0.0
    assert test.statistic == test.cohen_dz == sign * math.inf
    assert test.mean_difference == pytest.approx(sign * 0.1)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([0.5], [0.6], "at least two"),
        ([], [], "at least two"),
        ([0.5, 0.6], [0.5, 0.6, 0.7], "shapes"),
        ([[0.5, 0.6]], [[0.5, 0.6]], "shapes"),
        ([0.5, math.nan], [0.5, 0.6], "finite"),
        ([0.5, 0.6], [math.inf, 0.6], "finite"),
    ],
)
def test_bad_scores_are_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        paired_comparison(a, b)


def test_two_subjects_say_nothing():
    """Half of their resamples have one subject alone, and no spread to measure a deviation by."""
    interval = paired_interval([0.1, 0.2])
    assert (interval.n, interval.low, interval.high) == (2, -math.inf, math.inf)
    assert interval.mean == pytest.approx(0.15) and interval.verdict == "none"


def test_the_interval_of_one_difference_among_four_subjects_is_known():
    """Of (0, 0, 0, 4), mean 1 and standard error 1, the ratio is −∞, −0, 1/√(4/3), 2 and ∞ with 0 to 4 draws of the 4.

    Their number is binomial: P(X = 0) = 0.316, P(X ≤ 2) = 0.949, P(X ≤ 3) = 0.996.
    """
    four = [0.0, 0.0, 0.0, 4.0]
    alone, of_twenty = paired_interval(four), paired_interval(four, 20)
    assert (alone.mean, alone.low, alone.high) == (1.0, pytest.approx(-1.0), math.inf)
    # 1 − 0.05/(2 · 20) = 0.99875 is beyond P(X ≤ 3) = 1 − 1/256.
    assert (of_twenty.low, of_twenty.high) == (alone.low, alone.high)
    assert (of_twenty.family_low, of_twenty.family_high) == (-math.inf, math.inf)


def test_few_subjects_are_covered_as_often_as_promised():
    """Of 12 normal differences quantiles of the resampled means would miss 3.8 % at a level of 1.25 %."""
    rng = np.random.default_rng(0)
    intervals = [paired_interval(rng.normal(size=12), 4, resamples=4000) for _ in range(1500)]
    missed = np.mean([i.family_low > 0 or i.family_high < 0 for i in intervals])
    assert 0.006 < missed < 0.019  # three standard deviations of the count: ± 0.0086


def test_the_interval_of_many_subjects_is_that_of_the_normal_distribution():
    values = np.random.default_rng(3).normal(0.1, 1.0, 200)
    interval = paired_interval(values.tolist(), 10, resamples=20_000)
    error = values.std(ddof=1) / np.sqrt(len(values))
    for z, low, high in (
        (1.96, interval.low, interval.high),
        (2.807, interval.family_low, interval.family_high),  # two-sided 0.005
    ):
        assert low == pytest.approx(values.mean() - z * error, abs=0.1 * error)
        assert high == pytest.approx(values.mean() + z * error, abs=0.1 * error)


def test_a_difference_is_shown_where_the_widened_interval_leaves_out_0():
    values = [0.01, 0.02, 0.05, -0.005, 0.03, 0.02, 0.04, -0.01]
    assert paired_interval(values).verdict == "higher"
    assert paired_interval([-v for v in values]).verdict == "lower"
    assert paired_interval(values, 1000).verdict == "none"
    assert paired_interval([0.0, 0.0, 0.0]).verdict == "none"
    assert paired_interval(values) == paired_interval(values)


@pytest.mark.parametrize(
    ("differences", "comparisons", "message"),
    [([0.1], 1, "at least two"), ([0.1, float("nan")], 1, "finite"), ([0.1, 0.2], 0, "comparisons")],
)
def test_intervals_of_nothing_are_refused(differences, comparisons, message):
    with pytest.raises(ValueError, match=message):
        paired_interval(differences, comparisons)
