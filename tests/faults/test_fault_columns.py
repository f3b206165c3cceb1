"""Columns are read as the user says: prompts, splits, times and languages; and cells of every wrong type."""

from __future__ import annotations

import csv
import json
import re
import tarfile
import time
import tracemalloc
from pathlib import Path

import pytest
import soundfile
from conftest import make_speech, make_wave, tiny_recipe
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_peft import CheckReport, Segment, SpeechDataset, check, evaluate, load_preparation, load_source, prepare
from whisper_peft.data.doubtful_times import doubt_times
from whisper_peft.data.languages import CODES_BY_ISO_639, LANGUAGES, NATIVE_NAMES
from whisper_peft.data.rows import Row
from whisper_peft.data.segments import find_fault
from whisper_peft.data.text import language_code
from whisper_peft.errors import UserError

FEW = settings(deadline=None, max_examples=40)


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[dict], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict]) -> Path:
    import datasets

    datasets.Dataset.from_list(rows).to_parquet(str(path))
    return path


TABLES = {
    "csv": write_csv,
    "tsv": lambda path, rows: write_csv(path, rows, "\t"),
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Twelve clips of 1.0 s and more, 0.wav to 11.wav."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(12):
        soundfile.write(folder / f"{number}.wav", make_wave(1.0 + 0.1 * number, number), 16000)
    return folder


def rows_of(clips: Path, count: int = 12, **fields) -> list[dict]:
    """Return rows with absolute paths. A field is a value, or a function from the number of the row to its value."""
    return [
        {
            "audio": str(clips / f"{number}.wav"),
            "text": f"घर पानी {number}",
            **{name: value(number) if callable(value) else value for name, value in fields.items()},
        }
        for number in range(count)
    ]


def kinds(report: CheckReport) -> dict[str, dict]:
    return {finding.kind: finding.as_dict() for finding in report.findings}


def refusal(call, *arguments, **options) -> str:
    with pytest.raises(UserError) as refused:
        call(*arguments, **options)
    message = str(refused.value)
    assert "\n" not in message
    return message


def dry_run(model: Path, folder: Path, source: object, **changes) -> list[str]:
    said: list[str] = []
    settings = {"data.train": [str(source)], "data.eval": str(folder / "eval"), "data.test": None, **changes}
    prepare(tiny_recipe(model, folder, **settings), say=said.append)
    return said


# Prompts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", TABLES)
@pytest.mark.parametrize("column", ["prompt", "Prompt"])
def test_a_prompt_column_is_ignored_until_the_user_names_it(clips, tmp_path, suffix, column):
    path = TABLES[suffix](tmp_path / f"m.{suffix}", rows_of(clips, 3, **{column: "पहले"}))
    said: list[str] = []
    assert [row.prompt for row in load_source(str(path), say=said.append)] == ["", "", ""]
    assert len(said) == 1 and f"{column!r} is ignored" in said[0] and f"--prompt-column {column}" in said[0]
    said.clear()
    rows = load_source(str(path), prompt_column=column, say=said.append)
    assert [row.prompt for row in rows] == ["पहले"] * 3 and not said
    assert "no column 'before' (data.prompt_column)" in refusal(load_source, str(path), prompt_column="before")


def test_a_row_without_a_prompt_has_an_empty_prompt(clips, tmp_path):
    rows = rows_of(clips, 3)
    rows[1]["before"] = "पहले"
    path = write_jsonl(tmp_path / "m.jsonl", rows)
    assert [row.prompt for row in load_source(str(path), prompt_column="before")] == ["", "पहले", ""]


def test_check_and_train_say_that_a_prompt_column_is_ignored(clips, tmp_path, tiny_model, speech):
    path = write_jsonl(tmp_path / "m.jsonl", rows_of(clips, 4, prompt="पहले"))
    report = check(str(path), language="hi", audio=False)
    assert [remark for remark in report.remarks if "'prompt' is ignored" in remark]
    assert any("'prompt' is ignored" in line for line in dry_run(tiny_model, speech, path))


@pytest.mark.parametrize(
    ("prompt", "text", "is_held"),
    [
        ("घर पानी", "घर पानी", True),
        ("पहले घर, पानी!", "घर पानी", True),
        ("Say: Hello  world.", "hello world", True),
        ("the cart", "art", False),
        ("क्या आपको पानी चाहिए", "हाँ मुझे पानी चाहिए", False),
        ("", "घर", False),
        ("घर", "", False),
    ],
)
def test_check_reports_a_text_that_its_prompt_already_contains(clips, tmp_path, prompt, text, is_held):
    row = {"audio": str(clips / "0.wav"), "text": text, "before": prompt}
    path = write_jsonl(tmp_path / "m.jsonl", [row])
    report = check(str(path), language="hi", audio=False, prompt_column="before")
    assert ("text-in-prompt" in kinds(report)) == is_held
    assert not is_held or kinds(report)["text-in-prompt"]["severity"] == "error"
    assert "text-in-prompt" not in kinds(check(str(path), language="hi", audio=False))


def test_check_finds_a_text_in_its_prompt_when_only_the_spaces_differ(clips, tmp_path):
    row = {"audio": str(clips / "0.wav"), "text": "而对楼市成交", "before": "说：而 对 楼市 成交。"}
    path = write_jsonl(tmp_path / "m.jsonl", [row])
    assert "text-in-prompt" in kinds(check(str(path), language="zh", audio=False, prompt_column="before"))


def test_the_first_look_of_train_reports_texts_that_their_prompts_already_contain(clips, tmp_path, tiny_model, speech):
    path = write_jsonl(tmp_path / "m.jsonl", rows_of(clips, 4, prompt=lambda number: f"घर पानी {number}"))
    said = dry_run(tiny_model, speech, path, **{"data.prompt_column": "prompt"})
    assert any("error: text-in-prompt, 4 clips" in line for line in said)


def test_some_of_several_sources_may_lack_the_prompt_column_but_not_all(clips, tmp_path, tiny_model, speech):
    with_prompts = str(write_jsonl(tmp_path / "m.jsonl", rows_of(clips, 4, before="पहले")))
    without = str(write_jsonl(tmp_path / "n.jsonl", rows_of(clips, 4)))
    settings = {"data.train": [with_prompts, without], "data.prompt_column": "before"}
    assert any("n.jsonl: no column 'before'" in line for line in dry_run(tiny_model, speech, "", **settings))
    assert check([with_prompts, without], audio=False, prompt_column="before").remarks
    for sources in ([without], [without, without]):
        settings["data.train"] = sources
        assert "no column 'before'" in refusal(dry_run, tiny_model, speech, "", **settings)
        assert "no column 'before'" in refusal(check, sources, audio=False, prompt_column="before")


# Splits --------------------------------------------------------------------------------------------------------------

SPLITS = ["train"] * 5 + ["validation"] * 3 + ["test"] * 4


@pytest.mark.parametrize("suffix", TABLES)
def test_a_split_column_decides_which_rows_a_split_holds(clips, tmp_path, suffix):
    path = TABLES[suffix](tmp_path / f"m.{suffix}", rows_of(clips, split=lambda number: SPLITS[number]))
    message = refusal(load_source, str(path))
    assert all(f"{path}:{name} ({n} rows)" in message for name, n in (("train", 5), ("validation", 3), ("test", 4)))
    texts = [row.text for row in load_source(f"{path}:train")]
    assert texts == [f"घर पानी {number}" for number in range(5)]
    assert len(load_source(f"{path}:dev")) == len(load_source(f"{path}:val")) == 3
    assert len(load_source(f"{path}:train+test")) == 9
    assert "no split 'other'" in refusal(load_source, f"{path}:other")
    train_table = TABLES[suffix](tmp_path / f"one.{suffix}", rows_of(clips, split="train"))
    assert len(load_source(str(train_table))) == len(load_source(f"{train_table}:train")) == 12
    plain = TABLES[suffix](tmp_path / f"plain.{suffix}", rows_of(clips))
    assert "no column 'split'" in refusal(load_source, f"{plain}:train")


def test_a_split_column_in_a_folder_decides_which_rows_a_split_holds(clips, tmp_path):
    write_csv(tmp_path / "metadata.csv", rows_of(clips, split=lambda number: SPLITS[number]))
    assert f"{tmp_path}:train (5 rows)" in refusal(load_source, str(tmp_path))
    assert len(load_source(f"{tmp_path}:test")) == 4
    folder = tmp_path / "by-folder"
    (folder / "train").mkdir(parents=True)
    (folder / "test").mkdir()
    write_csv(folder / "train" / "metadata.csv", rows_of(clips, split="train"))
    write_csv(folder / "test" / "metadata.csv", rows_of(clips, split=lambda number: SPLITS[number]))
    assert len(load_source(f"{folder}:train")) == 12
    assert "several splits" in refusal(load_source, f"{folder}:test")


def test_a_split_column_that_names_no_splits_is_ignored(clips, tmp_path):
    rows = [{**row, "split": number} for number, row in enumerate(rows_of(clips) * 6)]
    assert len(load_source(str(write_csv(tmp_path / "m.csv", rows)))) == 72


def test_a_message_names_a_column_that_holds_splits_under_another_name(clips, tmp_path):
    says = []
    path = write_csv(tmp_path / "m.csv", rows_of(clips, subset=lambda number: SPLITS[number]))
    assert len(load_source(str(path), say=says.append)) == 12
    assert len(says) == 1 and "'subset' names splits (train, validation, test)" in says[0]
    for values in (lambda number: "train", lambda number: f"part {number % 3}"):
        says.clear()
        load_source(str(write_csv(tmp_path / "m.csv", rows_of(clips, subset=values))), say=says.append)
        assert says == []


@pytest.mark.parametrize(
    ("cells", "language", "unknown"),
    [
        ({"language": "Hindi", "locale": "hi-IN"}, "hi", None),
        ({"language": "und", "locale": "hi"}, "hi", None),
        ({"language": "hin", "locale": "nan"}, "hi", None),
        ({"language_code": "hin"}, "hi", None),
        ({"lang_code": "bho"}, None, "bho"),
        ({"language": "Bhojpuri", "language_code": "bho"}, None, "Bhojpuri"),
    ],
)
def test_language_columns_that_name_one_language_in_different_words_agree(cells, language, unknown, clips, tmp_path):
    [row] = load_source(str(write_csv(tmp_path / "m.csv", rows_of(clips, **cells)[:1])))
    assert (row.language, row.unknown_language) == (language, unknown)


def test_columns_that_name_two_languages_are_refused(clips, tmp_path):
    path = write_csv(tmp_path / "m.csv", rows_of(clips, language="Hindi", locale="en-IN"))
    assert "could both be the language, and differ" in refusal(load_source, str(path))


def test_a_column_called_begin_holds_start_times(clips, tmp_path):
    [row] = load_source(str(write_csv(tmp_path / "m.csv", rows_of(clips, begin="0.25", end="0.75")[:1])))
    assert (row.start_s, row.end_s) == (0.25, 0.75)


def test_a_split_column_in_a_parquet_folder_decides_which_rows_a_split_holds(clips, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_parquet(folder / "clips.parquet", rows_of(clips, split=lambda number: SPLITS[number]))
    assert len(load_source(f"{folder}:train")) == 5
    assert len(load_source(f"{folder}:test")) == 4
    assert "several splits" in refusal(load_source, str(folder))


def test_a_stream_takes_only_the_split_that_is_named(clips, tmp_path):
    from whisper_peft.data.streams import first_rows, open_stream

    path = write_parquet(tmp_path / "m.parquet", rows_of(clips, split=lambda number: SPLITS[number]))
    assert len(first_rows(f"{path}:train", load_source, most=100)) == 5
    stream = open_stream(f"{path}:dev", load_source)
    drawn = {stream.parts[0].draw().text for _ in range(3)}
    assert drawn == {f"घर पानी {number}" for number in (5, 6, 7)} and stream.parts[0].draw() is None
    assert "several splits" in refusal(first_rows, str(path), load_source, most=100)
    (tmp_path / "folder").mkdir()
    write_parquet(tmp_path / "folder" / "a.parquet", rows_of(clips, split=lambda number: f"part {number % 3}"))
    assert len(first_rows(f"{tmp_path / 'folder'}:train", load_source, most=100)) == 12
    assert len(load_source(f"{tmp_path / 'folder'}:train")) == 12


# Common Voice Spontaneous Speech -------------------------------------------------------------------------------------

SPONTANEOUS = [
    "client_id",
    "audio_id",
    "audio_file",
    "duration_ms",
    "prompt_id",
    "prompt",
    "transcription",
    "votes",
    "age",
    "gender",
    "language",
    "split",
    "char_per_sec",
    "quality_tags",
]


@pytest.fixture
def release(tmp_path) -> Path:
    """A release as Common Voice publishes it: sound in audios/, a table of clips, and a table of reported clips."""
    folder = tmp_path / "sps-corpus-1.0-2025-09-05-hi"
    make_speech(folder / "audios", 8)
    (folder / "audios" / "metadata.csv").unlink()
    splits = ["train"] * 4 + ["dev", "test", "test", ""]
    texts = [f"मुझे पानी अच्छा लगता है {number} [disfluency]" for number in range(8)]
    texts[1] = '"उसने ""हाँ"" कहा"'
    texts[2] = '"दो\nपंक्तियाँ"'
    texts[3] = '"सिर्फ'
    texts[7] = ""
    lines = ["\t".join(SPONTANEOUS)]
    for number, (split, text) in enumerate(zip(splits, texts, strict=True)):
        row = [
            f"s{number}",
            str(number),
            f"{number}.wav",
            "900",
            "7",
            '"क्या ""आपको"" पानी पसंद है?"',
            text,
            "2",
            "",
            "",
            "Hindi",
            split,
            "9.0",
            "short-audio",
        ]
        lines.append("\t".join(row))
    (folder / "ss-corpus-hi.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "ss-reported-audios-hi.tsv").write_text("client_id\taudio_id\taudio_file\treason\n", encoding="utf-8")
    (folder / "README.md").write_text("# Hindi")
    return folder


def test_row_05_a_spontaneous_speech_release_is_read_as_it_is_published(release, tmp_path):
    archive = tmp_path / "mcv-spontaneous-hi.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(release, release.name)
    for source in (release, archive, release / "ss-corpus-hi.tsv", release.parent):
        if source == release.parent:
            archive.unlink()
            (tmp_path / "mcv-spontaneous-hi.unpacked").rename(tmp_path.parent / f"{tmp_path.name}.moved")
        rows = load_source(f"{source}:train")
        assert [row.text for row in rows][1:] == ['उसने "हाँ" कहा', "दो\nपंक्तियाँ", '"सिर्फ']
        assert {(row.language, row.prompt, row.start_s, row.end_s) for row in rows} == {("hi", "", 0.0, None)}
        assert [Path(row.audio).is_file() for row in rows] == [True] * 4
        assert [row.speaker for row in rows] == ["s0", "s1", "s2", "s3"]
        assert len(load_source(f"{source}:test")) == 2 and len(load_source(f"{source}:validation")) == 1
        message = refusal(load_source, str(source))
        assert f"{source}:train (4 rows)" in message and f"{source}:unassigned (1 row)" in message
    assert load_source(f"{release}:train", prompt_column="prompt")[0].prompt == 'क्या "आपको" पानी पसंद है?'


def test_row_05_check_reports_and_fixes_marks_in_spontaneous_speech(release, tmp_path):
    report = check(f"{release}:train+test", fix=tmp_path / "clean.jsonl", audio=False)
    assert kinds(report)["markup"]["clips"][0]["detail"] == "[disfluency]"
    assert not any("[" in row.text for row in load_source(str(tmp_path / "clean.jsonl")))
    assert kinds(check(f"{release}:unassigned", audio=False))["empty-text"]["count"] == 1


def test_row_05_a_table_that_lies_beside_its_sound_files_finds_them(release, tmp_path):
    for path in (release / "audios").glob("*.wav"):
        path.rename(release / path.name)
    (release / "audios").rmdir()
    assert all(Path(row.audio).is_file() for row in load_source(f"{release / 'ss-corpus-hi.tsv'}:train"))
    assert "several splits" in refusal(load_source, str(release / "ss-corpus-hi.tsv"))


# Times ---------------------------------------------------------------------------------------------------------------


def source_times(number: int) -> dict:
    """Return the start and end of a clip in the recording from which 0.wav, 1.wav and so on were cut in order."""
    start = sum(1.0 + 0.1 * before for before in range(number))
    return {"start": round(start, 3), "end": round(start + 1.0 + 0.1 * number, 3)}


@pytest.mark.parametrize("names", [("start", "end"), ("start_s", "end_s"), ("offset", "duration")])
def test_times_of_another_recording_are_refused_until_the_user_decides(clips, tmp_path, names, tiny_model, speech):
    rows = rows_of(clips)
    for number, row in enumerate(rows):
        times = source_times(number)
        last = times["end"] - times["start"] if names[1] == "duration" else times["end"]
        row |= {names[0]: times["start"], names[1]: last}
    path = write_csv(tmp_path / "m.csv", rows)
    findings = kinds(check(str(path), language="hi", audio=False))
    assert not {"truncated", "unreadable", "missing"} & set(findings)
    assert findings["times-elsewhere"]["count"] == 11 and findings["times-elsewhere"]["severity"] == "error"
    assert "another recording" in findings["times-elsewhere"]["clips"][0]["detail"]
    message = refusal(dry_run, tiny_model, speech, path)
    assert "11 of 12 rows" in message and "--times ignore" in message and "m.csv:3" in message
    assert "another recording" in refusal(evaluate, tiny_model, path, language="hi")
    dry_run(tiny_model, speech, path, **{"data.times": "ignore"})
    whole = load_source(str(path), times="ignore")
    assert {(row.start_s, row.end_s) for row in whole} == {(0.0, None)}
    assert "times-elsewhere" not in kinds(check(str(path), language="hi", audio=False, times="ignore"))
    assert "truncated" in kinds(check(str(path), language="hi", audio=False, times="use"))


@pytest.mark.parametrize(("factor", "unit"), [(1000, "milliseconds"), (16_000, "samples")])
def test_check_names_the_unit_of_times_that_are_not_in_seconds(clips, tmp_path, factor, unit):
    rows = rows_of(clips, start=int(0.1 * factor), end=lambda number: int((0.9 + 0.1 * number) * factor))
    findings = kinds(check(str(write_csv(tmp_path / "m.csv", rows)), language="hi", audio=False))
    assert findings["times-elsewhere"]["count"] == 12 and unit in findings["times-elsewhere"]["clips"][0]["detail"]


def test_check_and_train_report_pieces_that_disagree_with_the_stated_duration(clips, tmp_path, tiny_model, speech):
    rows = rows_of(clips, start=0.1, end=0.5, duration=lambda number: 1.0 + 0.1 * number)
    path = write_csv(tmp_path / "m.csv", rows)
    findings = kinds(check(str(path), language="hi", audio=False))
    assert findings["times-cut"]["count"] == 12
    assert "the column duration agrees with the files" in findings["times-cut"]["clips"][0]["detail"]
    assert any("warning: times-cut, 12 clips" in line for line in dry_run(tiny_model, speech, path))
    alone = rows_of(clips)
    alone[3] |= {"start": 0.0, "end": 0.4, "duration": 1.3}
    findings = kinds(check(str(write_jsonl(tmp_path / "one.jsonl", alone)), language="hi", audio=False))
    assert findings["times-cut"]["count"] == 1


def test_pieces_of_one_recording_and_trimmed_clips_are_not_reported(clips, tmp_path):
    soundfile.write(tmp_path / "talk.wav", make_wave(12.0), 16000)
    pieces = [{"audio": "talk.wav", "text": "घर", "start": float(n), "end": n + 0.9} for n in range(12)]
    findings = kinds(check(str(write_jsonl(tmp_path / "m.jsonl", pieces)), language="hi", audio=False))
    assert not {"times-elsewhere", "times-cut"} & set(findings)
    trimmed = rows_of(clips, start=0.05, end=lambda number: 0.97 + 0.1 * number)
    findings = kinds(check(str(write_jsonl(tmp_path / "t.jsonl", trimmed)), language="hi", audio=False))
    assert not {"times-elsewhere", "times-cut"} & set(findings)


def test_a_single_row_that_ends_after_its_file_is_reported_as_truncated(clips, tmp_path):
    rows = rows_of(clips, start=0.0, end=lambda number: 1.0 + 0.1 * number)
    rows[4]["end"] = 9.0
    findings = kinds(check(str(write_jsonl(tmp_path / "m.jsonl", rows)), language="hi"))
    assert "times-elsewhere" not in findings and findings["truncated"]["count"] == 1


def test_two_columns_of_start_times_that_differ_are_refused_with_a_remedy(clips, tmp_path):
    path = write_csv(tmp_path / "m.csv", rows_of(clips, 2, start=5.0, offset=0.0))
    assert "'start' and 'offset'" in refusal(load_source, str(path)) and "--times ignore" in refusal(
        load_source, str(path)
    )
    assert len(load_source(str(path), times="ignore")) == 2


@FEW
@given(
    st.lists(
        st.tuples(
            st.floats(-10, 1e7),
            st.none() | st.floats(-10, 1e7),
            st.none() | st.floats(0.01, 1e5),
            st.none() | st.floats(0, 1e7),
        ),
        max_size=30,
    )
)
def test_any_times_are_judged_without_a_traceback(times):
    rows = [Row(f"{n % 7}.wav", "a", start_s=t[0], end_s=t[1], stated_s=t[3]) for n, t in enumerate(times)]
    for doubt in doubt_times(rows, [t[2] for t in times]):
        assert doubt.rows and set(doubt.rows) <= set(range(len(rows)))


# Languages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("hin", "hi"),
        ("eng", "en"),
        ("mal", "ml"),
        ("cmn", "zh"),
        ("arb", "ar"),
        ("ger", "de"),
        ("deu", "de"),
        ("chi", "zh"),
        ("HIN", "hi"),
        ("hi-IN", "hi"),
        ("zh-CN", "zh"),
        ("pt_BR", "pt"),
        ("en_US.UTF-8", "en"),
        ("hin_Deva", "hi"),
        ("cmn-Hans-CN", "zh"),
        ("es-419", "es"),
        ("zh-yue", "yue"),
        ("हिन्दी", "hi"),
        ("हिंदी", "hi"),
        ("Deutsch", "de"),
        ("Français", "fr"),
        ("francais", "fr"),
        ("മലയാളം", "ml"),
        ("中文", "zh"),
        ("Русский", "ru"),
        ("Spanish; Castilian", "es"),
        ("English (India)", "en"),
        ("Mandarin Chinese", "zh"),
        ("Norwegian Bokmål", "no"),
        ("jav", "jw"),
        ("swh", "sw"),
        ("pes", "fa"),
        ("nob", "no"),
        ("ekk", "et"),
        ("zsm", "ms"),
        ("bur", "my"),
    ],
)
def test_row_06_a_language_is_recognised_under_all_its_names(name, code):
    assert language_code(name) == code


@pytest.mark.parametrize(
    "name",
    [
        "xx",
        "bho",
        "lg",
        "hi en",
        "hi-en",
        "en-hi",
        "Chinese (Cantonese)",
        "is it",
        "Pyu (Myanmar)",
        "arz",
        "cpx",
        "x" * 9999,
    ],
)
def test_a_language_that_whisper_does_not_know_is_never_guessed(name):
    message = refusal(language_code, name)
    assert "--language-token" in message and len(message) < 500


def test_every_known_name_stands_for_a_language_of_whisper():
    for table in (CODES_BY_ISO_639, NATIVE_NAMES):
        assert set(table.values()) <= set(LANGUAGES)
        assert all(language_code(name) == code for name, code in table.items())


@pytest.mark.parametrize("suffix", TABLES)
def test_row_06_the_language_of_each_row_is_mapped_to_a_code_of_whisper(clips, tmp_path, suffix):
    named = ["hin", "eng", "", "und", "unknown", "None", "nan", "Hindi", "hi-IN", "ml", "mal", "English"]
    path = TABLES[suffix](tmp_path / f"m.{suffix}", rows_of(clips, language=lambda number: named[number]))
    rows = load_source(str(path))
    assert [row.language for row in rows] == ["hi", "en", None, None, None, None, None, "hi", "hi", "ml", "ml", "en"]
    assert not any(row.unknown_language for row in rows)


@pytest.fixture
def mixed(clips, tmp_path) -> Path:
    """Rows in Hindi and English, and five rows in languages that Whisper does not know."""
    named = ["hin"] * 4 + ["eng"] * 3 + ["xx"] * 3 + ["Adyghe (West Circassian)"] * 2
    return write_jsonl(tmp_path / "m.jsonl", rows_of(clips, language=lambda number: named[number]))


def test_row_06_unknown_languages_are_counted_and_named(mixed, tiny_model, speech):
    report = check(str(mixed), language="hindi", audio=False)
    finding = kinds(report)["unknown-language"]
    assert (finding["severity"], finding["count"]) == ("error", 5) and report.errors >= 5
    assert finding["clips"][0]["detail"] == "'xx', as 3 rows of this source"
    assert report.sources[0].languages["'xx' (unknown)"] == 3
    for message in (
        refusal(dry_run, tiny_model, speech, mixed),
        refusal(dry_run, tiny_model, speech, mixed, **{"model.language": None}),
        refusal(evaluate, tiny_model, mixed, language="hi"),
        refusal(evaluate, tiny_model, mixed),
    ):
        assert "3 rows say 'xx'" in message and "2 rows say 'Adyghe" in message and "m.jsonl:8" in message
        assert "--language-token" in message


def test_rows_in_unknown_languages_are_trained_with_a_borrowed_token(mixed, tiny_model, speech):
    dry_run(tiny_model, speech, mixed, **{"model.language": None, "model.language_token": "hindi"})


def test_a_source_in_one_unknown_language_gets_the_language_that_the_user_names(clips, tmp_path, tiny_model, speech):
    path = write_jsonl(tmp_path / "m.jsonl", rows_of(clips, language="bho"))
    said = dry_run(tiny_model, speech, path)
    assert any("12 rows say 'bho'" in line and "taken for hindi" in line for line in said)
    assert kinds(check(str(path), language="hi", audio=False))["language-as-said"]["count"] == 12
    assert kinds(check(str(path), audio=False))["unknown-language"]["count"] == 12
    message = refusal(dry_run, tiny_model, speech, path, **{"model.language": None})
    assert "12 rows say 'bho'" in message and "--language LANG" in message


def test_a_row_in_an_unknown_language_is_left_out_with_the_reason(clips, tiny_model):
    row = Row(str(clips / "0.wav"), "घर", unknown_language="xx")
    dataset = SpeechDataset([row], load_preparation(str(tiny_model)), language="hi")
    assert "'xx'" in dataset[0].reason


# Cells of every wrong type -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["tsv", "jsonl"])
def test_row_12_a_text_of_megabytes_is_reported_and_left_out(clips, tmp_path, suffix, tiny_model, speech):
    rows = rows_of(clips)
    rows[3]["text"] = "पानी " * 400_000 if suffix == "jsonl" else "a" * 10_000_000
    path = TABLES[suffix](tmp_path / f"m.{suffix}", rows)
    began = time.process_time()
    findings = kinds(check(str(path), language="hi", audio=False))
    assert time.process_time() - began < 20
    assert (
        findings["over-token-limit"]["count"] == 1
        and "characters of text" in findings["over-token-limit"]["clips"][0]["detail"]
    )
    dataset = SpeechDataset(load_source(str(path)), load_preparation(str(tiny_model)), language="hi")
    assert "characters of text" in dataset[3].reason


def test_row_12_a_text_of_megabytes_in_a_csv_is_refused_with_its_line(clips, tmp_path):
    rows = rows_of(clips)
    rows[3]["text"] = "a" * 10_000_000
    assert re.search(
        r"m\.csv:5: field larger.*a text that long", refusal(load_source, str(write_csv(tmp_path / "m.csv", rows)))
    )


BAD_SEGMENTS = [
    ([{"start": 0.5, "end": 0.1, "text": "घर"}], "ends before it starts"),
    ([{"start": 0.0, "end": 99.0, "text": "घर"}], "ends after the clip"),
    ([{"start": -3.0, "end": 0.5, "text": "घर"}], "starts before the clip"),
    ([{"start": 0.0, "end": 0.9, "text": word} for word in ("घर", "पानी", "आज", "कल")], "over one another"),
]


@pytest.mark.parametrize(("segments", "reason"), BAD_SEGMENTS)
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_row_12_a_clip_with_impossible_segments_is_reported_and_left_out(
    clips, tmp_path, suffix, segments, reason, tiny_model
):
    cell = json.dumps(segments) if suffix == "csv" else segments
    rows = rows_of(clips, 3, segments=cell, end_s=lambda number: 1.0 + 0.1 * number)
    path = TABLES[suffix](tmp_path / f"m.{suffix}", rows)
    finding = kinds(check(str(path), language="hi", audio=False))["bad-segments"]
    assert (finding["severity"], finding["count"]) == ("error", 3) and reason in finding["clips"][0]["detail"]
    dataset = SpeechDataset(load_source(str(path)), load_preparation(str(tiny_model)), language="hi")
    assert reason in dataset[0].reason


def test_check_finds_segments_beyond_the_end_of_a_file_from_its_header(clips, tmp_path):
    rows = rows_of(clips, 3, segments=[{"start": 0.0, "end": 20.0, "text": "घर"}])
    assert kinds(check(str(write_jsonl(tmp_path / "m.jsonl", rows)), language="hi", audio=False))["bad-segments"]


def test_segments_of_two_speakers_at_once_are_no_fault():
    assert not find_fault((Segment("a", 0.0, 4.0), Segment("b", 0.1, 4.0), Segment("c", 4.0, 6.0)), 6.2)


BIG = int("9" * 400)


@pytest.mark.parametrize(
    ("fields", "finding"),
    [
        ({"segments": 5}, "5 is not a list"),
        ({"segments": True}, "True is not a list"),
        ({"segments": {"start": 1}}, "is not a list"),
        ({"segments": "[1"}, "not JSON"),
        ({"segments": ["a"]}, "segment 1: no text"),
        ({"segments": [5]}, "segment 1: no text"),
        ({"segments": [{"text": "a", "start": BIG, "end": 1}]}, "segment 1: .* is no time"),
        ({"segments": [{"text": "a", "start": 0, "end": 1e308}]}, "1e.308 is no time"),
        ({"segments": [{"text": "a", "start": float("nan"), "end": 1}]}, "nan is no time"),
        ({"segments": [{"text": "a", "start": False, "end": 1}]}, "False is no time"),
        ({"segments": [{"text": 7, "start": 0, "end": 1}]}, "segment 1: no text"),
        ({"start": 1e308}, "1e.308 is no time"),
        ({"start": BIG}, "is no time"),
        ({"end": -BIG}, "is no time"),
        ({"start": [1]}, "is no time"),
        ({"end": {"s": 1}}, "is no time"),
        ({"end": "1e400"}, "is no time"),
        ({"text": True}, "the text is no string"),
        ({"text": {"a": 1}}, "the text is no string"),
        ({"text": ["a"] * 100_000}, "the text is no string"),
        ({"audio": 3}, "3 is no name of a sound file"),
        ({"audio": 3.5}, "is no name"),
        ({"audio": True}, "is no name"),
        ({"audio": [0.1] * 9999}, "is no name"),
        ({"audio": {"path": "x"}}, "is no name"),
        ({"no_speech": {"a": [1]}}, "no_speech is"),
    ],
)
def test_row_27_a_cell_of_the_wrong_type_is_refused_with_its_row(clips, tmp_path, fields, finding):
    rows = rows_of(clips, 3)
    rows[1] |= fields
    message = refusal(load_source, str(write_jsonl(tmp_path / "m.jsonl", rows)))
    assert re.search(rf"m\.jsonl:2: .*{finding}", message) and len(message) < 700


@pytest.mark.parametrize(
    ("fields", "finding"),
    [
        ({"segments": 5}, "holds int64, not lists"),
        ({"start": 1e308}, "is no time"),
        ({"text": True}, "holds bool, not texts"),
        ({"end": float("nan")}, "is no time"),
        ({"segments": [{"text": "a", "start": 1e300, "end": 1.0}]}, "is no time"),
    ],
)
def test_row_27_a_parquet_cell_of_the_wrong_type_is_refused_with_its_row(clips, tmp_path, fields, finding):
    rows = [{**row, **fields} for row in rows_of(clips, 2)]
    assert re.search(
        rf"m\.parquet:1: .*{finding}", refusal(load_source, str(write_parquet(tmp_path / "m.parquet", rows)))
    )


def test_a_missing_text_written_by_pandas_is_an_empty_text(clips, tmp_path):
    rows = rows_of(clips, 1, text=float("nan"))
    assert load_source(str(write_jsonl(tmp_path / "m.jsonl", rows)))[0].text == ""


def test_row_22_and_34_a_file_that_is_no_table_is_refused_with_the_reason(tmp_path):
    (tmp_path / "lfs.csv").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n")
    (tmp_path / "page.tsv").write_bytes(b"<!DOCTYPE html><html></html>")
    assert "git lfs pull" in refusal(load_source, str(tmp_path / "lfs.csv"))
    assert "an HTML page" in refusal(load_source, str(tmp_path / "page.tsv"))
    import os

    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "a pipe" in refusal(load_source, str(tmp_path / "pipe.jsonl"))
    os.mkfifo(tmp_path / "train.tsv")
    assert "no metadata.csv" in refusal(load_source, str(tmp_path))


CELLS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(10**300, 10**400),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["hin", "xx", "1e999", "train", "test", "a.wav", "[]", '[{"start": 1}]', "\ud800", "\x00", "a\nb"]),
    st.recursive(
        st.none() | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ),
)
NAMES = st.sampled_from(
    [
        "audio",
        "file_name",
        "text",
        "transcription",
        "language",
        "start",
        "end",
        "offset",
        "duration",
        "segments",
        "prompt",
        "split",
        "speaker_id",
        "no_speech",
        "client_id",
        "audio_file",
        "Audio ",
        "",
    ]
) | st.text(max_size=8)


def gives_rows_or_one_line(path: Path) -> None:
    tracemalloc.start()
    began = time.process_time()
    try:
        assert all(isinstance(row, Row) for row in load_source(str(path)))
    except UserError as error:
        assert path.name in str(error) and "\n" not in str(error) and len(str(error)) < 2000
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert time.process_time() - began < 1 and peak < 200_000_000


@FEW
@given(st.binary(max_size=400), st.sampled_from(["csv", "tsv", "jsonl", "json"]), st.booleans())
def test_any_bytes_give_rows_or_a_message_of_one_line(tmp_path_factory, content, suffix, has_header):
    path = tmp_path_factory.mktemp("bytes") / f"table.{suffix}"
    head = {"csv": b"audio,text,split\n", "tsv": b"client_id\taudio_file\ttranscription\n"}.get(
        suffix, b'{"audio": "x"}\n'
    )
    path.write_bytes((head if has_header else b"") + content)
    gives_rows_or_one_line(path)


@FEW
@given(st.lists(st.dictionaries(NAMES, CELLS, max_size=8), max_size=6), st.booleans())
def test_any_cells_give_rows_or_a_message_of_one_line(tmp_path_factory, rows, is_usual):
    path = tmp_path_factory.mktemp("cells") / "table.jsonl"
    usual = {"audio": "a.wav", "text": "a"} if is_usual else {}
    path.write_text("".join(json.dumps({**usual, **row}) + "\n" for row in rows), encoding="utf-8")
    gives_rows_or_one_line(path)


@pytest.mark.parametrize("asked", ["", ":nope"])
def test_a_line_break_in_the_name_of_a_split_is_shown_escaped(tmp_path, asked):
    path = tmp_path / "table.jsonl"
    path.write_text('{"audio": "a", "split": "train"}\n{"audio": "b", "split": "a\\nb"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"a\\nb \(1 row\)"):
        load_source(f"{path}{asked}")


@FEW
@given(st.lists(NAMES, max_size=6), st.lists(st.lists(st.text(max_size=12), max_size=6), max_size=4), st.booleans())
def test_any_names_of_columns_give_rows_or_a_message_of_one_line(tmp_path_factory, names, lines, is_csv):
    path = tmp_path_factory.mktemp("names") / ("table.csv" if is_csv else "table.tsv")
    # The csv module of Python 3.10 cannot write null characters. `test_any_bytes_give_rows_or_a_message_of_one_line`
    # has them.
    cells = [[cell.replace("\0", "") for cell in line] for line in (names, *lines)]
    with path.open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        csv.writer(file, delimiter="," if is_csv else "\t").writerows(cells)
    gives_rows_or_one_line(path)


SECONDS = st.floats() | st.integers() | st.integers(10**300, 10**400) | st.none() | st.booleans() | st.text(max_size=3)


@FEW
@given(
    st.lists(
        st.fixed_dictionaries({"start": SECONDS, "end": SECONDS, "text": st.text(max_size=5) | st.none()}), max_size=5
    )
    | CELLS,
    st.booleans(),
)
def test_any_segments_in_a_row_give_rows_or_a_message_of_one_line(tmp_path_factory, segments, has_text):
    path = tmp_path_factory.mktemp("segments") / "table.jsonl"
    row = {"audio": "a.wav", "segments": segments, **({"text": "a"} if has_text else {})}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    gives_rows_or_one_line(path)


def test_a_stream_in_one_unknown_language_gets_the_language_that_the_user_names(clips, tmp_path, tiny_model, speech):
    from whisper_peft.training.splits import load_rows

    path = write_parquet(tmp_path / "m.parquet", rows_of(clips, language="bho"))
    changes = {"data.train": [str(path)], "data.streaming": True, "data.test": None}
    rows = load_rows(tiny_recipe(tiny_model, speech, **changes))
    assert {row.language for row, _ in rows.stream.draw(20)} == {"hi"}
    assert any("say 'bho'" in remark for remark in rows.remarks)
    assert "say 'bho'" in refusal(load_rows, tiny_recipe(tiny_model, speech, **changes, **{"model.language": None}))


def test_check_obeys_the_options_times_and_prompt_column(clips, tmp_path, monkeypatch, capsys):
    from whisper_peft.cli import commands

    rows = [{**row, **source_times(number)} for number, row in enumerate(rows_of(clips, prompt="पहले"))]
    path = write_csv(tmp_path / "m.csv", rows)

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["whisper-peft", *arguments])
        with pytest.raises(SystemExit) as stop:
            commands.main()
        shown = capsys.readouterr()
        return stop.value.code, shown.out + shown.err

    code, shown = call("check", str(path), "--language", "hin", "--no-audio", "--quiet")
    assert code == 3 and "'prompt' is ignored" in shown and shown.count("another recording") == 1
    options = ("--times", "ignore", "--prompt-column", "prompt")
    code, shown = call("check", str(path), "--language", "hin", "--no-audio", "--quiet", *options)
    assert code == 0 and "ignored" not in shown and "recording" not in shown
