"""``docs/when_scp_helps.md``: when SCP helps, written from ``study.json`` files, no figure by hand."""

from collections.abc import Sequence
from pathlib import Path

from scp_models.errors import UserError
from scp_models.files import atomic_path
from scp_models.study.advice import Advice, Outcomes, advice_by_hand, advice_by_rule, links_below
from scp_models.study.analysis import differences
from scp_models.study.chapters import OVER_BASE, chapter, panels, picture_of, picture_rows
from scp_models.study.pictures import forest, save_beside
from scp_models.study.record import Record

PICTURE = "images/when_scp_helps.png"
EVERYTHING_PICTURE = "images/when_scp_helps_everywhere.png"
PAGE_BEGIN = "<!-- written by scp-models study page: do not edit -->"
PAGE_END = "<!-- end of what is written -->"

CAPTION = (
    "SCP − Base in Dice, with intervals that are widened for the number of comparisons. Blue, right of the line: SCP "
    "scored higher. Grey and hollow: no difference was shown. Orange, left of the line: SCP scored lower."
)
PAGE_METHOD = """## How it is measured

Written by `scp-models study page` from the `study.json` files in `docs/studies/`: do not edit. They hold every
setting and every subject's scores; `scp-models study axes --out DIR`, `study frames` and `study rates` make them
(`--data` for real patients, `--full-resolution` for frames at full resolution), and go on where they were stopped.

All networks of a study have the same loss, optimizer, steps, batches and seeds, and on one data set the same backbone,
but for Base of four times the size, which has twice the widths. Base F and Base B get the same positions as SCP, as
channels: Base F beside the image, Base B before the last 3×3 layer. The control is SCP that is told
one and the same position at every pixel: what it gains or loses over Base is not due to location, but to Φ as a
parameterisation and, but in the studies of learning rates, to another first weight than Base's.
Each training chooses its threshold on the validation subjects, by Dice; the test subjects are
scored with it, on the grid of their files. Exclusive classes have no threshold: the most probable one counts, and
scores are means over the classes.

Networks are compared in Dice, subject by subject. Each subject's difference is averaged over the seeds; the
interval is the bootstrap-t of the mean over subjects (100 000 resamples, each divided by its own standard error). The
comparisons of a study were fixed before it was run, and the intervals shown are widened for their number m to the level
1 − 0.05/m (Bonferroni). *Higher* and *lower* mean that 0 lies outside of the widened interval and that the difference
has the same sign with all seeds, two at least; *none* that no difference was shown, which is not that there is none.
No interval contains the spread over other trainings: standard deviations over seeds and over subjects are given apart.
Heads are [anchored](training.md) where a study's preset says so; the others are of before there was that form.
Until a review all intervals were percentile bootstraps, which are too narrow with few subjects: in simulations (1500
families each) of normal differences of 12 to 24 subjects, widened for 7 to 72 comparisons, 12 to 32 % of families had a
miss, not 5 %. Bootstrap-t had up to 7 % there, and 11 to 24 % (percentile 40 to 96 %) where differences are as skewed
as an exponential distribution.
"""


def write_page(records: Sequence[Record], path: Path, readme: Path | None = None, by_hand: Path | None = None) -> Path:
    """Write the page, its pictures beside it, and the advice into ``readme``.

    Args:
        records: of the studies, in the page's order.
        path: of the page.
        readme: a file whose marked block takes the advice.
        by_hand: see :func:`scp_models.study.advice.advice_by_hand`; None: the advice is written by rule.

    Raises:
        UserError: runs are missing in a record, advice that the records do not bear out, or a file that cannot be
            written.
    """
    outcomes = {record.name: differences(record) for record in records}
    shown = [panel for record in records for panel in panels(record, outcomes[record.name])]
    if not shown:
        raise UserError(f"{records[0].path}: expected a study of which at least one axis is finished")
    advice = read_advice(records, outcomes, by_hand)
    text = page_text(records, outcomes, advice)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    if advice.picture:
        rows_by_group = [
            (group, {row: {OVER_BASE: difference} for row, difference in rows.items()})
            for group, rows in advice.picture.items()
        ]
        save_beside(forest(rows_by_group, by_verdict=True), path, PICTURE)
        save_beside(forest(shown, by_verdict=True), path, EVERYTHING_PICTURE)
    else:
        save_beside(forest(shown, by_verdict=True), path, PICTURE)
    for record in records:
        if not record.axes:
            rows = [(d["name"], picture_rows(record, outcomes[record.name], d["name"])) for d in record.data]
            save_beside(forest(rows), path, picture_of(record))
    if readme is not None:
        replace_advice(readme, links_below(advice_with_picture(advice), f"{path.parent.name}/"))
    return path


def page_text(records: Sequence[Record], outcomes: Outcomes, advice: Advice) -> str:
    """The page's Markdown."""
    title = "SCP − Base everywhere"
    everything = f"## {title}\n\n![{title}]({EVERYTHING_PICTURE})\n"
    chapters = [chapter(record, outcomes[record.name], in_short=not advice.is_by_rule) for record in records]
    return "\n".join([
        "# When SCP helps\n",
        f"{advice_with_picture(advice)}\n",
        *([f"{advice.detail}\n"] if advice.detail else []),
        PAGE_METHOD,
        *([everything] if advice.picture else []),
        *chapters,
    ])  # fmt: skip


def advice_with_picture(advice: Advice) -> str:
    """What the page begins with and the README has too, in Markdown with links as from the page."""
    return f"![Differences in Dice between SCP and Base]({PICTURE})\n\n*{CAPTION}*\n\n{advice.text}"


def read_advice(records: Sequence[Record], outcomes: Outcomes, by_hand: Path | None = None) -> Advice:
    """When to use SCP and when not: by hand if there is a file, otherwise by rule."""
    return advice_by_rule(records, outcomes) if by_hand is None else advice_by_hand(by_hand, records, outcomes)


def replace_advice(path: Path, text: str) -> None:
    """Write what stands between the two marks.

    Raises:
        UserError: the file cannot be read, or has no such marks.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path}: expected a file with the lines {PAGE_BEGIN} and {PAGE_END} ({error.strerror})"
        ) from error
    before, begin, rest = content.partition(PAGE_BEGIN)
    _, end, after = rest.partition(PAGE_END)
    if not (begin and end):
        raise UserError(f"{path}: expected the lines {PAGE_BEGIN} and {PAGE_END}")
    with atomic_path(path) as temporary:
        temporary.write_text(f"{before}{PAGE_BEGIN}\n\n{text}\n\n{PAGE_END}{after}", encoding="utf-8")
