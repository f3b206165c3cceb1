"""Every row of a source is read as it was written, or one line says where the fault is and what to do."""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from whisper_peft.data.rows import Row, fingerprint, hold_out
from whisper_peft.data.sources import load_source
from whisper_peft.errors import UserError

TEXTS = ['नमस्ते, "दुनिया"', "It's 3,5 %; isn't it?", "tab-free\u2028line", "ആലിൻപഴം\u200d പഴുത്തു", "plain"]

COMMON_VOICE_11 = [
    "client_id",
    "path",
    "sentence",
    "up_votes",
    "down_votes",
    "age",
    "gender",
    "accents",
    "locale",
    "segment",
    "variant",
]
COMMON_VOICE_13 = [
    "client_id",
    "path",
    "sentence_id",
    "sentence",
    "sentence_domain",
    "up_votes",
    "down_votes",
    "age",
    "gender",
    "accents",
    "variant",
    "locale",
    "segment",
]


def write_csv(path: Path, rows: list[dict], *, encoding: str = "utf-8", delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_tsv(path: Path, rows: list[dict], columns: list[str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = columns or list(rows[0])
    lines = ["\t".join(columns), *("\t".join(str(row.get(column, "")) for column in columns) for row in rows)]
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    return path


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def clips(n: int, prefix: str = "") -> list[dict]:
    return [{"file_name": f"{prefix}{i}.wav", "transcription": f"{TEXTS[i % len(TEXTS)]} {i}"} for i in range(n)]


def refusal(source: object, **options: str) -> str:
    with pytest.raises(UserError) as refused:
        load_source(str(source), **options)
    message = str(refused.value)
    assert "\n" not in message
    return message


# Manifests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "write"), [("m.csv", write_csv), ("m.tsv", write_tsv), ("m.jsonl", write_jsonl)])
def test_a_manifest_gives_back_every_row_as_it_was_written(tmp_path, name, write):
    written = [
        {
            "audio": f"a b/{i}.wav",
            "text": text,
            "language": "hi",
            "start_s": 0.5 * i,
            "end_s": i + 2.25,
            "speaker": f"s{i}",
        }
        for i, text in enumerate(TEXTS)
    ]
    rows = load_source(str(write(tmp_path / name, written)))
    assert [row.text for row in rows] == TEXTS
    for i, row in enumerate(rows):
        line = i + (1 if name == "m.jsonl" else 2)
        assert row == Row(
            audio=str(tmp_path / f"a b/{i}.wav"),
            text=TEXTS[i],
            language="hi",
            start_s=0.5 * i,
            end_s=i + 2.25,
            speaker=f"s{i}",
            place=f"{name}:{line}",
        )


def test_quotes_have_a_meaning_in_csv_and_none_in_tsv(tmp_path):
    stray = [
        {"path": "1.mp3", "sentence": '"stray'},
        {"path": "2.mp3", "sentence": "b"},
        {"path": "3.mp3", "sentence": 'c"'},
    ]
    assert [row.text for row in load_source(str(write_tsv(tmp_path / "a.tsv", stray)))] == ['"stray', "b", 'c"']
    (tmp_path / "a.csv").write_text('path,sentence\n1.mp3,"stray\n2.mp3,b\n3.mp3,c\n', encoding="utf-8")
    assert re.search(r"a\.csv:2: .*quote", refusal(tmp_path / "a.csv"))
    (tmp_path / "b.csv").write_text(
        'path,sentence\n1.mp3,"two\nlines, one ""text"""\n2.mp3,in the "middle"\n', encoding="utf-8"
    )
    rows = load_source(str(tmp_path / "b.csv"))
    assert [(row.text, row.place) for row in rows] == [
        ('two\nlines, one "text"', "b.csv:2"),
        ('in the "middle"', "b.csv:4"),
    ]


@pytest.mark.parametrize(
    ("encoding", "delimiter"), [("utf-8-sig", ","), ("utf-8", ";"), ("utf-8-sig", ";"), ("utf-8", "\t")]
)
def test_csv_is_read_as_spreadsheets_write_it(tmp_path, encoding, delimiter):
    path = write_csv(tmp_path / "m.csv", clips(5), encoding=encoding, delimiter=delimiter)
    # A spreadsheet can leave empty rows below the table.
    path.write_bytes(path.read_bytes() + (delimiter + "\r\n").encode() * 3)
    assert [row.text for row in load_source(str(path))] == [clip["transcription"] for clip in clips(5)]


def test_windows_line_ends_and_blank_lines_do_not_change_the_rows(tmp_path):
    for name in ("m.csv", "m.tsv"):
        between = "," if name == "m.csv" else "\t"
        (tmp_path / name).write_bytes(f"audio{between}text\r\n1.wav{between}a\r\n\r\n2.wav{between}b".encode())
        assert [(row.text, row.place) for row in load_source(str(tmp_path / name))] == [
            ("a", f"{name}:2"),
            ("b", f"{name}:4"),
        ]
    (tmp_path / "m.jsonl").write_bytes(
        b'\xef\xbb\xbf{"audio": "1.wav", "text": "a"}\r\n\r\n{"audio": "2.wav", "text": "b"}'
    )
    assert [row.place for row in load_source(str(tmp_path / "m.jsonl"))] == ["m.jsonl:1", "m.jsonl:3"]


def test_a_nemo_manifest_is_read_with_offset_and_duration(tmp_path):
    for name in ("m.jsonl", "train_manifest.json"):
        path = write_jsonl(
            tmp_path / name,
            [
                {"audio_filepath": "/abs/1.wav", "text": "a", "offset": 1.5, "duration": 2.0, "lang": "ml"},
                {"audio_filepath": "2.wav", "text": "b", "duration": 3.25},
            ],
        )
        first, second = load_source(str(path))
        assert (first.audio, first.start_s, first.end_s, first.language) == ("/abs/1.wav", 1.5, 3.5, "ml")
        assert (second.audio, second.start_s, second.end_s) == (str(tmp_path / "2.wav"), 0.0, 3.25)


def test_a_duration_without_offset_in_csv_is_not_an_end_time(tmp_path):
    path = write_csv(tmp_path / "m.csv", [{"file_name": "1.wav", "text": "a", "duration": 3.0}])
    assert load_source(str(path))[0].end_s is None


def test_no_speech_is_read_in_its_usual_spellings(tmp_path):
    path = write_jsonl(
        tmp_path / "m.jsonl",
        [{"audio": "1.wav", "no_speech": True}, {"audio": "2.wav", "text": "a", "no_speech": False}],
    )
    assert [(row.text, row.no_speech) for row in load_source(str(path))] == [("", True), ("a", False)]
    path = write_csv(
        tmp_path / "m.csv",
        [
            {"audio": f"{i}.wav", "text": "", "no_speech": word}
            for i, word in enumerate(["true", "1", "Yes", "", "0", "FALSE"])
        ],
    )
    assert [row.no_speech for row in load_source(str(path))] == [True] * 3 + [False] * 3
    write_csv(path, [{"audio": "1.wav", "text": "", "no_speech": "perhaps"}])
    assert "m.csv:2: no_speech is 'perhaps'" in refusal(path)


def test_a_clip_with_an_empty_text_is_still_a_row(tmp_path):
    path = write_jsonl(
        tmp_path / "m.jsonl",
        [{"audio": "1.wav", "text": ""}, {"audio": "2.wav", "text": None}, {"audio": "3.wav", "text": 7}],
    )
    assert [row.text for row in load_source(str(path))] == ["", "", "7"]


def test_the_language_of_a_row_becomes_a_code_of_whisper(tmp_path):
    names = ["Hindi", "hi-IN", "castilian", "", "lg", "ga-IE"]
    path = write_csv(tmp_path / "m.csv", [{"audio": "1.wav", "text": "a", "language": name} for name in names])
    assert [row.language for row in load_source(str(path))] == ["hi", "hi", "es", None, None, None]
    write_csv(path, [{"audio": "1.wav", "text": "a", "language": "hindii"}])
    assert re.search(r"m\.csv:2: language 'hindii'.*did you mean hindi", refusal(path))


@pytest.mark.parametrize(
    "audio_name",
    ["audio", "file_name", "file", "path", "audio_filepath", "audio_path", "wav", "filename", " File_Name"],
)
@pytest.mark.parametrize(
    "text_name", ["transcription", "text", "sentence", "transcript", "transcription_text", "normalized_text", "Text"]
)
def test_columns_are_found_by_their_usual_names(tmp_path, audio_name, text_name):
    path = write_csv(tmp_path / "m.csv", [{"x": 1, text_name: "t", audio_name: "1.wav"}])
    assert [(row.text, row.audio) for row in load_source(str(path))] == [("t", str(tmp_path / "1.wav"))]


def test_the_user_must_choose_between_two_text_columns_that_differ(tmp_path):
    rows = [
        {"file": "1.wav", "text": "a", "normalized_text": "a"},
        {"file": "2.wav", "text": "B!", "normalized_text": "b"},
    ]
    path = write_csv(tmp_path / "m.csv", rows)
    message = refusal(path)
    assert "m.csv:3" in message and "'text' and 'normalized_text'" in message and "data.text_column" in message
    assert [row.text for row in load_source(str(path), text_column="normalized_text")] == ["a", "b"]
    # Both columns have the same text.
    assert len(load_source(str(write_csv(path, rows[:1])))) == 1
    write_csv(path, [{"file": "1.wav", "path": "x/1.wav", "text": "a"}])
    assert "data.audio_column" in refusal(path)
    assert load_source(str(path), audio_column="path")[0].audio == str(tmp_path / "x/1.wav")
    # An empty column is no candidate.
    write_csv(path, [{"file": "", "path": "x/1.wav", "text": "a"}])
    assert load_source(str(path))[0].audio == str(tmp_path / "x/1.wav")


def test_the_error_for_a_missing_column_names_the_columns_that_exist(tmp_path):
    path = write_csv(tmp_path / "m.csv", [{"clip": "1.wav", "words": "a"}])
    assert "'clip', 'words'" in refusal(path) and "data.audio_column" in refusal(path)
    assert "data.text_column" in refusal(path, audio_column="clip")
    assert "no column 'wrds'" in refusal(path, audio_column="clip", text_column="wrds")
    assert load_source(str(path), audio_column="clip", text_column="words")[0].text == "a"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.jsonl", '{"audio": "1.wav", "text": "a"}\n{"audio": "2.wav", "text"\n', "m.jsonl:2: not JSON"),
        ("m.jsonl", '{"audio": "1.wav", "text": "a"}\n["2.wav", "b"]\n', "m.jsonl:2: not a JSON object"),
        ("m.jsonl", "[" * 100_000, "m.jsonl"),
        ("m.json", '[{"start": 0, "end": 1, "text": "a"}]', "m.json: a JSON list"),
        ("m.jsonl", '{"audio": "1.wav"}\n', "m.jsonl:1: no column for the text"),
        ("m.jsonl", '{"text": "a"}\n', "m.jsonl:1: no column for the audio"),
        ("m.jsonl", '{"audio": null, "text": "a"}\n', "m.jsonl:1: no name of a sound file"),
        ("m.jsonl", '{"audio": {"path": "1.wav"}, "text": "a"}\n', "m.jsonl:1: .*is no name of a sound file"),
        ("m.jsonl", '{"audio": "1.wav", "text": ["a"]}\n', "m.jsonl:1: the text is no string"),
        ("m.jsonl", '{"audio": "1.wav", "text": "\\ud83d"}\n', "m.jsonl:1: half of a surrogate"),
        ("m.jsonl", '{"audio": "1.wav", "text": "a", "start_s": "soon"}\n', "m.jsonl:1: 'soon' is no time"),
        ("m.jsonl", '{"audio": "1.wav", "text": "a", "end_s": NaN}\n', "m.jsonl:1: nan is no time"),
        ("m.jsonl", '{"audio": "1.wav", "text": "a", "end_s": true}\n', "m.jsonl:1: True is no time"),
        ("m.csv", "audio,text\n1.wav,a,b\n", "m.csv:2: 3 fields.*2.*quotes"),
        ("m.csv", "audio,text\n1.wav\n", "m.csv:2: 1 fields"),
        ("m.csv", 'audio,text\n1.wav,"' + "x" * 200_000 + '"\n', "m.csv:2: field larger than field limit"),
        ("m.csv", "audio,text\n1.wav,a\0b\n", "m.csv:2: NUL bytes"),
        ("m.tsv", "audio\ttext\n1.wav\ta\0b\n", "m.tsv:2: NUL bytes"),
        ("m.jsonl", '{"audio": "1.wav", "text": "a\0b"}\n', "m.jsonl:1: NUL bytes"),
        ("m.tsv", "audio\ttext\n1.wav\ta\tb\n", "m.tsv:2: 3 fields"),
        ("m.csv", "", "no rows"),
        ("m.csv", "audio,text\n", "no rows"),
        ("m.tsv", "", "no rows"),
        ("m.jsonl", "\n\n", "no rows"),
    ],
)
def test_a_fault_in_a_manifest_is_named_with_its_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    assert re.search(message, refusal(tmp_path / name)[:2000])


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "cp1252"])
def test_other_encodings_are_refused(tmp_path, suffix, encoding):
    write: Callable = {"csv": write_csv, "tsv": write_tsv, "jsonl": write_jsonl}[suffix]
    path = write(tmp_path / f"m.{suffix}", [{"audio": "1.wav", "text": "größer"}])
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    assert "UTF-8" in refusal(path) and path.name in refusal(path)


def test_any_bytes_give_rows_or_an_error_of_one_line(tmp_path):
    chance = random.Random(0)
    alphabet = [
        '"',
        ",",
        "\t",
        "\n",
        "\r",
        "{",
        "}",
        ":",
        "audio",
        "text",
        "a",
        "\0",
        "\u0915",
        "[",
        "\\",
        "1e999",
        "'",
    ]
    for round_ in range(400):
        path = tmp_path / f"m{round_}.{chance.choice(['csv', 'tsv', 'jsonl', 'json'])}"
        head = chance.choice(["", "audio,text\n", "audio\ttext\n", '{"audio": "x", "text": "y"}\n'])
        path.write_bytes((head + "".join(chance.choices(alphabet, k=30))).encode() + chance.choice([b"", b"\xff"]))
        try:
            assert all(isinstance(row, Row) for row in load_source(str(path)))
        except UserError as error:
            assert "\n" not in str(error)


# Folders -------------------------------------------------------------------------------------------------------------


def test_an_audio_folder_with_one_table_is_read(tmp_path):
    for name, write in (("metadata.csv", write_csv), ("metadata.jsonl", write_jsonl)):
        folder = tmp_path / name
        write(folder / name, clips(4))
        rows = load_source(str(folder))
        assert [row.audio for row in rows] == [str(folder / f"{i}.wav") for i in range(4)]
        assert rows == load_source(str(folder / name))


def test_an_audio_folder_is_read_by_splits_and_their_synonyms(tmp_path):
    for split, n in (("train", 5), ("validation", 3), ("test", 2)):
        write_csv(tmp_path / split / "metadata.csv", clips(n, split))
    message = refusal(tmp_path)
    assert all(f"{tmp_path}:{split}" in message for split in ("train", "validation", "test"))
    assert len(load_source(f"{tmp_path}:train")) == 5
    for synonym in ("validation", "valid", "val", "dev"):
        assert load_source(f"{tmp_path}:{synonym}")[0].audio == str(tmp_path / "validation/validation0.wav")
    assert len(load_source(f"{tmp_path}:train+dev+train")) == 8
    assert load_source(f"{tmp_path}/test") == load_source(f"{tmp_path}:test")
    assert "no split 'other'" in refusal(f"{tmp_path}:other") and "validation" in refusal(f"{tmp_path}:other")
    assert "split without a name" in refusal(f"{tmp_path}:") and "split without a name" in refusal(f"{tmp_path}:train+")


def test_an_audio_folder_with_one_split_needs_no_split_name(tmp_path):
    write_csv(tmp_path / "train" / "metadata.csv", clips(5))
    assert len(load_source(str(tmp_path))) == 5


def test_one_table_of_an_audio_folder_can_hold_all_splits(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
    write_csv(tmp_path / "metadata.csv", clips(3, "train/") + clips(2, "test/"))
    assert len(load_source(str(tmp_path))) == 5
    assert [row.audio for row in load_source(f"{tmp_path}:test")] == [str(tmp_path / f"test/{i}.wav") for i in range(2)]
    assert "no split 'dev'" in refusal(f"{tmp_path}:dev")


def test_an_existing_path_with_a_colon_is_not_read_as_a_split(tmp_path):
    write_csv(tmp_path / "data:train" / "metadata.csv", clips(2))
    write_csv(tmp_path / "data" / "train" / "metadata.csv", clips(7))
    assert len(load_source(f"{tmp_path}/data:train")) == 2
    path = write_csv(tmp_path / "a:b.csv", clips(3))
    assert len(load_source(str(path))) == 3


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    write_csv(tmp_path / "set" / "metadata.csv", clips(1))
    monkeypatch.chdir(tmp_path)
    for source in ("set", "./set", "set/metadata.csv", "set/../set"):
        row = load_source(source)[0]
        assert isinstance(row.audio, str) and Path(row.audio).is_absolute()
        assert Path(row.audio).resolve() == (tmp_path / "set/0.wav").resolve()


def test_two_tables_in_one_folder_are_refused(tmp_path):
    write_csv(tmp_path / "metadata.csv", clips(1))
    write_jsonl(tmp_path / "metadata.jsonl", clips(1))
    assert "metadata.csv, metadata.jsonl" in refusal(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "a.txt",
        "a.zip",
        "a",
        "",
        "x\0y",
    ],
)
def test_the_error_for_something_that_is_no_source_lists_the_kinds_of_sources(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    if name.startswith("a"):
        (tmp_path / name).write_bytes(b"x")
    message = refusal(name) if name else refusal(tmp_path)
    assert "AudioFolder" in message and "Common Voice" in message and ".jsonl" in message
    assert ("Unpack it" in message) == (name == "a.zip")


@pytest.mark.parametrize("name", ["owner/name", "hf:owner/name:en:train", "typo/train:dev"])
def test_a_missing_folder_is_looked_for_on_the_hub_which_tests_cannot_reach(name):
    assert "the Hub cannot be reached" in refusal(name) and "no such file or folder" in refusal(name)


def test_a_folder_of_sound_files_without_a_table_is_refused(tmp_path):
    (tmp_path / "rec_2.wav").write_bytes(b"")
    (tmp_path / "rec_2.txt").write_bytes(b"")
    assert "no metadata.csv" in refusal(tmp_path)
    (tmp_path / "manifest.jsonl").write_bytes(b"")
    assert "did you mean" in refusal(tmp_path) and "manifest.jsonl" in refusal(tmp_path)
    (tmp_path / "0001.parquet").write_bytes(b"")
    assert "cannot be read as a data set" in refusal(f"{tmp_path}:train")


def test_a_table_without_a_split_column_has_no_splits(tmp_path):
    path = write_csv(tmp_path / "m.csv", clips(2))
    assert "only folders have splits" in refusal(f"{path}:train")


# Common Voice --------------------------------------------------------------------------------------------------------


def common_voice(folder: Path, columns: list[str], locale: str = "te", **sizes: int) -> Path:
    (folder / "clips").mkdir(parents=True)
    for split, n in sizes.items():
        rows = [
            {
                "client_id": f"speaker{i % 3}",
                "path": f"{split}_{i}.mp3",
                "sentence": f'వాక్యం "{i}',
                "sentence_id": f"id{i}",
                "locale": locale,
            }
            for i in range(n)
        ]
        write_tsv(folder / f"{split}.tsv", rows, columns)
    write_tsv(folder / "reported.tsv", [{"sentence": "x", "sentence_id": "y", "locale": "te", "reason": "z"}])
    write_tsv(folder / "clip_durations.tsv", [{"clip": "a.mp3", "duration[ms]": "1"}])
    return folder


@pytest.mark.parametrize("columns", [COMMON_VOICE_11, COMMON_VOICE_13])
def test_a_common_voice_release_is_read_by_splits(tmp_path, columns):
    folder = common_voice(tmp_path / "corpus" / "te", columns, train=7, dev=3, test=0, other=2)
    for source in (folder, folder.parent):
        rows = load_source(f"{source}:train+dev")
        assert [row.text for row in rows] == [f'వాక్యం "{i}' for n in (7, 3) for i in range(n)]
        assert rows[0] == Row(
            audio=str(folder / "clips/train_0.mp3"),
            text='వాక్యం "0',
            language="te",
            speaker="speaker0",
            place="train.tsv:2",
        )
        assert load_source(f"{source}:validation") == rows[7:]
        assert len(load_source(f"{source}:other")) == 2
        for split, state in (("test", "is empty"), ("validated", "is not there")):
            message = refusal(f"{source}:{split}")
            assert state in message and "train (7 rows)" in message and "test (0 rows)" in message
            assert "reported" not in message and "clip_durations" not in message
        assert "name a split" in refusal(source) and "dev (3 rows)" in refusal(source)
    assert load_source(str(folder / "train.tsv")) == load_source(f"{folder}:train")


def test_common_voice_in_a_language_unknown_to_whisper_has_rows_without_a_language(tmp_path):
    folder = common_voice(tmp_path / "lg", COMMON_VOICE_13, "lg", train=2)
    assert [row.language for row in load_source(f"{folder}:train")] == [None, None]


def test_common_voice_with_several_languages_needs_the_name_of_one(tmp_path):
    for locale in ("te", "ml"):
        common_voice(tmp_path / locale, COMMON_VOICE_13, locale, train=1)
    assert "several languages" in refusal(f"{tmp_path}:train")
    assert len(load_source(f"{tmp_path / 'te'}:train")) == 1


# Rows ----------------------------------------------------------------------------------------------------------------


def test_many_rows_load_without_touching_each_sound_file(tmp_path, monkeypatch):
    path = common_voice(tmp_path / "te", COMMON_VOICE_13, train=20_000)
    monkeypatch.setattr(Path, "stat", counted := Counter(Path.stat))
    assert len(load_source(f"{path}:train")) == 20_000
    assert counted.n < 100


class Counter:
    """Wraps a method and counts its calls."""

    def __init__(self, method: Callable) -> None:
        self.method, self.n = method, 0

    def __get__(self, owner: object, _: type) -> Callable:
        def call(*args: object, **options: object) -> object:
            self.n += 1
            return self.method(owner, *args, **options)

        return call


def test_the_fingerprint_changes_with_path_times_text_and_order_of_the_rows():
    rows = [Row("/a.wav", "a"), Row("/b.wav", "b", start_s=1.0, end_s=2.0)]
    assert fingerprint(rows) == fingerprint(iter(rows)) and re.fullmatch("[0-9a-f]{64}", fingerprint(rows))
    assert fingerprint(rows) == fingerprint([Row("/a.wav", "a", speaker="s", place="p", language="hi"), rows[1]])
    others = [
        rows[::-1],
        rows[:1],
        [Row("/a.wav", "A"), rows[1]],
        [Row("/A.wav", "a"), rows[1]],
        [rows[0], Row("/b.wav", "b", start_s=1.0, end_s=2.5)],
        [rows[0], Row("/b.wav", "b", start_s=0.5, end_s=2.0)],
        [Row(b"RIFF", "a"), rows[1]],
        [Row("/a.wav", "a\n/b.wav"), rows[1]],
    ]
    assert len({fingerprint(other) for other in [rows, *others]}) == len(others) + 1


@pytest.mark.parametrize("n", [2, 9, 10, 11, 95, 1000, 8000])
def test_about_a_tenth_is_held_out_and_no_text_is_in_both_splits(n):
    chance = random.Random(n)
    rows = [Row(f"/{i}.wav", f"Text  {chance.randrange(n)}", speaker="s" if i else None) for i in range(n)]
    rows[0] = Row("/0.wav", "only here")
    train, held_out = hold_out(rows, seed=1)
    assert 1 <= len(held_out) <= min(500, max(1, round(n / 10))) or n < 20
    assert len(held_out) >= min(500, n // 10) * 0.8
    assert sorted(train + held_out, key=rows.index) == rows if n < 2000 else len(train) + len(held_out) == n
    assert not {row.text for row in train} & {row.text for row in held_out}
    assert (train, held_out) == hold_out(rows, seed=1)
    if n >= 95:
        assert hold_out(rows, seed=2)[1] != held_out


def test_clips_with_empty_texts_do_not_count_as_clips_of_one_text():
    rows = [Row(f"/{i}.wav", "", no_speech=True) for i in range(50)]
    assert [len(side) for side in hold_out(rows, seed=0)] == [45, 5]


@pytest.mark.parametrize(("n_speakers", "n"), [(2, 40), (3, 31), (20, 400), (700, 9000)])
def test_no_held_out_speaker_is_in_training(n_speakers, n):
    chance = random.Random(n)
    rows = [Row(f"/{i}.wav", f"text {i}", speaker=f"s{chance.randrange(n_speakers)}") for i in range(n)]
    for seed in range(5):
        train, held_out = hold_out(rows, seed=seed)
        assert train and held_out and len(held_out) <= 500
        assert len(train) + len(held_out) == n
        assert not {row.speaker for row in train} & {row.speaker for row in held_out}
        if n_speakers >= 20:
            assert 0.6 * min(500, n / 10) <= len(held_out) <= n / 10


def test_at_most_500_clips_are_held_out_of_two_large_speakers():
    rows = [Row(f"/{i}.wav", f"text {i}", speaker=f"s{i % 2}") for i in range(4000)]
    train, held_out = hold_out(rows, seed=0)
    assert len(train) == 2000 and len(held_out) == 500
    assert {row.speaker for row in train}.isdisjoint(row.speaker for row in held_out)


def test_a_text_shared_with_training_is_left_out_of_the_held_out_speakers():
    rows = [Row(f"/{i}.wav", "same for all" if i % 10 == 0 else f"text {i}", speaker=f"s{i // 20}") for i in range(800)]
    _, held_out = hold_out(rows, seed=3)
    assert len(held_out) == 72 and "same for all" not in {row.text for row in held_out}
    everybody = [Row(f"/{i}.wav", f"word {i % 20}", speaker=f"s{i // 20}") for i in range(800)]
    assert [len(side) for side in hold_out(everybody, seed=3)] == [720, 80]


def test_rows_that_cannot_be_split_are_refused():
    for rows in ([Row("/a.wav", "a")], [Row(f"/{i}.wav", "same") for i in range(9)]):
        with pytest.raises(UserError, match="--eval"):
            hold_out(rows, seed=0)


def test_the_data_sets_of_the_shared_folder_are_read(shared):
    data = shared / "data"
    assert [len(load_source(f"{data}/hindi_tts:{split}")) for split in ("train", "dev", "test")] == [524, 70, 90]
    assert len(load_source(f"{data}/malayalam:train+validation+test")) == 914
    assert {row.language for row in load_source(f"{data}/malayalam/train")} == {"ml"}
    assert len(load_source(str(data / "webm"))) == 8
    assert len(load_source(f"{data}/common_voice_te:other")) == 119
    assert "other (119 rows)" in refusal(f"{data}/common_voice_te:train")
    for row in load_source(f"{data}/common_voice_te:other") + load_source(f"{data}/malayalam:test"):
        assert isinstance(row.audio, str) and Path(row.audio).is_file()
    train, held_out = hold_out(load_source(f"{data}/malayalam:train"), seed=0)
    assert 40 <= len(held_out) <= 68 and {row.speaker for row in train}.isdisjoint(row.speaker for row in held_out)
