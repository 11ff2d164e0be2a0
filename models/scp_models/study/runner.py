"""Runs a study: several runs side by side, each in a process of its own, resumable at any point.

A run's process is forked from a server that has imported everything and computed nothing. So no run sees what another
left behind (caches, random numbers, memory), and figures do not depend on what ran before, beside or after it, nor on
where a study was stopped.
"""

import fcntl
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from multiprocessing import connection
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from scp_models.errors import UserError
from scp_models.files import atomic_path, ensure_writable
from scp_models.phantoms.writing import available_cores
from scp_models.report.quiet import quiet
from scp_models.study.design import Run, Study, without_words
from scp_models.study.job import RESULT, RunJob, work_of
from scp_models.study.prepared import Prepared, prepare_data, write_splits
from scp_models.study.progress import Display
from scp_models.study.record import write_record

SETTINGS = "settings.json"
STUDY_RECORD = "study.json"


def run_study(
    study: Study,
    out: Path | str,
    *,
    only: Collection[str] | None = None,
    folders: Mapping[str, Path] | None = None,
    jobs: int | None = None,
    display: Display | None = None,
) -> Path:
    """Run what is not finished yet, and write ``study.json`` each time that a data set is finished.

    Below ``out``: ``runs/<data>/<network>/seed-<n>/run.json`` of each run (and ``model.ckpt``), ``data/`` and
    ``cache/`` with phantoms and slices, ``splits.json``, ``sources.json``, ``settings.json``.

    Args:
        study: what to run.
        out: a new or empty folder, or that of the same study, whose finished runs are kept.
        only: names of the data sets to run; None: all of them.
        folders: of the data sets that are no phantoms, by name.
        jobs: runs side by side, each on one thread; None: one per GPU, or per core.
        display: of the progress; None: on standard output.

    Returns:
        The path of ``study.json``, which has all data sets that are finished by now.

    Raises:
        UserError: a folder of something else, or of a study with other settings; data that cannot be read; runs that
            ended without a result.
    """
    folder = Path(out)
    with _locked(folder, study), quiet(), display or Display(study.title) as shown:
        chosen = [data.name for data in study.data if only is None or data.name in only]
        runs = [run for run in study.runs() if run.data.name in chosen]
        unfinished = [run for run in runs if read_result(folder, run) is None]
        prepared = {
            data.name: prepare_data(data, (folders or {}).get(data.name), folder, shown, study.recipe.sampling)
            for data in study.data
            if data.name in chosen or _results(study, folder, data.name)
        }
        write_splits(prepared, folder)
        left = [_job(run, prepared[run.data.name], folder) for run in unfinished]
        if left:
            record = partial(_write_finished, study, folder, prepared)
            failed = _run_all(left, jobs, shown, len(runs) - len(left), record)
            if failed:
                title, message = next(iter(failed.items()))
                raise UserError(
                    f"{folder}: expected {len(runs)} finished runs, {len(failed)} ended without a result ({title}: "
                    f"{message}); the same command runs them again"
                )
        return _write_finished(study, folder, prepared)


def _results(study: Study, folder: Path, data: str) -> list[dict[str, Any]]:
    """Of all runs of a data set; empty if one of them is missing."""
    results = [read_result(folder, run) for run in study.runs() if run.data.name == data]
    finished = [result for result in results if result is not None]
    return finished if len(finished) == len(results) else []


def _write_finished(study: Study, folder: Path, prepared: Mapping[str, Prepared]) -> Path:
    """The record of all data sets that are finished."""
    results = {name: of_data for name in prepared if (of_data := _results(study, folder, name))}
    finished = {name: prepared[name] for name in results}
    everything = [result for of_data in results.values() for result in of_data]
    return write_record(study, finished, everything, folder / STUDY_RECORD)


def read_result(folder: Path, run: Run) -> dict[str, Any] | None:
    """What a finished run wrote; None if it is not finished.

    Raises:
        UserError: it was made with other settings.
    """
    path = folder / "runs" / run.folder / RESULT
    try:
        result: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected a run of this study ({error})") from error
    if (there := without_words(result.get("settings"))) != (ours := without_words(run.settings())):
        raise UserError(f"{path}: expected a run of this study, it differs in {_difference(there, ours)}")
    return result


def _difference(there: Any, ours: Any, where: str = "settings") -> str:
    """The first setting that differs, for people."""
    if isinstance(there, Mapping) and isinstance(ours, Mapping):
        for key in sorted(there.keys() | ours.keys()):
            if there.get(key) != ours.get(key):
                return _difference(there.get(key), ours.get(key), key)
    return f"{where}: {shorten(repr(there), 80, placeholder=' …')}, not {shorten(repr(ours), 80, placeholder=' …')}"


def _job(run: Run, prepared: Prepared, folder: Path) -> RunJob:
    split = prepared.splits[run.fold or 0]
    return RunJob(run, prepared.root, split, prepared.cache, folder / "runs" / run.folder)


@contextmanager
def _locked(folder: Path, study: Study) -> Iterator[None]:
    """The folder is this study's, and nobody else is at work there."""
    ensure_writable(folder)
    path, ours = folder / SETTINGS, study.as_json()
    others = [p.name for p in folder.iterdir() if not p.name.startswith(".")]
    if others and not path.is_file():
        raise UserError(f"{folder}: expected an empty folder or one of a study, it holds {sorted(others)[0]!r}")
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{folder}: expected no other process to work there, one does") from error
        if path.is_file():
            try:
                there = json.loads(path.read_text())
            except (OSError, ValueError) as error:
                raise UserError(f"{path}: expected the settings of a study ({error})") from error
            if without_words(there) != without_words(ours):
                differs = _difference(without_words(there), without_words(ours))
                raise UserError(
                    f"{folder}: expected a study with these settings, it differs in {differs} (another --out)"
                )
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(ours, indent=1) + "\n")
        yield


def _devices() -> list[str]:
    count = torch.cuda.device_count()
    return [f"cuda:{k}" for k in range(count)] if count else ["cpu"]


def _run_all(
    left: Sequence[RunJob], jobs: int | None, display: Display, kept: int, record: Callable[[], object]
) -> dict[str, str]:
    """Execute; the messages of runs without a result, by title. ``record`` is called when a data set is finished."""
    devices = _devices()
    side_by_side = jobs or (len(devices) if devices != ["cpu"] else available_cores())
    costs: dict[tuple[str, str], float] = {}
    for job in left:
        run = job.run
        if (run.data.name, run.network.name) not in costs:
            costs[run.data.name, run.network.name] = work_of(run)
    work = {job.run.title: costs[job.run.data.name, job.run.network.name] for job in left}
    outstanding = Counter(job.run.data.name for job in left)
    waiting = list(reversed(left))
    running: dict[connection.Connection, tuple[Any, RunJob]] = {}
    failed: dict[str, str] = {}
    display.begin(work, kept)
    try:
        while waiting or running:
            while waiting and len(running) < side_by_side:
                used = [job.device for _, job in running.values()]
                job = replace(waiting.pop(), device=min(devices, key=used.count))
                process, receiver = _start(job)
                running[receiver] = process, job
            ready = connection.wait(list(running), timeout=0.5)
            for receiver in [receiver for receiver in running if receiver in ready]:
                process, job = running[receiver]
                title = job.run.title
                kind, value = _receive(receiver)
                if kind == "share":
                    display.advance(title, value)
                    continue
                running.pop(receiver)
                receiver.close()
                process.join()
                if kind == "done":
                    display.finish(title, value)
                    outstanding[job.run.data.name] -= 1
                    if not outstanding[job.run.data.name]:
                        record()
                else:
                    failed[title] = value
                    display.fail(title, value)
    finally:
        for process, _ in running.values():
            process.kill()
            process.join()
    return failed


def _start(job: RunJob) -> tuple[Any, connection.Connection]:
    """The run's process, and where it tells how it goes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["scp_models.study.single", "typer"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(job, sender), daemon=True)
    process.start()
    sender.close()
    return process, receiver


def _receive(receiver: connection.Connection) -> tuple[str, Any]:
    """``"share"`` of the run that is done, ``"done"`` or ``"failed"``, and what belongs to it."""
    try:
        kind, value = receiver.recv()
        return kind, value
    except EOFError:
        return "failed", "its process was killed"


def _work(job: RunJob, sender: connection.Connection) -> None:
    """In a process of its own: one run, whose end is told through ``sender``."""
    from scp_models.study.single import execute_run  # the server of processes has it; the study does without Lightning

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the study ends its runs itself
    _end_with_parent()
    # What there is to note of files was said when the slices were prepared.
    logging.getLogger("scp_models").setLevel(logging.ERROR)
    with suppress(OSError), quiet():
        try:
            result = execute_run(job, lambda share: sender.send(("share", share)))
        except UserError as error:
            sender.send(("failed", str(error)))
        except Exception as error:
            sender.send(("failed", f"{type(error).__name__}: {error}"))
            raise
        else:
            dice = sum(result["scores"]["dice"]) / len(result["scores"]["dice"])
            seconds = sum(result["seconds"].values())
            sender.send(("done", f"Dice {dice:.3f} ({seconds:.0f} s)"))


def _end_with_parent() -> None:
    """A study that is killed leaves no runs behind that go on without it."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        sys.stderr.flush()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
