"""Lines for the user about what was done to a file or a data set, each said once per process."""

import logging
from collections.abc import Sequence
from functools import cache

_LOGGER = logging.getLogger("scp_models")


@cache
def note(message: str) -> None:
    """Log one line as a warning; without a configured logger it goes to stderr. A repeated line is dropped."""
    _LOGGER.warning("note: %s", message)


def first_few(names: Sequence[object]) -> str:
    """The first five, and whether there are more."""
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
