"""Which slices make an epoch of training, and in which order."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import DistributedSampler

from scp_models.data.slices import SliceDataset

SAMPLINGS = ("subjects", "slices")


class Draw(NamedTuple):
    """A slice that is drawn, and when: the same slice may come several times in an epoch."""

    number: int
    """Of the slice in the data set."""
    epoch: int
    place: int
    """In the epoch, counted over all processes."""


class SliceSampler(DistributedSampler[object]):
    """Every slice once per epoch, in an order that depends on the seed and the epoch alone.

    Gives indices, or :class:`Draw` if it is ``numbered``.
    """

    def __init__(self, dataset: SliceDataset, replicas: int, rank: int, seed: int, numbered: bool = False) -> None:
        super().__init__(dataset, replicas, rank, shuffle=True, seed=seed, drop_last=len(dataset) >= replicas)
        self.counts = np.diff(dataset.offsets)
        """Slices of each subject."""
        self.subjects = dataset.subjects
        self.numbered = numbered

    def __iter__(self) -> Iterator[object]:
        indices = self.indices()
        if not self.numbered:
            return iter(indices)
        places = range(self.rank, self.total_size, self.num_replicas)
        return iter([Draw(index, self.epoch, place) for index, place in zip(indices, places, strict=True)])

    def indices(self) -> list[int]:
        """Of the slices of this epoch and this process."""
        return [int(index) for index in super().__iter__()]  # type: ignore[call-overload]

    @property
    def draws(self) -> str:
        """How many slices of one subject an epoch has."""
        return f"each slice once, {self._range()} per subject"

    def describe(self) -> str:
        """One line: how many slices of whom make an epoch."""
        return f"an epoch is {self.total_size} slices of {len(self.counts)} subjects: {self.draws}"

    def _range(self) -> str:
        fewest, most = int(self.counts.argmin()), int(self.counts.argmax())
        if self.counts[fewest] == self.counts[most]:
            return str(self.counts[most])
        return (
            f"{self.counts[fewest]} ({self.subjects[fewest].name}) to {self.counts[most]} ({self.subjects[most].name})"
        )


class SubjectSampler(SliceSampler):
    """As many slices of every subject, however many it has; an epoch is as long as if each slice came once.

    Else a few volumes of thin slices fill an epoch: four of 1 mm were 78 % of one, and no subject with thick slices
    was segmented. A subject's slices are drawn in a random order, and again from the first once all were drawn; where
    the epoch does not divide by the subjects, chance gives some of them one more.
    """

    def indices(self) -> list[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self._draw(rng))
        # As many for each process, as DistributedSampler has it: the end is dropped, or the beginning comes again.
        order = np.resize(order, self.total_size)
        return [int(index) for index in order[self.rank : self.total_size : self.num_replicas]]

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        """Indices of the epoch's slices, subject by subject."""
        total, subjects = int(self.counts.sum()), len(self.counts)
        quotas = np.full(subjects, total // subjects)
        quotas[rng.permutation(subjects)[: total % subjects]] += 1
        starts = np.cumsum(self.counts) - self.counts
        drawn = []
        for start, count, quota in zip(starts, self.counts, quotas, strict=True):
            rounds = [rng.permutation(count) for _ in range(-(-quota // count))]
            drawn.append(start + np.concatenate([*rounds, np.empty(0, int)])[:quota])
        return np.concatenate(drawn)

    @property
    def draws(self) -> str:
        return f"{self.counts.sum() / len(self.counts):.4g} per subject, of {self._range()}"


def make_sampler(
    sampling: str | None, dataset: SliceDataset, seed: int, replicas: int = 1, rank: int = 0, numbered: bool = False
) -> SliceSampler:
    """The sampler of one of :data:`SAMPLINGS`; None: ``"subjects"``."""
    kind = SliceSampler if sampling == "slices" else SubjectSampler
    return kind(dataset, replicas, rank, seed=seed, numbered=numbered)
