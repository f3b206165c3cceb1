"""Every command keeps its promises about --json, --quiet, --set and exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_tiny_model, tiny_recipe

from whisper_peft.cli import commands
from whisper_peft.recipe_files import save_recipe

QUICK = {"train.steps": 1, "train.batch_size": 2, "evaluate.compare_clips": 2, "evaluate.max_clips": 1}


@pytest.fixture
def call(capfd, monkeypatch):
    """The command line in this process: (arguments) -> (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["whisper-peft", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            commands.main()
        out, err = capfd.readouterr()
        return stop.value.code, out, err

    return run


@pytest.fixture(scope="module")
def page(tiny_model, speech, tmp_path_factory) -> Path:
    """A recipe file that trains one step. Beside it lies a model with the window of 30 s."""
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    make_tiny_model(path.parent / "30s", window_s=30, max_target_positions=448)
    save_recipe(tiny_recipe(tiny_model, speech, **QUICK), path)
    return path


def calls_of(page: Path, run: Path, speech: Path, folder: Path) -> dict[str, list]:
    """Return one working call of every command, which writes into `folder`."""
    return {
        "check": ["check", speech / "test", "--language", "hi"],
        "train": ["train", page, "--output", folder / "run"],
        "plan": ["plan", page, "--gpu-memory", "8GB"],
        "evaluate": ["evaluate", run, speech / "test", "--max-clips", 2, "--output", folder / "report"],
        "merge": ["merge", run, folder / "merged", "--dtype", "float32"],
        "export": [
            *("export", page.parent / "30s", folder / "exported", "--format", "ctranslate2"),
            *("--clips", 5, "--check", speech / "test", "--language", "hi"),
        ],
        "transcribe": ["transcribe", run, speech / "test" / "0.wav", speech / "test" / "1.wav"],
        "demo": ["demo", run],
        "publish": ["publish", run, "me/whisper-test", "--base", "openai/whisper-tiny", "--dry-run"],
        "recipes list": ["recipes", "list"],
        "recipes show": ["recipes", "show", "quickstart"],
        "recipes copy": ["recipes", "copy", "quickstart", folder / "mine.yaml"],
    }


EXPECTED = {
    "check": {"sources", "findings", "errors", "warnings", "checked", "seconds"},
    "train": {"run", "mode", "steps", "before", "after", "final", "best_step", "versions"},
    "plan": {"device", "memory", "fits", "micro_batch_s", "clips_at_once", "hours_per_epoch", "remedy", "trainable"},
    "evaluate": {"model", "source", "wer", "cer", "wer_normalized", "wer_interval", "reached_limit", "left_out"},
    "merge": {"output", "dtype", "logit_gap", "logit_limit", "passed", "checked_on"},
    "export": {"output", "format", "quantization", "runtime", "size", "proved", "comparisons", "notes"},
    "transcribe": {"transcripts"},
    "demo": {"url", "share_url", "model", "compare", "language"},
    "publish": {"repo", "kind", "base", "files", "card", "url", "commit", "card_kept", "dry_run"},
    "recipes list": {"recipes"},
    "recipes show": {"model", "data", "train"},
    "recipes copy": {"recipe"},
}


def test_every_option_says_what_it_does():
    for name, command in commands.cli.commands.items():
        for inner in getattr(command, "commands", {"": command}).values():
            for parameter in inner.params:
                if parameter.param_type_name == "option":
                    assert parameter.help and parameter.help.rstrip(".)")[0].strip(), f"{name}: {parameter.opts}"


def test_every_command_is_among_the_calls_that_are_tested(page, lora_run, speech, tmp_path):
    """Whoever adds a command must add it to calls_of and EXPECTED."""
    names = set()
    for name, command in commands.cli.commands.items():
        names |= {f"{name} {sub}" for sub in command.commands} if hasattr(command, "commands") else {name}
    assert names == set(calls_of(page, lora_run, speech, tmp_path)) == set(EXPECTED)


def test_a_plan_that_does_not_fit_is_shown_and_exits_with_1(call):
    large = ["plan", "--model", "openai/whisper-large-v3", "--mode", "full", "--gpu-memory", "8GB"]
    code, out, err = call(*large)
    assert code == 1 and "does not fit" in out and "optimizer" in out
    assert re.fullmatch(r"Error: openai/whisper-large-v3: 2\d\.\d GB do not fit into 8\.0 GB; try --mode lora.*\n", err)
    code, out, _ = call(*large, "--json")
    assert code == 1 and json.loads(out)["fits"] is False
    code, out, err = call(*large[:3], "--mode", "lora", "--quantize", "4bit", "--gpu-memory", "8GB")
    assert code == 0 and "fits" in out and not err


def test_the_plan_matrix_has_every_published_size_and_imports_no_torch(run_cli):
    done = run_cli("plan", "--matrix", "--gpu-memory", "8GB", "--json")
    matrix = json.loads(done.stdout)
    assert len(matrix["peaks"]) == 12 and set(matrix["peaks"]["base"]) == {"full", "lora", "lora 8bit", "lora 4bit"}
    for size in ("peaks", "smallest"):
        for row in matrix[size].values():
            assert row["full"] > row["lora"] > row["lora 8bit"] > row["lora 4bit"] > 0
    arguments = [sys.executable, "-X", "importtime", "-m", "whisper_peft", "plan", "--matrix"]
    imported = subprocess.run(arguments, capture_output=True, text=True).stderr
    assert "whisper_peft.training.planning" in imported and not re.search(r"\| +(torch|transformers|peft)\n", imported)


@pytest.mark.parametrize("name", list(EXPECTED))
def test_every_command_prints_only_its_result(
    name, call, page, lora_run, speech, tmp_path, brief_demo, any_proof, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    plain, as_json, both = (tmp_path / kind for kind in ("plain", "json", "both"))
    for folder in (plain, as_json, both):
        folder.mkdir()

    code, out, err = call(*calls_of(page, lora_run, speech, plain)[name], "--quiet")
    assert code == 0 and out.strip()
    quiet = [line for line in err.splitlines() if not re.match(r"^(\r?Loading weights|\r?Writing model)", line)]
    # The progress bars of transformers are off only in a separate process, which a later test starts.
    assert not "".join(quiet).strip()

    code, out, err = call(*calls_of(page, lora_run, speech, as_json)[name], "--json")
    assert code == 0
    # The output is one JSON object and nothing else.
    content = json.loads(out)
    assert isinstance(content, dict) and EXPECTED[name] <= content.keys()
    if name in ("train", "merge", "export"):
        # Progress goes to stderr.
        assert err.strip()

    code, out, _ = call(*calls_of(page, lora_run, speech, both)[name], "--json", "--quiet")
    assert code == 0 and json.loads(out).keys() == content.keys()

    # Commands that write refuse to overwrite.
    if name in ("train", "evaluate", "merge", "export", "recipes copy"):
        code, out, err = call(*calls_of(page, lora_run, speech, plain)[name])
        assert (code, out) == (1, "")
        assert one_error(err).count("exists already")
        if name == "train":
            assert f"whisper-peft train --resume {plain / 'run'} continues it" in err

    arguments = calls_of(page, lora_run, speech, tmp_path)[name]
    code, out, err = call(*arguments, "--no-such-option")
    assert code == 2 and not out and "--no-such-option" in err and "Traceback" not in err
    code, out, err = call(*arguments, "--help")
    assert code == 0 and "--json" in out and "--quiet" in out
    assert ("--set" in out) == (name in ("train", "plan"))


def one_error(err: str) -> str:
    lines = [line for line in err.splitlines() if not re.match(r"^(\r?Loading weights|\r?Writing model)", line)]
    assert len(lines) == 1 and lines[0].startswith("Error: "), err
    return lines[0]


def mistakes(page: Path, run: Path, speech: Path, folder: Path) -> list[tuple[list, str]]:
    """Return calls with mistakes that a user can correct, each with the message that names the mistake."""
    wav = speech / "test" / "0.wav"
    return [
        (["train", "quickstrat"], r"no such recipe. Did you mean 'quickstart'\?"),
        (["train", page, "--set", "train.learning_rat=1"], r"--set train.learning_rat: unknown key. Did you mean"),
        (["train", page, "--set", "train.steps"], r"expected key=value"),
        (["train", page, "--set", "train.steps=many"], r"train.steps: expected int"),
        (["train", page, "--set", "features.window=wide"], r"features.window: 'wide' is not among full, condensed"),
        (["train", page, "--seed", "-1"], r"train.seed: expected 0 or more"),
        (["train", page, "--set", "train.workers=-1"], r"train.workers: expected 0 or more"),
        (["train", page, "--set", "train.warmup_steps=-3"], r"train.warmup_steps: expected 0 or more"),
        (["train", page, "--set", "train.report_to=[nonsense]"], r"train.report_to: 'nonsense' is not known"),
        (["train", page, "--output", page / "run"], r"cannot be made in"),
        (["evaluate", run, speech / "test", "--output", page / "report"], r"cannot be made in"),
        (["merge", run, page / "out"], r"cannot be made in"),
        (["recipes", "copy", "quickstart", folder / "nowhere" / "x.yaml"], r"cannot be written"),
        (["train", page, "--mode", "full", "--quantize", "8bit"], r"train.quantize: 8bit weights cannot be trained"),
        (
            ["train", page, "--set", "train.optimizer=paged_adamw_8bit"],
            r"paged_adamw_8bit pages between",
        ),
        (["plan", page, "--gpu-memory", "much"], r"--gpu-memory much: expected a size, as 8GB"),
        (["train", page, "--language", "klingon"], r"--language-token"),
        (["train", page, "--model", folder / "nothing"], r"no such folder"),
        (["train", "--train", folder / "nothing", "--language", "hi"], r"no such file or folder"),
        (["train", "--resume", folder], r"not a run folder"),
        (["evaluate", folder / "nothing", speech / "test"], r"no such folder"),
        (["evaluate", run, folder / "nothing"], r"no such file or folder"),
        (["evaluate", run, wav], r"no segment times beside it"),
        (["merge", folder / "nothing", folder / "out"], r"no such folder"),
        (["check", folder / "nothing"], r"no such file or folder"),
        (["check", speech / "test", "--language", "klingon"], r"--language-token"),
        (["check", wav], r"no segment times beside it"),
        (["transcribe", run, folder / "nothing.wav"], r"no such file"),
        (["transcribe", run, page], r"cannot be read as audio"),
        (["recipes", "show", "nothing"], r"no such recipe"),
        (["recipes", "copy", "nothing", folder / "mine.yaml"], r"no such recipe"),
    ]


def test_a_users_mistake_prints_one_line_and_exits_with_1(call, page, lora_run, speech, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, message in mistakes(page, lora_run, speech, tmp_path):
        code, out, err = call(*arguments, "--json")
        assert (code, out) == (1, ""), arguments
        assert re.search(message, one_error(err)), (arguments, err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["train"],
        ["train", "--mode", "half", "quickstart"],
        ["train", "--steps", "many", "quickstart"],
        ["train", "--resume", "run", "--output", "other"],
        ["train", "quickstart", "--resume", "run"],
        ["evaluate"],
        ["evaluate", "model"],
        ["evaluate", "model", "speech", "--beams", "0"],
        ["merge", "run"],
        ["evaluate", "model", "speech", "--batch-size", "none"],
        ["evaluate", "model", "speech", "--max-clips", "0"],
        ["evaluate", "model", "speech", "--window", "wide"],
        ["train", "quickstart", "--window", "wide"],
        ["check"],
        ["check", "quickstart", "speech"],
        ["transcribe", "model"],
        ["recipes", "show"],
        ["recipes", "nonsense"],
    ],
)
def test_a_wrong_command_line_exits_with_2(arguments, call):
    code, out, err = call(*arguments)
    assert code == 2 and not out and "Error: " in err and "Traceback" not in err


def test_a_bug_prints_one_line_and_keeps_its_traceback_in_a_file(monkeypatch, lora_run, speech, tmp_path, capsys):
    from whisper_peft.evaluation import scoring

    def broken(*arguments, **options):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(scoring, "evaluate", broken)
    monkeypatch.setattr(sys, "argv", ["whisper-peft", "evaluate", str(lora_run), str(speech / "test")])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        commands.main()
    assert stop.value.code == commands.BUG
    (kept,) = tmp_path.glob("whisper-peft-*.txt")
    assert "in broken" in kept.read_text()
    assert capsys.readouterr().err.count("\n") == 1


def test_set_options_and_flags_reach_the_recipe(call, page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(
        "train",
        page,
        "--dry-run",
        "--json",
        "--set",
        "lora.rank=2",
        "--set",
        "train.learning_rate=2e-3",
        "--set",
        "data.text.lowercase=true",
        "--epochs",
        2,
        "--batch-size",
        6,
        "--mode",
        "full",
        "--seed",
        5,
    )
    recipe = json.loads(out)
    assert code == 0 and recipe["lora"]["rank"] == 2 and recipe["train"]["learning_rate"] == 0.002
    assert recipe["data"]["text"]["lowercase"] is True
    # Two epochs of 12 clips in steps of 6 are 4 steps.
    assert recipe["train"]["steps"] == 4 and recipe["train"]["batch_size"] == 6
    assert recipe["train"]["mode"] == "full" and recipe["train"]["seed"] == 5
    code, out, _ = call("train", page, "--dry-run", "--set", "train.steps=7", "--steps", 3)
    # A flag overrides --set.
    assert code == 0 and re.search(r"^  steps: 3$", out, re.M)
    assert not list(tmp_path.iterdir())


def test_the_default_output_names_model_and_mode_and_is_never_an_existing_folder(call, page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "tiny-full-1").mkdir(parents=True)
    code, out, _ = call("train", page, "--mode", "full", "--quiet", "--set", "evaluate.compare_clips=0")
    assert code == 0 and (tmp_path / "runs" / "tiny-full-2" / "model").is_dir()
    assert not list((tmp_path / "runs" / "tiny-full-1").iterdir())
    assert "whisper-peft evaluate runs/tiny-full-2 " in out
    code, out, _ = call("train", page, "--quiet", "--set", "evaluate.compare_clips=0")
    assert code == 0 and (tmp_path / "runs" / "tiny-1" / "adapter").is_dir()
    assert "whisper-peft merge runs/tiny-1 runs/tiny-1-merged" in out


def test_the_next_commands_that_train_prints_run(call, tiny_model, speech, tmp_path, monkeypatch):
    """The commands that train prints must also work when the columns have names of their own."""
    monkeypatch.chdir(tmp_path)
    sources = {}
    for name in ("train", "eval", "test"):
        lines = (speech / name / "metadata.csv").read_text(encoding="utf-8").splitlines()[1:]
        rows = [line.split(",", 1) for line in lines]
        content = ["ton,worte", *(f"{speech / name / file},{text}" for file, text in rows)]
        (tmp_path / f"{name}.csv").write_text("\n".join(content), encoding="utf-8")
        sources[f"data.{name}"] = f"{name}.csv"
    save_recipe(
        tiny_recipe(
            tiny_model,
            speech,
            **{
                **QUICK,
                **sources,
                "data.train": ["train.csv"],
                "data.audio_column": "ton",
                "data.text_column": "worte",
            },
        ),
        tmp_path / "own.yaml",
    )
    code, out, err = call("train", "own.yaml", "--output", "run", "--quiet")
    assert code == 0, err
    assert "On 2 test clips:" in out and "before" in out and "after" in out
    following = [line.split()[1:] for line in out.partition("Next:")[2].splitlines() if line.strip()]
    assert [words[0] for words in following] == ["evaluate", "merge", "transcribe"]
    for words in following:
        code, out, err = call(*words, "--quiet")
        assert code == 0 and out.strip(), err


def test_resume_continues_only_with_more_steps_and_no_other_change(call, page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("train", page, "--output", "run", "--quiet")[0] == 0
    code, _, err = call("train", "--resume", "run")
    assert code == 1 and "finished already; raise --steps above 1" in err
    code, _, err = call("train", "--resume", "run", "--seed", 7)
    assert code == 1 and "train.seed: cannot change" in err
    code, _, err = call("train", "--resume", "run", "--epochs", 2)
    assert code == 1 and "train.epochs: cannot change" in err
    code, out, _ = call("train", "--resume", "run", "--steps", 2, "--json")
    assert code == 0 and json.loads(out)["steps"] == 2


def test_commands_in_separate_processes_print_nothing_but_their_result(run_cli, page, lora_run, speech, tmp_path):
    """Progress bars, library warnings, tracebacks and buffering can only be seen in a separate process."""
    done = run_cli("train", page, "--output", tmp_path / "run", "--json", "--quiet", cwd=tmp_path)
    assert done.returncode == 0 and EXPECTED["train"] <= json.loads(done.stdout).keys()
    assert done.stderr == ""
    done = run_cli("merge", lora_run, tmp_path / "run", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "") and len(done.stderr.splitlines()) == 1
    done = run_cli("transcribe", lora_run, speech / "test" / "0.wav", "--quiet", cwd=tmp_path)
    assert done.returncode == 0 and len(done.stdout.splitlines()) <= 1 and done.stderr == ""
