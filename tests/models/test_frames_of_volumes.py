"""From a file to probabilities in its own grid: a head has them at the same millimetres, however it is stored."""

import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine

from scp_models.checkpoints import TrainedModel
from scp_models.data import Subject, get_task
from scp_models.inference.predictor import Predictor
from tests.support.pointwise import VARIANTS, pointwise
from tests.support.tiny_data import AXIS_CODES, affine_for, save, turned

SHAPE, AIR = (40, 44, 18), -1000


def scan():
    """A CT of a head in air, oblique, stored in LPS; no two places are alike."""
    affine = affine_for("LPS", (1.5, 1.4, 3.0))
    c, s = np.cos(np.radians(17)), np.sin(np.radians(17))
    affine[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ affine[:3, :3]
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    inside = (((index - (18, 23, 9)) / (12, 16, 6.5)) ** 2).sum(-1) < 1
    mm = apply_affine(affine, index)
    values = 60 + 40 * np.sin(mm[..., 0] / 7) + 30 * np.cos(mm[..., 1] / 11) + 20 * np.sin(mm[..., 2] / 5)
    return np.where(inside, values, AIR).astype(np.float32), affine, inside


def stored(codes):
    image, affine, _ = scan()
    return turned(image, affine, codes)


def padded(codes="LPS"):
    image, affine = stored(codes)
    low = (3, 0, 2)
    moved = affine.copy()
    moved[:3, 3] = apply_affine(affine, [-n for n in low])
    return np.pad(image, [(3, 6), (0, 5), (2, 1)], constant_values=AIR), moved


def cropped(codes="LPS"):
    """To some air around the head."""
    image, affine = stored(codes)
    low = np.argwhere(image != AIR).min(0) - 1
    high = np.argwhere(image != AIR).max(0) + np.array([2, 3, 2])
    moved = affine.copy()
    moved[:3, 3] = apply_affine(affine, low)
    return image[tuple(slice(*ends) for ends in zip(low, high, strict=True))], moved


STORED = {"".join(codes): lambda codes=codes: stored(codes) for codes in AXIS_CODES}
FIELDS = {
    "padded": padded,
    "cropped": cropped,
    "padded ASR": lambda: padded(("A", "S", "R")),
    "cropped ILP": lambda: cropped(("I", "L", "P")),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("frame", ["image", "foreground", "file"])
def test_a_head_has_its_probabilities_however_it_is_stored(tmp_path, frame, variant):
    given = frame
    if frame == "file":
        sitk = pytest.importorskip("SimpleITK")
        transform = sitk.AffineTransform(3)
        transform.Rotate(0, 1, 0.3)
        transform.Translate((3.0, -4.0, 5.0))
        sitk.WriteTransform(transform, str(tmp_path / "to_template.tfm"))
        given = "{folder}/to_template.tfm"
    # All voxels are seen, and none is interpolated.
    task = get_task("lits", (60, 60), {"frame": given, "resize": False})
    network = pointwise(variant, 3, in_channels=1, capacity=128, logit_bias=0.0)
    torch.nn.init.constant_(network.last[1].weight, 30.0)
    predictor = Predictor(TrainedModel(network, task, 0.5, torch.contiguous_format), device="cpu")

    def probabilities(image, affine):
        save(tmp_path / "a.nii", image, affine)
        result = predictor.segment(Subject("a", (tmp_path / "a.nii",), None)).source_probabilities()
        assert result.shape == image.shape
        return result

    image, affine, inside = scan()
    head = np.argwhere(inside)
    expected = probabilities(image, affine)[tuple(head.T)]
    assert expected.std() > 0.05
    away = {}
    for name, store in {**STORED, **FIELDS}.items():
        other, other_affine = store()
        index = apply_affine(np.linalg.inv(other_affine) @ affine, head)
        at = np.round(index).astype(int)
        assert np.abs(index - at).max() < 1e-3
        assert np.array_equal(other[tuple(at.T)], image[tuple(head.T)])
        away[name] = np.abs(probabilities(other, other_affine)[tuple(at.T)] - expected).max()
    if frame == "image":  # whose borders are those of the scan
        assert min(away.pop(name) for name in FIELDS) > 1e-3
    assert max(away.values()) < 1e-5, away
