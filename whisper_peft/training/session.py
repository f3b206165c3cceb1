"""A run from its first score to its last: score, train, score again, and leave the result in the run folder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_peft import runs
from whisper_peft.data.batching import steps_per_epoch
from whisper_peft.data.samplers import StepSampler, StreamSampler
from whisper_peft.errors import Interrupted, UserError
from whisper_peft.evaluation.generation import use_window
from whisper_peft.evaluation.scoring import left_out_record
from whisper_peft.recipe_dicts import override
from whisper_peft.recipe_files import save_recipe
from whisper_peft.training.arguments import forget_mixed_precision, tensorboard_callback, training_arguments
from whisper_peft.training.artefacts import count_weights, load_weights, replace_artefact, set_generation_language
from whisper_peft.training.facts import hours, padding_share, peak_memory_bytes
from whisper_peft.training.prepare import Prepared
from whisper_peft.training.scorer import RunScorer
from whisper_peft.training.starting import Start, find_start, forget_after, make_sampler

if TYPE_CHECKING:
    from whisper_peft.training.callbacks import LeftOutRule, Signals
    from whisper_peft.training.trainer import SpeechTrainer


def fit(
    prepared: Prepared,
    run: Path,
    model,
    *,
    loss: Callable | None,
    callbacks: Sequence,
    on_checkpoint: Sequence,
    say: Callable[[str], None],
    progress: bool,
    began: float,
) -> dict:
    """Score, train, and score again.

    Args:
        prepared: The run as it begins.
        run: Its folder, with recipe and facts in it.
        model: The model as `build_model` returns it.
        loss: See `train`, also for the next four.
        callbacks: TrainerCallbacks of the user.
        on_checkpoint: Functions of the user.
        say: Is called with each line about what happens.
        progress: True to show bars on stderr.
        began: Time at which the command began, on the clock of time.monotonic.

    Returns:
        The facts of the run.

    Raises:
        UserError: Too many clips were left out, or a loss is not a finite number.
        Interrupted: Ctrl-C or SIGTERM, after a checkpoint.
    """
    from whisper_peft.training.callbacks import LeftOutRule, Signals
    from whisper_peft.training.loss import token_loss_sum

    recipe = prepared.recipe
    speech = prepared.speech
    start = find_start(run)
    forget_after(run, start.step)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    say(f"Training {trainable:,} of {total:,} parameters.")
    set_generation_language(model, speech)
    left_out = LeftOutRule(
        run,
        n_rows=speech.clips_per_epoch or recipe.train.steps * recipe.train.batch_size,
        batch_size=recipe.train.batch_size,
        start=start.step,
        max_share=recipe.data.max_left_out,
        to_record=left_out_record,
        saved=start.place.get("clips", {}),
    )
    scorer = RunScorer(
        model, recipe, speech, prepared.preparation, on_left_out=left_out.add, say=say, progress=progress
    )
    session = Session(prepared, run, model, start, scorer, left_out, Signals(), say=say)
    trainer = session.make_trainer(
        loss=loss or token_loss_sum, callbacks=callbacks, on_checkpoint=on_checkpoint, progress=progress
    )
    with use_window(model, recipe.features.window), session.signals.caught():
        if scorer.compared and "before" not in runs.read_json(run / runs.FACTS):
            before = scorer.score_before(trainer.state.global_step, trainer.accelerator.autocast)
            runs.update_facts(run, before=before)
        best_step = session.train(trainer)
        scores, transcripts = scorer.score_after(trainer.state.global_step, trainer.accelerator.autocast)
        if transcripts is not None:
            runs.rewrite_jsonl(run / runs.TRANSCRIPTS, transcripts)
    return runs.update_facts(
        run,
        finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        best_step=best_step,
        best_metric=scorer.metric,
        **scores,
        trainable_parameters=trainable,
        parameters=total,
        train_hours=session.train_hours(trainer),
        empty_steps=trainer.empty_steps,
        padding_share=padding_share(trainer),
        left_out=len(left_out.known),
        seconds=round(time.monotonic() - began, 1),
    )


class Session:
    """The steps that this process makes of a run.

    Args:
        prepared: The run as it begins.
        run: Its folder.
        model: The model that is trained.
        start: Where this process begins.
        scorer: Scores the clips that select the checkpoint.
        left_out: Counts the clips that cannot be used.
        signals: Catches Ctrl-C and SIGTERM.
        say: Is called with each line about what happens.
    """

    def __init__(
        self,
        prepared: Prepared,
        run: Path,
        model,
        start: Start,
        scorer: RunScorer,
        left_out: LeftOutRule,
        signals: Signals,
        *,
        say: Callable[[str], None],
    ):
        self.prepared = prepared
        self.recipe = prepared.recipe
        self.speech = prepared.speech
        self.run = run
        self.model = model
        self.start = start
        self.scorer = scorer
        self.left_out = left_out
        self.signals = signals
        self.say = say

    def make_trainer(
        self, *, loss: Callable, callbacks: Sequence, on_checkpoint: Sequence, progress: bool
    ) -> SpeechTrainer:
        """Make the trainer with its sampler and its callbacks."""
        from transformers import PrinterCallback

        from whisper_peft.training.trainer import SpeechTrainer

        recipe = self.recipe
        forget_mixed_precision()
        arguments = training_arguments(recipe, self.run, metric=self.scorer.metric)
        sampler = make_sampler(self.prepared, self.start, arguments)
        trainer = SpeechTrainer(
            self.model,
            arguments,
            dataset=self.speech.train,
            sampler=sampler,
            micro_batch_size=recipe.train.micro_batch_size,
            micro_batch_s=recipe.train.micro_batch_s or math.inf,
            masks=recipe.augment.masks,
            evaluate_model=self.scorer.evaluate,
            loss=loss,
            on_batch=self.left_out.on_batch,
            on_finer_cut=self._keep_finer_cut,
            callbacks=self._make_callbacks(sampler, callbacks, on_checkpoint, progress),
        )
        # Figures go to metrics.jsonl and progress to our bar.
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _make_callbacks(
        self,
        sampler: StepSampler | StreamSampler,
        callbacks: Sequence,
        on_checkpoint: Sequence,
        progress: bool,
    ) -> list:
        """List the callbacks of a run in the order in which the Trainer calls them."""
        from transformers import EarlyStoppingCallback

        from whisper_peft.training import callbacks as events

        train = self.recipe.train
        # LastStep must come after all callbacks that can stop training: it looks at what they asked for.
        chain = [
            events.GradientCheck(),
            events.ScheduleGoesOn(),
            self.left_out,
            self.signals,
            *callbacks,
            events.LastStep(),
        ]
        if progress:
            chain.append(events.Progress(train.batch_size))
        if "tensorboard" in train.report_to:
            chain.append(tensorboard_callback(self.run))
        if train.early_stopping:
            chain.append(EarlyStoppingCallback(early_stopping_patience=train.early_stopping))
        chain.append(
            events.RunFiles(
                self.run,
                train.keep_checkpoints,
                list(on_checkpoint),
                steps_per_epoch(self.speech.clips_per_epoch, train.batch_size),
                is_cut_short=lambda: bool(self.signals.received or self.left_out.stopped),
                add_to=lambda checkpoint: self._save_place(checkpoint, sampler),
            )
        )
        return chain

    def _save_place(self, checkpoint: Path, sampler: StepSampler | StreamSampler) -> None:
        """Write into a checkpoint where the clips of the next step are."""
        state = sampler.state_at(runs.checkpoint_step(checkpoint))
        place: dict[str, object] = {"clips": self.left_out.state()}
        if self.speech.stream is None:
            place["block"] = state
        else:
            runs.write_json(checkpoint / runs.STREAM, state)
        runs.write_json(checkpoint / runs.STEPS, place)

    def _keep_finer_cut(self, clips: int, micro_batch_s: float, micro_batch_size: int | str) -> None:
        """Write a finer cut into the run's recipe, so that a resumed run begins with it."""
        self.say(f"Out of memory: the step is made again with {clips} clips at a time; its result is the same.")
        finer = {"train.micro_batch_s": micro_batch_s, "train.micro_batch_size": micro_batch_size}
        save_recipe(override(self.recipe, finer), self.run / runs.RECIPE)

    def train(self, trainer: SpeechTrainer) -> int:
        """Make the steps that are left, and save the best model.

        Returns:
            The step of the best checkpoint.

        Raises:
            UserError: Too many clips were left out.
            Interrupted: Ctrl-C or SIGTERM, after a checkpoint.
        """
        began = time.monotonic()
        self._make_steps(trainer)
        seconds = time.monotonic() - began
        step = trainer.state.global_step
        facts = runs.read_json(self.run / runs.FACTS)
        kept = trainer.kept + facts.get("kept_unaugmented", 0)
        facts = runs.update_facts(
            self.run,
            train_seconds=round(seconds + facts.get("train_seconds", 0.0), 1),
            steps=step,
            peak_memory_bytes=peak_memory_bytes(),
            kept_unaugmented=kept,
        )
        self._refuse_to_finish(step)
        if kept:
            self.say(
                f"Augmentation was skipped for {kept} clips: they would have become too long, or the noise file could "
                "not be read."
            )
        best_step = trainer.state.best_global_step or step
        best = self.run / runs.CHECKPOINTS / f"checkpoint-{best_step}"
        runs.verify_checkpoint(best, "it holds the best weights; bring it back from a copy, or start a new run")
        load_weights(self.model, best)
        folder = runs.ADAPTER if self.recipe.train.mode == "lora" else runs.MODEL
        replace_artefact(self.run / folder, self.model, self.prepared.located, facts["base"])
        return best_step

    def _make_steps(self, trainer: SpeechTrainer) -> None:
        """Make the steps that are left."""
        checkpoint = self.start.checkpoint
        if checkpoint is None:
            trainer.train()
            return
        if runs.trained_to_the_end(checkpoint, self.recipe.train.steps):
            # The run was killed while its result was scored: all steps are made.
            trainer.load_finished_state(checkpoint)
            return
        # transformers and peft load the tensors that fit, and pass over the others without a word.
        count_weights(self.model, checkpoint)
        trainer.train(resume_from_checkpoint=str(checkpoint))

    def _refuse_to_finish(self, step: int) -> None:
        """Refuse to call a run trained that was interrupted, or that left too many clips out.

        Raises:
            UserError: Too many clips were left out.
            Interrupted: Ctrl-C or SIGTERM was received.
        """
        if self.signals.received:
            raise Interrupted(
                self.signals.received,
                f"interrupted after step {step}, saved; whisper-peft train --resume {self.run} goes on.",
            )
        fault = self.left_out.stopped or self.left_out.verdict(is_over=True)
        if not fault:
            return
        remedy = "Mend them and start a new run"
        if self.left_out.used:
            remedy += f", or accept them: whisper-peft train --resume {self.run} --set data.max_left_out=1"
        raise UserError(f"data.train: {fault}. {remedy}")

    def train_hours(self, trainer: SpeechTrainer) -> float | None:
        """Return the hours of the training clips.

        For a stream, these are the hours that were drawn; None if another process began the run, because what it drew
        is not known.
        """
        if self.speech.stream is None:
            return hours(self.speech.train, self.left_out.rows("train"))
        if self.start.step:
            return None
        return round(trainer.speech_s / 3600, 3)
