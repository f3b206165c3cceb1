"""Hub data sets, and folders that are laid out like one: how the datasets library loads them, and what goes wrong.

Loading scripts are never run.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_peft.data.cards import check_cards
from whisper_peft.data.folders import Columnar
from whisper_peft.data.split_names import find_split
from whisper_peft.data.tables import find_split_column
from whisper_peft.errors import UserError
from whisper_peft.files import UnusableFileError, reason_of

if TYPE_CHECKING:
    import datasets

# The branch where the Hub keeps the Parquet files that it made from a data set with a loading script.
_PARQUET_REVISION = "refs/convert/parquet"
# A message lists at most so many names.
_MOST_LISTED_NAMES = 20


def load_repository(columns: Columnar, *, streaming: bool = False) -> datasets.Dataset | datasets.IterableDataset:
    """Load the splits of a Hub data set or of a folder, one after the other.

    Args:
        columns: The data set, with its configuration and its splits if the user names them.
        streaming: If True, rows are read as they come, and nothing is stored.

    Raises:
        UserError: A split or a configuration is missing or has to be named, or the data set needs a loading script.
    """
    import datasets

    name = columns.source
    check_cards(name)
    configs, revision = _list_configs(name)
    config = _choose_config(columns, configs)
    load = functools.partial(datasets.load_dataset, name, config, revision=revision, streaming=streaming)
    existing = datasets.get_dataset_split_names(name, config, revision=revision)
    wanted = list(columns.splits)
    if not wanted:
        if len(existing) > 1:
            raise UserError(f"{name}: name one of its splits: {', '.join(existing)}.")
        wanted = existing
    # "dev" and "validation" are the same split, so two wanted names may lead to one.
    splits: dict[str, None] = {}
    missing = []
    for wanted_name in wanted:
        split = find_split(wanted_name, existing)
        if split is None:
            missing.append(wanted_name)
        else:
            splits[split] = None
    if missing and len(existing) == 1:
        table = load(split=existing[0])
        if find_split_column(tuple(table.features or ())) is not None:
            # The rows themselves say which split they are in, and are chosen when they are read.
            return table
    if missing:
        raise UserError(f"{name}: no split {missing[0]!r}; there are {', '.join(existing)}.")
    tables = [load(split=split) for split in splits]
    if len(tables) == 1:
        return tables[0]
    return datasets.concatenate_datasets(tables)


def _list_configs(name: str) -> tuple[list[str], str | None]:
    """List the configurations of a data set, and return the revision that has them; None: the main one."""
    import datasets

    try:
        return datasets.get_dataset_config_names(name), None
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
    try:
        configs = datasets.get_dataset_config_names(name, revision=_PARQUET_REVISION)
    except Exception as error:
        raise UserError(
            f"{name}: it is made by a loading script, which is not run, and its Parquet revision "
            f"({_PARQUET_REVISION}) cannot be had either ({_shorten(error)}); take a data set in Parquet or download "
            "its files."
        ) from None
    logging.getLogger(__name__).warning(
        "%s: made by a loading script, which is not run; its Parquet revision (%s) is taken.", name, _PARQUET_REVISION
    )
    return configs, _PARQUET_REVISION


def _choose_config(columns: Columnar, configs: Sequence[str]) -> str:
    """Choose the configuration that the user names, or the only one, or the one called "default".

    Raises:
        UserError: There is no such configuration, or one has to be named.
    """
    name = columns.source
    if columns.config is not None:
        if columns.config not in configs:
            raise UserError(f"{name}: no configuration {columns.config!r}; there are {_list_names(configs)}.")
        return columns.config
    if len(columns.splits) == 1 and columns.splits[0] in configs and len(configs) > 1:
        config = columns.splits[0]
        raise UserError(f"{name}: {config!r} is a configuration; add the split: {name}:{config}:train.")
    if "default" in configs:
        return "default"
    if len(configs) > 1:
        raise UserError(
            f"{name}: name one of its configurations, as in {name}:{configs[0]}:train: {_list_names(configs)}."
        )
    return configs[0]


def read_revision(columns: Columnar) -> str:
    """Return what changes with a table's contents: a Hub data set's commit, or the names and sizes of local files.

    Raises:
        UserError: The Hub cannot be reached.
    """
    import huggingface_hub

    path = Path(columns.source)
    if path.exists():
        files = [path] if columns.is_file else sorted(path.rglob("*.parquet"))
        return ", ".join(f"{file.relative_to(path.parent)}: {file.stat().st_size}" for file in files)
    with explain_errors(columns.source):
        commit = huggingface_hub.HfApi().dataset_info(columns.source).sha
    assert commit is not None, "the Hub states the commit unless it is asked for other fields"
    return commit


@contextlib.contextmanager
def explain_errors(source: str) -> Iterator[None]:
    """Turn every error on the way to a data set into a UserError of one line.

    The libraries parse cards, indices and tables that strangers wrote, so any exception may come out of them.

    Args:
        source: The data set, for messages.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise _explain_failure(source, error) from None


def _explain_failure(source: str, error: Exception) -> UserError:
    """Say what an error of the libraries means, and what to do."""
    import datasets
    import huggingface_hub

    if isinstance(error, huggingface_hub.errors.GatedRepoError) or "gated" in str(error):
        return UserError(
            f"{source}: a gated data set; accept its terms on its page while logged in, then log in here "
            "(hf auth login, or HF_TOKEN)."
        )
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):
        return UserError(
            f"{source}: no such file or folder, and no such data set on the Hub, or a private one (hf auth login, "
            "or HF_TOKEN)."
        )
    if isinstance(error, (ConnectionError, huggingface_hub.errors.OfflineModeIsEnabled)) or _is_of_network(error):
        return UserError(f"{source}: no such file or folder, and the Hub cannot be reached ({_shorten(error)}).")
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return UnusableFileError(error.filename, reason_of(error))
    cause: BaseException = error
    # The text of this error says only that there was an error. Its cause says which one.
    if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
        cause = error.__cause__
    return UserError(f"{source}: cannot be read as a data set ({_shorten(cause)}).")


def _is_of_network(error: Exception) -> bool:
    """Tell whether an error comes from a library that talks to the network."""
    return type(error).__module__.partition(".")[0] in ("requests", "httpx", "aiohttp", "urllib3")


def _list_names(names: Sequence[str]) -> str:
    listed = ", ".join(names[:_MOST_LISTED_NAMES])
    if len(names) > _MOST_LISTED_NAMES:
        listed += f" and {len(names) - _MOST_LISTED_NAMES} more"
    return listed


def _shorten(error: BaseException) -> str:
    """Return the beginning of an error's text in one line, or the name of its type if it has no text."""
    return " ".join(str(error).split())[:200] or type(error).__name__
