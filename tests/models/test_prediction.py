"""Predictions on the source's grid."""

import nibabel as nib
import numpy as np
import pytest
import torch

from scp_models.checkpoints import build_model
from scp_models.data import find_subjects, get_task
from scp_models.errors import UserError
from scp_models.inference.predictor import Predictor, predict, write_segmentation
from tests.support.brightness import predictor
from tests.support.tiny_data import AXIS_CODES, write_lits, write_wmh_subject


@pytest.mark.parametrize("codes", AXIS_CODES, ids="".join)
def test_predictions_lie_where_the_lesions_do(tmp_path, codes):
    write_wmh_subject(tmp_path / "7", seed=1, shape=(18, 20, 22), codes=codes)
    (subject,) = find_subjects(tmp_path / "7", get_task("wmh"))
    source, reference = nib.load(subject.images[0]), nib.load(subject.label)
    mask_path, probability_path = predict(
        predictor(subject, roi_size=(30, 30)), [subject], tmp_path / "out", probabilities=True
    )
    mask, probabilities = nib.load(mask_path), nib.load(probability_path)
    assert mask_path.name == "7.nii.gz" and probability_path.name == "7_probabilities.nii.gz"
    assert mask.get_data_dtype() == np.uint8 and probabilities.get_data_dtype() == np.float32
    for image in (mask, probabilities):
        assert np.array_equal(image.affine, source.affine) and image.shape == source.shape
        assert image.header.get_zooms() == source.header.get_zooms()
    assert np.array_equal(mask.get_fdata() == 1, reference.get_fdata() == 1)
    assert np.array_equal(probabilities.get_fdata() > 0.5, mask.get_fdata() == 1)


def test_lits_masks_have_the_sources_resolution(tmp_path):
    write_lits(tmp_path, (1, 28), shape=(40, 36, 40))
    subjects = find_subjects(tmp_path, get_task("lits"))
    for subject in subjects:
        segmentation = predictor(subject, "lits", roi_size=(20, 18), threshold=0.3).segment(subject)
        mask = segmentation.mask()
        assert mask.shape == (40, 36, 40) and mask.dtype == np.uint8
        assert np.array_equal(mask, segmentation.source_probabilities() > 0.3)
        paths = write_segmentation(segmentation, tmp_path / "out")
        assert np.array_equal(nib.load(paths[0]).affine, nib.load(subject.images[0]).affine)


def test_batches_do_not_matter(tmp_path):
    write_wmh_subject(tmp_path / "7", seed=1)
    (subject,) = find_subjects(tmp_path / "7", get_task("wmh"))
    torch.manual_seed(0)
    model = build_model(roi_size=(20, 24), capacity=32, levels=2)
    a, b = (Predictor(model, batch_size=size, device="cpu").segment(subject).probabilities for size in (1, 4))
    assert np.allclose(a, b, atol=1e-5) and a.std() > 0


def test_unwritable_output(tmp_path):
    write_wmh_subject(tmp_path / "7", seed=1)
    (subject,) = find_subjects(tmp_path / "7", get_task("wmh"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"7.nii.gz: cannot write there"):
        list(predict(predictor(subject), [subject], tmp_path / "file" / "out"))
