"""Which slices make an epoch of training."""

from types import SimpleNamespace

import numpy as np
import pytest

from scp_models.data import SegmentationDataModule
from scp_models.data.sampling import SliceSampler, SubjectSampler
from scp_models.errors import UserError

# Four volumes of 1 mm beside thirteen of 5 mm and 8 mm.
COUNTS = [160] * 4 + [24] * 10 + [12] * 3


def dataset(counts=COUNTS):
    offsets = np.cumsum([0, *counts])
    subjects = [SimpleNamespace(name=f"s{k}") for k in range(len(counts))]

    class Slices(SimpleNamespace):
        def __len__(self):
            return int(self.offsets[-1])

    return Slices(offsets=offsets, subjects=subjects)


def subject_of(indices, counts=COUNTS):
    return np.searchsorted(np.cumsum(counts), indices, side="right")


def epoch(sampler, number=0):
    sampler.set_epoch(number)
    return list(sampler)


def test_every_subject_has_as_many_slices_of_an_epoch():
    drawn = epoch(SubjectSampler(dataset(), 1, 0, seed=0))
    assert len(drawn) == sum(COUNTS)
    of_subject = np.bincount(subject_of(drawn), minlength=len(COUNTS))
    assert set(of_subject) <= {sum(COUNTS) // len(COUNTS), sum(COUNTS) // len(COUNTS) + 1}
    times = np.bincount(drawn, minlength=sum(COUNTS))
    for k in range(len(COUNTS)):
        of_slices = times[subject_of(np.arange(sum(COUNTS))) == k]
        assert of_slices.max() - of_slices.min() <= 1  # none again before all were drawn


def test_plain_order_has_every_slice_once():
    drawn = epoch(SliceSampler(dataset(), 1, 0, seed=0))
    assert sorted(drawn) == list(range(sum(COUNTS)))
    assert np.mean(subject_of(drawn) < 4) > 0.65


@pytest.mark.parametrize("kind", [SliceSampler, SubjectSampler])
def test_the_order_depends_on_seed_and_epoch_alone(kind):
    first = epoch(kind(dataset(), 1, 0, seed=0), 3)
    assert first == epoch(kind(dataset(), 1, 0, seed=0), 3)
    assert first != epoch(kind(dataset(), 1, 0, seed=0), 4)
    assert first != epoch(kind(dataset(), 1, 0, seed=1), 3)
    assert np.any(np.diff(subject_of(first)) < 0)  # subjects are mixed


@pytest.mark.parametrize("kind", [SliceSampler, SubjectSampler])
@pytest.mark.parametrize("counts", [COUNTS, [1, 2], [2]])
def test_processes_share_an_epoch(kind, counts):
    parts = [epoch(kind(dataset(counts), 4, rank, seed=0)) for rank in range(4)]
    total = sum(counts)
    each = total // 4 if total >= 4 else 1
    assert [len(part) for part in parts] == [each] * 4
    alone = epoch(kind(dataset(counts), 1, 0, seed=0))
    together = [index for turn in zip(*parts, strict=True) for index in turn]
    assert together == np.resize(alone, len(together)).tolist()


def test_an_epoch_is_described():
    assert SubjectSampler(dataset(), 1, 0, 0).describe() == (
        "an epoch is 916 slices of 17 subjects: 53.88 per subject, of 12 (s14) to 160 (s0)"
    )
    assert SliceSampler(dataset([5, 5]), 1, 0, 0).describe() == (
        "an epoch is 10 slices of 2 subjects: each slice once, 5 per subject"
    )


def test_unknown_samplings_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"sampling: expected one of \('subjects', 'slices'\), got 'volumes'"):
        SegmentationDataModule(str(tmp_path), sampling="volumes")
