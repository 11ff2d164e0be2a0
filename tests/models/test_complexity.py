"""The complexity table against the paper's Table 1, and the counting against layers counted by hand."""

import io
import json

import pytest
from rich.console import Console

from scp_models.networks import build_network, complexity
from scp_models.networks.complexity import as_rich_table, complexity_table, count_parameters, nominal_macs

# Table 1: FLOPs and parameters as ratios to Base 128, copied from the paper and not from the code.
TABLE_1 = """
Base 128 1.00 1.00
Base F 128 1.02 1.00
Base B 128 1.02 1.00
SCP 128 1.42 1.02
Base 256 3.96 4.02
Base F 256 4.00 4.02
Base B 256 4.00 4.02
SCP 256 5.51 4.06
Base 512 15.71 16.06
Base F 512 15.80 16.08
Base B 512 15.82 16.08
SCP 512 21.76 16.22
"""
CELLS = [
    (" ".join(row[:-3]), int(row[-3]), float(row[-2]), float(row[-1]))
    for row in (line.split() for line in TABLE_1.strip().splitlines())
]


@pytest.fixture(scope="module")
def rows():
    return complexity_table()


@pytest.mark.parametrize(("model", "nc", "macs_ratio", "parameters_ratio"), CELLS)
def test_all_cells_of_table_1_within_one_and_a_half_percent(rows, model, nc, macs_ratio, parameters_ratio):
    (row,) = [row for row in rows if (row["model"], row["nc"]) == (model, nc)]
    assert row["macs_ratio"] == pytest.approx(macs_ratio, rel=0.015)
    assert row["parameters_ratio"] == pytest.approx(parameters_ratio, rel=0.015)
    assert (row["paper_macs_ratio"], row["paper_parameters_ratio"]) == (macs_ratio, parameters_ratio)


def test_the_table_has_the_twelve_networks_in_the_papers_order(rows):
    assert [(row["model"], row["nc"]) for row in rows] == [cell[:2] for cell in CELLS]
    assert len(rows) == 12


@pytest.mark.parametrize("variant", ["base", "scp"])
def test_multiply_adds_and_parameters_counted_by_hand(variant):
    # One level, capacity 16: a single channel at full resolution, three 3×3 layers, no way down; Φ is 4 → 8 → 8 → 1.
    network = build_network(variant, in_channels=2, capacity=16, levels=1, preset="paper")
    convolutions = 9 * 2 + 9 + 9
    phi = (4 + 1) * 8 + (8 + 1) * 8 + (8 + 1) * 1 if variant == "scp" else 0
    norms, head = 3 * 2, 1
    assert count_parameters(network) == convolutions + norms + head + phi
    assert nominal_macs(network, 6, 7) == 6 * 7 * (convolutions + head + phi)


def test_a_logit_bias_and_more_classes_are_counted():
    paper = {"in_channels": 1, "capacity": 32, "levels": 1, "num_classes": 3, "last_relu": True}
    plain = build_network("base", **paper, logit_bias=None)
    biased = build_network("base", **paper)
    assert nominal_macs(biased, 5, 5) - nominal_macs(plain, 5, 5) == 5 * 5 * 3
    assert count_parameters(biased) - count_parameters(plain) == 3


def test_counting_leaves_the_network_as_it_was():
    network = build_network("base", capacity=16, levels=2).train()
    nominal_macs(network, 8, 8)
    assert network.training
    assert all(parameter.device.type == "cpu" for parameter in network.parameters())


def test_json_is_a_list_of_objects_with_the_agreed_keys(capsys):
    complexity.main(as_json=True)
    rows = json.loads(capsys.readouterr().out)
    keys = {"model", "nc", "parameters", "macs", "parameters_ratio", "macs_ratio"}
    assert len(rows) == 12
    assert all(keys <= row.keys() for row in rows)
    assert all(type(row[key]) is int for row in rows for key in ("nc", "parameters", "macs"))


def test_the_table_shows_each_ratio_beside_the_papers(rows):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(as_rich_table(rows))
    text = console.export_text()
    assert "5.51 (5.51)" in text
    assert "2.0292 M" in text
    assert text.count("Base F") == 3
