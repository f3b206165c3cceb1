"""Print the lines of a command: progress to stderr, results to stdout."""

from __future__ import annotations

import contextlib
import json

import click

from whisper_peft.files import printable, printable_json
from whisper_peft.progress import SECONDS, Update, bar


class Printer:
    """Print what a command says and what it returns.

    Args:
        as_json: Print the result as one JSON object instead of lines.
        quiet: Print results and errors only.
    """

    def __init__(self, as_json: bool, quiet: bool):
        self.as_json = as_json
        self.quiet = quiet

    def say(self, line: str) -> None:
        """Print a line on stderr about what happens."""
        if not self.quiet:
            click.echo(printable(line), err=True)

    def result(self, content: object, lines: list[str]) -> None:
        """Print the result on stdout.

        Args:
            content: What --json prints.
            lines: What people see. A line may be a page of several lines.
        """
        if self.as_json:
            click.echo(printable_json(json.dumps(content, ensure_ascii=False, default=str)))
            return
        for line in lines:
            click.echo(printable(line, keep_line_breaks=True))

    def clips_bar(self, label: str) -> contextlib.AbstractContextManager[Update]:
        """Show a progress bar that counts clips."""
        return bar(label, None, not self.quiet)

    def seconds_bar(self, label: str) -> contextlib.AbstractContextManager[Update]:
        """Show a progress bar that counts seconds of sound."""
        return bar(label, None, not self.quiet, SECONDS)
