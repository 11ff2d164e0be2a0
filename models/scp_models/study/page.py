"""``docs/when_scp_helps.md``: when SCP helps, written from ``study.json`` files, no figure by hand."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scp_models.data.tasks import FRAMES
from scp_models.errors import UserError
from scp_models.files import atomic_path
from scp_models.report.html import signed
from scp_models.study.analysis import Difference, differences, of_network, spread, thresholds
from scp_models.study.frames import FRAME_CONTROL
from scp_models.study.pictures import forest
from scp_models.study.record import Record

PICTURE = "images/when_scp_helps.png"
PAGE_BEGIN = "<!-- written by scp-models study page: do not edit -->"
PAGE_END = "<!-- end of what is written -->"

PAGE_METHOD = """## How it is measured

Written by `scp-models study page` from the `study.json` files in `docs/studies/`: do not edit. They hold every
setting and every subject's scores; `scp-models study frames --out DIR` makes one (`--data` for real patients), and
goes on where it was stopped.

All networks of a study have the same backbone, loss, optimizer, steps, batches and seeds; Base F and Base B get the
same positions as SCP, as channels beside the image and before the last 3×3 layer. The control is SCP that is told
one and the same position at every pixel: what it gains or loses is due to Φ as a parameterisation, not to location.
Each training chooses its threshold, of 0.05 to 0.95, on the validation subjects, by Dice; the test subjects are
scored with it, on the grid of their files.

Networks are compared in Dice, subject by subject. Each subject's difference is averaged over the seeds; the
interval is the percentile bootstrap of the mean over subjects (100 000 resamples). The comparisons of a study were
fixed before it was run, and the intervals shown are widened for their number m to the level 1 − 0.05/m
(Bonferroni), so that with 95 % all of a study's intervals hold. *Higher* and *lower* mean that 0 lies outside of
the widened interval and that the difference has the same sign with every seed; *none* that no difference was shown,
which is not the same as that there is none. Bootstrap intervals of few subjects are somewhat too narrow, and none
contains the spread over other trainings: standard deviations over seeds and over subjects are given apart.
"""


def write_page(records: Sequence[Record], path: Path, readme: Path | None = None) -> Path:
    """Write the page, its picture beside it, and the advice into ``readme``.

    Raises:
        UserError: runs are missing in a record, or a file that cannot be written.
    """
    outcomes = {record.name: differences(record) for record in records}
    with atomic_path(path) as temporary:
        temporary.write_text(page_text(records, outcomes), encoding="utf-8")
    picture = path.parent / PICTURE
    shown = [(data["name"], _shown(outcomes[record.name], data["name"])) for record in records for data in record.data]
    with atomic_path(picture) as temporary:
        forest(shown).savefig(temporary, dpi=130, facecolor="white", metadata={"Software": None})
    if readme is not None:
        replace_advice(readme, advice(records, outcomes, f"{path.parent.name}/"))
    return path


def page_text(records: Sequence[Record], outcomes: dict[str, list[Difference]]) -> str:
    """The page's Markdown."""
    caption = (
        "Right of the line SCP scored higher: differences in Dice, with intervals that are widened for the number of "
        "comparisons. Hollow: no difference was shown. The control is SCP that is told the same position everywhere; "
        "Base F has SCP's positions as input channels."
    )
    parts = [
        "# When SCP helps\n",
        f"![Differences in Dice between SCP and the other networks]({PICTURE})\n",
        f"*{caption}*\n",
        f"{advice(records, outcomes)}\n",
        PAGE_METHOD,
    ]
    parts += [chapter(record, outcomes[record.name]) for record in records]
    return "\n".join(parts)


def advice(records: Sequence[Record], outcomes: dict[str, list[Difference]], docs: str = "") -> str:
    """When to use SCP and when not, by rule: one sentence per data set, from its verdicts.

    Args:
        records: of the studies.
        outcomes: of their comparisons, by the study's name.
        docs: path of the documents from where the text will stand.
    """
    sentences = []
    for record in records:
        for data in record.data:
            sentences.append(_sentence(data, outcomes[record.name]))
    lead = (
        "Whether a spatially covariant head is worth having depends on whether place decides the label, on whether the "
        f"backbone sees the place by itself, and on what positions are measured in ([frames]({docs}frames.md)). SCP − "
        "Base in Dice, with intervals that are widened for the number of comparisons:"
    )
    return "\n".join([lead, "", *(f"- {sentence}" for sentence in sentences)])


def _sentence(data: Mapping[str, Any], outcomes: Sequence[Difference]) -> str:
    name = data["name"]
    gains, nulls, losses = [], [], []
    for frame in FRAMES:
        over_base = of_network(outcomes, name, f"SCP, {frame}", "Base")
        over_control = of_network(outcomes, name, f"SCP, {frame}", FRAME_CONTROL)
        if over_base is None or over_control is None:
            continue
        words = f"`{frame}` ({_interval(over_base)})"
        if {over_base.verdict, over_control.verdict} == {"higher"}:
            gains.append(words)
        elif over_base.verdict == "lower":
            losses.append(words)
        else:
            nulls.append(words)
    phrases = []
    if gains:
        phrases.append(f"its Dice was higher than Base's and its control's in the frames {_listed(gains)}")
    if losses:
        phrases.append(f"its Dice was lower than Base's in the frames {_listed(losses)}")
    if nulls:
        phrases.append(f"no gain over both Base and its control was shown in the frames {_listed(nulls)}")
    against = of_network(outcomes, name, "SCP, foreground", "Base F, foreground")
    if against is not None:
        gave = {"higher": "gave less", "lower": "gave more", "none": "gave as much, as far as was shown"}
        phrases.append(
            f"the same positions as input channels (Base F, `foreground`) {gave[against.verdict]}: SCP − Base F "
            f"{_interval(against)}"
        )
    lead = "**Use it**" if gains else "**Do not expect a gain**"
    return f"{lead} if {data['condition']} ({name}): {'; '.join(phrases)}."


def chapter(record: Record, outcomes: Sequence[Difference]) -> str:
    """What one study did and found."""
    study = record.content["study"]
    recipe = study["recipe"]
    length = f"{recipe['steps']} steps" if recipe["steps"] else f"{recipe['epochs']} epochs"
    layers = sorted({(n["levels"], n["capacity"]) for n in study["networks"]})
    sizes = ", ".join(f"{levels} levels, Nc {capacity}" for levels, capacity in layers)
    facts = [
        ("trainings", str(study["runs"])),
        ("seeds", ", ".join(map(str, record.seeds))),
        ("networks", sizes),
        (
            "training",
            f"{length} of {recipe['batch_size']} slices, Adam {recipe['learning_rate']:g}, halved at 50, 70, 90 %",
        ),
        *((f"preset {name}", _values(preset)) for name, preset in record.content["presets"].items()),
        *(("machine", f"{m['device']}, {m['cores']} cores, {m['system']}") for m in record.content["machines"]),
        *(("versions", _values(version)) for version in record.content["versions"]),
    ]
    parts = [f"## {record.title}\n", markdown(("study", record.name), facts)]
    for data in record.data:
        parts += [f"### {data['name']}\n", f"{data['description']} {_division(record, data)}\n"]
        parts += [_scores(record, data["name"]), _differences(outcomes, data["name"])]
    parts += [f"{note}\n" for note in study["notes"]]
    return "\n".join(parts)


def _division(record: Record, data: Mapping[str, Any]) -> str:
    known = record.content["data"][data["name"]]
    counts = [tuple(parts.values()) for parts in known["parts"]]
    if data["folds"]:
        sites = ", ".join(f"{site} {count}" for site, count in known["sites"].items())
        per_fold = "; ".join(f"{a} to train on, {b} to validate, {c} to test" for a, b, c in counts)
        return f"{known['subjects']} subjects ({sites}), {data['folds']}-fold cross-validation by site: {per_fold}."
    train, validate, test = counts[0]
    return f"{known['subjects']} subjects: {train} to train on, {validate} to validate, {test} to test."


def _scores(record: Record, data: str) -> str:
    rows = []
    best = max(record.networks(data), key=lambda network: spread(record, data, network, "dice").mean)
    for network in record.networks(data):
        dice = spread(record, data, network, "dice")
        others = [spread(record, data, network, metric).mean for metric in ("lesion_dice", "challenge_f1")]
        low, high = thresholds(record, data, network)
        mean = f"**{dice.mean:.3f}**" if network == best else f"{dice.mean:.3f}"
        seeds = "" if dice.seeds is None else f"{dice.seeds:.3f}"
        rows.append([
            network, mean, seeds, f"{dice.subjects:.3f}", *(f"{value:.3f}" for value in others),
            f"{low:g}" if low == high else f"{low:g} to {high:g}",
        ])  # fmt: skip
    headings = ("network", "Dice", "SD over seeds", "SD over subjects", "L-Dice", "challenge F1", "threshold")
    return markdown(headings, rows)


def _differences(outcomes: Sequence[Difference], data: str) -> str:
    rows = []
    for d in (d for d in outcomes if d.comparison.data == data):
        i = d.interval
        rows.append([
            f"{d.comparison.network} − {d.comparison.other}", signed(i.mean), _bounds(i.low, i.high),
            _bounds(i.family_low, i.family_high), ", ".join(signed(value) for value in d.by_seed), d.verdict,
        ])  # fmt: skip
    return markdown(
        ("Dice", "difference", "95 %", f"widened for {len(outcomes)} comparisons", "by seed", "shown"), rows
    )


def _shown(outcomes: Sequence[Difference], data: str) -> dict[str, dict[str, Difference]]:
    """What the picture has of a data set: SCP in each frame, against Base, its control and Base F."""
    rows: dict[str, dict[str, Difference]] = {}
    for frame in FRAMES:
        others = {"SCP − Base": "Base", "SCP − its control": FRAME_CONTROL, "SCP − Base F": f"Base F, {frame}"}
        for series, other in others.items():
            difference = of_network(outcomes, data, f"SCP, {frame}", other)
            if difference is not None:
                rows.setdefault(f"frame {frame}", {})[series] = difference
    return rows


def _interval(difference: Difference) -> str:
    i = difference.interval
    return f"{signed(i.mean)}, {_bounds(i.family_low, i.family_high)}"


def _bounds(low: float, high: float) -> str:
    return f"{signed(low)} to {signed(high)}"


def _values(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in values.items())


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; all columns but the first are aligned to the right."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


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
