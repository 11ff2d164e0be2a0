"""Files as hospitals and public data sets have them, each through ``fit``, ``predict`` and ``evaluate``.

Every subject is the same head with its own lesions, stored in another way; what the network sees must not depend on it.
"""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scp_models import cli
from scp_models.data import SegmentationDataModule, VolumeReader, find_subjects, get_task
from scp_models.data.alignment import align_image
from scp_models.data.volume_files import open_volume
from scp_models.evaluation.predictions import PredictionFiles
from scp_models.evaluation.scores import evaluate
from scp_models.notes import note
from tests.support.tiny_data import blobs, save, turned

REAL = Path(__file__).parents[2] / ".." / "shared" / "real" / "white_matter_lesions"
SHAPE, SIZE = (28, 32, 8), (0.9, 0.9, 6.5)


def oblique(degrees, size=SIZE, flips=(-1, 1, 1)):
    """Voxel axes turned about the left-right axis, as thick slices along the hippocampus are."""
    turn = nib.eulerangles.euler2mat(x=np.deg2rad(degrees), z=np.deg2rad(degrees / 5))
    return nib.affines.from_matvec(turn @ np.diag(np.array(flips) * size), (12.0, -14.0, 20.0 - degrees))


def head(seed, shape=SHAPE):
    """T1, FLAIR and lesions of one head; brighter to one side, so that a mirrored one is another."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = x**2 + y**2 < 0.8
    lesion = blobs(shape, seed, 4) & inside
    anatomy = inside * (100 + 30 * x + 15 * y + 5 * z)
    t1 = anatomy - 30 * lesion + 2 * rng.standard_normal(shape) * inside
    flair = anatomy + 90 * lesion + 2 * rng.standard_normal(shape) * inside
    return t1.astype(np.float32), flair.astype(np.float32), lesion.astype(np.uint8)


def write(path, data, affine, forms=("sform", "qform"), other=None):
    """A volume whose header has its affine as the given forms; ``other`` is the qform's where both differ."""
    image = nib.Nifti1Image(data, None)
    image.header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
    image.set_sform(affine, 1 if "sform" in forms else 0)
    image.set_qform(affine if other is None else other, 1 if "qform" in forms else 0)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


class Person:
    """One subject's three files, as they are usually; a case changes some of them."""

    def __init__(self, folder: Path, seed: int, shape=SHAPE) -> None:
        self.folder = folder
        self.t1, self.flair, self.lesion = head(seed, shape)

    def write(self, affine, **forms):
        for name, data in (("pre/T1", self.t1), ("pre/FLAIR", self.flair), ("wmh", self.lesion)):
            write(self.folder / f"{name}.nii.gz", data, affine, **forms)


def negative_flair(person):
    person.flair -= 60
    person.write(oblique(5))


def empty_ends(person):
    for k in (0, 1, -1):
        person.t1[..., k] = 0
    person.flair[..., -1] = 0
    person.write(oblique(12))


def float_mask(person):
    person.write(oblique(8))
    write(person.folder / "wmh.nii.gz", person.lesion.astype(np.float64), oblique(8))


def mask_with_slope(person):
    person.write(oblique(8))
    image = nib.Nifti1Image(person.lesion * np.uint8(255), oblique(8))
    image.header.set_slope_inter(1 / 255, 0)
    nib.save(image, person.folder / "wmh.nii.gz")
    assert np.asarray(nib.load(person.folder / "wmh.nii.gz").dataobj).max() > 1


def other_axes(person):
    """As in five patients of one site: T1 in LPS, FLAIR and mask in LAS."""
    person.write(oblique(16))
    write(person.folder / "pre" / "T1.nii.gz", *turned(person.t1, oblique(16), "LPS"))


def thick_slices(person):
    person.write(oblique(20, (0.5, 0.5, 8.0)))


CASES = {
    "oblique": lambda person: person.write(oblique(26)),
    "qform": lambda person: person.write(oblique(14), forms=("qform",)),
    "sform": lambda person: person.write(oblique(14), forms=("sform",)),
    "both": lambda person: person.write(oblique(14)),
    "different": lambda person: person.write(oblique(14), other=oblique(3)),
    "float": float_mask,
    "slope": mask_with_slope,
    "thick": thick_slices,
    "ends": empty_ends,
    "negative": negative_flair,
    "axes": other_axes,
}
ROI = (28, 32)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """All cases in one data set, trained on for an epoch, predicted and scored: the folder."""
    folder = tmp_path_factory.mktemp("field")
    for seed, (name, case) in enumerate(CASES.items()):
        case(Person(folder / "data" / "Site" / name, seed))
    # The same person under another name.
    Person(folder / "data" / "Site" / "both2", list(CASES).index("both")).write(oblique(14))
    names = [f"Site_{name}" for name in (*CASES, "both2")]
    split = {"training": names[:-2], "validation": names[-2:-1], "test": names[-1:]}
    (folder / "split.json").write_text(json.dumps(split))
    run = Commands(folder)
    note.cache_clear()
    run(
        "fit", "--config", "wmh", "--data.root", folder / "data", "--data.roi_size", f"[{ROI[0]},{ROI[1]}]",
        "--data.batch_size", 12, "--data.split_file", folder / "split.json", "--data.cache_dir", folder / "cache",
        "--data.num_workers", 0, "--model.capacity", 16, "--model.levels", 2, "--trainer.max_epochs", 1,
        "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--out", folder / "run",
    )  # fmt: skip
    checkpoint = folder / "run" / "checkpoints" / "last.ckpt"
    run("predict", checkpoint, folder / "data", "--out", folder / "out")
    run("evaluate", checkpoint, "--data", folder / "data", "--split", "all", "--out", folder / "scores")
    finished = ("--predictions", folder / "out", "--data", folder / "data")
    run("evaluate", *finished, "--split", "all", "--out", folder / "again")
    return folder


class Commands:
    def __init__(self, folder):
        self.folder = folder

    def __call__(self, *arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["scp-models", *map(str, arguments)])
            patch.setenv("XDG_CACHE_HOME", str(self.folder / "cache"))
            try:
                cli.main()
            except SystemExit as stop:
                assert not stop.code, arguments


def subject(folder, name):
    return next(s for s in find_subjects(folder / "data", get_task("wmh")) if s.name == f"Site_{name}")


@pytest.mark.parametrize("name", CASES)
def test_fit_sees_the_head_as_it_is(study, name):
    """Both modalities the same way round, the label on the bright voxels, the affine that of the file."""
    data = SegmentationDataModule(str(study / "data"), roi_size=ROI, cache_dir=str(study / "cache"))
    one = subject(study, name)
    image, label = data.cache.open(one)
    seed = list(CASES).index(name)
    _, _, lesion = head(seed)
    # The files are stored in LAS: the canonical first axis runs the other way.
    assert np.array_equal(label[:].transpose(1, 2, 0), lesion[::-1])
    flair = image[:, 1].astype(np.float32)
    assert flair[label == 1].min() > np.median(flair[(label == 0) & (flair > flair.min())])
    if name != "ends":
        background = label[:] == 0
        assert np.corrcoef(image[:, 0][background], image[:, 1][background])[0, 1] > 0.95
    source = nib.as_closest_canonical(nib.load(one.images[0]))
    assert np.allclose(data.cache.about(one).affine, source.affine, atol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_predictions_lie_in_the_first_images_grid(study, name):
    source, mask = (nib.load(path) for path in (subject(study, name).images[0], study / "out" / f"Site_{name}.nii.gz"))
    assert mask.shape == source.shape and np.array_equal(mask.affine, source.affine)
    for code in ("sform_code", "qform_code"):
        assert int(mask.header[code]) == int(source.header[code])
    assert np.allclose(mask.header.get_zooms(), source.header.get_zooms())
    rows = {row["subject"]: row for row in csv.DictReader((study / "scores" / "scores.csv").open())}
    again = {row["subject"]: row for row in csv.DictReader((study / "again" / "scores.csv").open())}
    assert rows[f"Site_{name}"] == again[f"Site_{name}"]


@pytest.mark.parametrize("name", CASES)
def test_references_score_one_against_themselves(study, tmp_path, name):
    one = subject(study, name)
    stored = nib.load(one.label)
    save(tmp_path / f"Site_{name}.nii.gz", np.rint(stored.get_fdata()).astype(np.uint8), stored.affine)
    (row,) = evaluate(PredictionFiles(tmp_path, [one], get_task("wmh")), [one])
    assert row["dice"] == 1.0
    volume = np.prod(nib.affines.voxel_sizes(stored.affine)) * (stored.get_fdata() > 0.5).sum() / 1000
    assert row["reference_ml"] == pytest.approx(volume)


def test_what_is_said_of_the_files(study, caplog):
    note.cache_clear()
    data = SegmentationDataModule(
        str(study / "data"), roi_size=ROI, cache_dir=str(study / "cache"), split_file=str(study / "split.json")
    )
    data.prepare_data()
    lines = [record.getMessage() for record in caplog.records]
    assert sum("sform and qform place voxels up to" in line for line in lines) == 3
    assert all("/different/" in line for line in lines if "sform and qform" in line)
    (twice,) = (line for line in lines if "is the same image as" in line)
    assert "Site_both2 (test) is the same image as Site_both (training)" in twice
    assert len(lines) == 4


@pytest.fixture(scope="module")
def patients():
    if not REAL.is_dir():
        pytest.skip("no real patients beside this checkout (../shared/real)")
    return find_subjects(REAL, get_task("wmh"))


def test_real_patients(patients, caplog):
    """Modalities that agree better as they lie than mirrored, lesions bright in FLAIR, references that score 1."""
    reader = VolumeReader(get_task("wmh"))
    for one in patients:
        files = [open_volume(path) for path in one.images]
        t1, flair = (align_image(file, files[0])[0].read()[::2, ::2].astype(np.float32) for file in files)
        mirrored = max(np.corrcoef(t1.ravel(), np.flip(flair, axis).ravel())[0, 1] for axis in (0, 1))
        assert np.corrcoef(t1.ravel(), flair.ravel())[0, 1] > mirrored + 0.02, one.name
        label = reader.read_label(one)[::2, ::2]
        head_mean = flair[t1 > np.percentile(t1, 60)].mean()
        assert flair[label == 1].mean() > head_mean, one.name
    assert not [record for record in caplog.records if "resampled" in record.getMessage()]


def test_real_references_score_one_against_themselves(patients, tmp_path):
    (one,) = [s for s in patients if s.name.endswith("104252")]
    (tmp_path / "104252.nii.gz").write_bytes(one.label.read_bytes())
    (row,) = evaluate(PredictionFiles(tmp_path, [one], get_task("wmh")), [one])
    assert row["dice"] == 1.0
