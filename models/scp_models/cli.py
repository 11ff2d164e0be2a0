"""The command ``scp-models``. Bad input ends in one line on stderr and exit code 2."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from scp_models.errors import UserError

app = typer.Typer(
    name="scp-models",
    help="Lesion segmentation with spatially covariant heads: data, training, evaluation, prediction, report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Split = Literal["training", "validation", "test", "all"]
Checkpoint = Annotated[Path, typer.Argument(help="Checkpoint written by `scp-models fit`.")]
Layout = Annotated[str, typer.Option(help="Layout of the data: auto, wmh, lits, datalist or nnunet.")]
Threshold = Annotated[
    float | None, typer.Option(help="Of probabilities; by default the checkpoint's, or 0.5.", min=0, max=1)
]


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"scp-models {version('scp_kernels')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    help="Train a network: `--config wmh` or `lits`, then any of Lightning's flags (`--help` lists them).",
)
def fit(context: typer.Context) -> None:
    from scp_models.training.fit import fit as run

    run(context.args)


@app.command()
def evaluate(
    checkpoint: Annotated[Path | None, typer.Argument(help="Checkpoint; none if --predictions is given.")] = None,
    data: Annotated[Path | None, typer.Option(help="Data set with references.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for scores.csv and summary.json.")] = Path("scores"),
    split: Annotated[Split, typer.Option(help="Subjects to score, by the split that the checkpoint records.")] = "test",
    split_file: Annotated[Path | None, typer.Option(help="JSON of three lists of names, for another split.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the split of training, 0 if not given; with --predictions only.")
    ] = None,
    layout: Layout = "auto",
    threshold: Threshold = None,
    connectivity: Annotated[int, typer.Option(help="Of lesions: 6, 18 or 26 neighbours.")] = 26,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="Score the <subject>.nii.gz of this folder instead: masks, probabilities, or label maps as the "
            "references are, of which the target's labels count."
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(help="wmh (if not given) or lits; with --predictions only.")] = None,
    target: Annotated[
        list[int] | None, typer.Option(help="Label that is the target, again for more; with --predictions only.")
    ] = None,
    ignored: Annotated[
        list[int] | None,
        typer.Option(
            help="Label that is not scored; with --target, none is unless it is given. With --predictions only."
        ),
    ] = None,
    modality: Annotated[
        list[str] | None, typer.Option(help="Channel of the images, again for more; with --predictions only.")
    ] = None,
) -> None:
    """Score every subject of a split, with all metrics, on the grid of its files."""
    from rich.progress import track

    from scp_models.data import SegmentationDataModule, find_subjects
    from scp_models.data.splits import read_split
    from scp_models.evaluation.metrics import Connectivity
    from scp_models.evaluation.scores import held_out, score, score_files, write_scores
    from scp_models.files import ensure_writable
    from scp_models.inference.predictor import Predictor
    from scp_models.training.checkpoints import load_module

    if data is None:
        raise UserError("--data: expected a data set with references, none was given")
    if (checkpoint is None) == (predictions is None):
        raise UserError("evaluate: expected a checkpoint or --predictions, one of the two")
    described_by_hand = {"seed": seed, "task": task, "target": target, "ignored": ignored, "modality": modality}
    if checkpoint is not None and (given := [k for k, v in described_by_hand.items() if v not in (None, [])]):
        raise UserError(f"--{given[0]}: expected with --predictions only, {checkpoint} says it already")
    if connectivity not in (6, 18, 26):
        raise UserError(f"--connectivity: expected 6, 18 or 26, got {connectivity}")
    neighbours: Connectivity = connectivity  # type: ignore[assignment]
    module = None if checkpoint is None else load_module(checkpoint)
    if module is not None:
        kind = module.task
    else:
        unscored = ignored or ([] if target else None)
        described = SegmentationDataModule(
            str(data),
            task or "wmh",
            layout,
            seed=seed or 0,
            target=target or None,
            ignored=unscored,
            modalities=modality or None,
        )
        kind = described.task
    if module is None and split_file is None and split != "all":
        subjects = described.divide()[split]
    else:
        found = find_subjects(data, kind, layout)
        if split == "all":
            subjects = [s for s in found if s.label is not None]
        elif split_file is not None:
            subjects = read_split(split_file, found)[split]
        else:
            assert module is not None and checkpoint is not None
            subjects = held_out(found, module.split, split, checkpoint, data)
    if not subjects:
        raise UserError(f"{data}: expected subjects with a reference, found none")
    ensure_writable(out)
    limit = threshold if threshold is not None else 0.5 if module is None else module.threshold
    about = {"of": str(checkpoint or predictions), "data": str(data), "split": split, "connectivity": connectivity}
    about["threshold"] = limit
    if module is None:
        assert predictions is not None
        rows = score_files(predictions, track(subjects, "Scoring", transient=True), kind, neighbours, limit)
    else:
        predictor = Predictor(module, threshold=limit)
        rows = [
            score(predictor.segment(subject), predictor.reader, neighbours)
            for subject in track(subjects, "Evaluating", transient=True)
        ]
    summary = write_scores(rows, out, about)
    if not any(row["reference_lesions"] for row in rows):
        typer.echo(
            f"warning: {data}: no reference has the target label {list(kind.target)}: the scores say nothing",
            err=True,
        )
    shown = {"Dice": "dice", "L-Dice": "lesion_dice", "challenge F1": "challenge_f1", "HD95": "hd95_mm"}
    told = []
    for name, key in shown.items():
        mean, n = summary[key]["mean"], summary[key]["n"]
        text = "undefined" if mean is None else f"{mean:.4f}{' mm' if key == 'hd95_mm' else ''}"
        # A network that finds nothing has an HD95 only where there is nothing to find, and it is 0 there.
        told.append(f"{name} {text}{f' ({n} of {len(rows)} subjects)' if 0 < n < len(rows) else ''}")
    typer.echo(f"{len(rows)} subjects: {', '.join(told)}")
    typer.echo(out / "summary.json")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="scores.csv of one model.")],
    b: Annotated[Path, typer.Argument(help="scores.csv of another, on the same subjects.")],
    metric: Annotated[list[str], typer.Option(help="Scores to compare.")] = ["dice", "lesion_dice"],  # noqa: B006
) -> None:
    """Paired two-tailed t-tests between two models, subject by subject."""
    from scp_models.evaluation.metrics import METRICS
    from scp_models.evaluation.scores import read_scores
    from scp_models.evaluation.statistics import paired_comparison

    first, second = read_scores(a), read_scores(b)
    if set(first) != set(second):
        raise UserError(f"{b}: expected the subjects of {a}, got others")
    for name in metric:
        if name not in METRICS:
            raise UserError(f"--metric: expected one of {', '.join(METRICS)}, got {name!r}")
        common = [s for s in sorted(first) if name in first[s] and name in second[s]]
        if len(common) < 2:
            raise UserError(f"{a}: expected at least two subjects for whom {name} is defined, found {len(common)}")
        test = paired_comparison([first[s][name] for s in common], [second[s][name] for s in common])
        typer.echo(
            f"{name}: difference {test.mean_difference:+.4f}, p = {test.p_value:.3g} ({test.stars}), "
            f"d_z = {test.cohen_dz:.2f}, {test.n} subjects"
        )


@app.command()
def predict(
    checkpoint: Checkpoint,
    inputs: Annotated[
        list[Path] | None, typer.Argument(help="Subjects' folders, NIfTI volumes, data sets, datalist JSONs.")
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="One subject's modalities, one file each, in the order of training.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for <subject>.nii.gz.")] = Path("predictions"),
    probabilities: Annotated[bool, typer.Option(help="Write probabilities too.")] = False,
    threshold: Threshold = None,
    layout: Layout = "auto",
) -> None:
    """Segment studies: NIfTI in, NIfTI out in the source's grid and affine."""
    from rich.progress import track

    from scp_models.data import find_subjects, subject_of_images
    from scp_models.files import ensure_writable
    from scp_models.inference.predictor import Predictor, write_segmentation
    from scp_models.training.checkpoints import load_module

    predictor = Predictor(load_module(checkpoint), threshold=threshold)
    if not inputs and not image:
        raise UserError("predict: expected what to segment, a folder, a volume or --image, none was given")
    subjects = [s for path in inputs or [] for s in find_subjects(path, predictor.module.task, layout)]
    if image:
        subjects.append(subject_of_images(image, predictor.module.task))
    names = [s.name for s in subjects]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"{(image or inputs or [])[-1]}: expected every subject's name once, got {doubled[0]!r} from several inputs"
        )
    ensure_writable(out)
    written = [
        path
        for subject in track(subjects, "Predicting", transient=True)
        for path in write_segmentation(predictor.segment(subject), out, probabilities)
    ]
    for path in written:
        typer.echo(path)


@app.command()
def complexity(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Parameters and multiply-adds of the paper's twelve networks, beside its Table 1."""
    from scp_models.networks.complexity import main as run

    run(as_json=as_json)


@app.command()
def phantom(
    task: Annotated[Literal["wmh", "lits"], typer.Argument(help="What to imitate.")],
    out: Annotated[Path, typer.Argument(help="Folder of the data set.")],
    subjects: Annotated[int, typer.Option(help="How many.")] = 12,
    seed: Annotated[int, typer.Option(help="Fixes every voxel.")] = 0,
    size: Annotated[Literal["full", "small"], typer.Option(help="The challenge's sizes, or small ones.")] = "full",
    location_decided: Annotated[
        bool, typer.Option(help="WMH: identical blobs everywhere, lesions only inside a central ellipse.")
    ] = False,
) -> None:
    """Write synthetic subjects in the layout of the WMH or LiTS challenge."""
    from scp_models.phantoms import generate_lits, generate_wmh

    if task == "wmh":
        generate_wmh(out, subjects, seed, size=size, location_decided=location_decided)
    elif location_decided:
        raise UserError("--location-decided: expected with wmh only")
    else:
        generate_lits(out, subjects, seed, size=size)
    typer.echo(out)


@app.command()
def n4(
    volumes: Annotated[list[Path], typer.Argument(help="Raw MR volumes, NIfTI.")],
    out: Annotated[Path, typer.Option(help="Folder of the corrected volumes, which keep their names.")],
) -> None:
    """Remove the MR bias field (N4); data under the WMH challenge's pre/ need none."""
    from rich.progress import track

    from scp_models.data.bias import correct_file
    from scp_models.files import ensure_writable

    names = [volume.name for volume in volumes]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{volumes[-1]}: expected every file name once, got {doubled[0]!r} twice")
    ensure_writable(out)
    for volume in track(volumes, "Correcting", transient=True):
        if (out / volume.name).resolve() == volume.resolve():
            raise UserError(f"{out}: expected another folder than the volumes' own")
        correct_file(volume, out / volume.name)
    typer.echo(out)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for all that is made, and the report.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Of phantoms and training.")] = 0,
) -> None:
    """Phantoms, training, evaluation, prediction and a report with pictures, in a few minutes."""
    from scp_models.report.demo.run import run

    run(out, seed=seed)


def main() -> None:
    """Entry point of the console command."""
    try:
        app()
    except UserError as error:
        typer.echo("error: " + " ".join(str(error).split()), err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
