"""The study of learning rates: is a spatially covariant head harmed by how fast Φ learns, and what repairs it?

At two learning rates and with narrow and wide Φ, in the paper's form (s = 1), with the scale for Adam
(``phi_scale="adam"``), with one between them (``"sgd"``), with Φ's rate limited by its width
(:func:`scp_kernels.parameter_groups`), and with Φ anchored to zero at the centre besides (``anchored``), the control,
which is told one position everywhere, should equal Base: it can represent what Base can and nothing else. SCP should
nowhere be below Base. Heads begin with the weight that Base has with the same seed: another one is as much noise as
another seed, and the same in all forms.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from scp_models.study.axes import REFERENCE
from scp_models.study.design import Network, NetworkPair, Phantoms, Recipe, Study, StudyData
from scp_models.study.frames import PATIENTS
from scp_models.study.record import Record

RATES_SEED = 101
LIMITED_SEED = 121
"""Of the studies of the limited form, which was decided on with the seeds from 101 on."""
ANCHORED_SEED = 151
"""Of the studies of the anchored form, which was decided on with the seeds from 141 on."""
LEARNING_RATES = (1e-3, 4e-3)
PHI_WIDTHS = (64, 256)
ALL_WIDTHS = (64, 128, 256)
"""Of which a study may have others than :data:`PHI_WIDTHS`."""
PHI_FORMS: Mapping[str, Mapping[str, Any]] = {
    "s = 1": {"anchored": False},
    "half scaled": {"anchored": False, "change": "half scaled"},
    "scaled": {"anchored": False, "change": "scaled"},
    "limited": {"anchored": False, "limit_phi": True},
    "anchored": {"anchored": True, "limit_phi": True},
}
"""By title, the form of a head: arguments of :class:`scp_models.study.design.Network`."""
RECOMMENDED_FORM = "anchored"
LIMITED_FORM = "limited"
PAPER_FORM = "s = 1"
FORMS_AT_FIRST = tuple(form for form in PHI_FORMS if form not in (LIMITED_FORM, RECOMMENDED_FORM))
"""What there was before Φ's rate was limited."""
BEFORE = (
    "Before it: the step of W and other trainings ([training](training.md)), and this study on other phantoms, with "
    "seeds 81 to 85 and heads that began with another weight than Base. There the controls' differences to Base were "
    "+0.003 to −0.020 (at 0.004 −0.013 scaled, −0.013 and −0.020 with s = 1), seed by seed nearly the same in scaled "
    "forms of one width: it was the weight to begin with. SCP − Base was +0.064 and +0.148 at 0.001, +0.157 and +0.153 "
    "at 0.004 (s = 1, h 64 and 256), and scaled −0.007 to +0.005. Of two scales between these, tried with three of its "
    "seeds, the larger one is 'half scaled' here."
)
BEFORE_PATIENTS = (
    "Before it: a study on these and three more patients (340 steps, one seed), in which at 0.004 SCP with the paper's "
    "positions was below Base (−0.028, −0.052 to −0.005) and its control far below (−0.118, −0.213 to −0.050), and the "
    "study of learning rates on phantoms, with other forms of Φ too. Here only the plain one is tried."
)
BEFORE_WIDTH = (
    "The same phantoms, seeds and recipe as in the study of the widths 64 and 256, which came before; only the "
    "plain form."
)
BEFORE_SCALES = (
    "Decided on after the study of learning rates on patients had shown the control below Base at 0.004 with h 256; "
    "the seeds, folds and recipe are its own."
)
BEFORE_LIMITED = (
    "Decided on after the control had been below Base on patients at 0.004 (s = 1, h 256), and both scales had been "
    "tried there. Tried first, on patients with that study's seeds, folds and recipe, a limited Φ of h 256: control −"
    " Base −0.008 (−0.020 to +0.011), SCP − Base +0.025 (−0.019 to +0.101). At 0.004 a Φ of h 64 is not limited: its "
    "form is s = 1. To limit it to 0.001 too gave control −0.002 (−0.018 to +0.022), SCP +0.001 (−0.037 to +0.053) "
    "with those seeds, and with the first eight trainings of others −0.032 (−0.062 to −0.007) and −0.023 (−0.053 to "
    "+0.003), where s = 1 gave 0.000 (−0.023 to +0.025) and +0.017 (−0.014 to +0.109): no better, and given up. Of "
    "those eight, Base, s = 1 and h 256 are part of the study on patients, which has no h 128, for want of time. At "
    "0.001 nothing up to h 256 is limited."
)
BEFORE_ANCHORED = (
    "Decided on after no form had been both on patients at 0.004, a control that is Base and SCP that gains as much. "
    "Tried first there, with the seeds 141 to 145 and this recipe: SCP − Base +0.007 (h 64), +0.014 (h 256, 14 of 15 "
    "trainings) and +0.002 (h 256, not limited); no controls. Anchored, the control is Base by construction: the two "
    "differ by rounding, and by how far two trainings come apart that differ in nothing else."
)
_PHANTOM_SEEDS = (2139, 2151, 2163)  # never used before

assert REFERENCE.phantoms is not None
RATES_PHANTOMS, LIMITED_PHANTOMS, ANCHORED_PHANTOMS = (
    replace(
        REFERENCE,
        name="Phantoms, central ellipse",
        phantoms=Phantoms("wmh", REFERENCE.phantoms.subjects, seed, REFERENCE.phantoms.options),
    )
    for seed in _PHANTOM_SEEDS
)


def base_at(rate: float) -> str:
    """Name of Base at a learning rate."""
    return f"Base, {rate:g}"


def head_at(rate: float, hidden: int, form: str, *, control: bool) -> str:
    """Name of SCP, or of its control, at a learning rate."""
    return f"SCP{', constant position' if control else ''}, h {hidden}, {form}, {rate:g}"


def head_settings(
    forms: Sequence[str] = tuple(PHI_FORMS),
    widths: Sequence[int] = ALL_WIDTHS,
    rates: Sequence[float] = LEARNING_RATES,
) -> Iterator[tuple[float, int, str]]:
    """Every learning rate, hidden width and form."""
    for rate in rates:
        for hidden in widths:
            for form in forms:
                yield rate, hidden, form


def rate_networks(rates: Sequence[float], settings: Sequence[tuple[float, int, str]]) -> tuple[Network, ...]:
    """Base at each learning rate, then SCP and its control at each with every width and form."""
    plain = [Network(base_at(rate), "base", learning_rate=rate) for rate in rates]
    heads = [
        Network(
            head_at(rate, hidden, form, control=control),
            "scp",
            "foreground",
            hidden_channels=hidden,
            constant_position=control,
            learning_rate=rate,
            starts_as_base=True,
            **PHI_FORMS[form],
        )
        for rate, hidden, form in settings
        for control in (True, False)
    ]
    return (*plain, *heads)


def rate_comparisons(data: StudyData, settings: Sequence[tuple[float, int, str]]) -> tuple[NetworkPair, ...]:
    """SCP and its control against Base at the same learning rate."""
    return tuple(
        NetworkPair(data.name, head_at(rate, hidden, form, control=control), base_at(rate))
        for rate, hidden, form in settings
        for control in (True, False)
    )


def rates_on_phantoms(seeds: int = 5, width: int | None = None) -> Study:
    """On phantoms in which position decides; of one width in the paper's form alone."""
    if width is None:
        return _rates_study("phantoms", RATES_PHANTOMS, 100, seeds, PHI_WIDTHS, FORMS_AT_FIRST, BEFORE)
    return _rates_study("phantoms", RATES_PHANTOMS, 100, seeds, (width,), (PAPER_FORM,), BEFORE_WIDTH)


def rates_on_patients(seeds: int = 5, folds: int = 3, steps: int = 240, width: int | None = None) -> Study:
    """On real patients, at half resolution, by cross-validation, in the paper's form alone."""
    data, widths = replace(PATIENTS, folds=folds), PHI_WIDTHS if width is None else (width,)
    return _rates_study("patients", data, steps, seeds, widths, (PAPER_FORM,), BEFORE_PATIENTS)


def scales_on_patients(seeds: int = 5, folds: int = 3, steps: int = 240) -> Study:
    """Where the control lost on patients (h 256, the higher rate): Φ with its scales."""
    study = _rates_study(
        "patients", replace(PATIENTS, name="Patients, scales of Φ", folds=folds), steps, seeds, (256,),
        ("half scaled", "scaled"), BEFORE_SCALES, LEARNING_RATES[1:],
    )  # fmt: skip
    return replace(study, name="rates-patients-scales", title="How fast Φ learns, on patients, with its scales")


def limited_on_phantoms(seeds: int = 5) -> Study:
    """Φ's rate limited by its width, at the higher rate, on phantoms with other seeds."""
    return _limited_study("phantoms", LIMITED_PHANTOMS, 100, seeds, ALL_WIDTHS)


def limited_on_patients(seeds: int = 5, folds: int = 3, steps: int = 240) -> Study:
    """Φ's rate limited by its width, at the higher rate, on patients with other seeds."""
    return _limited_study("patients", replace(PATIENTS, folds=folds), steps, seeds, PHI_WIDTHS)


def anchored_on_phantoms(seeds: int = 5) -> Study:
    """The recommended form, anchored and limited by its width, on phantoms with other seeds again."""
    return _anchored_study("phantoms", ANCHORED_PHANTOMS, 100, seeds, ALL_WIDTHS)


def anchored_on_patients(seeds: int = 5, folds: int = 3, steps: int = 240) -> Study:
    """The recommended form, anchored and limited by its width, on patients with other seeds again."""
    return _anchored_study("patients", replace(PATIENTS, folds=folds), steps, seeds, PHI_WIDTHS)


def _anchored_study(subjects: str, data: StudyData, steps: int, seeds: int, widths: Sequence[int]) -> Study:
    settings = tuple(head_settings((RECOMMENDED_FORM,), widths))
    title = f"How fast Φ learns, on {subjects}, with Φ zero at the centre"
    data = replace(data, name=f"{data.name}, Φ anchored")
    chosen = range(ANCHORED_SEED, ANCHORED_SEED + seeds)
    return _study(f"rates-{subjects}-anchored", title, data, steps, chosen, settings, BEFORE_ANCHORED)


def _limited_study(subjects: str, data: StudyData, steps: int, seeds: int, widths: Sequence[int]) -> Study:
    """The narrow Φ is not limited at this rate: its form is the paper's."""
    narrow, *wide = widths
    rates = LEARNING_RATES[1:]
    settings = (*head_settings((PAPER_FORM,), (narrow,), rates), *head_settings((LIMITED_FORM,), wide, rates))
    title = f"How fast Φ learns, on {subjects}, with its rate limited"
    data = replace(data, name=f"{data.name}, Φ limited")
    chosen = range(LIMITED_SEED, LIMITED_SEED + seeds)
    return _study(f"rates-{subjects}-limited", title, data, steps, chosen, settings, BEFORE_LIMITED)


def _rates_study(
    subjects: str,
    data: StudyData,
    steps: int,
    seeds: int,
    widths: Sequence[int],
    forms: Sequence[str],
    before: str,
    rates: Sequence[float] = LEARNING_RATES,
) -> Study:
    of_width = "" if widths == PHI_WIDTHS else f"h {', '.join(map(str, widths))}"
    if of_width:
        data = replace(data, name=f"{data.name}, {of_width}")
    name = f"rates-{subjects}{of_width and '-' + of_width.replace(' ', '')}"
    title = f"How fast Φ learns, on {subjects}{of_width and ', ' + of_width}"
    chosen = range(RATES_SEED, RATES_SEED + seeds)
    return _study(name, title, data, steps, chosen, tuple(head_settings(forms, widths, rates)), before)


def _study(
    name: str,
    title: str,
    data: StudyData,
    steps: int,
    seeds: Sequence[int],
    settings: Sequence[tuple[float, int, str]],
    before: str,
) -> Study:
    """Base at each of the settings' learning rates, and SCP and its control with each of the settings."""
    rates = tuple(dict.fromkeys(rate for rate, _, _ in settings))
    return Study(
        name,
        title,
        (data,),
        rate_networks(rates, settings),
        Recipe(steps=steps),
        tuple(seeds),
        rate_comparisons(data, settings),
        notes=(before,),
    )


def is_of_rates(record: Record) -> bool:
    """Whether networks of the study differ in their learning rates."""
    return any(network.get("learning_rate") is not None for network in record.content["study"]["networks"])
