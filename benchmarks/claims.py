"""What is claimed of SCP, as checks of measured figures: the verdict at the end of a run, and tests.

Every claim says what was measured, what is claimed, what the paper reports, and whether it holds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import noise
from benchmarks.peers import COMPILED, PAPER_STYLE, PLAIN

Figures = Mapping[str, Any]

SCP_256, BASE_512 = "SCP 256", "Base 512"
# Claimed and the paper's (Table 1): the change from Base 512 to SCP 256. Its SCP keeps W, ours does not.
PARAMETERS_CHANGE = (-0.747, -0.747)
OPERATIONS = (-0.74, -0.649)
MEMORY = (-0.5, -0.238)
HEADS = {
    PAPER_STYLE: "the head is faster than the paper-style head",
    COMPILED: "the head is faster than `torch.compile` of it",
    PLAIN: "the head is faster than the 1×1 convolution that it replaces",
}
SHOWN_CASE = {"hidden": 256, "channels": 32, "batch": 1, "shape": [160, 224], "dtype": "float32"}
"""The paper's largest head, whose times are named."""


@dataclass(frozen=True)
class Claim:
    """One line of the verdict."""

    what: str
    measured: str
    claimed: str
    paper: str
    holds: bool

    @property
    def answer(self) -> str:
        return "holds" if self.holds else "does not hold"


def change(what: str, of: float, against: float, bounds: tuple[float, float]) -> Claim:
    """A reduction from ``against`` to ``of``; ``bounds`` are the claimed change and the paper's."""
    claimed, paper = bounds
    relative = round(of / against - 1, 3)
    return Claim(what, percent(relative), f"{percent(claimed)} or less", percent(paper), relative <= claimed)


def parameters(scp: Figures, base: Figures) -> Claim:
    return change(f"parameters, {SCP_256} against {BASE_512}", scp["parameters"], base["parameters"], PARAMETERS_CHANGE)


def operations(scp: Figures, base: Figures) -> Claim:
    what = f"multiply-adds executed, {SCP_256} against {BASE_512}"
    return change(what, scp["executed_macs"], base["executed_macs"], OPERATIONS)


def memory(scp: Figures, base: Figures, device: str) -> Claim:
    """On a GPU the peak of a training step; on a CPU, where it is not known exactly, what is kept for backward."""
    key, words = ("peak_bytes", "peak") if device == "cuda" else ("saved_bytes", "kept for backward")
    return change(f"memory of a training step ({words}), {SCP_256} against {BASE_512}", scp[key], base[key], MEMORY)


def networks(races: Mapping[str, Figures], device: str) -> list[Claim]:
    """Of a training step with batch 1, as in the paper's Table 1."""
    for race in races.values():
        figures = race["subjects"]
        if race.get("batch") == 1 and race["step"] == "training" and {SCP_256, BASE_512} <= figures.keys():
            scp, base = figures[SCP_256], figures[BASE_512]
            return [memory(scp, base, device), operations(scp, base), parameters(scp, base)]
    return []


def heads(races: Mapping[str, Figures]) -> list[Claim]:
    """Each peer's time over ours, in every race of the operator."""
    claims = []
    for peer, words in HEADS.items():
        ratios = [
            race["subjects"][peer]["ratio"]
            for race in races.values()
            if race["what"] == "operator" and peer in race["subjects"]
        ]
        if ratios:
            faster = sum(ratio > 1 for ratio in ratios)
            measured = f"{digits(min(ratios))} to {digits(max(ratios))} ×; faster in {faster} of {len(ratios)} races"
            claims.append(Claim(words, measured, "> 1 × in each", "", min(ratios) > 1))
    return claims


def verdict(races: Mapping[str, Figures], device: str) -> list[Claim]:
    return [*networks(races, device), *heads(races)]


def shown_times(races: Mapping[str, Figures]) -> str | None:
    """The times of the paper's largest head, beside its peers'; None if it was not timed."""
    parts = []
    for step, words in (("forward", "a forward takes"), ("training", "forward and backward take")):
        for race in races.values():
            if race["what"] == "operator" and race["step"] == step and race["case"] == SHOWN_CASE:
                ours = race["subjects"][race["ours"]]
                ratios = [
                    f"{peer} {digits(race['subjects'][peer]['ratio'])} ×" for peer in HEADS if peer in race["subjects"]
                ]
                parts.append(f"{words} {digits(1e3 * ours[ours['clock']]['median'])} ms ({', '.join(ratios)})")
    if not parts:
        return None
    return f"At the paper's largest head (h 256, C 32, 160×224, batch 1, float32) {'; '.join(parts)}."


def machine_sentence(machine: Mapping[str, Any], races: Mapping[str, Figures]) -> str:
    """What was measured on, and how quiet it was."""
    described = machine["device"]
    if machine["kind"] == "cpu":
        described += f", {machine['cores']} cores, {machine['vectors']}"
    observed = noise.summarise_noise(race.get("noise") for race in races.values())
    return f"Machine: {described}. {observed.sentence if observed else 'Its noise was not recorded.'}"


def sentences(machine: Mapping[str, Any], races: Mapping[str, Figures]) -> list[str]:
    """What stands below the claims."""
    return [text for text in (shown_times(races), machine_sentence(machine, races)) if text]


def digits(value: float) -> str:
    """Three digits, two below 10."""
    if value >= 99.5:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def percent(change: float) -> str:
    return f"{change:+.1%}".replace("-", "−")


def rows(claims: Sequence[Claim]) -> list[list[str]]:
    return [[claim.what, claim.measured, claim.claimed, claim.paper, claim.answer] for claim in claims]


HEADINGS = ["claim", "measured", "claimed", "paper", "verdict"]
