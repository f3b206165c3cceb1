"""Sources that are read as a stream and never stored: mixed by weight, drawn in blocks, and resumed exactly.

Why not the shuffle buffer of `datasets`? Its own documentation says that the rows in the buffer are lost on resume, and
the buffer is filled with new ones: a resumed run would never see the lost rows, and would not equal a run that was not
interrupted. Here a block of rows plays the part of the buffer. A checkpoint stores where every source stood before the
block was drawn, so a resumed run draws exactly that block again.
"""

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

# Largest number of pieces of a source that are read side by side. Neighbours in a file are often clips of one speaker,
# so a single piece would fill whole blocks with one voice.
MAX_SHARDS = 8


class StreamPart(Protocol):
    """A part of a source whose rows come one after the other, in an order of its own, and can be resumed."""

    def restart(self, epoch: int) -> None:
        """Begin at the first row of an epoch."""

    def draw(self) -> Row | None:
        """Return the next row; None at the end of the epoch."""

    def state(self) -> Any:
        """Return the place that is reached, as JSON."""

    def go_on(self, state: Any) -> None:
        """Go to the place that `state` returned, also in another process."""


class ListedRows:
    """Rows that are all known beforehand, as a part of a stream. Each epoch has another order.

    Args:
        rows: The rows.
        seed: Seed of the orders.

    Example:
        >>> listed = ListedRows([Row(f"{text}.wav", text) for text in ("one", "two", "three")], seed=0)
        >>> listed.draw().text
        'three'
        >>> saved = listed.state()
        >>> listed.draw().text, listed.draw().text, listed.draw()
        ('one', 'two', None)
        >>> listed.go_on(saved)
        >>> listed.draw().text
        'one'
    """

    def __init__(self, rows: Sequence[Row], seed: int):
        self.rows = rows
        self.seed = seed
        self.restart(0)

    def restart(self, epoch: int) -> None:
        """Begin at the first row of an epoch."""
        self.epoch = epoch
        self.place = 0
        self.order = np.random.default_rng((self.seed, epoch)).permutation(len(self.rows))

    def draw(self) -> Row | None:
        """Return the next row; None at the end of the epoch."""
        if self.place == len(self.order):
            return None
        self.place += 1
        return self.rows[self.order[self.place - 1]]

    def state(self) -> Any:
        """Return the epoch and the place in its order."""
        return [self.epoch, self.place]

    def go_on(self, state: Any) -> None:
        """Go to the place that `state` returned."""
        epoch, place = state
        self.restart(epoch)
        self.place = place


class Shard:
    """A part of a table that is read as a stream, in the table's own order in every epoch.

    Args:
        table: The part, opened with streaming.
        reader: What the table's columns mean.
    """

    def __init__(self, table: datasets.IterableDataset, reader: RowReader):
        self.table = table
        self.reader = reader
        self.examples: Iterator[dict[str, Any]] | None = None
        self.restart(0)

    def restart(self, epoch: int) -> None:
        """Begin at the first row."""
        self.go_on([None, 0])

    def draw(self) -> Row | None:
        """Return the next row; None at the end of the table."""
        if self.examples is None:
            self.table.load_state_dict(self.begin)
            self.examples = iter(self.table)
        while True:
            example = self._read_next(self.examples)
            if example is None:
                return None
            number = self.n_read
            self.n_read += 1
            if self.reader.is_wanted(example):
                sound = read_sound_cell(example[self.reader.audio_column], self.reader.source)
                return self.reader.build_row(example, sound, number)

    def _read_next(self, examples: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
        # datasets raises errors of its own, and passes on those of every file system and network below it.
        try:
            return next(examples, None)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{self.reader.place}: the stream broke off ({reason}); a run goes on from its last checkpoint with "
                "--resume."
            ) from error

    def state(self) -> Any:
        """Return the state of the table itself, and the number of rows that were read."""
        if self.examples is None:
            return [self.begin, self.n_read]
        return [self.table.state_dict(), self.n_read]

    def go_on(self, state: Any) -> None:
        """Go to the place that `state` returned. The table is opened there when the next row is drawn."""
        begin, n_read = state
        self.begin = begin
        self.n_read = n_read
        self.examples = None


@dataclass
class StreamSource:
    """One source of a stream, in parts that are read in turn.

    An exhausted part waits until all parts are. Then a new epoch of the source begins.

    Attributes:
        parts: The parts.
        weight: How often the source is drawn, relative to the weights of the other sources.
        name: Name of the source, for messages and fingerprints.
        revision: Text that changes when the rows change.
        old_revision: The same text as earlier versions made it, where it differed; else None.
        change: Function that is applied to every row that is drawn.
        epoch: Epoch of the source.
        ended: Numbers of the parts that are exhausted in this epoch.
    """

    parts: Sequence[StreamPart]
    weight: float
    name: str
    revision: str = ""
    old_revision: str | None = None
    change: Callable[[Row], Row] = lambda row: row
    epoch: int = 0
    ended: list[int] = field(default_factory=list)

    def draw(self, rng: np.random.Generator) -> tuple[Row, int]:
        """Draw a row from one of the parts, and return it with the epoch that it belongs to.

        Raises:
            UserError: No part has a row.
        """
        n_empty = 0
        while True:
            remaining = [number for number in range(len(self.parts)) if number not in self.ended]
            if not remaining:
                self._begin_epoch()
                continue
            number = remaining[rng.integers(len(remaining))]
            row = self.parts[number].draw()
            if row is not None:
                return self.change(row), self.epoch
            self.ended.append(number)
            # A part may come empty twice: at the end of one epoch, and again in the next one if it has no row at all.
            n_empty += 1
            if n_empty > 2 * len(self.parts):
                raise UserError(f"{self.name}: no rows in it.")

    def _begin_epoch(self) -> None:
        self.epoch += 1
        self.ended = []
        for part in self.parts:
            part.restart(self.epoch)


class RowStream:
    """Endless rows of several sources, drawn by their weights, one block at a time.

    Args:
        sources: The sources that are mixed.
        seed: Seed of the drawing.
    """

    def __init__(self, sources: list[StreamSource], *, seed: int):
        self.sources = sources
        self.seed = seed
        # Number of blocks that were drawn. It seeds the next one.
        self.block = 0

    def draw(self, n_rows: int) -> list[tuple[Row, int]]:
        """Draw the next block, which depends on the seed and the state alone.

        Args:
            n_rows: Number of rows in the block.

        Returns:
            (row, epoch of its source) of each clip.
        """
        rng = np.random.default_rng((self.seed, self.block))
        weights = np.array([source.weight for source in self.sources])
        chosen = rng.choice(len(self.sources), size=n_rows, p=weights / weights.sum())
        self.block += 1
        return [self.sources[number].draw(rng) for number in chosen]

    def fingerprint(self, *, with_places: bool = False) -> str:
        """Compute the SHA-256 over the names, weights and revisions of the sources, without reading a row.

        Args:
            with_places: Whether the folder that a source lies in counts, as in the runs of earlier versions.
        """
        named = []
        for source in self.sources:
            name = source.name
            revision = source.revision
            if with_places and source.old_revision is not None:
                revision = source.old_revision
            if os.path.isabs(name) and not with_places:
                name = os.path.basename(name)
            named.append((name, source.weight, revision))
        return hashlib.sha256(json.dumps(named).encode("utf-8", "surrogatepass")).hexdigest()

    def state(self) -> dict:
        """Return where the stream is, as JSON that `go_on` takes in another process."""
        sources = []
        for source in self.sources:
            parts = [part.state() for part in source.parts]
            sources.append({"epoch": source.epoch, "ended": list(source.ended), "parts": parts})
        # The way through text copies everything, so that reading on does not change a state that was returned.
        return json.loads(json.dumps({"block": self.block, "sources": sources}))

    def go_on(self, state: dict) -> None:
        """Go to the place where a stream of the same sources was when `state` returned it."""
        self.block = state["block"]
        for source, saved in zip(self.sources, state["sources"], strict=True):
            source.epoch = saved["epoch"]
            source.ended = list(saved["ended"])
            for part, place in zip(source.parts, saved["parts"], strict=True):
                part.go_on(place)


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
) -> StreamSource:
    """Open a source as part of a stream.

    A Hub data set and Parquet files are read while they arrive. Of any other source all rows are listed first.

    Args:
        source: Source, as `load_source` takes it.
        rows: Function from a source that cannot be streamed to its rows.
        weight: How often the source is drawn, relative to the weights of the other sources.
        seed: Seed of the order of rows that are listed.
        audio_column: Column that names or holds the sound; None takes one of the usual names.
        text_column: Column of the transcript; None takes one of the usual names.
        prompt_column: Column of what was said before each clip; None takes none.
        times: "ignore" passes over the columns with start and end, and takes each file whole.
        say: Function that is told, one line at a time, what was passed over.

    Raises:
        UserError: There is no such source, or it cannot be read.
    """
    columnar = _find_columnar(source)
    if columnar is None:
        listed = rows(source)
        revision = fingerprint(listed)
        old_revision = fingerprint(listed, with_places=True)
        return StreamSource([ListedRows(listed, seed)], weight, source, revision, old_revision)
    table, reader = _open_streamed(columnar, ColumnOptions(audio_column, text_column, prompt_column, times), say)
    n_shards = min(MAX_SHARDS, table.num_shards)
    if n_shards > 1:
        shards = [Shard(table.shard(n_shards, number), reader) for number in range(n_shards)]
    else:
        shards = [Shard(table, reader)]
    return StreamSource(shards, weight, source, read_revision(columnar))


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
    """Read the rows of a source that a model is scored on.

    Of a source that can be streamed these are the first rows, with their sound in memory; of any other, all rows.

    Args:
        source: Source, as `load_source` takes it.
        rows: Function from a source that cannot be streamed to its rows.
        most: Largest number of rows of a source that can be streamed.
        audio_column: Column that names or holds the sound; None takes one of the usual names.
        text_column: Column of the transcript; None takes one of the usual names.
        prompt_column: Column of what was said before each clip; None takes none.
        times: "ignore" passes over the columns with start and end, and takes each file whole.
        say: Function that is told, one line at a time, what was passed over.

    Raises:
        UserError: There is no such source, it cannot be read, or it has no rows.
    """
    columnar = _find_columnar(source)
    if columnar is None:
        return rows(source)
    table, reader = _open_streamed(columnar, ColumnOptions(audio_column, text_column, prompt_column, times), say)
    shard = Shard(table, reader)
    read = list(itertools.islice(iter(shard.draw, None), most))
    if not read:
        raise UserError(f"{source}: no rows in it.")
    return read


def _find_columnar(source: str) -> Columnar | None:
    """Find the table that can be streamed; None where a source is files, a manifest or a recording."""
    places = find_source(source)
    columnar = [place for place in places if isinstance(place, Columnar)]
    if len(columnar) < len(places):
        return None
    [table] = columnar
    return table


def _open_streamed(
    columnar: Columnar, options: ColumnOptions, say: Callable[[str], None]
) -> tuple[datasets.IterableDataset, RowReader]:
    """Open a table with streaming, and find out what its columns mean."""
    table = open_table(columnar, streaming=True)
    reader = RowReader(columnar, table.features, options)
    if reader.remark:
        say(reader.remark)
    return table, reader
