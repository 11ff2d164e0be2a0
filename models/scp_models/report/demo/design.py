"""What the demo compares and how much it spends: fixed before anything is run.

The phantoms are location-decided: lesions and look-alikes have one contrast, and only where a blob lies makes it a
lesion. On a two-level backbone, which sees some twenty pixels around, Base is compared with Base at double width, with
SCP whose every pixel is told the same position (the control) and with SCP; and on the paper's five levels Base with
SCP.
"""

from dataclasses import dataclass

SCP = "SCP"
CONTROL = "SCP (constant position)"
TESTS = (
    (SCP, ("Base", "Base (double width)", CONTROL)),
    ("SCP (5 levels)", ("Base (5 levels)",)),
)
"""The model named first is tested against every one after it."""


@dataclass(frozen=True)
class DemoModel:
    """One compared network; ``seeds`` are those of its trainings."""

    slug: str
    name: str
    variant: str
    capacity: int
    levels: int
    seeds: tuple[int, ...]
    constant_position: bool = False


@dataclass(frozen=True)
class DemoSettings:
    """A run's fixed budget.

    Attributes:
        subjects: phantoms in all.
        epochs: of every training.
        seed: of the phantoms, the split, and the first training; the next ones have the next numbers.
        seeds, deep_seeds: trainings of each model with two and with five levels.
    """

    subjects: int
    epochs: int
    seed: int
    seeds: int
    deep_seeds: int

    def models(self) -> tuple[DemoModel, ...]:
        """The compared models; costs are relative to the first."""
        shallow = tuple(range(self.seed, self.seed + self.seeds))
        deep = tuple(range(self.seed, self.seed + self.deep_seeds))
        return (
            DemoModel("base", "Base", "base", 128, 2, shallow),
            DemoModel("base-double-width", "Base (double width)", "base", 256, 2, shallow),
            DemoModel("scp-constant-position", CONTROL, "scp", 128, 2, shallow, constant_position=True),
            DemoModel("scp", SCP, "scp", 128, 2, shallow),
            DemoModel("base-5-levels", "Base (5 levels)", "base", 64, 5, deep),
            DemoModel("scp-5-levels", "SCP (5 levels)", "scp", 64, 5, deep),
        )
