"""Check the weights of a model or an adapter before it is published; load nothing."""

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
from whisper_peft.model.weights import (
    adapter_name,
    fit_base,
    read_header,
    refuse_not_finite,
    refuse_own_head,
    refuse_zeros,
    tensors_of,
)


def check_weights(base: str, adapter: Path | None, *, revision: str | None = None) -> None:
    """Count the tensors of a model or an adapter, and look for values that are no numbers; load nothing.

    An adapter whose update is zero is said.

    Args:
        base: Folder or Hub id of the full weights. An adapter's base on the Hub is not fetched: where it is not here,
            the adapter is counted by its own config alone.
        adapter: The adapter's folder; None for a stand-alone model.
        revision: Commit of a base on the Hub.

    Raises:
        UserError: See `load_base` and `load_adapter`.
    """
    if adapter is None:
        refuse_foreign_folder(Path(base))
        files = weight_files(base)
        names = fit_base(read_header(files), shapes_of(empty_whisper(load_config(base))), place=base)
        refuse_own_head(files, names, place=base)
        refuse_not_finite(tensors_of(files), place=base, remedy=DAMAGED)
        refuse_zeros(((names[name], tensor) for name, tensor in tensors_of(files)), place=base, remedy=DAMAGED)
        return
    file = adapter_file(adapter)
    read_adapter_config(adapter)
    folder = _known_folder(base, revision)
    if folder is not None:
        fit_to_adapter(add_adapter_layers(empty_whisper(load_config(folder)), adapter, trainable=False), adapter)
    strangers = [name for name in read_header([file]).shapes if adapter_name(name) != name]
    if strangers:
        raise UserError(
            f"{adapter}: {len(strangers)} tensors are not named as peft names them ({printable(strangers[0])[:100]}); "
            "other programs would load nothing of the adapter. Train one step further with it, or save it again."
        )
    refuse_not_finite(tensors_of([file]), place=str(adapter), remedy=DAMAGED)
    if changes_nothing(adapter):
        warn_of_no_change(adapter)


def _known_folder(base: str, revision: str | None) -> str | None:
    """The folder of a base that is on this machine, as a model folder or in the cache of the Hub."""
    if is_folder(base):
        return base
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(base, "config.json", revision=revision or "main")
    except HFValidationError:
        return None
    return str(Path(config).parent) if isinstance(config, str) else None
