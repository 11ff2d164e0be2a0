"""The report says what its numbers say, and stands alone."""

import math
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from scp_models.errors import UserError
from scp_models.report import figures
from scp_models.report import html as report
from scp_models.report.html import SCORE_COLUMNS, ModelResult, Picture, Report

DICE = SCORE_COLUMNS[0]


def model(name: str, dice: np.ndarray, seeds: int = 1) -> ModelResult:
    """A model whose every metric is ``dice``, HD95 included, the same with every seed."""
    index = pd.Index([f"subject-{k:02d}" for k in range(len(dice))], name="subject")
    frame = pd.DataFrame({metric.key: dice for metric in SCORE_COLUMNS}, index=index, dtype=float)
    return ModelResult(name, f"the {name} network", 1000, 2_000_000, 0.1, 0.01, {seed: frame for seed in range(seeds)})


def dice(n: int = 28, shift: float = 0.0, noise: float = 0.05, seed: int = 0) -> np.ndarray:
    common = 0.5 + 0.1 * np.random.default_rng(99).standard_normal(n)
    return common + shift + noise * np.random.default_rng(seed).standard_normal(n)


def said(a: np.ndarray, b: np.ndarray, tests: int = 1) -> str:
    return report.statement(report.compare(model("SCP", a), model("Base", b), DICE), tests)


def test_a_higher_score_is_called_higher_with_its_numbers():
    a, b = dice(shift=0.2, seed=1), dice(seed=2)
    sentence = said(a, b)
    assert f"SCP scored higher than Base by {np.mean(a - b):.3f}" in sentence
    assert f"{a.mean():.3f} against {b.mean():.3f}" in sentence and "n = 28" in sentence and "p = " in sentence
    assert "lower" not in sentence and "Bonferroni" not in sentence


def test_a_lower_score_is_called_lower():
    sentence = said(dice(shift=-0.2, seed=1), dice(seed=2))
    assert "SCP scored lower than Base by 0." in sentence and "d = −" in sentence and "higher" not in sentence


def test_noise_is_no_difference():
    sentence = said(dice(seed=1, noise=0.05), dice(seed=1, noise=0.05) + 0.01 * np.tile([1.0, -1.0], 14))
    assert "no difference found between SCP and Base" in sentence
    assert "scored higher" not in sentence and "scored lower" not in sentence


def test_identical_scores_are_no_difference():
    assert "no difference found" in said(dice(), dice())


def test_too_few_subjects_decide_nothing_however_large_the_difference():
    sentence = said(dice(6, shift=0.4), dice(6))
    assert "too few" in sentence and "6 test subjects" in sentence and "scored higher" not in sentence
    assert "1 test subject:" in said(dice(1, shift=0.4), dice(1))


def test_a_difference_that_does_not_survive_correction_says_so():
    difference = np.tile([1.0, -1.0], 14)
    difference = 0.05 * difference / difference.std() + 0.021  # t about 2.2, p about 0.04
    sentence = said(dice(seed=3) + difference, dice(seed=3), tests=10)
    assert "scored higher" in sentence and "would not survive a correction for the 10 tests" in sentence
    assert "correction" not in said(dice(seed=3) + difference, dice(seed=3), tests=1)


def test_subjects_without_a_score_are_left_out_of_the_pair():
    a, b = dice(shift=0.2, seed=1), dice(seed=2)
    a[3] = math.nan
    assert "n = 27" in said(a, b)


@pytest.mark.parametrize(
    ("shift", "said_of_it"),
    [(0.2, "comes from the positions"), (-0.2, "cost more"), (0.0, "nothing here can be credited")],
)
def test_the_control_is_read_from_the_numbers(shift, said_of_it):
    comparison = report.compare(model("SCP", dice() + shift + dice(seed=4) * 1e-3), model("control", dice()), DICE)
    if shift == 0.0:
        comparison = report.compare(model("SCP", dice()), model("control", dice()), DICE)
    assert said_of_it in report.control_statement(comparison)
    few = report.compare(model("SCP", dice(3) + shift), model("control", dice(3)), DICE)
    assert "decides nothing" in report.control_statement(few)


def test_the_lead_sorts_the_others_by_verdict():
    scp = model("SCP", dice(seed=1))
    others = [
        model("low", dice(shift=-0.2, seed=2)),
        model("high", dice(shift=0.2, seed=3)),
        model("same", dice(seed=1)),
    ]
    lead = report.lead([report.compare(scp, other, metric) for other in others for metric in SCORE_COLUMNS[:2]])
    higher, lower, none = lead.split("; it ")
    assert (
        "higher than “low”" in higher and "lower than “high”" in lower and "could not be told apart from “same”" in none
    )


def test_seeds_are_averaged_within_a_subject_first():
    first, second = model("SCP", np.array([0.2, 0.6])), model("SCP", np.array([0.4, 0.8]))
    both = ModelResult("SCP", "", 1, 1, 1.0, 1.0, {0: first.scores, 1: second.scores})
    assert report.score_table([both])[0][1] == "0.500 ± 0.283"
    assert report.seed_table([both])[0][1:3] == ["0, 1", "0.400, 0.600"]


def test_a_mean_over_fewer_subjects_says_over_how_many():
    assert report.score_table([model("SCP", np.array([0.5, 0.7, math.nan]))])[0][1] == "0.600 ± 0.141 (n = 2)"
    assert report.score_table([model("SCP", np.array([math.nan]))])[0][1] == "–"


def test_costs_are_relative_to_the_first_model():
    base = model("Base", dice(3))
    double = ModelResult("double", "", 4000, 8_000_000, 0.25, 0.02, base.seed_scores)
    assert report.cost_table([base, double])[1] == (
        ["double", "4,000", "4.00", "8.0", "4.00", "250", "2.50", "20.00", "2.00"]
    )


@pytest.mark.parametrize(
    ("p", "text"), [(0.0312, "p = 0.031"), (0.5, "p = 0.500"), (3.21e-13, "p = 3.2 · 10⁻¹³"), (0.0, "p < 10⁻³⁰⁰")]
)
def test_p_values_are_readable(p, text):
    assert report.p_value(p) == text


class Page(HTMLParser):
    """What a browser would load from elsewhere, the images without a description, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.undescribed = 0
        self.images = 0
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "srcset", "data", "poster", "action"} and not (value or "").startswith(
                ("data:", "#")
            ):
                self.outside.append(f"{tag} {name}={value}")
        if tag == "img":
            self.images += 1
            self.undescribed += not dict(attrs).get("alt", "").strip()

    def handle_data(self, data):
        self.words.append(data)


def example(**changes) -> Report:
    models = [model("Base", dice(seed=1)), model("<SCP> & co", dice(shift=0.2, seed=2), seeds=2)]
    comparisons = [report.compare(models[1], models[0], metric) for metric in report.TESTED_COLUMNS]
    curve = figures.loss_curves([figures.LossCurve("Base", [1.0, 0.5])])
    picture = Picture(curve, "Losses.", "The loss falls.", vector=True)
    fields = {
        "models": models,
        "comparisons": comparisons,
        "facts": {"Seeds": "0, 1"},
        "pictures": {"losses": [picture], "slices": [Picture(curve, "As pixels.", "The same.")]},
        "notes": ["Phantoms are not patients."],
    }
    return Report(**fields | changes)


def test_the_page_stands_alone():
    text = report.render(example())
    page = Page(text)
    assert page.outside == [] and page.images == 2 and page.undescribed == 0
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    without_images = re.sub(r'src="data:[^"]*"', "", text)
    assert not re.search(r"https?:|url\(|@import", without_images)
    assert 'lang="en"' in text and 'name="viewport"' in text


def test_the_page_holds_the_numbers_the_notes_and_the_facts_and_escapes_names():
    words = " ".join(Page(report.render(example())).words)
    assert "Phantoms are not patients." in words and "0, 1" in words and "scored higher than Base" in words
    assert "<SCP> & co" in words


def test_the_page_is_the_same_for_the_same_numbers():
    assert report.render(example()) == report.render(example())


def test_the_report_is_written_whole_or_not_at_all(tmp_path):
    path = report.write(example(), tmp_path / "new" / "report.html")
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="cannot write"):
        report.write(example(), blocked / "report.html")
