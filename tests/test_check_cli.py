"""check reports faults by its exit code, --fix writes a clean manifest, and train stops at shifted texts."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT, tiny_recipe
from spoken import make_spoken, write_manifest
from test_checking import found

from whisper_peft import UserError, check, load_audio, load_source, prepare, train
from whisper_peft.checking.findings import KINDS
from whisper_peft.cli import commands
from whisper_peft.recipe_files import save_recipe


@pytest.fixture
def call(capfd, monkeypatch):
    """The command line in this process: (arguments) -> (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["whisper-peft", "check", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            commands.main()
        return stop.value.code, *capfd.readouterr()

    return run


def test_the_exit_code_tells_errors_from_a_clean_set_and_from_a_check_that_failed(call, tmp_path):
    rows = make_spoken(tmp_path, 4)
    good = write_manifest(tmp_path / "good.jsonl", rows)
    others = make_spoken(tmp_path, 4, seed=1, name="b{}")
    bad = write_manifest(tmp_path / "bad.jsonl", [*others, {"audio": "gone.wav", "text": "घर"}])
    code, out, err = call(good, "--language", "hi", "--quiet")
    assert code == 0 and "No errors, no warnings" in out and not err
    code, out, _ = call(good, bad, "--language", "hi", "--json")
    report = json.loads(out)
    assert code == 3 and report["errors"] == 1 and found(report, "error") == {"missing": {"gone.wav"}}
    assert [source["name"] for source in report["sources"]] == [str(good), str(bad)]
    code, out, _ = call(bad, "--language", "hi")
    assert code == 3 and "error: missing, 1 clip" in out and "bad.jsonl:5" in out and "1 clip with errors" in out
    code, out, err = call(tmp_path / "nothing")
    assert (code, out) == (1, "") and err.startswith("Error: ") and len(err.splitlines()) == 1
    for extra in (["--html", good], ["--fix", good]):
        code, out, err = call(good, *extra)
        assert (code, out) == (1, "") and "exists already" in err
    assert call(good, "quickstart")[0] == 2
    page = tmp_path / "page.html"
    code, out, _ = call(bad, "--no-audio", "--language", "hi", "--html", page)
    assert code == 3 and "Looked at headers and texts" in out and "gone.wav" in page.read_text(encoding="utf-8")


def test_a_recipe_is_checked_split_by_split(call, tiny_model, tmp_path):
    for seed, name in enumerate(("train", "more", "eval")):
        rows = make_spoken(tmp_path, 5, seed=seed, name=name + "{}")
        rows[0]["text"] = "पानी लाओ"
        write_manifest(tmp_path / f"{name}.jsonl", rows)
    settings = {
        "data.train": [str(tmp_path / "train.jsonl"), {"source": str(tmp_path / "more.jsonl"), "weight": 0.5}],
        "data.eval": str(tmp_path / "eval.jsonl"),
        "data.test": None,
        "model.language": "hi",
    }
    save_recipe(tiny_recipe(tiny_model, tmp_path, **settings), tmp_path / "r.yaml")
    _, out, _ = call(tmp_path / "r.yaml", "--json", "--no-audio")
    report = json.loads(out)
    assert [(entry["split"], entry["clips"]) for entry in report["sources"]] == [
        ("train", 5),
        ("train", 5),
        ("eval", 5),
    ]
    # Tokens are counted with the tokenizer of the recipe's model; its weights are not read.
    assert report["checked"]["tokens"] == "counted"
    seen = found(report)
    assert seen["shared-text"] == {"train0.wav", "eval0.wav"} and seen["duplicate-text"] == {"more0.wav"}
    assert all(
        seconds > 3
        for entry in report["findings"]
        if entry["kind"] == "over-window"
        for seconds in (clip["duration_s"] for clip in entry["clips"])
    )
    code, out, _ = call("quickstart", "--no-audio")
    assert code == 0 and "No errors" in out


def test_a_fixed_manifest_has_no_errors_and_the_source_stays_as_it_was(tmp_path):
    folder = tmp_path / "speech"
    rows = make_spoken(folder, 60)
    for row in rows:
        row |= {"language": "hi", "prompt": "पहले"}
    right = {row["audio"]: row["text"] for row in rows}
    for row, text in zip(rows[20:45], [row["text"] for row in rows[21:45]] + [rows[20]["text"]], strict=True):
        row["text"] = text
    rows[0]["text"] = f"<b>{rows[0]['text']}</b>\u200b"
    rows[1]["text"] = ""
    rows[2]["audio"] = "gone.wav"
    rows[3]["end_s"] = 1.0
    rows[3]["segments"] = [{"start": 0.0, "end": 1.0, "text": "घर [x]"}]
    rows[3]["text"] = "घर [x]"
    rows[4]["text"] = unicodedata.normalize("NFD", "Café ") + rows[4]["text"]
    rows.append(dict(rows[5]))
    # The missing file lies within the shifted texts, which makes the right pairs behind it uncertain.
    (folder / rows[32]["audio"]).unlink()
    source = write_manifest(folder / "all.jsonl", rows)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    out = tmp_path / "clean.jsonl"
    report = check(str(source), fix=out, prompt_column="prompt")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert (report.fixed.kept, report.fixed.manifests) == (len(lines), [str(out)])
    assert report.as_dict()["fixed"]["left_out"] == report.fixed.left_out
    texts = {Path(line["audio"]).name: line["text"] for line in lines}
    # Each file is listed once.
    assert len(texts) == len(lines)
    assert not {"clip001.wav", "gone.wav"} & texts.keys()
    for name, text in texts.items():
        if name not in ("clip003.wav", "clip004.wav"):
            assert text == right[name]
    assert texts["clip003.wav"] == "घर" and texts["clip004.wav"].startswith("Café ")
    assert len([name for name in texts if 20 <= int(name[4:7]) < 45]) >= 15
    [piece] = [line for line in lines if line["audio"].endswith("clip003.wav")]
    assert piece["segments"] == [{"start": 0.0, "end": 1.0, "text": "घर"}] and piece["end_s"] == 1.0
    assert all(Path(line["audio"]).is_absolute() and line["language"] == "hi" and line["speaker_id"] for line in lines)
    assert lines[0]["prompt"] == "पहले"
    fixed_report = check(str(out))
    assert not found(fixed_report, "error"), fixed_report.findings
    changes = [json.loads(line) for line in (tmp_path / "clean.changes.jsonl").read_text("utf-8").splitlines()]
    assert {entry["row"] for entry in changes if "left_out" in entry} == set(range(61)) - {
        row for row, entry in enumerate(rows[:60]) if entry["audio"] in texts
    }
    assert changes[0] == {
        "source": str(source),
        "row": 0,
        "place": "all.jsonl:1",
        "changed": "text",
        "before": rows[0]["text"],
        "after": right["clip000.wav"],
    }
    with pytest.raises(UserError, match="exists already"):
        check(str(source), fix=out)
    with pytest.raises(UserError, match="2 sources make as many manifests; name a folder"):
        check([str(source), str(source)], audio=False, fix=tmp_path / "x.jsonl")


def test_fix_writes_the_sound_inside_parquet_into_files(tmp_path):
    import datasets

    rows = make_spoken(tmp_path / "s", 4)
    sounds = [(tmp_path / "s" / row["audio"]).read_bytes() for row in rows]
    table = {
        "audio": [{"bytes": sound, "path": None} for sound in sounds],
        "text": [f"{row['text']} <x>" for row in rows],
    }
    datasets.Dataset.from_dict(table).to_parquet(str(tmp_path / "clips.parquet"))
    with pytest.raises(UserError, match="name a folder to write it into"):
        check(str(tmp_path / "clips.parquet"), language="hi", fix=tmp_path / "clean.jsonl")
    assert not list(tmp_path.glob("clean*"))
    report = check(str(tmp_path / "clips.parquet"), language="hi", fix=tmp_path / "clean")
    fixed_rows = load_source(report.fixed.manifests[0])
    assert [row.text for row in fixed_rows] == [row["text"] for row in rows]
    assert [Path(row.audio).read_bytes() for row in fixed_rows] == sounds


def test_train_reports_findings_and_stops_at_shifted_texts(tiny_model, tmp_path):
    rows = make_spoken(tmp_path, 60)
    rows[50]["audio"] = "gone.wav"
    texts = [row["text"] for row in rows]
    source = str(write_manifest(tmp_path / "good.jsonl", rows))
    for row, text in zip(rows[10:40], [*texts[11:40], texts[10]], strict=True):
        row["text"] = text
    moved = str(write_manifest(tmp_path / "moved.jsonl", rows))
    settings = {"data.eval": None, "data.test": None, "train.steps": 1, "evaluate.compare_clips": 0}
    # Half of the clips are longer than the tiny model's window of 3 s.
    settings["data.max_left_out"] = 1.0
    said: list[str] = []
    prepare(tiny_recipe(tiny_model, tmp_path, **settings, **{"data.train": [source]}), say=said.append)
    assert any("error: missing, 1 clip, as" in line and "gone.wav" in line for line in said)
    assert not any("note" in line.lower() and "duplicate" in line for line in said)
    recipe = tiny_recipe(tiny_model, tmp_path, **settings, **{"data.train": [moved]})
    with pytest.raises(UserError, match=r"data.train: .*texts of \d+ are moved by \+1.*--set data.allow_shift=true$"):
        train(recipe, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    said.clear()
    prepare(recipe, changes={"data.allow_shift": True}, say=said.append)
    assert any("shifted-texts" in line for line in said)


def test_every_shared_folder_can_be_checked(shared, tmp_path, call):
    data = shared / "data"
    packed = tmp_path / "te.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(data / "common_voice_te" / "te", "cv-corpus/te")
    for source, language, clips in (
        (f"{data / 'common_voice_te' / 'te'}:other", None, 119),
        (f"{packed}:other", None, 119),
        (str(data / "webm"), "ml", 8),
        (str(data / "longform" / "ml_vasanavikruthi.ogg"), "ml", None),
        (f"{data / 'hindi_tts'}:test", "hi", 90),
    ):
        report = check(source, language=language)
        assert report.errors == 0, (source, report.findings)
        assert clips in (None, report.sources[0].clips) and report.checked.audio > 5
    story = data / "longform" / "en_0110_a-tiny-seed-the-story-of-wangari-maathai.mp3"
    code, _, err = call(story)
    assert code == 1 and "no segment times beside it" in err


def test_the_malayalam_splits_give_few_false_warnings(shared):
    """Real speech gives no errors; warnings are for mostly silent clips and for sentences that the splits do share."""
    data = shared / "data" / "malayalam"
    report = check([f"{data}:{split}" for split in ("train", "validation", "test")])
    assert report.errors == 0
    counts = {finding.kind: finding.count for finding in report.findings if finding.severity == "warning"}
    assert counts.pop("shared-text") < 110 and counts.pop("too-little-text") <= 5 and not counts


def poison(source: Path, folder: Path) -> tuple[Path, dict[str, set[str]], dict[str, str]]:
    """Plant 34 faults of 17 kinds in Malayalam's training clips, shift 20 texts by one, and pair 60 files by letters.

    Returns:
        The manifest, kind -> files it was planted in, and file -> what is said in it.
    """
    with (source / "metadata.csv").open(encoding="utf-8") as file:
        rows = [
            {
                "audio": str(source / row["file_name"]),
                "text": row["transcription"],
                "speaker_id": row["speaker_id"],
                "language": "ml",
            }
            for row in csv.DictReader(file)
        ]
    planted: dict[str, set[str]] = {}
    places = iter(range(5, 400, 7))
    spoken_in = {Path(row["audio"]).name: row["text"] for row in rows}

    def plant(kind: str, change, wave=None, rate_hz: int = 16000) -> None:
        for turn in range(2):
            row = rows[next(places)]
            old = load_audio(row["audio"])
            if wave is not None:
                row["audio"] = str(folder / f"{kind}-{turn}.wav")
                soundfile.write(row["audio"], wave(old), rate_hz)
            if change is not None:
                change(row)
            planted.setdefault(kind, set()).add(Path(row["audio"]).name)
            spoken_in.setdefault(Path(row["audio"]).name, row["text"])

    def text(function):
        return lambda row: row.update(text=function(row["text"]))

    def breaks(name: str, content):
        def change(row):
            path = folder / f"{name}-{Path(row['audio']).name}"
            path.write_bytes(content(Path(row["audio"]).read_bytes()))
            row["audio"] = str(path)

        return change

    long_text = " ".join(dict.fromkeys(row["text"] for row in rows[600:660]))
    plant("missing", lambda row: row.update(audio=row["audio"] + ".gone"))
    plant("unreadable", breaks("unreadable", lambda content: b"\x00\x01nothing" * 500))
    plant("truncated", breaks("truncated", lambda content: content[: len(content) // 2]))
    plant("over-window", None, lambda old: np.tile(old, 20)[: 33 * 16000])
    plant("over-token-limit", text(lambda _: long_text))
    plant("empty-text", text(lambda _: "  "))
    plant("wrong-script", text(lambda _: "alinpazham pazhuthappol kakkaykku vayappunnu"))
    plant("broken-characters", text(lambda old: old[:3] + "\ufffd" + old[4:]))
    plant("silence", None, lambda old: np.zeros_like(old))
    plant("wrong-rate", None, lambda old: old, rate_hz=48000)
    plant("clipping", None, lambda old: np.clip(old * 30 / np.abs(old).max(), -0.99, 0.99))
    plant("low-level", None, lambda old: old * 0.015 / np.abs(old).max())
    plant("markup", text(lambda old: f"<b>{old}</b> [noise]"))
    plant("control-characters", text(lambda old: "\ufeff" + old.replace(" ", "\u200b ", 1)))
    plant("digits", text(lambda old: old + " 25"))
    plant("too-much-text", text(lambda old: " ".join(row["text"] for row in rows[660:664])))
    plant("too-little-text", text(lambda _: "ആ"))
    for kind in ("duplicate-audio", "two-texts"):
        row = rows[next(places)]
        copy = folder / f"{kind}.ogg"
        shutil.copy(row["audio"], copy)
        rows.append(
            {**row, "audio": str(copy), "text": row["text"] if kind == "duplicate-audio" else rows[670]["text"]}
        )
        planted[kind] = {copy.name} | ({Path(row["audio"]).name} if kind == "two-texts" else set())
        spoken_in[copy.name] = row["text"]
    moved = rows[420:440]
    planted["shifted-texts"] = {Path(row["audio"]).name for row in moved}
    for row, said in zip(moved, [*[row["text"] for row in moved[1:]], moved[0]["text"]], strict=True):
        row["text"] = said
    block = rows[480:540]
    letters = sorted(range(1, 61), key=str)
    said = [row["text"] for row in block]
    for number, row in enumerate(block, start=1):
        copy = folder / f"rec_{number}.ogg"
        shutil.copy(row["audio"], copy)
        row["audio"] = str(copy)
        spoken_in[copy.name] = said[number - 1]
    # The n-th file in the order of letters gets the n-th text.
    for number, text_of in zip(letters, said, strict=True):
        block[number - 1]["text"] = text_of
    planted["other-order"] = {f"rec_{n}.ogg" for n, other in zip(range(1, 61), letters, strict=True) if n != other}
    return write_manifest(folder / "poisoned.jsonl", rows), planted, spoken_in


def test_every_planted_fault_is_found_and_the_fixed_manifest_trains(shared, tiny_model, tmp_path):
    manifest, planted, spoken_in = poison(shared / "data" / "malayalam" / "train", tmp_path)
    assert sum(map(len, planted.values())) >= 30 + 20 and len(planted) >= 15 + 2
    before = manifest.read_bytes()
    clean = tmp_path / "clean.jsonl"
    recipe = tiny_recipe(
        shared / "models" / "whisper-base",
        tmp_path,
        **{
            "data.train": [str(manifest)],
            "data.eval": None,
            "data.test": None,
            "model.language": "ml",
        },
    )
    report = check(recipe=recipe, fix=clean)
    assert manifest.read_bytes() == before
    seen = found(report)
    for kind, files in planted.items():
        assert files <= seen.get(kind, set()), (kind, files - seen.get(kind, set()))
    alarms = {kind: files - planted.get(kind, set()) for kind, files in found(report, "error").items()}
    # False errors are possible at the edges of the shifted texts.
    assert sum(map(len, alarms.values())) <= 10, alarms
    kept = {row.name: row.text for row in load_source(str(clean))}
    texts = {Path(name).name: text for name, text in kept.items()}
    bad = (
        "missing",
        "unreadable",
        "truncated",
        "over-window",
        "over-token-limit",
        "empty-text",
        "wrong-script",
        "broken-characters",
        "silence",
        "wrong-rate",
        "two-texts",
        "too-much-text",
        "too-little-text",
    )
    assert not texts.keys() & {name for kind in bad for name in planted[kind]}
    changed = set().union(*(planted[kind] for kind in ("markup", "control-characters", "digits")))
    wrong = [
        name
        for name, text in texts.items()
        if name not in changed and text != unicodedata.normalize("NFC", " ".join(spoken_in[name].split()))
    ]
    assert len(wrong) <= 1, wrong
    assert len(planted["other-order"] & texts.keys()) == len(planted["other-order"])
    assert len(planted["shifted-texts"] & texts.keys()) >= 8
    # The tiny model takes 3 s and 64 tokens.
    short = tmp_path / "short.jsonl"
    lines = [json.loads(line) for line in clean.read_text(encoding="utf-8").splitlines()]
    write_manifest(short, [line for line in lines if len(line["text"].encode()) < 60][:40])
    settings = {
        "data.train": [str(short)],
        "data.eval": None,
        "data.test": None,
        "model.language": "ml",
        "model.language_token": "hi",
        "data.max_left_out": 1.0,
        "evaluate.compare_clips": 0,
    }
    result = train(tiny_recipe(tiny_model, tmp_path, **settings), output=tmp_path / "run")
    assert result.facts["steps"] == 4 and result.facts["empty_steps"] < 4


@pytest.mark.slow
def test_the_losses_of_a_real_model_find_shifted_texts_and_a_wrong_text(shared, tmp_path):
    """The clips are Hindi, which Whisper base understands; they are too few to find shifted texts by their lengths."""
    rows = load_source(str(shared / "data" / "hindi_tts" / "test"))[:44]
    lines = [{"audio": row.audio, "text": row.text, "language": "hi"} for row in rows]
    for line, text in zip(lines[12:32], [*[row.text for row in rows[13:32]], rows[12].text], strict=True):
        line["text"] = text
    lines[4]["text"] = load_source(str(shared / "data" / "hindi_tts" / "test"))[80].text
    manifest = write_manifest(tmp_path / "moved.jsonl", lines)
    report = check(str(manifest), model=shared / "models" / "whisper-base", audio=False)
    [moved] = [finding for finding in report.findings if finding.kind == "shifted-texts"]
    sure = {clip.row for clip in moved.clips if not clip.detail.startswith("perhaps")}
    assert sure == set(range(12, 32)) and len(moved.clips) <= 26
    right = {clip.row: clip.suggestion for clip in moved.clips}
    assert all(right[row] == rows[row].text for row in range(13, 32))
    assert any(
        clip.row == 4 for finding in report.findings if finding.kind == "unlikely-text" for clip in finding.clips
    )


def test_the_docs_page_lists_every_kind_of_finding():
    page = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([\w-]+)` \| (\w+) \| (.+) \|$", page, re.MULTILINE)
    assert listed == [(name, kind.severity, kind.why) for name, kind in KINDS.items()]


def test_hostile_rows_become_findings_and_do_no_harm(call, tmp_path):
    """False headers, NUL bytes, folders, huge texts and terminal escapes stop neither the check nor the terminal."""
    [row] = make_spoken(tmp_path, 1)
    content = bytearray((tmp_path / row["audio"]).read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = (36_000 * 32_000).to_bytes(4, "little")
    (tmp_path / "claims.wav").write_bytes(content)
    rows = [
        {"audio": "claims.wav", "text": "घर \u001b[31m"},
        {"audio": "a\0b.wav", "text": "घर"},
        {"audio": "..", "text": "घर"},
        {"audio": row["audio"], "text": "घर पानी" * 300_000},
        {"audio": row["audio"], "text": "x", "start_s": 9, "end_s": 4},
    ]
    code, out, _ = call(write_manifest(tmp_path / "rows.jsonl", rows), "--language", "hi")
    assert code == 3 and "\x1b" not in out and "\0" not in out
    assert re.search(r"claims.wav \(rows.jsonl:1\): decoded .* of 36000.00 s: truncated", out)
    assert "error: unreadable, 2 clips" in out and "error: truncated, 2 clips" in out
    assert "error: over-token-limit, 1 clip" in out
