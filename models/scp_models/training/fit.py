"""``scp-models fit``: Lightning's command line over this package's module and data."""

import logging
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from scp_models.checkpoints import check_resumable, read_checkpoint, subject_names
from scp_models.data.description import read_description
from scp_models.data.module import SegmentationDataModule
from scp_models.data.tasks import TASKS
from scp_models.data.timing import DataWaitMonitor
from scp_models.errors import UserError
from scp_models.files import ensure_writable
from scp_models.training.callbacks import BestCheckpoint, EpochReport, FoundClasses, NewestCheckpoint
from scp_models.training.module import SegmentationModule


class FitCLI(LightningCLI):
    """One folder, ``--out``, holds checkpoints, logs and the configuration; the task is said once, for the data."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only training: evaluation and prediction are commands of their own, on whole volumes."""
        return {"fit": LightningCLI.subcommands()["fit"]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--out", default="runs/scp", help="Folder of checkpoints, logs and configuration.")
        parser.add_argument("--overwrite", action="store_true", help="Replace the checkpoints of another run in --out.")
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
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
        parser.link_arguments("data.task_options", "model.task_options", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Lightning's own would let the checkpoint's hyperparameters override the command line's without a word;
        :meth:`before_fit` compares them instead.
        """

    def before_instantiate_classes(self) -> None:
        """Frame, augmentation, sampling that are not given: the paper's form keeps the paper's. See docs/frames.md and
        docs/augmentation.md for the others. Loading processes that are not given are two, beside which a step of the
        paper's network hardly waits.
        """
        config = self.config[self.subcommand] if self.subcommand else self.config
        paper = config["model"]["preset"] == "paper"
        if config["data"].get("frame") is None:
            config["data"]["frame"] = "slice" if paper else "foreground"
        if config["data"].get("augment") is None:
            config["data"]["augment"] = "none" if paper else "all"
        if config["data"].get("sampling") is None:
            config["data"]["sampling"] = "slices" if paper else "subjects"
        if config["data"].get("num_workers") is None:
            config["data"]["num_workers"] = 2
        if (path := _resumed_from(config)) is not None:
            _keep_labels(config["data"], path)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """The trainer, with both loggers unless the configuration names its own, and the monitor of data waits."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        if not config["trainer"].get("fast_dev_run"):
            ensure_writable(config["out"])
        if config["trainer"].get("logger") in (None, True):
            out = config["out"]
            kwargs["logger"] = [CSVLogger(out, name="logs"), TensorBoardLogger(out, name="tensorboard")]
        try:
            trainer: Any = super().instantiate_trainer(**kwargs)
        except ValueError as error:  # names of accelerators, strategies: Lightning checks them here
            raise UserError(f"--trainer: {error}") from error
        folder = Path(config["out"]) / "checkpoints"
        trainer.callbacks += [DataWaitMonitor(), EpochReport(), FoundClasses(), NewestCheckpoint(folder)]
        return trainer

    def before_fit(self) -> None:
        """Look at the checkpoint to resume from, if there is one, before anything is written."""
        config = self.config["fit"]
        path = _resumed_from(config)
        trainer: Any = self.trainer
        kept = config.get("ckpt_path") is not None or config["overwrite"] or trainer.fast_dev_run
        checkpoints = sorted((Path(config["out"]) / "checkpoints").glob("*.ckpt"))
        if checkpoints and not kept and trainer.is_global_zero:
            raise UserError(
                f"{checkpoints[0]}: expected no checkpoints of another run in --out (another folder, --ckpt_path last "
                "to go on with that run, or --overwrite to replace it)"
            )
        if path is not None:
            data = self.datamodule
            check_resumable(path, self.model.hparams, subject_names(data.divide()), data.augmentation)
        rank_zero_info(f"{self.datamodule.task.describe()}; augmentation {self.datamodule.augment}")
        rank_zero_info(f"subjects of {self.datamodule.root}: {self.datamodule.describe_split()}")

    def after_fit(self) -> None:
        """Say what was written, and what to look at if nothing was learnt."""
        trainer: Any = self.trainer
        if not trainer.is_global_zero:
            return
        if trainer.fast_dev_run:
            print("fast_dev_run: nothing was written")
            return
        best = next(callback for callback in trainer.callbacks if isinstance(callback, BestCheckpoint))
        logs = [Path(logger.log_dir) for logger in trainer.loggers if isinstance(logger, CSVLogger)]
        classes = next(callback for callback in trainer.callbacks if isinstance(callback, FoundClasses))
        losses = f"train_loss and val_loss in {logs[0] / 'metrics.csv'}" if logs else "train_loss and val_loss"
        for line in classes.warnings(self.model.task.class_names, losses):
            print(f"warning: {line}", file=sys.stderr)
        if not best.best_model_path:
            print(
                "warning: no epoch was validated, so there is no best.ckpt (--trainer.check_val_every_n_epoch, "
                "--trainer.limit_val_batches)",
                file=sys.stderr,
            )
        folder = Path(self.config["fit"]["out"]) / "checkpoints"
        checkpoints = [folder / Path(best.best_model_path).name, folder / "last.ckpt"]
        for path in [*checkpoints, *(folder / "metrics.csv" for folder in logs)]:
            if path.is_file():
                print(path)


def _resumed_from(config: Any) -> Any:
    """The checkpoint that a run goes on from; None for a new run."""
    path = config.get("ckpt_path")
    if path == "last":
        # The first start of a run that may be restarted any time has none yet; Lightning says so.
        newest = Path(config["out"]) / "checkpoints" / "last.ckpt"
        path = newest if newest.is_file() else None
    return path


def _keep_labels(data: Any, checkpoint: Any) -> None:
    """A run that goes on keeps its target or classes where none are given, whatever the data set's labels would be."""
    if data["target"] or data["classes"]:
        return
    options = read_checkpoint(checkpoint)["hyper_parameters"].get("task_options") or {}
    description = read_description(data["root"])
    if "classes" in options:
        data["classes"] = options["classes"]
    elif "target" in options:
        data["target"] = options["target"]
    elif description is not None and description.has_own_labels(data["task"]):
        data["target"] = list(TASKS[data["task"]].target)


def resolve_config(name: str) -> str:
    """A path as it is; otherwise the packaged configuration of this name (``wmh``, ``lits``, ``wmh_paper``).

    A folder of that name, of data perhaps, is not meant.
    """
    packaged = resources.files("scp_models") / "configs" / f"{Path(name).name.removesuffix('.yaml')}.yaml"
    return str(packaged) if not Path(name).is_file() and packaged.is_file() else name


def fit(arguments: Sequence[str]) -> None:
    """Train as the arguments say: see ``scp-models fit --help``.

    Raises:
        UserError: arguments that are not understood, data that cannot be read, a folder that cannot be written, a
            checkpoint of another run, devices that are not there.
        SystemExit: the process was told to end (SIGTERM), with 143 as the shell has it.
    """
    resolved = list(arguments)
    for k, argument in enumerate(resolved):
        for flag in ("--config", "-c"):
            if argument.startswith(f"{flag}="):
                resolved[k] = f"{flag}={resolve_config(argument.removeprefix(f'{flag}='))}"
            elif argument == flag and k + 1 < len(resolved):
                resolved[k + 1] = resolve_config(resolved[k + 1])
    parsing = {"prog": "scp-models", "exit_on_error": False, "fit": {"exit_on_error": False}}
    for part in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{part}.utilities.rank_zero").addFilter(_is_no_advertisement)
    with warnings.catch_warnings():
        # A remark on the number of workers: mapped memory needs none, as the logged share of waiting shows.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended.*")
        warnings.filterwarnings("ignore", message=".*treespec.*is deprecated.*")
        # Of the run that goes on, or that --overwrite replaces; before_fit refuses any other.
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty.*")
        warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
        try:
            FitCLI(
                SegmentationModule,
                SegmentationDataModule,
                args=["fit", *resolved],
                seed_everything_default=0,
                parser_kwargs=parsing,
                save_config_kwargs={"overwrite": True},
                auto_configure_optimizers=False,
            )
        except (ArgumentError, MisconfigurationException) as error:
            raise UserError(f"fit: {error}") from error
        except SIGTERMException as error:
            # Lightning's own exit is one of success.
            print("stopped by SIGTERM: the same command with --ckpt_path last goes on", file=sys.stderr)
            raise SystemExit(128 + signal.SIGTERM) from error


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    """Lightning recommends other packages of its makers in the middle of a training's log."""
    return "Tip: For seamless cloud" not in record.getMessage()
