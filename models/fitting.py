"""``scp-models fit``: Lightning's command line over this package's module and data."""

import warnings
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from scp_models.data import DataWaitMonitor, SegmentationDataModule
from scp_models.files import ensure_writable
from scp_models.training import SegmentationModule


class FitCLI(LightningCLI):
    """One folder, ``--out``, holds checkpoints, logs and the configuration; the task is said once, for the data."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--out", default="runs/scp", help="Folder of checkpoints, logs and configuration.")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.filename": "best",
                "checkpoint.monitor": "val_dice",
                "checkpoint.mode": "max",
                "checkpoint.enable_version_counter": False,
            }
        )
        parser.link_arguments("out", "trainer.default_root_dir")
        parser.link_arguments("out", "checkpoint.dirpath", compute_fn=lambda out: str(Path(out) / "checkpoints"))
        parser.link_arguments("data.task", "model.task")
        parser.link_arguments("data.roi_size", "model.roi_size")

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """The trainer, with both loggers unless the configuration names its own, and the monitor of data waits."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        ensure_writable(config["out"])
        if config["trainer"].get("logger") in (None, True):
            out = config["out"]
            kwargs["logger"] = [CSVLogger(out, name="logs"), TensorBoardLogger(out, name="tensorboard")]
        trainer: Any = super().instantiate_trainer(**kwargs)
        trainer.callbacks.append(DataWaitMonitor())
        # The best checkpoint is written when there is a better one; to resume, the newest is needed after every epoch.
        folder = Path(config["out"]) / "checkpoints"
        trainer.callbacks.append(
            ModelCheckpoint(folder, filename="newest", save_last=True, enable_version_counter=False)
        )
        return trainer


def resolve_config(name: str) -> str:
    """A path as it is; otherwise the packaged configuration of this name (``wmh``, ``lits``)."""
    packaged = resources.files("scp_models") / "configs" / f"{Path(name).name.removesuffix('.yaml')}.yaml"
    return str(packaged) if not Path(name).exists() and packaged.is_file() else name


def fit(arguments: Sequence[str]) -> None:
    """Train as the arguments say: see ``scp-models fit --help``."""
    resolved = list(arguments)
    for k, argument in enumerate(resolved):
        if argument.startswith("--config="):
            resolved[k] = f"--config={resolve_config(argument.removeprefix('--config='))}"
        elif argument == "--config" and k + 1 < len(resolved):
            resolved[k + 1] = resolve_config(resolved[k + 1])
    with warnings.catch_warnings():
        # A remark on the number of workers: mapped memory needs none, as the logged share of waiting shows.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended.*")
        warnings.filterwarnings("ignore", message=".*treespec.*is deprecated.*")
        warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
        FitCLI(
            SegmentationModule,
            SegmentationDataModule,
            args=["fit", *resolved],
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
        )
