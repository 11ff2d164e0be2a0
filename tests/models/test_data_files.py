"""Opening a volume: every format, units, forms of the affine, and what is refused in one line."""

import gzip
import sys

import nibabel as nib
import numpy as np
import pytest

from scp_models.data import Subject, VolumeReader, find_subjects, get_task
from scp_models.data.volume import is_clutter
from scp_models.data.volume_files import open_volume, volume_stem
from scp_models.errors import UserError
from scp_models.evaluation.scores import evaluate
from scp_models.inference.predictor import predict
from tests.support.brightness import predictor
from tests.support.tiny_data import affine_for, save, write_dicom, write_itk, write_wmh_subject

SHAPE = (20, 24, 6)
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(x=np.deg2rad(26), y=np.deg2rad(5)) @ np.diag([-0.5, 0.5, 8.0]), (31.0, -12.5, 4.0)
)


@pytest.fixture
def values():
    return np.random.default_rng(0).integers(-50, 900, SHAPE).astype(np.int16)


def patched(path, offset, content):
    """Overwrite bytes of a file's header."""
    compressed = path.suffix == ".gz"
    raw = bytearray(gzip.decompress(path.read_bytes()) if compressed else path.read_bytes())
    raw[offset : offset + len(content)] = content
    path.write_bytes(gzip.compress(bytes(raw)) if compressed else bytes(raw))


@pytest.mark.parametrize(("unit", "scale"), [("mm", 1), ("micron", 1000), ("meter", 1e-3), ("unknown", 1)])
def test_millimetres_whatever_the_unit(tmp_path, values, unit, scale):
    affine = np.diag([scale, scale, scale, 1.0]) @ affine_for("LPS", (0.8, 0.9, 3.0))
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii.gz")
    file = open_volume(tmp_path / "a.nii.gz")
    assert np.allclose(file.affine, affine_for("LPS", (0.8, 0.9, 3.0)), rtol=1e-6)
    assert np.allclose(file.stored_affine, affine, rtol=1e-6)
    assert np.allclose(file.spacing, (0.8, 0.9, 3.0), rtol=1e-6)


def test_a_unit_that_does_not_exist_is_a_millimetre(tmp_path, values):
    save(tmp_path / "a.nii.gz", values, affine_for("RAS"))
    patched(tmp_path / "a.nii.gz", 123, bytes([7]))
    assert np.array_equal(open_volume(tmp_path / "a.nii.gz").affine, affine_for("RAS"))


@pytest.mark.parametrize("forms", ["sform", "qform", "both", "different", "neither"])
def test_sform_before_qform(tmp_path, values, forms):
    image = nib.Nifti1Image(values, None)
    image.header.set_zooms((1.0, 1.0, 3.0))
    if forms in ("sform", "both", "different"):
        image.set_sform(OBLIQUE, 1)
    if forms in ("qform", "both"):
        image.set_qform(OBLIQUE, 1)
    if forms == "different":
        image.set_qform(affine_for("RAS"), 1)
    nib.save(image, tmp_path / "a.nii.gz")
    file = open_volume(tmp_path / "a.nii.gz")
    assert file.oriented == (forms != "neither")
    assert np.allclose(file.affine, OBLIQUE, atol=1e-4) == (forms != "neither")
    assert [note for note in file.notes if "sform and qform place voxels" in note] == list(file.notes)
    assert len(file.notes) == (forms == "different")


@pytest.mark.parametrize("extra", [(1,), (1, 1), (1, 1, 1, 1)], ids=str)
def test_singleton_axes_are_dropped_everywhere(tmp_path, extra):
    write_wmh_subject(tmp_path / "7", seed=1)
    images = tuple(tmp_path / "7" / "pre" / f"{name}.nii.gz" for name in ("T1", "FLAIR"))
    subject = Subject("7", images, tmp_path / "7" / "wmh.nii.gz")
    reader = VolumeReader(get_task("wmh", (20, 24)))
    before = reader.read(subject)
    for path in (*images, subject.label):
        stored = nib.load(path)
        save(path, np.asarray(stored.dataobj).reshape(*stored.shape, *extra), stored.affine)
    after = reader.read(subject)
    assert np.array_equal(before.image, after.image) and np.array_equal(before.label, after.label)


def test_channels_after_singletons(tmp_path, values):
    both = np.stack([values, -values], axis=-1)
    save(tmp_path / "a.nii.gz", both[:, :, :, None], affine_for("RAS"))
    first, second = open_volume(tmp_path / "a.nii.gz").per_channel()
    assert np.array_equal(first.read(), values) and np.array_equal(second.read(), -values)
    save(tmp_path / "b.nii.gz", np.zeros((4, 4, 2, 3, 2), np.float32), np.eye(4))
    with pytest.raises(UserError, match=r"b.nii.gz: expected a 3-D volume, got shape \(4, 4, 2, 3, 2\)"):
        open_volume(tmp_path / "b.nii.gz")
    save(tmp_path / "c.nii.gz", np.zeros((4, 4), np.float32), np.eye(4))
    with pytest.raises(UserError, match=r"c.nii.gz: expected a 3-D volume, got shape \(4, 4\)"):
        open_volume(tmp_path / "c.nii.gz")


def test_channels_where_one_volume_is_expected(tmp_path):
    write_wmh_subject(tmp_path / "7", seed=1)
    images = tuple(tmp_path / "7" / "pre" / f"{name}.nii.gz" for name in ("T1", "FLAIR"))
    label = tmp_path / "7" / "wmh.nii.gz"
    reader = VolumeReader(get_task("wmh", (20, 24)))
    for path in (images[1], label):
        content = path.read_bytes()
        save(path, np.zeros((*SHAPE, 2), np.float32), affine_for("RAS"))
        with pytest.raises(UserError, match=rf"{path.name}: expected a 3-D volume, got shape \(20, 24, 6, 2\)"):
            reader.read(Subject("7", images, label))
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ([("R", "u1"), ("G", "u1"), ("B", "u1")], "expected one real number per voxel, got RGB"),
        ([("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")], "expected one real number per voxel, got RGBA"),
        (np.complex64, "expected one real number per voxel, got complex64"),
    ],
    ids=["rgb", "rgba", "complex"],
)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_voxels_that_are_no_numbers(tmp_path, dtype, message, ending):
    save(tmp_path / f"a{ending}", np.zeros((4, 4, 2), dtype), np.eye(4))
    with pytest.raises(UserError, match=rf"a{ending}: {message}$"):
        open_volume(tmp_path / f"a{ending}")


@pytest.mark.parametrize(
    ("offset", "content", "message"),
    [
        (46, np.int16(-6).tobytes(), r"expected a 3-D volume, got shape \(20, 24, -6\)"),
        (40, np.int16(-3).tobytes(), "expected a 3-D volume, got -3 axes"),
        (40, np.int16([3, 30000, 30000, 30000]).tobytes(), r"expected a whole NIfTI file, .* \(expected \d{14,} bytes"),
        (108, np.float32(0).tobytes(), "expected voxels after the header's 348 bytes, got vox_offset 0"),
        (108, np.float32(np.inf).tobytes(), "expected a NIfTI file, it cannot be read"),
        (88, np.float32(0).tobytes(), r"expected voxel sizes other than 0 in pixdim, got \[1.0, 1.0, 0.0\]"),
        (80, np.float32(np.nan).tobytes(), r"expected voxel sizes other than 0 in pixdim, got \[nan, 1.0, 3.0\]"),
        (70, np.int16(9999).tobytes(), "expected a NIfTI file, it cannot be read"),
        (296, np.float32(np.nan).tobytes(), "expected an affine that maps three axes"),
        (280, bytes(16), "expected an affine that maps three axes"),
    ],
    ids=[
        "dim",
        "axes",
        "size",
        "offset",
        "offset inf",
        "pixdim",
        "pixdim nan",
        "datatype",
        "affine nan",
        "affine singular",
    ],
)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_headers_that_make_no_volume(tmp_path, values, ending, offset, content, message):
    save(tmp_path / f"a{ending}", values, affine_for("RAS"))
    patched(tmp_path / f"a{ending}", offset, content)
    with pytest.raises(UserError, match=f"a{ending}: {message}"):
        open_volume(tmp_path / f"a{ending}")


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd"])
@pytest.mark.parametrize("affine", [affine_for("RAS"), affine_for("PSR"), OBLIQUE], ids=["ras", "psr", "oblique"])
def test_what_itk_reads_lies_where_nifti_does(tmp_path, values, ending, affine):
    save(tmp_path / "a.nii.gz", values, affine)
    path = write_itk(tmp_path / f"a{ending}", values, affine)
    file, same = open_volume(path), open_volume(tmp_path / "a.nii.gz")
    assert np.allclose(file.affine, same.affine, atol=1e-4) and file.shape == same.shape
    assert np.array_equal(file.read(), same.read())
    assert volume_stem(path) == "a"


def write_text_header(path, values, lines):
    """NRRD or MetaImage with header lines of one's own."""
    sizes = " ".join(map(str, values.shape))
    if path.suffix == ".nrrd":
        start = ["NRRD0004", "type: short", "dimension: 3", f"sizes: {sizes}", "encoding: raw", "endian: little"]
        header = "\n".join([*start, *lines]) + "\n\n"
    else:
        start = ["ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False"]
        end = [f"DimSize = {sizes}", "ElementType = MET_SHORT", "ElementDataFile = LOCAL"]
        header = "\n".join([*start, *lines, *end]) + "\n"
    path.write_bytes(header.encode() + values.astype("<i2").tobytes(order="F"))
    return path


DIRECTIONS = ["space directions: (1,0,0) (0,2,0) (0,0,3)", "space origin: (5,6,7)"]


@pytest.mark.parametrize(
    ("ending", "lines", "oriented"),
    [
        ("nrrd", ["spacings: 1 2 3"], False),
        ("nrrd", ["space dimension: 3", *DIRECTIONS], False),
        ("nrrd", ["space: 3D-right-handed", *DIRECTIONS], False),
        ("nrrd", ["space: scanner-xyz", *DIRECTIONS], False),
        ("nrrd", ["space: left-posterior-superior", *DIRECTIONS], True),
        ("nrrd", ["space: RAS", *DIRECTIONS], True),
        ("mha", ["ElementSpacing = 1 2 3"], False),
        ("mha", ["TransformMatrix = 1 0 0 0 1 0 0 0 1", "ElementSpacing = 1 2 3"], True),
    ],
)
def test_itk_headers_without_orientation(tmp_path, values, ending, lines, oriented):
    """ITK takes their axes for left, back and top; they say nothing."""
    pytest.importorskip("SimpleITK")
    file = open_volume(write_text_header(tmp_path / f"a.{ending}", values, lines))
    assert file.oriented == oriented
    assert np.allclose(file.spacing, (1, 2, 3)) and np.array_equal(file.read(), values)


@pytest.mark.parametrize(
    ("ending", "lines", "scale"),
    [
        ("nrrd", ["space: LPS", 'space units: "um" "um" "um"', *DIRECTIONS], 1e-3),
        ("nrrd", ["space: LPS", 'space units: "mm" "mm" "mm"', *DIRECTIONS], 1),
        ("nrrd", ["space: LPS", 'space units: "" "" ""', *DIRECTIONS], 1),
        ("nrrd", ["spacings: 1 2 3", 'units: "cm" "cm" "cm"'], 10),
        ("nrrd", ["space: LPS", 'space units: "m" "m" "m"', *DIRECTIONS], 1000),
        ("mha", ["TransformMatrix = 1 0 0 0 1 0 0 0 1", "ElementSpacing = 1 2 3", "DistanceUnits = um"], 1e-3),
        ("nrrd", ["space: LPS", 'space units: "mm" "mm" "um"', *DIRECTIONS], "got mm, mm, um"),
        ("nrrd", ["space: LPS", 'space units: "pixel" "pixel" "pixel"', *DIRECTIONS], "got pixel, pixel, pixel"),
    ],
)
def test_units_of_itk_headers(tmp_path, values, ending, lines, scale):
    pytest.importorskip("SimpleITK")
    path = write_text_header(tmp_path / f"a.{ending}", values, lines)
    if isinstance(scale, str):
        with pytest.raises(UserError, match=rf"a.nrrd: expected one unit of length for all axes .* {scale}"):
            open_volume(path)
    else:
        file = open_volume(path)
        assert np.allclose(file.spacing, np.array([1, 2, 3]) * scale)
        assert "space: LPS" not in lines or np.allclose(file.affine[:3, 3], np.array([-5, -6, 7]) * scale)


@pytest.mark.parametrize("ending", ["nrrd", "nhdr", "mha", "mhd"])
def test_compressed_voxels_that_are_not_those_that_were_written(tmp_path, values, ending):
    """ITK reads them without a word: it does not look at the checksum, or gzip's length."""
    sitk = pytest.importorskip("SimpleITK")
    write_itk(tmp_path / "plain.mha", values.astype(np.float32), affine_for("LPS"))
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "plain.mha")), str(tmp_path / f"a.{ending}"), True)
    assert np.array_equal(open_volume(tmp_path / f"a.{ending}").read(), values)
    file = max(tmp_path.glob("a.*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    sitk.ReadImage(str(tmp_path / f"a.{ending}"))
    with pytest.raises(UserError, match=rf"{file.name}: expected a whole volume, it is corrupt"):
        open_volume(tmp_path / f"a.{ending}")


def test_a_folder_of_dicom_slices(tmp_path, values):
    affine = affine_for("LPS")
    write_dicom(tmp_path / "scan", values, affine)
    for name in (".DS_Store", "._1.dcm", "Thumbs.db"):
        (tmp_path / "scan" / name).write_bytes(b"x" * 200)
    file = open_volume(tmp_path / "scan")
    same = nib.as_closest_canonical(nib.Nifti1Image(values, affine))
    turned = nib.as_closest_canonical(nib.Nifti1Image(file.read(), file.affine))
    assert np.allclose(same.affine, turned.affine, atol=1e-4)
    assert np.array_equal(same.dataobj, turned.dataobj)
    assert volume_stem(tmp_path / "scan") == "scan"


def test_dicom_slices_that_make_no_volume(tmp_path, values):
    affine = affine_for("LPS")
    write_dicom(tmp_path / "gap", values, affine)
    sorted((tmp_path / "gap").iterdir())[3].unlink()
    with pytest.raises(UserError, match=r"gap: expected slices at equal distances, got 3 to 6 mm: some are missing"):
        open_volume(tmp_path / "gap")
    write_dicom(tmp_path / "two", values, affine)
    write_dicom(tmp_path / "two", values, affine, series="2")
    with pytest.raises(UserError, match=r"two: expected one series of DICOM slices, got 2"):
        open_volume(tmp_path / "two")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"none: expected a folder of DICOM slices, it has none"):
        open_volume(tmp_path / "none")


def test_itk_files_that_are_no_volumes(tmp_path):
    (tmp_path / "a.mha").write_text("no image")
    with pytest.raises(UserError, match=r"a.mha: expected a whole volume, it cannot be read"):
        open_volume(tmp_path / "a.mha")
    truncated = write_itk(tmp_path / "d.mha", np.zeros((4, 5, 6), np.float32), np.eye(4))
    truncated.write_bytes(truncated.read_bytes()[:-100])
    # ITK's own reason is "No such file or directory", whatever is wrong with it.
    with pytest.raises(UserError, match=r"it cannot be read \(File cannot be read: .*d\.mha for reading"):
        open_volume(truncated)
    with pytest.raises(UserError, match=r"b.nrrd: expected a volume, there is none"):
        open_volume(tmp_path / "b.nrrd")
    write_itk(tmp_path / "c.mha", np.zeros((4, 5, 6, 3), np.uint8), np.eye(4), vector=True)
    with pytest.raises(UserError, match=r"c.mha: expected one real number per voxel, got vector"):
        open_volume(tmp_path / "c.mha")


def test_without_simpleitk_the_message_names_the_extra(tmp_path, values, monkeypatch):
    write_itk(tmp_path / "a.mha", values, np.eye(4))
    write_dicom(tmp_path / "scan", values, affine_for("LPS"))
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    for path in (tmp_path / "a.mha", tmp_path / "scan"):
        with pytest.raises(UserError, match=rf'{path.name}: reading it needs SimpleITK: pip install "scp_kernels\[itk'):
            open_volume(path)


def test_predictions_of_any_format_lie_at_the_same_places(tmp_path):
    """The same volume as NIfTI, NRRD, MetaImage and DICOM slices: the same mask, written as NIfTI in its grid."""
    affine = affine_for("LPS", (1.0, 1.2, 3.0))
    image = np.random.default_rng(0).integers(50, 90, SHAPE).astype(np.int16)
    mask = np.zeros(SHAPE, np.uint8)
    mask[3:6, 5:9, 2:4] = 1
    image[mask == 1] += 300
    save(tmp_path / "nifti.nii.gz", image, affine)
    save(tmp_path / "label.nii.gz", mask, affine)
    write_itk(tmp_path / "nrrd.nrrd", image, affine)
    write_itk(tmp_path / "meta.mhd", image, affine)
    write_dicom(tmp_path / "dicom", image, affine)
    options = {"modalities": ["MR"]}
    task = get_task("wmh", (20, 24), options)
    first = Subject("first", (tmp_path / "nifti.nii.gz",), tmp_path / "label.nii.gz")
    trained = predictor(first, task_options=options)
    for name in ("nifti.nii.gz", "nrrd.nrrd", "meta.mhd", "dicom"):
        (subject,) = find_subjects(tmp_path / name, task)
        (path,) = predict(trained, [subject], tmp_path / "out")
        assert path.name == f"{name.partition('.')[0]}.nii.gz"
        written = nib.load(path)
        assert np.allclose(written.affine, open_volume(tmp_path / name).affine, atol=1e-4)
        assert written.header.get_xyzt_units()[0] == ("mm" if name != "nifti.nii.gz" else "unknown")
        same = nib.as_closest_canonical(written)
        assert np.array_equal(same.dataobj, nib.as_closest_canonical(nib.load(first.label)).dataobj)


def test_predictions_keep_the_unit_of_the_file(tmp_path):
    affine = affine_for("LPS", (1.0, 1.2, 3.0))
    micrometres = np.diag([1000.0, 1000, 1000, 1]) @ affine
    write_wmh_subject(tmp_path / "7", seed=1)
    (subject,) = find_subjects(tmp_path / "7", get_task("wmh"))
    rows = []
    for unit, place in (("mm", affine), ("micron", micrometres)):
        for path in (*subject.images, subject.label):
            image = nib.Nifti1Image(np.asarray(nib.load(path).dataobj), place)
            image.header.set_xyzt_units(unit)
            nib.save(image, path)
        trained = predictor(subject, roi_size=(8, 8))
        rows += evaluate(trained, [subject])
        (path,) = predict(trained, [subject], tmp_path / unit)
        assert np.array_equal(nib.load(path).affine, nib.load(subject.images[0]).affine)
        assert nib.load(path).header.get_xyzt_units()[0] == unit
    assert rows[0] == pytest.approx(rows[1], nan_ok=True) and rows[0]["reference_ml"] > 0


def test_clutter(tmp_path):
    for name in ("._a.nii.gz", ".DS_Store", "Thumbs.db", "thumbs.db", "__MACOSX"):
        assert is_clutter(tmp_path / name)
    assert not is_clutter(tmp_path / ".hidden" / "a.nii.gz")
