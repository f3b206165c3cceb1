"""The commands and the code of the README run as printed; only paths are replaced."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from conftest import QUICKSTART, ROOT, make_speech, make_wave

from whisper_peft.training.defaults import resolve

# These lines are not run here, because .ci/run installs the package.
SET_UP = "pip install"


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return the fenced blocks of a page as (language, text)."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    """Return the lines of the bash blocks of a page."""
    return [line for language, text in blocks(page) if language == "bash" for line in text.splitlines() if line]


@pytest.fixture
def reader_folder(tmp_path, tiny_model, brief_demo, any_proof, monkeypatch) -> Path:
    """Make the folder of a reader who follows a page, with every file that the pages name."""
    for seed, (split, clips) in enumerate({"train": 12, "validation": 3, "test": 3}.items()):
        make_speech(tmp_path / "my-speech" / split, clips, seed=seed)
    release = tmp_path / "cv-corpus" / "hi"
    (release / "clips").mkdir(parents=True)
    for split, name in {"train": "train", "validation": "dev", "test": "test"}.items():
        with (tmp_path / "my-speech" / split / "metadata.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        lines = ["client_id\tpath\tsentence\tlocale"]
        for row in rows:
            shutil.copy(
                tmp_path / "my-speech" / split / row["file_name"], release / "clips" / f"{name}-{row['file_name']}"
            )
            lines.append(f"{name}\t{name}-{row['file_name']}\t{row['transcription']}\thi")
        (release / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "street-noise").mkdir()
    soundfile.write(tmp_path / "street-noise" / "cars.wav", make_wave(2.0, 9), 16000)
    soundfile.write(tmp_path / "recording.wav", make_wave(1.0), 16000)
    monkeypatch.chdir(tmp_path)

    # Worker processes that read audio would take seconds to start.
    def resolve_without_workers(recipe, **facts):
        recipe, remarks = resolve(recipe, **facts)
        return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, workers=0)), remarks

    monkeypatch.setattr("whisper_peft.training.prepare.resolve", resolve_without_workers)
    return tmp_path


def with_paths(text: str, tiny_model: Path) -> str:
    """Put the tiny model in the place of a real Whisper, which is too large for a test."""
    return text.replace("openai/whisper-small", str(tiny_model))


def run_line(line: str, capsys) -> str:
    """Run one `whisper-peft …` line in this process, as its entry point would; return its stdout."""
    from whisper_peft.cli.commands import main

    program, *arguments = shlex.split(line)
    assert program == "whisper-peft", line
    before, sys.argv = sys.argv, [program, *arguments]
    try:
        main()
    except SystemExit as end:
        shown = capsys.readouterr()
        assert not end.code, f"{line}\n{shown.err}"
        return shown.out
    finally:
        sys.argv = before
    raise AssertionError(f"{line}: did not exit")


def run_page(page: Path, tiny_model: Path, capsys) -> str:
    """Run the bash and Python blocks of a page in order in one process; write its yaml and json blocks to files."""
    names: dict[str, object] = {}
    output = []
    for language, text in blocks(page):
        text = with_paths(text, tiny_model)
        if language == "bash":
            output += [run_line(line, capsys) for line in text.splitlines() if line and not line.startswith(SET_UP)]
        elif language == "python":
            exec(compile(text, str(page), "exec"), names)
            output.append(capsys.readouterr().out)
        elif language == "json":
            Path("manifest.jsonl").write_text(text, encoding="utf-8")
        elif language == "yaml" and text.startswith("# my.yaml"):
            Path("my.yaml").write_text(text, encoding="utf-8")
    return "\n".join(output)


def test_the_code_and_commands_of_the_readme_run(reader_folder, tiny_model, capsys):
    output = run_page(ROOT / "README.md", tiny_model, capsys)
    assert "WER" in output and "small-hindi-full" in output and "my.yaml" in output
    report = json.loads((reader_folder / "hindi-merged" / "merge_report.json").read_text())
    assert report["passed"]
    assert len((reader_folder / "hindi-report" / "transcripts.jsonl").read_text().splitlines()) == 3


def test_the_readme_begins_with_the_promised_set_up_commands():
    command_lines = commands(ROOT / "README.md")
    assert command_lines[0] == "pip install -e . && whisper-peft train quickstart"
    assert command_lines[1] == 'pip install -e ".[test]" && pytest'


def test_the_first_command_of_the_readme_trains(run_cli, tmp_path):
    """The command runs as printed, but with two steps; the slow test below and .ci/run run all of its steps."""
    done = run_cli(*shlex.split("train quickstart"), "--set", "train.steps=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    suggested = [line.strip() for line in done.stdout.splitlines() if line.startswith("  whisper-peft ")]
    assert [line.split()[1] for line in suggested] == ["evaluate", "merge", "transcribe"]
    assert (tmp_path / "runs").is_dir()


@pytest.mark.slow
def test_the_quickstart_learns_with_all_weights(run_cli, tmp_path):
    """The default mode, LoRA, is trained by .ci/run itself, from the wheel."""
    done = run_cli("train", "quickstart", "--mode", "full", "--json", cwd=tmp_path, timeout=1800)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["before"]["wer"] > 0.8
    assert facts["after"]["wer"] < 0.2


def test_every_relative_link_leads_to_a_file():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_no_page_has_a_path_of_a_machine():
    texts = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*")]
    texts += (ROOT / "recipes").glob("*")
    for page in texts:
        if page.is_file() and page.suffix != ".png":
            text = page.read_text(encoding="utf-8")
            machine_paths = re.findall(r"/(?:work|root|home|tmp|Users)/\S*|pypi\.org|files\.pythonhosted", text)
            assert not machine_paths, f"{page.name}: {machine_paths}"


def test_the_files_of_the_quickstart_are_at_most_8_mib():
    size = sum(
        file.stat().st_size for file in QUICKSTART.rglob("*") if file.is_file() and "__pycache__" not in file.parts
    )
    assert size <= 8 * 2**20


def test_help_names_every_command_of_the_readme():
    done = subprocess.run(
        [sys.executable, "-m", "whisper_peft", "--help"], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    used = {
        shlex.split(line.rpartition("&& ")[2])[1] for line in commands(ROOT / "README.md") if "whisper-peft" in line
    }
    assert used <= set(re.findall(r"^  (\w+) ", done.stdout, re.MULTILINE))
