"""How a study's page writes tables, intervals and lists."""

from collections.abc import Iterable, Mapping, Sequence

from scp_models.report.html import signed
from scp_models.study.analysis import Difference


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; all columns but the first are aligned to the right."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def bounds(low: float, high: float) -> str:
    return f"{signed(low)} to {signed(high)}"


def widened(difference: Difference) -> str:
    """A difference and its widened interval; where that leaves out 0 and nothing is shown, why not."""
    i = difference.interval
    why = ", but not with every seed" if difference.verdict != i.verdict else ""
    return f"{signed(i.mean)}, {bounds(i.family_low, i.family_high)}{why}"


def by_seed(difference: Difference) -> str:
    """A difference with each seed."""
    return ", ".join(signed(value) for value in difference.by_seed)


def pairs_text(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in values.items())


def listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
