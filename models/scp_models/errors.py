"""The one exception that the command line turns into a one-line message and exit code 2."""


class UserError(Exception):
    """Bad input: the message is one line that names the file (or option) and says what was expected."""
