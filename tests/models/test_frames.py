"""Frames: where a voxel lies in the patient, whatever grid it is stored in."""

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine

from scp_models.data import Subject, VolumeReader, find_subjects, get_task
from scp_models.data.frames import box_frame, frame_of, image_frame, slice_positions
from scp_models.data.transforms import read_transform
from scp_models.errors import UserError
from tests.support.tiny_data import AXIS_CODES, affine_for, save

REAL = Path(__file__).parents[3] / "shared" / "real" / "white_matter_lesions"
POINTS = np.array(list(itertools.product((-20.0, 5.0, 25.0), (-30.0, 0.0, 20.0), (-15.0, 10.0))))
"""Places in the head, mm."""


def head(affine, shape, centre=(0.0, 0.0, 0.0), radii=(35.0, 45.0, 30.0)):
    """An ellipsoid in mm, sampled on any grid, with a little noise of air around it."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    inside = (((apply_affine(affine, index) - centre) / radii) ** 2).sum(-1) < 1
    noise = np.random.default_rng(0).standard_normal(shape)
    return (200 * inside + 4 * np.abs(noise)).astype(np.float32)


def grid(codes="RAS", zooms=(1.5, 1.5, 3.0), shape=(60, 72, 26), oblique=0.0, shift=(0.0, 0.0, 0.0)):
    """An affine whose grid has its centre at ``shift``, turned about the left-right axis by ``oblique`` degrees."""
    affine = affine_for(codes, zooms)
    c, s = np.cos(np.radians(oblique)), np.sin(np.radians(oblique))
    affine[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ affine[:3, :3]
    affine[:3, 3] = np.array(shift) - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine, shape


def subject_of(path, affine, shape, **options):
    save(path, head(affine, shape, **options), affine)
    return Subject(path.name.removesuffix(".nii.gz"), (path,), None)


def ct(frame, **options):
    return get_task("lits", (32, 32), {"frame": frame, "window": [], **options})


def geometry_of(subject, task):
    return VolumeReader(task).read(subject, with_label=False).geometry


def shares(subject, task):
    """Where the points lie in the subject's frame: 0 and 1 are its borders."""
    frame = frame_of(task, subject, geometry_of(subject, task))
    return apply_affine(np.vstack([frame.affine, [0, 0, 0, 1]]), POINTS) / frame.extent


@pytest.mark.parametrize("frame", ["image", "foreground"])
@pytest.mark.parametrize("codes", AXIS_CODES, ids="".join)
def test_stored_axes_do_not_matter(tmp_path, frame, codes):
    affine, shape = grid()
    plain = subject_of(tmp_path / "a.nii.gz", affine, shape)
    orientation = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(codes)
    )
    image = nib.load(plain.images[0]).as_reoriented(orientation)
    nib.save(image, tmp_path / "b.nii.gz")
    turned = Subject("b", (tmp_path / "b.nii.gz",), None)
    assert "".join(nib.aff2axcodes(image.affine)) == "".join(codes)
    assert np.allclose(shares(plain, ct(frame)), shares(turned, ct(frame)), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("shifted", dict(shift=(9.0, -7.0, 6.0), shape=(76, 88, 40))),
        ("wider", dict(shape=(100, 110, 34))),
        ("finer", dict(zooms=(1.0, 1.0, 1.0), shape=(90, 108, 78))),
        ("thick", dict(zooms=(0.9, 0.9, 7.0), shape=(100, 120, 14))),
        ("oblique", dict(oblique=20.0, shape=(60, 84, 40))),
    ],
)
def test_the_foreground_is_the_same_head_in_any_field_of_view(tmp_path, name, other):
    """Within 2 mm, or a quarter of a thick slice."""
    a = subject_of(tmp_path / "a.nii.gz", *grid())
    b = subject_of(tmp_path / "b.nii.gz", *grid(**other))
    sizes = np.array([70.0, 90.0, 60.0])
    away = np.abs(shares(a, ct("foreground")) - shares(b, ct("foreground"))) * sizes
    assert away.max() < 2.0, away.max()
    # What the frame "image" cannot do.
    assert np.abs(shares(a, ct("image")) - shares(b, ct("image"))).max() * 60 > 2.0 or name == "finer"


def test_a_larger_head_elsewhere_has_a_larger_box_there(tmp_path):
    """Within a slice of 3 mm."""
    a = subject_of(tmp_path / "a.nii.gz", *grid())
    b = subject_of(tmp_path / "b.nii.gz", *grid(shape=(80, 96, 40)), centre=(10.0, 5.0, -8.0), radii=(42, 54, 36))
    of = {}
    for s in (a, b):
        box = geometry_of(s, ct("foreground")).foreground
        of[s.name] = box
    assert np.allclose(of["b"][1] - of["b"][0], 1.2 * (of["a"][1] - of["a"][0]), atol=3.0)
    # A border is known to half a voxel of 1.5 × 1.5 × 3 mm. Opposite ones err alike, so a centre is no worse.
    away = np.abs(of["b"].mean(0) - of["a"].mean(0) - (10, 5, -8))
    assert (away <= np.array([1.5, 1.5, 3.0]) / 2).all(), away


def test_a_neck_does_not_stretch_the_box(tmp_path):
    """Within a voxel of 3 mm."""
    affine, shape = grid(zooms=(3.0, 3.0, 3.0), shape=(60, 70, 90))
    image = head(affine, shape, centre=(0, 0, 40), radii=(75, 90, 80))
    place = apply_affine(affine, np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1))
    neck = (np.hypot(place[..., 0], place[..., 1]) < 50) & (place[..., 2] < 0)
    for k, depth in enumerate((-60, -120)):
        values = np.where(neck & (place[..., 2] > depth), np.float32(200), image)
        save(tmp_path / f"{k}.nii.gz", values, affine)
    heights = []
    for k in range(2):
        subject = Subject(str(k), (tmp_path / f"{k}.nii.gz",), None)
        box = geometry_of(subject, get_task("wmh", None, {"modalities": ["T1"], "frame": "foreground"})).foreground
        heights.append(box[:, 2])
        free = geometry_of(subject, ct("foreground")).foreground
        assert free[0, 2] < -50 - 55 * k
    assert np.allclose(heights[0], heights[1], atol=3.0) and np.isclose(heights[0][1] - heights[0][0], 170)


def test_without_a_foreground_the_field_of_view_counts(tmp_path, caplog):
    affine, shape = grid(shape=(20, 22, 8))
    save(tmp_path / "a.nii.gz", np.zeros(shape, np.float32), affine)
    subject = Subject("a", (tmp_path / "a.nii.gz",), None)
    box = geometry_of(subject, ct("foreground")).foreground
    assert np.allclose(box, [[-15, -16.5, -12], [15, 16.5, 12]]) and "has no foreground" in caplog.text


def test_positions_are_those_of_pixels_centres(tmp_path):
    """Half a voxel from the border, and mirrored for the mirrored index: S = (p, extent − p)."""
    affine, shape = grid(shape=(10, 12, 6))
    frame = image_frame(affine, shape)
    p = apply_affine(np.vstack([frame.positions(affine), [0, 0, 0, 1]]), [[0, 0, 0], [9, 11, 5]])
    assert np.allclose(p, [[0.5] * 3, [9.5, 11.5, 5.5]]) and np.allclose(frame.extent - p[1], p[0])
    box = box_frame(np.array([[1.0, 2.0, 3.0], [11.0, 22.0, 33.0]]))
    assert np.allclose(apply_affine(np.vstack([box.affine, [0, 0, 0, 1]]), [11, 22, 33]), box.extent)


@pytest.mark.parametrize("options", [{}, {"resize": False}, {"spacing": 2.0}])
def test_slices_lie_where_their_voxels_do(tmp_path, options):
    subject = subject_of(tmp_path / "a.nii.gz", *grid("LPS", oblique=15.0))
    task = ct("foreground", **options)
    geometry = geometry_of(subject, task)
    positions = slice_positions(task, subject, geometry)
    frame = frame_of(task, subject, geometry)
    for h, w, z in ((0, 0, 0), (31, 3, 7), (12, 30, 25)):
        p = positions.affine[z].numpy() @ [h, w, 1]
        mm = apply_affine(geometry.affine, [h, w, z])
        assert np.allclose(p, frame.affine @ [*mm, 1], atol=1e-3)
        assert np.allclose(positions.extent[z], frame.extent)
    assert slice_positions(ct("slice"), subject, geometry) is None


def transforms(sitk):
    rng = np.random.default_rng(3)
    affine = sitk.AffineTransform(3)
    affine.SetMatrix((np.eye(3) + 0.2 * rng.standard_normal((3, 3))).ravel().tolist())
    affine.SetTranslation((5.0, -7.0, 11.0))
    affine.SetCenter((20.0, 30.0, -10.0))
    rigid = sitk.VersorRigid3DTransform()
    rigid.SetRotation((0.1, 0.9, 0.3), 0.4)
    rigid.SetTranslation((1.0, 2.0, 3.0))
    return {"affine": affine, "rigid": rigid, "both": sitk.CompositeTransform([rigid, affine])}


# Neither .txt nor .tfm matters to ITK; MATLAB's format holds no composite.
KINDS = [(kind, ending) for kind in ("affine", "rigid", "both") for ending in (".tfm", ".txt", ".mat", ".h5")]


@pytest.mark.parametrize(("kind", "ending"), [k for k in KINDS if k != ("both", ".mat")])
def test_transforms_come_back_as_itk_has_them(tmp_path, kind, ending):
    sitk = pytest.importorskip("SimpleITK")
    transform = transforms(sitk)[kind]
    path = tmp_path / f"0GenericAffine{ending}"
    sitk.WriteTransform(transform, str(path))
    matrix = read_transform(path)
    lps = np.diag([-1.0, -1.0, 1.0])
    for point in POINTS:
        there = np.array(transform.TransformPoint((lps @ point).tolist()))
        assert np.allclose(lps @ there, apply_affine(matrix, point), atol=1e-9)


def test_a_transform_takes_the_patient_to_the_templates_box(tmp_path):
    """As antsApplyTransforms resamples: the file maps the template to the patient."""
    sitk = pytest.importorskip("SimpleITK")
    transform = transforms(sitk)["affine"]
    sitk.WriteTransform(transform, str(tmp_path / "p_0GenericAffine.mat"))
    subject = subject_of(tmp_path / "p.nii.gz", *grid())
    task = ct("{folder}/{subject}_0GenericAffine.mat", frame_box=[-50, -60, -40, 50, 60, 40])
    frame = frame_of(task, subject, geometry_of(subject, task))
    assert np.allclose(frame.extent, [100, 120, 80])
    lps = np.diag([-1.0, -1.0, 1.0])
    for point in POINTS:  # of the template
        patient = lps @ np.array(transform.TransformPoint((lps @ point).tolist()))
        assert np.allclose(frame.affine @ [*patient, 1], point - [-50, -60, -40], atol=1e-6)


def test_transforms_that_are_none(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    with pytest.raises(UserError, match=r"a\.mat: expected a transform .* there is none"):
        read_transform(tmp_path / "a.mat")
    (tmp_path / "b.txt").write_text("text")
    with pytest.raises(UserError, match=r"b\.txt: expected a transform of ITK or ANTs, it cannot be read"):
        read_transform(tmp_path / "b.txt")
    sitk.WriteTransform(
        sitk.BSplineTransformInitializer(sitk.Image(8, 8, 8, sitk.sitkFloat32), (2, 2, 2)), str(tmp_path / "c.tfm")
    )
    sitk.WriteTransform(sitk.AffineTransform(2), str(tmp_path / "d.tfm"))
    flat = sitk.AffineTransform(3)
    flat.SetMatrix((1, 0, 0, 0, 1, 0, 0, 0, 1e-9))
    sitk.WriteTransform(flat, str(tmp_path / "e.tfm"))
    for name, text in (("c", "affine transform in 3-D"), ("d", "affine transform in 3-D"), ("e", "has an inverse")):
        with pytest.raises(UserError, match=rf"{name}\.tfm: expected an? .*{text}"):
            read_transform(tmp_path / f"{name}.tfm")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frame": "foregrund"}, "frame: expected slice, image, foreground or the path of a transform"),
        ({"frame": "image", "frame_box": [0] * 6}, "frame_box: expected with a transform"),
        ({"frame": "a.mat", "frame_box": [1, 1, 1, 0, 2, 2]}, "frame_box: expected the lower and the upper corner"),
        ({"frame": "a.mat", "frame_box": [1, 2]}, "frame_box: expected the lower and the upper corner"),
    ],
)
def test_frames_that_are_none(options, message):
    with pytest.raises(UserError, match=message):
        get_task("wmh", None, options)


def test_lesions_of_real_patients_lie_in_their_foreground():
    if not REAL.is_dir():
        pytest.skip("no real patients beside this checkout (../shared/real)")
    task = get_task("wmh", None, {"frame": "foreground"})
    subjects = find_subjects(REAL, task)
    assert len(subjects) == 16
    for subject in subjects:
        box = geometry_of(subject, task).foreground
        width, length, height = box[1] - box[0]
        assert 110 < width < 175 and 135 < length < 215 and 100 < height <= 170, (subject.name, box)
        reader = VolumeReader(task)
        lesions = apply_affine(reader.grid(subject).affine, np.argwhere(reader.read_label(subject) == 1))
        assert ((lesions > box[0]) & (lesions < box[1])).all(axis=1).mean() > 0.99, subject.name
