"""Calls of transformers' from_pretrained functions, without progress bars and with each failure as one clear line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from whisper_peft import runs
from whisper_peft.errors import UserError
from whisper_peft.files import is_folder, printable
from whisper_peft.model.foreign import foreign_config


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Within the block, show no progress bars: a bar for one second hides on stderr what the user should read."""
    from transformers.utils import logging

    were_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_enabled:
            logging.enable_progress_bar()


def load_or_explain(load: Callable[..., Any], source: str, what: str, **options: object) -> Any:
    """Call a from_pretrained function, and turn each failure that a user can cause into one clear line.

    Args:
        load: The function.
        source: A local folder or a Hub id, its first argument.
        what: What is loaded, in words, for the message.
        **options: Its further arguments.

    Raises:
        UserError: The source is not found, not reachable, damaged, or a model of another program.
    """
    from safetensors import SafetensorError

    try:
        with without_bars():
            return load(source, **options)
    except (OSError, ValueError, SafetensorError) as error:
        reason = printable(" ".join(str(error).split()))
        if is_folder(source):
            raise UserError(f"{source}: {what} cannot be loaded ({reason[:300]}).") from None
        foreign = _foreign_on_hub(source, options.get("revision"))
        if foreign:
            raise UserError(f"{source}: {foreign}.") from None
        raise UserError(
            f"{source}: {what} is neither a local folder nor reachable on the Hub ({reason[:200]}). Check the name, "
            "the network and, for a gated model, 'hf auth login'."
        ) from None


def _foreign_on_hub(source: str, revision: object) -> str | None:
    """Say what a model on the Hub is, if its config.json was fetched and shows that it is not transformers'."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(source, "config.json", revision=str(revision or "main"))
        if isinstance(path, str):
            return foreign_config(runs.read_json(path))
    except (HFValidationError, UserError):
        pass
    return None
