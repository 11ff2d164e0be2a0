"""Positions in the patient through the networks: patches, mirrored and turned views, the command line."""

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from scp_models.checkpoints import build_model, load_model, read_checkpoint
from scp_models.data import SegmentationDataModule, Subject, VolumeReader, find_subjects, get_task
from scp_models.data.frames import slice_positions
from scp_models.data.slices import SliceDataset
from scp_models.errors import UserError
from scp_models.inference.predictor import Predictor
from scp_models.networks import build_network
from scp_models.networks.complexity import count_parameters, nominal_macs
from tests.support.commands import fit_arguments, refused
from tests.support.heads import randomize_phi
from tests.support.pointwise import VARIANTS, pointwise
from tests.support.tiny_data import LAYOUTS, affine_for, save, write_wmh

SIZE = (24, 20)
PLACE = torch.tensor([[1.3, 0.1, 9.0], [-0.2, 0.9, 30.0], [0.05, -0.3, 55.0]], dtype=torch.float64)
BOX = torch.tensor([150.0, 190.0, 160.0], dtype=torch.float64)
# Index of the view (h, w, 1) to index of the slice, and how the view is cut out of a picture [..., H, W].
VIEWS = {
    "patch": ([[1, 0, 6], [0, 1, 4]], lambda x: x[..., 6:16, 4:18]),
    "mirrored": ([[-1, 0, 23], [0, 1, 0]], lambda x: x.flip(-2)),
    "rotated": ([[0, 1, 0], [-1, 0, 19]], lambda x: x.rot90(1, (-2, -1))),
    "rotated by 27 degrees": ([[2, -1, 8], [1, 2, 0]], lambda x: at_lattice(x, (7, 6), [[2, -1, 8], [1, 2, 0]])),
    "resampled": ([[2, 0, 1], [0, 3, 2]], lambda x: x[..., 1::2, 2::3]),
}


def at_lattice(picture, size, index):
    """The pixels of an oblique lattice, which are pixels of the picture: nothing is interpolated."""
    h, w = torch.meshgrid(*map(torch.arange, size), indexing="ij")
    i, j = torch.tensor(index) @ torch.stack([h, w, torch.ones_like(h)]).flatten(1)
    return picture[..., i, j].unflatten(-1, size)


@pytest.fixture(scope="module")
def place_in(tmp_path_factory):
    """Affine and extent of one slice of an oblique volume, by the frame."""
    folder = tmp_path_factory.mktemp("oblique")
    affine = affine_for("LPS", (1.1, 0.8, 3.0))
    affine[:3, :3] = np.array([[1, 0, 0], [0, 0.9, -0.436], [0, 0.436, 0.9]]) @ affine[:3, :3]
    inside = np.zeros((*SIZE, 6), np.float32)
    inside[3:21, 2:17, 1:] = 100
    save(folder / "a.nii.gz", inside, affine)
    subject = Subject("a", (folder / "a.nii.gz",), None)

    def place(frame):
        if frame == "slice":
            return torch.eye(2, 3).double(), torch.tensor([24.0, 20.0])
        if frame == "file":
            sitk = pytest.importorskip("SimpleITK")
            transform = sitk.AffineTransform(3)
            transform.Rotate(0, 1, 0.3)
            transform.Translate((3.0, -4.0, 5.0))
            sitk.WriteTransform(transform, str(folder / "to_template.tfm"))
            frame = str(folder / "to_template.tfm")
        task = get_task("lits", SIZE, {"frame": frame, "window": [], "resize": False})
        geometry = VolumeReader(task).read(subject, with_label=False).geometry
        positions = slice_positions(task, subject, geometry)
        return positions.affine[4].double(), positions.extent[4]

    return place


@pytest.mark.parametrize("frame", ["slice", "image", "foreground", "file"])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_view_gives_the_logits_of_its_pixels(place_in, variant, view, frame):
    """All that a frame changes is the slice's affine and extent; a view's affine is composed on the right."""
    index, cut = VIEWS[view]
    network = pointwise(variant, 2 if frame == "slice" else 3)
    whole, extent = place_in(frame)
    composed = whole @ torch.tensor([*index, [0, 0, 1]], dtype=torch.float64)
    image = torch.randn(2, 2, *SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = cut(network(image, affine=whole, extent=extent))
        logits = network(cut(image).contiguous(), affine=composed, extent=extent)
        elsewhere = network(cut(image).contiguous(), affine=whole, extent=extent)
    assert torch.allclose(logits, expected, atol=1e-5)
    assert not torch.allclose(elsewhere, expected, atol=1e-3)


@pytest.mark.parametrize("frame", ["slice", "image", "foreground", "file"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_patch_gives_the_logits_of_the_whole_where_it_sees_as_much(place_in, variant, frame):
    """With all of the 3×3 kernels: but for as many pixels at the patch's border as they reach over."""
    torch.manual_seed(0)
    network = build_network(variant, capacity=32, levels=1, position_dims=2 if frame == "slice" else 3).eval()
    if variant == "scp":
        randomize_phi(network.head)
    whole, extent = place_in(frame)
    composed = whole @ torch.tensor([[1, 0, 3], [0, 1, 2], [0, 0, 1]], dtype=torch.float64)
    image = torch.randn(2, 2, *SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(image, affine=whole, extent=extent)[..., 3:20, 2:18]
        logits = network(image[..., 3:20, 2:18].contiguous(), affine=composed, extent=extent)
    reach = sum(isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) for layer in network.modules())
    inner = (..., slice(reach, -reach), slice(reach, -reach))
    assert torch.allclose(logits[inner], expected[inner], atol=1e-5)
    assert not torch.allclose(logits, expected, atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_slices_of_a_batch_have_their_own_places(variant):
    network = pointwise(variant, 3)
    affine = torch.stack([PLACE, PLACE + torch.tensor([[0, 0, 0], [0, 0, 0], [0, 0, 12.0]])])
    extent = torch.stack([BOX, 1.1 * BOX])
    image = torch.randn(1, 2, *SIZE).expand(2, -1, -1, -1)
    with torch.no_grad():
        both = network(image, affine=affine, extent=extent)
        alone = [network(image[:1], affine=a, extent=e) for a, e in zip(affine, extent, strict=True)]
    assert torch.allclose(both, torch.cat(alone), atol=1e-5)
    assert not torch.allclose(both[0], both[1], atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_control_of_constant_position_knows_no_height(variant):
    network = pointwise(variant, 3, constant_position=True)
    image = torch.randn(1, 2, *SIZE)
    with torch.no_grad():
        assert torch.equal(network(image, affine=PLACE, extent=BOX), network(image, affine=PLACE + 7, extent=BOX))
    with pytest.raises(ValueError, match="extent: expected it with 3 position axes"):
        network(image)


def test_every_variant_has_six_channels():
    for variant, k in (("base_f", 6), ("base_b", 6), ("scp", 6)):
        network = build_network(variant, capacity=32, levels=2, position_dims=3)
        layer = {"base_f": network.encoder[0][0][0], "base_b": network.last[0], "scp": network.head}[variant]
        inputs = layer.phi[0].in_features if variant == "scp" else layer.in_channels - 2
        assert inputs == k
        plain = build_network(variant, capacity=32, levels=2)
        assert count_parameters(network) > count_parameters(plain)
        assert nominal_macs(network, 16, 16) > nominal_macs(plain, 16, 16)
    with pytest.raises(ValueError, match="position_dims: expected 2 or 3, got 4"):
        build_network(position_dims=4)


def test_batches_and_predictions_have_the_same_positions(tmp_path):
    """The network sees in training what it sees in prediction, bit for bit; all frames share one cache."""
    root = write_wmh(tmp_path / "data", 3)
    seen = {}
    for frame in ("slice", "image", "foreground"):
        options = dict(roi_size=(16, 20), cache_dir=str(tmp_path / "cache"), frame=frame)
        data = SegmentationDataModule(str(root), "wmh", **options)
        data.prepare_data()
        data.setup()
        (subject,) = data.val_subjects
        batch = next(iter(data.val_dataloader()))
        assert ("affine" in batch) == ("extent" in batch) == (frame != "slice")
        model = build_model(roi_size=(16, 20), task_options=data.task_options, capacity=32, levels=2)
        randomize_phi(model.network.head)
        places = {name: batch[name] for name in ("affine", "extent") if name in batch}
        seen[frame] = places
        with torch.no_grad():
            p = model.network.eval()(batch["image"], **places).sigmoid()[:, 0]
        predicted = torch.from_numpy(Predictor(model, device="cpu").segment(subject).probabilities).permute(2, 0, 1)
        # The cache holds images in float16.
        assert torch.allclose(p, predicted, atol=1e-2)
    # An image, a label and what is known of them, for training and validation.
    assert len(list((tmp_path / "cache").iterdir())) == 3 * 2
    assert seen["image"]["affine"].shape == (6, 3, 3) and seen["image"]["affine"].dtype == torch.float32
    # The volume has 20 × 24 × 6 voxels, of which 16 × 20 are seen.
    assert torch.equal(seen["image"]["affine"][4], torch.tensor([[1, 0, 2.5], [0, 1, 2.5], [0, 0, 4.5]]))
    assert torch.equal(seen["image"]["extent"][4], torch.tensor([20.0, 24, 6]))


def test_an_older_checkpoint_means_the_slice(tmp_path):
    model = build_model(roi_size=(16, 20), capacity=32, levels=2)
    state = {f"network.{name}": value for name, value in model.network.state_dict().items()}
    old = {"variant": "scp", "task": "wmh", "roi_size": (16, 20), "capacity": 32, "levels": 2, "task_options": None}
    torch.save({"hyper_parameters": old, "state_dict": state}, tmp_path / "old.ckpt")
    loaded = load_model(tmp_path / "old.ckpt")
    assert loaded.task.frame == "slice" and loaded.network.position_dims == 2
    with pytest.raises(UserError, match="--frame: expected a transform's path, for a checkpoint that was trained with"):
        loaded.with_transforms("a.mat")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_three_axes_from_the_command_line(succeed, tmp_path, caplog, layout):
    """The default frame: train, evaluate, predict."""
    root = LAYOUTS[layout](tmp_path / "data")
    task = "lits" if layout == "lits" else "wmh"
    arguments = fit_arguments(root, tmp_path / "run", 1, "--data.task", task)
    succeed(*arguments)
    assert "positions in the frame foreground" in caplog.text
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert read_checkpoint(checkpoint)["hyper_parameters"]["task_options"]["frame"] == "foreground"
    assert load_model(checkpoint).network.head.position_dims == 3
    succeed("evaluate", checkpoint, "--data", root, "--split", "all", "--out", tmp_path / "scores")
    assert (tmp_path / "scores" / "scores.csv").read_text().count("\n") == 5
    succeed("predict", checkpoint, root, "--out", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 4


def test_transforms_from_the_command_line(run, succeed, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    root = write_wmh(tmp_path / "data", 4)
    for subject in find_subjects(root, get_task("wmh")):
        sitk.WriteTransform(sitk.AffineTransform(3), str(subject.images[0].parent / "to_mni.mat"))
    frame = ["--data.frame", "{folder}/to_mni.mat"]
    succeed(*fit_arguments(root, tmp_path / "run", 1, *frame))
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    one = root / "training" / "Utrecht" / "0"
    succeed("predict", checkpoint, one, "--out", tmp_path / "out")
    (one / "pre" / "to_mni.mat").rename(tmp_path / "Utrecht_0.mat")
    refused(run("predict", checkpoint, one, "--out", tmp_path / "o"), "to_mni.mat: expected a transform")
    elsewhere = f"{tmp_path}/Utrecht_0.mat"
    succeed("predict", checkpoint, one, "--frame", elsewhere, "--out", tmp_path / "again")
    first, second = (next((tmp_path / name).glob("*.nii.gz")) for name in ("out", "again"))
    assert np.array_equal(nib.load(first).get_fdata(), nib.load(second).get_fdata())


@pytest.mark.parametrize("more", [("--model.preset", "paper"), ("--data.frame", "slice")], ids=["preset", "slice"])
def test_the_papers_form_keeps_the_papers_frame(succeed, tmp_path, more):
    root = write_wmh(tmp_path / "data", 4)
    succeed(*fit_arguments(root, tmp_path / "run", 1, *more))
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert load_model(checkpoint).task.frame == "slice" and load_model(checkpoint).network.head.position_dims == 2
    assert read_checkpoint(checkpoint)["hyper_parameters"]["task_options"] is None


def test_workers_get_positions(tmp_path):
    root = write_wmh(tmp_path / "data", 3)
    options = dict(roi_size=(16, 20), cache_dir=str(tmp_path / "cache"), num_workers=1)
    data = SegmentationDataModule(str(root), frame="image", **options)
    data.prepare_data()
    data.setup()
    alone = SliceDataset(data.cache, data.val_subjects)
    batch = next(iter(data.val_dataloader()))
    assert torch.equal(batch["affine"], torch.stack([alone[k]["affine"] for k in range(len(batch["affine"]))]))
