"""Parquet files on this machine: which ones a source has, and whether the datasets library can read them."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import NoReturn

from whisper_peft.data.folders import Columnar
from whisper_peft.errors import UserError
from whisper_peft.files import UnusableFileError, foreign_content, open_file, printable, short_repr

# The first and the last bytes of every Parquet file.
_PARQUET_MARK = b"PAR1"


def find_parquet_files(columns: Columnar) -> list[Path]:
    """List the Parquet files of a source on this machine; a Hub data set has none here.

    Raises:
        OSError: A folder cannot be read. The datasets library would pass over it.
    """
    if columns.is_file:
        return [Path(columns.source)]
    if not os.path.isdir(columns.source):
        return []
    files = []
    for folder, _, names in os.walk(columns.source, onerror=_raise):
        files += [Path(folder, name) for name in names if name.endswith(".parquet")]
    return sorted(files)


def _raise(error: OSError) -> NoReturn:
    raise error


def refuse_broken_file(path: Path) -> None:
    """Refuse a file that is no whole Parquet file, and a table that the datasets library cannot read.

    Raises:
        UserError: The file cannot be opened, is a pointer or a page in place of the file, has no end or no rows, or
            two of its columns have the same name.
    """
    with open_file(path, allow_empty=True) as file:
        head = file.read(4096)
        foreign = foreign_content(head)
        if foreign:
            raise UnusableFileError(path, foreign)
        if not head.startswith(_PARQUET_MARK):
            raise UserError(f"{path}: cannot be read as a data set (it is no Parquet file).")
        file.seek(-len(_PARQUET_MARK), os.SEEK_END)
        if file.read() != _PARQUET_MARK:
            raise UserError(
                f"{path}: cannot be read as a data set (its end is missing: truncated); download or write it again."
            )
    _refuse_unreadable_table(path)


def _refuse_unreadable_table(path: Path) -> None:
    """Refuse a table without rows, or with two columns of the same name: the datasets library explains neither."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            n_rows = table.metadata.num_rows
            names = table.schema_arrow.names
    except (pyarrow.ArrowException, OSError, ValueError):
        # The datasets library will fail, too, and say more.
        return
    if n_rows == 0:
        raise UserError(f"{printable(path)}: no rows in it; remove it, or write it again.")
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise UserError(f"{printable(path)}: two columns are called {short_repr(doubled[0])}; rename one of them.")
