"""A recipe's sources as the three splits of a run."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from whisper_peft.data.augmentation import Augmentation
from whisper_peft.data.batching import clips_per_epoch
from whisper_peft.data.dataset import AugmentFunction, SpeechDataset
from whisper_peft.data.features import Preparation
from whisper_peft.data.rows import Row, fill_in_language, hold_out
from whisper_peft.data.sources import load_source, load_sources
from whisper_peft.data.spoken import settle_languages, take_for
from whisper_peft.data.streams import RowStream, first_rows, open_stream
from whisper_peft.data.subtitles import utf8_bytes
from whisper_peft.data.text import clean_text, language_code
from whisper_peft.errors import UserError
from whisper_peft.recipe import Recipe

FEW_CLIPS = 20
LOOKED_AT = 64  # rows of a stream, to plan with
MOST_OF_TEXT = 500  # characters of a text that tell its script
MOST_SCORED = 500  # clips of a streamed eval or test source


@dataclass(frozen=True)
class Rows:
    """The rows of a run; of a stream, `train` is what it begins with.

    `parts`: (rows, weight) of the training sources; `held_out`: eval was held out of train; `read`: the training
    sources as they were read, by name, with what was held out; `eval_parts`: how many rows of eval each of them gave.
    """

    train: list[Row]
    eval: list[Row]
    test: list[Row] | None
    held_out: bool
    parts: tuple[tuple[int, float], ...] = ()
    stream: RowStream | None = None
    read: tuple[tuple[str, list[Row]], ...] = ()
    remarks: tuple[str, ...] = ()  # what was passed over as they were read
    eval_parts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Speech:
    """The three splits of a run, and what its selection set is called."""

    train: SpeechDataset
    eval: SpeechDataset
    test: SpeechDataset | None
    held_out: bool  # eval was held out of train
    parts: tuple[tuple[int, float], ...] = ()  # (rows, weight) of the training sources
    stream: RowStream | None = None  # of training rows; `train` is then only what it begins with
    eval_parts: tuple[int, ...] = ()  # how many rows of eval each training source gave, where they were held out

    @property
    def clips_per_epoch(self) -> int:
        """Training clips in an epoch; of a stream, of which nobody knows the end, 0."""
        return clips_per_epoch(self.parts)

    @property
    def references(self) -> list[str]:
        """Texts of the first clips that select the checkpoint."""
        return [self.eval.text(number)[:MOST_OF_TEXT] for number in range(min(len(self.eval), MOST_SCORED))]

    @property
    def scored(self) -> tuple[str, SpeechDataset]:
        """The split whose error rate is reported before and after."""
        return ("test", self.test) if self.test is not None else ("eval", self.eval)


def load_rows(recipe: Recipe, *, n_tokens: Callable[[str], int] = utf8_bytes) -> Rows:
    """The rows of the three splits; without an eval source a tenth of train is held out.

    Args:
        recipe: that names them.
        n_tokens: text -> how many tokens, where long recordings are cut into clips.

    Raises:
        UserError: no training source, or one that cannot be read.
    """
    data, seed = recipe.data, recipe.train.seed
    if not data.train:
        raise UserError("data.train: not set; name the training data with --train SRC or in a recipe.")
    remarks: list[str] = []
    columns = {**data.columns, "say": remarks.append}
    read = partial(load_source, **columns, n_tokens=n_tokens)
    if data.streaming:
        return dataclasses.replace(_streamed(recipe, read, columns, remarks.append), remarks=tuple(remarks))
    by_source = []
    listed = load_sources([one.source for one in data.sources], read, remarks.append)
    for one, rows in zip(data.sources, listed, strict=True):
        code = one.language and language_code(one.language)
        spoken = [fill_in_language(row, code) for row in rows]
        by_source.append(_settled(spoken, one.source, recipe, remarks.append, code))
    read = partial(read, prompt_column=None, say=_say_nothing)  # clips that are scored are given no prompts
    train_rows = [row for rows in by_source for row in rows]
    eval_rows = None if data.eval is None else _settled(read(data.eval), data.eval, recipe, remarks.append)
    test_rows = None if data.test is None else _settled(read(data.test), data.test, recipe, remarks.append)
    if eval_rows is None:
        train_rows, eval_rows = hold_out(train_rows, seed=seed)
    kept = set(map(id, train_rows))
    parts = tuple(
        (sum(id(row) in kept for row in rows), one.weight) for rows, one in zip(by_source, data.sources, strict=True)
    )
    named = tuple((one.source, rows) for one, rows in zip(data.sources, by_source, strict=True))
    held_out = set(map(id, eval_rows))
    eval_parts = tuple(sum(id(row) in held_out for row in rows) for rows in by_source) if data.eval is None else ()
    return Rows(
        train_rows,
        eval_rows,
        test_rows,
        held_out=data.eval is None,
        parts=parts,
        read=named,
        eval_parts=eval_parts,
        remarks=tuple(dict.fromkeys(remarks)),
    )


def _say_nothing(line: str) -> None:
    """Take a remark that is not worth a line: that a prompt column is ignored where no prompts are given."""


def _settled(
    rows: list[Row], source: str, recipe: Recipe, say: Callable[[str], None], code: str | None = None
) -> list[Row]:
    """The rows of a source, those in languages that Whisper does not know settled or refused."""
    model = recipe.model
    if code is None and model.language and not model.language_token:
        code = language_code(model.language)
    return settle_languages(rows, source, language=code, borrowed=bool(model.language_token), say=say)


def _streamed(
    recipe: Recipe, read: Callable[[str], list[Row]], columns: dict[str, object], say: Callable[[str], None]
) -> Rows:
    data, seed = recipe.data, recipe.train.seed
    if recipe.train.steps is None:
        raise UserError("data.streaming: a stream has no epochs; set --steps.")
    if data.eval is None:
        raise UserError("data.streaming: nothing can be held out of a stream; name --eval SRC.")
    sources = []
    for number, one in enumerate(data.sources):
        mixed = open_stream(one.source, read, weight=one.weight, seed=seed + number, **columns)
        mixed.change = partial(fill_in_language, code=one.language and language_code(one.language))
        sources.append(mixed)
    stream = RowStream(sources, seed=seed)
    state = stream.state()
    drawn = [row for row, _ in stream.draw(LOOKED_AT)]
    first = _settled(drawn, "the stream's first clips", recipe, say)
    if first != drawn:  # then the rows that come later are taken for the same language
        code = language_code(recipe.model.language)
        for mixed in sources:
            mixed.change = partial(take_for, code=code)
    stream.go_on(state)
    columns = {**columns, "prompt_column": None, "say": _say_nothing}
    read = partial(read, prompt_column=None, say=_say_nothing)
    eval_rows, test_rows = (
        None if source is None else _settled(first_rows(source, read, most=MOST_SCORED, **columns), source, recipe, say)
        for source in (data.eval, data.test)
    )
    named = (("the stream's first clips", first),)
    return Rows(first, eval_rows, test_rows, held_out=False, stream=stream, read=named)


def make_speech(
    rows: Rows, recipe: Recipe, preparation: Preparation, *, augment: AugmentFunction | None = None
) -> Speech:
    """The three splits as datasets; only training clips are augmented, given what was said before, or timed.

    Raises:
        UserError: an augmentation that cannot be made here.
    """
    model, features, effects, masks = recipe.model, recipe.features, recipe.augment.effects, recipe.augment.masks
    if masks and masks["mask_feature_length"] > preparation.n_mels:
        found = f"{masks['mask_feature_length']}; the model has {preparation.n_mels} mel bins"
        raise UserError(f"augment.mask_feature_length: {found}, take fewer.")
    clean = partial(clean_text, **dataclasses.asdict(recipe.data.text))
    plain = partial(
        SpeechDataset, preparation=preparation, language=model.language, task=model.task,
        language_token=model.language_token, clean=clean, seed=recipe.train.seed,
    )  # fmt: skip
    train = plain(
        rows.train, augment=augment, augmentation=Augmentation(**effects) if effects else None,
        prompts=features.prompts, timestamps=features.timestamps,
    )  # fmt: skip
    test = None if rows.test is None else plain(rows.test)
    return Speech(train, plain(rows.eval), test, rows.held_out, rows.parts, rows.stream, rows.eval_parts)


def fixed_rows(n_rows: int, most: int | None) -> list[int]:
    """Choose at most so many rows, always the same ones."""
    if not most or n_rows <= most:
        return list(range(n_rows))
    return sorted(random.Random(0).sample(range(n_rows), most))


def overlap_remarks(rows: Rows) -> list[str]:
    """What makes the final figure better than it is: test clips that were trained on, or that chose the checkpoint."""

    def clips(some: list[Row]) -> set:
        return {(row.audio, row.start_s, row.end_s) for row in some}

    test, remarks = clips(rows.test or []), []
    if len(rows.eval) < FEW_CLIPS:
        remarks.append(f"{len(rows.eval)} eval clips choose the best checkpoint: too few to tell checkpoints apart.")
    for name, others in (("train", rows.train), ("eval", rows.eval)):
        if shared := len(test & clips(others)):
            remarks.append(
                f"data.test shares {shared} of its {len(test)} clips with data.{name}: the figure on it is optimistic."
            )
    if shared := len(clips(rows.eval) & clips(rows.train)):
        remarks.append(
            f"data.eval shares {shared} of its clips with data.train: the best checkpoint is chosen on what was learnt."
        )
    return remarks


def check_languages(speech: Speech, preparation: Preparation) -> None:
    """Every row has a language the checkpoint knows, before any clip is read."""
    for dataset in (speech.train, speech.eval, speech.test):
        if dataset is not None:
            spoken = ((dataset.language_of(row), row.place or row.name) for row in dataset.rows)
            preparation.check_languages(spoken, dataset.task)
