"""Small data sets in the layouts of the real ones, made for the tests."""

import json
import locale
from pathlib import Path

import nibabel as nib
import numpy as np

AXIS_CODES = [("R", "A", "S"), ("L", "P", "S"), ("L", "A", "S"), ("P", "R", "S"), ("A", "S", "R"), ("I", "L", "P")]


def affine_for(codes, zooms=(1.0, 1.0, 3.0)) -> np.ndarray:
    """An affine whose axes point as ``codes`` say."""
    orientation = nib.orientations.axcodes2ornt(codes)
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, direction) in enumerate(orientation):
        affine[int(world), axis] = direction * zooms[axis]
    affine[:3, 3] = (-7.0, 11.0, 5.0)
    return affine


def save(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)


def write_itk(path: Path, data: np.ndarray, affine: np.ndarray, vector: bool = False) -> Path:
    """A volume in a format of ITK; ``vector``: the last axis is one of components."""
    import SimpleITK as sitk

    # ITK's axes in the patient are left, back, top, and its arrays have the first axis last.
    axes = np.diag([-1.0, -1.0, 1.0]) @ affine[:3, :3]
    spacing = np.linalg.norm(axes, axis=0)
    array = np.moveaxis(data.T, 0, -1) if vector else data.T
    image = sitk.GetImageFromArray(np.ascontiguousarray(array), isVector=vector)
    image.SetSpacing([float(size) for size in spacing])
    image.SetDirection([float(value) for value in (axes / spacing).ravel()])
    image.SetOrigin([float(value) for value in np.array([-1, -1, 1]) * affine[:3, 3]])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def write_dicom(folder: Path, data: np.ndarray, affine: np.ndarray, series: str = "1") -> Path:
    """A folder with one DICOM file per slice.

    Writing one leaves the process in the C locale, where later tests would read text files as ASCII: it is put back.
    """
    import SimpleITK as sitk

    before = locale.setlocale(locale.LC_ALL)

    write_itk(folder.parent / "slices.mha", data, affine)
    image = sitk.ReadImage(str(folder.parent / "slices.mha"))
    (folder.parent / "slices.mha").unlink()
    folder.mkdir(parents=True, exist_ok=True)
    direction = image.GetDirection()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(data.shape[2]):
        part = image[:, :, k]
        place = image.TransformIndexToPhysicalPoint((0, 0, k))
        tags = {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.4",
            "0008|0018": f"1.2.826.0.1.3680043.2.1125.{series}.{k + 1}",
            "0008|0060": "MR",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.9",
            "0020|000e": f"1.2.826.0.1.3680043.2.1125.{series}",
            "0020|0013": str(k + 1),
            "0020|0032": "\\".join(f"{value:.6f}" for value in place),
            "0020|0037": "\\".join(f"{direction[i]:.6f}" for i in (0, 3, 6, 1, 4, 7)),
        }
        for tag, value in tags.items():
            part.SetMetaData(tag, value)
        # Names that sort another way than the slices lie.
        writer.SetFileName(str(folder / f"{series}-{(7 * k) % data.shape[2]:03d}-{k}.dcm"))
        writer.Execute(part)
    locale.setlocale(locale.LC_ALL, before)
    return folder


def blobs(shape, seed: int, count: int = 3) -> np.ndarray:
    """A mask of a few boxes."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    for _ in range(count):
        low = [int(rng.integers(n // 4, max(n // 4 + 1, 3 * n // 4))) for n in shape]
        mask[tuple(slice(i, i + 3) for i in low)] = True
    return mask


def write_wmh_subject(folder: Path, seed: int, shape=(20, 24, 6), codes=("R", "A", "S"), other: bool = False) -> None:
    """T1 and FLAIR with bright lesions, ``wmh.nii.gz`` in float; label 2 in a corner if ``other``."""
    rng = np.random.default_rng(seed)
    affine = affine_for(codes)
    mask = blobs(shape, seed)
    label = mask.astype(np.float32)
    if other:
        label[:3, :3, :2] = 2
    for source in ("pre", "orig"):
        flair = 100 + 5 * rng.standard_normal(shape) + 60 * mask
        t1 = 200 + 5 * rng.standard_normal(shape) - 40 * mask
        save(folder / source / "FLAIR.nii.gz", flair.astype(np.float32), affine)
        save(folder / source / "T1.nii.gz", t1.astype(np.float32), affine)
    save(folder / "wmh.nii.gz", label, affine)


def write_wmh(root: Path, subjects: int = 6, **options) -> Path:
    """The current release's layout, with three scanners."""
    sites = ("Utrecht", "Singapore", "Amsterdam/GE3T")
    for k in range(subjects):
        write_wmh_subject(root / "training" / sites[k % 3] / str(k), seed=k, **options)
    return root


def write_decathlon(root: Path, subjects: int, shape=(20, 24, 6)) -> Path:
    """One modality and binary labels, in the layout of the Medical Segmentation Decathlon."""
    for k in range(subjects):
        mask = blobs(shape, k)
        image = 100 + 5 * np.random.default_rng(k).standard_normal(shape) + 60 * mask
        save(root / "imagesTr" / f"case_{k}.nii.gz", image.astype(np.float32), affine_for("RAS"))
        save(root / "labelsTr" / f"case_{k}.nii.gz", mask.astype(np.uint8), affine_for("RAS"))
    pairs = [{"image": f"./imagesTr/case_{k}.nii.gz", "label": f"./labelsTr/case_{k}.nii.gz"} for k in range(subjects)]
    labels = {"0": "background", "1": "lesion"}
    content = {"modality": {"0": "MRI"}, "labels": labels, "training": pairs, "test": []}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def write_classes(
    root: Path, subjects: int = 6, values: tuple[int, ...] = (1, 2, 300), shape=(20, 24, 6), layout: str = "nnunet"
) -> Path:
    """One modality and classes ``left``, ``right``, ``middle``: boxes of these values in the labels, each of its own
    brightness; in nnU-Net's raw layout, or the Decathlon's.
    """
    names = ("left", "right", "middle")
    suffix = "_0000" if layout == "nnunet" else ""
    for k in range(subjects):
        rng = np.random.default_rng(k)
        label = np.zeros(shape, np.int16)
        for value, low in zip(values, ((3, 8), (13, 8), (8, 14)), strict=True):
            x, y = (int(start + rng.integers(-1, 2)) for start in low)
            label[x : x + 4, y : y + 5, 1:5] = value
        image = 100 + 5 * rng.standard_normal(shape)
        for value, step in zip(values, (80, 160, -80), strict=True):
            image += step * (label == value)
        save(root / "imagesTr" / f"case_{k}{suffix}.nii.gz", image.astype(np.float32), affine_for(AXIS_CODES[k % 6]))
        save(root / "labelsTr" / f"case_{k}.nii.gz", label, affine_for(AXIS_CODES[k % 6]))
    by_name = dict(zip(names, values, strict=True))
    if layout == "nnunet":
        content = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, **by_name}, "file_ending": ".nii.gz"}
    else:
        pairs = [{"image": f"imagesTr/case_{k}.nii.gz", "label": f"labelsTr/case_{k}.nii.gz"} for k in range(subjects)]
        labels = {"0": "background", **{str(value): name for name, value in by_name.items()}}
        content = {"modality": {"0": "MRI"}, "labels": labels, "training": pairs}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def write_lits(root: Path, numbers=(0, 1, 28, 29), shape=(24, 20, 5)) -> Path:
    """Volumes with the published faults: mixed orientations, identity affines from 28 on, a tumour-free scan (0)."""
    for number in numbers:
        rng = np.random.default_rng(number)
        batch = "Training Batch 1" if number < 28 else "Training Batch 2"
        affine = np.eye(4) if 28 <= number < 48 else affine_for(AXIS_CODES[number % 3], (0.7, 0.7, 2.5))
        label = np.zeros(shape, np.uint8)
        label[6:20, 4:16] = 1
        if number != 0:
            label[blobs(shape, number)] = 2
        hu = (-300 + 350 * (label > 0) - 60 * (label == 2) + 20 * rng.standard_normal(shape)).astype(np.int16)
        save(root / batch / f"volume-{number}.nii", hu, affine)
        save(root / batch / f"segmentation-{number}.nii", label, affine)
    return root


def write_nnunet(root: Path, subjects: int, shape=(20, 24, 6)) -> Path:
    """One modality and binary labels, in nnU-Net's raw layout."""
    for k in range(subjects):
        mask = blobs(shape, k)
        image = 100 + 5 * np.random.default_rng(k).standard_normal(shape) + 60 * mask
        save(root / "imagesTr" / f"c{k}_0000.nii.gz", image.astype(np.float32), affine_for("RAS"))
        save(root / "labelsTr" / f"c{k}.nii.gz", mask.astype(np.uint8), affine_for("RAS"))
    labels = {"background": 0, "lesion": 1}
    content = {"channel_names": {"0": "T1"}, "labels": labels, "numTraining": subjects, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


LAYOUTS = {
    "wmh": lambda root: write_wmh(root, 4),
    "lits": lambda root: write_lits(root, (1, 2, 28, 29)),
    "nnunet": lambda root: write_nnunet(root, 4),
    "datalist": lambda root: write_decathlon(root, 4),
}
"""Four subjects in each of the layouts that are told apart."""


def turned(data, affine, codes):
    """The same voxels at the same places, with other axes."""
    image = nib.Nifti1Image(data, affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes))
    result = image.as_reoriented(turn)
    return np.asarray(result.dataobj), result.affine
