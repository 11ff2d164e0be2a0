"""The scale of Φ in presets, in attached heads, and in checkpoints of versions that had none."""

import pytest
import torch
from torch import nn

from scp_kernels import FusedSCP
from scp_models.checkpoints import load_model
from scp_models.errors import UserError
from scp_models.networks import attach, build_network
from scp_models.training.module import SegmentationModule
from tests.support.heads import image, randomize_phi

SMALL = {"capacity": 64, "levels": 2}


def test_presets_say_the_scale():
    expected = FusedSCP(4, 1, 32, phi_scale="adam").phi_scale
    assert build_network("scp", **SMALL).head.phi_scale is None
    assert torch.equal(build_network("scp", **SMALL, phi_scale="adam").head.phi_scale, expected)
    assert build_network("scp", **SMALL, preset="paper").head.phi_scale is None
    assert build_network("scp", **SMALL, phi_scale=1.0).head.phi_scale is None
    assert build_network("scp", **SMALL, preset="paper", phi_scale=0.25).head.phi_scale == 0.25
    sgd = FusedSCP(4, 1, 32, phi_scale="sgd").phi_scale
    assert build_network("scp", **SMALL, phi_scale="sgd").head.phi_scale == sgd > expected


def test_attached_heads_have_it():
    def attached(**options):
        return attach(nn.Sequential(nn.Conv2d(4, 2, 1)), "0", **options)[0].phi_scale

    assert attached() is None
    assert attached(phi_scale="adam") == FusedSCP(4, 2, phi_scale="adam").phi_scale < 1
    assert attached(phi_scale="sgd") == FusedSCP(4, 2, phi_scale="sgd").phi_scale < 1
    assert attached(phi_scale=1.0) is None


def test_weights_of_a_head_that_was_attached_without_a_scale():
    old = attach(nn.Sequential(nn.Conv2d(4, 2, 1)), "0", phi_scale=1.0)
    randomize_phi(old[0])
    new = attach(nn.Sequential(nn.Conv2d(4, 2, 1)), "0")
    new.load_state_dict(old.state_dict())
    x = image(1, 4, 12, 12)
    assert torch.equal(new(x), old(x))


def saved(path, without=(), **options):
    """A checkpoint as ``scp-models fit`` writes it, whose hyperparameters do not know the names in ``without``."""
    module = SegmentationModule("scp", **SMALL, **options).eval()
    randomize_phi(module.network.head)
    hyperparameters = {key: value for key, value in module.hparams.items() if key not in without}
    torch.save({"hyper_parameters": hyperparameters, "state_dict": module.state_dict()}, path)
    return module


def test_a_checkpoint_of_before_the_scale_segments_as_it_did(tmp_path):
    old = saved(tmp_path / "old.ckpt", without=("phi_scale",), phi_scale=1.0)
    assert "network.head.phi_scale" not in old.state_dict()
    network, x = load_model(tmp_path / "old.ckpt").network, image(1, 2, 16, 16)
    assert network.head.phi_scale is None
    assert torch.equal(network(x), old.network(x))


@pytest.mark.parametrize("phi_scale", [None, 1.0, 0.5, "adam", "sgd"])
def test_checkpoints_keep_the_scale(tmp_path, phi_scale):
    module = saved(tmp_path / "new.ckpt", phi_scale=phi_scale)
    network, x = load_model(tmp_path / "new.ckpt").network, image(1, 2, 16, 16)
    assert torch.equal(network(x), module.network(x))
    assert network.head.phi_scale == module.network.head.phi_scale


def test_another_scale_is_refused_in_one_line():
    with pytest.raises(UserError, match="phi_scale: expected 'adam', 'sgd' or a power of two"):
        SegmentationModule("scp", **SMALL, phi_scale="rmsprop")
