"""The demo's report: one HTML file that stands alone, whose sentences are computed from the numbers it shows."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import jinja2
import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from scp_models.evaluation.statistics import PairedTest, paired_comparison
from scp_models.files import atomic_path

ALPHA = 0.05
# Below this a paired t-test rests on a normality that so few differences cannot show.
FEWEST_COMPARED_SUBJECTS = 10


@dataclass(frozen=True)
class ScoreColumn:
    """One column of the score table: its key in the scores, its heading, and how it is printed."""

    key: str
    title: str
    decimals: int = 3


SCORE_COLUMNS = (
    ScoreColumn("dice", "Dice"),
    ScoreColumn("lesion_dice", "L-Dice"),
    ScoreColumn("lesion_f1", "L-F1"),
    ScoreColumn("lesion_tpr", "L-TPR"),
    ScoreColumn("lesion_ppv", "L-PPV"),
    ScoreColumn("hd95_mm", "HD95 (mm)", 1),
    ScoreColumn("avd", "AVD (%)", 1),
)
TESTED_COLUMNS = SCORE_COLUMNS[:2]


@dataclass(frozen=True)
class ModelResult:
    """One compared model: what it is, what it costs, how it scored.

    Attributes:
        name: as printed everywhere.
        description: one line of what it is.
        parameters, macs: of one network; nominal multiply-adds of one slice.
        step_seconds: one training step of a batch; inference_seconds: a slice's share of a batch's forward pass.
        seed_scores: by seed, one row per test subject, columns as in :data:`SCORE_COLUMNS`.
    """

    name: str
    description: str
    parameters: int
    macs: int
    step_seconds: float
    inference_seconds: float
    seed_scores: Mapping[int, pd.DataFrame]

    @property
    def scores(self) -> pd.DataFrame:
        """Each subject's scores, averaged over the seeds first: the sample of every mean and test is the subjects."""
        return sum(self.seed_scores.values()) / len(self.seed_scores)


@dataclass(frozen=True)
class Comparison:
    """``model`` against ``other`` in one metric, paired by subject."""

    model: str
    other: str
    metric: str
    model_mean: float
    other_mean: float
    test: PairedTest | None
    subjects: int

    @property
    def verdict(self) -> str:
        """ "higher", "lower", "none" (no difference found) or "few" (too few subjects to ask)."""
        if self.test is None or self.subjects < FEWEST_COMPARED_SUBJECTS:
            return "few"
        if not self.test.p_value < ALPHA:
            return "none"
        return "higher" if self.test.mean_difference > 0 else "lower"


@dataclass(frozen=True)
class Picture:
    """A figure with its caption and the text that stands for it where it cannot be seen."""

    figure: Figure
    caption: str
    alternative: str
    # Photographs of data are pixels; curves and text stay sharp at any size as SVG.
    vector: bool = False

    @property
    def uri(self) -> str:
        return data_uri(self.figure, vector=self.vector)


@dataclass(frozen=True)
class Report:
    """Everything the page shows. ``facts`` are name and value pairs; ``pictures`` are keyed by section; ``selection``
    says which subjects and slices they show.
    """

    models: Sequence[ModelResult]
    comparisons: Sequence[Comparison]
    facts: Mapping[str, str]
    pictures: Mapping[str, Sequence[Picture]] = field(default_factory=dict)
    selection: str = ""
    control: str | None = None
    notes: Sequence[str] = ()
    created: str = ""


def compare(model: ModelResult, other: ModelResult, metric: ScoreColumn) -> Comparison:
    """Paired comparison over the subjects that both have a score for; no test below two of them."""
    paired = pd.concat([model.scores[metric.key], other.scores[metric.key]], axis=1, join="inner").dropna()
    a, b = paired.iloc[:, 0].to_numpy(), paired.iloc[:, 1].to_numpy()
    test = paired_comparison(a, b) if len(paired) >= 2 else None
    mean = (lambda v: float(v.mean())) if len(paired) else (lambda v: math.nan)
    return Comparison(model.name, other.name, metric.title, mean(a), mean(b), test, len(paired))


def statement(comparison: Comparison, tests: int) -> str:
    """One sentence that says what this comparison shows, and nothing more.

    Args:
        comparison: the numbers.
        tests: how many tests the report makes, for the remark on multiple testing.
    """
    c = comparison
    means = f"{c.model_mean:.3f} against {c.other_mean:.3f}"
    if c.test is None or c.verdict == "few":
        return (
            f"{c.metric}: {c.model} {means} for {c.other}, with {_count(c.subjects, 'test subject')}: "
            f"too few to say whether they differ (at least {FEWEST_COMPARED_SUBJECTS} are asked for)."
        )
    t = c.test
    numbers = f"n = {t.n}, {p_value(t.p_value)}, d = {signed(t.cohen_dz, 2)}"
    if c.verdict == "none":
        return (
            f"{c.metric}: no difference found between {c.model} and {c.other} "
            f"({means}; mean difference {signed(t.mean_difference)}, {numbers})."
        )
    text = (
        f"{c.metric}: {c.model} scored {c.verdict} than {c.other} by {abs(t.mean_difference):.3f} ({means}; {numbers})."
    )
    if t.p_value >= ALPHA / tests:
        text += f" This would not survive a correction for the {tests} tests made here (Bonferroni)."
    return text


def control_statement(comparison: Comparison) -> str:
    """What the constant-position control says about the cause of a difference."""
    c = comparison
    subject = f"{c.other} is the control: the same head, with every pixel told the same position"
    if c.verdict == "higher":
        return f"{subject}. It scored lower, so what {c.model} gained over it comes from the positions."
    if c.verdict == "lower":
        return f"{subject}. It scored higher: here the positions cost more than they gave."
    if c.verdict == "none":
        return f"{subject}. No difference from it was found, so nothing here can be credited to the positions."
    return f"{subject}. With so few test subjects it decides nothing."


def lead(comparisons: Sequence[Comparison]) -> str:
    """The page's first sentence: the verdicts on Dice of the first comparison's model against the others."""
    model, metric = comparisons[0].model, comparisons[0].metric
    shown = [c for c in comparisons if c.model == model and c.metric == metric]
    phrases = {
        "higher": "scored higher than {}",
        "lower": "scored lower than {}",
        "none": "could not be told apart from {}",
        "few": "has too few test subjects to be compared with {}",
    }
    parts = []
    for verdict, phrase in phrases.items():
        others = [f"“{c.other}” ({c.model_mean:.2f} against {c.other_mean:.2f})" for c in shown if c.verdict == verdict]
        if others:
            parts.append(phrase.format(_listed(others)))
    return f"In {metric}, “{model}” {'; it '.join(parts)}."


def score_table(models: Sequence[ModelResult]) -> list[list[str]]:
    """Rows of model name and, for each of :data:`SCORE_COLUMNS`, mean ± standard deviation over the test subjects."""
    return [[model.name, *(_mean_and_sd(model.scores[m.key], m.decimals) for m in SCORE_COLUMNS)] for model in models]


def cost_table(models: Sequence[ModelResult]) -> list[list[str]]:
    """Rows of model name, parameters, multiply-adds, step and inference time, each with its ratio to the first."""
    base = models[0]
    rows = []
    for m in models:
        rows.append([
            m.name,
            f"{m.parameters:,}", f"{m.parameters / base.parameters:.2f}",
            f"{m.macs / 1e6:,.1f}", f"{m.macs / base.macs:.2f}",
            f"{1e3 * m.step_seconds:,.0f}", f"{m.step_seconds / base.step_seconds:.2f}",
            f"{1e3 * m.inference_seconds:,.2f}", f"{m.inference_seconds / base.inference_seconds:.2f}",
        ])  # fmt: skip
    return rows


def seed_table(models: Sequence[ModelResult]) -> list[list[str]]:
    """Rows of model name and the mean Dice and L-Dice of each seed: the spread that the tests do not see."""
    rows = []
    for model in models:
        cells = [
            ", ".join(f"{scores[metric.key].mean():.3f}" for scores in model.seed_scores.values())
            for metric in TESTED_COLUMNS
        ]
        rows.append([model.name, ", ".join(map(str, model.seed_scores)), *cells])
    return rows


def render(report: Report) -> str:
    """The page as one HTML text: no script, no style sheet, font or image outside it."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(files("scp_models").joinpath("report/template.html").read_text(encoding="utf-8"))
    tests = sum(c.test is not None for c in report.comparisons)
    control = [c for c in report.comparisons if c.other == report.control and c.metric == TESTED_COLUMNS[0].title]
    groups: dict[str, list[str]] = {}
    for c in report.comparisons:
        groups.setdefault(f"{c.model} and {c.other}", []).append(statement(c, tests))
    return template.render(
        report=report,
        lead=lead(report.comparisons),
        control=control_statement(control[0]) if control else None,
        groups=groups,
        tests=tests,
        alpha=ALPHA,
        columns=SCORE_COLUMNS,
        subjects=len(report.models[0].scores),
        scores=score_table(report.models),
        costs=cost_table(report.models),
        seeds=seed_table(report.models),
    )


def write(report: Report, path: Path) -> Path:
    """Render the report to ``path``.

    Raises:
        UserError: the file cannot be written.
    """
    page = render(report)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def data_uri(figure: Figure, *, vector: bool = False, dpi: int = 170) -> str:
    """A figure as a ``data:`` URI, PNG or SVG (text as outlines, so it looks the same without the font)."""
    buffer = BytesIO()
    kind, mime = ("svg", "svg+xml") if vector else ("png", "png")
    metadata = {"Date": None} if vector else None
    # Without a fixed salt an SVG's element names are random, and the same numbers never give the same page.
    with matplotlib.rc_context({"svg.hashsalt": "scp"}):
        figure.savefig(buffer, format=kind, dpi=dpi, facecolor="white", metadata=metadata)
    return f"data:image/{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def p_value(p: float) -> str:
    """ "p = 0.031", or with a power of ten below 0.001."""
    if p >= 0.001:
        return f"p = {p:.3f}"
    if p < 1e-300:
        return "p < 10⁻³⁰⁰"
    exponent = math.floor(math.log10(p))
    digits = str(-exponent).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"p = {p / 10.0**exponent:.1f} · 10⁻{digits}"


def signed(value: float, decimals: int = 3) -> str:
    """A number with its sign, a typographic minus; a dash where there is none."""
    return f"{value:+.{decimals}f}".replace("-", "−") if math.isfinite(value) else "–"


def _mean_and_sd(values: pd.Series, decimals: int) -> str:
    finite = values[values.map(math.isfinite)]
    if finite.empty:
        return "–"
    text = f"{finite.mean():.{decimals}f}"
    if len(finite) > 1:
        text += f" ± {finite.std():.{decimals}f}"
    return text if len(finite) == len(values) else f"{text} (n = {len(finite)})"


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
