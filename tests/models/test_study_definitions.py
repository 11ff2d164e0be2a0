"""What the built-in studies of frames and of learning rates are made of: networks, seeds, comparisons."""

from dataclasses import replace

import pytest
import torch

from scp_kernels import parameter_groups
from scp_models.networks import build_network
from scp_models.study.axes import axes_study
from scp_models.study.design import NetworkPair, Run
from scp_models.study.frames import confirmation_study, full_resolution_study, patients_study, phantoms_study
from scp_models.study.rates import (
    anchored_on_patients,
    anchored_on_phantoms,
    base_at,
    limited_on_patients,
    limited_on_phantoms,
    rates_on_patients,
    rates_on_phantoms,
    scales_on_patients,
)
from scp_models.study.reproduce.design import BUDGETS, reproduction
from scp_models.study.single import build_module
from scp_models.training.module import SegmentationModule


def test_the_study_of_frames_compares_what_it_runs():
    for study in (phantoms_study(), patients_study()):
        names = {network.name for network in study.networks}
        assert len(names) == 11 and len(study.seeds) == 3
        data = {d.name for d in study.data}
        for c in study.comparisons:
            assert {c.network, c.other} <= names and c.data in data
        assert len(set(study.comparisons)) == len(study.comparisons) == 15 * len(study.data)
        runs = list(study.runs())
        assert len({run.folder for run in runs}) == len(runs) == 11 * 3 * (2 if len(study.data) == 2 else 3)
        assert isinstance(runs[0], Run) and isinstance(study.comparisons[0], NetworkPair)


def test_the_study_of_rates_compares_with_base_at_the_same_rate():
    for study, heads in ((rates_on_phantoms(), 24), (rates_on_patients(), 8), (rates_on_phantoms(width=128), 4)):
        by_name = {network.name: network for network in study.networks}
        assert len(by_name) == len(study.networks) == 2 + heads and len(study.seeds) == 5
        assert len(set(study.comparisons)) == len(study.comparisons) == heads
        for c in study.comparisons:
            network, other = by_name[c.network], by_name[c.other]
            assert other.variant == "base" and network.learning_rate == other.learning_rate
        runs = list(study.runs())
        assert len({run.folder for run in runs}) == len(runs)
        assert build_module(runs[1]).learning_rate == runs[1].network.learning_rate == 4e-3


def test_scales_are_tried_where_the_control_lost_on_patients():
    study, before = scales_on_patients(), rates_on_patients()
    assert study.seeds == before.seeds and study.recipe == before.recipe
    assert {network.learning_rate for network in study.networks} == {4e-3} and len(study.networks) == 1 + 4
    assert {network.change for network in study.networks if network.variant == "scp"} == {"half scaled", "scaled"}
    assert len(study.comparisons) == 4 and study.data[0].name != before.data[0].name


def test_the_limited_form_has_seeds_of_its_own():
    for study, before in ((limited_on_patients(), rates_on_patients()), (limited_on_phantoms(), rates_on_phantoms())):
        assert not set(study.seeds) & set(before.seeds) and study.recipe == before.recipe
        runs = {run.network.name: run for run in study.runs() if run.seed == study.seeds[0]}
        for name, run in runs.items():
            module = build_module(run)
            groups = parameter_groups(module, 4e-3) if module.limit_phi else [{"lr": 4e-3}]
            limit = next((limit for h, limit in ((128, 2e-3), (256, 1e-3)) if f", h {h}, limited, " in name), None)
            assert [group["lr"] for group in groups] == [4e-3] + ([limit] if limit else []), name
        assert {c.other for c in study.comparisons} == {"Base, 0.004"}
        assert {c.network for c in study.comparisons} == set(runs) - {"Base, 0.004"}
    assert limited_on_phantoms().data[0].phantoms.seed != rates_on_phantoms().data[0].phantoms.seed


def test_the_anchored_form_is_the_recommended_one_with_seeds_of_its_own():
    """Its control has the loss of Base, step for step."""
    phantoms = {study.data[0].phantoms.seed for study in (rates_on_phantoms(), limited_on_phantoms())}
    assert anchored_on_phantoms().data[0].phantoms.seed not in phantoms
    for study, before in (
        (anchored_on_patients(), limited_on_patients()),
        (anchored_on_phantoms(), rates_on_phantoms()),
    ):
        assert not set(study.seeds) & set(before.seeds) and study.recipe == before.recipe
        runs = {run.network.name: run for run in study.runs() if run.seed == study.seeds[0]}
        assert len(study.comparisons) == len(runs) - 2 == 4 * (len(runs) // 4)
        losses = {}
        for name, run in runs.items():
            torch.manual_seed(run.seed)
            module = build_module(run)
            if run.network.variant == "scp":
                assert module.limit_phi == SegmentationModule().limit_phi
                assert module.network.head.anchored and build_network("scp").head.anchored
            image = torch.randn(2, 2, 16, 24, generator=torch.Generator().manual_seed(0))
            place = {"affine": torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 5]]), "extent": torch.tensor([16.0, 24, 9])}
            optimizer = torch.optim.Adam(parameter_groups(module, module.learning_rate))
            losses[name] = []
            for _ in range(4):
                optimizer.zero_grad()
                loss = (module.network(image, **place) - image[:, :1]).square().mean()
                loss.backward()
                optimizer.step()
                losses[name].append(loss.item())
        for name, of_head in losses.items():
            of_base = losses[base_at(runs[name].network.learning_rate)]
            without_positions = "constant" in name or name.startswith("Base")
            assert (of_head == pytest.approx(of_base, rel=1e-3)) == without_positions, (name, of_head, of_base)


def test_no_phi_of_the_studies_from_before_the_limit_is_limited():
    """They have one rate for all of a network, as they had; with the limit it would be the same."""
    reproduced = reproduction(("wmh",), BUDGETS["small"], 1, 1)
    for study in (axes_study(), phantoms_study(), full_resolution_study(), reproduced):
        for run in {run.network.name: run for run in study.runs() if run.network.variant == "scp"}.values():
            module = build_module(run)
            assert not module.limit_phi and len(parameter_groups(module, module.learning_rate)) == 1, run.title


def test_heads_begin_as_base_does():
    runs = [run for run in rates_on_phantoms().runs() if run.seed == 101]
    weights = []
    for run in (runs[0], runs[2], runs[-1]):
        torch.manual_seed(run.seed)
        network = build_module(run).network
        head = network.head.residual if run.network.variant == "scp" else network.head
        weights.append([network.state_dict()[key] for key in network.state_dict() if not key.startswith("head.")])
        weights[-1].append(head.weight.flatten(1))
    assert runs[0].network.variant == "base" and runs[2].network.change != runs[-1].network.change
    assert all(torch.equal(a, b) for other in weights[1:] for a, b in zip(weights[0], other, strict=True))


def test_full_resolution_repeats_the_study_of_patients():
    study, half = full_resolution_study(), patients_study()
    assert set(study.networks) < set(half.networks) and not set(study.seeds) & set(half.seeds)
    (data,), (of_half,) = study.data, half.data
    assert [2 * size for size in of_half.roi_size] == list(data.roi_size) and "1 mm" in data.description
    names = {network.name for network in study.networks}
    assert all({c.network, c.other} <= names for c in study.comparisons)


def test_what_was_found_on_patients_is_confirmed_with_fresh_seeds_and_nothing_else():
    found, again = full_resolution_study(), confirmation_study()
    assert not set(again.seeds) & set(found.seeds) and again.recipe == found.recipe
    assert replace(again.data[0], name=found.data[0].name) == found.data[0]
    assert set(again.networks) < set(found.networks)
    tested = {(c.network, c.other) for c in again.comparisons}
    assert tested < {(c.network, c.other) for c in found.comparisons} and len(tested) == 3
    assert {name for pair in tested for name in pair} == {network.name for network in again.networks}
