"""Transforms that a user has: files of ITK and ANTs, as affine maps.

One convention, ITK's own: the file is what ``antsApplyTransforms -i patient -r template -t FILE`` or SimpleITK's
``Resample(patient, template, transform)`` takes. It maps points of the template to points of the patient, in mm with
axes to the left, back and top (LPS); here it becomes a map of RAS+ points.
"""

import glob
import os
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scp_models.data.geometry import LPS_TO_RAS
from scp_models.data.subjects import Subject
from scp_models.errors import UserError
from scp_models.notes import note
from scp_models.optional import simpleitk


def transform_path(pattern: str, subject: Subject) -> Path:
    """The subject's file: ``{subject}`` stands for its name, ``{folder}`` for the folder of its first image.

    Where there is none of that name, the only one counts whose name in the place of ``{subject}`` ends in it, as a
    subject of a smaller folder is called: ``training_TabrizB_104252`` for ``104252``. In a folder of the subject's own
    the name may as well end in that of the file.

    Raises:
        UserError: there are several.
    """
    given = pattern.replace("{folder}", str(subject.images[0].parent))
    path = Path(given.replace("{subject}", subject.name)).expanduser()
    if path.is_file() or "{subject}" not in given:
        return path
    start, *parts = os.path.expanduser(given).split("{subject}")
    name_in = re.compile(re.escape(start) + "(?P<name>.+)" + "(?P=name)".join(map(re.escape, parts)))
    alike = []
    for file in sorted(glob.glob("*".join(map(glob.escape, [start, *parts])))):
        match = name_in.fullmatch(file)
        name = match["name"] if match else ""
        if name.endswith(f"_{subject.name}") or ("{folder}" in pattern and name and subject.name.endswith(f"_{name}")):
            alike.append(Path(file))
    if len(alike) > 1:
        raise UserError(f"{path}: expected one transform, {', '.join(file.name for file in alike)} have names like it")
    if alike:
        note(f"{pattern}: transforms are found by the ends of subjects' names where none has the whole name")
    return alike[0] if alike else path


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
