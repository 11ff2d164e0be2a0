"""A bundle's configuration of a network with a head, and volumes to train it on."""

import monai.bundle
import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

from scp_kernels import FusedSCP


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


def write_volumes(folder):
    """:func:`pairs` as files ``image0.nii.gz``, ``label0.nii.gz`` …"""
    for k, item in enumerate(pairs()):
        for key, tensor in item.items():
            nib.save(nib.Nifti1Image(tensor[0].numpy(), np.diag([-1.0, -1, 3, 1])), folder / f"{key}{k}.nii.gz")


def _reading(*keys):
    return [
        {"_target_": "LoadImaged", "keys": list(keys), "ensure_channel_first": True},
        {"_target_": "scp_models.monai.AddCoordinatesd", "keys": "image", "frame": "foreground"},
    ]


def bundle_config(folder, epochs=1):
    """Of a training whose checkpoint is ``folder/model.pt``, on the volumes there."""
    keys = ["image", "coordinates", "label"]
    together = {"_target_": "ConcatItemsd", "keys": ["image", "coordinates"], "name": "image"}
    return {
        "imports": ["$import torch"],
        "data": [{key: f"{folder}/{key}{k}.nii.gz" for key in ("image", "label")} for k in range(2)],
        "folder": str(folder),
        "classes": 3,
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
                    "out_channels": "@classes",
                    "blocks_down": [1, 1],
                    "blocks_up": [1],
                },
            },
        },
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                *_reading("image", "label"),
                {"_target_": "RandSpatialCropd", "keys": keys, "roi_size": [16, 16, 8], "random_size": False},
                {"_target_": "RandFlipd", "keys": keys, "prob": 0.5, "spatial_axis": 0},
                together,
            ],
        },
        "reading": {"_target_": "Compose", "transforms": [*_reading("image"), together]},
        "train": {
            "dataset": {"_target_": "CacheDataset", "data": "@data", "transform": "@preprocessing", "progress": False},
            "trainer": {
                "_target_": "SupervisedTrainer",
                "device": "@device",
                "max_epochs": epochs,
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


def check_trained(checkpoint, config):
    """Φ has learnt something, and the configuration's network loads it."""
    saved = torch.load(checkpoint)
    assert (saved["network.conv_final.2.phi.4.weight"] != 0).any()
    net = monai.bundle.ConfigParser(config).get_parsed_content("network_def")
    assert isinstance(net.network.conv_final[2], FusedSCP) and net.network.conv_final[2].position_dims == 3
    net.load_state_dict(saved)
