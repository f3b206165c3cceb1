"""Call transformers' from_pretrained functions: no progress bars, and each failure as one clear line."""

from __future__ import annotations

import contextlib

from whisper_peft import runs
from whisper_peft.errors import UserError
from whisper_peft.files import is_folder, printable
from whisper_peft.model.foreign import foreign_config


@contextlib.contextmanager
def without_bars():
    """No bar for what takes a second: stderr is for what the user should read."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_or_explain(load, source: str, what: str, **options: object):
    """Calls a from_pretrained, and turns what a user can cause into one clear line."""
    from safetensors import SafetensorError

    try:
        with without_bars():
            return load(source, **options)
    except (OSError, ValueError, SafetensorError) as error:
        first = printable(" ".join(str(error).split()))
        if is_folder(source):
            raise UserError(f"{source}: {what} cannot be loaded ({first[:300]}).") from None
        found = _foreign_on_hub(source, options.get("revision"))
        if found:
            raise UserError(f"{source}: {found}.") from None
        raise UserError(
            f"{source}: {what} is neither a local folder nor reachable on the Hub ({first[:200]}). Check the name, "
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
