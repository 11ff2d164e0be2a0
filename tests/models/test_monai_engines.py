"""The head in MONAI's engines and bundles: trained on patches with mirroring, evaluated by sliding windows."""

import json
import sys

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.apps.auto3dseg import BundleGen
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MeanDice, from_engine
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.networks.nets import SegResNet
from monai.transforms import AsDiscreted, Compose, ConcatItemsd, RandFlipd, RandSpatialCropd
from torch import nn

from scp_kernels import FusedSCP
from scp_models.monai import AddCoordinatesd, MirroringSlidingWindowInferer
from scp_models.networks import PositionedNetwork, attach

KEYS = ("image", "coordinates")


def pairs(count=2, size=(24, 16, 8)):
    """Volumes with a blob on either side, labelled by the side: nothing in a small patch tells which."""
    result = []
    for k in range(count):
        generator = np.random.default_rng(k)
        values, label = generator.normal(0, 0.1, size).astype(np.float32), np.zeros(size, np.uint8)
        for side, x in ((1, 4), (2, 16)):
            label[x : x + 4, 5 + k : 10 + k, 1:7] = side
        values += label > 0
        result.append(
            {
                key: MetaTensor(torch.from_numpy(v)[None], affine=torch.eye(4))
                for key, v in (("image", values), ("label", label))
            }
        )
    return result


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


def bundle_config(folder):
    shape = {"size": [16, 16, 8], "keys": ["image", "coordinates", "label"]}
    return {
        "imports": ["$import torch"],
        "data": [{key: f"{folder}/{key}{k}.nii.gz" for key in ("image", "label")} for k in range(2)],
        "folder": str(folder),
        "device": "$torch.device('cpu')",
        "network_def": {
            "_target_": "scp_models.networks.PositionedNetwork",
            "position_dims": 3,
            "network": {
                "_target_": "scp_models.networks.attach",
                "layer": "conv_final.2",
                "position_dims": 3,
                "network": {
                    "_target_": "SegResNet",
                    "out_channels": 3,
                    "blocks_down": [1, 1],
                    "blocks_up": [1],
                },
            },
        },
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": ["image", "label"], "ensure_channel_first": True},
                {"_target_": "scp_models.monai.AddCoordinatesd", "keys": "image", "frame": "foreground"},
                {
                    "_target_": "RandSpatialCropd",
                    "keys": shape["keys"],
                    "roi_size": shape["size"],
                    "random_size": False,
                },
                {"_target_": "RandFlipd", "keys": shape["keys"], "prob": 0.5, "spatial_axis": 0},
                {"_target_": "ConcatItemsd", "keys": ["image", "coordinates"], "name": "image"},
            ],
        },
        "train": {
            "dataset": {"_target_": "CacheDataset", "data": "@data", "transform": "@preprocessing", "progress": False},
            "trainer": {
                "_target_": "SupervisedTrainer",
                "device": "@device",
                "max_epochs": 1,
                "train_data_loader": {"_target_": "DataLoader", "dataset": "@train#dataset", "batch_size": 2},
                "network": "@network_def",
                "optimizer": {
                    "_target_": "torch.optim.Adam",
                    "params": "$@network_def.parameters()",
                    "lr": 0.01,
                },
                "loss_function": {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True},
                "train_handlers": [
                    {
                        "_target_": "CheckpointSaver",
                        "save_dir": "@folder",
                        "save_dict": {"model": "@network_def"},
                        "save_final": True,
                        "final_filename": "model.pt",
                    }
                ],
            },
        },
        "run": ["$@train#trainer.run()"],
    }


def write_volumes(folder):
    for k, item in enumerate(pairs()):
        for key, tensor in item.items():
            nib.save(nib.Nifti1Image(tensor[0].numpy(), np.diag([-1.0, -1, 3, 1])), folder / f"{key}{k}.nii.gz")


def check_trained(checkpoint, config):
    saved = torch.load(checkpoint)
    assert (saved["network.conv_final.2.phi.4.weight"] != 0).any()
    net = monai.bundle.ConfigParser(config).get_parsed_content("network_def")
    assert isinstance(net.network.conv_final[2], FusedSCP) and net.network.conv_final[2].position_dims == 3
    net.load_state_dict(saved)


def test_a_bundle_trains_a_network_with_the_head(tmp_path):
    write_volumes(tmp_path)
    (tmp_path / "train.json").write_text(json.dumps(bundle_config(tmp_path)))
    monai.bundle.run(run_id="run", config_file=str(tmp_path / "train.json"))
    check_trained(tmp_path / "model.pt", bundle_config(tmp_path))


ALGORITHM = """
from pathlib import Path
from monai.apps.auto3dseg import BundleAlgo

class ScpAlgo(BundleAlgo):
    def fill_template_config(self, data_stats_filename, algo_path, **kwargs):
        path = Path(algo_path) / "configs" / "train.json"
        path.write_text(path.read_text().replace("FOLDER", self.data_list_file))
        return {"train.json": {"FOLDER": self.data_list_file}}
"""
TRAINING = """
import sys
import monai.bundle

(config,) = [word.partition("=")[2] for word in sys.argv if word.startswith("--config_file=")]
monai.bundle.run(run_id="run", config_file=config.strip("'"))
"""


def test_auto3dseg_generates_and_trains_an_algorithm_of_ours(tmp_path):
    """From a template in a local folder: the published ones build their networks themselves."""
    (tmp_path / "volumes").mkdir()
    write_volumes(tmp_path / "volumes")
    scripts, configs = (tmp_path / "templates" / "scp" / part for part in ("scripts", "configs"))
    scripts.mkdir(parents=True)
    configs.mkdir()
    (scripts / "algo.py").write_text(ALGORITHM)
    (scripts / "train.py").write_text(TRAINING)
    (configs / "train.json").write_text(json.dumps(bundle_config("FOLDER")))
    generator = BundleGen(
        algo_path=str(tmp_path / "work"),
        algos="scp",
        templates_path_or_url=str(tmp_path / "templates"),
        data_src_cfg_name=str(tmp_path / "volumes"),
    )
    generator.generate(str(tmp_path / "work"), num_fold=1)
    (history,) = generator.get_history()
    history["algo_instance"].train(device_setting={"CMD_PREFIX": sys.executable, "CUDA_VISIBLE_DEVICES": "0"})
    check_trained(tmp_path / "volumes" / "model.pt", bundle_config(tmp_path))
