"""What train sees of its data before the first step: headers and texts of the first clips of each source."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence

from whisper_peft.checking.checks import Checked, Limits, check_parts, mapped
from whisper_peft.checking.findings import KINDS, Part
from whisper_peft.checking.sound import mended_sounds
from whisper_peft.data.dataset import LeftOut, SpeechDataset
from whisper_peft.data.doubtful_times import refuse_foreign_times
from whisper_peft.data.features import Preparation
from whisper_peft.errors import UserError
from whisper_peft.recipe import Recipe
from whisper_peft.training.splits import Rows, Speech, fixed_rows

SURE = 25.0  # nats of evidence that stop a run; chance has been seen to make 18, a list that lost a row makes hundreds
MOST_TRAIN, MOST_SCORED = 2_000, 500  # clips of all training sources, of eval and of test: seconds, not minutes
FEW = 2  # unusable clips that can be too many: one bad file never costs a run
MOST_DECODED = 200  # clips that are decoded to find one that can be used
PROOFS = 2  # clips that are decoded before their headers are believed
MOST_HEARD = 16  # clips of each source that are decoded


def first_look(rows: Rows, speech: Speech, recipe: Recipe, preparation: Preparation) -> list[str]:
    """Check the first rows of every source; what was found, in a few lines.

    Raises:
        UserError: start and end are no times in these files, and `data.times` does not say what to do.
        UserError: texts stand beside the wrong sound, beyond doubt, and `data.allow_shift` does not say to go on.
    """
    each = max(1, MOST_TRAIN // max(1, len(rows.read)))
    parts = [Part(name, listed[:each], "train") for name, listed in rows.read]
    scored = (("eval", recipe.data.eval, rows.eval), ("test", recipe.data.test, rows.test))
    parts += [Part(name, listed[:MOST_SCORED], split) for split, name, listed in scored if name and listed]
    if not parts:
        return []
    limits = Limits(preparation.window_s, preparation, speech.train.clean)
    language = None if recipe.model.language_token else recipe.model.language
    checked = check_parts(
        parts, limits=limits, language=language, task=recipe.model.task,
        borrowed=bool(recipe.model.language_token), times=recipe.data.times, audio=False,
    )  # fmt: skip
    if recipe.data.times is None:
        for part, files_s in zip(checked.parts, checked.files_s, strict=True):
            refuse_foreign_times(part.name, part.rows, files_s, key=f"data.{part.split}: ")
    lines = []
    for one in checked.findings.report(checked.seconds):
        if one["severity"] != "note":
            clip = one["clips"][0]
            where = f"{clip['name']}{' (' + clip['place'] + ')' if clip['place'] else ''}: {clip['detail']}"
            clips = "clip" if one["count"] == 1 else "clips"
            lines.append(f"Data, {one['severity']}: {one['kind']}, {one['count']} {clips}, as {where}.")
    for part in parts:
        for kind, (n_clips, first) in mended_sounds(part, n_clips=MOST_HEARD, longest_s=preparation.window_s).items():
            heard = f"{n_clips} of {min(MOST_HEARD, len(part.rows))} clips heard of {part.name}, as {first}"
            lines.append(f"Data, {KINDS[kind].severity}: {kind}, {heard}.")
    if not recipe.data.allow_shift:
        _refuse_moved(checked)
    if lines:
        looked = sum(len(part.rows) for part in parts)
        lines.append(f"Data: looked at headers and texts of {looked:,} clips; whisper-peft check says more.")
    return lines


def refuse_unusable(speech: Speech, recipe: Recipe) -> None:
    """Refuse a run that could learn nothing, or too little, or that has nothing to score.

    Args:
        speech: The splits of the run.
        recipe: Resolved.

    Raises:
        UserError: More than `data.max_left_out` of the training clips (and two at least) cannot be used, as their
            headers and texts show; or not one clip can be used that is trained on, that selects the checkpoint, or
            that is scored before and after.
    """
    _refuse_train(speech, recipe)
    scored, dataset = speech.scored
    compared = fixed_rows(len(dataset), recipe.evaluate.compare_clips) if recipe.evaluate.compare_clips else []
    _refuse_unheard("eval", speech.eval, fixed_rows(len(speech.eval), recipe.evaluate.max_clips))
    if compared or speech.test is not None:
        _refuse_unheard(scored, dataset, compared or range(len(dataset)))


def _refuse_train(speech: Speech, recipe: Recipe) -> None:
    dataset = _as_it_is(speech.train)
    rows = list(range(len(dataset)))
    if len(rows) > MOST_TRAIN:
        rows = sorted(random.Random(0).sample(rows, MOST_TRAIN))
    faults = dict(zip(rows, mapped(dataset.fault, rows, "headers", False), strict=True))
    faulty = [row for row in rows if faults[row]]
    weights = _weights(speech, rows)
    share = sum(weights[row] for row in faulty) / sum(weights.values())
    source = recipe.data.sources[0].source
    if len(faulty) >= FEW and share > recipe.data.max_left_out and _is_true(dataset, faulty):
        raise UserError(
            f"data.train: {len(faulty):,} of {len(rows):,} clips cannot be used, for example "
            f"{_named(dataset, faulty[0], faults[faulty[0]])}. Look with whisper-peft check {source}, and mend them"
            + ("." if len(faulty) == len(rows) else "; or train on the others with --set data.max_left_out=1")
        )
    _refuse_unheard("train", dataset, [row for row in rows if not faults[row]] or rows)


def _refuse_unheard(split: str, dataset: SpeechDataset, rows: Sequence[int]) -> None:
    """Refuse a split without a usable clip; the first clip that can be decoded ends the search."""
    dataset = _as_it_is(dataset)
    tried = fixed_rows(len(rows), MOST_DECODED)
    reason = ""
    for number in tried:
        example = dataset[rows[number]]
        if not isinstance(example, LeftOut):
            return
        reason = reason or _named(dataset, example.row, example.reason)
    of = "" if len(tried) == len(rows) else f" that were tried, of {len(rows):,},"
    raise UserError(
        f"data.{split}: none of the {len(tried)} clips{of} can be used, for example {reason}. Look with whisper-peft "
        "check SRC, and mend them."
    )


def _is_true(dataset: SpeechDataset, faulty: Sequence[int]) -> bool:
    """Whether clips that a header speaks against cannot be used indeed: a header may be wrong."""
    return all(isinstance(dataset[row], LeftOut) for row in faulty[:PROOFS])


def _weights(speech: Speech, rows: Sequence[int]) -> dict[int, float]:
    """How often each of the training rows comes in an epoch."""
    ends = []
    for count, weight in speech.parts or [(len(speech.train), 1.0)]:
        ends.append((count + (ends[-1][0] if ends else 0), weight))
    return {row: next(weight for end, weight in ends if row < end) for row in rows}


def _as_it_is(dataset: SpeechDataset) -> SpeechDataset:
    """The same clips without augmentation."""
    plain = copy.copy(dataset)
    plain.augment = None
    plain.augmentation = None
    return plain


def _named(dataset: SpeechDataset, number: int, reason: str) -> str:
    row = dataset.rows[number]
    return f"{row.name}{f' ({row.place})' if row.place else ''}: {reason}"


def _refuse_moved(checked: Checked) -> None:
    for part, found in zip(checked.parts, checked.mispairings, strict=True):
        for one in found:
            if one.evidence < SURE:
                continue
            first, last = part.rows[one.rows[0]], part.rows[one.rows[-1]]
            what = "follow another order of the file names" if one.is_order else f"are moved by {one.shift:+d}"
            raise UserError(
                f"data.{part.split}: {part.name}: by the clips' lengths the texts of {len(one.rows)} {what}, from "
                f"{first.place or first.name} to {last.place or last.name}. Look with whisper-peft check {part.name}, "
                "mend with --fix OUT, or train on it as it is: --set data.allow_shift=true"
            )
