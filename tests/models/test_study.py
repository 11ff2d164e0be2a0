"""Studies: what is run, what is kept when it is stopped, what is shown of it."""

import io
import json
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from scp_models.data.find import find_subjects
from scp_models.data.subjects import Subject
from scp_models.data.tasks import get_task
from scp_models.errors import UserError
from scp_models.study.design import Network, NetworkPair
from scp_models.study.frames import patients_study
from scp_models.study.prepared import stratified_folds
from scp_models.study.progress import Display, duration, time_left
from scp_models.study.record import read_record
from scp_models.study.runner import read_result, run_study
from scp_models.study.threshold import THRESHOLDS, choose_threshold
from tests.support.commands import refused, scp_models
from tests.support.processes import environment, run_python
from tests.support.tiny_study import tiny_study

# One process makes what they share.
pytestmark = pytest.mark.xdist_group("study")

REAL = Path(__file__).parents[3] / "shared" / "real" / "white_matter_lesions"
RUNS = 6


@pytest.fixture(autouse=True, scope="module")
def elsewhere(tmp_path_factory):
    """The server of the runs' processes imports from its working directory first, which else is the checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study that nobody stopped, what it printed, and its folder."""
    out = tmp_path_factory.mktemp("study") / "out"
    console = Console(file=io.StringIO(), width=200)
    run_study(tiny_study(), out, jobs=2, display=Display("tiny", console))
    return out, console.file.getvalue()


def figures(path: Path) -> dict:
    """All of a record but the seconds, which are never the same."""
    content = json.loads(path.read_text())
    for run in content["runs"]:
        del run["seconds"]
    return content


def test_a_study_runs_every_network_with_every_seed(finished):
    out, _ = finished
    record = read_record(out / "study.json")
    assert len(record.content["runs"]) == RUNS
    for network in ("Base", "SCP, slice", "SCP, foreground"):
        runs = record.runs("Small phantoms", network)
        assert [run["seed"] for run in runs] == [0, 1] and all(len(run["subjects"]) == 2 for run in runs)
        assert all(run["threshold"] in THRESHOLDS and len(run["losses"]) == 10 for run in runs)
        # Seeds differ in weights and order: the same losses would be one training counted twice.
        assert runs[0]["losses"] != runs[1]["losses"]
    frames = [record.runs("Small phantoms", f"SCP, {frame}")[0]["losses"] for frame in ("slice", "foreground")]
    assert frames[0] != frames[1]
    (machine,), (versions,) = record.content["machines"], record.content["versions"]
    assert machine["device"] and machine["cores"] >= 1 and versions["torch"] and versions["python"]
    assert record.content["presets"]["recommended"]["zero_init"] is True


def test_a_run_says_how_it_was_made(finished):
    out, _ = finished
    (path,) = (out / "runs" / "small-phantoms" / "scp-foreground").glob("seed-1/run.json")
    settings = json.loads(path.read_text())["settings"]
    assert settings["recipe"] == {
        "steps": 12, "epochs": None, "learning_rate": 4e-3, "batch_size": 6, "weight_decay": 1e-6,
        "sampling": None,
    }  # fmt: skip
    assert settings["network"]["frame"] == "foreground" and settings["network"]["preset_values"]["logit_bias"] is True
    assert settings["data"]["phantoms"]["seed"] == 5 and settings["seed"] == 1


def test_without_a_terminal_there_is_a_line_per_run(finished):
    lines = [line for line in finished[1].splitlines() if " runs, " in line]
    assert [re.match(r"(\d) of (\d) runs", line).groups() for line in lines] == [
        (str(k), str(RUNS)) for k in range(1, RUNS + 1)
    ]
    assert all(re.search(r" left; Small phantoms: .*, seed \d: Dice \d\.\d+ \(\d+ s\)", line) for line in lines)
    assert ", 0 s left" in lines[-1] and "\x1b" not in finished[1]


def test_killing_it_at_random_points_changes_no_figure(finished, tmp_path):
    """Phantoms, preprocessing, trainings: wherever it was, the same command goes on, and the record is the same."""
    out = tmp_path / "out"
    arguments = ("-m", "tests.support.tiny_study", str(out))
    rng, killed_with = random.Random(0), []
    for _ in range(3):
        command = [sys.executable, *arguments]
        with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            # The first line is printed once the imports are done; then anything may be going on.
            process.stdout.readline()
            time.sleep(rng.uniform(0.1, 3.5))
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL and not (out / "study.json").exists()
        killed_with.append(sorted(out.rglob("run.json")))
    assert all(set(a) <= set(b) for a, b in pairwise(killed_with))
    stamps = {path: path.stat().st_mtime_ns for path in killed_with[-1]}
    done = run_python(*arguments)
    if stamps:
        assert f"{len(stamps)} finished runs are kept, {RUNS - len(stamps)} are left" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert figures(out / "study.json") == figures(finished[0] / "study.json")


def test_a_half_run_is_redone_from_scratch(finished, tmp_path):
    (one,) = [run for run in tiny_study().runs() if run.network.name == "Base" and run.seed == 0]
    folder = tmp_path / "runs" / one.folder
    folder.mkdir(parents=True)
    (folder / "model.ckpt").write_text("half")
    assert read_result(tmp_path, one) is None


def test_a_finished_study_only_writes_its_record_again(finished):
    out, _ = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("run.json")}
    console = Console(file=io.StringIO(), width=200)
    run_study(tiny_study(), out, display=Display("tiny", console))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("run.json")} == before
    assert " runs, " not in console.file.getvalue()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda study: replace(study, recipe=replace(study.recipe, learning_rate=1e-3)),
            "learning_rate: 0.004, not 0.001",
        ),
        (lambda study: replace(study, seeds=(0, 1, 2)), r"seeds: \[0, 1\], not \[0, 1, 2\]"),
    ],
)
def test_another_study_is_not_taken_for_this_one(finished, change, named):
    with pytest.raises(UserError, match=named):
        run_study(change(tiny_study()), finished[0])


def test_other_words_leave_the_runs_as_they_are(finished):
    """A better description costs no training; the record has it."""
    study = tiny_study()
    worded = replace(study, notes=("A note.",), data=tuple(replace(d, description="Better.") for d in study.data))
    before = {path: path.stat().st_mtime_ns for path in finished[0].rglob("run.json")}
    record = read_record(run_study(worded, finished[0], display=Display("tiny", Console(file=io.StringIO()))))
    assert {path: path.stat().st_mtime_ns for path in finished[0].rglob("run.json")} == before
    assert record.content["study"]["notes"] == ["A note."] and record.data[0]["description"] == "Better."
    run_study(study, finished[0], display=Display("tiny", Console(file=io.StringIO())))


def test_another_meaning_of_the_preset_is_another_setting(finished, monkeypatch):
    """Runs of before a change of the recommended form and runs of after it make no comparison."""
    from scp_models.networks.segmentation import PRESETS

    monkeypatch.setitem(PRESETS, "recommended", replace(PRESETS["recommended"], zero_init=False))
    with pytest.raises(UserError, match="zero_init: True, not False"):
        run_study(tiny_study(), finished[0])


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"expected an empty folder or one of a study, it holds 'thesis\.txt'"):
        run_study(tiny_study(), tmp_path)


def test_a_run_that_fails_does_not_stop_the_others(finished, tmp_path):
    import shutil

    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    for name in ("settings.json", "study.json"):
        (out / name).unlink()
    (out / "settings.json").write_text(json.dumps(failing_study().as_json()))
    console = Console(file=io.StringIO(), width=200)
    with pytest.raises(UserError, match=r"expected 8 finished runs, 2 ended without a result .*nowhere"):
        run_study(failing_study(), out, jobs=1, display=Display("tiny", console))
    assert len(list(out.rglob("run.json"))) == RUNS and not (out / "study.json").exists()


def failing_study():
    study = tiny_study()
    return replace(study, networks=(*study.networks, Network("SCP, file", "scp", "nowhere/{subject}.tfm", capacity=32)))


def test_on_a_terminal_there_is_one_display():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120)
    with Display("A study", console) as display:
        display.begin({"first": 3.0, "second": 1.0}, kept=2)
        display.advance("first", 0.5)
        display.finish("first", "Dice 0.5")
        assert "3 of 4 runs" in display.status()
        display.finish("second", "Dice 0.6")
        assert display.status().endswith("0 s left")
    assert "A study" in stream.getvalue() and "Dice" not in stream.getvalue()


def test_time_left_counts_work_and_not_runs():
    assert time_left(0, 10, 5) is None and time_left(2, 10, 5) == 20 and time_left(10, 10, 5) == 0
    assert [duration(s) for s in (None, 45, 720, 7500)] == ["?", "45 s", "12 min", "2 h 05 min"]


def test_the_threshold_is_that_of_the_highest_dice():
    label = np.array([[[1, 1, 0, 0, 2]]])
    probabilities = np.array([[[0.9, 0.35, 0.33, 0.1, 0.99]]])
    # Between 0.33 and 0.35 nothing is wrong; the grid has no such value, 0.321 takes a false one, 0.378 loses a true.
    assert choose_threshold([(probabilities, label)]) == pytest.approx(0.321, abs=5e-4)
    probabilities[0, 0, 1] = 0.38
    assert choose_threshold([(probabilities, label)]) == pytest.approx(0.378, abs=5e-4)
    # Of equals the one nearest to 0.5; what is ignored does not count.
    probabilities[0, 0, 1:3] = 0.9, 0.1
    assert choose_threshold([(probabilities, label)]) == 0.5


def test_thresholds_reach_networks_that_are_sure_of_themselves():
    label = np.array([[[1, 1, 0, 0]]])
    assert 0.998 < choose_threshold([(np.array([[[0.9995, 0.9992, 0.998, 0.1]]]), label)]) < 0.9992
    assert 0.0012 < choose_threshold([(np.array([[[0.002, 0.5, 0.0012, 0.0]]]), label)]) < 0.002
    assert THRESHOLDS[-1] > 0.999 and THRESHOLDS[0] < 0.001 and all(a < b for a, b in pairwise(THRESHOLDS))


def test_the_threshold_is_what_trying_each_would_choose():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, (2, 6, 5, 4))
    probabilities = (1 / (1 + np.exp(-rng.normal(2 * (label == 1), 2)))).astype(np.float32)
    means = []
    for threshold in THRESHOLDS:
        scores = []
        for p, marks in zip(probabilities, label, strict=True):
            mask, target = (p > threshold) & (marks != 2), marks == 1
            scores.append(2 * (mask & target).sum() / (mask.sum() + target.sum()))
        means.append(np.mean(scores))
    best = [t for t, mean in zip(THRESHOLDS, means, strict=True) if mean >= max(means) - 1e-12]
    assert choose_threshold(list(zip(probabilities, label, strict=True))) == min(best, key=lambda t: abs(t - 0.5))


def subjects(**sites: int) -> list[Subject]:
    return [
        Subject(f"{site}_{k}", (Path("x"),), Path("y"), site) for site, count in sites.items() for k in range(count)
    ]


def test_folds_test_everybody_once_and_every_site_alike():
    everybody = subjects(A=8, B=5, C=3)
    folds = stratified_folds(everybody, 3, 2, 0, "here")
    tested = [name for fold in folds for name in fold["test"]]
    assert sorted(tested) == sorted(s.name for s in everybody)
    for fold in folds:
        assert sorted(name for names in fold.values() for name in names) == sorted(tested)
        assert len(fold["test"]) in (5, 6) and len(fold["validation"]) == 2
        by_site = [sum(name.startswith(site) for name in fold["test"]) for site in "ABC"]
        assert by_site[0] in (2, 3) and by_site[1] in (1, 2) and by_site[2] == 1
    assert folds == stratified_folds(everybody[::-1], 3, 2, 0, "here")
    assert folds != stratified_folds(everybody, 3, 2, 1, "here")
    with pytest.raises(UserError, match="expected more subjects than 3"):
        stratified_folds(subjects(A=3), 3, 2, 0, "here")


def test_full_resolution_is_for_patients(tmp_path):
    result = scp_models("study", "frames", "--out", tmp_path, "--full-resolution", check=False)
    refused((result.returncode, result.stdout, result.stderr), "--full-resolution", "--data")
    result = scp_models("study", "frames", "--out", tmp_path, "--data", tmp_path, "--confirm", check=False)
    refused((result.returncode, result.stdout, result.stderr), "--confirm", "--full-resolution")


def test_real_patients_are_divided_by_site():
    if not REAL.is_dir():
        pytest.skip("no real patients beside this checkout (../shared/real)")
    everybody = find_subjects(REAL, get_task("wmh"))
    folds = stratified_folds(everybody, 3, 2, 0, str(REAL))
    assert sorted(name for fold in folds for name in fold["test"]) == sorted(s.name for s in everybody)
    assert all(sum("OpenMS" in name for name in fold["test"]) == 1 for fold in folds)


def test_a_study_of_real_patients(tmp_path):
    """A part of them, two steps: their files go all the way to scores."""
    if not REAL.is_dir():
        pytest.skip("no real patients beside this checkout (../shared/real)")
    for site in ("TabrizA", "TabrizB"):
        for folder in sorted((REAL / site).iterdir())[:3]:
            (tmp_path / "data" / site).mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / site / folder.name).symlink_to(folder)
    study = patients_study(seeds=1, folds=2, steps=2)
    (data,) = study.data
    data = replace(data, roi_size=(40, 56), task_options={"spacing": [4.0]}, validation=1)
    networks = tuple(n for n in study.networks if n.name in ("Base", "SCP, foreground"))
    comparisons = (NetworkPair(data.name, "SCP, foreground", "Base"),)
    study = replace(study, data=(data,), networks=networks, comparisons=comparisons)
    console = Console(file=io.StringIO(), width=200)
    path = run_study(study, tmp_path / "out", folders={data.name: tmp_path / "data"}, display=Display("real", console))
    record = read_record(path)
    assert record.scores(data.name, "Base", "dice").shape == (1, 6)
    assert str(tmp_path) not in path.read_text()
