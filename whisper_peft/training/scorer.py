"""The scores of a run: its splits are transcribed and scored before, between and after the steps."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence

from whisper_peft.data.dataset import SpeechDataset
from whisper_peft.data.features import Preparation
from whisper_peft.errors import UserError
from whisper_peft.evaluation.clip_transcripts import Transcripts, training_limit, transcribe_rows
from whisper_peft.evaluation.generation import full_limit
from whisper_peft.evaluation.scoring import figures, records
from whisper_peft.progress import bar
from whisper_peft.training.defaults import selecting_metric
from whisper_peft.training.resolved import ResolvedRecipe
from whisper_peft.training.splits import Speech, fixed_rows

# Makes the context of reduced precision that the model is trained in.
Autocast = Callable[[], contextlib.AbstractContextManager]


class RunScorer:
    """Scores the model of a run on the clips that select its checkpoint, and on those that are reported.

    Between steps, the clips of eval are scored on the windows that the model is trained on, which is fast. The figures
    that a run reports use the full window, as other programs do.

    Args:
        model: Whisper, or an adapter on one; the model that is trained.
        recipe: Settings of the run.
        speech: The splits of the run.
        preparation: The input that the checkpoint asks for.
        on_left_out: Is called with a split, its clips that could not be used, and the number of steps made.
        say: Is called with each line about what happens.
        progress: True to show bars on stderr.
    """

    def __init__(
        self,
        model,
        recipe: ResolvedRecipe,
        speech: Speech,
        preparation: Preparation,
        *,
        on_left_out: Callable[[str, list, int], None],
        say: Callable[[str], None],
        progress: bool,
    ):
        self.model = model
        self.recipe = recipe
        self.speech = speech
        self.on_left_out = on_left_out
        self.say = say
        self.progress = progress
        self.scored_split, self.scored = speech.scored
        # Tokens that a transcript may have: a short limit between steps, the model's own for what is reported.
        self.full_limit = full_limit(preparation)
        self.eval_limit = training_limit(speech.eval, preparation)
        self.scored_limit = self.eval_limit
        if self.scored is not speech.eval:
            self.scored_limit = training_limit(self.scored, preparation)
        # Rows of eval that select the checkpoint.
        self.selection = fixed_rows(len(speech.eval), recipe.evaluate.max_clips)
        # Rows of the reported split that are scored before and after.
        self.compared: list[int] = []
        if recipe.evaluate.compare_clips:
            self.compared = fixed_rows(len(self.scored), recipe.evaluate.compare_clips)
        languages = {speech.eval.language_of(row) for row in range(len(speech.eval))}
        # The figure that selects the checkpoint.
        self.metric = selecting_metric(recipe.evaluate.best_metric, languages, speech.references)

    def evaluate(self, step: int, autocast: Autocast) -> dict:
        """Score the clips of eval between two steps.

        Args:
            step: Number of steps made.
            autocast: Makes the context of reduced precision.

        Returns:
            The figures, with the token loss also as `loss`.
        """
        slack_s = self.recipe.features.slack_s
        if self.recipe.features.window == "full" or slack_s is None:
            slack_s = math.inf
        scored = self._transcribe(
            "eval",
            self.speech.eval,
            self.selection,
            limit=self.eval_limit,
            label="eval",
            step=step,
            autocast=autocast,
            slack_s=slack_s,
            stop_loops=True,
        )
        result = figures(self.speech.eval, scored)
        steps = self.recipe.train.steps
        self.say(f"Step {step} of {steps}: {self._rates(result)} on {result['clips']} eval clips.")
        return {**result, "loss": result["token_loss"]}

    def score_before(self, step: int, autocast: Autocast) -> dict:
        """Score the compared rows before training, and return their figures."""
        scored = self._transcribe_fully(self.compared, "before training", step, autocast)
        before = self._figures(scored)
        self.say(f"Before: {self._rates(before)} on {before['clips']} {self.scored_split} clips.")
        return before

    def score_after(self, step: int, autocast: Autocast) -> tuple[dict, list[dict] | None]:
        """Score the reported split after training.

        Returns:
            `after`, the figures of the rows that were scored before, and `final`, those of all rows; and a record for
            each transcript. All are None if the recipe asks for no comparison and there is no test split.
        """
        if not self.compared and self.scored_split != "test":
            return {"after": None, "final": None}, None
        scored = self._transcribe_fully(range(len(self.scored)), "after training", step, autocast)
        after = self._figures(_subset(scored, self.compared)) if self.compared else None
        return {"after": after, "final": self._figures(scored)}, records(self.scored, scored)

    def _transcribe_fully(self, rows: Sequence[int], when: str, step: int, autocast: Autocast) -> Transcripts:
        """Transcribe rows of the reported split under the model's own limit.

        That limit is the one of every figure that a run reports. A transcript that ends below a shorter limit is the
        same under the model's own, so only those that reach the shorter one are made again.
        """
        split = self.scored_split
        scored = self._transcribe(
            split, self.scored, rows, limit=self.scored_limit, label=f"{split} {when}", step=step, autocast=autocast
        )
        cut_off = [transcript.row for transcript in scored.transcripts if transcript.reached_limit]
        if not cut_off or self.scored_limit >= self.full_limit:
            return scored
        longer = self._transcribe(
            split,
            self.scored,
            cut_off,
            limit=self.full_limit,
            label=f"{split}, full limit",
            step=step,
            autocast=autocast,
        )
        remade = {transcript.row: transcript for transcript in longer.transcripts}
        transcripts = [remade.get(transcript.row, transcript) for transcript in scored.transcripts]
        return Transcripts(transcripts, scored.left_out)

    def _transcribe(
        self,
        split: str,
        dataset: SpeechDataset,
        rows: Sequence[int],
        *,
        limit: int,
        label: str,
        step: int,
        autocast: Autocast,
        slack_s: float = math.inf,
        stop_loops: bool = False,
    ) -> Transcripts:
        """Transcribe rows of a split.

        Raises:
            UserError: The token loss of a clip is not a finite number.
        """
        with bar(f"scoring {label}", len(rows), self.progress) as update:
            scored = transcribe_rows(
                self.model,
                dataset,
                rows,
                batch_size=self.recipe.evaluate.batch_size,
                slack_s=slack_s,
                stop_loops=stop_loops,
                max_new_tokens=limit,
                beams=self.recipe.evaluate.beams,
                workers=self.recipe.train.workers,
                progress=update,
                autocast=autocast,
            )
        self.on_left_out(split, scored.left_out, step)
        broken = [transcript for transcript in scored.transcripts if not math.isfinite(transcript.loss_sum)]
        if broken:
            when = f"after step {step}" if step else "before training"
            raise UserError(
                f"{when} the token loss of {len(broken)} {split} clips is not a finite number, for example of "
                f"{dataset.rows[broken[0].row].name}: the model's numbers overflow. Take a lower train.learning_rate "
                f"(now {self.recipe.train.learning_rate:g}) or train.precision=fp32."
            )
        return scored

    def _rates(self, result: dict) -> str:
        rates = f"WER {result['wer']:.1%}, CER {result['cer']:.1%}"
        if self.metric == "cer_normalized":
            rates += f", CER normalised {result['cer_normalized']:.1%}"
        return f"{rates}, token loss {result['token_loss']:.3f}"

    def _figures(self, scored: Transcripts) -> dict:
        return {**figures(self.scored, scored), "split": self.scored_split, "max_new_tokens": self.full_limit}


def _subset(scored: Transcripts, rows: Sequence[int]) -> Transcripts:
    """Return the transcripts, and the clips left out, of some rows."""
    chosen = set(rows)
    return Transcripts(
        [transcript for transcript in scored.transcripts if transcript.row in chosen],
        [left_out for left_out in scored.left_out if left_out.row in chosen],
    )
