"""The study of learning rates: is a spatially covariant head harmed by how fast Φ learns, and does its scale repair it?

At two learning rates and with a narrow and a wide Φ, in the paper's form (s = 1), with the scale for Adam
(``phi_scale="adam"``) and with one between them (``"sgd"``), the control, which is told one position everywhere, should
equal Base: it can represent what Base can and nothing else. SCP should nowhere be below Base. Heads begin with the
weight that Base has with the same seed: another one is as much noise as another seed, and the same in all forms.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from scp_models.study.axes import REFERENCE
from scp_models.study.design import Network, NetworkPair, Phantoms, Recipe, Study, StudyData
from scp_models.study.frames import PATIENTS
from scp_models.study.record import Record

RATES_SEED = 101
LEARNING_RATES = (1e-3, 4e-3)
PHI_WIDTHS = (64, 256)
PHI_FORMS = {"s = 1": None, "half scaled": "half scaled", "scaled": "scaled"}
"""By title, what is changed of a recommended head: a name of :data:`scp_models.study.forms.FORMS`."""
RECOMMENDED_FORM = "s = 1"
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
    "study of learning rates on phantoms, with other forms of Φ too. Here only the recommended one is tried."
)
_PHANTOM_SEED = 2139  # never used before

assert REFERENCE.phantoms is not None
RATES_PHANTOMS = replace(
    REFERENCE,
    name="Phantoms, central ellipse",
    phantoms=Phantoms("wmh", REFERENCE.phantoms.subjects, _PHANTOM_SEED, REFERENCE.phantoms.options),
)


def base_at(rate: float) -> str:
    """Name of Base at a learning rate."""
    return f"Base, {rate:g}"


def head_at(rate: float, hidden: int, form: str, *, control: bool) -> str:
    """Name of SCP, or of its control, at a learning rate."""
    return f"SCP{', constant position' if control else ''}, h {hidden}, {form}, {rate:g}"


def head_settings(forms: Sequence[str] = tuple(PHI_FORMS)) -> Iterator[tuple[float, int, str]]:
    """Every learning rate, hidden width and form."""
    for rate in LEARNING_RATES:
        for hidden in PHI_WIDTHS:
            for form in forms:
                yield rate, hidden, form


def rate_networks(forms: Sequence[str]) -> tuple[Network, ...]:
    """Base at each learning rate, then SCP and its control at each with every width and form."""
    plain = [Network(base_at(rate), "base", learning_rate=rate) for rate in LEARNING_RATES]
    heads = [
        Network(
            head_at(rate, hidden, form, control=control),
            "scp",
            "foreground",
            hidden_channels=hidden,
            constant_position=control,
            learning_rate=rate,
            starts_as_base=True,
            change=PHI_FORMS[form],
        )
        for rate, hidden, form in head_settings(forms)
        for control in (True, False)
    ]
    return (*plain, *heads)


def rate_comparisons(data: StudyData, forms: Sequence[str]) -> tuple[NetworkPair, ...]:
    """SCP and its control against Base at the same learning rate."""
    return tuple(
        NetworkPair(data.name, head_at(rate, hidden, form, control=control), base_at(rate))
        for rate, hidden, form in head_settings(forms)
        for control in (True, False)
    )


def rates_on_phantoms(seeds: int = 5) -> Study:
    """On phantoms in which position decides."""
    return _rates_study(
        "rates-phantoms", "How fast Φ learns, on phantoms", RATES_PHANTOMS, 100, seeds, tuple(PHI_FORMS), BEFORE
    )


def rates_on_patients(seeds: int = 5, folds: int = 3, steps: int = 240) -> Study:
    """On real patients, at half resolution, by cross-validation, in the recommended form alone."""
    data = replace(PATIENTS, folds=folds)
    return _rates_study(
        "rates-patients", "How fast Φ learns, on patients", data, steps, seeds, (RECOMMENDED_FORM,), BEFORE_PATIENTS
    )


def _rates_study(
    name: str, title: str, data: StudyData, steps: int, seeds: int, forms: Sequence[str], before: str
) -> Study:
    return Study(
        name,
        title,
        (data,),
        rate_networks(forms),
        Recipe(steps=steps),
        tuple(range(RATES_SEED, RATES_SEED + seeds)),
        rate_comparisons(data, forms),
        notes=(before,),
    )


def is_of_rates(record: Record) -> bool:
    """Whether networks of the study differ in their learning rates."""
    return any(network.get("learning_rate") is not None for network in record.content["study"]["networks"])
