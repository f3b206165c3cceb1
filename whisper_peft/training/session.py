"""A run from its first score to its last: the trainer, the scores, and what is left in the folder."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from whisper_peft import runs
from whisper_peft.data.batching import Block, Stitching, slack_policy, steps_per_epoch
from whisper_peft.data.dataset import Pick
from whisper_peft.data.features import Preparation
from whisper_peft.data.stitching import TOKENS_OF_A_PREFIX
from whisper_peft.data.subtitles import TOKENS_OF_A_TIME
from whisper_peft.errors import Interrupted, UserError
from whisper_peft.evaluation.clip_transcripts import Transcripts, training_limit, transcribe_rows
from whisper_peft.evaluation.generation import full_limit, use_window
from whisper_peft.evaluation.scoring import figures, left_out_record, records
from whisper_peft.model.locating import Located
from whisper_peft.progress import bar
from whisper_peft.recipe import Recipe, override
from whisper_peft.recipe_files import save_recipe
from whisper_peft.training.arguments import tensorboard_callback, training_arguments
from whisper_peft.training.artefacts import count_weights, load_weights, replace_artefact, set_generation_language
from whisper_peft.training.defaults import selecting_metric
from whisper_peft.training.facts import hours, padding_share, peak_memory_bytes
from whisper_peft.training.splits import Speech, fixed_rows


class Session:
    """What one process does of a run.

    Args:
        run: its folder, with recipe and facts in it.
        recipe: resolved.
        speech: the data sets.
        located: the model's base, with its commit.
        preparation: of the base.
        say: told one line at a time what happens.
        progress: show bars on stderr.
    """

    def __init__(
        self, run: Path, recipe: Recipe, speech: Speech, located: Located, preparation: Preparation, *,
        say: Callable[[str], None], progress: bool,
    ):  # fmt: skip
        self.run, self.recipe, self.speech, self.located, self.preparation = run, recipe, speech, located, preparation
        self.say, self.progress = say, progress
        self.checkpoint = next(reversed(runs.complete_checkpoints(run)), None)
        self.start = runs.checkpoint_step(self.checkpoint) if self.checkpoint else 0
        self.limits = {
            name: training_limit(data, preparation) for name, data in (("eval", speech.eval), speech.scored)
        }  # fmt: skip
        self.selection = fixed_rows(len(speech.eval), recipe.evaluate.max_clips)
        self.saved = self._saved()
        languages = {speech.eval.language_of(number) for number in range(len(speech.eval))}
        self.metric = selecting_metric(recipe.evaluate.best_metric, languages, speech.references)

    def fit(self, model, *, loss: Callable | None, callbacks: Sequence, on_checkpoint: Sequence, began: float) -> dict:
        """Scores, trains, scores again.

        Args:
            model: as `build_model` gives it.
            loss: see `train`, like the next two.
            callbacks: further ones.
            on_checkpoint: further functions.
            began: when the command did, on time.monotonic's clock.

        Returns:
            The run's facts.

        Raises:
            UserError: too many clips left out.
            Interrupted: Ctrl-C or SIGTERM, after a checkpoint.
        """
        from whisper_peft.training import callbacks as events

        run, recipe, speech = self.run, self.recipe, self.speech
        _forget_after(run, self.start)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        total = sum(p.numel() for p in model.parameters())
        self.say(f"Training {trainable:,} of {total:,} parameters.")
        set_generation_language(model, speech)
        self.left_out = events.LeftOutRule(
            run, n_rows=speech.clips_per_epoch or recipe.train.steps * recipe.train.batch_size,
            batch_size=recipe.train.batch_size, start=self.start,
            max_share=recipe.data.max_left_out, to_record=left_out_record, saved=self.saved.get("clips", {}),
        )  # fmt: skip
        self.signals = events.Signals()
        self.trainer = self._trainer(model, loss, callbacks, on_checkpoint)
        with use_window(model, recipe.features.window), self.signals.caught():
            compared = self._compared()
            if compared and "before" not in runs.read_json(run / runs.FACTS):
                self._score_before(compared)
            best = self._train()
            scores = self._score_after(compared)
        return runs.update_facts(
            run, finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"), best_step=best,
            best_metric=self.metric, **scores, trainable_parameters=trainable, parameters=total,
            train_hours=self._hours(), empty_steps=self.trainer.empty_steps, padding_share=padding_share(self.trainer),
            left_out=len(self.left_out.known), seconds=round(time.monotonic() - began, 1),
        )  # fmt: skip

    def _trainer(self, model, loss: Callable | None, callbacks: Sequence, on_checkpoint: Sequence):
        from transformers import EarlyStoppingCallback, PrinterCallback

        from whisper_peft.training import callbacks as events
        from whisper_peft.training.loss import token_loss_sum
        from whisper_peft.training.trainer import SpeechTrainer

        recipe, features = self.recipe, self.recipe.features
        slack_s = slack_policy(
            features.window, slack_s=features.slack_s, full_share=features.full_share, full_last=features.full_last,
            n_steps=recipe.train.steps, seed=recipe.train.seed,
        )  # fmt: skip
        stream = self._stream(slack_s)
        extra = [
            events.GradientCheck(), events.ScheduleGoesOn(), self.left_out, self.signals, *callbacks, events.LastStep()
        ]  # fmt: skip
        if self.progress:
            extra.append(events.Progress(recipe.train.batch_size))
        if "tensorboard" in recipe.train.report_to:
            extra.append(tensorboard_callback(self.run))
        if recipe.train.early_stopping:
            extra.append(EarlyStoppingCallback(early_stopping_patience=recipe.train.early_stopping))
        extra.append(events.RunFiles(
            self.run, recipe.train.keep_checkpoints, list(on_checkpoint),
            steps_per_epoch(self.speech.clips_per_epoch, recipe.train.batch_size),
            cut_short=lambda: bool(self.signals.received or self.left_out.stopped),
            add_to=self._add_to,
        ))  # fmt: skip
        block = self.saved.get("block")
        trainer = SpeechTrainer(
            model, training_arguments(recipe, self.run, metric=self.metric), dataset=self.speech.train,
            batch_size=recipe.train.batch_size, micro_batch_size=recipe.train.micro_batch_size,
            micro_batch_s=recipe.train.micro_batch_s or math.inf,
            slack_s=slack_s, start=self.start, parts=self.speech.parts, stitching=self._stitching(), stream=stream,
            begin=Block(**block) if block else None, masks=recipe.augment.masks,
            loss=loss or token_loss_sum, on_batch=self.left_out.on_batch, on_finer_cut=self._finer_cut, callbacks=extra,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)  # figures go to metrics.jsonl, progress to the bar
        trainer.evaluate_model = self._evaluate
        return trainer

    def _stream(self, slack_s: Callable):
        """Sampler of a stream from where the checkpoint left it; None without a stream."""
        from whisper_peft.data.samplers import StreamSampler

        if self.speech.stream is None:
            return None
        saved = runs.read_json(self.checkpoint / runs.STREAM) if self.checkpoint else {"first_step": 0}
        if self.checkpoint:
            self.speech.stream.go_on(saved["stream"])
        return StreamSampler(
            self.speech.stream, self.speech.train, self.recipe.train.batch_size,
            buffer_rows=self.recipe.data.shuffle_buffer, slack_s=slack_s, seed=self.recipe.train.seed,
            start=self.start, first=saved["first_step"], stitching=self._stitching(),
        )  # fmt: skip

    def _saved(self) -> dict:
        """Read what the checkpoint knows of its place among the clips; {} of a new run, or of an older checkpoint."""
        kept = self.checkpoint / runs.STEPS if self.checkpoint else None
        return runs.read_json(kept) if kept and kept.is_file() else {}

    def _add_to(self, checkpoint: Path) -> None:
        """Write into a checkpoint where the clips of the next step are."""
        state = self.trainer.sampler.state_at(runs.checkpoint_step(checkpoint))
        place = {"clips": self.left_out.state()}
        if self.speech.stream is None:
            place["block"] = state
        else:
            runs.write_json(checkpoint / runs.STREAM, state)
        runs.write_json(checkpoint / runs.STEPS, place)

    def _stitching(self) -> Stitching | None:
        """Say how training clips are joined into longer windows; None where the recipe does not ask for it."""
        share = self.recipe.features.stitch
        if not share:
            return None
        dataset, preparation = self.speech.train, self.preparation

        def n_tokens(pick: Pick) -> int:
            row = pick.given or dataset.rows[pick.row]
            return preparation.n_tokens(dataset.clean(row.text)) + TOKENS_OF_A_TIME * max(1, len(row.segments))

        room = preparation.max_label_tokens - TOKENS_OF_A_PREFIX
        return Stitching(share, preparation.window_s, room, n_tokens)

    def _finer_cut(self, clips: int) -> None:
        """Kept for the rest of the run, and for its resume."""
        self.say(f"Out of memory: the step is made again with {clips} clips at a time; its result is the same.")
        cut = {
            "train.micro_batch_s": self.trainer.micro_batch_s,
            "train.micro_batch_size": self.trainer.micro_batch_size,
        }
        save_recipe(override(self.recipe, cut), self.run / runs.RECIPE)

    def _train(self) -> int:
        """Makes the steps that are left and saves the best model; returns its step."""
        from transformers import TrainerState

        run, recipe, trainer, checkpoint = self.run, self.recipe, self.trainer, self.checkpoint
        facts = runs.read_json(run / runs.FACTS)
        tick = time.monotonic()
        if checkpoint and runs.trained_to_the_end(checkpoint, recipe.train.steps):
            trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))  # killed while scoring
        else:
            if checkpoint:
                count_weights(trainer.model, checkpoint)  # transformers and peft load what fits, and pass over the rest
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        seconds = time.monotonic() - tick + facts.get("train_seconds", 0.0)
        step = trainer.state.global_step
        kept = trainer.kept + facts.get("kept_unaugmented", 0)
        facts = runs.update_facts(
            run, train_seconds=round(seconds, 1), steps=step, peak_memory_bytes=peak_memory_bytes(),
            kept_unaugmented=kept,
        )  # fmt: skip
        if self.signals.received:
            raise Interrupted(
                self.signals.received,
                f"interrupted after step {step}, saved; whisper-peft train --resume {run} goes on.",
            )
        wrong = self.left_out.stopped or self.left_out.verdict(is_over=True)
        if wrong:
            remedy = "Mend them and start a new run"
            if self.left_out.used:
                remedy += f", or accept them: whisper-peft train --resume {run} --set data.max_left_out=1"
            raise UserError(f"data.train: {wrong}. {remedy}")
        if kept:
            self.say(f"Augmentation: {kept} clips stayed as they were: too long with it, or their noise unreadable.")
        best = trainer.state.best_global_step or step
        checkpoint = run / runs.CHECKPOINTS / f"checkpoint-{best}"
        runs.verify_checkpoint(checkpoint, "it holds the best weights; bring it back from a copy, or start a new run")
        load_weights(trainer.model, checkpoint)
        folder = runs.ADAPTER if recipe.train.mode == "lora" else runs.MODEL
        replace_artefact(run / folder, trainer.model, self.located, facts["base"])
        return best

    def _score(
        self, split: str, rows: Sequence[int], limit: int, label: str, *, slack_s: float = math.inf,
        selecting: bool = False,
    ) -> Transcripts:  # fmt: skip
        dataset = self.speech.eval if split == "eval" else self.speech.test
        with bar(f"scoring {label}", len(rows), self.progress) as update:
            found = transcribe_rows(
                self.trainer.model, dataset, rows, batch_size=self.recipe.evaluate.batch_size, slack_s=slack_s,
                stop_loops=selecting, max_new_tokens=limit, beams=self.recipe.evaluate.beams,
                workers=self.recipe.train.workers, progress=update, autocast=self.trainer.accelerator.autocast,
            )  # fmt: skip
        step = self.trainer.state.global_step
        self.left_out.add(split, found.left_out, step=step)
        broken = [one for one in found.transcripts if not math.isfinite(one.loss_sum)]
        if broken:
            when = f"after step {step}" if step else "before training"
            raise UserError(
                f"{when} the token loss of {len(broken)} {split} clips is not a finite number, for example of "
                f"{dataset.rows[broken[0].row].name}: the model's numbers overflow. Take a lower train.learning_rate "
                f"(now {self.recipe.train.learning_rate:g}) or train.precision=fp32."
            )
        return found

    def _evaluate(self) -> dict:
        """Between steps: on the windows that are trained on, where the run's own figures are of the whole window.

        Those are of what the model will be run with elsewhere.
        """
        short = math.inf if self.recipe.features.window == "full" else self.recipe.features.slack_s
        found = self._score("eval", self.selection, self.limits["eval"], "eval", slack_s=short, selecting=True)
        result = figures(self.speech.eval, found)
        step, steps = self.trainer.state.global_step, self.recipe.train.steps
        self.say(f"Step {step} of {steps}: {self._rates(result)} on {result['clips']} eval clips.")
        return {**result, "loss": result["token_loss"]}

    def _rates(self, result: dict) -> str:
        rates = f"WER {result['wer']:.1%}, CER {result['cer']:.1%}"
        if self.metric == "cer_normalized":
            rates += f", CER normalised {result['cer_normalized']:.1%}"
        return f"{rates}, token loss {result['token_loss']:.3f}"

    def _compared(self) -> list[int]:
        """Rows that are scored before and after."""
        most = self.recipe.evaluate.compare_clips
        return fixed_rows(len(self.speech.scored[1]), most) if most else []

    def _score_fully(self, rows: Sequence[int], when: str) -> Transcripts:
        """Score rows of the reported split under the model's own generation limit.

        That limit is the one of every figure that a run reports. A transcript that ends below a shorter limit is the
        same under the model's own, so only those that reach the shorter one are made again.
        """
        (split, _), full = self.speech.scored, full_limit(self.preparation)
        limit = self.limits[split]
        found = self._score(split, rows, limit, f"{split} {when}")
        again = [one.row for one in found.transcripts if one.reached_limit]
        if again and limit < full:
            redone = {one.row: one for one in self._score(split, again, full, f"{split}, full limit").transcripts}
            found.transcripts = [redone.get(one.row, one) for one in found.transcripts]
        return found

    def _figures(self, found: Transcripts) -> dict:
        split, scored = self.speech.scored
        return {**figures(scored, found), "split": split, "max_new_tokens": full_limit(self.preparation)}

    def _score_before(self, compared: list[int]) -> None:
        split = self.speech.scored[0]
        before = self._figures(self._score_fully(compared, "before training"))
        runs.update_facts(self.run, before=before)
        self.say(f"Before: {self._rates(before)} on {before['clips']} {split} clips.")

    def _score_after(self, compared: list[int]) -> dict:
        """`after`, on the rows that were scored before; `final`, on all of them."""
        (split, scored), after, final = self.speech.scored, None, None
        if compared or split == "test":
            found = self._score_fully(range(len(scored)), "after training")
            if compared:
                after = self._figures(_subset(found, compared))
            final = self._figures(found)
            runs.rewrite_jsonl(self.run / runs.TRANSCRIPTS, records(scored, found))
        return {"after": after, "final": final}

    def _hours(self) -> float | None:
        """Of the training clips; of a stream, what was drawn, which is not known if another process began the run."""
        if self.speech.stream is None:
            return hours(self.speech.train, self.left_out.rows("train"))
        return None if self.start else round(self.trainer.speech_s / 3600, 3)


def _forget_after(run: Path, step: int) -> None:
    """Drops what a killed run wrote after its last checkpoint: it will be written again."""
    for name in (runs.METRICS, runs.LEFT_OUT):
        kept = [record for record in runs.read_jsonl(run / name) if record.get("step", 0) <= step]
        runs.rewrite_jsonl(run / name, kept)
    complete = {path.name for path in runs.complete_checkpoints(run)}
    for folder in (run / runs.CHECKPOINTS).glob("checkpoint-*"):
        if folder.name not in complete:
            shutil.rmtree(folder)


def _subset(found: Transcripts, rows: Sequence[int]) -> Transcripts:
    chosen = set(rows)
    return Transcripts(
        [one for one in found.transcripts if one.row in chosen], [one for one in found.left_out if one.row in chosen]
    )
