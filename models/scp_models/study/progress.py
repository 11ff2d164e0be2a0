"""One display for a whole study: what is running, how much is done, how long the rest will take."""

from collections.abc import Mapping
from time import monotonic

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn


def time_left(done: float, total: float, seconds: float) -> float | None:
    """Seconds that the rest takes if it goes on as it went; None before anything is done.

    Args:
        done: work done since the start.
        total: that and what is left.
        seconds: since the start.
    """
    return seconds * (total - done) / done if done > 0 else None


def duration(seconds: float | None) -> str:
    """``"45 s"``, ``"12 min"``, ``"2 h 05 min"``; ``"?"`` for None."""
    if seconds is None:
        return "?"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


class Display:
    """A bar and the running runs on a terminal; elsewhere a line per finished run.

    Work is counted in units that are proportional to time, such as multiply-adds: a large network counts for more.
    """

    def __init__(self, title: str, console: Console | None = None) -> None:
        self.title = title
        self.console = console or Console()
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.fields[text]}")
        )
        self._task = self._bar.add_task(title, total=1.0, text="")
        self._live: Live | None = None
        self._running: dict[str, float] = {}
        self._work: Mapping[str, float] = {}
        self._finished = 0
        self._done = 0.0
        self._start = monotonic()

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self._live = Live(self._bar, console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """One line about what is being made ready, or about what went wrong."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def begin(self, work: Mapping[str, float], kept: int) -> None:
        """The runs that are left, and how much work each is.

        Args:
            work: by the run's title.
            kept: how many other runs were finished before.
        """
        self._work, self._finished, self._kept, self._done = work, 0, kept, 0.0
        self._start = monotonic()
        if kept:
            self.say(f"{self.title}: {kept} finished runs are kept, {len(work)} are left")
        self._show()

    def advance(self, title: str, share: float) -> None:
        """A running run has come so far."""
        self._running[title] = share
        self._show()

    def finish(self, title: str, text: str) -> None:
        """A run is done; ``text`` is said of it."""
        self._running.pop(title, None)
        self._done += self._work[title]
        self._finished += 1
        if self._live is None:
            self.say(f"{self.status()}; {title}: {text}")
        self._show()

    def fail(self, title: str, message: str) -> None:
        """A run ended without a result."""
        self._running.pop(title, None)
        self._done += self._work[title]
        self.say(f"{title}: {message}")

    def status(self) -> str:
        """How many runs are done, since when, and how long the rest takes."""
        elapsed = monotonic() - self._start
        done = self._done + sum(self._work[title] * share for title, share in self._running.items())
        total = sum(self._work.values())
        left = duration(time_left(done, total, elapsed))
        count, runs = self._kept + self._finished, self._kept + len(self._work)
        return f"{count} of {runs} runs, {duration(elapsed)}, {left} left"

    def _show(self) -> None:
        if self._live is None:
            return
        done = self._done + sum(self._work[title] * share for title, share in self._running.items())
        lines = "".join(f"\n  {title} {share:.0%}" for title, share in self._running.items())
        self._bar.update(self._task, total=sum(self._work.values()) or 1.0, completed=done, text=self.status() + lines)
