"""The demo in miniature, from phantoms to the page."""

import html
import json
import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from scp_models.checkpoints import load_model
from scp_models.errors import UserError
from scp_models.evaluation.metrics import METRICS
from scp_models.report.demo.design import CONTROL, SCP, TESTS
from scp_models.report.demo.pictures import SELECTION
from scp_models.report.demo.run import run

# One process makes what they share.
pytestmark = pytest.mark.xdist_group("demo")

MODELS = ["Base", "Base (double width)", CONTROL, SCP, "Base (5 levels)", "SCP (5 levels)"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    console = Console(record=True, width=100)
    return out, run(out, subjects=6, epochs=1, seeds=2, deep_seeds=1, console=console), console.export_text()


def test_everything_is_there(finished):
    out, report, printed = finished
    assert report == out / "report.html" and printed.strip().splitlines()[-1] == str(report)
    assert len(list((out / "phantoms").rglob("wmh.nii.gz"))) == 6
    assert len(list((out / "checkpoints").rglob("*.ckpt"))) == 4 * 2 + 2 * 1
    split = json.loads((out / "split.json").read_text())
    assert sum(len(members) for members in split.values()) == 6
    for path in (out / "checkpoints").rglob("*.ckpt"):
        assert load_model(path, "wmh").task.roi_size == (80, 112)


def test_predictions_are_in_the_grid_of_the_phantoms(finished):
    out, _, _ = finished
    names = json.loads((out / "split.json").read_text())["test"]
    sources = {"_".join(p.relative_to(out / "phantoms").parent.parts): p for p in out.rglob("wmh.nii.gz")}
    predictions = sorted((out / "predictions").rglob("*.nii.gz"))
    assert len(predictions) == (4 * 2 + 2) * len(names)
    for path in predictions:
        mask, source = nib.load(path), nib.load(sources[path.name.removesuffix(".nii.gz")])
        assert mask.shape == source.shape and np.array_equal(mask.affine, source.affine)
        assert set(np.unique(mask.dataobj)) <= {0, 1}


def test_the_tables_hold_the_pages_numbers(finished):
    out, report, _ = finished
    scores, losses = pd.read_csv(out / "scores.csv"), pd.read_csv(out / "losses.csv")
    results = json.loads((out / "results.json").read_text())
    assert list(results["models"]) == MODELS and set(METRICS) <= set(scores.columns)
    assert len(losses) == 4 * 2 + 2 and losses[["training", "validation"]].notna().all().all()
    page = report.read_text()
    for name in MODELS:
        of_model = scores[scores["model"] == name].groupby("subject")["dice"].mean()
        assert results["models"][name]["scores"]["dice"]["mean"] == pytest.approx(of_model.mean())
        assert f"{of_model.mean():.3f}" in page and name in page
    assert len(results["comparisons"]) == 2 * sum(len(others) for _, others in TESTS)
    # Two test subjects decide nothing, and the page says so.
    assert {c["verdict"] for c in results["comparisons"]} == {"few"} and "too few to say" in page
    assert results["models"]["SCP"]["parameters"] > results["models"]["Base"]["parameters"]


def test_the_page_stands_alone(finished):
    page = finished[1].read_text()
    assert page.count("data:image/") >= 7
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "These are phantoms, not patients" in page and "This demo does not test it" in page


def test_the_page_says_what_its_pictures_and_means_are_of(finished):
    page = html.unescape(finished[1].read_text())
    tested = len(json.loads((finished[0] / "split.json").read_text())["test"])
    assert SELECTION in page
    assert f"over the {tested} test subjects" in page and f"Dice of each of the {tested} test subjects" in page


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="subjects: expected at least 6, got 3"):
        run(tmp_path / "a", subjects=3)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="expected a folder to write to"):
        run(tmp_path / "file" / "out")
    (tmp_path / "of_model").mkdir()
    (tmp_path / "of_model" / "thesis.txt").write_text("")
    with pytest.raises(UserError, match="it holds other files"):
        run(tmp_path / "of_model")
    assert (tmp_path / "of_model" / "thesis.txt").is_file()
