"""Sources read as a stream, never stored: mixed by weight, shuffled in a buffer, and gone on with after a kill."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from whisper_peft.data.columns import ColumnOptions
from whisper_peft.data.folders import Columnar, find_source
from whisper_peft.data.hub import read_revision
from whisper_peft.data.rows import Row, fingerprint
from whisper_peft.data.typed_tables import RowReader, open_table, read_sound_cell
from whisper_peft.errors import UserError

if TYPE_CHECKING:
    import datasets

SHARDS = 8  # of a source that are read side by side: neighbours in a file are often one speaker's


class Part(Protocol):
    """Rows in an order of their own, that can be gone on with."""

    def restart(self, epoch: int) -> None:
        """From the first row again."""

    def draw(self) -> Row | None:
        """The next row; None at the end."""

    def state(self) -> Any:
        """Where it is, as JSON."""

    def go_on(self, state: Any) -> None:
        """Go where it was."""


class ListedRows:
    """Rows that are all known, as a part of a stream.

    Args:
        rows: of files.
        seed: of their order in each epoch.
    """

    def __init__(self, rows: Sequence[Row], seed: int):
        self.rows, self.seed = rows, seed
        self.restart(0)

    def restart(self, epoch: int) -> None:
        """In another order."""
        self.epoch, self.at = epoch, 0
        self.order = np.random.default_rng((self.seed, epoch)).permutation(len(self.rows))

    def draw(self) -> Row | None:
        """The next row; None at the end."""
        if self.at == len(self.order):
            return None
        self.at += 1
        return self.rows[self.order[self.at - 1]]

    def state(self) -> Any:
        """Epoch and place."""
        return [self.epoch, self.at]

    def go_on(self, state: Any) -> None:
        """Go where it was."""
        self.restart(state[0])
        self.at = state[1]


class Shard:
    """A part of a table that is read as a stream, in the table's own order.

    Args:
        table: opened with streaming.
        reader: of its columns.
    """

    def __init__(self, table: datasets.IterableDataset, reader: RowReader):
        self.table, self.reader = table, reader
        self.restart(0)

    def restart(self, epoch: int) -> None:
        """From its first row."""
        self.go_on([None, 0])

    def draw(self) -> Row | None:
        """The next row; None at the end."""
        if self.examples is None:
            self.table.load_state_dict(self.begun)
            self.examples = iter(self.table)
        example = self._next()
        while example is not None and not self.reader.is_wanted(example):
            self.number += 1
            example = self._next()
        if example is None:
            return None
        self.number += 1
        sound = read_sound_cell(example[self.reader.audio_column], self.reader.source)
        return self.reader.build_row(example, sound, self.number - 1)

    def _next(self) -> dict[str, Any] | None:
        try:
            return next(self.examples, None)
        except Exception as error:  # datasets' own, and those of every file system and network below it
            raise UserError(
                f"{self.reader.place}: the stream broke off ({' '.join(str(error).split())[:200]}); a run goes on from "
                "its last checkpoint with --resume."
            ) from error

    def state(self) -> Any:
        """The table's own, and how many rows were drawn."""
        return [self.begun if self.examples is None else self.table.state_dict(), self.number]

    def go_on(self, state: Any) -> None:
        """Go where it was."""
        self.begun, self.number = state
        self.examples: Iterator[dict] | None = None


@dataclass
class Mixed:
    """The parts of one source; those that are at their end wait until all are."""

    parts: list[Part]
    weight: float
    name: str
    revision: str = ""  # changes with its rows
    old_revision: str | None = None  # the same, as earlier versions had it, where that was another
    change: Callable[[Row], Row] = lambda row: row  # of every row that is drawn
    epoch: int = 0
    ended: list[int] = field(default_factory=list)

    def draw(self, chance: np.random.Generator) -> tuple[Row, int]:
        """A row of one of the parts, and the epoch that it belongs to."""
        empty = 0
        while True:
            left = [number for number in range(len(self.parts)) if number not in self.ended]
            if not left:
                self.epoch, self.ended = self.epoch + 1, []
                for part in self.parts:
                    part.restart(self.epoch)
                continue
            number = left[chance.integers(len(left))]
            if (row := self.parts[number].draw()) is not None:
                return self.change(row), self.epoch
            self.ended.append(number)
            empty += 1
            if empty > 2 * len(self.parts):
                raise UserError(f"{self.name}: no rows in it.")


class RowStream:
    """Endless rows of several sources, drawn by their weights, in blocks that are shuffled one at a time.

    Args:
        sources: what is mixed.
        seed: of the drawing.
    """

    def __init__(self, sources: list[Mixed], *, seed: int):
        self.sources, self.seed = sources, seed
        self.block = 0

    def draw(self, n_rows: int) -> list[tuple[Row, int]]:
        """The next block: rows with the epoch of their source, which depend on the seed and the state alone."""
        chance = np.random.default_rng((self.seed, self.block))
        weights = np.array([source.weight for source in self.sources])
        chosen = chance.choice(len(self.sources), size=n_rows, p=weights / weights.sum())
        self.block += 1
        return [self.sources[number].draw(chance) for number in chosen]

    def fingerprint(self, *, with_places: bool = False) -> str:
        """Compute the SHA-256 over what the sources are called, their weights and revisions; no row is read.

        Args:
            with_places: Whether the folder that a source lies in counts, as in the runs of earlier versions.
        """
        named = []
        for one in self.sources:
            name, revision = one.name, one.revision
            if with_places and one.old_revision is not None:
                revision = one.old_revision
            if os.path.isabs(name) and not with_places:
                name = os.path.basename(name)
            named.append((name, one.weight, revision))
        return hashlib.sha256(json.dumps(named).encode("utf-8", "surrogatepass")).hexdigest()

    def state(self) -> dict:
        """Where the stream is, as JSON: what `go_on` takes in another process."""
        sources = [
            {"epoch": one.epoch, "ended": list(one.ended), "parts": [part.state() for part in one.parts]}
            for one in self.sources
        ]
        return json.loads(json.dumps({"block": self.block, "sources": sources}))

    def go_on(self, state: dict) -> None:
        """Goes where a stream of the same sources was."""
        self.block = state["block"]
        for one, saved in zip(self.sources, state["sources"], strict=True):
            one.epoch, one.ended = saved["epoch"], list(saved["ended"])
            for part, where in zip(one.parts, saved["parts"], strict=True):
                part.go_on(where)


def open_stream(
    source: str,
    rows: Callable[[str], list[Row]],
    *,
    weight: float = 1.0,
    seed: int = 0,
    audio_column: str | None = None,
    text_column: str | None = None,
    prompt_column: str | None = None,
    times: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Mixed:
    """Open a source as part of a stream: a Hub data set or Parquet as they come, anything else by its rows.

    Args:
        source: as `load_source` takes it.
        rows: reads a source that is not streamed.
        weight: how often it is drawn, against the others'.
        seed: of the order of what is not streamed.
        audio_column: see `load_source`, like the next four.
        text_column: likewise.
        prompt_column: likewise.
        times: likewise.
        say: likewise.

    Raises:
        UserError: There is no such source, or it cannot be read.
    """
    found = find_source(source)
    if not all(isinstance(one, Columnar) for one in found):
        listed = rows(source)
        revision, old_revision = fingerprint(listed), fingerprint(listed, with_places=True)
        return Mixed([ListedRows(listed, seed)], weight, source, revision, old_revision)
    [columns] = found
    table = open_table(columns, streaming=True)
    reader = RowReader(columns, table.features, ColumnOptions(audio_column, text_column, prompt_column, times))
    if reader.remark:
        say(reader.remark)
    n_shards = min(SHARDS, table.num_shards)
    parts = [Shard(table.shard(n_shards, number) if n_shards > 1 else table, reader) for number in range(n_shards)]
    return Mixed(parts, weight, source, read_revision(columns))


def first_rows(
    source: str,
    rows: Callable[[str], list[Row]],
    *,
    most: int,
    audio_column: str | None = None,
    text_column: str | None = None,
    prompt_column: str | None = None,
    times: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Read the rows of a source to be scored on; of what can be streamed the first ones, their sound in memory.

    Args:
        source: as `load_source` takes it.
        rows: reads a source that is not streamed.
        most: rows of one that is.
        audio_column: see `load_source`, like the next four.
        text_column: likewise.
        prompt_column: likewise.
        times: likewise.
        say: likewise.
    """
    found = find_source(source)
    if not all(isinstance(one, Columnar) for one in found):
        return rows(source)
    [columns] = found
    table = open_table(columns, streaming=True)
    reader = RowReader(columns, table.features, ColumnOptions(audio_column, text_column, prompt_column, times))
    if reader.remark:
        say(reader.remark)
    shard = Shard(table, reader)
    read = list(itertools.islice(iter(shard.draw, None), most))
    if not read:
        raise UserError(f"{source}: no rows in it.")
    return read
