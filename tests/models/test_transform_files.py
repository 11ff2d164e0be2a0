"""Transforms as other programs write them, literally: what is read is worked out here by hand, without ITK."""

import struct

import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine

from scp_models.data import find_subjects, get_task
from scp_models.data.transforms import read_transform
from scp_models.evaluation.scores import read_scores
from scp_models.training.module import SegmentationModule
from tests.support.heads import randomize_phi
from tests.support.tiny_data import write_wmh

POINTS = np.array([(0.0, 0, 0), (31, -18, 44), (-60, 25, -7), (5, 90, 12)])
LPS = np.array([-1.0, -1, 1])
MATRIX = np.array([[0.98, 0.05, -0.02], [-0.049, 0.99, 0.1], [0.025, -0.1, 0.985]])
SHIFT, CENTRE = np.array([2.5, -3.75, 4.125]), np.array([10.0, -20, 30])

# c3d_affine_tool -oitk
C3D = """#Insight Transform File V1.0
#Transform 0
Transform: MatrixOffsetTransformBase_double_3_3
Parameters: 0.98 0.05 -0.02 -0.049 0.99 0.1 0.025 -0.1 0.985 2.5 -3.75 4.125
FixedParameters: 0 0 0
"""
# antsAverageTransform and ANTs' scripts write blanks at the ends of lines.
ANTS_TEXT = """# Insight Transform File V1.0 
# Transform 0 
Transform: MatrixOffsetTransformBase_double_3_3  
Parameters:  0.98 0.05 -0.02 -0.049 0.99 0.1 0.025 -0.1 0.985 2.5 -3.75 4.125  
FixedParameters: 10 -20 30 
"""  # noqa: W291
# A rigid registration of SimpleITK or 3D Slicer, turned about the vertical axis only.
EULER = """#Insight Transform File V1.0
#Transform 0
Transform: Euler3DTransform_double_3_3
Parameters: 0 0 0.25 2.5 -3.75 4.125
FixedParameters: 10 -20 30 0
"""
ANGLE = 0.25
TURN = np.array([[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, 1]])


def matlab(name, values):
    """A column in MATLAB's version 4, little-endian doubles, as ITK writes them."""
    header = struct.pack("<5i", 0, len(values), 1, 0, len(name) + 1)
    return header + name.encode() + b"\0" + struct.pack(f"<{len(values)}d", *values)


GENERIC_AFFINE = matlab("AffineTransform_double_3_3", [*MATRIX.ravel(), *SHIFT]) + matlab("fixed", CENTRE)
CASES = {
    "c3d.txt": (C3D, MATRIX, 0 * CENTRE),
    "average.txt": (ANTS_TEXT, MATRIX, CENTRE),
    "rigid.tfm": (EULER, TURN, CENTRE),
    "0GenericAffine.mat": (GENERIC_AFFINE, MATRIX, CENTRE),
}


@pytest.mark.parametrize("name", CASES)
def test_files_of_other_programs(tmp_path, name):
    """Points of the template to the patient's, x' = M (x − c) + c + t in ITK's axes to the left and back."""
    pytest.importorskip("SimpleITK")
    content, matrix, centre = CASES[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    expected = LPS * ((LPS * POINTS - centre) @ matrix.T + centre + SHIFT)
    assert np.allclose(apply_affine(read_transform(tmp_path / name), POINTS), expected, atol=1e-9)


def test_evaluate_takes_transforms_from_elsewhere(run, tmp_path):
    """``--frame``: the same scores; without it the subjects' transforms are missed by name."""
    pytest.importorskip("SimpleITK")
    root = write_wmh(tmp_path / "data", 4)
    subjects = find_subjects(root, get_task("wmh"))
    for subject in subjects:
        (subject.images[0].parent / "to_mni.mat").write_bytes(GENERIC_AFFINE)
    options = {"frame": "{folder}/to_mni.mat"}
    module = SegmentationModule(roi_size=(16, 24), capacity=32, levels=2, logit_bias=0.0, task_options=options)
    randomize_phi(module.network.head)
    checkpoint = tmp_path / "model.ckpt"
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}, checkpoint)
    evaluate = ["evaluate", checkpoint, "--data", root, "--split", "all", "--out"]
    code, _, err = run(*evaluate, tmp_path / "first")
    assert code == 0, err
    for subject in subjects:
        (subject.images[0].parent / "to_mni.mat").rename(tmp_path / f"{subject.name}.mat")
    code, _, err = run(*evaluate, tmp_path / "none")
    assert code == 2 and "to_mni.mat: expected a transform (--data.frame, for predict and evaluate --frame)" in err
    code, _, err = run(*evaluate, tmp_path / "again", "--frame", f"{tmp_path}/{{subject}}.mat")
    assert code == 0, err
    assert (tmp_path / "again" / "scores.csv").read_text() == (tmp_path / "first" / "scores.csv").read_text()
    assert len(read_scores(tmp_path / "first" / "scores.csv")) == 4
    far = GENERIC_AFFINE[: -3 * 8] + struct.pack("<3d", 900, 900, 900)  # another centre: all lies elsewhere
    for subject in subjects:
        (tmp_path / f"{subject.name}.mat").write_bytes(far)
    code, _, err = run(*evaluate, tmp_path / "far", "--frame", f"{tmp_path}/{{subject}}.mat")
    assert code == 0, err
    assert (tmp_path / "far" / "scores.csv").read_text() != (tmp_path / "first" / "scores.csv").read_text()
