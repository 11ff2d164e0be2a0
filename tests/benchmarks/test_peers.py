"""Subjects of the races where each sample is a slice of a volume: what they compute and count. No clock here."""

import itertools

import pytest
import torch

from benchmarks.conftest import DEFAULT
from benchmarks.peers import COORDCONV, ONE_MAP, PAPER_STYLE, call, call_macs, peers_of
from benchmarks.test_bench_operator import check
from scp_kernels import pixel_positions
from tests.support.cases import PER_SAMPLE, WIDTHS, Case
from tests.support.cpu_settings import needs_cpu

SLICES = Case(16, 4, 3, (20, 30), per_sample=True, position_dims=3)


def test_one_map_per_sample_is_raced_in_three_axes():
    """The widths of the paper, 14 slices; the default run has one of them, in the place of one in two axes."""
    assert [(case.hidden, case.channels) for case in PER_SAMPLE] == [*WIDTHS]
    assert {(case.batch, case.shape, case.position_dims) for case in PER_SAMPLE} == {(14, (160, 224), 3)}
    assert [case for case in DEFAULT if case.per_sample] == PER_SAMPLE[:1]
    assert str(SLICES) == "h16-c4-b3-20x30-per-sample-k3"


def test_slices_lie_inside_of_the_volume_at_different_heights():
    case = PER_SAMPLE[0]
    s = pixel_positions(case.inputs().features, position_dims=3, **case.positions())
    heights = s[:, 0].flatten(1)
    assert (heights.amin(1) > 0).all() and (s[:, 3].flatten(1).amin(1) > 0).all()
    assert len(heights.mean(1).round().unique()) == 14
    assert case.problem().groups == 14 and case.problem().position_dims == 3


@needs_cpu
@pytest.mark.parametrize("step", ["forward", "training"])
def test_all_subjects_are_right(step):
    inputs = SLICES.inputs()
    subjects = peers_of(SLICES, inputs, step, compiled=False)
    assert {COORDCONV, PAPER_STYLE, "cpu" + ONE_MAP} <= {*subjects} and [*subjects][-1] == "cpu"
    for name, subject in subjects.items():
        check(name, subject, SLICES, "cpu", step)


@needs_cpu
def test_one_map_is_each_samples_in_turn():
    inputs = SLICES.inputs()
    subject = peers_of(SLICES, inputs, "forward", only="cpu" + ONE_MAP)["cpu" + ONE_MAP]
    whole = subject.module(inputs.features, **subject.positions)
    run = call(subject, inputs, "forward")
    for k in itertools.islice(itertools.cycle(range(3)), 4):
        assert torch.allclose(run(), whole[k : k + 1], rtol=1e-5, atol=1e-5)


def test_multiply_adds_of_the_peers():
    """With six channels of positions, and without a gradient of these."""
    inputs, pixels = SLICES.inputs(), 3 * 20 * 30
    peers = peers_of(SLICES, inputs, "forward", compiled=False)
    phi = 6 * 16 + 16 * 16 + 16 * 4
    for name, step, per_pixel in (
        (COORDCONV, "forward", 4 + 6),
        (COORDCONV, "training", 3 * 4 + 2 * 6),
        (PAPER_STYLE, "forward", phi + 2 * 4),
        (PAPER_STYLE, "training", 3 * phi - 6 * 16 + 6 * 4),
    ):
        assert call_macs(name, peers[name], SLICES, inputs, step) == pixels * per_pixel, (name, step)
