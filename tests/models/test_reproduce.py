"""The paper's study in miniature: every table and figure, resumed, and what the budgets are."""

import csv
import html
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from scp_kernels import FusedSCP
from scp_models.networks import build_network
from scp_models.networks.paper_style import PaperStyle
from scp_models.report.html import signed
from scp_models.study.design import Recipe
from scp_models.study.forms import FORMS, PixelwiseBias, ScaleAndShift
from scp_models.study.progress import Display
from scp_models.study.record import read_record
from scp_models.study.reproduce import costs as costs_module
from scp_models.study.reproduce.costs import PAPER_OPERATOR, measure_printed_costs
from scp_models.study.reproduce.design import AGAINST, BUDGETS, REPRODUCED_TASKS, TESTED, ablation_names, reproduction
from scp_models.study.reproduce.document import describe_reproduction, facts_text, saving, table_text
from scp_models.study.reproduce.paper import LITS, WMH
from scp_models.study.reproduce.pictures import lesion_density
from scp_models.study.reproduce.run import read_costs, reproduce
from scp_models.study.reproduce.tables import mean_of, printed_score_table
from tests.support.processes import ROOT
from tests.support.tolerances import relative_error

# One process makes what they share.
pytestmark = pytest.mark.xdist_group("reproduce")

PAGE = ROOT / "docs" / "reproduction.md"
PUBLISHED = ROOT / "docs" / "studies" / "reproduction"

SMALL = BUDGETS["small"]
TINY = replace(
    SMALL,
    scale=8,
    recipe=Recipe(steps=2, learning_rate=1e-3, batch_size=4),
    roi_size={"wmh": (32, 48), "lits": (32, 32)},
    phantoms={"wmh": (5, {"size": (32, 48, 3)}), "lits": (5, {"size": (32, 32, 3)})},
    split=(2, 1, 2),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("reproduce") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUDGETS, "small", TINY)
        console = Console(file=io.StringIO(), width=200)
        report = reproduce(out, seeds=1, jobs=2, display=Display("tiny", console))
        yield out, html.unescape(report.read_text())


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_row_of_both_tables_is_there_beside_the_papers(finished):
    out, page = finished
    for number, printed in ((1, WMH), (2, LITS)):
        table = rows(out / f"table-{number}.csv")
        assert [row["network"] for row in table] == list(printed)
        for row in table:
            assert float(row["paper_dice"]) == printed[row["network"]].dice
            for value in printed[row["network"]]:
                assert f"({value:.2f})" in page
    assert "a quarter of the printed Nc" in page and "On phantoms, not patients" in page


def test_the_tables_hold_the_records_means(finished):
    out, page = finished
    record = read_record(out / "study.json")
    for number, data in ((1, "WMH"), (2, "LiTS")):
        for row in rows(out / f"table-{number}.csv"):
            scores = record.scores(data, row["network"], "dice")
            assert float(row["dice"]) == pytest.approx(100 * scores.mean())
            assert float(row["dice_sd_subjects"]) == pytest.approx(scores.mean(0).std(ddof=1))
            assert f"{100 * scores.mean():.2f} (" in page


def test_l_f1_is_that_of_the_means(finished):
    record = read_record(finished[0] / "study.json")
    tpr, ppv = (record.scores("WMH", TESTED, key).mean() for key in ("lesion_tpr", "lesion_ppv"))
    expected = 200 * tpr * ppv / (tpr + ppv) if tpr + ppv else 0.0
    assert mean_of(record, "WMH", TESTED, "lesion_f1") == pytest.approx(expected)


def test_the_best_of_each_group_is_bold(finished):
    out, page = finished
    table = rows(out / "table-1.csv")
    group = [float(row["dice"]) for row in table[:4]]
    best = table[int(np.argmax(group))]
    assert f"<b>{max(group):.2f} ({float(best['paper_dice']):.2f})</b>" in page


def test_lesion_scores_above_100_percent_are_not_bold():
    """Base B 128 covered several lesions with each of its own in one training."""
    record, costs = read_record(PUBLISHED / "study.json"), read_costs(PUBLISHED / "costs.json")
    assert mean_of(record, "WMH", "Base B 128", "lesion_ppv") > 500
    table = printed_score_table(record, "WMH", "wmh", 1, costs, "")
    bold = {row[0].text: [cell.bold for cell in row[1:6]] for row in table.rows}
    assert not any(bold["Base B 128"][1:4]), "L-Dice, L-F1 and L-PPV, in which it is the highest"
    for names in ([*bold][k : k + 4] for k in (0, 4, 8)):
        assert all(sum(column) >= 1 for column in zip(*(bold[name] for name in names), strict=True))


def test_costs_stand_beside_the_papers(finished):
    table = {row["network"]: row for row in rows(finished[0] / "table-1.csv")}
    assert float(table["Base 128"]["memory"]) == float(table["Base 128"]["macs"]) == 1.0
    assert float(table["SCP 512"]["paper_memory"]) == 7.94
    # All 12 parameter ratios are the paper's; the operator here executes fewer multiply-adds and keeps less.
    for row in table.values():
        assert float(row["parameters"]) == pytest.approx(float(row["paper_parameters"]), rel=0.015)
    for capacity in (128, 256, 512):
        ours, base = table[f"SCP {capacity}"], table[f"Base {capacity}"]
        assert float(ours["macs"]) < float(ours["paper_macs"]) and float(ours["memory"]) < 1.1 * float(base["memory"])


def test_every_figure_is_there(finished):
    _, page = finished
    assert re.search(
        r"SCP 256 against Base 512: memory −\d+\.\d % \(paper's operator −\d+\.\d %, printed −23\.8 %\)", page
    )
    for figure in (1, 2, 5, 6, 7):
        assert re.search(rf"Fig\. {figure}\b", page), figure
    # A case, lesions and weights of both tasks, the box plots, the costs.
    assert page.count("data:image/") == 3 * 2 + 2
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_ablations_differ_in_one_thing_and_cost_something(finished):
    table = {row["network"]: row for row in rows(finished[0] / "ablations.csv")}
    assert list(table) == [TESTED, *ablation_names(TINY)]
    parameters = {name: float(row["parameters"]) for name, row in table.items()}
    assert parameters["P and Q (eq. 10)"] > 1 and parameters["pixel-wise bias (eq. 11)"] > 1
    assert parameters["last ReLU"] == parameters["constant position"] == parameters["Φ scaled for Adam"] == 1
    assert parameters["no logit bias"] < 1 < parameters["frame foreground"]


def test_the_report_begins_with_what_came_out(finished):
    out, page = finished
    record = read_record(out / "study.json")
    mean = float((record.scores("LiTS", TESTED, "dice") - record.scores("LiTS", "Base 512", "dice")).mean())
    begin = re.search(r"<p>LiTS: Dice of SCP 256 against (.*)</p>", page)
    assert begin and f"({signed(mean)}, " in begin[1].split("; Base")[1] and "; the paper +0.0135)" in begin[1]


def test_scores_of_every_subject_are_there(finished):
    out, _ = finished
    record = read_record(out / "study.json")
    table = rows(out / "scores.csv")
    assert len(table) == sum(len(run["subjects"]) for run in record.content["runs"])
    first, run = table[0], record.content["runs"][0]
    assert (first["network"], float(first["dice"])) == (run["network"], run["scores"]["dice"][0])


def test_the_same_command_again_writes_the_same_report(finished):
    out, page = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("run.json")}
    console = Console(file=io.StringIO(), width=200)
    assert html.unescape(reproduce(out, seeds=1, display=Display("tiny", console)).read_text()) == page
    assert {path: path.stat().st_mtime_ns for path in out.rglob("run.json")} == before


def test_the_page_says_what_the_report_says(finished, tmp_path):
    out, report = finished
    page = tmp_path / "docs" / "reproduction.md"
    page.parent.mkdir()
    reproduce(out, seeds=1, display=Display("tiny", Console(file=io.StringIO(), width=200)), page=page)
    text = page.read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^]]+\]\((.*?)\)\n\n(.*)\n", text)
    assert len(pictures) == report.count("data:image/") and all((page.parent / path).is_file() for path, _ in pictures)
    assert all(caption.replace(r"\*", "*") in report for _, caption in pictures)
    for row in rows(out / "table-1.csv"):
        assert f"{float(row['dice']):.2f} ({float(row['paper_dice']):.2f})" in text


def test_the_published_page_is_what_its_record_says():
    record, costs = read_record(PUBLISHED / "study.json"), read_costs(PUBLISHED / "costs.json")
    study = reproduction(REPRODUCED_TASKS, SMALL, len(record.seeds), 3)
    described = describe_reproduction(record, study, SMALL, costs)
    text = PAGE.read_text(encoding="utf-8")
    for table in described.tables:
        assert table_text(table) in text
    assert all(f"{sentence}\n" in text for sentence in described.summary)
    assert facts_text(described) in text and saving(costs) in text
    # What the README and docs/when_scp_helps.md say of it.
    assert all("; Base 512, lower (−0.0" in sentence for sentence in described.summary)
    pictures = re.findall(r"!\[[^]]+\]\((.*?)\)", text)
    assert len(pictures) == 3 * 2 + 2 and all((PAGE.parent / path).is_file() for path in pictures)


def test_budgets_have_every_row_and_paper_is_the_printed_recipe():
    for budget in BUDGETS.values():
        study = reproduction(REPRODUCED_TASKS, budget, 3, 3)
        names = [n.name for n in study.networks if n.only_on is None]
        assert names == list(WMH) and len(study.data) == 2 and len(study.seeds) == 3
        assert set(AGAINST) <= set(names)
    paper = reproduction(("wmh",), BUDGETS["paper"], 3, 1)
    assert (paper.recipe.epochs, paper.recipe.learning_rate, paper.recipe.batch_size) == (90, 1e-3, 14)
    assert paper.recipe.sampling == "slices" and BUDGETS["small"].recipe.sampling is None
    assert {n.preset for n in paper.networks if n.only_on is None} == {"paper"}
    assert {n.capacity for n in paper.networks if n.only_on is None} == {128, 256, 512}
    real = reproduction(("wmh",), BUDGETS["small"], 1, 3, frozenset(("wmh",)))
    assert real.data[0].phantoms is None and real.data[0].folds == 3


def network(**options):
    torch.manual_seed(0)
    return build_network("scp", capacity=64, levels=2, **options)


def test_the_papers_operator_is_the_same_function():
    plain = network(preset="paper").double().eval()
    image = torch.randn(2, 2, 24, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = plain(image)
        assert isinstance(plain.head, FusedSCP)
        plain.head = PaperStyle(plain.head)
        assert relative_error(plain(image), expected) < 1e-12


def test_forms_of_the_paper_compute_what_they_say():
    """Eq. 10 and eq. 11, written out pixel by pixel."""
    image = torch.randn(2, 2, 16, 24)
    for name, kind in (("pixelwise bias", PixelwiseBias), ("scale and shift", ScaleAndShift)):
        changed = network()
        FORMS[name](changed)
        head = changed.head
        assert isinstance(head, kind)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
            features, field = changed.features(image), head.weight_field((16, 24))
            if isinstance(head, PixelwiseBias):
                expected = (features * field[0, :-1]).sum(1) + field[0, -1] + head.bias
            else:
                w = head.classifier.weight[0]
                expected = (w * (features * field[0] + field[1])).sum(1) + head.logit_bias
            assert relative_error(changed(image)[:, 0], expected) < 1e-5


def test_changed_forms_begin_as_a_plain_classifier():
    """Where Φ begins at 0, so do eqs. 10 and 11: only then do ablations differ in the form alone."""
    image = torch.randn(1, 2, 16, 24)
    changed = network()
    FORMS["scale and shift"](changed)
    features = changed.features(image)
    assert isinstance(changed.head, ScaleAndShift)
    expected = changed.head.classifier(features) - 3.0
    assert relative_error(changed(image), expected) < 1e-6
    plain, scaled = network(), network()
    FORMS["scaled"](scaled)
    assert isinstance(plain.head, FusedSCP) and isinstance(scaled.head, FusedSCP)
    assert plain.head.phi_scale is None and scaled.head.phi_scale is not None and scaled.head.phi_scale < 1
    with pytest.raises(ValueError, match="expected an SCP head"):
        FORMS["no logit bias"](build_network("base", capacity=32))


def test_memory_is_what_autograd_keeps(monkeypatch):
    monkeypatch.setattr(costs_module, "PRINTED_CAPACITIES", (128,))
    rows_by_name = {(row.name, row.operator): row for row in measure_printed_costs()}
    ours, theirs = rows_by_name["SCP 128", "ours"], rows_by_name["SCP 128", PAPER_OPERATOR]
    assert theirs.memory > 1.2 * ours.memory and theirs.parameters == ours.parameters
    assert theirs.paper == (1.78, 1.42, 1.02) and ours.paper is None
    assert theirs.macs == pytest.approx(1.42, rel=0.015) and ours.macs < theirs.macs


class _OneSubject:
    """A cache of one subject whose only lesion voxel lies at a known place of its box."""

    class _Places:
        affine = torch.tensor([[[2.0, 0.0, 1.0], [0.0, 2.0, 1.0], [0.0, 0.0, 30.0]]])
        extent = torch.tensor([[20.0, 40.0, 60.0]])

    def open(self, subject):
        label = np.zeros((1, 10, 20), np.uint8)
        label[0, 5, 10] = 1
        return None, label

    def positions(self, subject):
        return self._Places()


def test_lesions_are_counted_where_they_lie_in_the_box():
    density = lesion_density(_OneSubject(), ["somebody"])
    assert density.sum() == pytest.approx(1)
    # The voxel is p = 10 to 12 of 20, 20 to 22 of 40, and, of a single slice, 30 of 60: every bin that it touches.
    h, w, z = (set(axis.tolist()) for axis in np.nonzero(density))
    assert set(range(32, 38)) <= h <= set(range(32, 39)) and w == set(range(40, 44)) and z == {28}


def test_the_record_says_what_was_run(finished):
    content = json.loads((finished[0] / "study.json").read_text())
    assert content["study"]["recipe"]["steps"] == 2 and len(content["runs"]) == 12 * 2 + 13
