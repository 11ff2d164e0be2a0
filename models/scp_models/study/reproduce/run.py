"""``scp-models reproduce``: trainings, costs, tables, figures and the report, in one command that can be stopped."""

import json
from dataclasses import asdict
from pathlib import Path

from scp_models.data.find import find_subjects
from scp_models.data.tasks import get_task
from scp_models.errors import Failures, UserError
from scp_models.files import atomic_path
from scp_models.study.design import Study
from scp_models.study.prepared import prepare_data
from scp_models.study.progress import Display
from scp_models.study.record import read_record
from scp_models.study.reproduce.costs import CostRow, measure_printed_costs
from scp_models.study.reproduce.design import BUDGETS, REPRODUCED_TASKS, TASK_TITLES, reproduction
from scp_models.study.reproduce.document import describe_reproduction, make_pictures, write_markdown, write_report
from scp_models.study.runner import run_study

COSTS = "costs.json"


def reproduce(
    out: Path,
    *,
    task: str | None = None,
    data: Path | None = None,
    seeds: int = 3,
    folds: int = 3,
    budget: str = "small",
    jobs: int | None = None,
    display: Display | None = None,
    page: Path | None = None,
) -> Path:
    """Run what is not finished of the paper's study, and write its report.

    Args:
        out: see :func:`scp_models.study.runner.run_study`; the report, its CSVs and ``study.json`` lie there too.
        task: ``"wmh"`` or ``"lits"``; None: both.
        data: real data of the task (``wmh`` if none is given); None: phantoms.
        seeds: trainings of each network.
        folds: of the cross-validation over patients, stratified by site, with ``data``; 1: one split as in the paper.
        budget: ``"small"`` or ``"paper"``.
        jobs: runs side by side; None: one per GPU, or per core.
        display: of the progress; None: on standard output.
        page: a file that the report is written into as Markdown, its pictures beside it; None: none.

    Returns:
        The report's path.

    Raises:
        UserError: see :func:`scp_models.study.runner.run_study`.
    """
    tasks = REPRODUCED_TASKS if task is None and data is None else (task or "wmh",)
    chosen = BUDGETS[budget]
    real = frozenset(tasks) if data is not None else frozenset()
    study = reproduction(tasks, chosen, seeds, folds, real)
    if data is not None and not find_subjects(data, get_task(tasks[0]), failures=Failures()):
        raise UserError(f"{data}: expected subjects of {TASK_TITLES[tasks[0]]}, found none")
    folders = {d.name: data for d in study.data if data is not None}
    shown = display or Display(study.title)
    record = read_record(run_study(study, out, folders=folders, jobs=jobs, display=shown))
    costs = _costs(out, study, shown)
    prepared = {d.name: prepare_data(d, folders.get(d.name), out, shown, study.recipe.sampling) for d in study.data}
    pictures = make_pictures(record, out, study, prepared, costs)
    described = describe_reproduction(record, study, chosen, costs, pictures)
    if page is not None:
        write_markdown(described, page)
    return write_report(described, record, out)


def read_costs(path: Path) -> list[CostRow]:
    """The costs that :func:`reproduce` keeps beside its runs."""
    return [CostRow(**row) for row in json.loads(path.read_text())]


def _costs(out: Path, study: Study, display: Display) -> list[CostRow]:
    """Measured once, and kept beside the runs."""
    path = out / COSTS
    if path.is_file():
        return read_costs(path)
    display.say(f"{study.title}: costs of the printed networks")
    rows = measure_printed_costs()
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return rows
