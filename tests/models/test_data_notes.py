"""What is said, or refused, where a file is readable and yet not what it seems."""

import errno
import os

import nibabel as nib
import numpy as np
import pytest

from scp_models.data import SegmentationDataModule, VolumeReader, find_subjects, get_task
from scp_models.data.find import subject_of_images
from scp_models.data.splits import split_subjects
from scp_models.errors import UserError
from scp_models.inference.predictor import predict
from scp_models.notes import note
from tests.support.brightness import predictor
from tests.support.tiny_data import affine_for, save, write_wmh, write_wmh_subject

WMH = get_task("wmh")


@pytest.fixture(autouse=True)
def said_anew():
    note.cache_clear()


@pytest.fixture
def subject(tmp_path):
    write_wmh_subject(tmp_path / "7", seed=1)
    (subject,) = find_subjects(tmp_path / "7", WMH)
    return subject


def test_images_are_called_after_their_subject(subject, tmp_path):
    t1, flair = subject.images
    assert t1.parent.name == "pre"
    assert subject_of_images([t1, flair], WMH).name == "7"
    assert subject_of_images([flair], get_task("wmh", options={"modalities": ["FLAIR"]})).name == "7"
    for name, expected in (("ann_T1", "ann"), ("T1", "mri")):
        first, second = (tmp_path / "mri" / f"{name.replace('T1', m)}.nii.gz" for m in ("T1", "FLAIR"))
        save(first, np.zeros((2, 2, 2)), np.eye(4))
        save(second, np.zeros((2, 2, 2)), np.eye(4))
        assert subject_of_images([first, second], WMH).name == expected


def test_modalities_in_another_order_are_refused(subject):
    t1, flair = subject.images
    with pytest.raises(UserError, match=r"FLAIR.nii.gz: expected T1 in this place \(--image takes T1, FLAIR in this"):
        subject_of_images([flair, t1], WMH)


def test_a_prediction_that_replaces_a_file_says_so(subject, tmp_path, caplog):
    model = predictor(subject)
    (path,) = predict(model, [subject], tmp_path / "out")
    assert not caplog.messages
    assert list(predict(model, [subject], tmp_path / "out")) == [path]
    assert f"note: {path}: replaced by the prediction for {subject.images[0]}" in caplog.messages


def test_a_modality_without_contrast_is_named(subject):
    save(subject.images[1], np.zeros(nib.load(subject.images[0]).shape, np.float32), nib.load(subject.images[0]).affine)
    notes = VolumeReader(WMH).read(subject).notes
    assert notes == (f"{subject.images[1]}: the network sees the same intensity everywhere",)


def test_a_volume_without_orientation_is_named(subject):
    for path in (*subject.images, subject.label):
        image = nib.load(path)
        plain = nib.Nifti1Image(np.asarray(image.dataobj), None)
        plain.set_sform(None, 0)
        plain.set_qform(None, 0)
        nib.save(plain, path)
    notes = VolumeReader(WMH).read(subject).notes
    assert notes == (f"{subject.images[0]}: has no orientation; its axes are taken to run to the left, front and top",)


def test_subjects_without_a_label_are_named_where_one_is_expected(tmp_path, caplog):
    write_wmh_subject(tmp_path / "unlabelled" / "9", seed=9)
    (tmp_path / "unlabelled" / "9" / "wmh.nii.gz").unlink()
    for k in range(3):
        write_wmh_subject(tmp_path / "unlabelled" / str(k), seed=k)
    subjects = find_subjects(tmp_path / "unlabelled", WMH)
    assert not caplog.messages  # to predict, none needs one
    split_subjects(subjects, (1, 1, 1), 0, "here")
    assert caplog.messages == ["note: here: 1 of 4 subjects have no label: 9"]


def test_all_bad_files_of_a_training_are_named(tmp_path, caplog):
    write_wmh(tmp_path / "wmh", 5)
    data = SegmentationDataModule(tmp_path / "wmh", cache_dir=tmp_path / "cache", roi_size=(16, 24))
    bad = [data.divide()[part][0] for part in ("training", "validation")]
    for subject in bad:
        subject.images[0].write_bytes(subject.images[0].read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"T1.nii.gz: .* \(and 1 more: {bad[1].name}\)$"):
        data.prepare_data()
    # The first is the error.
    (message,) = [message for message in caplog.messages if "T1.nii.gz" in message]
    assert str(bad[1].images[0]) in message


def test_a_folder_of_nnunets_images_by_itself(tmp_path):
    for case in ("a_1", "b"):
        for k in range(2):
            save(tmp_path / "imagesTs" / f"{case}_{k:04d}.nii.gz", np.ones((4, 4, 4)), affine_for("LPS"))
    (tmp_path / "imagesTs" / "._b_0000.nii.gz").write_bytes(b"")
    subjects = find_subjects(tmp_path / "imagesTs", WMH)
    assert [(s.name, len(s.images), s.label) for s in subjects] == [("a_1", 2, None), ("b", 2, None)]
    subjects[1].images[1].unlink()
    with pytest.raises(UserError, match=r"b_0001.nii.gz: expected a file"):
        find_subjects(tmp_path / "imagesTs", WMH)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch, caplog):
    root, locked = write_wmh(tmp_path, 3), tmp_path / "training" / "Utrecht"
    scandir = os.scandir

    def refuse(path):
        if str(path) == str(locked):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert len(find_subjects(root, WMH)) == 2
    assert f"note: {locked}: cannot be listed (Permission denied): nobody in it is found" in caplog.messages
