"""The reproduction's report: one HTML file that stands alone, its tables as CSV, and ``study.json`` beside it; and the
same as a page of Markdown with its pictures beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

import jinja2

from scp_models.evaluation.statistics import paired_comparison
from scp_models.files import atomic_path
from scp_models.report import figures
from scp_models.report.html import Picture, signed
from scp_models.study.analysis import paired_difference
from scp_models.study.design import NetworkPair, Study, StudyData
from scp_models.study.markdown import markdown, widened
from scp_models.study.pictures import save_beside
from scp_models.study.prepared import Prepared
from scp_models.study.record import Record
from scp_models.study.reproduce import pictures
from scp_models.study.reproduce.costs import PAPER_OPERATOR, CostRow
from scp_models.study.reproduce.design import (
    AGAINST,
    TASK_TITLES,
    TESTED,
    StudyBudget,
    ablation_names,
    reference,
)
from scp_models.study.reproduce.paper import SCORES
from scp_models.study.reproduce.tables import (
    COUNTED_LESIONS,
    Table,
    ablation_table,
    printed_score_table,
    subject_table,
    tested_table,
)
from scp_models.study.reproduce.trained import case, cohort_density_cache, learned_weights

SHOWN_COSTS = (
    (TESTED, "ours"), (TESTED, PAPER_OPERATOR), ("Base F 512", ""), ("Base B 512", ""), ("Base 512", ""),
)  # fmt: skip
PRINTED_SAVINGS = {
    "memory": ("memory", 23.8), "macs": ("multiply-adds", 64.9), "parameters": ("parameters", 74.7),
}  # fmt: skip
"""SCP 256 against Base 512 in the paper."""
_NUMBERS = {"wmh": 1, "lits": 2}
_SECTIONS = {
    "Scores per subject": "boxes", "Costs": "costs", "Where lesions lie": "density", "What Φ learned": "weights",
}  # fmt: skip
"""Headings behind the tables, and their pictures."""


def make_tables(record: Record, study: Study, budget: StudyBudget, costs: Sequence[CostRow]) -> list[Table]:
    """Tables 1 and 2, the differences of Fig. 5, the ablations."""
    tables = []
    for data in study.data:
        tables.append(
            printed_score_table(record, data.name, data.task, _NUMBERS[data.task], costs, _remark(budget, data))
        )
        tables.append(tested_table(record, data.name))
    tables.append(ablation_table(record, study.data[0].name, ablation_names(budget), reference(budget)))
    return tables


def _remark(budget: StudyBudget, data: StudyData) -> str:
    on = "On phantoms, not patients. " if data.phantoms is not None else ""
    costs = (
        " Costs are of the printed networks at 3 × 160 × 224, as ratios to Base 128: memory is what a training step "
        "keeps for backward, FLOPs are multiply-adds, executed ones where SCP is ours."
    )
    return (
        f"{on}{budget.remark} Means over subjects and seeds; the best of each group in bold; SD over seeds: of the "
        "mean Dice; SD over subjects: of Dice averaged over seeds. The precision of a network that finds nothing "
        f"counts as 1. {COUNTED_LESIONS}{costs if _NUMBERS[data.task] == 1 else ''}"
    )


def make_pictures(
    record: Record, folder: Path, study: Study, prepared: Mapping[str, Prepared], costs: Sequence[CostRow]
) -> dict[str, list[Picture]]:
    """By section: Fig. 1, 2, 5, 6, 7."""
    result: dict[str, list[Picture]] = {"case": [], "density": [], "boxes": [], "costs": [], "weights": []}
    panels = []
    for data in study.data:
        shown = case(folder, study, data, prepared[data.name], record)
        result["case"].append(Picture(
            figures.outline_slices(shown.panels, spacing=shown.spacing),
            f"Fig. 1, {data.name}: {shown.subject}, the test subject with the median Dice of the two networks, at "
            "its slice with the most lesion; networks of the first seed. Dice is the whole subject's.",
            f"One slice of {shown.subject}: image, reference, and the outlines of Base 256 and SCP 256.",
        ))  # fmt: skip
        cache, everybody = cohort_density_cache(data, prepared[data.name])
        result["density"].append(Picture(
            pictures.three_planes(pictures.lesion_density(cache, everybody)),
            f"Fig. 2, {data.name}: where the lesions of {len(everybody)} subjects lie in the box of the head or "
            "body, summed onto three planes; every subject counts as much.",
            f"Maps of the lesion frequency of {data.name} on the axial, coronal and sagittal plane.",
        ))  # fmt: skip
        result["weights"].append(Picture(
            figures.weight_field_statistics(learned_weights(folder, study, data)),
            f"Fig. 7, {data.name}: maximum, mean, minimum, L2 norm and standard deviation along the channels of "
            f"the W that {TESTED} learned with the first seed (without w_r), each scaled to its own range.",
            f"Five maps of the statistics of the learned weights, {data.name}.",
        ))  # fmt: skip
        for metric, title in (("dice", "Dice"), ("lesion_dice", "L-Dice")):
            scores = {name: record.scores(data.name, name, metric).mean(axis=0) for name in (TESTED, *AGAINST)}
            marks = {name: paired_comparison(scores[TESTED], scores[name]).stars for name in AGAINST}
            panels.append((f"{data.name}, {title}", scores, marks))
    result["boxes"].append(Picture(
        pictures.boxes(panels, TESTED),
        f"Fig. 5: scores per test subject, averaged over the seeds. Brackets: paired two-tailed t-tests of "
        f"{TESTED}, not corrected for their number; * p < 0.05, ** p < 0.01, *** p < 0.001, **** p < 0.0001, ns: not "
        "significant.",
        "Box plots of Dice and L-Dice by network.",
        vector=True,
    ))  # fmt: skip
    result["costs"].append(Picture(
        pictures.complexity_bars(costs, SHOWN_COSTS),
        "Fig. 6: costs at 3 × 160 × 224 as ratios to Base 128; SCP 256 with this operator and with the paper's. "
        f"{saving(costs)}",
        "Bars of memory, multiply-adds and parameters of five networks.",
        vector=True,
    ))  # fmt: skip
    return result


def saving(costs: Sequence[CostRow]) -> str:
    """SCP 256 against Base 512, with either operator, beside what the paper prints in its abstract."""
    rows = {(cost.name, cost.operator): cost for cost in costs}
    ours, theirs, wide = (rows[key] for key in ((TESTED, "ours"), (TESTED, PAPER_OPERATOR), ("Base 512", "")))
    parts = [
        f"{title} {_change(getattr(ours, key), getattr(wide, key))} "
        f"(paper's operator {_change(getattr(theirs, key), getattr(wide, key))}, printed −{printed} %)"
        for key, (title, printed) in PRINTED_SAVINGS.items()
    ]
    return f"{TESTED} against Base 512: {', '.join(parts)}."


def _change(value: float, base: float) -> str:
    return f"{signed(100 * (value / base - 1), 1)} %"


@dataclass(frozen=True)
class Reproduction:
    """What the report shows. ``pictures`` are keyed by section; ``tasks`` names the paper's tasks that were run."""

    title: str
    tasks: str
    summary: Sequence[str]
    """A sentence per data set."""
    tables: Sequence[Table]
    pictures: Mapping[str, Sequence[Picture]]
    facts: Mapping[str, str]


def describe_reproduction(
    record: Record,
    study: Study,
    budget: StudyBudget,
    costs: Sequence[CostRow],
    pictures: Mapping[str, Sequence[Picture]] = MappingProxyType({}),
) -> Reproduction:
    """Everything but the pictures follows from the record and the costs."""
    tasks = " and ".join(TASK_TITLES[data.task] for data in study.data)
    return Reproduction(
        study.title,
        tasks,
        [summary_sentence(record, data) for data in study.data],
        make_tables(record, study, budget, costs),
        pictures,
        _facts(record, study),
    )


def summary_sentence(record: Record, data: StudyData) -> str:
    """Whether SCP 256 scored higher than those that Fig. 5 tests it against, and what the paper prints."""
    family, phrases = len(record.comparisons), []
    for other in AGAINST:
        difference = paired_difference(record, NetworkPair(data.name, TESTED, other), "dice", family)
        outcome = "no difference shown" if difference.verdict == "none" else difference.verdict
        printed = (SCORES[data.task][TESTED].dice - SCORES[data.task][other].dice) / 100
        phrases.append(f"{other}, {outcome} ({widened(difference)}; the paper {signed(printed, 4)})")
    return f"{data.name}: Dice of {TESTED} against {'; '.join(phrases)}."


def write_report(reproduction: Reproduction, record: Record, folder: Path) -> Path:
    """Write ``report.html`` and the CSVs into ``folder``.

    Raises:
        UserError: the folder cannot be written.
    """
    for table in (*reproduction.tables, subject_table(record)):
        table.write(folder)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = files("scp_models").joinpath("study/reproduce/report.html").read_text(encoding="utf-8")
    text = environment.from_string(template).render(
        title=reproduction.title,
        summary=reproduction.summary,
        tasks=reproduction.tasks,
        tables=reproduction.tables,
        pictures=reproduction.pictures,
        facts=reproduction.facts,
        sections=_SECTIONS,
    )
    with atomic_path(folder / "report.html") as path:
        path.write_text(text, encoding="utf-8")
    return folder / "report.html"


def write_markdown(reproduction: Reproduction, path: Path) -> Path:
    """Write the report as Markdown, and its pictures into ``images/<name of the page>/`` beside it.

    Raises:
        UserError: the page or a picture cannot be written.
    """
    for section, of_section in reproduction.pictures.items():
        for number, picture in enumerate(of_section, 1):
            save_beside(picture.figure, path, _picture_path(path, section, number))
    with atomic_path(path) as temporary:
        temporary.write_text(markdown_text(reproduction, path), encoding="utf-8")
    return path


def _picture_path(page: Path, section: str, number: int) -> str:
    return f"images/{page.stem}/{section}-{number}.png"


def markdown_text(reproduction: Reproduction, path: Path) -> str:
    """The page's Markdown. ``path`` is the page's, from which its pictures are found."""

    def shown(section: str) -> list[str]:
        result = []
        for number, picture in enumerate(reproduction.pictures.get(section, ()), 1):
            caption = picture.caption.replace("*", r"\*")
            result.append(f"![{picture.alternative}]({_picture_path(path, section, number)})\n\n{caption}\n")
        return result

    parts = [
        f"# {reproduction.title}: {reproduction.tasks}\n",
        "Written by `scp-models reproduce --page`: do not edit.\n",
        *(f"{sentence}\n" for sentence in reproduction.summary),
        *shown("case"),
        *(table_text(table) for table in reproduction.tables),
    ]
    for title, section in _SECTIONS.items():
        parts += [f"## {title}\n", *shown(section)]
    return "\n".join([*parts, facts_text(reproduction)])


def table_text(table: Table) -> str:
    """A table in Markdown under its title and remark."""
    rows = [[f"**{cell.text}**" if cell.bold else cell.text for cell in row] for row in table.rows]
    return "\n".join([f"## {table.title}\n", *([f"{table.remark}\n"] if table.remark else []),
                      markdown(table.headings, rows)])  # fmt: skip


def facts_text(reproduction: Reproduction) -> str:
    """What was done, on which machine, with which versions."""
    return f"## What was done\n\n{markdown(('', ''), reproduction.facts.items())}"


def _facts(record: Record, study: Study) -> dict[str, str]:
    machines, versions = record.content["machines"], record.content["versions"]
    parts = {data.name: record.content["data"][data.name]["parts"] for data in study.data}
    seconds = sum(sum(run["seconds"].values()) for run in record.content["runs"])
    return {
        **{
            name: "; ".join(
                f"{p['training']} to train on, {p['validation']} to validate, {p['test']} to test" for p in folds
            )
            for name, folds in parts.items()
        },
        "trainings": f"{len(record.content['runs'])}, seeds {', '.join(map(str, record.seeds))}",
        "thresholds": "of each training the one with the highest Dice on the validation subjects",
        "machine": "; ".join(f"{m['device']}, {m['cores']} cores, {m['system']}" for m in machines),
        "versions": "; ".join(", ".join(f"{k} {v}" for k, v in version.items()) for version in versions),
        "time": f"{seconds / 60:.0f} min of single threads",
    }
