"""What a study makes of files, and says of them: duplicates, crops, subjects that cannot be read, epochs."""

import io
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from scp_models.data.sampling import SliceSampler, SubjectSampler, make_sampler
from scp_models.data.tasks import get_task
from scp_models.errors import UserError
from scp_models.notes import note
from scp_models.study.design import StudyData
from scp_models.study.prepared import prepare_data, write_splits
from scp_models.study.progress import Display
from scp_models.study.reproduce.trained import cohort_density_cache
from tests.models.test_sampling import dataset
from tests.support.tiny_data import write_wmh_subject

DATA = StudyData("Files", "A few.", "they are few", "wmh", (20, 24), folds=4, validation=1)


@pytest.fixture
def root(tmp_path):
    for k in range(8):
        write_wmh_subject(tmp_path / "data" / f"s{k}", seed=k, shape=(20, 24, 4 if k else 6))
    return tmp_path / "data"


def prepare(root: Path, data: StudyData = DATA, **options):
    """What is prepared, and what the display says."""
    note.cache_clear()
    console = Console(file=io.StringIO(), width=200)
    prepared = prepare_data(data, root, root.parent / "out", Display("files", console), **options)
    return prepared, console.file.getvalue()


def test_a_scan_under_two_names_and_what_the_crop_cuts_off_are_told(root, caplog):
    for folder in ("pre", "orig"):
        shutil.rmtree(root / "s7" / folder)
        shutil.copytree(root / "s0" / folder, root / "s7" / folder)
    shutil.copyfile(root / "s0" / "wmh.nii.gz", root / "s7" / "wmh.nii.gz")
    small = StudyData("Files", "A few.", "they are few", "wmh", (4, 4), folds=4, validation=1)
    for _ in range(2):
        # From the files, and again from the cache.
        caplog.clear()
        prepare(root, small)
        alike = [line for line in caplog.messages if "is the same image as" in line]
        assert alike and all("s0" in line and "s7" in line for line in alike)
        cut = [line for line in caplog.messages if f"{root}: the crop to 4 × 4 voxels" in line]
        assert len(cut) == 1 and "target voxels" in cut[0]


def test_what_was_noted_of_a_file_is_told_again(root, caplog):
    path = root / "s3" / "pre" / "FLAIR.nii.gz"
    image = nib.load(path)
    values = image.get_fdata()
    values[:2] = np.nan
    nib.save(nib.Nifti1Image(values, image.affine), path)
    for _ in range(2):
        caplog.clear()
        prepare(root)
        assert any(str(path) in line and "NaN" in line for line in caplog.messages)


def test_subjects_that_cannot_be_read_are_left_out_for_good(root):
    """A file that is mended later would change who trains and who is tested beside runs that are finished."""
    path = root / "s2" / "pre" / "T1.nii.gz"
    content = path.read_bytes()
    path.write_bytes(content[:-200])
    (root / "s5" / "pre" / "FLAIR.nii.gz").unlink()
    prepared, said = prepare(root)
    assert len(prepared.subjects) == 6 and "Files: skipped 2 of 8 subjects: s5, s2" in said and str(path) in said
    assert sorted(name for split in prepared.splits for name in split["test"]) == ["s0", "s1", "s3", "s4", "s6", "s7"]
    assert [subject.name for subject in prepared.find_subjects(get_task("wmh", DATA.roi_size))] == [
        subject.name for subject in prepared.subjects
    ]
    cache, everybody = cohort_density_cache(DATA, prepared)
    assert len(everybody) == 6 and all(cache.open(subject)[0].size for subject in everybody)
    folder = root.parent
    write_splits({"Files": prepared}, folder)
    write_splits({"Others": prepared}, folder)
    assert list(json.loads((folder / "splits.json").read_text())) == ["Files", "Others"]
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"splits.json: expected the subjects of Files as they were"):
        write_splits({"Files": prepare(root)[0]}, folder)


def test_a_reference_that_changes_is_another_study(root, tmp_path):
    """Its finished runs were trained on the other one. Where files lie and when they were written does not matter."""
    prepared, _ = prepare(root)
    write_splits({"Files": prepared}, tmp_path)
    moved = Path(shutil.copytree(root, tmp_path / "elsewhere"))
    write_splits({"Files": prepare(moved)[0]}, tmp_path)
    path = moved / "s4" / "wmh.nii.gz"
    image = nib.load(path)
    values = np.asarray(image.dataobj)
    values[0, 0, 0] = 1 - values[0, 0, 0]
    nib.save(nib.Nifti1Image(values, image.affine), path)
    with pytest.raises(UserError, match=r"sources.json: expected the files of Files as they were, s4's changed"):
        write_splits({"Files": prepare(moved)[0]}, tmp_path)


def test_what_an_epoch_is_made_of_is_told(root):
    _, said = prepare(root)
    assert said.count(" slices of 5 subjects: ") == 4 and "Files, fold 1: an epoch is " in said
    _, said = prepare(root, sampling="slices")
    assert said.count("subjects: each slice once, 4") == 4


def test_samplers_by_name():
    assert type(make_sampler("slices", dataset(), 0)) is SliceSampler
    assert type(make_sampler("subjects", dataset(), 0)) is type(make_sampler(None, dataset(), 0)) is SubjectSampler
