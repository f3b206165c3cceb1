"""The exception for mistakes that the user can mend, and the warning for what we mended ourselves."""

from __future__ import annotations


class UserError(Exception):
    """A mistake the user can mend: the message says where, what was found, and the remedy.

    The command line prints it as one line on stderr and exits with 1; every other exception keeps its traceback,
    because it is a bug of ours.
    """


class Interrupted(BaseException):
    """Ctrl-C or a termination signal; not an Exception, so that nothing swallows it on its way out.

    Args:
        signal_number: SIGINT or SIGTERM; the command line exits with 128 plus it.
        message: what was saved, and how to go on.
    """

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + signal_number


class Notice(UserWarning):
    """What a user should know although the work goes on.

    It is a Python warning, so that it reaches a user of the package, too. The command line prints it as one line.
    """
