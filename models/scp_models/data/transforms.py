"""Transforms that a user has: files of ITK and ANTs, as affine maps.

One convention, ITK's own: the file is what ``antsApplyTransforms -i patient -r template -t FILE`` or SimpleITK's
``Resample(patient, template, transform)`` takes. It maps points of the template to points of the patient, in mm with
axes to the left, back and top (LPS); here it becomes a map of RAS+ points.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scp_models.data.geometry import LPS_TO_RAS
from scp_models.data.subjects import Subject
from scp_models.errors import UserError
from scp_models.optional import simpleitk


def transform_path(pattern: str, subject: Subject) -> Path:
    """The subject's file: ``{subject}`` stands for its name, ``{folder}`` for the folder of its first image."""
    name = pattern.replace("{subject}", subject.name).replace("{folder}", str(subject.images[0].parent))
    return Path(name).expanduser()


def read_transform(path: Path) -> NDArray[np.float64]:
    """``[4, 4]``: points of the template to points of the patient, mm, RAS+.

    Raises:
        UserError: SimpleITK is not installed; no such file, not a transform, not affine, not in 3-D, or one that has no
            inverse.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected a transform (--data.frame, for predict and evaluate --frame), there is none")
    sitk = simpleitk(f"{path}: reading it", "itk")
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1][:200]
        raise UserError(f"{path}: expected a transform of ITK or ANTs, it cannot be read ({reason})") from error
    if transform.GetDimension() != 3 or not transform.IsLinear():
        what = f"{transform.GetName()} in {transform.GetDimension()}-D"
        raise UserError(f"{path}: expected an affine transform in 3-D, got {what}")
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(tuple(unit))) - origin for unit in np.eye(3)]
    lps = np.eye(4)
    lps[:3] = np.stack([*columns, origin], axis=1)
    if not np.isfinite(lps).all() or abs(np.linalg.det(lps)) < 1e-6:
        raise UserError(f"{path}: expected a transform that has an inverse, its determinant is {np.linalg.det(lps):g}")
    return LPS_TO_RAS @ lps @ LPS_TO_RAS
