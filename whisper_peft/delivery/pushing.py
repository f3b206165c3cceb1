"""train --push: what a run has so far, onto the Hub after each checkpoint, beside the training and never in its way."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from whisper_peft import runs
from whisper_peft.data.text import language_code
from whisper_peft.delivery.card import CardWords
from whisper_peft.delivery.publishing import Package, PublishReport, base_on_hub, pack, publish
from whisper_peft.delivery.repository import Unreachable, check_base, check_login, check_repo_name, look_into, send
from whisper_peft.errors import UserError
from whisper_peft.model.configs import GENERATION_CONFIG, load_generation_config, load_processor
from whisper_peft.model.identity import BASE_FACTS, base_identity
from whisper_peft.model.locating import Located, locate
from whisper_peft.recipe import Recipe
from whisper_peft.recipe_files import load_recipe
from whisper_peft.training.artefacts import save_processor
from whisper_peft.training.converter_files import complete_config

# Folders in the run with this name and a step hold what is on its way.
STAGED = ".push-"
# Longest wait for the Hub's answer before training, in seconds. The client itself waits for ever.
LONGEST_CHECK_S = 20
# Longest wait of a run that ends early for the upload that is on its way, in seconds.
LONGEST_WAIT_S = 60


@dataclass(frozen=True)
class Staged:
    """A checkpoint that is ready to go up.

    Attributes:
        package: The files and the card.
        folder: The folder in the run that holds the files, until they are up.
    """

    package: Package
    folder: Path

    def remove(self) -> None:
        """Delete the folder. The checkpoint itself stays in the run."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Push:
    """A function of a checkpoint folder for `train(on_checkpoint=…)`, and the last upload when training is over.

    Uploads run in a thread of their own. Where they are slower than training, only the newest checkpoint goes up next.
    A failed upload is said once, and training goes on.

    Args:
        repo: Name of the repository, owner/name.
        recipe: Recipe of the run.
        private: Whether a new repository is private.
        base: Hub id of an adapter's base, where it is trained on a local folder.
        say: Called with each line about what happens.

    Raises:
        UserError: Before anything is trained: there is no login, the name is none for a repository, the base has no
            name on the Hub, or the repository holds something else. A Hub that does not answer is no reason.
    """

    def __init__(
        self,
        repo: str,
        recipe: Recipe,
        *,
        private: bool = False,
        base: str | None = None,
        say: Callable[[str], None] = lambda line: None,
    ):
        self.repo = repo
        self.private = private
        self.base = base
        self.say = say
        self.kind = "adapter" if recipe.train.mode == "lora" else "model"
        # Guards the next three, and tells of their changes.
        self._changed = threading.Condition()
        self._waiting: Staged | None = None
        self._is_uploading = False
        self._thread: threading.Thread | None = None
        self._has_said_failure = False
        check_repo_name(repo)
        located = locate(recipe.model.name)
        self.from_adapter = located.adapter is not None
        if self.kind == "adapter":
            # The adapter is not there yet, but whether its base has a name on the Hub is known.
            known = {"base": {"hub_id": located.base} if located.from_hub else {}}
            base_on_hub(Located(recipe.model.name, located.base, adapter=Path()), known, base)
        self._check_hub(located)

    def __call__(self, checkpoint: Path) -> None:
        """Stage a checkpoint for the upload, and let training go on."""
        try:
            staged = self._stage(checkpoint)
        except Exception as error:
            # An upload is never worth a run.
            self._say_failure(error)
            return
        with self._changed:
            passed_over = self._waiting
            self._waiting = staged
            self._changed.notify_all()
        if passed_over:
            passed_over.remove()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name="push")
            self._thread.start()

    def __enter__(self) -> Push:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Drop what has not gone up. The run still has it, and resuming or publishing takes it from there."""
        self._drop_waiting(LONGEST_WAIT_S)

    def finish(self, run: Path) -> PublishReport | None:
        """Wait for the upload in progress, then publish the result.

        Args:
            run: The run folder.

        Returns:
            The report; None if the Hub did not take the result.
        """
        # A checkpoint that waits is older than the result.
        self._drop_waiting(None)
        try:
            return publish(run, self.repo, private=self.private, base=self.base, say=self.say)
        except UserError as error:
            self.say(f"Trained, but not published: {error} To publish later: {self._later_command(run)}")
            return None

    def _drop_waiting(self, timeout_s: float | None) -> None:
        """Remove the checkpoint that waits, and wait for the end of the upload in progress."""
        with self._changed:
            waiting = self._waiting
            self._waiting = None
            self._changed.wait_for(lambda: not self._is_uploading, timeout_s)
        if waiting:
            waiting.remove()

    def _check_hub(self, located: Located) -> None:
        """Check login, repository and base, as far as the Hub answers."""
        errors: list[BaseException] = []

        def ask() -> None:
            try:
                check_login(self.repo)
                look_into(self.repo, self.kind)
                if self.kind == "adapter" and self.base:
                    check_base(self.base, base_identity(located.base).get("sha256"))
            except BaseException as error:
                errors.append(error)

        asking = threading.Thread(target=ask, daemon=True, name="push check")
        asking.start()
        asking.join(LONGEST_CHECK_S)
        if asking.is_alive():
            errors.append(Unreachable(f"{self.repo}: the Hub gives no answer."))
        if not errors:
            return
        if not isinstance(errors[0], Unreachable):
            raise errors[0]
        self.say(f"Not now: {errors[0]} Training begins; each checkpoint is another try.")

    def _stage(self, checkpoint: Path) -> Staged:
        """Make a folder that loads alone, of hard links. The checkpoint may be deleted before it is up."""
        run = checkpoint.parent.parent
        step = runs.checkpoint_step(checkpoint)
        recipe = load_recipe(run / runs.RECIPE)
        facts = runs.read_json(run / runs.FACTS)
        folder = run / f"{STAGED}{step}"
        for leftover in run.glob(f"{STAGED}*"):
            # It is left from a process that was killed, or from this step before a resume.
            if leftover == folder or self._thread is None:
                shutil.rmtree(leftover)
        folder.mkdir()
        for path in checkpoint.iterdir():
            if path.suffix == ".safetensors" or path.name.endswith(("config.json", "index.json")):
                _link(path, folder / path.name)
        base = locate(recipe.model.name).base
        commit = facts["base"].get("commit")
        save_processor(load_processor(base, revision=commit), folder)
        _save_generation_config(folder, base, commit, recipe)
        if self.kind == "adapter":
            runs.write_json(folder / BASE_FACTS, facts["base"])
            located = Located(str(run), base, run=run, adapter=folder)
        else:
            complete_config(folder)
            located = Located(str(run), str(folder), run=run)
        return Staged(pack(located, self.repo, CardWords(), base=self.base, unfinished_step=step), folder)

    def _work(self) -> None:
        """Upload the checkpoint that waits, again and again. Runs in the thread."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                staged = self._waiting
                assert staged is not None, "wait_for returns when something waits"
                self._waiting = None
                self._is_uploading = True
            step = staged.folder.name.removeprefix(STAGED)
            try:
                state = look_into(self.repo, self.kind)
                message = f"Step {step}, with whisper-peft"
                send(self.repo, staged.package.files, state, private=self.private, message=message)
                self.say(f"Pushed step {step} to {self.repo}.")
                self._has_said_failure = False
            except Exception as error:
                self._say_failure(error)
            finally:
                staged.remove()
                with self._changed:
                    self._is_uploading = False
                    self._changed.notify_all()

    def _say_failure(self, error: Exception) -> None:
        """Say once that uploads fail, until one does not."""
        if self._has_said_failure:
            return
        self._has_said_failure = True
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}."
        self.say(f"Not pushed: {reason} Training goes on; each checkpoint is another try.")

    def _later_command(self, run: Path) -> str:
        """Return the command that publishes a run later."""
        command = f"whisper-peft publish {run} {self.repo}"
        if self.base:
            command += f" --base {self.base}"
        if self.private:
            command += " --private"
        return command


def _link(path: Path, to: Path) -> None:
    try:
        os.link(path, to)
    except OSError:
        # The file system has no hard links.
        shutil.copyfile(path, to)


def _save_generation_config(folder: Path, base: str, commit: str | None, recipe: Recipe) -> None:
    """Write a generation config for the language that the recipe names, where the checkpoint has none.

    The run's result also knows the languages that its rows name.
    """
    if (folder / GENERATION_CONFIG).is_file():
        return
    config = load_generation_config(base, revision=commit)
    if not config:
        return
    if getattr(config, "is_multilingual", False):
        language = recipe.model.language_token or recipe.model.language
        config.language = language_code(language) if language else None
        config.task = recipe.model.task
    config.forced_decoder_ids = None
    config.save_pretrained(str(folder))
