"""Each kind of finding is found in the clips in which it was planted, and nowhere else."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import QUICKSTART
from spoken import make_spoken, sentences, spoken, write_manifest

from whisper_peft import CheckReport, check, load_preparation, load_source
from whisper_peft.checking.checks import check_sources
from whisper_peft.checking.findings import KINDS, MOST_LISTED, SEVERITIES, Findings, SourceRows
from whisper_peft.checking.limits import Limits
from whisper_peft.checking.shifted_texts import correlate_lengths, find_mispairings, find_name_orders
from whisper_peft.checking.sound_measures import measure
from whisper_peft.checking.speech_rate import text_sizes
from whisper_peft.checking.texts import (
    _SCRIPTS_OF_LANGUAGES,
    count_scripts,
    look_at_texts,
    script_of,
    without_markup,
)
from whisper_peft.data.rows import Row


def found(report: CheckReport | dict, *severities: str) -> dict[str, set[str]]:
    """Return, for each kind of finding, the names of the files that have it."""
    content = report.as_dict() if isinstance(report, CheckReport) else report
    return {
        finding["kind"]: {Path(clip["name"]).name for clip in finding["clips"]}
        for finding in content["findings"]
        if finding["severity"] in (severities or SEVERITIES)
    }


def test_a_clean_set_has_no_errors_and_no_warnings(tmp_path):
    rows = make_spoken(tmp_path, 60)
    report = check(write_manifest(tmp_path / "clean.jsonl", rows), language="hindi")
    assert not found(report, "error", "warning"), report.findings
    assert (report.errors, report.warnings) == (0, 0)
    content = report.as_dict()
    assert json.loads(json.dumps(content)) == content and "fixed" not in content
    [source] = content["sources"]
    assert source["clips"] == len(source["durations_s"]) == len(source["tokens_per_second"]) == 60
    assert source["speakers"] == 10 and source["scripts"] == {"Devanagari": 1.0} and source["languages"] == {"hi": 60}
    assert source["hours"] == pytest.approx(sum(source["durations_s"]) / 3600, rel=1e-3)
    assert source["correlation_at_shift"]["0"] > 0.9
    assert content["checked"] == {"headers": 60, "audio": 60, "model": None, "tokens": report.checked.tokens}


def test_every_kind_of_fault_is_found_where_it_was_planted(tmp_path):
    """All faults are in one set of 120 clips, because faults of some clips must not make others look wrong."""
    rows = make_spoken(tmp_path, 120)
    names = iter(range(0, 120, 3))
    planted: dict[str, set[str]] = {}

    def plant(kind: str) -> dict:
        row = rows[next(names)]
        planted.setdefault(kind, set()).add(row["audio"])
        return row

    def wave_of(row: dict) -> np.ndarray:
        return soundfile.read(tmp_path / row["audio"], dtype="float32")[0]

    for turn in range(2):
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
        soundfile.write(tmp_path / row["audio"], spoken(" ".join(sentences(6, seed=8)), 10 + turn), 16000)
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
    row["text"] = " ".join(sentences(40, seed=7))
    soundfile.write(tmp_path / row["audio"], spoken(row["text"], 3, pace=3.0)[: 29 * 16000], 16000)
    row = plant("steady-noise")
    soundfile.write(tmp_path / row["audio"], 0.1 * np.sin(np.arange(len(wave_of(row))) * 0.2), 16000)
    # Letters with a dot have two encodings, so all texts are brought into one first.
    for row in rows:
        row["text"] = unicodedata.normalize("NFC", row["text"])
    row = next(row for row in rows[1::3] if "ड़" in row["text"])
    row["text"] = row["text"].replace(unicodedata.normalize("NFC", "ड़"), "\u095c")
    planted["mixed-normal-forms"] = {row["audio"]}
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

    preparation = load_preparation(str(QUICKSTART / "model"))
    # The tiny model takes only 64 tokens.
    preparation.max_label_tokens = 448
    parts = [SourceRows("bad", load_source(str(path)), "bad")]
    report = check_sources(parts, limits=Limits(30.0, preparation), language="hi").report()
    seen = found(report)
    for kind, files in planted.items():
        assert files <= seen.get(kind, set()), (kind, files, seen.get(kind))
    expected = {kind: files for kind, files in planted.items() if KINDS[kind].severity != "note"}
    assert found(report, "error", "warning") == expected
    for finding in report.findings:
        assert finding.count == len(finding.clips) and finding.why and finding.remedy
        for clip in finding.clips:
            assert clip.source == "bad" and clip.detail and Path(rows[clip.row]["audio"]).name in clip.name
    order = [SEVERITIES.index(finding.severity) for finding in report.findings]
    assert order == sorted(order)


def lengths(texts: list[str], rng: np.random.Generator, *, noise: float = 0.15) -> np.ndarray:
    """Return the seconds that it takes to speak the texts, with noise."""
    return (0.4 + 0.07 * np.array([len(text) for text in texts])) * np.exp(noise * rng.standard_normal(len(texts)))


def sizes_of(texts: list[str]) -> np.ndarray:
    return text_sizes(texts, [len(text) // 2 for text in texts])


def test_shifted_texts_are_found_by_their_lengths_and_put_back():
    texts, nobody = sentences(150), [None] * 150
    seconds = lengths(texts, np.random.default_rng(0))
    orders = list(find_name_orders([f"{number:04d}.wav" for number in range(150)]))
    assert not orders
    assert not find_mispairings(seconds, sizes_of(texts), nobody, orders)
    for shift, first, last in ((1, 60, 85), (-2, 30, 60), (3, 0, 150), (1, 90, 150)):
        moved = texts[:first] + list(np.roll(texts[first:last], -shift)) + texts[last:]
        [mispairing] = find_mispairings(seconds, sizes_of(moved), nobody, orders)
        assert mispairing.shift == shift and mispairing.evidence > mispairing.chance
        assert len(set(mispairing.rows) ^ set(range(first, last))) <= 8
        sure = [row for row in mispairing.text_of if not {row, mispairing.text_of[row]} & mispairing.doubtful]
        assert len(sure) > (last - first) // 2
        assert all(moved[mispairing.text_of[row]] == texts[row] for row in sure if first <= row - shift < last)
        corr = correlate_lengths(seconds, sizes_of(moved))
        assert (max(corr, key=corr.get) == shift) == (last - first > 75)


@pytest.mark.parametrize("files_by_letter", [True, False])
def test_files_paired_with_texts_in_the_order_of_letters_are_found(files_by_letter):
    """rec_10 comes before rec_2 in the listing of a folder; the rows may have been shuffled afterwards."""
    texts, numbers = sentences(120), range(1, 121)
    seconds = dict(zip(numbers, lengths(texts, np.random.default_rng(1)), strict=True))
    letters = sorted(numbers, key=str)
    pairs = (
        list(zip(letters, texts, strict=True))
        if files_by_letter
        else [(number, texts[other - 1]) for number, other in zip(numbers, letters, strict=True)]
    )
    np.random.default_rng(2).shuffle(pairs)
    pairs = [(int(number), str(text)) for number, text in pairs]
    beside = [text for _, text in pairs]
    names = [f"clips/rec_{number}.wav" for number, _ in pairs]
    mispairings = find_mispairings(
        np.array([seconds[n] for n, _ in pairs]), sizes_of(beside), [None] * 120, list(find_name_orders(names))
    )
    [mispairing] = [mispairing for mispairing in mispairings if mispairing.is_order]
    assert all(beside[text] == texts[pairs[sound][0] - 1] for sound, text in mispairing.text_of.items())
    right = [(number, texts[number - 1]) for number, _ in pairs]
    seconds_of = np.array([seconds[number] for number, _ in right])
    assert not find_mispairings(
        seconds_of, sizes_of([text for _, text in right]), [None] * 120, list(find_name_orders(names))
    )


def test_random_lengths_sorted_sets_and_equal_texts_give_no_shifted_texts():
    texts = sentences(200)
    rng, nobody, orders = (
        np.random.default_rng(3),
        [None] * 200,
        list(find_name_orders([f"{n}.wav" for n in range(200)])),
    )
    assert not find_mispairings(rng.uniform(1, 9, 200), sizes_of(texts), nobody, orders)
    by_size = sorted(texts, key=len)
    assert not find_mispairings(lengths(by_size, rng), sizes_of(by_size), nobody, orders)
    assert not find_mispairings(lengths(["पानी"] * 200, rng), sizes_of(["पानी"] * 200), nobody, orders)


def test_the_losses_of_a_model_find_shifted_texts_that_lengths_cannot(tmp_path):
    """Texts of equal length are told apart by their losses; a model that does not know the language finds nothing."""
    texts = [f"{a} {b}" for a in ("आज", "कल") for b in sentences(30, seed=5)]
    rows = [Row(str(tmp_path / f"{n}.wav"), text, end_s=2.0) for n, text in enumerate(texts)]
    soundfile.write(tmp_path / "0.wav", spoken("पानी लाओ", 0), 16000)
    for n in range(1, 60):
        (tmp_path / f"{n}.wav").symlink_to("0.wav")
    # For each row, the number of the row whose text stands beside it.
    moved = [*range(20), *range(21, 40), 20, *range(40, 60)]
    rng = np.random.default_rng(0)

    def losses(of: list[Row], *, informed: bool = True) -> np.ndarray:
        table = np.full((60, 7), np.nan)
        for sound in range(60):
            for text in range(max(0, sound - 3), min(60, sound + 4)):
                right = moved[text] == sound and informed
                table[sound, text - sound + 3] = (1.0 if right else 2.0) + 0.2 * rng.standard_normal()
        table[50, 3] = 9.0
        return table

    rows = [Row(row.audio, texts[moved[n]], end_s=0.6) for n, row in enumerate(rows)]
    checked = check_sources([SourceRows("all", rows, "all")], audio=False, losses=losses)
    [mispairing] = checked.facts[0].mispairings
    assert (
        mispairing.shift == 1
        and mispairing.rows == tuple(range(20, 40))
        and set(mispairing.text_of) == set(range(21, 40))
    )
    assert checked.findings.rows("unlikely-text") == {(0, 50)}
    blind = check_sources([SourceRows("all", rows, "all")], audio=False, losses=lambda of: losses(of, informed=False))
    assert not blind.facts[0].mispairings


def test_sounds_sentences_and_speakers_that_splits_share_are_found(tmp_path):
    first_rows = make_spoken(tmp_path, 8, seed=1, name="a{}")
    other = make_spoken(tmp_path, 8, seed=2, name="b{}")
    # The words of both texts are the same.
    other[0]["text"] = first_rows[3]["text"].upper() + "।"
    other[1]["speaker_id"] = first_rows[0]["speaker_id"]
    shutil.copy(tmp_path / first_rows[4]["audio"], tmp_path / "copy.wav")
    other[2] |= {"audio": "copy.wav", "text": first_rows[4]["text"]}
    sources = [
        str(write_manifest(tmp_path / f"{name}.jsonl", rows)) for name, rows in (("one", first_rows), ("other", other))
    ]
    seen = found(check(sources, language="hi"))
    assert seen["shared-text"] == {"a3.wav", "b0.wav", "a4.wav", "copy.wav"}
    assert seen["shared-audio"] == {"a4.wav", "copy.wav"}
    assert "b1.wav" in seen["shared-speaker"] and {row["audio"] for row in first_rows[:6]} <= seen["shared-speaker"]
    assert not {"b6.wav", "b7.wav"} & seen["shared-speaker"]
    joined = write_manifest(tmp_path / "joined.jsonl", first_rows + other)
    assert not {"shared-text", "shared-speaker", "shared-audio"} & found(check(str(joined), language="hi")).keys()


@pytest.mark.parametrize(
    "kind, minority, texts",
    [
        ("casing", 2, ["Good morning", "Where are you", "Come in", "go away", "HELP ME", "It is late", "You did"]),
        ("punctuation", 1, ["Good morning.", "Where are you?", "Come in!", "Go away", "It is late."]),
        ("digits", 1, ["Four men", "I have 4", "Nine lives", "Ten"]),
        ("digits", 0, ["4 men", "I have 4", "9 lives", "Ten"]),
        ("wrong-script", 1, ["Good morning", "Доброе утро", "It is late"]),
        ("mixed-script", 1, ["Good mоrning", "It is late", "Ten"]),
        ("mixed-normal-forms", 1, ["Caf\u00e9 au lait", "Cafe\u0301 noir", "Th\u00e9"]),
        ("markup", 2, ["Well [laughs] yes", "Tom &amp; Tim", "It (as they say) is late", "3 < 4 and 5 > 4"]),
    ],
)
def test_the_texts_in_the_minority_get_the_finding(kind, minority, texts):
    rows = [Row(f"{number}.wav", text, language="en") for number, text in enumerate(texts)]
    findings = Findings([SourceRows("texts", rows, "texts")])
    look_at_texts(findings, 0, language=None, task="transcribe")
    assert len(findings.rows(kind)) == minority, findings.occurrences
    assert not findings.rows("broken-characters")


def test_the_right_script_is_that_of_the_language_or_of_most_texts():
    def wrong(language: str | None, *texts: str, task: str = "transcribe") -> set[int]:
        findings = Findings([SourceRows("x", [Row("a.wav", text) for text in texts], "x")])
        look_at_texts(findings, 0, language=language, task=task)
        return {row for _, row in findings.rows("wrong-script")}

    assert wrong("ja", "今日はいい天気", "コーヒー", "konnichiwa") == {2}
    assert wrong("sr", "добро јутро", "dobro jutro") == set()
    assert wrong(None, *["добро јутро"] * 12, "dobro") == {12}
    # With one text of each script, neither can be called wrong.
    assert wrong(None, "добро јутро", "dobro jutro") == set()
    assert wrong("hi", "good morning", task="translate") == set()
    assert wrong("ml", "മലയാളം", "മലയാളം radio", "123") == set()


def test_every_letter_of_a_language_is_in_its_script():
    """The Unicode name of a letter begins with the name of its script; three letters that scripts share are exempt."""
    shared = {"\u0374", "\u0640", "\ua9cf"}
    known = {script for scripts in _SCRIPTS_OF_LANGUAGES.values() for script in scripts} | {"Latin"}
    beginnings = {script: script.upper() for script in known} | {"Han": "CJK"}
    for code in range(0x30000):
        character = chr(code)
        beginning = unicodedata.name(character, "").split(" ")[0]
        named = [script for script, word in beginnings.items() if word == beginning]
        if unicodedata.category(character)[0] == "L" and named and character not in shared:
            assert [script_of(character)] == named, f"{code:04X}"


def test_only_letters_of_a_single_script_have_a_script():
    assert {script_of(character) for character in "5 .,-'\u0301\u200d\u0640ー„𝄞"} == {None}
    assert [script_of(character) for character in "々ｱｶﾡΩKªﬁŒ"] == [
        "Han",
        "Katakana",
        "Katakana",
        "Hangul",
        "Greek",
        "Latin",
        "Latin",
        "Latin",
        "Latin",
    ]
    assert script_of("𝐀") == "Mathematical" and script_of("\u13a0") == "Cherokee"
    assert script_of("\U00012000") == "Other" and script_of("\u1c5a") == "Ol Chiki"
    assert count_scripts("हिन्दी 25 km") == {"Devanagari": 6, "Latin": 2}


def test_markup_is_removed_and_joiners_stay():
    assert without_markup("<b>Tom</b>  &amp; [noise] Tim\u200b {x}") == "Tom & Tim"
    assert without_markup("AT&amp;amp;T is *really* **good**, *laughs* a &lt;unk&gt;") == "AT&T is really good, a"
    # Signs that are no markup stay.
    assert without_markup("c = d*e*f, 5 * 3 * 2, snake_case") == "c = d*e*f, 5 * 3 * 2, snake_case"
    assert without_markup("Cafe\u0301 (late)") == "Café (late)"
    assert without_markup("ന്\u200d ക്\u200cക") == "ന്\u200d ക്\u200cക"


def test_the_measures_of_a_sound_follow_its_length_level_and_clipping():
    wave = spoken("आज कल रात दिन", 0)
    loud, quiet = (
        measure(wave),
        measure(np.concatenate([np.zeros(16000, np.float32), wave, np.zeros(8000, np.float32)])),
    )
    assert quiet.seconds == pytest.approx(loud.seconds + 1.5) and quiet.speech_s == pytest.approx(
        loud.speech_s, abs=0.1
    )
    assert measure(wave).digest == loud.digest != measure(wave * 0.5).digest
    assert measure(0.5 * wave).loud_db == pytest.approx(loud.loud_db - 6.02, abs=0.1)
    clipped = measure(np.clip(8 * wave, -0.8, 0.8))
    assert clipped.clipped > 0.01 > 0.002 > loud.clipped


def test_a_report_lists_the_worst_clips_and_counts_all():
    rows = [Row(f"{number}.wav", "x") for number in range(MOST_LISTED + 50)]
    findings = Findings([SourceRows("many", rows, "many")])
    for number in range(len(rows)):
        findings.add("low-level", 0, number, "quiet", weight=number % 77)
        findings.add("low-level", 0, number, "again")
    findings.add("missing", 0, 3, "no such file")
    first, second = findings.report([[None] * len(rows)])
    assert (first.kind, first.count, second.count) == ("missing", 1, len(rows))
    assert len(second.clips) == MOST_LISTED and second.clips[0].row % 77 == 76
    assert (findings.count("error"), findings.count("warning")) == (1, len(rows))
    with pytest.raises(KeyError):
        findings.add("no such kind", 0, 0, "")
    assert {kind.severity for kind in KINDS.values()} == set(SEVERITIES)
