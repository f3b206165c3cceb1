"""A recipe's sources as the three splits of a run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

from whisper_peft.data.dataset import Augment, SpeechDataset
from whisper_peft.data.features import Preparation
from whisper_peft.data.rows import Row, hold_out
from whisper_peft.data.sources import load_source
from whisper_peft.data.text import clean_text
from whisper_peft.errors import UserError
from whisper_peft.recipe import Recipe

FEW_CLIPS = 20


@dataclass(frozen=True)
class Rows:
    """The rows of a run; `held_out`: eval was held out of train."""

    train: list[Row]
    eval: list[Row]
    test: list[Row] | None
    held_out: bool


@dataclass(frozen=True)
class Speech:
    """The three splits of a run, and what its selection set is called."""

    train: SpeechDataset
    eval: SpeechDataset
    test: SpeechDataset | None
    held_out: bool  # eval was held out of train

    @property
    def scored(self) -> tuple[str, SpeechDataset]:
        """The split whose error rate is reported before and after."""
        return ("test", self.test) if self.test is not None else ("eval", self.eval)


def load_rows(recipe: Recipe) -> Rows:
    """The rows of the three splits; without an eval source a tenth of train is held out.

    Raises:
        UserError: no training source, or one that cannot be read.
    """
    data = recipe.data
    if not data.train:
        raise UserError("data.train: not set; name the training data with --train SRC or in a recipe.")
    columns = {"audio_column": data.audio_column, "text_column": data.text_column}
    train_rows = [row for source in data.train for row in load_source(source, **columns)]
    test_rows = None if data.test is None else load_source(data.test, **columns)
    if data.eval is not None:
        return Rows(train_rows, load_source(data.eval, **columns), test_rows, held_out=False)
    train_rows, eval_rows = hold_out(train_rows, seed=recipe.train.seed)
    return Rows(train_rows, eval_rows, test_rows, held_out=True)


def make_speech(rows: Rows, recipe: Recipe, preparation: Preparation, *, augment: Augment | None = None) -> Speech:
    """The three splits as datasets; only the training clips are augmented."""

    clean = partial(clean_text, **dataclasses.asdict(recipe.data.text))
    model = recipe.model

    def dataset(rows: list[Row], augment: Augment | None = None) -> SpeechDataset:
        return SpeechDataset(
            rows, preparation, language=model.language, task=model.task, language_token=model.language_token,
            clean=clean, augment=augment, seed=recipe.train.seed,
        )  # fmt: skip

    test = None if rows.test is None else dataset(rows.test)
    return Speech(dataset(rows.train, augment), dataset(rows.eval), test, rows.held_out)


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
        if dataset is not None and preparation.multilingual:
            for number in {dataset.language_of(i): i for i in range(len(dataset))}.values():
                preparation.prefix(dataset.language_of(number), dataset.task)
