"""What train sees of its data before the first step: headers and texts of the first clips of each source."""

from __future__ import annotations

from whisper_peft.data.checking.checks import Checked, Limits, check_parts
from whisper_peft.data.checking.findings import KINDS, Part
from whisper_peft.data.checking.sounds import mended_sounds
from whisper_peft.data.features import Preparation
from whisper_peft.errors import UserError
from whisper_peft.recipe import Recipe
from whisper_peft.training.speech import Rows, Speech

SURE = 25.0  # nats of evidence that stop a run; chance has been seen to make 18, a list that lost a row makes hundreds
MOST_TRAIN, MOST_SCORED = 2_000, 500  # clips of all training sources, of eval and of test: seconds, not minutes
MOST_HEARD = 16  # clips of each source that are decoded


def first_look(rows: Rows, speech: Speech, recipe: Recipe, preparation: Preparation) -> list[str]:
    """Check the first rows of every source; what was found, in a few lines.

    Raises:
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
    checked = check_parts(parts, limits=limits, language=language, task=recipe.model.task, audio=False)
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
