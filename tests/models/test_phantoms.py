"""What both kinds of phantom stand on: fields, blobs, templates and refusals."""

from pathlib import Path

import numpy as np
import pytest

from scp_models.errors import UserError
from scp_models.phantoms import generate_lits, generate_wmh, templates, wmh
from scp_models.phantoms.fields import Blobs, SmoothField, sample_voxels
from tests.support.processes import run_python

# Fields and blobs


def test_smooth_field_has_unit_variance_and_depends_on_position_alone() -> None:
    field = SmoothField(np.random.default_rng(0), (0, 0, 0), (200, 200, 200), 4.0)
    axes = [np.linspace(3, 197, 60)] * 3
    values = field(*axes)
    assert values.dtype == np.float32
    assert abs(values.mean()) < 0.05
    assert values.std() == pytest.approx(1.0, abs=0.05)
    part = field(axes[0][10:20], axes[1][5:9], axes[2][:7])
    np.testing.assert_array_equal(part, values[10:20, 5:9, :7])


def test_smooth_field_is_smooth_at_its_scale() -> None:
    field = SmoothField(np.random.default_rng(1), (0, 0, 0), (300, 300, 300), 20.0)
    fine = np.arange(20, 280, 1.0)
    steps = np.diff(field(fine, np.array([100.0]), np.array([100.0]))[:, 0, 0])
    assert np.abs(steps).max() < 0.25


def test_blob_radius_is_where_its_profile_is_one_half() -> None:
    blobs = Blobs(np.zeros((41, 41, 41), np.float32), (0.5, 1.0, 2.0))
    blobs.add(np.array([20, 20, 20]), np.array([4.0, 6.0, 8.0]), 0.7)
    assert blobs.profile[20, 20, 20] == 1.0
    for index in ((28, 20, 20), (20, 26, 20), (20, 20, 24)):
        assert blobs.profile[index] == pytest.approx(0.5, abs=1e-4)
    assert set(np.unique(blobs.strength)) == {np.float32(0.0), np.float32(0.7)}


def test_voxels_are_sampled_by_density_and_never_where_it_is_zero() -> None:
    density = np.zeros((3, 4, 5), np.float32)
    density[1, 2, 3], density[2, 0, 0] = 3.0, 1.0
    drawn = sample_voxels(density, 4000, np.random.default_rng(0))
    first = (drawn == (1, 2, 3)).all(axis=1)
    assert (first | (drawn == (2, 0, 0)).all(axis=1)).all()
    assert first.mean() == pytest.approx(0.75, abs=0.03)
    assert sample_voxels(np.zeros_like(density), 5, np.random.default_rng(0)).shape == (0, 3)


# Refusals


@pytest.mark.parametrize("generate", [generate_wmh, generate_lits])
@pytest.mark.parametrize(
    ("subjects", "seed", "size", "message"),
    [
        (0, 0, "small", "--subjects 0: expected at least 1"),
        (1, -1, "small", "--seed -1"),
        (1, 0, "medium", "--size medium"),
        (1, 0, (8, 0, 8), "--size"),
    ],
)
def test_bad_arguments(tmp_path: Path, generate, subjects: int, seed: int, size, message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(tmp_path / "out", subjects, seed, size=size, progress=False)
    assert not list(tmp_path.rglob("*.nii*"))


@pytest.mark.parametrize("generate", [generate_wmh, generate_lits])
def test_unwritable_output(tmp_path: Path, generate) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    with pytest.raises(UserError, match=r"file.*cannot write"):
        generate(blocker / "out", 1, 0, size="small", progress=False)
    assert blocker.read_text() == "not a folder"


@pytest.mark.parametrize("generate", [generate_wmh, generate_lits])
def test_a_folder_holds_phantoms_of_one_seed_and_size(tmp_path: Path, generate) -> None:
    size = (8, 10, 4)
    first = generate(tmp_path / "out", 1, 0, size=size, progress=False)
    assert generate(tmp_path / "out", 2, 0, size=size, progress=False)[:1] == first
    before = sorted(tmp_path.rglob("*"))
    for seed, other in ((1, size), (0, (8, 10, 5)), (0, "small")):
        with pytest.raises(
            UserError, match=r"out/phantoms.json: expected phantoms made with kind .*, got kind .* seed 0"
        ):
            generate(tmp_path / "out", 3, seed, size=other, progress=False)
    (tmp_path / "out" / "phantoms.json").unlink()
    with pytest.raises(UserError, match=r"out: expected an empty folder, or one of phantoms .* it holds '"):
        generate(tmp_path / "out", 3, 0, size=size, progress=False)
    assert len(sorted(tmp_path.rglob("*"))) == len(before) - 1


def test_missing_nilearn_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "package_folder", lambda name: None)
    monkeypatch.setattr(wmh, "load_brain_template", templates.load_brain_template.__wrapped__)
    with pytest.raises(UserError, match=r"scp_kernels\[train\]"):
        generate_wmh(tmp_path, 1, 0, size="small", progress=False)
    assert not list(tmp_path.iterdir())


def test_the_templates_are_found_without_importing_nilearn() -> None:
    code = "from scp_models.phantoms.templates import _load; _load('gm'); import sys; print('nilearn' in sys.modules)"
    done = run_python("-c", code)
    assert done.stdout == "False\n"
