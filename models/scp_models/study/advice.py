"""When to use SCP and when not: sentences by rule from verdicts, or a text by hand whose claims are checked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scp_models.data.tasks import FRAMES
from scp_models.errors import UserError
from scp_models.study.analysis import Difference, of_network
from scp_models.study.axes import AXES_CONTROL, PLAIN_HEAD, TESTED_HEAD
from scp_models.study.design import Axis
from scp_models.study.frames import FRAME_CONTROL
from scp_models.study.markdown import listed, widened
from scp_models.study.rates import PHI_FORMS, base_at, head_at, head_settings, is_of_rates
from scp_models.study.record import Record

Outcomes = Mapping[str, Sequence[Difference]]
"""Of the comparisons, by the study's name."""

LEAD = (
    "Whether a spatially covariant head is worth having depends on whether place decides the label, on whether the "
    "backbone sees the place by itself, and on what positions are measured in ([frames](frames.md)). SCP − Base in "
    "Dice, with intervals that are widened for the number of comparisons:"
)
PICTURE_HEADING = "## Picture"
"""Of the last section of an advice by hand: the table of the rows of the picture on top."""
_CLAIM = re.compile(r"\{\{\s*(higher|lower|none)\s*\|([^|{}]+)\|([^|{}]+)\|([^|{}]+)\}\}")
_LINK = re.compile(r"\]\((?!https?:|#)")


PictureGroups = Mapping[str, Mapping[str, Difference]]
"""Of the picture on top: differences by row, by title of their group."""


@dataclass(frozen=True)
class Advice:
    """When to use SCP and when not."""

    text: str
    """For a reader in a hurry: on top of the page, and in the README."""
    detail: str = ""
    """Sections that only the page has."""
    picture: PictureGroups = field(default_factory=dict)
    """What the picture on top shows; empty: SCP − Base on everything."""
    is_by_rule: bool = False


def advice_by_rule(records: Sequence[Record], outcomes: Outcomes) -> Advice:
    """One sentence per data set, or per axis, from its verdicts."""
    sentences = [sentence for record in records for sentence in sentences_of(record, outcomes[record.name])]
    return Advice("\n".join([LEAD, "", *(f"- {sentence}" for sentence in sentences)]), is_by_rule=True)


def advice_by_hand(path: Path, records: Sequence[Record], outcomes: Outcomes) -> Advice:
    """The text of a file, with each of its claims in numbers.

    A claim is ``{{verdict | data set | network | other}}``: that the studies show the network ``higher`` or ``lower``
    than the other on the data set, or a difference as ``none``. It is written as the difference in Dice and its widened
    interval. What stands below the first heading is detail. The section :data:`PICTURE_HEADING`, if there is one, is a
    table: a row's text, data set, network and other; a row that has only a text begins a group.

    Raises:
        UserError: the file cannot be read, claims what the records do not show, or names what they do not have.
    """
    try:
        source = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UserError(f"{path}: expected the advice, Markdown ({error.strerror})") from error
    everything = [d for record in records for d in outcomes[record.name]]

    def compared(data: str, network: str, other: str) -> Difference:
        difference = of_network(everything, data, network, other)
        if difference is None:
            raise UserError(f"{path}: expected comparisons of the studies, got {network} − {other} on {data!r}")
        return difference

    def in_numbers(match: re.Match[str]) -> str:
        verdict, data, network, other = (part.strip() for part in match.groups())
        difference = compared(data, network, other)
        if difference.verdict != verdict:
            raise UserError(
                f"{path}: expected what the studies show, {difference.verdict!r} of {network} − {other} on {data!r}, "
                f"got {verdict!r}"
            )
        return widened(difference)

    prose, _, table = source.partition(f"\n{PICTURE_HEADING}\n")
    written = _CLAIM.sub(in_numbers, prose)
    if "{{" in written:
        raise UserError(f"{path}: expected claims as {{{{verdict | data | network | other}}}}, got one of another form")
    text, heading, detail = written.partition("\n## ")
    groups: dict[str, dict[str, Difference]] = {}
    for line in [line for line in table.splitlines() if line.startswith("|")][2:]:  # below its head
        row, *pair = (cell.strip() for cell in line.strip().strip("|").split("|"))
        if not any(pair):
            group = groups.setdefault(row, {})
        elif len(pair) == 3 and groups:
            group[row] = compared(*pair)
        else:
            raise UserError(f"{path}: expected rows as | text | data | network | other | below a group, got {line}")
    return Advice(text.strip(), (heading + detail).strip(), groups)


def links_below(text: str, folder: str) -> str:
    """The text with its relative links as they are from the folder above."""
    return _LINK.sub(f"]({folder}", text)


def sentences_of(record: Record, outcomes: Sequence[Difference]) -> list[str]:
    """What a study shows: a sentence per axis that is finished, or per data set."""
    if record.axes:
        return [axis_sentence(axis, outcomes) for axis in record.axes if record.is_finished(axis)]
    sentence = rates_sentence if is_of_rates(record) else frames_sentence
    return [sentence(data, outcomes) for data in record.data]


def axis_sentence(axis: Axis, outcomes: Sequence[Difference]) -> str:
    """At which levels of an axis SCP was higher."""
    cases = [(title, data, TESTED_HEAD, AXES_CONTROL) for title, data in axis.levels.items()]
    return f"**{axis.title}**: {'; '.join(_phrases(cases, outcomes, 'with'))}."


def frames_sentence(data: Mapping[str, Any], outcomes: Sequence[Difference]) -> str:
    """In which frames SCP was higher, and what Base F gave."""
    name = data["name"]
    cases = [(f"`{frame}`", name, f"SCP, {frame}", FRAME_CONTROL) for frame in FRAMES]
    phrases = _phrases(cases, outcomes, "in the frames")
    lead = "**Use it**" if phrases and "higher than Base's" in phrases[0] else "**Do not expect a gain**"
    against = of_network(outcomes, name, "SCP, foreground", "Base F, foreground")
    if against is not None:
        gave = {"higher": "gave less", "lower": "gave more", "none": "gave as much, as far as was shown"}
        phrases.append(
            f"the same positions as input channels (Base F, `foreground`) {gave[against.verdict]}: SCP − Base F "
            f"{widened(against)}"
        )
    return f"{lead} if {data['condition']} ({name}): {'; '.join(phrases)}."


def rates_sentence(data: Mapping[str, Any], outcomes: Sequence[Difference]) -> str:
    """At which learning rates and widths the head or its control was lower than Base, in each form of Φ."""
    name, phrases = data["name"], []
    for form in PHI_FORMS:
        cases = [(rate, hidden) for rate, hidden, other in head_settings() if other == form]
        for title, control in (("the control", True), ("SCP", False)):
            against = {
                f"{rate:g}, h {hidden}": of_network(
                    outcomes, name, head_at(rate, hidden, form, control=control), base_at(rate)
                )
                for rate, hidden in cases
            }
            if not any(against.values()):
                continue
            lower = [f"{c} ({widened(d)})" for c, d in against.items() if d is not None and d.verdict == "lower"]
            phrases.append(f"{form}: {title} was lower than Base {'at ' + listed(lower) if lower else 'nowhere'}")
    return f"**How fast Φ learns** ({name}): {'; '.join(phrases)}."


def _phrases(cases: Sequence[tuple[str, str, str, str]], outcomes: Sequence[Difference], where: str) -> list[str]:
    """What is said of some cases (title, data set, network, control): first of gains over Base and the control."""
    gains, nulls, losses = [], [], []
    for title, data, network, control in cases:
        over_base, over_control = (of_network(outcomes, data, network, other) for other in (PLAIN_HEAD, control))
        if over_base is None or over_control is None:
            continue
        words = f"{title} ({widened(over_base)})"
        if {over_base.verdict, over_control.verdict} == {"higher"}:
            gains.append(words)
        elif over_base.verdict == "lower":
            losses.append(words)
        else:
            nulls.append(words)
    phrases = []
    if gains:
        phrases.append(f"its Dice was higher than Base's and its control's {where} {listed(gains)}")
    if losses:
        phrases.append(f"its Dice was lower than Base's {where} {listed(losses)}")
    if nulls:
        phrases.append(f"no gain over both Base and its control was shown {where} {listed(nulls)}")
    return phrases
