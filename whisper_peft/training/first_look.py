"""The first look: what train checks in its data before the first step, by headers, texts and a few sounds."""

from __future__ import annotations

from collections.abc import Sequence

from whisper_peft.checking.checks import CheckedData, check_sources
from whisper_peft.checking.findings import KINDS, SourceRows
from whisper_peft.checking.limits import Limits
from whisper_peft.checking.sound import find_mended_sounds
from whisper_peft.checking.threads import map_in_threads
from whisper_peft.data.dataset import LeftOut, SpeechDataset
from whisper_peft.data.doubtful_times import refuse_foreign_times
from whisper_peft.data.features import Preparation
from whisper_peft.errors import UserError
from whisper_peft.recipe import Recipe
from whisper_peft.training.resolved import ResolvedRecipe
from whisper_peft.training.splits import MOST_SCORED, Rows, Speech, fixed_rows

# Evidence in nats that stops a run. Chance has been seen to make 18; a list that lost a row makes hundreds.
EVIDENCE_TO_REFUSE = 25.0
# Training clips whose headers and texts are read, over all sources: so many take seconds, not minutes.
MOST_TRAIN = 2_000
# Unusable clips that can be too many; one bad file never costs a run.
FEWEST_UNUSABLE = 2
# Clips that are decoded to find one that can be used.
MOST_DECODED = 200
# Clips that are decoded before their headers are believed: a header may be wrong.
DECODED_AS_PROOF = 2
# Clips of each source that are listened to.
MOST_HEARD = 16


def first_look(rows: Rows, speech: Speech, recipe: Recipe, preparation: Preparation) -> list[str]:
    """Check the first rows of every source.

    Args:
        rows: The rows of the run.
        speech: Its splits.
        recipe: Its settings.
        preparation: The input that the checkpoint asks for.

    Returns:
        What was found, a line each; empty if nothing was.

    Raises:
        UserError: Start and end are no times in these files, and `data.times` does not say what to do.
        UserError: Texts stand beside the wrong sound, beyond doubt, and `data.allow_shift` does not say to go on.
    """
    parts = _parts_to_check(rows, recipe)
    if not parts:
        return []
    checked = check_sources(
        parts,
        limits=Limits(preparation.window_s, preparation, speech.train.clean),
        language=None if recipe.model.language_token else recipe.model.language,
        task=recipe.model.task,
        borrowed=bool(recipe.model.language_token),
        times=recipe.data.times,
        audio=False,
    )
    if recipe.data.times is None:
        for part, facts in zip(checked.sources, checked.facts, strict=True):
            refuse_foreign_times(part.name, part.rows, facts.files_s, key=f"data.{part.split}: ")
    lines = _lines_on_findings(checked)
    for part in parts:
        lines += _lines_on_sounds(part, preparation.window_s)
    if not recipe.data.allow_shift:
        _refuse_shifted(checked)
    if lines:
        n_clips = sum(len(part.rows) for part in parts)
        lines.append(f"Data: looked at headers and texts of {n_clips:,} clips; whisper-peft check says more.")
    return lines


def _parts_to_check(rows: Rows, recipe: Recipe) -> list[SourceRows]:
    """Take the first rows of each source; an equal number of each training source."""
    most_of_source = max(1, MOST_TRAIN // max(1, len(rows.read)))
    parts = [SourceRows(name, source_rows[:most_of_source], "train") for name, source_rows in rows.read]
    if recipe.data.eval and rows.eval:
        parts.append(SourceRows(recipe.data.eval, rows.eval[:MOST_SCORED], "eval"))
    if recipe.data.test and rows.test:
        parts.append(SourceRows(recipe.data.test, rows.test[:MOST_SCORED], "test"))
    return parts


def _lines_on_findings(checked: CheckedData) -> list[str]:
    """Say what headers and texts show, with the first clip of each finding."""
    lines = []
    for finding in checked.list_findings():
        if finding.severity == "note":
            continue
        count = finding.count
        clips = "1 clip" if count == 1 else f"{count} clips"
        first = finding.clips[0]
        where = _with_place(first.name, first.place)
        lines.append(f"Data, {finding.severity}: {finding.kind}, {clips}, as {where}: {first.detail}.")
    return lines


def _lines_on_sounds(part: SourceRows, window_s: float) -> list[str]:
    """Say what some sounds of a source show that the decoder mends without a word."""
    lines = []
    n_heard = min(MOST_HEARD, len(part.rows))
    for kind, (n_clips, first) in find_mended_sounds(part, n_clips=MOST_HEARD, longest_s=window_s).items():
        heard = f"{n_clips} of {n_heard} clips heard of {part.name}, as {first}"
        lines.append(f"Data, {KINDS[kind].severity}: {kind}, {heard}.")
    return lines


def refuse_unusable(speech: Speech, recipe: ResolvedRecipe) -> None:
    """Refuse a run that could learn nothing, or too little, or that has nothing to score.

    Args:
        speech: The splits of the run.
        recipe: Its settings.

    Raises:
        UserError: More than `data.max_left_out` of the training clips (and at least two) cannot be used, as their
            headers and texts show; or not one clip can be used that is trained on, that selects the checkpoint, or
            that is scored before and after.
    """
    _refuse_unusable_train(speech, recipe)
    _refuse_unheard("eval", speech.eval, fixed_rows(len(speech.eval), recipe.evaluate.max_clips))
    split, dataset = speech.scored
    compared: Sequence[int] = ()
    if recipe.evaluate.compare_clips:
        compared = fixed_rows(len(dataset), recipe.evaluate.compare_clips)
    if compared or speech.test is not None:
        _refuse_unheard(split, dataset, compared or range(len(dataset)))


def _refuse_unusable_train(speech: Speech, recipe: ResolvedRecipe) -> None:
    """Refuse training clips of which too many cannot be used, or all."""
    dataset = speech.plain_train
    rows = fixed_rows(len(dataset), MOST_TRAIN)
    faults = dict(zip(rows, map_in_threads(dataset.fault, rows, "headers", False), strict=True))
    faulty = [row for row in rows if faults[row]]
    usable = [row for row in rows if not faults[row]]
    weights = _weights_of(speech, rows)
    share = sum(weights[row] for row in faulty) / sum(weights.values())
    is_too_much = len(faulty) >= FEWEST_UNUSABLE and share > recipe.data.max_left_out
    if is_too_much and _are_unusable(dataset, faulty):
        source = recipe.data.sources[0].source
        remedy = f"Look with whisper-peft check {source}, and mend them"
        if usable:
            remedy += "; or train on the others with --set data.max_left_out=1"
        else:
            remedy += "."
        raise UserError(
            f"data.train: {len(faulty):,} of {len(rows):,} clips cannot be used, for example "
            f"{_describe(dataset, faulty[0], faults[faulty[0]])}. {remedy}"
        )
    _refuse_unheard("train", dataset, usable or rows)


def _refuse_unheard(split: str, dataset: SpeechDataset, rows: Sequence[int]) -> None:
    """Refuse a split without a usable clip. The first clip that can be decoded ends the search.

    Args:
        split: The name of the split.
        dataset: Its clips, without augmentation.
        rows: The rows of which one must be usable.

    Raises:
        UserError: None is.
    """
    tried = fixed_rows(len(rows), MOST_DECODED)
    reason = ""
    for number in tried:
        example = dataset[rows[number]]
        if not isinstance(example, LeftOut):
            return
        if not reason:
            reason = _describe(dataset, example.row, example.reason)
    of_all = "" if len(tried) == len(rows) else f" that were tried, of {len(rows):,},"
    raise UserError(
        f"data.{split}: none of the {len(tried)} clips{of_all} can be used, for example {reason}. Look with "
        "whisper-peft check SRC, and mend them."
    )


def _are_unusable(dataset: SpeechDataset, faulty: Sequence[int]) -> bool:
    """Tell whether clips that their headers speak against cannot be used indeed: a header may be wrong."""
    return all(isinstance(dataset[row], LeftOut) for row in faulty[:DECODED_AS_PROOF])


def _weights_of(speech: Speech, rows: Sequence[int]) -> dict[int, float]:
    """Return how often each of some training rows comes in an epoch."""
    parts = speech.parts or ((len(speech.train), 1.0),)
    sources: list[tuple[int, float]] = []
    end = 0
    for n_rows, weight in parts:
        end += n_rows
        sources.append((end, weight))
    # The rows of the sources stand one source after the other.
    return {row: next(weight for end, weight in sources if row < end) for row in rows}


def _describe(dataset: SpeechDataset, number: int, reason: str | None) -> str:
    """Name a clip, and say why it cannot be used."""
    row = dataset.rows[number]
    return f"{_with_place(row.name, row.place)}: {reason}"


def _with_place(name: str, place: str) -> str:
    """Name a sound file, with the place where its row was read."""
    return f"{name} ({place})" if place else name


def _refuse_shifted(checked: CheckedData) -> None:
    """Refuse texts that stand beside the wrong sound, beyond doubt.

    Raises:
        UserError: There are such texts.
    """
    for part, facts in zip(checked.sources, checked.facts, strict=True):
        for mispairing in facts.mispairings:
            if mispairing.evidence < EVIDENCE_TO_REFUSE:
                continue
            first = part.rows[mispairing.rows[0]]
            last = part.rows[mispairing.rows[-1]]
            if mispairing.is_order:
                fault = "follow another order of the file names"
            else:
                fault = f"are moved by {mispairing.shift:+d}"
            raise UserError(
                f"data.{part.split}: {part.name}: by the clips' lengths the texts of {len(mispairing.rows)} {fault}, "
                f"from {first.place or first.name} to {last.place or last.name}. Look with whisper-peft check "
                f"{part.name}, mend with --fix OUT, or train on it as it is: --set data.allow_shift=true"
            )
