"""One progress display over a demo's stages."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Stages:
    """Two bars: the stages of the whole run, and the steps of the stage at work.

    Attributes:
        seconds: what every finished stage took, by its title.
    """

    def __init__(self, total: int, console: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<44}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._overall: TaskID = self._progress.add_task("Demo", total=total)
        self.seconds: dict[str, float] = {}

    def __enter__(self) -> "Stages":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    @contextmanager
    def stage(self, title: str, steps: int) -> Iterator["Stage"]:
        """A stage of ``steps`` steps; its time is kept, its bar goes when it ends."""
        task = self._progress.add_task(f"  {title}", total=steps)
        start = perf_counter()
        try:
            yield Stage(self._progress, task, title)
        finally:
            self._progress.remove_task(task)
        self.seconds[title] = perf_counter() - start
        self._progress.advance(self._overall)


class Stage:
    """The stage at work."""

    def __init__(self, progress: Progress, task: TaskID, title: str) -> None:
        self._progress, self._task, self._title = progress, task, title

    def advance(self, detail: str = "") -> None:
        """One step done; ``detail`` is shown behind the title."""
        description = f"  {self._title}, {detail}" if detail else f"  {self._title}"
        self._progress.update(self._task, advance=1, description=description)

    @contextmanager
    def counting(self, folder: Path, name: str) -> Iterator[None]:
        """While inside, the steps done are the files called ``name`` below ``folder``."""
        done = threading.Event()

        def count() -> None:
            while not done.wait(0.5):
                self._progress.update(self._task, completed=sum(1 for _ in folder.rglob(name)))

        counter = threading.Thread(target=count, daemon=True)
        counter.start()
        try:
            yield
        finally:
            done.set()
            counter.join()


class EpochProgress(L.Callback):
    """Advances a stage by one step per training batch."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        self._stage.advance(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")


class LossHistory(L.Callback):
    """Keeps each epoch's losses: rows of ``epoch`` (from 1), ``training`` and ``validation``."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = trainer.callback_metrics
        row = {"training": float(metrics["train_loss_epoch"]), "validation": float(metrics["val_loss"])}
        self.rows.append({"epoch": trainer.current_epoch + 1, **row})
