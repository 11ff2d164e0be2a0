"""nnU-Net's trainer with spatially covariant heads, part by part: where voxels lie, augmentation, the network."""

import itertools
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("nnunetv2", reason='nnU-Net is not installed: pip install "scp_kernels[nnunet]"')

from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from scp_kernels import FusedSCP, affine_of_coordinates
from scp_models.data.geometry import coordinate_channels
from scp_models.errors import UserError
from scp_models.nnunet import install
from scp_models.nnunet.dataset import PositionedArray
from scp_models.nnunet.geometry import file_affine, grid_affine, position_affine
from scp_models.nnunet.network import PlannedNetwork, attach_to_segmentation_layers
from scp_models.nnunet.trainer import nnUNetTrainerSCP
from tests.support.left_right import forget_what_needs_torchvision, nnunet_copy, rotation
from tests.support.processes import run_python

# mm of index (i, j, k), RAS+: an oblique scan whose first axis runs to the left.
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = rotation([0.2, -0.1, 0.3]) @ np.diag([-1.5, 2.0, 4.0])
OBLIQUE[:3, 3] = [40.0, -30.0, -12.0]


def mm(affine, shape):
    """Where the voxels of a grid lie, ``[3, *shape]``."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    return np.einsum("ij,jxyz->ixyz", affine[:3, :3], index) + affine[:3, 3][:, None, None, None]


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO, NibabelIOWithReorient])
def test_voxels_lie_where_the_file_says(reader, tmp_path):
    """The image's values are places themselves: whatever order a reader gives them in, they must agree."""
    shape = (7, 6, 5)
    for axis, values in enumerate(mm(OBLIQUE, shape)):
        nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), OBLIQUE), tmp_path / f"a_{axis:04}.nii.gz")
    data, properties = reader().read_images([str(tmp_path / f"a_{axis:04}.nii.gz") for axis in range(3)])
    np.testing.assert_allclose(mm(file_affine(properties), data.shape[1:]), data, atol=1e-4)


def test_a_reader_without_orientation_leaves_the_spacing():
    affine = file_affine({"spacing": [999.0, 2.0, 0.5]})
    np.testing.assert_allclose(affine @ [1, 1, 1, 1], [0.5, 2, 999, 1])


def test_a_picture_of_itk_has_two_axes(tmp_path):
    import SimpleITK

    image = SimpleITK.GetImageFromArray(np.zeros((4, 6), np.float32))
    image.SetSpacing((0.5, 2.0))
    SimpleITK.WriteImage(image, str(tmp_path / "a_0000.nrrd"))
    _, properties = SimpleITKIO().read_images([str(tmp_path / "a_0000.nrrd")])
    np.testing.assert_allclose(file_affine(properties) @ [1, 1, 1, 1], [-0.5, -2, 1, 1])


@pytest.mark.parametrize("transpose", list(itertools.permutations(range(3))), ids=str)
def test_preprocessed_voxels_lie_where_cropping_transposing_and_resampling_put_them(transpose):
    """A linear picture, resampled linearly with the grid's borders kept, says where each new voxel lies."""
    shape = (8, 10, 12)
    places = mm(file_affine({"nibabel_stuff": {"original_affine": OBLIQUE}, "spacing": [4, 2, 1.5]}), shape)
    places = places.transpose(0, *(axis + 1 for axis in transpose))
    box = [[1, 7], [2, 8], [0, 6]]
    cropped = places[(slice(None), *(slice(*bounds) for bounds in box))]
    new = (12, 9, 3)
    resampled = nn.functional.interpolate(torch.from_numpy(cropped)[None], new, mode="trilinear")[0].numpy()
    properties = {
        "nibabel_stuff": {"original_affine": OBLIQUE},
        "spacing": [4, 2, 1.5],
        "bbox_used_for_cropping": box,
        "shape_after_cropping_and_before_resampling": cropped.shape[1:],
    }
    inner = (slice(None), slice(1, -1), slice(1, -1), slice(None))  # where interpolation has both neighbours
    places_of_grid = mm(grid_affine(properties, transpose, new), new)
    np.testing.assert_allclose(places_of_grid[inner], resampled[inner], atol=1e-9)


class TestFrame:
    affine = np.diag([2.0, 1.0, 1.0, 1.0])[:, [2, 1, 0, 3]]  # index (z, y, x) to mm

    def head(self, noise=0.0):
        image = noise * np.abs(np.random.default_rng(0).normal(size=(20, 40, 48))).astype(np.float32)
        image[4:16, 10:30, 6:36] += 1
        return image

    def borders(self, image, outside=None, frame="foreground"):
        """Where each axis' position is 0 and 1: to the right, front, top, in voxels."""
        affine = position_affine(image, outside, self.affine, frame)
        slopes, offsets = affine[:, :3].max(1), affine[:, 3]
        return np.stack([-offsets / slopes, (1 - offsets) / slopes], 1) + 0.5

    def test_is_the_box_of_the_head(self):
        """To half a voxel: small ones count by their centres."""
        np.testing.assert_allclose(self.borders(self.head(0.02)), [[6, 36], [10, 30], [4, 16]], atol=0.51)

    def test_does_not_change_with_normalisation(self):
        image = self.head(0.02)
        affine = position_affine(image, None, self.affine, "foreground")
        again = position_affine(5 * image - 7, None, self.affine, "foreground")
        np.testing.assert_allclose(again, affine, rtol=1e-6)

    def test_what_was_zero_is_outside_whatever_normalisation_made_of_it(self):
        """nnU-Net's z-score within the mask leaves 0 outside, which is the mean of the brain."""
        image = self.head()
        outside = image == 0
        image = np.where(outside, 0, np.random.default_rng(0).normal(size=image.shape)).astype(np.float32)
        borders = self.borders(image, outside)
        np.testing.assert_allclose(borders, [[6, 36], [10, 30], [4, 16]], atol=1)

    def test_is_the_whole_image_if_asked_for_or_if_there_is_no_foreground(self):
        whole = [[0, 48], [0, 40], [0, 20]]
        np.testing.assert_allclose(self.borders(self.head(), frame="image"), whole, atol=1e-9)
        np.testing.assert_allclose(self.borders(np.ones((20, 40, 48), np.float32)), whole, atol=1e-9)


def test_channels_of_a_part_are_those_of_the_whole():
    affine = np.random.default_rng(0).normal(size=(3, 4))
    array = PositionedArray(np.arange(2 * 5 * 6 * 7, dtype=np.float32).reshape(2, 5, 6, 7), affine)
    whole = array[:]
    assert whole.shape == array.shape == (6, 5, 6, 7)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(array[:, 1:3, 2:6, 0:7], whole[:, 1:3, 2:6])
    np.testing.assert_array_equal(whole[:2], array.data)
    np.testing.assert_allclose(whole[2:5, 3, 4, 5], affine @ [3, 4, 5, 1], rtol=1e-6)
    assert (whole[5] == 1).all()


def trainer():
    """Without what the constructor needs."""
    return nnUNetTrainerSCP.__new__(nnUNetTrainerSCP)


@pytest.mark.parametrize(("patch", "dummy_2d"), [((24, 28), False), ((12, 20, 16), False), ((6, 24, 24), True)])
@pytest.mark.parametrize("cascaded", [False, True])
def test_coordinates_follow_every_augmentation(patch, dummy_2d, cascaded):
    """The segmentation is a map of positions: what nnU-Net does to it in space, it must do to coordinates, and nothing
    that it does to intensities. The patch is larger than the image, so that there is padding."""
    np.random.seed(0)
    torch.manual_seed(0)
    dims = len(patch)
    transforms = trainer().get_training_transforms(
        patch, (-0.5, 0.5), None, tuple(range(dims)), dummy_2d, use_mask_for_norm=[False, False],
        is_cascaded=cascaded, foreground_labels=[1, 2],
    )  # fmt: skip
    shape = (1,) * (3 - dims) + tuple(n if dummy_2d and k == 0 else n + 6 for k, n in enumerate(patch))
    affine = np.random.default_rng(1).uniform(-1, 1, (3, 4)) / 20
    affine[:, 3] = 0.5
    steps = 40
    extent = torch.ones(3)
    moved = 0
    for _ in range(30):
        channels = torch.from_numpy(coordinate_channels(affine, [*map(np.arange, shape)])).reshape(4, *shape[-dims:])
        margin = tuple(slice(1, -1) if dummy_2d and k == 0 else slice(3, -3) for k in range(dims))
        padded = torch.zeros_like(channels)
        padded[(slice(None), *margin)] = channels[(slice(None), *margin)]
        labels = (channels[:1] * steps).round().short() + 1000
        labels = labels.where(padded[3:] == 1, torch.tensor(-1, dtype=torch.int16))
        previous = torch.ones_like(labels)
        image = torch.randn(2, *channels.shape[1:])
        result = transforms(
            image=torch.cat([image, padded]), segmentation=torch.cat([labels, previous] if cascaded else [labels])
        )
        data, moved_labels = result["image"], result["segmentation"]
        assert data.shape == (2 + 4 + (2 if cascaded else 0), *patch)
        p, valid = data[2:6][:3], data[5] > 1 - 1e-5
        valid &= moved_labels[0] > 0  # −1 became background
        assert valid.float().mean() > 0.2  # else the rest would say little
        # Labels are those of the nearest voxels: half a label's width, and half a voxel along each axis.
        nearest = 0.51 / steps + 0.51 * np.abs(affine[0, 3 - dims : 3]).sum()
        assert (p[0] - (moved_labels[0] - 1000) / steps)[valid].abs().max() < nearest < 0.2
        affine_of_patch = affine_of_coordinates(data[2:6][None], extent)  # raises where they are not affine
        index = torch.stack(torch.meshgrid(*map(torch.arange, patch), indexing="ij")).double()
        again = torch.einsum("kd,d...->k...", affine_of_patch[:, :dims].double(), index) + affine_of_patch[
            :, dims
        ].reshape(-1, *[1] * dims)
        assert (again - p)[:, valid].abs().max() < 1e-4
        moved += not torch.allclose(
            affine_of_patch[:, :dims].double(), torch.from_numpy(affine[:, 3 - dims : 3]), atol=1e-5
        )
    assert moved > 15  # mirrored, turned or scaled


def backbone(kind, dims, deep_supervision, channels=2, seed=0):
    torch.manual_seed(seed)
    conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if dims == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    blocks = "n_conv_per_stage" if kind is PlainConvUNet else "n_blocks_per_stage"
    return kind(
        channels, 3, (4, 6, 8), conv, 3, (1, 2, 2), num_classes=3, n_conv_per_stage_decoder=1, conv_bias=True,
        norm_op=norm, norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU, deep_supervision=deep_supervision,
        **{blocks: 1},
    )  # fmt: skip


def positioned_network(kind=PlainConvUNet, dims=2, deep_supervision=True, channels=2, image_channels=2):
    network = backbone(kind, dims, deep_supervision, channels)
    attach_to_segmentation_layers(network, 8)
    return PlannedNetwork(network, channels, image_channels)


def randomise(network):
    """Φ's last layers start at 0, where positions do not matter."""
    torch.manual_seed(1)
    for head in network.modules():
        if isinstance(head, FusedSCP):
            nn.init.normal_(head.phi[4].weight)
    return network


def batch(dims, channels=2, seed=0, size=16):
    """Images and coordinate channels of two patches at different places."""
    rng = np.random.default_rng(seed)
    shape = (1,) * (3 - dims) + (size,) * dims
    p = [coordinate_channels(rng.uniform(-1, 1, (3, 4)) / 16, [*map(np.arange, shape)]) for _ in range(2)]
    p = torch.from_numpy(np.stack(p)).reshape(2, 4, *shape[3 - dims :])
    return torch.randn(2, channels, *p.shape[2:], generator=torch.Generator().manual_seed(seed)), p


@pytest.mark.parametrize("kind", [PlainConvUNet, ResidualEncoderUNet])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("deep_supervision", [True, False])
class TestNetwork:
    def test_starts_as_the_planned_network(self, kind, dims, deep_supervision):
        image, p = batch(dims)
        plain = backbone(kind, dims, deep_supervision)(image)
        ours = positioned_network(kind, dims, deep_supervision)(torch.cat([image, p], 1))
        if not deep_supervision:
            plain, ours = [plain], [ours]
        assert len(plain) == len(ours) == (2 if deep_supervision else 1)
        for a, b in zip(ours, plain, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)

    def test_every_layer_is_told_its_own_positions(self, kind, dims, deep_supervision):
        network = randomise(positioned_network(kind, dims, deep_supervision))
        image, p = batch(dims)
        heads, seen = [m for m in network.modules() if isinstance(m, FusedSCP)], []
        hooks = [h.register_forward_hook(lambda head, x, y: seen.append((head, x[0], y))) for h in heads]
        network(torch.cat([image, p], 1))
        for hook in hooks:
            hook.remove()
        assert len(heads) == 2  # all resolutions, used or not
        assert len(seen) == (2 if deep_supervision else 1)
        for head, features, logits in seen:
            step = image.shape[-1] // features.shape[-1]
            here = p[(..., *[slice(None, None, step)] * dims)]
            torch.testing.assert_close(logits, head(features, coordinates=here, extent=(1, 1, 1)), atol=1e-4, rtol=1e-4)

    def test_mirroring_and_padding_change_nothing(self, kind, dims, deep_supervision):
        """What the predictor does: the head's part of the logits moves along."""
        network = randomise(positioned_network(kind, dims, deep_supervision))
        head = [m for m in network.modules() if isinstance(m, FusedSCP)][-1]
        seen = []
        head.register_forward_pre_hook(lambda head, x: (torch.ones_like(x[0]),))
        head.register_forward_hook(lambda head, x, y: seen.append(y))
        image, p = batch(dims)
        data = torch.cat([image, p], 1)
        axes = [2, dims + 1]
        padded = nn.functional.pad(data, [8, 8] * dims)
        for given in (data, data.flip(axes), padded):
            network(given)
        torch.testing.assert_close(seen[1].flip(axes), seen[0], atol=1e-4, rtol=1e-4)
        inner = seen[2][(..., *[slice(8, -8)] * dims)]
        torch.testing.assert_close(inner, seen[0], atol=1e-4, rtol=1e-4)

    def test_gradients_reach_every_parameter(self, kind, dims, deep_supervision):
        network = randomise(positioned_network(kind, dims, deep_supervision))
        result = network(torch.cat(batch(dims), 1))
        sum(r.square().mean() for r in (result if deep_supervision else [result])).backward()
        without = {name for name, parameter in network.named_parameters() if parameter.grad is None}
        assert without == (set() if deep_supervision else {n for n in without if n.startswith("decoder.seg_layers.0")})
        assert all(p.grad.abs().sum() > 0 for n, p in network.named_parameters() if ".phi." in n and n not in without)

    def test_weights_of_a_plain_network_are_taken_over(self, kind, dims, deep_supervision, tmp_path):
        plain = backbone(kind, dims, deep_supervision, seed=7)
        torch.save({"network_weights": plain.state_dict()}, tmp_path / "checkpoint_final.pth")
        network = positioned_network(kind, dims, deep_supervision)
        load_pretrained_weights(network, str(tmp_path / "checkpoint_final.pth"))
        state = network.state_dict()
        for name, value in plain.state_dict().items():
            if ".seg_layers." not in name:  # nnU-Net leaves these out
                torch.testing.assert_close(state[name], value, atol=0, rtol=0)
        extra = state.keys() - plain.state_dict().keys()
        assert extra and all(".seg_layers." in name for name in extra)


@pytest.mark.parametrize(("dims", "size"), [(2, 200), (3, 68)])
def test_large_patches_are_read_at_some_voxels(dims, size):
    network = randomise(positioned_network(dims=dims, deep_supervision=False))
    head = [m for m in network.modules() if isinstance(m, FusedSCP)][-1]
    seen = []
    head.register_forward_hook(lambda head, x, y: seen.append((x[0], y)))
    image, p = batch(dims, size=size)
    p[:, :, : size // 3] = 0  # padding
    network(torch.cat([image, p], 1))
    ((features, logits),) = seen
    expected = head(features, coordinates=p, extent=(1, 1, 1))
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-4)


def test_channels_of_a_previous_stage_lie_behind_the_coordinates():
    network = randomise(positioned_network(channels=5, image_channels=2))
    plain = network.network
    image, p = batch(2, channels=5)
    data = torch.cat([image[:, :2], p, image[:, 2:]], 1)
    seen = []
    plain.register_forward_pre_hook(lambda module, x: seen.append(x[0]))
    network(data)
    torch.testing.assert_close(seen[0], image)


def test_missing_coordinates_are_told():
    with pytest.raises(UserError, match="expected 6 channels, of which 4 are coordinates, got 2"):
        positioned_network()(batch(2)[0])


def test_a_network_without_segmentation_layers_is_refused():
    with pytest.raises(UserError, match=r"seg_layers\.0.*got Sequential"):
        attach_to_segmentation_layers(nn.Sequential(nn.Conv2d(2, 2, 1)), 8)


@pytest.mark.parametrize("deep_supervision", [True, False])
def test_compiled_networks_follow_positions(deep_supervision):
    """The backbone is a graph, and new positions make no new one."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    network = randomise(positioned_network(deep_supervision=deep_supervision)).eval()
    compiled = torch.compile(network, backend=counter)
    for seed in range(4):
        data = torch.cat(batch(2, seed=seed), 1)
        with torch.inference_mode():
            expected, result = network(data), compiled(data)
        for a, b in zip(result, expected, strict=True) if deep_supervision else [(result, expected)]:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        if seed == 1:
            graphs = counter.frame_count
    assert 0 < counter.frame_count == graphs
    torch._dynamo.reset()


def test_training_and_evaluation_reach_the_network_inside():
    network = positioned_network()
    assert network.eval().network.training is False
    assert network.train().network.training is True


FIND = """
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
trainer = find("nnUNetTrainerSCP")
assert trainer.__module__ == "scp_models.nnunet.trainer", trainer
"""


class TestFinding:
    def test_by_the_environment_variable(self, monkeypatch):
        forget_what_needs_torchvision(monkeypatch)
        monkeypatch.delenv("nnUNet_extTrainer", raising=False)
        with pytest.raises(RuntimeError, match="Could not find requested nnunet trainer nnUNetTrainerSCP"):
            recursive_find_trainer_class_by_name("nnUNetTrainerSCP")
        monkeypatch.setenv("nnUNet_extTrainer", str(install.external_folder()))
        for _ in range(2):  # nnU-Net forgets what it has imported from there
            assert recursive_find_trainer_class_by_name("nnUNetTrainerSCP") is nnUNetTrainerSCP

    def test_by_a_file_that_a_command_writes_and_removes(self, tmp_path):
        """In a copy of nnU-Net, so that the installed one stays as it is."""
        environment = nnunet_copy(tmp_path, whole=True)
        script = (
            "from scp_models.nnunet import install\npath = install.install()\nprint(path)\n"
            f"{FIND}\nassert install.uninstall() == path and not path.exists()"
        )
        done = run_python("-c", script, env=environment)
        assert Path(done.stdout.splitlines()[0]) == tmp_path / "nnunetv2/training/nnUNetTrainer/nnUNetTrainerSCP.py"

    def test_what_is_left_when_the_package_is_gone_stops_no_other_trainer(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "scp_models.nnunet.trainer", None)  # cannot be imported
        exec(install.TEXT, {})

    def test_somebody_elses_file_is_left_alone(self, monkeypatch, tmp_path):
        monkeypatch.setattr(install, "trainer_file", lambda: tmp_path / install.NAME)
        with pytest.raises(UserError, match="expected the file that"):
            install.uninstall()
        (tmp_path / install.NAME).write_text("mine")
        with pytest.raises(UserError, match="expected the file that"):
            install.uninstall()
        assert (tmp_path / install.NAME).exists()
