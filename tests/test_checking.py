"""check's findings: each kind is found where it is planted, and nowhere else."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile
from spoken import make_spoken, sentences, spoken, write_manifest

from whisper_peft import check, load_preparation, load_source
from whisper_peft.data.alignment import correlations, find_mispairings, find_shifts, text_sizes
from whisper_peft.data.checking import Limits, check_parts
from whisper_peft.data.findings import KINDS, MOST_LISTED, SEVERITIES, Findings, Part
from whisper_peft.data.listening import measure
from whisper_peft.data.rows import Row
from whisper_peft.data.wording import without_markup


def found(report: dict, *severities: str) -> dict[str, set[str]]:
    """kind -> names of the files that it was found in."""
    return {
        one["kind"]: {Path(clip["name"]).name for clip in one["clips"]}
        for one in report["findings"]
        if one["severity"] in (severities or SEVERITIES)
    }


def test_a_clean_set_has_no_errors_and_no_warnings(tmp_path):
    rows = make_spoken(tmp_path, 60)
    report = check(write_manifest(tmp_path / "clean.jsonl", rows), language="hindi")
    assert not found(report, "error", "warning"), report["findings"]
    assert (report["errors"], report["warnings"]) == (0, 0)
    [source] = report["sources"]
    assert source["clips"] == len(source["durations_s"]) == len(source["tokens_per_second"]) == 60
    assert source["speakers"] == 10 and source["scripts"] == {"Devanagari": 1.0} and source["languages"] == {"hi": 60}
    assert source["hours"] == pytest.approx(sum(source["durations_s"]) / 3600, rel=1e-3)
    assert source["correlation_at_shift"]["0"] > 0.9
    assert report["checked"] == {"headers": 60, "audio": 60, "model": None, "tokens": report["checked"]["tokens"]}
    json.dumps(report)


def test_every_kind_of_a_source_is_found_where_it_was_planted(tmp_path, monkeypatch):
    """All in one set of 120 clips: what is wrong with some must not make others look wrong."""
    rows = make_spoken(tmp_path, 120)
    names = iter(range(0, 120, 3))
    planted: dict[str, set[str]] = {}

    def plant(kind: str) -> dict:
        row = rows[next(names)]
        planted.setdefault(kind, set()).add(row["audio"])
        return row

    def wave_of(row: dict) -> np.ndarray:
        return soundfile.read(tmp_path / row["audio"], dtype="float32")[0]

    for _ in range(2):
        row = plant("missing")
        (tmp_path / row["audio"]).unlink()
        row = plant("unreadable")
        (tmp_path / row["audio"]).write_bytes(b"no sound at all, but some bytes")
        row = plant("truncated")
        content = (tmp_path / row["audio"]).read_bytes()
        (tmp_path / row["audio"]).write_bytes(content[: len(content) // 3])
        row = plant("over-window")
        soundfile.write(tmp_path / row["audio"], np.tile(wave_of(row), 30)[: 31 * 16000], 16000)
        row = plant("empty-text")
        row["text"] = " \t"
        row = plant("wrong-script")
        row["text"] = "ghar paani kitaab aaj"
        row = plant("broken-characters")
        row["text"] = row["text"][:-1] + "\ufffd"
        row = plant("silence")
        soundfile.write(tmp_path / row["audio"], 1e-4 * wave_of(row), 16000)
        row = plant("wrong-rate")
        soundfile.write(tmp_path / row["audio"], wave_of(row), 48000)
        row = plant("too-much-text")
        row["text"] = " ".join(sentences(6, seed=9))
        row = plant("too-little-text")
        soundfile.write(tmp_path / row["audio"], spoken(" ".join(sentences(6, seed=8)), 1), 16000)
        row["text"] = "घर"
        row = plant("clipping")
        soundfile.write(tmp_path / row["audio"], np.clip(20 * wave_of(row), -0.9, 0.9), 16000)
        row = plant("low-level")
        soundfile.write(tmp_path / row["audio"], 0.02 * wave_of(row), 16000, subtype="FLOAT")
        row = plant("markup")
        row["text"] = f"<noise> {row['text']}"
        row = plant("control-characters")
        row["text"] = row["text"].replace(" ", "\u200b ", 1)
        row = plant("digits")
        row["text"] += " २५"
        row = plant("mixed-script")
        row["text"] = row["text"][:-1] + "a" + row["text"][-1]
    row = plant("over-token-limit")
    row["text"] = "पानी " * 400
    soundfile.write(tmp_path / row["audio"], spoken("पानी " * 60, 3), 16000)
    row = plant("steady-noise")
    soundfile.write(tmp_path / row["audio"], 0.1 * np.sin(np.arange(len(wave_of(row))) * 0.2), 16000)
    for row in (rows[i] for i in range(1, 120, 3)):
        row["text"] = row["text"].replace("सड़क", unicodedata.normalize("NFC", "सड़क"))
    twin = rows[next(names)]
    shutil.copy(tmp_path / twin["audio"], tmp_path / "twin.wav")
    rows.append({**twin, "audio": "twin.wav"})
    planted["duplicate-audio"] = {"twin.wav"}
    other = rows[next(names)]
    shutil.copy(tmp_path / other["audio"], tmp_path / "other.wav")
    rows.append({**other, "audio": "other.wav", "text": " ".join(reversed(other["text"].split()))})
    planted["two-texts"] = {other["audio"], "other.wav"}
    rows.append(dict(rows[1]))
    planted["duplicate-row"] = {rows[1]["audio"]}
    path = write_manifest(tmp_path / "bad.jsonl", rows)

    preparation = load_preparation(str(Path(__file__).parent.parent / "whisper_peft" / "quickstart" / "model"))
    preparation.window_s = 30.0  # the miniature's is 3 s, its vocabulary Hindi
    parts = [Part("bad", load_source(str(path)), "bad")]
    report = check_parts(parts, limits=Limits(30.0, preparation), language="hi").report()
    seen = found(report)
    for kind, files in planted.items():
        assert files <= seen.get(kind, set()), (kind, files, seen.get(kind))
    expected = {kind: files for kind, files in planted.items() if KINDS[kind].severity != "note"}
    expected["two-texts"] |= set()
    assert found(report, "error", "warning") == expected
    for one in report["findings"]:
        assert one["count"] == len(one["clips"]) and one["why"] and one["remedy"]
        for clip in one["clips"]:
            assert clip["source"] == "bad" and clip["detail"] and Path(rows[clip["row"]]["audio"]).name in clip["name"]
    order = [SEVERITIES.index(one["severity"]) for one in report["findings"]]
    assert order == sorted(order)
