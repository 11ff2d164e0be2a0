"""The report's tables, as rows of text and as CSV."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scp_models.evaluation.metrics import harmonic_mean
from scp_models.files import atomic_path
from scp_models.report.html import signed
from scp_models.study.analysis import paired_difference, spread, training_seconds
from scp_models.study.design import NetworkPair
from scp_models.study.markdown import bounds, by_seed
from scp_models.study.record import Record
from scp_models.study.reproduce.costs import PAPER_OPERATOR, CostRow
from scp_models.study.reproduce.design import AGAINST, TESTED
from scp_models.study.reproduce.paper import PRINTED_CAPACITIES, PRINTED_VARIANTS, SCORES

TABLE_METRICS = {
    "dice": "Dice (%)",
    "lesion_dice": "L-Dice (%)",
    "lesion_f1": "L-F1 (%)",
    "lesion_ppv": "L-PPV (%)",
    "lesion_tpr": "L-TPR (%)",
}

SHOWN = "A difference is shown where the widened interval leaves out 0 and all seeds agree in its sign"
COUNTED_LESIONS = (
    "L-PPV, and L-F1 and L-Dice with it, count lesions of the reference, as the paper does, and come above 100 % where "
    "one predicted lesion covers several: a network whose L-PPV does has its L-PPV, L-F1 and L-Dice not in bold. A "
    "network that marks far too much, or next to nothing, can have high scores of lesions beside a low Dice."
)
_INFLATED = ("lesion_dice", "lesion_f1", "lesion_ppv")
"""By an L-PPV above 100 %."""


@dataclass(frozen=True)
class TableCell:
    """One number; ``bold``: the best of its group."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells under headings; ``values`` are the same for a CSV."""

    name: str
    title: str
    remark: str
    headings: Sequence[str]
    rows: Sequence[Sequence[TableCell]]
    values: Sequence[Sequence[object]]
    columns: Sequence[str]

    def write(self, folder: Path) -> Path:
        path = folder / f"{self.name}.csv"
        with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([self.columns, *self.values])
        return path


def _cells(*texts: str) -> list[TableCell]:
    return [TableCell(text) for text in texts]


def mean_of(record: Record, data: str, network: str, metric: str) -> float:
    """In per cent; L-F1 is the paper's: of the averaged L-TPR and L-PPV."""
    if metric != "lesion_f1":
        return 100 * spread(record, data, network, metric).mean
    tpr, ppv = (spread(record, data, network, key).mean for key in ("lesion_tpr", "lesion_ppv"))
    return 100 * harmonic_mean(tpr, ppv)


def printed_score_table(
    record: Record, data: str, task: str, number: int, costs: Sequence[CostRow], remark: str
) -> Table:
    """Table 1 or 2: means, the two spreads of Dice, and for Table 1 the costs at the printed size."""
    ours = {c.name: c for c in costs if c.operator != PAPER_OPERATOR}
    printed = {c.name: c.paper for c in costs if c.paper is not None}
    with_costs = number == 1
    rows, values = [], []
    for capacity in PRINTED_CAPACITIES:
        names = [f"{title} {capacity}" for title in PRINTED_VARIANTS]
        means = {name: {m: mean_of(record, data, name, m) for m in TABLE_METRICS} for name in names}
        rated = {
            metric: {
                name: round(means[name][metric], 2)
                for name in names
                if metric not in _INFLATED or means[name]["lesion_ppv"] <= 100
            }
            for metric in TABLE_METRICS
        }
        best = {metric: max(of_metric.values(), default=None) for metric, of_metric in rated.items()}
        for name in names:
            dice = spread(record, data, name, "dice")
            paper = SCORES[task][name]
            row = [TableCell(name)]
            for k, metric in enumerate(TABLE_METRICS):
                is_best = name in rated[metric] and rated[metric][name] == best[metric]
                row.append(TableCell(f"{means[name][metric]:.2f} ({paper[k]:.2f})", is_best))
            row += [
                TableCell("" if dice.seeds is None else f"{100 * dice.seeds:.2f}"),
                TableCell(f"{100 * dice.subjects:.2f}"),
            ]
            line: list[object] = [name, *(means[name][m] for m in TABLE_METRICS), dice.seeds, dice.subjects, *paper]
            if with_costs:
                c, p = ours[name], printed[name]
                row += [
                    TableCell(f"{here:.2f} ({there:.2f})")
                    for here, there in zip((c.memory, c.macs, c.parameters), p, strict=True)
                ]
                line += [c.memory, c.macs, c.parameters, *p]
            rows.append(row)
            values.append(line)
    spreads = ["SD over seeds", "SD over subjects"]
    ratios = ["memory ratio", "FLOPs ratio", "parameter ratio"] if with_costs else []
    costs_here = ["memory", "macs", "parameters"] if with_costs else []
    columns = ["network", *TABLE_METRICS, "dice_sd_seeds", "dice_sd_subjects"]
    columns += [*(f"paper_{m}" for m in TABLE_METRICS), *costs_here, *(f"paper_{c}" for c in costs_here)]
    headings = ["network", *TABLE_METRICS.values(), *spreads, *ratios]
    return Table(f"table-{number}", f"Table {number}: {data}", remark, headings, rows, values, columns)


def tested_table(record: Record, data: str) -> Table:
    """Differences of SCP 256 to those that Fig. 5 tests it against, with intervals."""
    family = len(record.comparisons)
    pairs = [(other, paired_difference(record, NetworkPair(data, TESTED, other), "dice", family)) for other in AGAINST]
    rows, values = [], []
    for other, difference in pairs:
        i, verdict = difference.interval, difference.verdict
        rows.append(_cells(
            f"{TESTED} − {other}", signed(i.mean), bounds(i.low, i.high), bounds(i.family_low, i.family_high),
            by_seed(difference), verdict,
        ))  # fmt: skip
        values.append([TESTED, other, i.mean, i.low, i.high, i.family_low, i.family_high, verdict])
    columns = ["network", "other", "mean", "low", "high", "family_low", "family_high", "verdict"]
    headings = ["Dice", "difference", "95 %", f"widened for {family} comparisons", "by seed", "shown"]
    title = f"{TESTED} against others: {data}"
    return Table(f"differences-{data.lower()}", title, f"{SHOWN}.", headings, rows, values, columns)


def ablation_table(record: Record, data: str, names: Sequence[str], to: str) -> Table:
    """What one change of SCP 256 does to Dice, and what it costs in parameters and training time."""
    family = len(record.comparisons)
    base = record.runs(data, to)[0]["parameters"], training_seconds(record, data, to)
    dice = spread(record, data, to, "dice")
    rows = [_cells(to, f"{100 * dice.mean:.2f}", "", "", "", "", "1.00", "1.00")]
    values: list[list[object]] = [[to, dice.mean, None, None, None, None, 1.0, 1.0]]
    for name in names:
        mean = spread(record, data, name, "dice").mean
        difference = paired_difference(record, NetworkPair(data, name, to), "dice", family)
        i, verdict = difference.interval, difference.verdict
        parameters = record.runs(data, name)[0]["parameters"] / base[0]
        seconds = training_seconds(record, data, name) / base[1]
        rows.append(_cells(
            name, f"{100 * mean:.2f}", signed(i.mean), bounds(i.family_low, i.family_high), by_seed(difference),
            verdict, f"{parameters:.2f}", f"{seconds:.2f}",
        ))  # fmt: skip
        values.append([name, mean, i.mean, i.family_low, i.family_high, verdict, parameters, seconds])
    remark = (
        "Each row changes one thing of the first. Parameters and time of training (median, on one thread; runs "
        "side by side disturb each other) are ratios to it. Intervals are widened for the study's comparisons. "
        f"{SHOWN}."
    )
    headings = [
        "network", "Dice (%)", "difference", f"widened for {family} comparisons", "by seed", "shown", "parameters",
        "time",
    ]  # fmt: skip
    columns = ["network", "dice", "difference", "family_low", "family_high", "verdict", "parameters", "time"]
    return Table("ablations", f"Ablations: {data}", remark, headings, rows, values, columns)


def subject_table(record: Record) -> Table:
    """Every subject's scores with every training: for the CSV alone."""
    values: list[list[object]] = []
    for run in record.content["runs"]:
        metrics = run["scores"]
        for k, subject in enumerate(run["subjects"]):
            values.append([run["data"], run["network"], run["seed"], run["fold"], subject, run["threshold"],
                           *(metrics[m][k] for m in metrics)])  # fmt: skip
    columns = ["data", "network", "seed", "fold", "subject", "threshold", *record.content["runs"][0]["scores"]]
    return Table("scores", "Scores", "", columns, [], values, columns)
