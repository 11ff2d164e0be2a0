"""``SegmentationModule``: a network, its loss and the paper's optimizer, for Lightning."""

import math
from collections import Counter
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torchmetrics import Metric

from scp_kernels import FusedSCP, parameter_groups
from scp_models.checkpoints import build_model, subject_names
from scp_models.data.module import SegmentationDataModule
from scp_models.data.tasks import IGNORED_LABEL
from scp_models.training.losses import ExclusiveClassesLoss, SegmentationLoss

# The learning rate is halved after these shares of the epochs (paper, Section 4.1).
MILESTONES = (0.5, 0.7, 0.9)
# Of a batch, what says where its slices lie.
_POSITIONS = ("affine", "extent")


class SubjectDice(Metric):
    """Dice of each subject over all of its slices, averaged over subjects, for each class.

    Sums are kept for each subject, so slices may come in any batches, and from several processes.

    Args:
        subjects: how many there are.
        threshold: of probabilities, where there is one class.
        num_classes: N, without the background.
        ignore_label: what no score counts.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    counts: Tensor

    def __init__(
        self, subjects: int, threshold: float = 0.5, num_classes: int = 1, ignore_label: int = IGNORED_LABEL
    ) -> None:
        super().__init__()
        self.threshold = threshold
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        # Of each class: twice the overlap, the sum of volumes, slices, the voxels to find.
        shape = (subjects, num_classes, 4)
        self.add_state("counts", default=torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor, subject: Tensor) -> None:
        """Add slices: labels ``[B, 1, H, W]`` and their ``subject`` ``[B]``.

        Logits are ``[B, 1, H, W]`` of one class, ``[B, 1 + N, H, W]`` of several, the background first.
        """
        if self.num_classes == 1:
            classes = (logits.float().sigmoid() > self.threshold).to(labels.dtype)
        else:
            classes = logits.argmax(dim=1, keepdim=True).to(labels.dtype)
        counts = []
        for number in range(1, self.num_classes + 1):
            predicted, target = (classes == number) & (labels != self.ignore_label), labels == number
            overlap = (predicted & target).flatten(1).sum(1)
            wanted = target.flatten(1).sum(1)
            volumes = predicted.flatten(1).sum(1) + wanted
            counts.append(torch.stack([2 * overlap, volumes, torch.ones_like(volumes), wanted], dim=1))
        self.counts.index_add_(0, subject, torch.stack(counts, dim=1).double())

    def compute(self) -> Tensor:
        """``[N]``: each class's mean Dice of the subjects that were seen (a part of them under ``limit_val_batches``);
        one with nothing to find and nothing found has Dice 1.
        """
        overlap, volumes, slices, _ = self.counts.unbind(2)
        dice = torch.where(volumes > 0, overlap / volumes.clamp(min=1), torch.ones_like(volumes))
        return torch.stack([of_class.mean() for of_class in dice[slices[:, 0] > 0].unbind(1)])

    def voxels(self) -> Tensor:
        """``[N, 2]``: of each class, how many voxels were found and how many there are, over subjects and processes."""
        with self.sync_context():
            return torch.stack([self.counts[..., 0] / 2, self.counts[..., 3]], dim=-1).sum(0)


class SegmentationModule(L.LightningModule):
    """One of the paper's networks in training: cross-entropy + soft Dice, Adam, a rate halved at 50, 70, 90 %.

    The task decides between one target, with a sigmoid, and several exclusive classes, with a softmax.

    A checkpoint holds what rebuilds the module, and the division of the subjects that it was trained with.

    Args:
        variant: ``"base"``, ``"base_f"``, ``"base_b"`` or ``"scp"``.
        task: ``"wmh"`` or ``"lits"``: what the images are; a checkpoint remembers it, and ``roi_size``, for prediction.
        roi_size: height and width of slices; None: the task's.
        task_options: what of the task's preset is replaced: see :func:`scp_models.data.get_task`.
        capacity: Nc, a multiple of 16; the head sees Nc/16 channels. This and what follows up to ``backend`` is for
            :func:`scp_models.networks.build_network`.
        levels: resolutions, 5 in the paper.
        hidden_channels: width of Φ's hidden layers; None: Nc/2.
        preset: ``"recommended"``, or ``"paper"``, which can collapse: see :data:`scp_models.networks.PRESETS`.
        position: ``"pixels"`` or ``"centered"``; None: the preset's.
        anchored: whether Φ is zero at the centre; None: the preset's (docs/training.md).
        phi_scale: ``"adam"``, ``"sgd"`` or a number; None: the preset's (docs/training.md).
        logit_bias: initial value of the logit bias, the class's log-odds; the preset ``"paper"`` has none.
        constant_position: the control of a comparison: every pixel is told the position of the image's centre.
        backend: of the SCP head: ``"auto"`` or a name of :func:`scp_kernels.available_backends`.
        learning_rate: Adam's.
        limit_phi: whether Φ's rate is limited by its width (:func:`scp_kernels.parameter_groups`).
        weight_decay: Adam's.
        threshold: a pixel is a lesion above this probability; of several classes the most probable counts.
        channels_last: keep activations in channels-last memory format, faster on CPUs and tensor cores.

    Raises:
        UserError: options that make no network.
    """

    def __init__(
        self,
        variant: str = "scp",
        task: str = "wmh",
        roi_size: tuple[int, int] | None = None,
        capacity: int = 256,
        levels: int = 5,
        hidden_channels: int | None = None,
        preset: str = "recommended",
        position: str | None = None,
        logit_bias: float = -3.0,
        constant_position: bool = False,
        backend: str = "auto",
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-6,
        threshold: float = 0.5,
        channels_last: bool = True,
        task_options: dict[str, Any] | None = None,
        phi_scale: float | str | None = None,
        limit_phi: bool = True,
        anchored: bool | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        # The command line fills this in from the data, after it has noted the other arguments.
        self.hparams["task_options"] = task_options
        model = build_model(
            task=task,
            roi_size=roi_size,
            task_options=task_options,
            threshold=threshold,
            channels_last=channels_last,
            variant=variant,
            capacity=capacity,
            levels=levels,
            hidden_channels=hidden_channels,
            preset=preset,
            position=position,
            anchored=anchored,
            phi_scale=phi_scale,
            logit_bias=logit_bias,
            constant_position=constant_position,
            backend=backend,
        )
        self.task = model.task
        self.network = model.network
        self.memory_format = model.memory_format
        several = bool(self.task.classes)
        self.loss: nn.Module = ExclusiveClassesLoss(len(self.task.classes)) if several else SegmentationLoss()
        self.learning_rate = learning_rate
        self.limit_phi = limit_phi
        self._resumes_one_group = False
        self.weight_decay = weight_decay
        self.threshold = threshold
        self.val_dice: SubjectDice | None = None
        self.val_voxels: Tensor | None = None
        """Of the last validation: see :meth:`SubjectDice.voxels`."""

    def forward(self, image: Tensor, affine: Tensor | None = None, extent: Tensor | None = None) -> Tensor:
        """Logits ``[B, 1, H, W]`` (``[B, 1 + N, H, W]`` of N classes, the background first) of slices ``[B, C, H, W]``,
        which lie where ``affine`` and ``extent`` say.
        """
        return self.network(image.contiguous(memory_format=self.memory_format), affine=affine, extent=extent)

    def setup(self, stage: str) -> None:
        """Positions stay in float32 where Lightning's precision casts whole batches, as ``"bf16-true"`` does: 90 mm are
        known to 0.25 mm in bfloat16, and prediction would see other places than training.
        """
        plugin = self.trainer.precision_plugin
        convert = plugin.convert_input

        def convert_all_but_positions(batch: Any) -> Any:
            kept = {name: batch[name] for name in _POSITIONS if name in batch} if isinstance(batch, dict) else {}
            return {**convert(batch), **kept} if kept else convert(batch)

        vars(plugin)["convert_input"] = convert_all_but_positions

    def teardown(self, stage: str) -> None:
        """The trainer's precision is its own again."""
        vars(self.trainer.precision_plugin).pop("convert_input", None)

    def _logits(self, batch: dict[str, Tensor]) -> Tensor:
        return self(batch["image"], batch.get("affine"), batch.get("extent"))

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        loss = self.loss(self._logits(batch), batch["label"])
        size = len(batch["image"])
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=size)
        return loss

    def on_train_epoch_start(self) -> None:
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        self.log("learning_rate", optimizer.param_groups[0]["lr"], sync_dist=True)

    def on_validation_epoch_start(self) -> None:
        loader: Any = self.trainer.val_dataloaders
        classes = max(1, len(self.task.classes))
        metric = SubjectDice(len(loader.dataset.subjects), self.threshold, classes, self.task.ignored_label)
        self.val_dice = metric.to(self.device)

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        logits = self._logits(batch)
        loss = self.loss(logits, batch["label"])
        self.log("val_loss", loss, prog_bar=True, sync_dist=True, batch_size=len(batch["image"]))
        assert self.val_dice is not None
        self.val_dice.update(logits, batch["label"], batch["subject"])

    def on_validation_epoch_end(self) -> None:
        assert self.val_dice is not None
        # The metric has summed over processes itself: the average is of equal numbers.
        # Of one class a metric gives a scalar.
        of_classes = self.val_dice.compute().float().reshape(-1)
        self.val_voxels = self.val_dice.voxels().cpu()
        self.log("val_dice", of_classes.mean(), prog_bar=True, sync_dist=True)
        for name, dice in zip(self.task.class_names, of_classes, strict=False):
            self.log(f"val_dice_{name}", dice, sync_dist=True)
        self.val_dice = None

    def configure_optimizers(self) -> Any:
        rate = self.learning_rate
        limited = self.limit_phi and not self._resumes_one_group
        self._resumes_one_group = False  # of this run alone
        groups = parameter_groups(self, rate) if limited else self.parameters()
        optimizer = torch.optim.Adam(groups, lr=rate, weight_decay=self.weight_decay)
        milestones, interval = self._milestones()
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    def _milestones(self) -> tuple[list[int], str]:
        """When the rate is halved, and in what that is counted: epochs, or steps where only those have an end."""
        trainer = self.trainer
        length: float
        if trainer.max_epochs is not None and trainer.max_epochs > 0 and trainer.max_steps == -1:
            length, interval = trainer.max_epochs, "epoch"
        else:
            length, interval = trainer.estimated_stepping_batches, "step"
        if not math.isfinite(length):
            return [], interval
        return [max(1, round(length * share)) for share in MILESTONES], interval

    def on_train_start(self) -> None:
        """A resumed run has its milestones from the checkpoint: those of its own length count, as if it had been
        started with it.
        """
        (config,) = self.trainer.lr_scheduler_configs
        scheduler: Any = config.scheduler
        milestones, interval = self._milestones()
        done = self.trainer.global_step if interval == "step" else self.trainer.current_epoch
        scheduler.milestones = Counter(milestones)
        # Behind by one where the checkpoint was written before the epoch's own step, which follows.
        scheduler.last_epoch = min(scheduler.last_epoch, done) if interval == "epoch" else done
        passed = sum(milestone <= scheduler.last_epoch for milestone in milestones)
        for group, rate in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
            group["lr"] = rate * scheduler.gamma**passed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A run from before heads were anchored, or Φ's rate limited, goes on as it was: its optimizer has a state of
        other parameters. This comes before the optimizer is configured.
        """
        for path, head in self.named_modules():
            if isinstance(head, FusedSCP) and head.anchored and f"{path}.phi.4.bias" in checkpoint["state_dict"]:
                last = head.phi[4]
                assert isinstance(last, nn.Linear)
                last.bias = nn.Parameter(last.weight.new_zeros(last.out_features))
        groups = [len(state["param_groups"]) for state in checkpoint.get("optimizer_states") or []]
        fits = self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING
        self._resumes_one_group = fits and groups == [1]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        data: Any = getattr(self.trainer, "datamodule", None)
        if isinstance(data, SegmentationDataModule):
            checkpoint["split"] = subject_names(data.subjects)
            checkpoint["augmentation"] = data.augmentation
