"""Checks of the weights of a model or an adapter before it is published; no model is loaded."""

from __future__ import annotations

from pathlib import Path

from whisper_peft.errors import UserError
from whisper_peft.files import is_folder, printable
from whisper_peft.model.adapter_configs import read_adapter_config
from whisper_peft.model.configs import load_config
from whisper_peft.model.foreign import refuse_foreign_folder
from whisper_peft.model.identity import weight_files
from whisper_peft.model.loading import DAMAGED, empty_whisper, shapes_of
from whisper_peft.model.lora import (
    adapter_file,
    add_adapter_layers,
    changes_nothing,
    fit_to_adapter,
    warn_of_no_change,
)
from whisper_peft.model.tensor_matching import fit_base, write_adapter_name
from whisper_peft.model.weights import (
    read_header,
    refuse_not_finite,
    refuse_own_head,
    refuse_zeros,
    tensors_of,
)


def check_weights(base: str, adapter: Path | None, *, revision: str | None = None) -> None:
    """Match the tensors of a model or an adapter with its config, and look for values that are no finite numbers.

    No model is loaded. A `Notice` says so if the update of an adapter is zero.

    Args:
        base: Folder or Hub id of the full weights. The base of an adapter is not fetched from the Hub: if it is not on
            this machine, the adapter is checked without it.
        adapter: The adapter's folder; None for a stand-alone model.
        revision: Commit of a base on the Hub; None is the newest.

    Raises:
        UserError: See `load_base` and `load_adapter`.
    """
    if adapter is None:
        _check_model(base)
    else:
        _check_adapter(adapter, base, revision)


def _check_model(folder: str) -> None:
    """Check the weights of a stand-alone model."""
    refuse_foreign_folder(Path(folder))
    files = weight_files(folder)
    names = fit_base(read_header(files), shapes_of(empty_whisper(load_config(folder))), place=folder)
    refuse_own_head(files, names, place=folder)
    refuse_not_finite(tensors_of(files), place=folder, remedy=DAMAGED)
    refuse_zeros(((names[name], tensor) for name, tensor in tensors_of(files)), place=folder, remedy=DAMAGED)


def _check_adapter(adapter: Path, base: str, revision: str | None) -> None:
    """Check the weights of an adapter."""
    file = adapter_file(adapter)
    read_adapter_config(adapter)
    folder = _find_local_folder(base, revision)
    if folder is not None:
        adapted = add_adapter_layers(empty_whisper(load_config(folder)), adapter, trainable=False)
        fit_to_adapter(adapted, adapter)
    strangers = [name for name in read_header([file]).shapes if write_adapter_name(name) != name]
    if strangers:
        raise UserError(
            f"{adapter}: {len(strangers)} tensors are not named as peft names them ({printable(strangers[0])[:100]}); "
            "other programs would load nothing of the adapter. Train it one step further, or save it again."
        )
    refuse_not_finite(tensors_of([file]), place=str(adapter), remedy=DAMAGED)
    if changes_nothing(adapter):
        warn_of_no_change(adapter)


def _find_local_folder(base: str, revision: str | None) -> str | None:
    """Return the folder of a base, or its folder in the Hub's cache; None if this machine does not have it."""
    if is_folder(base):
        return base
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(base, "config.json", revision=revision or "main")
    except HFValidationError:
        return None
    # The cache answers with an object of its own for a file that is known to be missing.
    return str(Path(config).parent) if isinstance(config, str) else None
