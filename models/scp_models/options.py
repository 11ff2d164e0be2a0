"""What the commands take, beside those of training: their arguments and options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from scp_models.errors import UserError

Split = Literal["training", "validation", "test", "all"]
Layout = Annotated[str, typer.Option(help="Layout of the data: auto, wmh, lits, datalist or nnunet.")]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="Stop at the first subject that cannot be read.")]
Threshold = Annotated[
    float | None, typer.Option(help="Of probabilities; by default the checkpoint's, or 0.5.", min=0, max=1)
]

FrameOption = Annotated[
    str | None,
    typer.Option(help="Path of each subject's transform ({subject}, {folder}), for a checkpoint trained with such."),
]


@dataclass(frozen=True)
class EvaluateOptions:
    """What ``evaluate`` takes."""

    checkpoint: Annotated[Path | None, typer.Argument(help="Checkpoint; none if --predictions is given.")] = None
    data: Annotated[Path | None, typer.Option(help="Data set with references.")] = None
    out: Annotated[Path, typer.Option(help="Folder for scores.csv and summary.json.")] = Path("scores")
    split: Annotated[Split, typer.Option(help="Subjects to score, by the split that the checkpoint records.")] = "test"
    split_file: Annotated[Path | None, typer.Option(help="JSON of three lists of names, for another split.")] = None
    seed: Annotated[
        int | None, typer.Option(help="Seed of the split of training, 0 if not given; with --predictions only.")
    ] = None
    layout: Layout = "auto"
    threshold: Threshold = None
    connectivity: Annotated[int, typer.Option(help="Of lesions: 6, 18 or 26 neighbours.")] = 26
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="Score the <subject>.nii.gz of this folder instead: masks, probabilities, or label maps as the "
            "references are, of which the labels of the target or the classes count."
        ),
    ] = None
    task: Annotated[str | None, typer.Option(help="wmh (if not given) or lits; with --predictions only.")] = None
    target: Annotated[
        list[int] | None, typer.Option(help="Label that is the target, again for more; with --predictions only.")
    ] = None
    ignored: Annotated[
        list[int] | None,
        typer.Option(
            help="Label that is not scored; with --target, none is unless it is given. With --predictions only."
        ),
    ] = None
    classes: Annotated[
        list[str] | None,
        typer.Option(
            help="Exclusive classes instead of the target, again for more: a label's value or name, "
            "NAME=VALUE[,VALUE], or all of dataset.json's, which is the default where it has several; with "
            "--predictions only."
        ),
    ] = None
    modality: Annotated[
        list[str] | None, typer.Option(help="Channel of the images, again for more; with --predictions only.")
    ] = None
    label_affine: Annotated[
        str | None,
        typer.Option(help="Of references that lie elsewhere than their images: header or image counts; auto measures."),
    ] = None
    frame: FrameOption = None
    fail_fast: FailFast = False

    def check(self) -> None:
        """Refuse what contradicts itself, before anything is read."""
        if self.data is None:
            raise UserError("--data: expected a data set with references, none was given")
        if (self.checkpoint is None) == (self.predictions is None):
            raise UserError("evaluate: expected a checkpoint or --predictions, one of the two")
        if self.checkpoint is not None:
            for name in ("seed", "task", "target", "ignored", "modality", "classes"):
                if getattr(self, name) not in (None, []):
                    raise UserError(f"--{name}: expected with --predictions only, {self.checkpoint} says it already")
        elif self.frame is not None:
            raise UserError("--frame: expected with a checkpoint only")
        if self.connectivity not in (6, 18, 26):
            raise UserError(f"--connectivity: expected 6, 18 or 26, got {self.connectivity}")


@dataclass(frozen=True)
class PredictOptions:
    """What ``predict`` takes."""

    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint written by `scp-models fit`.")]
    inputs: Annotated[
        list[Path] | None, typer.Argument(help="Subjects' folders, NIfTI volumes, data sets, datalist JSONs.")
    ] = None
    image: Annotated[
        list[Path] | None, typer.Option(help="One subject's modalities, one file each, in the order of training.")
    ] = None
    out: Annotated[Path, typer.Option(help="Folder for <subject>.nii.gz.")] = Path("predictions")
    probabilities: Annotated[bool, typer.Option(help="Write probabilities too.")] = False
    threshold: Threshold = None
    layout: Layout = "auto"
    frame: FrameOption = None
    fail_fast: FailFast = False


@dataclass(frozen=True)
class ShowOptions:
    """What ``show`` takes."""

    inputs: Annotated[list[Path], typer.Argument(help="Subjects' folders, NIfTI volumes, data sets, datalist JSONs.")]
    out: Annotated[Path, typer.Option(help="The picture, a PNG; of more than 24 subjects several, numbered.")] = Path(
        "frames.png"
    )
    frame: Annotated[
        str | None, typer.Option(help="foreground (if not given), image, or the path of each subject's transform.")
    ] = None
    checkpoint: Annotated[Path | None, typer.Option(help="Read images as it does, in its frame.")] = None
    task: Annotated[str | None, typer.Option(help="wmh (if not given) or lits.")] = None
    modality: Annotated[list[str] | None, typer.Option(help="Channel of the images, again for more.")] = None
    layout: Layout = "auto"


@dataclass(frozen=True)
class PhantomOptions:
    """What ``phantom`` takes."""

    task: Annotated[Literal["wmh", "lits"], typer.Argument(help="What to imitate.")]
    out: Annotated[Path, typer.Argument(help="Folder of the data set.")]
    subjects: Annotated[int, typer.Option(help="How many.")] = 12
    seed: Annotated[int, typer.Option(help="Fixes every voxel.")] = 0
    size: Annotated[str, typer.Option(help="full (the challenge's), small, or a shape such as 64x64x32.")] = "full"
    left_right: Annotated[
        bool,
        typer.Option(
            "--left-right",
            help="Label pairs of equal contrast, 1 on the patient's left and 2 on the right (WMH: blobs in both "
            "hemispheres; LiTS: kidneys), in nnU-Net's raw layout.",
        ),
    ] = False
    pose: Annotated[bool, typer.Option("--pose", help="Shift, tilt and scale them in the field of view.")] = False
    location_decided: Annotated[
        bool, typer.Option(help="WMH: identical blobs everywhere, lesions only inside a central ellipse.")
    ] = False
    height_decided: Annotated[
        bool,
        typer.Option("--height-decided", help="WMH: identical blobs everywhere, lesions only in the upper half."),
    ] = False
