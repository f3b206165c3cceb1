"""A run that is killed or interrupted and then resumed ends with the same weights as an uninterrupted run."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from conftest import ROOT, make_speech, tiny_recipe
from transformers import TrainerCallback

from whisper_peft import UserError, runs, train

# Each child is a process of its own that can be killed. The server has done the heavy imports before.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["whisper_peft.training.trainer", "whisper_peft.training.train", "peft"])


@pytest.fixture(scope="module", autouse=True)
def importable_by_the_server():
    """Before Python 3.12, the server does not get the sys.path of this process, and would preload nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        yield


# A step has 4 of the 12 clips, so that an epoch has three steps; a checkpoint is stored every 2 steps.
STEPS = 8
CHANGES = {
    "lora": {
        "train.mode": "lora",
        "lora.dropout": 0.3,
        "features.timestamps": 0.5,
        "augment.speed": 0.5,
        "augment.noise": 0.5,
        "augment.gain": 0.5,
        "augment.no_speech": 0.2,
        "augment.spec_augment": True,
    },
    "full": {"train.mode": "full", "train.precision": "fp32"},
}


def recipe_of(mode: str, model: Path, speech: Path):
    changes = {
        **CHANGES[mode],
        "train.steps": STEPS,
        "train.workers": 2,
        "train.learning_rate": 0.003,
        "evaluate.compare_clips": 0,
        "train.keep_checkpoints": 9,
        "augment.noise_folder": str(speech / "eval"),
    }
    return tiny_recipe(model, speech, **changes)


@pytest.fixture(scope="module")
def dropout_model(tiny_model, tmp_path_factory) -> Path:
    """Copy the tiny model with dropout, so that full training draws random numbers, too."""
    folder = tmp_path_factory.mktemp("dropout") / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dropout": 0.2}))
    return folder


@pytest.fixture(scope="module")
def uninterrupted(dropout_model, speech, tmp_path_factory) -> dict:
    """Train one run of each mode to its end; return the results by mode."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return {mode: train(recipe_of(mode, dropout_model, speech), output=folder / mode) for mode in CHANGES}


class At(TrainerCallback):
    """Sends a signal to its own process after a step or after an evaluation."""

    def __init__(self, step: int, event: str = "on_step_end", number: int = signal.SIGKILL):
        self.step, self.event, self.number = step, event, number

    def _maybe(self, event: str, state) -> None:
        if event == self.event and state.global_step == self.step:
            os.kill(os.getpid(), self.number)

    def on_step_end(self, args, state, control, **kwargs):
        self._maybe("on_step_end", state)

    def on_evaluate(self, args, state, control, **kwargs):
        self._maybe("on_evaluate", state)


def child(at: At | None, options: dict) -> None:
    # The child of a fork server would start its workers by a new server.
    multiprocessing.set_start_method("fork", force=True)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - open until the process ends
    train(**options, callbacks=[at] if at else [])


def run_child(target, *arguments) -> int:
    process = processes.Process(target=target, args=arguments)
    process.start()
    process.join(300)
    assert process.exitcode is not None
    return process.exitcode


def assert_same_weights(run: Path, other: Path, mode: str) -> None:
    name = "adapter/adapter_model.safetensors" if mode == "lora" else "model/model.safetensors"
    assert (run / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_run_killed_three_times_equals_one_never_killed(mode, uninterrupted, dropout_model, speech, tmp_path):
    run, recipe = tmp_path / "run", recipe_of(mode, dropout_model, speech)
    # The first kill comes between checkpoints, the second between an evaluation and its checkpoint, the third in the
    # third epoch of the resumed run.
    assert run_child(child, At(3), {"recipe": recipe, "output": run}) == -signal.SIGKILL
    assert [path.name for path in runs.complete_checkpoints(run)] == ["checkpoint-2"]
    assert run_child(child, At(6, "on_evaluate"), {"resume": run}) == -signal.SIGKILL
    assert [path.name for path in runs.complete_checkpoints(run)] == ["checkpoint-2", "checkpoint-4"]
    assert run_child(child, At(7), {"resume": run}) == -signal.SIGKILL
    assert runs.complete_checkpoints(run)[-1].name == "checkpoint-6"
    assert not (run / "adapter").exists() and not (run / "model").exists()
    result = train(resume=run)
    assert result.facts["steps"] == STEPS
    assert_same_weights(run, uninterrupted[mode].run, mode)
    assert result.facts["best_step"] == uninterrupted[mode].facts["best_step"]

    def figures(folder: Path) -> list[dict]:
        """Return the records without the figures that depend on the clock."""
        clock = ("time", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")
        records = [
            {key: value for key, value in record.items() if key not in clock and not key.endswith("_per_second")}
            for record in runs.read_jsonl(folder / "metrics.jsonl")
        ]
        return [record for record in records if "loss" in record or "eval_wer" in record]

    # Each step is there once, because the resumed run replaces what the killed runs wrote.
    assert figures(run) == figures(uninterrupted[mode].run)


def test_a_run_killed_after_its_last_checkpoint_does_no_step_again(uninterrupted, dropout_model, speech, tmp_path):
    """All steps are done, but the adapter is not written yet: resuming does no further step."""
    run = tmp_path / "run"
    shutil.copytree(uninterrupted["lora"].run, run)
    shutil.rmtree(run / "adapter")
    facts = runs.read_json(run / "run.json")
    facts.pop("finished")
    runs.write_json(run / "run.json", facts)
    result = train(resume=run)
    assert result.facts["steps"] == STEPS
    assert_same_weights(run, uninterrupted["lora"].run, "lora")
    assert [path.name for path in runs.complete_checkpoints(run)][-1] == f"checkpoint-{STEPS}"


def test_a_run_killed_before_its_first_checkpoint_starts_again_and_ends_the_same(
    uninterrupted, dropout_model, speech, tmp_path
):
    run = tmp_path / "run"
    assert run_child(child, At(1), {"recipe": recipe_of("lora", dropout_model, speech), "output": run}) < 0
    assert not runs.complete_checkpoints(run)
    train(resume=run)
    assert_same_weights(run, uninterrupted["lora"].run, "lora")


def test_a_resumed_run_ignores_half_written_checkpoints(uninterrupted, dropout_model, speech, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted["lora"].run, run)
    for name in ("checkpoint-6", "checkpoint-8"):
        (run / "checkpoints" / name / runs.COMPLETE).unlink()
    (run / "checkpoints" / "checkpoint-8" / "adapter_model.safetensors").write_bytes(b"half")
    (run / "checkpoints" / "checkpoint-6" / "optimizer.pt").write_bytes(b"half")
    shutil.rmtree(run / "adapter")
    facts = {key: value for key, value in runs.read_json(run / "run.json").items() if key != "finished"}
    runs.write_json(run / "run.json", facts)
    assert runs.complete_checkpoints(run)[-1].name == "checkpoint-4"
    steps = []

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            steps.append(state.global_step)

    train(resume=run, callbacks=[Count()])
    assert steps == [5, 6, 7, 8]
    assert_same_weights(run, uninterrupted["lora"].run, "lora")


def interrupted_child(number: int, arguments: list[str], err: Path) -> None:
    """Run the command line, and send it a signal in its third step."""
    from whisper_peft.cli import commands
    from whisper_peft.training import callbacks

    multiprocessing.set_start_method("fork", force=True)
    sys.stdout = sys.stderr = err.open("w")
    at = At(3, number=number)
    callbacks.ScheduleGoesOn.on_step_end = lambda self, args, state, control, **kwargs: at.on_step_end(
        args, state, control
    )
    sys.argv = ["whisper-peft", *arguments]
    commands.main()


@pytest.mark.parametrize(("mode", "number", "code"), [("lora", signal.SIGINT, 130), ("full", signal.SIGTERM, 143)])
def test_an_interrupted_run_stores_a_checkpoint_and_resumes_to_the_same_weights(
    mode, number, code, uninterrupted, dropout_model, speech, tmp_path
):
    from whisper_peft.recipe_files import save_recipe

    run, page, err = tmp_path / "run", tmp_path / "recipe.yaml", tmp_path / "err"
    save_recipe(recipe_of(mode, dropout_model, speech), page)
    arguments = ["train", str(page), "--output", str(run), "--quiet"]
    assert run_child(interrupted_child, number, arguments, err) == code
    assert runs.complete_checkpoints(run)[-1].name == "checkpoint-3"
    last = err.read_text().strip().splitlines()[-1]
    assert last.startswith("Stopped: interrupted after step 3") and f"whisper-peft train --resume {run}" in last
    assert "Traceback" not in err.read_text()
    train(resume=run)
    assert_same_weights(run, uninterrupted[mode].run, mode)


def test_a_run_interrupted_during_the_first_scoring_can_be_resumed(dropout_model, speech, tmp_path, monkeypatch):
    """Before the first step there is nothing to save, but the run can be resumed."""
    from whisper_peft.errors import Interrupted
    from whisper_peft.training import scorer as room

    def interrupt(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("the signal did not arrive")

    recipe = tiny_recipe(dropout_model, speech, **{"train.steps": 2})
    with monkeypatch.context() as patch:
        patch.setattr(room, "transcribe_rows", interrupt)
        with pytest.raises(Interrupted) as stop:
            train(recipe, output=tmp_path / "run")
    assert stop.value.exit_code == 143
    # The handlers are put back.
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert train(resume=tmp_path / "run").facts["steps"] == 2


def test_ctrl_c_in_a_terminal_reaches_every_process_and_prints_one_line(dropout_model, speech, tmp_path):
    """The workers that read audio also get the signal, because they are in the process group of the terminal."""
    import subprocess
    import time

    from whisper_peft.recipe_files import save_recipe

    page, run = tmp_path / "recipe.yaml", tmp_path / "run"
    make_speech(tmp_path / "many", 200, seed=9)
    changes = {"data.test": str(tmp_path / "many"), "train.workers": 2, "evaluate.batch_size": 1}
    save_recipe(tiny_recipe(dropout_model, speech, **changes), page)
    child = subprocess.Popen(
        [sys.executable, "-m", "whisper_peft", "train", str(page), "--output", str(run), "--quiet"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    for _ in range(600):
        children = [file.read_text().split() for file in Path("/proc").glob(f"{child.pid}/task/*/children")]
        # Both workers that read audio run, so the first scoring has begun.
        if run.exists() and sum(map(len, children)) >= 2:
            break
        time.sleep(0.1)
    # By now no process is forked any more, and the 200 clips are not all scored.
    time.sleep(1.5)
    os.killpg(child.pid, signal.SIGINT)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 130
    assert len(err.strip().splitlines()) == 1 and err.startswith("Stopped: interrupted"), err


def test_a_resumed_run_may_raise_its_steps_and_change_nothing_else(uninterrupted, dropout_model, speech, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted["lora"].run, run)
    with pytest.raises(UserError, match=r"finished already; raise --steps above 8"):
        train(resume=run)
    with pytest.raises(UserError, match=r"train.learning_rate: cannot change"):
        train(resume=run, changes={"train.learning_rate": 1.0})
    with pytest.raises(UserError, match=r"can only be raised on resume; the run has 8"):
        train(resume=run, changes={"train.steps": 7})
    with pytest.raises(UserError, match=r"not a run folder"):
        train(resume=tmp_path / "nowhere")
    said = []
    result = train(resume=run, changes={"train.steps": 10}, say=said.append)
    assert result.facts["steps"] == 10
    assert any("Steps raised from 8 to 10" in line and "schedule" in line for line in said)
    rates = {
        record["step"]: record["learning_rate"] for record in runs.read_jsonl(run / "metrics.jsonl") if "loss" in record
    }
    assert sorted(rates) == list(range(1, 11))
    # Up to the eighth step the rates follow the old plan; then they are as if ten steps had been planned.
    plan = [1 - step / 8 for step in range(8)] + [1 - step / 10 for step in (8, 9)]
    assert [rates[step] for step in range(1, 11)] == pytest.approx([0.003 * share for share in plan])
    assert not [path for path in run.iterdir() if path.name.startswith(".")]
    with pytest.raises(UserError, match=r"finished already; raise --steps above 10"):
        train(resume=run)


def test_a_run_is_not_resumed_on_changed_data(dropout_model, tmp_path):
    for number, name in enumerate(("train", "eval", "test")):
        make_speech(tmp_path / "speech" / name, 4, seed=number)
    run = tmp_path / "run"
    changes = {"train.steps": 2, "train.batch_size": 2, "evaluate.compare_clips": 0, "evaluate.every_steps": 1}
    recipe = tiny_recipe(dropout_model, tmp_path / "speech", **changes)
    train(recipe, output=run)
    table = tmp_path / "speech" / "train" / "metadata.csv"
    table.write_text(table.read_text(encoding="utf-8").replace(" 0 3", " 0 9"), encoding="utf-8")
    with pytest.raises(UserError, match=r"data.train has changed"):
        train(resume=run, changes={"train.steps": 4})
