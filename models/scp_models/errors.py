"""What the command line says of bad input, instead of a traceback."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class UserError(Exception):
    """Bad input: the message is one line that names the file (or option) and says what was expected."""


class Failures:
    """Bad subjects among many: each is reported and skipped, so that the others get their results.

    Args:
        report: given the message of each failure as it happens.
        fail_fast: raise the first one instead.

    Attributes:
        messages: by subject's name.
        subjects: by name, those who were given.
    """

    def __init__(self, report: Callable[[str], object] = lambda message: None, *, fail_fast: bool = False) -> None:
        self.report = report
        self.fail_fast = fail_fast
        self.messages: dict[str, str] = {}
        self.subjects: dict[str, Any] = {}

    @contextmanager
    def skip(self, name: str, subject: Any = None) -> Iterator[None]:
        """Around what is done for one subject, who is kept where given."""
        try:
            yield
        except UserError as error:
            if self.fail_fast:
                raise
            self.messages[name] = str(error)
            if subject is not None:
                self.subjects[name] = subject
            self.report(str(error))

    def summary(self, total: int) -> str:
        """One line: how many of ``total`` subjects were skipped, and which."""
        return f"skipped {len(self.messages)} of {total} subjects: {', '.join(self.messages)}"
