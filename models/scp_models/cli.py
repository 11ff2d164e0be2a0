"""The command ``scp-models``. Bad input ends in one line on stderr and exit code 2."""

import logging
import sys
from collections.abc import Callable
from functools import wraps
from inspect import signature
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from scp_models.errors import Failures, UserError
from scp_models.options import EvaluateOptions, PhantomOptions, PredictOptions, ShowOptions
from scp_models.study.cli import reproduce_command, study_app

app = typer.Typer(
    name="scp-models",
    help="Lesion segmentation with spatially covariant heads: data, training, evaluation, prediction, report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(study_app, name="study")
app.command("reproduce")(reproduce_command)


def command(function: Callable[[Any], None]) -> Callable[..., None]:
    """Make a command of a function of one dataclass, whose fields are the command's arguments and options."""
    (options,) = (annotation for name, annotation in function.__annotations__.items() if name != "return")

    @wraps(function)
    def run(**values: Any) -> None:
        function(options(**values))

    run.__signature__ = signature(options)  # type: ignore[attr-defined]
    run.__annotations__ = options.__init__.__annotations__
    return app.command()(run)


def _report(message: str) -> None:
    typer.echo("error: " + " ".join(message.split()), err=True)


def _finish(failures: Failures, total: int) -> None:
    """Exit code 2, and who was skipped, if not everything went well."""
    if failures.messages:
        if total > 1:
            typer.echo(failures.summary(total), err=True)
        raise typer.Exit(2)


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


@command
def evaluate(options: EvaluateOptions) -> None:
    """Score every subject of a split, with all metrics, on the grid of its files."""
    options.check()
    assert options.data is not None
    from rich.progress import track

    from scp_models.data.classes import parse_classes
    from scp_models.evaluation.scores import evaluate as scores_of
    from scp_models.evaluation.scores import headline, write_scores
    from scp_models.evaluation.selection import DataSet, masks_of_checkpoint, masks_of_files
    from scp_models.files import ensure_writable

    data = DataSet(options.data, options.layout, options.split, options.split_file, options.label_affine)
    failures = Failures(_report, fail_fast=options.fail_fast)
    if options.checkpoint is not None:
        masks, subjects = masks_of_checkpoint(options.checkpoint, data, options.threshold, options.frame, failures)
    else:
        assert options.predictions is not None
        description = {
            "task": options.task,
            "seed": options.seed,
            "target": options.target,
            "ignored": options.ignored,
            "modalities": options.modality,
            "classes": parse_classes(options.classes) if options.classes else None,
        }
        masks, subjects = masks_of_files(options.predictions, data, description, options.threshold, failures)
    ensure_writable(options.out)
    total = len(subjects) + len(failures.messages)
    shown = track(subjects, "Evaluating", transient=True)
    rows = scores_of(masks, shown, options.connectivity, failures)  # type: ignore[arg-type]
    if not rows:
        _finish(failures, total)
    about: dict[str, Any] = {
        "of": str(options.checkpoint or options.predictions),
        "data": str(options.data),
        "split": options.split,
        "connectivity": options.connectivity,
        "threshold": None if masks.reader.task.classes else masks.threshold,
    }
    if failures.messages:
        about["skipped"] = failures.messages
    summary = write_scores(rows, options.out, about)
    present = {row.get("class") for row in rows if row["reference_lesions"]}
    for name in dict.fromkeys(row.get("class") for row in rows):
        if name not in present:
            what = f"the target label {list(masks.reader.task.target)}" if name is None else f"the class {name!r}"
            of = "the scores" if name is None else "its scores"
            typer.echo(f"warning: {data.root}: no reference has {what}: {of} say nothing", err=True)
    typer.echo(headline(summary))
    for name in ("scores.csv", "summary.json"):
        typer.echo(options.out / name)
    _finish(failures, total)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="scores.csv of one model.")],
    b: Annotated[Path, typer.Argument(help="scores.csv of another, on the same subjects.")],
    metric: Annotated[list[str], typer.Option(help="Scores to compare.")] = ["dice", "lesion_dice"],  # noqa: B006
    of_class: Annotated[
        str | None, typer.Option("--class", help="One of several classes; their mean if not given.")
    ] = None,
) -> None:
    """Paired two-tailed t-tests between two models, subject by subject."""
    from scp_models.evaluation.scores import paired_scores
    from scp_models.evaluation.statistics import paired_comparison

    for name in metric:
        test = paired_comparison(*paired_scores(a, b, name, of_class))
        typer.echo(
            f"{name}: difference {test.mean_difference:+.4f}, p = {test.p_value:.3g} ({test.stars}), "
            f"d_z = {test.cohen_dz:.2f}, {test.n} subjects"
        )


@command
def predict(options: PredictOptions) -> None:
    """Segment studies: NIfTI in, NIfTI out in the source's grid and affine."""
    from rich.progress import track

    from scp_models.checkpoints import load_model
    from scp_models.files import ensure_writable
    from scp_models.inference.predictor import Predictor, check_folder, subjects_of
    from scp_models.inference.predictor import predict as write_predictions

    model = load_model(options.checkpoint)
    model.check_threshold(options.threshold, options.checkpoint)
    if options.frame is not None:
        model = model.with_transforms(options.frame)
    failures = Failures(_report, fail_fast=options.fail_fast)
    subjects = subjects_of(options.inputs or [], options.image or [], model.task, options.layout, failures)
    total = len(subjects) + len(failures.messages)
    check_folder(subjects, options.out, options.probabilities)
    ensure_writable(options.out)
    predictor = Predictor(model, threshold=options.threshold)
    shown = track(subjects, "Predicting", transient=True)
    for path in list(write_predictions(predictor, shown, options.out, options.probabilities, failures)):
        typer.echo(path)
    _finish(failures, total)


@command
def show(options: ShowOptions) -> None:
    """Draw subjects' frames on their slices: is the foreground the patient, and which way is right, front and top?"""
    from scp_models.data.description import read_description
    from scp_models.data.tasks import get_task, with_frame
    from scp_models.inference.predictor import subjects_of

    if options.checkpoint is not None:
        from scp_models.checkpoints import load_model

        if options.task is not None or options.modality:
            raise UserError(f"--task, --modality: expected without --checkpoint, {options.checkpoint} says it already")
        task = load_model(options.checkpoint).task
        task = task if options.frame is None else with_frame(task, options.frame)
    else:
        given = {"modalities": options.modality or None, "frame": options.frame or "foreground"}
        description = read_description(options.inputs[0])
        name = options.task or "wmh"
        # Labels are not drawn.
        of_labels = {"target": [1], "ignored": []}
        task = get_task(name, None, description.options(name, {**given, **of_labels}) if description else given)
    from scp_models.report.frames import draw_frames

    failures = Failures(_report)
    subjects = subjects_of(options.inputs, [], task, options.layout, failures)
    total = len(subjects) + len(failures.messages)
    for path in draw_frames(subjects, task, options.out, failures):
        typer.echo(path)
    _finish(failures, total)


@app.command()
def complexity(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Parameters and multiply-adds of the paper's twelve networks, beside its Table 1."""
    from scp_models.networks.complexity import main as run

    run(as_json=as_json)


@command
def phantom(options: PhantomOptions) -> None:
    """Write synthetic subjects in the layout of the WMH or LiTS challenge, or of nnU-Net."""
    from scp_models.phantoms import generate_lits, generate_wmh

    if options.task == "lits" and (options.location_decided or options.height_decided):
        raise UserError("--location-decided, --height-decided: expected with wmh only")
    parts = options.size.split("x")
    size = (int(parts[0]), int(parts[1]), int(parts[2])) if [*map(str.isdecimal, parts)] == [True] * 3 else options.size
    kinds = {"left_right": options.left_right, "pose": options.pose}
    if options.task == "wmh":
        kinds |= {"location_decided": options.location_decided, "height_decided": options.height_decided}
    generate = generate_wmh if options.task == "wmh" else generate_lits
    generate(options.out, options.subjects, options.seed, size=size, **kinds)
    typer.echo(options.out)


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
    if any((out / volume.name).resolve() == volume.resolve() for volume in volumes):
        raise UserError(f"{out}: expected another folder than the volumes' own")
    failures = Failures(_report)
    for volume in track(volumes, "Correcting", transient=True):
        with failures.skip(volume.name):
            correct_file(volume, out / volume.name)
    typer.echo(out)
    _finish(failures, len(volumes))


@app.command()
def nnunet(
    action: Annotated[Literal["install", "uninstall", "path"], typer.Argument(help="What to do.")],
) -> None:
    """Make nnU-Net v2 find nnUNetTrainerSCP: a file in its folder, or none any more; path: for nnUNet_extTrainer."""
    from scp_models.nnunet import install

    done = {"install": install.install, "uninstall": install.uninstall, "path": install.external_folder}
    typer.echo(done[action]())


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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # Not every terminal's encoding has every character of a name or a table: better a "?" than a crash.
            stream.reconfigure(errors="replace")
    # What nibabel sets right in a header it says in lines that do not name the file.
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    try:
        app()
    except UserError as error:
        _report(str(error))
        sys.exit(2)


if __name__ == "__main__":
    main()
