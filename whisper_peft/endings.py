"""How the command line ends: an exit code, and one line for everything that goes wrong."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import textwrap
import traceback

import click

from whisper_peft.errors import Interrupted, UserError
from whisper_peft.files import printable, reason_of

BUG = 70  # the exit code of a bug of ours
SYSTEM_LIMITS = (errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EROFS, errno.EDQUOT, errno.ENOMEM)


def run(command: click.Command) -> None:
    """Run the command line and end the process with its exit code.

    What the user can mend ends in one line and exit code 1. A bug of ours ends in one line and exit code 70
    (EX_SOFTWARE of sysexits.h); its traceback is kept in a file.

    Args:
        command: The command line.
    """
    _accept_any_text()
    try:
        code = command(standalone_mode=False)
    except click.ClickException as error:
        error.message = printable(error.message, keep_line_breaks=True)
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except UserError as error:
        click.echo(f"Error: {printable(error)}", err=True)
        sys.exit(1)
    except Interrupted as stop:
        click.echo(f"Stopped: {printable(stop)}", err=True)
        sys.exit(stop.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except MemoryError:
        click.echo("Error: not enough memory on this machine; take smaller batches or a smaller model.", err=True)
        sys.exit(1)
    except Exception as error:
        sys.exit(_last_net(error))
    sys.exit(code if isinstance(code, int) else 0)


def _accept_any_text() -> None:
    """Let stdout and stderr take text that their encoding cannot write, such as a file name that is not UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _last_net(error: Exception) -> int:
    """Print one line for an exception that nobody expected.

    A file that the system refuses is the user's to mend. Everything else is our bug, and its traceback is kept.

    Returns:
        The exit code.
    """
    name = getattr(error, "filename", None)
    if isinstance(error, OSError) and (name is not None or error.errno in SYSTEM_LIMITS):
        place = f"{printable(name)}: " if name is not None else ""
        click.echo(f"Error: {place}{reason_of(error)}.", err=True)
        return 1
    trace = "".join(traceback.format_exception(error))
    with tempfile.NamedTemporaryFile(
        "w", prefix="whisper-peft-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as file:
        file.write(trace)
    kind = type(error).__name__
    reason = textwrap.shorten(printable(error), 200, placeholder=" ...")
    click.echo(
        f"Error: {kind}: {reason}. This is a bug in whisper-peft; please report it with {file.name}, which holds the "
        "traceback.",
        err=True,
    )
    return BUG
