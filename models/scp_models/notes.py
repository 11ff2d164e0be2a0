"""Lines for the user about what was done to a file or a data set, each said once per process."""

import logging
from functools import cache

_LOGGER = logging.getLogger("scp_models")


@cache
def note(message: str) -> None:
    """Log one line as a warning; without a configured logger it goes to stderr. A repeated line is dropped."""
    _LOGGER.warning("note: %s", message)
