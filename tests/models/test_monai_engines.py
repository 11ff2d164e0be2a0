"""The head in MONAI's engines: trained on patches with mirroring, evaluated by sliding windows."""

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MeanDice, from_engine
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.networks.nets import SegResNet
from monai.transforms import AsDiscreted, Compose, ConcatItemsd, RandFlipd, RandSpatialCropd
from torch import nn

from scp_models.monai import AddCoordinatesd, MirroringSlidingWindowInferer
from scp_models.networks import PositionedNetwork, attach
from tests.support.monai_bundle import pairs

KEYS = ("image", "coordinates")


def network():
    torch.manual_seed(0)
    segresnet = SegResNet(3, 8, 1, 3, blocks_down=(1, 1), blocks_up=(1,))
    return PositionedNetwork(attach(segresnet, "conv_final.2", position_dims=3, hidden_channels=16), 3)


def cropping(*keys):
    return Compose(
        [
            AddCoordinatesd("image", "image"),
            RandSpatialCropd([*KEYS, *keys], (16, 16, 8), random_size=False),
            RandFlipd([*KEYS, *keys], prob=0.5, spatial_axis=0),
            ConcatItemsd(KEYS, "image"),
        ]
    ).set_random_state(0)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_supervised_trainer_and_evaluator(compiled):
    torch.compiler.reset()
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    options = {"compile": True, "compile_kwargs": {"backend": "aot_eager"}} if compiled else {}
    loader = DataLoader(CacheDataset(pairs(), cropping("label"), progress=False, num_workers=0), batch_size=2)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=3,
        train_data_loader=loader,
        network=net,
        optimizer=torch.optim.Adam(net.parameters(), 1e-2),
        loss_function=DiceCELoss(to_onehot_y=True, softmax=True),
        **options,
    )
    trainer.run()
    assert trainer.state.iteration == 3 and np.isfinite(trainer.state.output[0]["loss"])
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert {"network.conv_final.2.phi.4.weight", "network.conv_final.2.phi.0.weight"} <= changed

    whole = Compose([AddCoordinatesd("image", "image"), ConcatItemsd(KEYS, "image")])
    scores = {}
    for name, inferer in {
        "plain": SlidingWindowInferer((16, 16, 8), 4, overlap=0.5),
        "mirrored": MirroringSlidingWindowInferer((16, 16, 8), 4, overlap=0.5, mirror_axes=(0,)),
    }.items():
        evaluator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(Dataset(pairs(), whole), batch_size=1),
            network=net,
            inferer=inferer,
            postprocessing=Compose([AsDiscreted("pred", argmax=True, to_onehot=3), AsDiscreted("label", to_onehot=3)]),
            key_val_metric={
                "dice": MeanDice(include_background=False, output_transform=from_engine(["pred", "label"]))
            },
        )
        evaluator.run()
        assert evaluator.state.output[0]["pred"].shape == (3, 24, 16, 8)
        scores[name] = evaluator.state.metrics["dice"]
    assert all(0 <= score <= 1 for score in scores.values())


def test_patches_are_told_apart_by_where_they_lie():
    """A backbone that cannot see the side: the head learns it, the plain one cannot. 40 steps."""

    def learned(with_head):
        torch.manual_seed(0)
        conv = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 3, 1))
        net = PositionedNetwork(attach(conv, "3", position_dims=3, hidden_channels=16), 3) if with_head else conv
        trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=40,
            train_data_loader=DataLoader(
                CacheDataset(pairs(), cropping("label"), progress=False, num_workers=0), batch_size=2
            ),
            network=net,
            optimizer=torch.optim.Adam(net.parameters(), 2e-2),
            loss_function=DiceCELoss(to_onehot_y=True, softmax=True),
            prepare_batch=lambda batch, device, non_blocking, **_: (
                batch["image"] if with_head else batch["image"][:, :1],
                batch["label"],
            ),
        )
        trainer.run()
        data = Compose([AddCoordinatesd("image", "image"), ConcatItemsd(KEYS, "image")])(pairs(1)[0])
        x = data["image"][None].as_tensor()
        with torch.no_grad():
            sides = net.eval()(x if with_head else x[:, :1])[0].argmax(0)
        target = data["label"][0].as_tensor()
        marked = target > 0
        return float((sides[marked] == target[marked]).float().mean())

    assert learned(True) > 0.9
    assert learned(False) < 0.6
