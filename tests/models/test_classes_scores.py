"""Scores and predictions of exclusive classes: against a count by hand, in files, and from fit to figures."""

import csv
import itertools
import json
import math

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from typer.testing import CliRunner

from scp_models.checkpoints import load_model
from scp_models.cli import app
from scp_models.errors import UserError
from scp_models.evaluation.metrics import METRICS, class_scores
from scp_models.evaluation.scores import headline, paired_scores, read_scores, write_scores
from scp_models.report import figures
from scp_models.report.demo.pictures import slices_picture
from tests.support.commands import fit_arguments, scp_models
from tests.support.tiny_data import write_classes, write_lits

# One process makes what they share.
pytestmark = pytest.mark.xdist_group("classes_scores")

NAMES = ("left", "right", "middle")


def counted(prediction, reference, number):
    """Dice and the lesions of one class, voxel by voxel."""
    counts = {"overlap": 0, "predicted": 0, "reference": 0}
    a, b = np.zeros(prediction.shape, bool), np.zeros(prediction.shape, bool)
    for index in itertools.product(*map(range, prediction.shape)):
        a[index] = prediction[index] == number and reference[index] != 255
        b[index] = reference[index] == number
        counts["overlap"] += a[index] and b[index]
        counts["predicted"] += a[index]
        counts["reference"] += b[index]
    (parts_a, found_a), (parts_b, found_b) = (ndimage.label(mask, np.ones((3, 3, 3))) for mask in (a, b))
    hits = sum((b & (parts_a == k)).any() for k in range(1, found_a + 1))
    detected = sum((a & (parts_b == k)).any() for k in range(1, found_b + 1))
    volumes = counts["predicted"] + counts["reference"]
    return {
        "dice": 2 * counts["overlap"] / volumes if volumes else 1.0,
        "lesion_recall": detected / found_b if found_b else 1.0,
        "lesion_precision": hits / found_a if found_a else 1.0,
        "lesion_dice": 2 * detected / (found_a + found_b) if found_a + found_b else 1.0,
        "predicted_ml": counts["predicted"] * 6 / 1000,
    }


def test_scores_of_each_class_are_those_counted_by_hand():
    rng = np.random.default_rng(0)
    shape = (9, 8, 5)
    for _ in range(3):
        reference = np.where(rng.random(shape) < 0.7, 0, rng.integers(1, 4, shape)).astype(np.uint8)
        prediction = np.where(rng.random(shape) < 0.3, rng.integers(0, 4, shape), reference).astype(np.uint8)
        reference[rng.random(shape) < 0.1] = 255
        prediction[prediction == 255] = 3
        scores = class_scores(prediction, reference, (1.0, 2.0, 3.0), NAMES)
        assert list(scores) == list(NAMES) and all(set(METRICS) == set(row) for row in scores.values())
        for number, name in enumerate(NAMES, start=1):
            for metric, value in counted(prediction, reference, number).items():
                assert scores[name][metric] == pytest.approx(value), (name, metric)


def test_labels_of_no_class_are_refused():
    volume = np.zeros((2, 2, 2), np.uint8)
    for prediction, reference in ((volume + 4, volume), (volume, volume + 9), (volume + 255, volume)):
        with pytest.raises(ValueError, match="expected labels among"):
            class_scores(prediction, reference, (1, 1, 1), NAMES)


def row(subject, name, dice):
    return {"subject": subject, "site": "", "class": name, **dict.fromkeys(METRICS, 1.0), "dice": dice, "avd": math.nan}


def test_tables_with_a_row_per_class_and_their_means(tmp_path):
    rows = [row("a", "left", 0.5), row("a", "right", 0.7), row("b", "left", 0.1), row("b", "right", 0.2)]
    rows[0]["avd"] = 4.0
    summary = write_scores(rows, tmp_path, {"of": "here"})
    assert summary["subjects"] == 2 and summary["dice"]["mean"] == pytest.approx(0.375)
    assert {name: s["dice"]["mean"] for name, s in summary["classes"].items()} == pytest.approx(
        {"left": 0.3, "right": 0.45}
    )
    # Over the classes for which it is defined.
    assert summary["avd"] == {"mean": 4.0, "std": None, "n": 1}
    with (tmp_path / "scores.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(r["subject"], r["class"], float(r["dice"])) for r in table] == [
        ("a", "left", 0.5), ("a", "right", 0.7), ("b", "left", 0.1), ("b", "right", 0.2)
    ]  # fmt: skip
    lines = headline(summary).splitlines()
    assert lines[0].startswith("2 subjects: Dice 0.3750") and lines[0].endswith("(means over 2 classes)")
    assert lines[1].startswith("  left: Dice 0.3000") and lines[2].startswith("  right: Dice 0.4500")
    path = tmp_path / "scores.csv"
    assert {name: scores["dice"] for name, scores in read_scores(path).items()} == pytest.approx({"a": 0.6, "b": 0.15})
    assert paired_scores(path, path, "dice", "right") == ([0.7, 0.2], [0.7, 0.2])
    with pytest.raises(UserError, match="expected a class among left, right, got 'middle'"):
        read_scores(path, "middle")


# Outlines


def test_each_class_has_an_outline_of_its_own_colour():
    reference = np.zeros((12, 10), np.uint8)
    reference[1:4, 1:4], reference[6:9, 2:5], reference[2:4, 7:9] = 1, 2, 255
    prediction = np.where(reference == 255, 0, np.roll(reference, 1, axis=0))
    panel = figures.OutlinedSlice("both", np.zeros((12, 10)), reference, prediction)
    figure = figures.outline_slices([panel], classes=("left", "right", "unseen"))
    lines = [c for c in figure.axes[0].collections if len(c.get_segments())]
    colours = {tuple(np.round(line.get_color()[0], 3)) for line in lines}
    assert len(lines) == len(colours) == 5  # two classes twice, and what is not scored
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "left, reference", "left, prediction", "right, reference", "right, prediction", "unseen, reference",
        "unseen, prediction", "not scored",
    ]  # fmt: skip
    volume = np.stack([np.zeros_like(reference), reference], axis=2)
    volume[..., 0] = 255
    predicted, classes = {"SCP": volume % 255}, ("left", "right")
    picture = slices_picture("median", "a", volume * 1.0, volume, predicted, {"SCP": 0.5}, (1, 1), classes)
    assert "slice 2 of 2" in picture.caption
    figures.weight_field_statistics(np.random.default_rng(0).random((3, 4, 6, 5)))


# From fit to figures


def command(*arguments):
    """The output of a command, in this process."""
    result = CliRunner().invoke(app, [str(word) for word in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def refusal(*arguments):
    with pytest.raises(UserError) as error:
        command(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# Wide enough to learn three classes with any seed: with three of them 20 epochs gave Dice from 0.53 on.
LEARNS = ("--data.augment", "none", "--data.window", "[]", "--model.capacity", "128")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes")
    root = write_classes(folder / "data", 6)
    # Nobody says that there are classes: dataset.json does.
    done = scp_models(*fit_arguments(root, folder / "run", 30, *LEARNS), cache=folder)
    return folder, root, done


def test_three_classes_from_fit_to_scores_and_predictions(run):
    folder, root, done = run
    assert "task wmh: MRI; classes left = 1, right = 2, middle = 300;" in done.stderr + done.stdout
    said = "dataset.json: its labels are the classes left = 1, right = 2, middle = 300 (--data.target N for one of them"
    assert done.stderr.count(said) == 1
    checkpoint = folder / "run" / "checkpoints" / "best.ckpt"
    task = load_model(checkpoint).task
    assert task.classes == (("left", (1,)), ("right", (2,)), ("middle", (300,)))

    scored = command("evaluate", checkpoint, "--data", root, "--split", "all", "--out", folder / "scores")
    summary = json.loads((folder / "scores" / "summary.json").read_text())
    assert list(summary["classes"]) == list(NAMES) and summary["threshold"] is None
    assert [line.split(":")[0].strip() for line in scored.splitlines() if ": Dice " in line][1:] == list(NAMES)
    # Each class has a brightness of its own: a network that mixes the classes up stays far below.
    assert min(s["dice"]["mean"] for s in summary["classes"].values()) > 0.5

    options = ("--out", folder / "predictions", "--probabilities")
    command("predict", checkpoint, root, *options)
    table = read_scores(folder / "scores" / "scores.csv", "middle")
    for k in range(6):
        source = nib.load(root / f"labelsTr/case_{k}.nii.gz")
        written = nib.load(folder / f"predictions/case_{k}.nii.gz")
        probabilities = nib.load(folder / f"predictions/case_{k}_probabilities.nii.gz")
        assert written.get_data_dtype() == np.int16 and probabilities.get_data_dtype() == np.float32
        np.testing.assert_allclose(written.affine, source.affine)
        np.testing.assert_allclose(probabilities.affine, source.affine)
        values, p = np.asarray(written.dataobj), np.asarray(probabilities.dataobj)
        assert set(np.unique(values)) <= {0, 1, 2, 300} and p.shape == (*source.shape, 4)
        np.testing.assert_allclose(p.sum(-1), 1, atol=1e-5)
        np.testing.assert_array_equal(np.array([0, 1, 2, 300])[p.argmax(-1)], values)
        reference = np.asarray(source.dataobj)
        a, b = values == 300, reference == 300
        assert table[f"case_{k}"]["dice"] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_label_maps_of_several_classes_are_scored(run):
    folder, root, _ = run
    evaluate = ("evaluate", "--predictions", root / "labelsTr", "--data", root, "--split", "all")
    for k, classes in enumerate(([], ["all"], ["left", "right", "300"], ["left=1", "right=2", "middle=300"])):
        given = [word for name in classes for word in ("--classes", name)]
        command(*evaluate, *given, "--out", folder / f"same-{k}")
        summary = json.loads((folder / f"same-{k}" / "summary.json").read_text())
        assert {name: s["dice"]["mean"] for name, s in summary["classes"].items()} == dict.fromkeys(NAMES, 1.0)
    swapped = folder / "swapped"
    swapped.mkdir()
    for path in (root / "labelsTr").iterdir():
        image = nib.load(path)
        values = np.asarray(image.dataobj)
        nib.save(
            nib.Nifti1Image(np.select([values == 1, values == 2], [2, 1], values), image.affine), swapped / path.name
        )
    evaluate = ("evaluate", "--predictions", swapped, "--data", root, "--split", "all", "--classes", "all")
    command(*evaluate, "--out", folder / "wrong")
    summary = json.loads((folder / "wrong" / "summary.json").read_text())
    assert {name: s["dice"]["mean"] for name, s in summary["classes"].items()} == {"left": 0, "right": 0, "middle": 1}
    compared = command("compare", folder / "wrong/scores.csv", folder / "same-0/scores.csv", "--class", "left")
    assert compared.startswith("dice: difference -1.0000")
    compared = command("compare", folder / "wrong/scores.csv", folder / "same-0/scores.csv")
    assert compared.startswith("dice: difference -0.6667")


def test_a_class_that_no_reference_has_is_told(run):
    folder, root, _ = run
    classes = [word for name in ("left=1", "right=2", "ghost=9") for word in ("--classes", name)]
    options = ("--data", root, "--split", "all", *classes, "--out", folder / "ghost")
    output = command("evaluate", "--predictions", root / "labelsTr", *options)
    assert f"warning: {root}: no reference has the class 'ghost': its scores say nothing" in output
    assert "has the class 'left'" not in output


def test_what_is_refused_in_one_line(run, tmp_path):
    folder, root, _ = run
    checkpoint = folder / "run" / "checkpoints" / "best.ckpt"
    assert "--threshold: expected for one target only" in refusal(
        "evaluate", checkpoint, "--data", root, "--threshold", 0.3, "--out", tmp_path
    )
    assert "--threshold: expected for one target only" in refusal(
        "predict", checkpoint, root, "--threshold", 0.3, "--out", tmp_path
    )
    assert "--classes: expected with --predictions only" in refusal(
        "evaluate", checkpoint, "--data", root, "--classes", "all", "--out", tmp_path
    )
    fit = fit_arguments(root, tmp_path / "run", 1)
    assert "expected names among those of" in refusal(*fit, "--data.classes", "[left,front]")
    assert "got 2 in 'a' and 'b'" in refusal(*fit, "--data.classes", "{a: [1, 2], b: [2, 300]}")
    strange = tmp_path / "strange"
    strange.mkdir()
    for path in (root / "labelsTr").iterdir():
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj) // 100, image.affine), strange / path.name)
    options = ("--data", root, "--classes", "all", "--split", "all", "--out", tmp_path, "--fail-fast")
    assert "expected labels (0, 1, 2, 300), got also [3.0]" in refusal("evaluate", "--predictions", strange, *options)
    probabilities = tmp_path / "probabilities"
    probabilities.mkdir()
    for path in (root / "labelsTr").iterdir():
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.full(image.shape, 0.3, np.float32), image.affine), probabilities / path.name)
    assert "expected label maps of left = 1, right = 2, middle = 300, got probabilities" in refusal(
        "evaluate", "--predictions", probabilities, *options
    )


def test_going_on_with_other_classes_is_refused(run):
    folder, root, _ = run
    fit = fit_arguments(root, folder / "run", 13, *LEARNS)
    assert "with task_options" in refusal(*fit, "--data.classes", "[left,right]", "--ckpt_path", "last")


def test_show_draws_subjects_of_several_classes(run, tmp_path):
    folder, root, _ = run
    checkpoint = folder / "run" / "checkpoints" / "best.ckpt"
    command("show", root, "--checkpoint", checkpoint, "--out", tmp_path / "a.png")
    command("show", root, "--out", tmp_path / "b.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000 and (tmp_path / "b.png").stat().st_size > 10_000


def test_liver_and_tumour_are_resized_and_come_back(tmp_path):
    """LiTS's own layout, slices resized: the classes are compared at the file's resolution."""
    root = write_lits(tmp_path / "data", numbers=(1, 2, 3, 4))
    more = ("--data.task", "lits", "--data.classes", "[liver,tumour]", "--data.roi_size", "[32,32]")
    scp_models(*fit_arguments(root, tmp_path / "run", 1, *more), cache=tmp_path)
    checkpoint = tmp_path / "run/checkpoints/last.ckpt"
    command("predict", checkpoint, root, "--out", tmp_path / "out")
    written = sorted((tmp_path / "out").iterdir())
    assert len(written) == 4
    for path in written:
        image = nib.load(path)
        assert image.get_data_dtype() == np.uint8 and image.shape == (24, 20, 5)
        assert set(np.unique(np.asarray(image.dataobj))) <= {0, 1, 2}
    command("evaluate", checkpoint, "--data", root, "--split", "all", "--out", tmp_path / "scores")
    assert set(json.loads((tmp_path / "scores/summary.json").read_text())["classes"]) == {"liver", "tumour"}
