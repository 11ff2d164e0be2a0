"""What both generators share: deterministic NIfTI files, one seed per subject, threads and a progress bar."""

import gzip
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from scp_models.errors import UserError
from scp_models.files import atomic_path

RECORD = "phantoms.json"
"""What the subjects of a folder were made with."""


def check_arguments(out: str | os.PathLike[str], subjects: int, seed: int) -> Path:
    """Refuse what cannot work before any work is done; create ``out``.

    Raises:
        UserError: no subjects asked for, a negative seed, or a folder that cannot be created or written.
    """
    if subjects < 1:
        raise UserError(f"--subjects {subjects}: expected at least 1")
    if seed < 0:
        raise UserError(f"--seed {seed}: expected 0 or more")
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot write there ({error.strerror or error})") from error
    return folder


def record_options(folder: Path, options: Mapping[str, Any]) -> None:
    """Write down in an empty folder what its subjects are made with; a folder that says the same takes more of them.

    Raises:
        UserError: the folder holds something else, or subjects made with other options.
    """
    path, ours = folder / RECORD, json.loads(json.dumps(options))
    try:
        theirs = json.loads(path.read_text())
    except FileNotFoundError as error:
        if others := sorted(file.name for file in folder.iterdir() if not file.name.startswith(".")):
            raise UserError(
                f"{folder}: expected an empty folder, or one of phantoms with a {RECORD}; it holds {others[0]!r}"
            ) from error
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(ours, indent=2) + "\n")
        return
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected JSON that says how the phantoms were made ({error})") from error
    if theirs != ours:
        raise UserError(f"{path}: expected phantoms made with {_listed(ours)}, got {_listed(theirs)}")


def _listed(options: Any) -> str:
    if not isinstance(options, dict):
        return repr(options)
    return ", ".join(f"{key} {value}" for key, value in options.items())


def subject_seed(seed: int, kind: int, index: int) -> np.random.SeedSequence:
    """The seed of subject ``index``, whatever the other subjects are and in which order they are made."""
    return np.random.SeedSequence(seed, spawn_key=(kind, index))


def oriented(image: nib.Nifti1Image, codes: str) -> nib.Nifti1Image:
    """The same image stored along other axes, for instance ``"PLS"``: only flips and a permutation."""
    change = ornt_transform(io_orientation(image.affine), axcodes2ornt(codes))
    return image.as_reoriented(change)


def write_image(path: Path, image: nib.Nifti1Image) -> None:
    """Write ``.nii`` or ``.nii.gz`` atomically; the same image gives the same bytes at any time.

    Raises:
        UserError: the folder cannot be written.
    """
    data = image.to_bytes()
    if path.suffix == ".gz":
        # Level 1: noise hardly compresses, and higher levels only cost time. No time stamp in the header.
        data = gzip.compress(data, compresslevel=1, mtime=0)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def make_image(data: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """A NIfTI image in scanner coordinates and millimetres, its scaling slope fixed at 1."""
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    return image


def run_all(work: Callable[[int], Path], count: int, description: str, *, progress: bool, workers: int) -> list[Path]:
    """``[work(0), …, work(count - 1)]`` on threads: numpy, scipy and zlib release the interpreter lock.

    An error, or an interrupt, stops what has not started and is raised once the running subjects are done.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    results: dict[int, Path] = {}
    with Progress(*columns, disable=not progress) as bar, ThreadPoolExecutor(min(workers, count)) as pool:
        task = bar.add_task(description, total=count)
        pending = {pool.submit(work, index): index for index in range(count)}
        try:
            while pending:
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    results[pending.pop(future)] = future.result()
                bar.update(task, completed=len(results))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [results[index] for index in range(count)]


def check_shape(size: str | tuple[int, int, int]) -> tuple[int, int, int]:
    """A size that is no name, as a shape.

    Raises:
        UserError: it is another name, or no shape.
    """
    if isinstance(size, str) or len(size) != 3 or min(size) < 1:
        raise UserError(f"--size {size}: expected full, small or a shape of three positive numbers")
    return size


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
