"""The exceptions and the warning of this package.

BaseException
├── Interrupted                 Ctrl-C or SIGTERM
└── Exception
    ├── UserError               a mistake that the user can mend
    │   ├── UnusableFileError   a file that cannot be read (files.py)
    │   └── NoPromptColumnError a table without the column that should hold prompts (data/columns.py)
    ├── AudioError              a clip that cannot be used; it is left out (data/decoded_clip.py)
    ├── ValueError
    │   ├── YamlSyntaxError     a page that is not YAML (files.py)
    │   └── TooLongError        a clip over the token limit; it is left out (data/features.py)
    └── Warning
        └── Notice              what a user should know although the work goes on
"""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can mend. The message names the place, the finding and the remedy.

    The command line prints it as one line on stderr and exits with 1. Every other exception is a bug of ours.
    """


class Interrupted(BaseException):
    """An interruption by Ctrl-C or SIGTERM. It is no Exception, so that no `except Exception` swallows it.

    Args:
        signal_number: SIGINT or SIGTERM. The command line exits with 128 plus this number.
        message: What was saved, and how to go on.
    """

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + signal_number


class Notice(UserWarning):
    """A notice that a user should read although the work goes on.

    It is a Python warning, so that it also reaches users of the Python API. The command line prints it as one line.
    """
