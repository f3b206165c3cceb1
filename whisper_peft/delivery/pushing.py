"""train --push: what a run has so far, onto the Hub after each checkpoint, beside the training and never in its way."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from whisper_peft import runs
from whisper_peft.data.text import language_code
from whisper_peft.delivery.card import CardWords
from whisper_peft.delivery.publishing import Package, PublishReport, base_on_hub, pack, publish
from whisper_peft.delivery.repository import Unreachable, check_base, check_login, check_repo_name, look, send
from whisper_peft.errors import UserError
from whisper_peft.model.configs import load_generation_config, load_processor
from whisper_peft.model.identity import BASE_FACTS, base_identity
from whisper_peft.model.locating import Located, locate
from whisper_peft.recipe import Recipe
from whisper_peft.recipe_files import load_recipe
from whisper_peft.training.artefacts import save_processor

STAGED = ".push-"  # folders in the run: what is on its way
LONGEST_CHECK_S = 20  # the client itself waits for ever
LONGEST_WAIT_S = 60  # of a run that ends early, for the upload that is on its way


class Push:
    """A function of a checkpoint folder for `train(on_checkpoint=…)`, and the last upload when training is over.

    Uploads run in a thread of their own, the newest checkpoint only: where they are slower than training, those
    between are passed over. What goes wrong with them is said once, and training goes on.

    Args:
        repo: owner/name.
        recipe: of the run.
        private: whether a new repository is.
        base: an adapter's base on the Hub, where it is trained on a local folder.
        say: told one line at a time what happens.

    Raises:
        UserError: before anything is trained: no login, no such name, a base without a name on the Hub, a repository
            that holds something else. A Hub that does not answer is no reason.
    """

    def __init__(
        self, repo: str, recipe: Recipe, *, private: bool = False, base: str | None = None,
        say: Callable[[str], None] = lambda line: None,
    ):  # fmt: skip
        self.repo, self.private, self.base, self.say = repo, private, base, say
        self.kind = "adapter" if recipe.train.mode == "lora" else "model"
        self._waiting: tuple[Package, Path] | None = None
        self._changed, self._busy, self._thread = threading.Condition(), False, None
        self._said = False
        check_repo_name(repo)
        located = locate(recipe.model.name)
        self.from_adapter = located.adapter is not None
        if self.kind == "adapter":  # raises
            known = {"base": {"hub_id": located.base} if located.from_hub else {}}
            base_on_hub(Located(recipe.model.name, located.base, adapter=Path()), known, base)
        self._check(located)

    def __call__(self, checkpoint: Path) -> None:
        """Takes what is to go up, and lets training go on."""
        try:
            staged = self._stage(checkpoint)
        except Exception as error:  # an upload is never worth a run
            self._report(error)
            return
        with self._changed:
            before, self._waiting = self._waiting, staged
            self._changed.notify_all()
        if before:
            shutil.rmtree(before[1], ignore_errors=True)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name="push")
            self._thread.start()

    def __enter__(self) -> Push:
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Lets go of what has not gone up: the run has it, and resuming or publishing takes it from there."""
        with self._changed:
            waiting, self._waiting = self._waiting, None
            self._changed.wait_for(lambda: not self._busy, LONGEST_WAIT_S)
        if waiting:
            shutil.rmtree(waiting[1], ignore_errors=True)

    def finish(self, run: Path) -> PublishReport | None:
        """Waits for the upload in progress, then publishes the result; None where the Hub would not take it."""
        with self._changed:
            waiting, self._waiting = self._waiting, None  # the result comes after it
            self._changed.wait_for(lambda: not self._busy)
        if waiting:
            shutil.rmtree(waiting[1], ignore_errors=True)
        try:
            return publish(run, self.repo, private=self.private, base=self.base, say=self.say)
        except UserError as error:
            self.say(f"Trained, but not published: {error} Then: {self._later(run)}")
            return None

    def _check(self, located: Located) -> None:
        """Login, repository and base, as far as the Hub answers."""
        failed: list[BaseException] = []

        def ask() -> None:
            try:
                check_login(self.repo)
                look(self.repo, self.kind)
                if self.kind == "adapter" and self.base:
                    check_base(self.base, base_identity(located.base).get("sha256"))
            except BaseException as error:
                failed.append(error)

        asking = threading.Thread(target=ask, daemon=True, name="push check")
        asking.start()
        asking.join(LONGEST_CHECK_S)
        if asking.is_alive():
            failed.append(Unreachable(f"{self.repo}: the Hub gives no answer."))
        if failed and isinstance(failed[0], Unreachable):
            self.say(f"Not now: {failed[0]} Training begins; each checkpoint is another try.")
        elif failed:
            raise failed[0]

    def _stage(self, checkpoint: Path) -> tuple[Package, Path]:
        """A folder that loads alone, of hard links: the checkpoint itself may be gone before it is up."""
        run, step = checkpoint.parent.parent, runs.checkpoint_step(checkpoint)
        recipe, facts = load_recipe(run / runs.RECIPE), runs.read_json(run / runs.FACTS)
        folder = run / f"{STAGED}{step}"
        for left in run.glob(f"{STAGED}*"):  # by a process that was killed, or this step's own from before a resume
            if left == folder or self._thread is None:
                shutil.rmtree(left)
        folder.mkdir()
        for path in checkpoint.iterdir():
            if path.suffix == ".safetensors" or path.name.endswith(("config.json", "index.json")):
                _link(path, folder / path.name)
        base = locate(recipe.model.name)
        commit = facts["base"].get("commit")
        save_processor(load_processor(base.base, revision=commit), folder)
        _save_generation_config(folder, base.base, commit, recipe)
        if self.kind == "adapter":
            runs.write_json(folder / BASE_FACTS, facts["base"])
        located = Located(
            str(run), base.base if self.kind == "adapter" else str(folder), run=run,
            adapter=folder if self.kind == "adapter" else None,
        )  # fmt: skip
        return pack(located, self.repo, CardWords(), base=self.base, unfinished_step=step), folder

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                (package, folder), self._waiting, self._busy = self._waiting, None, True
            step = folder.name.removeprefix(STAGED)
            try:
                found = look(self.repo, self.kind)
                send(self.repo, package.files, found, private=self.private, message=f"Step {step}, with whisper-peft")
                self.say(f"Pushed step {step} to {self.repo}.")
                self._said = False
            except Exception as error:
                self._report(error)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _report(self, error: Exception) -> None:
        """Says once that uploads fail, until one does not."""
        if not self._said:
            self._said = True
            what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}."
            self.say(f"Not pushed: {what} Training goes on; each checkpoint is another try.")

    def _later(self, run: Path) -> str:
        options = (f" --base {self.base}" if self.base else "") + (" --private" if self.private else "")
        return f"whisper-peft publish {run} {self.repo}{options}"


def _link(path: Path, to: Path) -> None:
    try:
        os.link(path, to)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, to)


def _save_generation_config(folder: Path, base: str, commit: str | None, recipe: Recipe) -> None:
    """For the language that the recipe names; the run's result also knows those that its rows name."""
    if (folder / "generation_config.json").is_file() or not (config := load_generation_config(base, revision=commit)):
        return
    if getattr(config, "is_multilingual", False):
        language = recipe.model.language_token or recipe.model.language
        config.language, config.task = language_code(language) if language else None, recipe.model.task
    config.forced_decoder_ids = None
    config.save_pretrained(str(folder))
