"""Anchored heads in presets, attached heads and checkpoints, and runs of versions that had none."""

import pytest
import torch
from torch import nn

from scp_kernels import FusedSCP
from scp_models.checkpoints import check_resumable, load_model
from scp_models.errors import UserError
from scp_models.networks import attach, build_network
from scp_models.training.module import SegmentationModule
from tests.models.test_phi_scale import SMALL, saved
from tests.support.heads import image, randomize_phi
from tests.support.tolerances import LOGITS, relative_error


def test_presets_say_it():
    assert build_network("scp", **SMALL).head.anchored
    for options in ({"preset": "paper"}, {"position": "pixels"}, {"anchored": False}):
        assert not build_network("scp", **SMALL, **options).head.anchored
    assert build_network("scp", **SMALL, preset="paper", position="centered", anchored=True).head.anchored
    with pytest.raises(ValueError, match="anchored: expected position='centered'"):
        build_network("scp", **SMALL, position="pixels", anchored=True)
    assert isinstance(build_network("base", **SMALL, anchored=True).head, nn.Conv2d)


def test_attached_heads_have_it():
    def attached(**options):
        return attach(nn.Sequential(nn.Conv2d(4, 2, 1)), "0", **options)[0].anchored

    assert attached()
    assert not attached(position="pixels") and not attached(anchored=False)


def test_weights_of_a_head_that_was_attached_before_there_was_an_anchor():
    old = attach(nn.Sequential(nn.Conv2d(4, 2, 1)), "0", anchored=False)
    randomize_phi(old[0])
    new = attach(nn.Sequential(nn.Conv2d(4, 2, 1)), "0")
    new.load_state_dict(old.state_dict())
    x = image(1, 4, 12, 12)
    assert new[0].anchored and relative_error(new(x), old(x)) <= LOGITS[torch.float32]


def test_a_checkpoint_of_before_the_anchor_segments_as_it_did(tmp_path):
    old = saved(tmp_path / "old.ckpt", without=("anchored",), anchored=False)
    network, x = load_model(tmp_path / "old.ckpt").network, image(1, 2, 16, 16)
    assert not network.head.anchored and torch.equal(network(x), old.network(x))


@pytest.mark.parametrize("anchored", [None, True, False])
def test_checkpoints_keep_it(tmp_path, anchored):
    module = saved(tmp_path / "new.ckpt", anchored=anchored)
    network, x = load_model(tmp_path / "new.ckpt").network, image(1, 2, 16, 16)
    assert network.head.anchored == module.network.head.anchored == (anchored is not False)
    assert torch.equal(network(x), module.network(x))


def trained(module, steps=3):
    """The optimizer after some steps on noise, for whose state parameters have to be the same ones."""
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        module.network(image(2, 2, 16, 16)).square().mean().backward()
        optimizer.step()
    return optimizer


def test_a_run_of_before_the_anchor_goes_on_as_it_was(tmp_path):
    old = SegmentationModule("scp", **SMALL, anchored=False)
    state = trained(old).state_dict()
    hyperparameters = {name: value for name, value in old.hparams.items() if name != "anchored"}
    content = {"hyper_parameters": hyperparameters, "state_dict": old.state_dict(), "optimizer_states": [state]}
    content |= {"split": {}, "augmentation": {}}
    torch.save(content, tmp_path / "old.ckpt")
    new = SegmentationModule("scp", **SMALL)
    check_resumable(tmp_path / "old.ckpt", new.hparams, {}, {})
    with pytest.raises(UserError, match="with anchored = True; got False"):
        check_resumable(tmp_path / "old.ckpt", {**new.hparams, "anchored": True}, {}, {})
    assert new.network.head.anchored
    new.on_load_checkpoint(content)
    new.load_state_dict(content["state_dict"])
    assert not new.network.head.anchored
    torch.optim.Adam(new.parameters(), 1e-2).load_state_dict(state)
    x = image(1, 2, 16, 16)
    assert torch.equal(new.eval()(x), old.eval()(x))
    other = SegmentationModule("scp", **SMALL)
    content["hyper_parameters"]["anchored"] = False
    torch.save(content, tmp_path / "new.ckpt")
    with pytest.raises(UserError, match="with anchored = None; got False"):
        check_resumable(tmp_path / "new.ckpt", other.hparams, {}, {})


def test_ten_steps_without_positions_are_those_of_base():
    """The studies' control: with Base's first weights it is Base, at any rate and width."""
    losses = {}
    for variant, options in (("base", {}), ("scp", {"constant_position": True, "hidden_channels": 256})):
        torch.manual_seed(0)
        network = build_network(variant, **SMALL, **options)
        torch.manual_seed(1)
        weight = torch.randn(1, 4)
        with torch.no_grad():
            if isinstance(network.head, FusedSCP):
                network.head.residual.weight.copy_(weight)
            else:
                network.head.weight.copy_(weight[..., None, None])
        optimizer, x = torch.optim.Adam(network.parameters(), 4e-3), image(4, 2, 16, 16)
        losses[variant] = []
        for _ in range(10):
            optimizer.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(network(x), (x[:, :1] > 1).float())
            loss.backward()
            optimizer.step()
            losses[variant].append(loss.item())
    assert losses["scp"] == pytest.approx(losses["base"], rel=1e-4) and losses["base"][-1] < 0.9 * losses["base"][0]
