"""The page on when SCP helps: held to the studies' records, and honest about what they show."""

import json
from pathlib import Path

import numpy as np
import pytest

from scp_models.errors import UserError
from scp_models.study.advice import links_below, sentences_of
from scp_models.study.analysis import differences, spread
from scp_models.study.chapters import panels, picture_of, picture_rows
from scp_models.study.design import NetworkPair
from scp_models.study.frames import FRAME_CONTROL, patients_study, phantoms_study
from scp_models.study.markdown import widened
from scp_models.study.page import (
    EVERYTHING_PICTURE,
    PAGE_BEGIN,
    PAGE_END,
    PICTURE,
    advice_with_picture,
    page_text,
    read_advice,
    replace_advice,
    write_page,
)
from scp_models.study.rates import head_at, limited_on_patients, rates_on_patients, rates_on_phantoms
from scp_models.study.record import FORMAT, read_record
from tests.support.commands import scp_models

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "docs" / "studies").glob("*.json"))
PAGE = ROOT / "docs" / "when_scp_helps.md"
ADVICE = ROOT / "docs" / "studies" / "advice.md"


def record_of(study, path: Path, means: dict[str, float], noise: float = 0.02):
    """A record with made-up scores around these means."""
    rng = np.random.default_rng(0)
    runs = []
    for data in study.data:
        for network in study.networks:
            for seed in study.seeds:
                scores = np.clip(means.get(network.name, 0.5) + rng.normal(0, noise, 20), 0, 1).round(5).tolist()
                of_run = {key: scores for key in ("dice", "lesion_dice", "challenge_f1")}
                runs.append({
                    "data": data.name, "network": network.name, "seed": seed, "fold": None, "scores": of_run,
                    "subjects": [f"s{k:02d}" for k in range(20)], "threshold": 0.5, "losses": [1.0], "parameters": 1,
                    "macs": 1, "seconds": {"training": 1.0, "scoring": 1.0},
                })  # fmt: skip
    parts = {"training": 50, "validation": 6, "test": 20}
    path.write_text(json.dumps({
        "format": FORMAT, "study": {**study.as_json(), "runs": len(runs)}, "presets": {"recommended": {"bias": True}},
        "data": {d.name: {"subjects": 76, "sites": {"A": 76}, "parts": [parts]} for d in study.data},
        "machines": [{"device": "a machine", "cores": 2, "system": "Linux"}], "versions": [{"torch": "2"}],
        "runs": runs,
    }))  # fmt: skip
    return read_record(path)


@pytest.fixture(scope="module")
def gain(tmp_path_factory):
    """SCP is far above all else in the frame foreground, and as the others in the two others."""
    return record_of(phantoms_study(), tmp_path_factory.mktemp("gain") / "study.json", {"SCP, foreground": 0.8})


@pytest.fixture(scope="module")
def null(tmp_path_factory):
    """Nothing differs, but that SCP loses in one frame."""
    return record_of(patients_study(), tmp_path_factory.mktemp("null") / "study.json", {"SCP, slice": 0.3})


def test_the_page_is_what_the_records_say():
    records = [read_record(path) for path in STUDIES]
    assert records, "no study.json below docs/studies"
    outcomes = {record.name: differences(record) for record in records}
    advice = read_advice(records, outcomes, ADVICE)
    assert PAGE.read_text(encoding="utf-8") == page_text(records, outcomes, advice)
    block = f"{PAGE_BEGIN}\n\n{links_below(advice_with_picture(advice), 'docs/')}\n\n{PAGE_END}"
    assert block in (ROOT / "README.md").read_text(encoding="utf-8")
    assert advice.picture and (PAGE.parent / PICTURE).is_file() and (PAGE.parent / EVERYTHING_PICTURE).is_file()
    assert all((PAGE.parent / picture_of(record)).is_file() for record in records if not record.axes)


def test_published_records_hold_scores_and_no_paths():
    for path in STUDIES:
        text = path.read_text(encoding="utf-8")
        assert path.stat().st_size < 600_000 and "/home" not in text and "/tmp" not in text
        record = read_record(path)
        study = record.content["study"]
        runs = sum(len(record.seeds) * (d["folds"] or 1) * len(record.networks(d["name"])) for d in record.data)
        assert len(record.content["runs"]) == study["runs"] == runs
        for run in record.content["runs"]:
            assert all(len(values) == len(run["subjects"]) for values in run["scores"].values())


def test_spreads_over_seeds_and_over_subjects_are_told_apart(tmp_path):
    study = phantoms_study(seeds=2)
    record = record_of(study, tmp_path / "study.json", {})
    data = study.data[0].name
    for run in record.content["runs"]:
        # Seed 31 scores 0.4 and seed 32 0.6 on the one half of the subjects, 0.6 and 0.8 on the other.
        run["scores"]["dice"] = [0.4 + 0.2 * (run["seed"] - 31) + 0.2 * (k % 2) for k in range(20)]
    outcomes = spread(record, data, "Base", "dice")
    assert outcomes.mean == pytest.approx(0.6)
    assert outcomes.seeds == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert outcomes.subjects == pytest.approx(np.std([0.5, 0.7] * 10, ddof=1))


def test_a_comparison_is_paired_and_averaged_over_the_seeds(tmp_path):
    """Subjects and seeds differ by far more than the networks do, and cancel."""
    study = phantoms_study()
    record = record_of(study, tmp_path / "study.json", {})
    for run in record.content["runs"]:
        gain = 0.01 if run["network"] == "SCP, foreground" else 0.0
        run["scores"]["dice"] = [0.02 * k + 0.05 * (run["seed"] - 31) + gain for k in range(20)]
        # Subjects in another order: they are paired by name.
        if run["seed"] == 32:
            run["subjects"], run["scores"]["dice"] = run["subjects"][::-1], run["scores"]["dice"][::-1]
    over_base = [
        d for d in differences(record) if (d.comparison.network, d.comparison.other) == ("SCP, foreground", "Base")
    ]
    for difference in over_base:
        i = difference.interval
        assert (i.family_low, i.mean, i.family_high) == pytest.approx((0.01, 0.01, 0.01))
        assert difference.by_seed == pytest.approx((0.01, 0.01, 0.01)) and difference.verdict == "higher"


def test_a_difference_that_one_training_does_not_have_is_not_shown(tmp_path):
    """Subjects agree on the mean over seeds, but a seed is an accident that all subjects share."""
    study = phantoms_study()
    record = record_of(study, tmp_path / "study.json", {}, noise=0.0)
    for run in record.content["runs"]:
        if run["network"] == "SCP, slice":
            shift = {31: 0.05, 32: 0.04, 33: -0.001}[run["seed"]]
            run["scores"]["dice"] = [0.5 + shift + 1e-4 * k for k in range(20)]
    pair = NetworkPair(study.data[0].name, "SCP, slice", "Base")
    (difference,) = [d for d in differences(record) if d.comparison == pair]
    assert difference.interval.verdict == "higher" and difference.verdict == "none"
    assert widened(difference).endswith(", but not with every seed")


def test_a_gain_is_called_one(gain):
    outcomes = {gain.name: differences(gain)}
    advice = read_advice([gain], outcomes)
    text = advice.text
    assert text.count("**Use it** if only the") == 2 and "**Do not" not in text
    assert text.count("higher than Base's and its control's in the frames `foreground` (+0.2") == 2
    assert text.count("no gain over both Base and its control was shown in the frames `slice`") == 2
    assert text.count("gave less: SCP − Base F +0.2") == 2
    page = page_text([gain], outcomes, advice)
    assert "widened for 30 comparisons" in page and "a machine, 2 cores, Linux" in page and "preset recommended" in page
    assert "| SCP, foreground | **" in page and "fixed before it was run" in page


def test_a_null_is_called_one(null):
    text = read_advice([null], {null.name: differences(null)}).text
    assert "**Use it**" not in text and "**Do not expect a gain** if lesions look like lesions" in text
    assert "lower than Base's in the frames `slice` (−0.2" in text
    assert "was shown in the frames `image`" in text and "gave as much, as far as was shown" in text


def test_a_gain_that_the_control_has_too_is_not_the_places(tmp_path):
    means = {"SCP, foreground": 0.8, FRAME_CONTROL: 0.8}
    record = record_of(phantoms_study(), tmp_path / "study.json", means)
    assert "**Use it**" not in read_advice([record], {record.name: differences(record)}).text


def test_a_rate_at_which_the_control_loses_is_named(tmp_path):
    lost = head_at(4e-3, 256, "s = 1", control=True)
    record = record_of(rates_on_phantoms(), tmp_path / "study.json", {lost: 0.3})
    text = read_advice([record], {record.name: differences(record)}).text
    assert "s = 1: the control was lower than Base at 0.004, h 256 (−0.1" in text
    assert "s = 1: SCP was lower than Base nowhere; half scaled: the control was lower than Base nowhere" in text


def test_forms_of_phi_that_were_not_trained_are_not_spoken_of(tmp_path):
    record = record_of(rates_on_patients(), tmp_path / "study.json", {})
    (sentence,) = sentences_of(record, differences(record))
    assert "s = 1: SCP was lower than Base nowhere." in sentence and "scaled" not in sentence


def test_a_study_of_rates_has_a_picture_of_its_own(gain, tmp_path):
    record = record_of(rates_on_phantoms(), tmp_path / "study.json", {})
    page = write_page([gain, record], tmp_path / "page.md")
    text = page.read_text()
    assert "told the same position everywhere; scaled is" in text and "Adam 0.001 and 0.004, halved" in text
    assert (tmp_path / picture_of(record)).is_file()
    (rows,) = (picture_rows(record, differences(record), d["name"]) for d in record.data)
    assert len(rows) == 4 and all(len(row) == 6 for row in rows.values())
    alone = write_page([record], tmp_path / "alone" / "page.md")
    assert "How fast Φ learns" in alone.read_text() and (alone.parent / PICTURE).is_file()


def test_of_several_forms_the_picture_of_everything_shows_the_recommended_one(tmp_path):
    record = record_of(limited_on_patients(), tmp_path / "study.json", {})
    ((title, rows),) = panels(record, differences(record))
    assert title == record.title and all(set(row) == {"SCP − Base"} for row in rows.values())
    shown = {name: row["SCP − Base"].comparison.network for name, row in rows.items()}
    assert shown == {
        "Adam 0.004, h 64": head_at(4e-3, 64, "s = 1", control=False),
        "Adam 0.004, h 256": head_at(4e-3, 256, "limited", control=False),
    }
    before = record_of(rates_on_phantoms(), tmp_path / "before.json", {})
    ((_, rows),) = panels(before, differences(before))
    assert all(", s = 1, " in row["SCP − Base"].comparison.network for row in rows.values())
    assert "limited is Φ whose rate is limited by its width" in write_page([record], tmp_path / "page.md").read_text()


def test_a_record_without_all_its_runs_makes_no_page(gain, tmp_path):
    content = json.loads(gain.path.read_text())
    content["runs"].pop()
    (tmp_path / "study.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="expected a run of 'Base B, foreground'"):
        differences(read_record(tmp_path / "study.json"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99, "runs": [1]}', '{"format": 1, "runs": []}'])
def test_a_file_of_something_else_is_no_record(text, tmp_path):
    path = tmp_path / "study.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"study\.json: expected a study\.json of a finished study"):
        read_record(path)


def test_the_command_writes_page_picture_and_readme(gain, null, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{PAGE_BEGIN}\nold\n{PAGE_END}\nafter\n")
    out = tmp_path / "docs" / "page.md"
    done = scp_models("study", "page", gain.path, null.path, "--out", out, "--readme", readme)
    assert done.stdout.strip() == str(out)
    records = [gain, null]
    outcomes = {record.name: differences(record) for record in records}
    advice = read_advice(records, outcomes)
    assert out.read_text() == page_text(records, outcomes, advice) and (out.parent / PICTURE).stat().st_size > 10_000
    text = links_below(advice_with_picture(advice), "docs/")
    assert "(docs/frames.md)" in text and readme.read_text() == f"before\n{PAGE_BEGIN}\n\n{text}\n\n{PAGE_END}\nafter\n"


def test_the_picture_is_the_same_for_the_same_records(gain, tmp_path):
    first, second = (write_page([gain], tmp_path / name / "page.md").parent / PICTURE for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_a_readme_without_the_marks_is_left_alone(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("no marks\n")
    with pytest.raises(UserError, match="expected the lines"):
        replace_advice(readme, "text")
    assert readme.read_text() == "no marks\n"
