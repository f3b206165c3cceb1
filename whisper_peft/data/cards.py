"""The card of a data set: we look at it before the datasets library does, which obeys all that stands in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from whisper_peft.data.addresses import is_address
from whisper_peft.errors import UserError
from whisper_peft.files import parse_yaml, read_text, short_repr

# The files whose settings the datasets library obeys.
_CARDS = ("README.md", ".huggingface.yaml")
_MAX_BYTES = 16 * 1024**2
# The YAML settings at the top of a README.md, between two lines of dashes.
_SETTINGS = re.compile(r"\s*---[ \t]*(?:\r\n|\r|\n)(.*?)(?:\r\n|\r|\n)---[ \t]*(?:\r|\n|$)", re.DOTALL)


def check_cards(source: str) -> None:
    """Refuse a data set if its card cannot be read or names files outside the data set.

    Args:
        source: A folder, or the name of a Hub data set, such as owner/name.

    Raises:
        UserError: The YAML of the card is broken or grows beyond limits, or its data_files have an address.
    """
    for name in _CARDS:
        path = _find_card(source, name)
        if path is not None:
            _check_card(path, f"{source}/{name}", source)


def _find_card(source: str, name: str) -> Path | None:
    """Find a card in a folder, or download it from the Hub; None if there is none."""
    folder = Path(source)
    if folder.is_dir():
        path = folder / name
        return path if path.exists() else None
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(source, name, repo_type="dataset"))
    except Exception:
        # There is none, or the Hub cannot be reached. The datasets library will say the latter better.
        return None


def _check_card(path: Path, place: str, source: str) -> None:
    """Refuse a card that cannot be read, or names files outside the data set.

    Args:
        path: The card.
        place: The card's name for messages.
        source: The folder, or the name of the Hub data set.
    """
    text = read_text(path, max_bytes=_MAX_BYTES)
    if path.suffix == ".md":
        block = _SETTINGS.match(text)
        if block is None:
            return
        text = block[1]
    try:
        settings = parse_yaml(text)
    except ValueError as error:
        raise UserError(
            f"{place}: its YAML settings cannot be read ({error}); mend them, or name a Parquet file as the source."
        ) from None
    if settings is None:
        return
    if not isinstance(settings, dict):
        raise UserError(f"{place}: its YAML settings are {short_repr(settings)}; expected keys with values.")
    for value in _texts(settings.get("configs")):
        if is_address(value) and not value.startswith((f"hf://datasets/{source}/", f"hf://datasets/{source}@")):
            raise UserError(
                f"{place}: configs names {short_repr(value)}, and addresses in a data set are never opened; download "
                "those files, and write their paths."
            )


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in nested lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for child in value.values():
            yield from _texts(child)
    elif isinstance(value, list):
        for child in value:
            yield from _texts(child)
