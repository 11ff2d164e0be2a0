"""The commands ``scp-models study …``: only options; what they do is imported when they run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from scp_models.errors import UserError

if TYPE_CHECKING:
    from scp_models.study.design import Study

study_app = typer.Typer(
    help="Studies: many trainings side by side, resumed, compared and written up.", no_args_is_help=True
)

Jobs = Annotated[int | None, typer.Option(help="Runs side by side; by default one per GPU, or per core.", min=1)]
Seeds = Annotated[int, typer.Option(help="Trainings of each network.", min=1)]
Folds = Annotated[int, typer.Option(help="Of the cross-validation on real data.", min=2)]


Patients = Annotated[
    Path | None, typer.Option(help="Real patients in the WMH challenge's layout; phantoms if not given.")
]


def _run(study: "Study", out: Path, data: Path | None, jobs: int | None) -> None:
    """A study of phantoms, or of one data set whose files are ``data``."""
    from scp_models.study.runner import run_study

    folders = {} if data is None else {study.data[0].name: data}
    typer.echo(run_study(study, out, folders=folders, jobs=jobs))


@study_app.command()
def frames(
    out: Annotated[Path, typer.Option(help="Folder of the study; the same again resumes it.")],
    data: Patients = None,
    full_resolution: Annotated[
        bool, typer.Option("--full-resolution", help="Of --data: pixels of 1 mm, not of 2 mm, and fewer networks.")
    ] = False,
    confirm: Annotated[
        bool, typer.Option("--confirm", help="What --full-resolution found of the box of the head, with fresh seeds.")
    ] = False,
    seeds: Seeds = 3,
    folds: Folds = 3,
    jobs: Jobs = None,
) -> None:
    """Compare what positions are measured in, with SCP, Base F and Base B, beside Base and SCP without positions."""
    from scp_models.study.frames import confirmation_study, full_resolution_study, patients_study, phantoms_study

    if full_resolution and data is None:
        raise UserError("--full-resolution: expected real patients by --data, phantoms have one resolution")
    if confirm and not full_resolution:
        raise UserError("--confirm: expected --full-resolution, whose outcome is confirmed")
    on_patients = patients_study
    if full_resolution:
        on_patients = confirmation_study if confirm else full_resolution_study
    study = phantoms_study(seeds) if data is None else on_patients(seeds, folds)
    _run(study, out, data, jobs)


@study_app.command()
def rates(
    out: Annotated[Path, typer.Option(help="Folder of the study; the same again resumes it.")],
    data: Patients = None,
    width: Annotated[
        int | None,
        typer.Option(help="64, 128 or 256: hidden width of Φ, in the plain form; 64 and 256 if not given."),
    ] = None,
    scales: Annotated[
        bool, typer.Option("--scales", help="Of --data: Φ with its scales, h 256, at the higher learning rate.")
    ] = False,
    limited: Annotated[
        bool, typer.Option("--limited", help="At the higher learning rate, Φ's limited by its width.")
    ] = False,
    anchored: Annotated[
        bool, typer.Option("--anchored", help="Φ as recommended: zero at the centre, its rate limited by its width.")
    ] = False,
    seeds: Seeds = 5,
    folds: Folds = 3,
    jobs: Jobs = None,
) -> None:
    """Find out whether a head is harmed by how fast Φ learns, at two learning rates and several widths, and by what
    that is repaired.
    """
    from scp_models.study.rates import (
        ALL_WIDTHS,
        anchored_on_patients,
        anchored_on_phantoms,
        limited_on_patients,
        limited_on_phantoms,
        rates_on_patients,
        rates_on_phantoms,
        scales_on_patients,
    )

    if width not in (None, *ALL_WIDTHS):
        raise UserError(f"--width: expected one of {', '.join(map(str, ALL_WIDTHS))}, got {width}")
    if [anchored, limited, scales, width is not None].count(True) > 1:
        raise UserError("--anchored, --limited, --scales, --width: expected one of them at most")
    if scales and data is None:
        raise UserError("--scales: expected --data")
    if anchored:
        study = anchored_on_phantoms(seeds) if data is None else anchored_on_patients(seeds, folds)
    elif limited:
        study = limited_on_phantoms(seeds) if data is None else limited_on_patients(seeds, folds)
    elif scales:
        study = scales_on_patients(seeds, folds)
    elif data is None:
        study = rates_on_phantoms(seeds, width)
    else:
        study = rates_on_patients(seeds, folds, width=width)
    _run(study, out, data, jobs)


@study_app.command()
def axes(
    out: Annotated[Path, typer.Option(help="Folder of the study; the same again resumes it.")],
    axis: Annotated[
        list[str] | None,
        typer.Option(help="sides, place, depth, patches, subjects, look-alikes or misalignment; again for more. All."),
    ] = None,
    seeds: Seeds = 3,
    jobs: Jobs = None,
) -> None:
    """Find out what makes SCP worth having, one thing at a time, on phantoms; some 15 minutes per axis and core."""
    from scp_models.study.axes import axes_study, data_of_axes
    from scp_models.study.runner import run_study

    only = data_of_axes(axis) if axis else None
    typer.echo(run_study(axes_study(seeds), out, only=only, jobs=jobs))


@study_app.command()
def page(
    records: Annotated[list[Path], typer.Argument(help="study.json files, in the page's order.")],
    out: Annotated[Path, typer.Option(help="The page, Markdown; its picture lies in images/ beside it.")],
    readme: Annotated[Path | None, typer.Option(help="A file whose marked block takes the advice.")] = None,
    advice: Annotated[
        Path | None, typer.Option(help="The advice, Markdown, whose claims are checked; written by rule if not given.")
    ] = None,
) -> None:
    """Write the page on when SCP helps from finished studies."""
    from scp_models.study.page import write_page
    from scp_models.study.record import read_record

    typer.echo(write_page([read_record(path) for path in records], out, readme, advice))


def reproduce_command(
    out: Annotated[Path, typer.Option(help="Folder of the study and its report; the same again resumes it.")],
    task: Annotated[Literal["wmh", "lits"] | None, typer.Option(help="Both if not given.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Real data of the task (wmh if none is given); phantoms if not given.")
    ] = None,
    seeds: Seeds = 3,
    folds: Annotated[
        int,
        typer.Option(help="Of the cross-validation over patients with --data; 1: one split, as in the paper.", min=1),
    ] = 3,
    budget: Annotated[
        Literal["small", "paper"], typer.Option(help="small: under an hour on two cores; paper: the printed recipe.")
    ] = "small",
    jobs: Jobs = None,
    page: Annotated[
        Path | None, typer.Option(help="Write the report as Markdown too; its pictures lie in images/ beside it.")
    ] = None,
) -> None:
    """Run the paper's study: Tables 1 and 2, its figures and ablations, beside what the paper prints."""
    from scp_models.study.reproduce.run import reproduce

    typer.echo(reproduce(out, task=task, data=data, seeds=seeds, folds=folds, budget=budget, jobs=jobs, page=page))
