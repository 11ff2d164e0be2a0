"""The report and the regression guard, fed with made-up and with recorded results: no clock here."""

import contextlib
import io
import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import guard, machine, report, tables
from tests.support.processes import ROOT, run_python

RECORDS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def run(module: str, *arguments: object) -> subprocess.CompletedProcess:
    return run_python("-m", f"benchmarks.{module}", *arguments, check=False)


def run_guard(*arguments: object) -> subprocess.CompletedProcess:
    """In this process: there are many."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = guard.main([*map(str, arguments)])
    return subprocess.CompletedProcess(arguments, status, printed.getvalue(), "")


def results(path: Path, ratio: float, vectors: str = "AVX2", device: str = "AMD EPYC") -> Path:
    subjects = {"batch-shared": {"ratio": ratio, "ours": False}, "cpu": {"ratio": 1.0, "ours": True}}
    races = {"operator forward small": {"what": "operator", "subjects": subjects}}
    described = {"kind": "cpu", "device": device, "vectors": vectors}
    path.write_text(json.dumps({"machine": described, "races": races}))
    return path


@pytest.fixture
def floors(tmp_path):
    """Derived from a recorded ratio of 30, so 10."""
    file = tmp_path / "floors.json"
    assert run_guard(results(tmp_path / "recorded.json", 30.0), "--write", "--floors", file).returncode == 0
    assert json.loads(file.read_text()) == {"epyc-avx2": {"operator forward small": {"batch-shared": 10.0}}}
    return file


@pytest.mark.parametrize(("ratio", "status"), [(10.1, 0), (9.9, 1)])
def test_the_guard_fails_under_its_floor(tmp_path, floors, ratio, status):
    done = run_guard(results(tmp_path / "now.json", ratio), "--floors", floors)
    assert done.returncode == status, done.stdout + done.stderr
    assert ("batch-shared takes 9.90 of our time; the floor is 10.0" in done.stdout) == bool(status)


def test_the_guard_fails_where_a_race_was_not_run(tmp_path, floors):
    nothing = tmp_path / "nothing.json"
    nothing.write_text('{"machine": {"kind": "cpu", "device": "AMD EPYC", "vectors": "AVX2"}, "races": {}}')
    done = run_guard(nothing, "--floors", floors)
    assert done.returncode == 1 and "has not been run" in done.stdout


def test_each_instruction_set_has_floors_of_its_own(tmp_path, floors):
    wider = results(tmp_path / "wider.json", 60.0, "AVX512")
    done = run_guard(wider, "--floors", floors)
    assert done.returncode == 1 and "no floors for AVX512" in done.stdout
    assert run_guard(wider, "--write", "--floors", floors).returncode == 0
    assert run_guard(wider, "--floors", floors).returncode == 0
    assert run_guard(results(tmp_path / "now.json", 15.0), "--floors", floors).returncode == 0
    assert run_guard(results(tmp_path / "now.json", 15.0, "AVX512"), "--floors", floors).returncode == 1


def test_each_processor_has_floors_of_its_own_and_a_new_one_half_of_the_lowest(tmp_path, floors):
    slower = "Intel(R) Xeon(R) Processor"
    done = run_guard(results(tmp_path / "now.json", 5.1, device=slower), "--floors", floors)
    assert done.returncode == 0 and "no floors for xeon-avx2 yet: half of the lowest of epyc-avx2" in done.stdout
    recorded = results(tmp_path / "recorded.json", 24.0, device=slower)
    assert run_guard(recorded, "--write", "--floors", floors).returncode == 0
    for device, least in ((slower, 8.0), ("AMD EPYC", 10.0), ("Apple M9", 4.0)):
        for ratio, status in ((least + 0.1, 0), (least - 0.1, 1)):
            now = results(tmp_path / "now.json", ratio, device=device)
            assert run_guard(now, "--floors", floors).returncode == status, (device, ratio)


def test_the_document_is_what_the_records_give(tmp_path):
    """Nothing in docs/benchmarks.md and in the README's verdict is typed by hand, and it is of these records."""
    assert RECORDS
    readme = tmp_path / "README.md"
    kept, begin, block = (ROOT / "README.md").read_text().partition("<!-- written by python -m benchmarks.report")
    mark, _, rest = block.partition("\n")
    readme.write_text(f"{kept}{begin}{mark}\nold figures\n{rest[rest.index('<!-- end') :]}")
    done = run("report", "--out", tmp_path / "benchmarks.md", "--readme", readme)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "benchmarks.md").read_text() == (ROOT / "docs" / "benchmarks.md").read_text()
    assert readme.read_text() == (ROOT / "README.md").read_text()
    drawn = {path.name for path in (tmp_path / "images" / "benchmarks").iterdir()}
    assert drawn == {path.name for path in (ROOT / "docs" / "images" / "benchmarks").iterdir()}


def test_a_readme_without_marks_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("# Another\n")
    done = run("report", "--out", tmp_path / "benchmarks.md", "--readme", tmp_path / "README.md")
    assert done.returncode == 1 and "expected the lines" in done.stderr
    assert (tmp_path / "README.md").read_text() == "# Another\n"


def test_columns_with_nothing_in_them_are_left_out():
    figure = {"seconds": {"median": 1e-3, "p05": 1e-3, "p95": 2e-3}, "ratio": 1.0, "saved_bytes": 2**20}
    race = {"copy_bandwidth": 1e9, "subjects": {"cpu": figure}}
    text = tables.tables({"a race": race})
    assert "median" in text and "1.00 MiB" in text
    assert "GPU alone" not in text and "error" not in text
    on_gpu = {**race, "subjects": {"cuda": {**figure, "device_seconds": {"median": 5e-4}}, "plain 1x1": figure}}
    assert "GPU alone" in tables.tables({"a race": on_gpu}) and "500 µs" in tables.tables({"a race": on_gpu})


def test_many_maps_beside_one_of_them(tmp_path):
    """One sample alone takes a tenth of the batch: 14 maps in the time of ten. It is no subject of other tables."""
    name = "operator training h64-c8-b14-160x224"
    record = next(record for path in RECORDS if name in (record := json.loads(path.read_text()))["races"])
    race = record["races"][name]
    race["case"] |= {"per_sample": True, "position_dims": 3}
    one = {**race["subjects"]["cpu"], "ratio": 0.1, "saved_bytes": None, "peak_bytes": None}
    race["subjects"] = {"plain 1x1": race["subjects"]["plain 1x1"], "cpu, one map": one, "cpu": race["subjects"]["cpu"]}
    file = tmp_path / "machine.json"
    file.write_text(json.dumps({"machine": record["machine"], "races": {name: race}}))
    text = report.MachineChapter(file).text(tmp_path)
    (line,) = [line for line in text.splitlines() if line.startswith("| h 64") and line.endswith(" 0.71 |")]
    assert "one map per sample, K 3 | training |" in line
    assert "14 maps / (14 × one map)" in text and "cpu, one map" not in text
    for written in (tables.tables({name: race}), tables.short_table({name: race})):
        assert "; 14 maps / (14 × one map) 0.71" in written


def test_a_record_never_mixes_machines(tmp_path):
    file = tmp_path / "results" / "machine.json"
    machine.record(file, {"torch": "2.13"}, {"a": {"x": 1}})
    machine.record(file, {"torch": "2.13"}, {"b": {"x": 2}})
    assert json.loads(file.read_text())["races"] == {"a": {"x": 1}, "b": {"x": 2}}
    machine.record(file, {"torch": "2.14"}, {"c": {"x": 3}})
    assert json.loads(file.read_text()) == {"machine": {"torch": "2.14"}, "races": {"c": {"x": 3}}}


@pytest.mark.parametrize(
    ("device", "kind", "slug"),
    [
        ("Intel(R) Xeon(R) Platinum 8175M CPU @ 2.50GHz", "cpu", "xeon-platinum-8175m-avx512-2-cores"),
        ("NVIDIA GeForce RTX 2080 Ti", "cuda", "nvidia-geforce-rtx-2080-ti"),
    ],
)
def test_names_of_machines(device, kind, slug):
    assert machine.slug({"device": device, "kind": kind, "vectors": "AVX512", "cores": 2}) == slug
