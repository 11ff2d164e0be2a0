"""Splits, the cache of slices, loaders, and how long they make an epoch wait."""

import json
import pickle
import shutil
import time
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from scp_models.data import SegmentationDataModule, Subject
from scp_models.data.slices import SliceDataset
from scp_models.data.splits import describe_split, read_split, split_subjects
from scp_models.data.timing import TimedDataLoader
from scp_models.errors import UserError
from scp_models.notes import note
from tests.support.data_modules import prepared_module
from tests.support.tiny_data import save, write_wmh


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_wmh(tmp_path_factory.mktemp("wmh"), 7)


def test_batches(root, tmp_path):
    data = prepared_module(root, tmp_path)
    assert [len(data.subjects[p]) for p in ("training", "validation", "test")] == [5, 1, 1]
    batches = list(data.train_dataloader())
    assert len(batches) == 5 * 6 // 4
    for batch in batches:
        assert batch["image"].shape == (4, 2, 16, 20) and batch["image"].dtype == torch.float32
        assert batch["label"].shape == (4, 1, 16, 20) and batch["label"].dtype == torch.uint8
        assert batch["subject"].shape == (4,) and batch["subject"].dtype == torch.int64
    validation = list(data.val_dataloader())
    assert sum(len(b["image"]) for b in validation) == 6


def test_slices_are_those_of_the_volume(root, tmp_path):
    data = prepared_module(root, tmp_path)
    subject = data.val_subjects[0]
    volume = data.cache.reader.read(subject)
    dataset = SliceDataset(data.cache, [subject])
    for k in range(len(dataset)):
        assert np.allclose(dataset[k]["image"], volume.image[..., k], atol=2e-3, rtol=1e-3)
        assert np.array_equal(dataset[k]["label"][0], volume.label[..., k])


def test_order_depends_on_seed_and_epoch_alone(root, tmp_path):
    def order(epoch, seed=0):
        torch.manual_seed(np.random.randint(1 << 30))
        data = prepared_module(root, tmp_path, seed=seed, split=(5, 1, 1))
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return list(loader.sampler)

    assert order(3) == order(3)
    assert order(3) != order(4)
    assert order(3) != order(3, seed=1)
    assert sorted(order(0)) == list(range(30))


def test_an_incomplete_batch_of_training_is_dropped_unless_it_is_the_only_one(root, tmp_path):
    slices = len(prepared_module(root, tmp_path, batch_size=1).train_dataloader())
    assert len(prepared_module(root, tmp_path, batch_size=slices - 1).train_dataloader()) == 1
    assert len(prepared_module(root, tmp_path, batch_size=slices + 1).train_dataloader()) == 1
    with pytest.raises(UserError, match="batch_size: expected at least 1, got 0"):
        prepared_module(root, tmp_path, batch_size=0)


def test_no_subject_in_two_parts():
    subjects = [Subject(f"s{k}", (), "label") for k in range(60)]
    parts = split_subjects(subjects, (42, 6, 12), 0, "here")
    assert [len(parts[p]) for p in ("training", "validation", "test")] == [42, 6, 12]
    names = [s.name for part in parts.values() for s in part]
    assert len(set(names)) == 60
    again = split_subjects(subjects[::-1], (42, 6, 12), 0, "here")
    assert again == parts
    assert split_subjects(subjects, (42, 6, 12), 1, "here") != parts
    assert [len(p) for p in split_subjects(subjects[:10], (0.7, 0.1, 0.2), 0, "").values()] == [7, 1, 2]
    for count, shares, expected in ((3, (42, 6, 12), [1, 1, 1]), (4, (1, 9, 9), [1, 1, 2])):
        assert [len(p) for p in split_subjects(subjects[:count], shares, 0, "").values()] == expected


def test_a_published_division_is_kept():
    parts = ("training", "training", "validation", "test")
    subjects = [Subject(f"s{k}", (), "label", partition=part) for k, part in enumerate(parts)]
    split = split_subjects(subjects, (1, 1, 1), 0, "")
    assert [[s.name for s in split[p]] for p in ("training", "validation", "test")] == [["s0", "s1"], ["s2"], ["s3"]]


@pytest.mark.parametrize(
    "parts", [("training", "test"), ("validation", "test"), (None, "test"), ("training", "validation")]
)
def test_what_is_published_for_test_never_trains(parts):
    """The current WMH release: ``training/`` and ``test/``, both with references."""
    counts = {part: 60 if k == 0 else 110 for k, part in enumerate(parts)}
    if "validation" in parts and "test" in parts:
        counts["training"] = 5
    subjects = [Subject(f"{part}{k:03}", (), "label", partition=part) for part in counts for k in range(counts[part])]
    split = split_subjects(subjects, (42, 6, 12), 0, "here")
    for part in ("validation", "test"):
        if part in counts:
            assert {s.partition for s in split[part]} == {part} and len(split[part]) == counts[part]
    assert {s.partition for s in split["training"]} <= {"training", None}
    assert sum(len(members) for members in split.values()) == sum(counts.values())
    if parts == ("training", "test"):
        assert [len(split[p]) for p in ("training", "validation", "test")] == [52, 8, 110]
        assert describe_split(split, "drawn with seed 0") == (
            "training 52 (drawn with seed 0), validation 8 (drawn with seed 0), test 110 (published)"
        )


def test_a_published_test_set_alone_trains_nothing():
    subjects = [Subject(f"s{k}", (), "label", partition="test") for k in range(9)]
    with pytest.raises(UserError, match=r"here: expected at least 2 .*training, validation\), found 0, .* 9 of test/"):
        split_subjects(subjects, (42, 6, 12), 0, "here")


def test_empty_splits_are_refused(root, tmp_path):
    with pytest.raises(UserError, match=r"expected at least 3 subjects with a reference .* found 2"):
        SegmentationDataModule(str(write_wmh(tmp_path / "two", 2))).divide()
    with pytest.raises(UserError, match=r"split: expected three positive shares"):
        SegmentationDataModule(str(root), split=(1, 0, 1)).divide()


def test_split_file(root, tmp_path):
    names = sorted(s.name for part in SegmentationDataModule(str(root)).divide().values() for s in part)
    path = tmp_path / "split.json"

    def divide(training, validation, test):
        path.write_text(json.dumps({"training": training, "validation": validation, "test": test}))
        return SegmentationDataModule(str(root), split_file=str(path)).divide()

    assert [s.name for s in divide(names[:2], names[2:3], names[3:4])["training"]] == names[:2]
    with pytest.raises(UserError, match="is there twice"):
        divide(names[:2], names[1:2], names[3:4])
    with pytest.raises(UserError, match="got 'nobody' in 'test'"):
        divide(names[:2], names[2:3], ["nobody"])
    with pytest.raises(UserError, match="at least one subject in 'validation', the list is empty"):
        divide(names[:2], [], names[3:4])
    path.write_text(json.dumps({"training": ["s0"], "validation": ["s1"], "test": ["s2"]}))
    with pytest.raises(UserError, match="subjects with a reference, got 's2' in 'test'"):
        read_split(path, [Subject("s0", (), "label"), Subject("s1", (), "label"), Subject("s2", (), None)])
    path.write_text("{}")
    with pytest.raises(UserError, match="expected a JSON object with the lists"):
        SegmentationDataModule(str(root), split_file=str(path)).divide()


def test_a_changed_file_is_read_anew_and_an_unchanged_one_is_not(root, tmp_path):
    data = prepared_module(root, tmp_path)
    subject = data.train_subjects[0]
    image, *_ = data.cache.paths(subject)
    written = image.stat().st_mtime_ns
    data.prepare_data()
    assert image.stat().st_mtime_ns == written
    import os

    os.utime(subject.images[0], ns=(1, 1))
    assert data.cache.paths(subject)[0] != image
    for options in ({"roi_size": (8, 8)}, {"spacing": 2.0}, {"label_affine": "image"}):
        other = SegmentationDataModule(
            str(root), cache_dir=str(tmp_path / "cache"), **{"roi_size": (16, 20), **options}
        )
        assert other.cache.paths(data.train_subjects[1]) != data.cache.paths(data.train_subjects[1])
    by_name = replace(data.train_subjects[1], label_affine="image")
    assert data.cache.paths(by_name) != data.cache.paths(data.train_subjects[1])


def test_the_cache_keeps_affine_and_notes(root, tmp_path, caplog):
    """What a first training said of the files, a second one says too."""
    data = prepared_module(root, tmp_path)
    subject = data.train_subjects[0]
    assert np.allclose(data.cache.about(subject).affine, data.cache.reader.read(subject).affine)
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    flair = copy / subject.images[1].relative_to(root)
    image = nib.load(flair)
    save(flair, np.asarray(image.dataobj), image.affine @ (np.eye(4) + np.eye(4, k=3)))
    for _ in range(2):
        note.cache_clear()
        caplog.clear()
        prepared_module(copy, tmp_path)
        assert f"{flair}: lies up to 1 mm from the voxels of" in caplog.text


def test_padding_for_several_processes_changes_no_score(root, tmp_path):
    data = prepared_module(root, tmp_path)
    dataset = SliceDataset(data.cache, data.val_subjects, multiple_of=4)
    assert len(dataset) == 8 and dataset.slices == 6
    assert (dataset[6]["label"] == 2).all() and (dataset[7]["label"] == 2).all()
    assert not (dataset[5]["label"] == 2).all()
    with pytest.raises(IndexError):
        dataset[8]


def test_a_pickle_for_workers_holds_no_slices(root, tmp_path):
    """Workers that are not forked (Python 3.14, macOS) get the data set as a pickle."""
    data = prepared_module(root, tmp_path)
    dataset = data.train_dataloader().dataset
    small = len(pickle.dumps(dataset))
    assert small < sum(image.nbytes for image, _ in dataset.arrays) / 10
    again = pickle.loads(pickle.dumps(dataset))
    for key, value in dataset[len(dataset) - 1].items():
        assert torch.equal(again[len(dataset) - 1][key], value)


def test_a_failed_preparation_leaves_nothing(root, tmp_path, monkeypatch):
    data = SegmentationDataModule(str(root), roi_size=(16, 20), cache_dir=str(tmp_path / "cache"))

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(UserError, match="No space left on device"):
        data.prepare_data()
    assert list((tmp_path / "cache").iterdir()) == []


def test_waiting_is_measured():
    class Slow(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, k):
            time.sleep(0.02)
            return k

    loader = TimedDataLoader(Slow(), batch_size=1)
    for _ in loader:
        time.sleep(0.05)
    assert 0.08 <= loader.waited < 0.2
