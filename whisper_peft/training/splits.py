"""The sources of a recipe as the three splits of a run."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from whisper_peft.data.augmentation import Augmentation
from whisper_peft.data.batching import clips_per_epoch
from whisper_peft.data.dataset import AugmentFunction, SpeechDataset
from whisper_peft.data.features import Preparation
from whisper_peft.data.rows import Row, fill_in_language, hold_out
from whisper_peft.data.sources import load_source, load_sources
from whisper_peft.data.spoken import settle_languages, take_for
from whisper_peft.data.streams import RowStream, StreamSource, first_rows, open_stream
from whisper_peft.data.subtitles import utf8_bytes
from whisper_peft.data.text import clean_text, language_code
from whisper_peft.errors import UserError
from whisper_peft.recipe import Recipe, Source

# Fewer clips than this cannot tell checkpoints apart.
FEW_EVAL_CLIPS = 20
# Rows of a stream that are read to plan with.
FIRST_OF_STREAM = 64
# Characters of a text that tell its script.
SCRIPT_CHARACTERS = 500
# Clips of eval, and of test, that are looked at before a run; of a streamed source also those that are scored.
MOST_SCORED = 500

Say = Callable[[str], None]


@dataclass(frozen=True)
class Rows:
    """The rows of a run.

    Attributes:
        train: Rows of all training sources, one source after the other; for a stream, the rows that it begins with.
        eval: Rows that select the checkpoint.
        test: Rows that are scored once before and once after; None if no test source is named.
        held_out: True if eval was held out of train.
        parts: (number of rows, weight) of each training source.
        stream: The stream of training rows; None if the sources are read as a whole.
        read: (name, rows) of each training source as it was read, with what was held out.
        remarks: What was passed over as the sources were read.
        eval_parts: Number of rows of eval that each training source gave.
    """

    train: list[Row]
    eval: list[Row]
    test: list[Row] | None
    held_out: bool
    parts: tuple[tuple[int, float], ...] = ()
    stream: RowStream | None = None
    read: tuple[tuple[str, list[Row]], ...] = ()
    remarks: tuple[str, ...] = ()
    eval_parts: tuple[int, ...] = ()

    @property
    def references(self) -> list[str]:
        """The beginnings of the first texts that select the checkpoint, to tell their script."""
        return [row.text[:SCRIPT_CHARACTERS] for row in self.eval[:MOST_SCORED]]


@dataclass(frozen=True)
class Speech:
    """The three splits of a run as data sets.

    Attributes:
        train: Training clips, augmented; for a stream, the clips that it begins with.
        eval: Clips that select the checkpoint.
        test: Clips that are scored once before and once after; None if no test source is named.
        held_out: True if eval was held out of train.
        parts: (number of rows, weight) of each training source.
        stream: The stream of training rows; None if the sources are read as a whole.
        eval_parts: Number of rows of eval that each training source gave, where they were held out.
        plain_train: The clips of `train` without their augmentation.
    """

    train: SpeechDataset
    eval: SpeechDataset
    test: SpeechDataset | None
    held_out: bool
    parts: tuple[tuple[int, float], ...]
    stream: RowStream | None
    eval_parts: tuple[int, ...]
    plain_train: SpeechDataset

    @property
    def clips_per_epoch(self) -> int:
        """Number of training clips in an epoch; 0 for a stream, whose end nobody knows."""
        return clips_per_epoch(self.parts)

    @property
    def references(self) -> list[str]:
        """The beginnings of the first cleaned texts that select the checkpoint, to tell their script."""
        first = range(min(len(self.eval), MOST_SCORED))
        return [self.eval.text(number)[:SCRIPT_CHARACTERS] for number in first]

    @property
    def scored(self) -> tuple[str, SpeechDataset]:
        """The name and the clips of the split whose error rate is reported before and after."""
        if self.test is None:
            return "eval", self.eval
        return "test", self.test


def load_rows(recipe: Recipe, *, n_tokens: Callable[[str], int] = utf8_bytes) -> Rows:
    """Read the rows of the three splits. Without an eval source, a tenth of train is held out.

    Args:
        recipe: The recipe that names the sources.
        n_tokens: Counts the tokens of a text, where long recordings are cut into clips.

    Raises:
        UserError: There is no training source, or one cannot be read.
    """
    data = recipe.data
    if not data.train:
        raise UserError("data.train: not set; name the training data with --train SRC or in a recipe.")
    remarks: list[str] = []
    columns: dict[str, Any] = {**data.columns, "say": remarks.append}
    read = partial(load_source, **columns, n_tokens=n_tokens)
    if data.streaming:
        rows = _read_stream(recipe, read, columns, remarks.append)
        return dataclasses.replace(rows, remarks=tuple(remarks))
    by_source = _read_training_sources(recipe, read, remarks.append)
    train_rows = [row for rows in by_source for row in rows]
    # Clips that are scored get no prompts.
    read_scored = partial(read, prompt_column=None, say=_say_nothing)
    eval_rows = _read_scored_source(recipe, data.eval, read_scored, remarks.append)
    test_rows = _read_scored_source(recipe, data.test, read_scored, remarks.append)
    held_out = eval_rows is None
    if eval_rows is None:
        train_rows, eval_rows = hold_out(train_rows, seed=recipe.train.seed)
    counts = _count_rows_of_source(by_source, train_rows)
    weights = [source.weight for source in data.sources]
    names = [source.source for source in data.sources]
    return Rows(
        train_rows,
        eval_rows,
        test_rows,
        held_out=held_out,
        parts=tuple(zip(counts, weights, strict=True)),
        read=tuple(zip(names, by_source, strict=True)),
        eval_parts=tuple(_count_rows_of_source(by_source, eval_rows)) if held_out else (),
        # Several sources may give the same remark.
        remarks=tuple(dict.fromkeys(remarks)),
    )


def _read_training_sources(recipe: Recipe, read: Callable[[str], list[Row]], say: Say) -> list[list[Row]]:
    """Read the rows of each training source, with the language that its entry in the recipe names."""
    sources = recipe.data.sources
    by_source = []
    listed = load_sources([source.source for source in sources], read, say)
    for source, rows in zip(sources, listed, strict=True):
        code = _code_of(source)
        spoken = [fill_in_language(row, code) for row in rows]
        by_source.append(_settle_rows(spoken, source.source, recipe, say, code))
    return by_source


def _read_scored_source(
    recipe: Recipe, source: str | None, read: Callable[[str], list[Row]], say: Say
) -> list[Row] | None:
    """Read the rows of an eval or a test source; None if none is named."""
    if source is None:
        return None
    return _settle_rows(read(source), source, recipe, say)


def _count_rows_of_source(by_source: list[list[Row]], kept: list[Row]) -> list[int]:
    """Count the rows of each source that are among some rows.

    Rows are told apart by `id`: two rows of a source may be equal, and only one of them may be held out.
    """
    kept_ids = {id(row) for row in kept}
    return [sum(id(row) in kept_ids for row in rows) for rows in by_source]


def _code_of(source: Source) -> str | None:
    """Return the code of the language that a source's entry in the recipe names."""
    return language_code(source.language) if source.language else None


def _say_nothing(line: str) -> None:
    """Take a remark that is not worth a line: that a prompt column is ignored where no prompts are given."""


def _settle_rows(rows: list[Row], source: str, recipe: Recipe, say: Say, code: str | None = None) -> list[Row]:
    """Settle the rows of a source that are in languages which Whisper does not know.

    Args:
        rows: The rows of the source.
        source: Its name, for messages.
        recipe: The recipe.
        say: Is called with what the rows are taken for.
        code: Language code of the source; None takes the recipe's.

    Raises:
        UserError: It is not clear what they can be taken for.
    """
    model = recipe.model
    if code is None and model.language and not model.language_token:
        code = language_code(model.language)
    return settle_languages(rows, source, language=code, borrowed=bool(model.language_token), say=say)


def _read_stream(recipe: Recipe, read: Callable[..., list[Row]], columns: dict[str, Any], say: Say) -> Rows:
    """Open the training sources as a stream, and read the rows that it begins with; they are drawn again later.

    Raises:
        UserError: The number of steps or the eval source is not named, or a source cannot be read.
    """
    data = recipe.data
    seed = recipe.train.seed
    if recipe.train.steps is None:
        raise UserError("data.streaming: a stream has no epochs; set --steps.")
    if data.eval is None:
        raise UserError("data.streaming: nothing can be held out of a stream; name --eval SRC.")
    sources: list[StreamSource] = []
    for number, source in enumerate(data.sources):
        opened = open_stream(source.source, read, weight=source.weight, seed=seed + number, **columns)
        sources.append(dataclasses.replace(opened, change=partial(fill_in_language, code=_code_of(source))))
    stream = RowStream(sources, seed=seed)
    start = stream.state()
    drawn = [row for row, _ in stream.draw(FIRST_OF_STREAM)]
    first = _settle_rows(drawn, "the stream's first clips", recipe, say)
    if first != drawn:
        # The first rows were taken for the recipe's language. The rows that come later are taken for it, too.
        assert recipe.model.language is not None, "without a language, unknown ones are refused"
        code = language_code(recipe.model.language)
        sources = [dataclasses.replace(opened, change=partial(take_for, code=code)) for opened in sources]
        stream = RowStream(sources, seed=seed)
    stream.go_on(start)
    scored_columns = {**columns, "prompt_column": None, "say": _say_nothing}
    read_whole = partial(read, prompt_column=None, say=_say_nothing)
    read_first = partial(first_rows, rows=read_whole, most=MOST_SCORED, **scored_columns)
    eval_rows = _read_scored_source(recipe, data.eval, read_first, say)
    assert eval_rows is not None, "a stream without an eval source was refused"
    test_rows = _read_scored_source(recipe, data.test, read_first, say)
    named = (("the stream's first clips", first),)
    return Rows(first, eval_rows, test_rows, held_out=False, stream=stream, read=named)


def make_speech(
    rows: Rows, recipe: Recipe, preparation: Preparation, *, augment: AugmentFunction | None = None
) -> Speech:
    """Make data sets of the three splits. Only training clips are augmented, and get prompts and times.

    Args:
        rows: The rows of the splits.
        recipe: The recipe.
        preparation: The input that the checkpoint asks for.
        augment: The user's own augmentation, after that of the recipe.

    Raises:
        UserError: The augmentation cannot be made here.
    """
    model = recipe.model
    features = recipe.features
    effects = recipe.augment.effects
    masks = recipe.augment.masks
    if masks and masks["mask_feature_length"] > preparation.n_mels:
        raise UserError(
            f"augment.mask_feature_length: {masks['mask_feature_length']}; the model has {preparation.n_mels} mel "
            "bins, take fewer."
        )
    scored = partial(
        SpeechDataset,
        preparation=preparation,
        language=model.language,
        task=model.task,
        language_token=model.language_token,
        clean=partial(clean_text, **dataclasses.asdict(recipe.data.text)),
        seed=recipe.train.seed,
    )
    augmentation = Augmentation(**effects) if effects else None
    learnt = partial(scored, rows.train, prompts=features.prompts, timestamps=features.timestamps)
    return Speech(
        train=learnt(augment=augment, augmentation=augmentation),
        eval=scored(rows.eval),
        test=None if rows.test is None else scored(rows.test),
        held_out=rows.held_out,
        parts=rows.parts,
        stream=rows.stream,
        eval_parts=rows.eval_parts,
        plain_train=learnt(),
    )


def fixed_rows(n_rows: int, most: int | None) -> list[int]:
    """Choose at most so many rows, always the same ones.

    Args:
        n_rows: Number of rows to choose from.
        most: Largest number of rows to choose; None or 0 chooses all.

    Example:
        >>> fixed_rows(4, None), len(fixed_rows(1000, 3))
        ([0, 1, 2, 3], 3)
    """
    if not most or n_rows <= most:
        return list(range(n_rows))
    return sorted(random.Random(0).sample(range(n_rows), most))


def overlap_remarks(rows: Rows) -> list[str]:
    """Remark on what makes the final figure too good: test clips that were trained on, or that chose the checkpoint."""
    train = _clips_of(rows.train)
    selection = _clips_of(rows.eval)
    test = _clips_of(rows.test or [])
    remarks = []
    if len(rows.eval) < FEW_EVAL_CLIPS:
        remarks.append(f"{len(rows.eval)} eval clips choose the best checkpoint: too few to tell checkpoints apart.")
    for name, others in (("train", train), ("eval", selection)):
        shared = len(test & others)
        if shared:
            remarks.append(
                f"data.test shares {shared} of its {len(test)} clips with data.{name}: the figure on it is optimistic."
            )
    shared = len(selection & train)
    if shared:
        remarks.append(
            f"data.eval shares {shared} of its clips with data.train: the best checkpoint is chosen on what was learnt."
        )
    return remarks


def _clips_of(rows: list[Row]) -> set[tuple]:
    """Return what tells the clips of rows apart: file, start and end."""
    return {(row.audio, row.start_s, row.end_s) for row in rows}


def check_languages(speech: Speech, preparation: Preparation) -> None:
    """Refuse a row whose language the checkpoint does not know, before any clip is read.

    Raises:
        UserError: There is such a row.
    """
    for dataset in (speech.train, speech.eval, speech.test):
        if dataset is not None:
            spoken = ((dataset.language_of(row), row.place or row.name) for row in dataset.rows)
            preparation.check_languages(spoken, dataset.task)
