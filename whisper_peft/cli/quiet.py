"""Hide single messages of libraries, by their text, and show our own notices as lines.

All other messages of libraries are shown: they may report what nobody here has thought of.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Callable

from whisper_peft.errors import Notice

# Python warnings that are hidden: the beginning of the text. The comment says why a user need not read it.
WARNINGS = (
    # transformers asks its own property, which it renamed.
    r"`is_gradient_checkpointing` is deprecated",
    # transformers 4 moves Whisper's suppressed tokens from config.json to generation_config.json, as we want it.
    r"Moving the following attributes in the config to the generation config",
    # peft looks for the base on the Hub to see whether the vocabulary grew; we never change it.
    r"Could not find a config file in .* - will assume that the vocabulary was not modified",
    # The loader pins memory for a GPU; on a machine without one it has nothing to do.
    r"'pin_memory' argument is set as true but no accelerator is found",
)

# Log messages that are hidden: the name of the logger, and the beginning of the text.
LOG_MESSAGES = (
    # An optional kernel for 4-bit products on CPUs; ours are computed without it.
    ("bitsandbytes.backends.cpu.ops", r"Failed to load CPU gemm_4bit_forward"),
    # It comes at every product of an 8-bit layer. LLM.int8() rounds its input, and nobody can change that.
    ("bitsandbytes.autograd._functions", r"MatMul8bitLt: inputs will be cast"),
    # They list tensors that the file lacks. `model.weights` has counted them before anything is loaded.
    ("transformers.modeling_utils", r".*LOAD REPORT"),
    ("transformers.modeling_utils", r"Some weights of \w+ were not (initialized|used)"),
    # A run may move. Its best checkpoint is found by its step, and its checkpoints are removed by our own rule.
    ("transformers.trainer", r"The best checkpoint .* recorded in the resumed state does not exist anymore"),
    # The output layer is the token embedding, and is not stored a second time.
    ("transformers.trainer", r"There were missing keys in the checkpoint model loaded: \['proj_out\.weight'\]"),
)


class _HidingFilter(logging.Filter):
    """Drop the records of a logger whose text begins with one of some patterns."""

    def __init__(self, patterns: list[str]):
        super().__init__()
        self.pattern = re.compile("|".join(patterns), re.DOTALL)

    def filter(self, record: logging.LogRecord) -> bool:
        return self.pattern.match(record.getMessage()) is None


# One filter for each logger. A logger that gets the same filter twice has it once.
_FILTERS = {
    name: _HidingFilter([pattern for logger, pattern in LOG_MESSAGES if logger == name])
    for name in {logger for logger, _ in LOG_MESSAGES}
}


def hide_library_messages() -> None:
    """Hide the messages of libraries that our own code has taken care of. `main` calls this once."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for pattern in WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    for name, log_filter in _FILTERS.items():
        logging.getLogger(name).addFilter(log_filter)


def show_notices(say: Callable[[str], None]) -> None:
    """Show each of our own notices once, as a line; other warnings are shown as usual.

    Args:
        say: Prints a line.
    """
    show_others = warnings.showwarning
    said: set[str] = set()

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        if not issubclass(category, Notice):
            show_others(message, category, filename, lineno, file, line)
        elif str(message) not in said:
            said.add(str(message))
            say(f"Note: {message}")

    warnings.showwarning = show
    warnings.simplefilter("always", Notice)
