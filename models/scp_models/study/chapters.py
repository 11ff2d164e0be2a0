"""The chapters of a study's page: what each study did and found, in tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from scp_models.data.tasks import FRAMES
from scp_models.report.html import signed
from scp_models.study.advice import sentences_of
from scp_models.study.analysis import Difference, of_network, spread, thresholds
from scp_models.study.axes import PLAIN_HEAD, TESTED_HEAD
from scp_models.study.frames import FRAME_CONTROL
from scp_models.study.markdown import bounds, by_seed, listed, markdown, pairs_text
from scp_models.study.rates import (
    LIMITED_FORM,
    PAPER_FORM,
    RECOMMENDED_FORM,
    base_at,
    head_at,
    head_settings,
    is_of_rates,
)
from scp_models.study.record import Record

PanelRows = Mapping[str, Mapping[str, Difference]]
"""Of a panel: differences by row and by series."""
OVER_BASE = "SCP − Base"
FRAMES_CAPTION = (
    "Differences in Dice of SCP in each frame, hollow where none was shown. The control is SCP that is told the same "
    "position everywhere; Base F has SCP's positions as input channels."
)
RATES_CAPTION = (
    "Differences in Dice to Base at the same learning rate, hollow where none was shown. The control is SCP that is "
    "told the same position everywhere"
)
SCALES_CAPTION = '; scaled is the head with `phi_scale="adam"`, half scaled with `"sgd"`'
LIMITED_CAPTION = "; limited is Φ whose rate is limited by its width, by `parameter_groups`"
ANCHORED_CAPTION = "; anchored is Φ that is zero at the centre, its rate limited by its width"


def chapter(record: Record, outcomes: Sequence[Difference], *, in_short: bool) -> str:
    """What one study did and found; ``in_short`` also by rule, in sentences."""
    parts = [f"## {record.title}\n", markdown(("study", record.name), _facts(record))]
    if in_short:
        parts += ["\n".join(f"- {sentence}" for sentence in sentences_of(record, outcomes)) + "\n"]
    if record.axes:
        parts += _axes(record, outcomes)
    else:
        caption = _caption(record)
        parts += [f"![{caption.partition(',')[0]}]({picture_of(record)})\n", f"*{caption}*\n"]
        for data in record.data:
            parts += [f"### {data['name']}\n", f"{data['description']} {_division(record, data)}\n"]
            parts += [_scores(record, {"": data["name"]}), _differences(record, outcomes, {"": data["name"]})]
    parts += [f"{note}\n" for note in record.content["study"]["notes"]]
    return "\n".join(parts)


def _caption(record: Record) -> str:
    if not is_of_rates(record):
        return FRAMES_CAPTION
    networks = record.content["study"]["networks"]
    has_scales = any(network.get("change") is not None for network in networks)
    captions = [RATES_CAPTION, SCALES_CAPTION if has_scales else ""]
    for form, caption in ((LIMITED_FORM, LIMITED_CAPTION), (RECOMMENDED_FORM, ANCHORED_CAPTION)):
        captions += [caption] if any(f", {form}, " in network["name"] for network in networks) else []
    return "".join(captions) + "."


def picture_of(record: Record) -> str:
    """Path of the picture of a study without axes, from the page."""
    return f"images/{record.name}.png"


def panels(record: Record, outcomes: Sequence[Difference]) -> list[tuple[str, PanelRows]]:
    """SCP − Base everywhere: a panel per axis that is finished, or per data set with its frames or learning rates."""
    result: list[tuple[str, PanelRows]] = []
    for axis in record.axes:
        if record.is_finished(axis):
            cases = {title: of_network(outcomes, d, TESTED_HEAD, PLAIN_HEAD) for title, d in axis.levels.items()}
            result.append((axis.title, {title: {OVER_BASE: d} for title, d in cases.items() if d is not None}))
    if not record.axes:
        for data in record.data:
            rows = picture_rows(record, outcomes, data["name"])
            title = record.title if is_of_rates(record) else data["name"]
            series = (OVER_BASE, *(f"SCP, {form}" for form in (RECOMMENDED_FORM, LIMITED_FORM, PAPER_FORM)))
            chosen = {name: next((row[s] for s in series if s in row), None) for name, row in rows.items()}
            shown = {name: {OVER_BASE: difference} for name, difference in chosen.items() if difference is not None}
            if shown:
                result.append((title, shown))
    return result


def picture_rows(record: Record, outcomes: Sequence[Difference], data: str) -> PanelRows:
    """Of the picture of a study without axes: by frame, or by learning rate and width."""
    return rate_rows(outcomes, data) if is_of_rates(record) else frame_rows(outcomes, data)


def rate_rows(outcomes: Sequence[Difference], data: str) -> PanelRows:
    """SCP and its control against Base, in each form of Φ."""
    rows: dict[str, dict[str, Difference]] = {}
    for rate, hidden, form in head_settings():
        for control in (True, False):
            name = head_at(rate, hidden, form, control=control)
            if (difference := of_network(outcomes, data, name, base_at(rate))) is not None:
                series = f"{'control' if control else 'SCP'}, {form}"
                rows.setdefault(f"Adam {rate:g}, h {hidden}", {})[series] = difference
    return rows


def frame_rows(outcomes: Sequence[Difference], data: str) -> PanelRows:
    """SCP in each frame, against Base, its control and Base F."""
    rows: dict[str, dict[str, Difference]] = {}
    for frame in FRAMES:
        others = {OVER_BASE: PLAIN_HEAD, "SCP − its control": FRAME_CONTROL, "SCP − Base F": f"Base F, {frame}"}
        for series, other in others.items():
            difference = of_network(outcomes, data, f"SCP, {frame}", other)
            if difference is not None:
                rows.setdefault(f"frame {frame}", {})[series] = difference
    return rows


def _facts(record: Record) -> list[tuple[str, str]]:
    study, grid = record.content["study"], record.thresholds
    recipe = study["recipe"]
    rates = sorted({n.get("learning_rate") or recipe["learning_rate"] for n in study["networks"]})
    adam = " and ".join(f"{rate:g}" for rate in rates)
    length = f"{recipe['steps']} steps" if recipe["steps"] else f"{recipe['epochs']} epochs"
    layers = sorted({(n["levels"], n["capacity"]) for n in study["networks"]})
    return [
        ("trainings", str(study["runs"])),
        ("seeds", ", ".join(map(str, record.seeds))),
        ("networks", "; ".join(f"{levels} levels, Nc {capacity}" for levels, capacity in layers)),
        (
            "training",
            f"{length} of {recipe['batch_size']} slices, Adam {adam}, halved at 50, 70, 90 %",
        ),
        ("thresholds", f"{grid['number']} to choose from, {grid['lowest']:.3g} to {grid['highest']:.3g}"),
        *((f"preset {name}", pairs_text(preset)) for name, preset in record.content["presets"].items()),
        *(("machine", f"{m['device']}, {m['cores']} cores, {m['system']}") for m in record.content["machines"]),
        *(("versions", pairs_text(version)) for version in record.content["versions"]),
    ]


def _axes(record: Record, outcomes: Sequence[Difference]) -> list[str]:
    """A table of scores and one of differences per axis."""
    parts = []
    for axis in record.axes:
        if not record.is_finished(axis):
            continue
        data = [d for name in axis.levels.values() for d in record.data if d["name"] == name]
        parts += [f"### {axis.title}\n", f"{axis.text}\n"]
        parts += dict.fromkeys(f"{d['description']} {_division(record, d)}\n" for d in data)
        parts += [_scores(record, axis.levels), _differences(record, outcomes, axis.levels)]
    left = [axis.title for axis in record.axes if not record.is_finished(axis)]
    if left:
        parts.append(f"Not run yet, and counted among the comparisons all the same: {listed(left)}.\n")
    return parts


def _division(record: Record, data: Mapping[str, Any]) -> str:
    known = record.content["data"][data["name"]]
    counts = [tuple(parts.values()) for parts in known["parts"]]
    if data["folds"]:
        sites = ", ".join(f"{site} {count}" for site, count in known["sites"].items())
        per_fold = "; ".join(f"{a} to train on, {b} to validate, {c} to test" for a, b, c in counts)
        return f"{known['subjects']} subjects ({sites}), {data['folds']}-fold cross-validation by site: {per_fold}."
    train, validate, test = counts[0]
    return f"{known['subjects']} subjects: {train} to train on, {validate} to validate, {test} to test."


def _scores(record: Record, levels: Mapping[str, str]) -> str:
    """Of all networks on some data sets, by title; with several, a level's title stands before its first network."""
    rows = []
    for title, data in levels.items():
        names = record.networks(data)
        best = max(names, key=lambda network: spread(record, data, network, "dice").mean)
        for network in names:
            row = _score_row(record, data, network, network == best)
            rows.append([title if network == names[0] else "", *row] if len(levels) > 1 else row)
    headings = [
        "network", "Dice", "SD over seeds", "SD over subjects", "L-Dice", "challenge F1", "threshold", "parameters",
    ]  # fmt: skip
    return markdown(["level", *headings] if len(levels) > 1 else headings, rows)


def _score_row(record: Record, data: str, network: str, best: bool) -> list[str]:
    dice = spread(record, data, network, "dice")
    others = [spread(record, data, network, metric).mean for metric in ("lesion_dice", "challenge_f1")]
    return [
        network,
        f"**{dice.mean:.3f}**" if best else f"{dice.mean:.3f}",
        "" if dice.seeds is None else f"{dice.seeds:.3f}",
        f"{dice.subjects:.3f}",
        *(f"{value:.3f}" for value in others),
        _threshold(thresholds(record, data, network)),
        str(record.runs(data, network)[0]["parameters"]),
    ]


def _threshold(chosen: tuple[float, float] | None) -> str:
    if chosen is None:
        return "none"
    low, high = (f"{value:.3g}" for value in chosen)
    return low if low == high else f"{low} to {high}"


def _differences(record: Record, outcomes: Sequence[Difference], levels: Mapping[str, str]) -> str:
    """Of the comparisons on some data sets, as in the table of scores."""
    rows = []
    for title, data in levels.items():
        of_data = [d for d in outcomes if d.comparison.data == data]
        for d in of_data:
            i = d.interval
            row = [
                f"{d.comparison.network} − {d.comparison.other}", signed(i.mean), bounds(i.low, i.high),
                bounds(i.family_low, i.family_high), by_seed(d), d.verdict,
            ]  # fmt: skip
            rows.append([title if d is of_data[0] else "", *row] if len(levels) > 1 else row)
    headings = ["Dice", "difference", "95 %", f"widened for {record.family} comparisons", "by seed", "shown"]
    return markdown(["level", *headings] if len(levels) > 1 else headings, rows)
