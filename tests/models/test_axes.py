"""The study of axes: one thing changes at a time, and what is finished of it can be shown."""

import io
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from scp_models.checkpoints import read_checkpoint
from scp_models.data.find import find_subjects
from scp_models.data.sampling import Draw, SubjectSampler
from scp_models.data.slices import SliceCache, SliceDataset
from scp_models.errors import UserError
from scp_models.inference.predictor import Predictor
from scp_models.networks import build_network
from scp_models.networks.complexity import count_parameters, nominal_macs
from scp_models.phantoms import generate_wmh, templates, wmh
from scp_models.phantoms.brain import make_brain
from scp_models.phantoms.lesions import BlobRule, in_ellipse
from scp_models.phantoms.writing import subject_seed
from scp_models.study.advice import Advice, advice_by_hand, links_below, sentences_of
from scp_models.study.analysis import differences
from scp_models.study.axes import (
    AXES,
    AXES_CONTROL,
    AXIS_DATA,
    DEPTH,
    PATCHED_DEPTH,
    PATCHED_SIDES,
    PLAIN_HEAD,
    PLAIN_LARGE,
    REFERENCE,
    TESTED_HEAD,
    axes_study,
    data_of_axes,
    receptive_field,
)
from scp_models.study.job import CHECKPOINT, new_model
from scp_models.study.page import EVERYTHING_PICTURE, PAGE_BEGIN, PAGE_END, PICTURE, page_text, read_advice, write_page
from scp_models.study.patches import PatchedSlices
from scp_models.study.prepared import prepare_data
from scp_models.study.progress import Display
from scp_models.study.record import read_record
from scp_models.study.runner import run_study
from scp_models.study.segment import segment
from tests.support.commands import scp_models
from tests.support.tiny_study import tiny_axes

# One process makes what they share.
pytestmark = pytest.mark.xdist_group("axes")

SIDES = PATCHED_SIDES.name


def silent() -> Display:
    return Display("tiny", Console(file=io.StringIO(), width=200))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of two axes that were run one after the other, and the record after the first."""
    out = tmp_path_factory.mktemp("axes") / "out"
    first = run_study(tiny_axes(), out, only={REFERENCE.name}, jobs=2, display=silent()).read_text()
    run_study(tiny_axes(), out, only={SIDES}, jobs=2, display=silent())
    return out, json.loads(first)


@pytest.fixture(scope="module")
def record(finished):
    return read_record(finished[0] / "study.json")


# What is compared


def test_every_level_changes_what_its_axis_says():
    study = axes_study()
    data = {d.name: d for d in study.data}
    may_differ = {
        "depth": set(), "subjects": {"training_subjects"}, "patches": {"patch"}, "sides": {"patch"},
        "place": {"phantoms", "description"}, "look-alikes": {"phantoms", "description"},
        "misalignment": {"phantoms", "description"},
    }  # fmt: skip
    assert {axis.name for axis in AXES} == may_differ.keys()
    for axis in AXES:
        first, *others = (asdict(data[name]) for name in axis.levels.values())
        assert others
        for other in others:
            different = {key for key in first if first[key] != other[key]}
            assert different - {"name", "condition"} <= may_differ[axis.name]
    # Where phantoms differ, they do in one option and in their seed.
    for d in study.data:
        if d.name not in data_of_axes(["sides"]) and d.phantoms != REFERENCE.phantoms:
            options = set(map(str, d.phantoms.options.items())) ^ set(map(str, REFERENCE.phantoms.options.items()))
            assert len(options) == 1 and d.phantoms.seed != REFERENCE.phantoms.seed
    levels = {n.only_on: n.levels for n in study.networks}
    assert [levels[name] for name in next(a for a in AXES if a.name == "depth").levels.values()] == [2, 3, 4]
    assert levels[PATCHED_DEPTH.name] == levels[DEPTH.name] == 4 and levels[REFERENCE.name] == 2


def test_every_data_set_has_the_same_networks_and_comparisons():
    study = axes_study()
    assert {d.name for d in study.data} == data_of_axes([axis.name for axis in AXES])
    assert len(study.seeds) == 3 and len(study.data) == len(AXIS_DATA) == len({d.name for d in AXIS_DATA})
    for data in study.data:
        names = {n.name for n in study.networks if n.only_on == data.name}
        compared = {(c.network, c.other) for c in study.comparisons if c.data == data.name}
        assert {PLAIN_HEAD, PLAIN_LARGE, "Base F", AXES_CONTROL, TESTED_HEAD} <= names
        assert compared == {(TESTED_HEAD, name) for name in names - {TESTED_HEAD}} | {(AXES_CONTROL, PLAIN_HEAD)}
    assert len(set(study.comparisons)) == len(study.comparisons)
    folders = [run.folder for run in study.runs()]
    assert len(set(folders)) == len(folders)


def test_the_large_network_has_four_times_the_size():
    networks = {n.name: n for n in axes_study().networks if n.only_on == DEPTH.name}
    plain, large = (new_model(DEPTH, networks[name]).network for name in (PLAIN_HEAD, PLAIN_LARGE))
    assert count_parameters(large) / count_parameters(plain) == pytest.approx(4, rel=0.02)
    assert nominal_macs(large, 56, 80) / nominal_macs(plain, 56, 80) == pytest.approx(4, rel=0.06)


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_the_receptive_field_is_what_a_pixel_depends_on(levels):
    network = build_network("base", in_channels=1, capacity=16, levels=levels).double().eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.ones_(module.weight)  # nothing cancels, and no ReLU is shut
    widths = []
    for column in range(128, 136):  # of every alignment with the coarser grids
        image = torch.ones(1, 1, 8, 256, dtype=torch.float64, requires_grad=True)
        network(image)[0, 0, 4, column].backward()
        columns = image.grad[0, 0].abs().sum(0).nonzero()
        widths.append(int(columns.max() - columns.min()) + 1)
    assert np.mean(widths) == pytest.approx(receptive_field(levels), rel=0.03)


def test_axes_are_chosen_by_name():
    assert data_of_axes(["patches"]) == {DEPTH.name, PATCHED_DEPTH.name}
    with pytest.raises(UserError, match=r"--axis: expected some of sides, .*misalignment, got 'colour'"):
        data_of_axes(["patches", "colour"])
    done = scp_models("study", "axes", "--out", "nowhere", "--axis", "colour", check=False)
    assert done.returncode == 2 and "got 'colour'" in done.stderr


# Phantoms and patches


def brain(index: int, rule: BlobRule):
    grid = wmh.grid_of(index, (40, 56, 8), "ellipse")
    return make_brain(templates.load_brain_template(), grid, subject_seed(7, 0, index), decided_by="ellipse", rule=rule)


@pytest.mark.parametrize("certainty", [1.0, 0.8, 0.5])
def test_the_place_decides_as_far_as_it_is_said_to(certainty):
    numbers = np.zeros((2, 2))
    for index in range(12):
        subject = brain(index, BlobRule(certainty=certainty))
        inside = in_ellipse(subject.head)
        for k, mask in enumerate((subject.pathology.lesion, subject.pathology.lookalike)):
            numbers[k] += [(mask & inside).sum(), (mask & ~inside).sum()]
    share = numbers[0] / numbers.sum(0)
    # Some 200 blobs inside and 1000 outside: three standard deviations of a share of them, and more for their sizes.
    assert share[0] == pytest.approx(certainty, abs=0.14 if certainty < 1 else 0)
    assert share[1] == pytest.approx(1 - certainty, abs=0.07 if certainty < 1 else 0)


def test_lookalikes_are_as_bright_as_they_are_said_to_be():
    for brightness in (0.0, 0.7):
        subject, plain = (brain(0, BlobRule(lookalike_brightness=b)) for b in (brightness, 1.0))
        outside, lesion = ~in_ellipse(subject.head), subject.pathology.lesion
        np.testing.assert_array_equal(subject.label, plain.label)
        shown, full = (s.pathology.brightness for s in (subject, plain))
        np.testing.assert_allclose(shown[outside], brightness * full[outside], rtol=1e-6)
        np.testing.assert_array_equal(shown[lesion], full[lesion])


def test_rules_are_for_blobs_that_lie_everywhere(tmp_path):
    for options in ({"certainty": 0.5}, {"location_decided": True, "lookalike_brightness": 1.5}):
        with pytest.raises(UserError, match="expected 0 to 1, less than 1 only where ellipse or height decide"):
            generate_wmh(tmp_path / "out", 1, 0, size=(8, 8, 2), progress=False, **options)
    options = {"size": (8, 8, 2), "location_decided": True, "progress": False}
    generate_wmh(tmp_path / "one", 1, 0, **options)
    with pytest.raises(UserError, match=r"made with .*certainty 0\.5"):
        generate_wmh(tmp_path / "one", 1, 0, certainty=0.5, **options)


@pytest.mark.parametrize("frame", ["slice", "foreground"])
def test_a_patch_knows_where_it_lies(finished, frame):
    (network,) = (n for n in tiny_axes().networks if (n.name, n.only_on) == (TESTED_HEAD, REFERENCE.name))
    (data,) = (d for d in tiny_axes().data if d.name == REFERENCE.name)
    task = new_model(data, replace(network, frame=frame)).task
    cache = SliceCache(finished[0] / "cache", task)
    slices = SliceDataset(cache, find_subjects(finished[0] / "data" / data.phantoms.slug, task)[:2])
    patches = PatchedSlices(slices, (12, 16), seed=3)
    corners = set()
    for place in range(6):
        whole, patch = slices[5], patches[Draw(5, 0, place)]
        extent = whole.get("extent", torch.tensor([24.0, 32.0]))
        affine = whole.get("affine", torch.eye(2, 3))
        assert patch["image"].shape == (2, 12, 16) and torch.equal(patch["extent"], extent)
        # The patch's pixels are those of the slice that have the patch's positions.
        corner = torch.linalg.lstsq(affine[:, :2], patch["affine"][:, 2:] - affine[:, 2:]).solution.round().int()
        h, w = (int(value) for value in corner)
        assert torch.equal(patch["image"], whole["image"][:, h : h + 12, w : w + 16])
        assert torch.equal(patch["label"], whole["label"][:, h : h + 12, w : w + 16])
        corners.add((h, w))
        assert torch.equal(patch["image"], patches[Draw(5, 0, place)]["image"])
    assert len(corners) > 3
    drawn = list(SubjectSampler(slices, 1, 0, seed=3, numbered=True))
    assert all(isinstance(draw, Draw) for draw in drawn)
    with pytest.raises(ValueError, match="expected patches of at most 24 × 32"):
        PatchedSlices(slices, (25, 32), seed=3)


def test_fewer_training_subjects_are_some_of_more(tmp_path):
    (data,) = (d for d in tiny_axes().data if d.name == REFERENCE.name)
    splits = [
        prepare_data(replace(data, training_subjects=n), None, tmp_path, silent()).splits[0] for n in (None, 2, 1)
    ]
    assert [len(split["training"]) for split in splits] == [3, 2, 1]
    assert set(splits[2]["training"]) < set(splits[1]["training"]) < set(splits[0]["training"])
    assert all(split["test"] == splits[0]["test"] for split in splits)
    with pytest.raises(UserError, match="expected at most 3 training subjects, 4 are asked for"):
        prepare_data(replace(data, training_subjects=4), None, tmp_path, silent())


# What is run


def test_axes_are_run_one_by_one_into_one_record(finished, record):
    out, first = finished
    assert list(first["data"]) == [REFERENCE.name] and len(first["runs"]) == 3 * 2
    assert list(record.content["data"]) == [REFERENCE.name, SIDES] and len(record.content["runs"]) == 2 * 3 * 2
    assert [run for run in record.content["runs"] if run["data"] == REFERENCE.name] == first["runs"]
    # Intervals are widened for all comparisons that were decided on, run or not.
    assert record.family == 3 * 3 and len(record.comparisons) == 2 * 3
    assert [axis.name for axis in record.axes if record.is_finished(axis)] == ["place", "sides"]
    assert len(list((out / "data").iterdir())) == 2


def test_exclusive_classes_are_scored_by_the_most_probable(finished, record):
    """Recomputed from the network that was kept."""
    out, _ = finished
    study = tiny_axes()
    (run,) = (r for r in study.runs() if (r.data.name, r.network.name, r.seed) == (SIDES, TESTED_HEAD, study.seeds[0]))
    (result,) = (r for r in record.runs(SIDES, TESTED_HEAD) if r["seed"] == run.seed)
    assert result["threshold"] is None
    model = new_model(run.data, run.network)
    weights = read_checkpoint(out / "runs" / run.folder / CHECKPOINT)["state_dict"]
    model.network.load_state_dict({name.removeprefix("network."): tensor for name, tensor in weights.items()})
    cache = SliceCache(out / "cache", model.task)
    subjects = {s.name: s for s in find_subjects(out / "data" / run.data.phantoms.slug, model.task)}
    for name, dice in zip(result["subjects"], result["scores"]["dice"], strict=True):
        probabilities, volume = segment(Predictor(model, device="cpu"), cache, subjects[name])
        assert probabilities.shape == (3, *volume.label.shape)
        predicted = probabilities.argmax(0)
        of_classes = []
        for k in (1, 2):
            a, b = predicted == k, volume.label == k
            of_classes.append(2 * (a & b).sum() / (a.sum() + b.sum()))
        assert np.mean(of_classes) == pytest.approx(dice, abs=1e-5)


# What is shown


def test_the_page_has_what_is_finished_and_names_the_rest(record, tmp_path):
    outcomes = {record.name: differences(record)}
    page = write_page([record], tmp_path / "page.md").read_text()
    assert page == page_text([record], outcomes, read_advice([record], outcomes))
    assert "### Place\n" in page and "### Sides\n" in page and "### What is left" not in page
    assert "counted among the comparisons all the same: What is left." in page
    assert f"widened for {3 * 3} comparisons" in page and "57 to choose from, 0.00091 to 0.999" in page
    assert page.count("**Place**: ") == page.count("**Sides**: ") == 1
    assert (tmp_path / "images" / "when_scp_helps.png").stat().st_size > 10_000


def test_sentences_follow_the_verdicts(record, tmp_path):
    content = json.loads(record.path.read_text())
    for run in content["runs"]:
        above = run["network"] == TESTED_HEAD and run["data"] == REFERENCE.name
        run["scores"]["dice"] = [0.3 + 0.4 * above + 0.01 * k for k in range(2)]
    (tmp_path / "study.json").write_text(json.dumps(content))
    changed = read_record(tmp_path / "study.json")
    place, sides = sentences_of(changed, differences(changed))
    assert place.startswith("**Place**: its Dice was higher than Base's and its control's with here (+0.400, +0.400")
    assert sides.startswith("**Sides**: no gain over both Base and its control was shown with there (+0.000")


def claims(tmp_path, record, text: str) -> Advice:
    (tmp_path / "advice.md").write_text(text)
    return advice_by_hand(tmp_path / "advice.md", [record], {record.name: differences(record)})


def test_advice_by_hand_is_held_to_the_records(record, tmp_path):
    (difference,) = (
        d for d in differences(record)
        if (d.comparison.data, d.comparison.network, d.comparison.other) == (SIDES, TESTED_HEAD, PLAIN_HEAD)
    )  # fmt: skip
    said = "Use it if {{%s | Left and right, patches | SCP | Base}}, [see](frames.md)."
    text = claims(tmp_path, record, said % difference.verdict).text
    mean = f"{abs(difference.interval.mean):.3f}"
    assert text.startswith("Use it if ") and mean in text and " to " in text and "{{" not in text
    assert links_below(text, "docs/").endswith("[see](docs/frames.md).")
    (other,) = {"higher", "lower"} - {difference.verdict, "lower" if difference.verdict == "none" else ""}
    with pytest.raises(UserError, match=f"expected what the studies show, {difference.verdict!r} of SCP − Base on"):
        claims(tmp_path, record, said % other)
    with pytest.raises(UserError, match="expected comparisons of the studies, got SCP − Bass on"):
        claims(tmp_path, record, "{{none | Left and right, patches | SCP | Bass}}")
    with pytest.raises(UserError, match="got one of another form"):
        claims(tmp_path, record, "{{maybe | Left and right, patches | SCP | Base}}")


def test_the_first_part_of_an_advice_is_the_readmes_and_its_table_the_picture(record, tmp_path):
    source = (
        "Use it.\n\n## Why\n\nSo.\n\n## Picture\n\n| row | data set | network | other |\n| --- | --- | --- | --- |\n"
        "| Sides | | | |\n| in patches | Left and right, patches | SCP | Base |\n"
    )
    advice = claims(tmp_path, record, source)
    assert (advice.text, advice.detail, [*advice.picture]) == ("Use it.", "## Why\n\nSo.", ["Sides"])
    difference = advice.picture["Sides"]["in patches"]
    assert (difference.comparison.data, difference.comparison.other) == (SIDES, PLAIN_HEAD)
    (tmp_path / "README.md").write_text(f"{PAGE_BEGIN}\n{PAGE_END}\n")
    page = write_page([record], tmp_path / "docs" / "page.md", tmp_path / "README.md", tmp_path / "advice.md")
    readme, text = (tmp_path / "README.md").read_text(), page.read_text()
    assert f"docs/{PICTURE}" in readme and "Use it." in readme and "So." not in readme
    assert "\n\n## Why\n\nSo.\n\n## How it is measured" in text and "| in patches |" not in text
    pictures = [(page.parent / name).read_bytes() for name in (PICTURE, EVERYTHING_PICTURE)]
    assert EVERYTHING_PICTURE in text and pictures[0] != pictures[1]
    with pytest.raises(UserError, match=r"expected rows as \| text .* got \| x \| y \|"):
        claims(tmp_path, record, source + "| x | y |\n")
    with pytest.raises(UserError, match="expected comparisons of the studies, got SCP − Bass"):
        claims(tmp_path, record, source.replace("SCP | Base |", "SCP | Bass |"))
