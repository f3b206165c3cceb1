"""Addresses in data sets, typed columns, cards, archives, permissions and names: each fault ends in one line."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import shutil
import stat
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from conftest import make_speech, make_wave
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_peft import evaluate
from whisper_peft.data import archives
from whisper_peft.data.addresses import HubSound, is_address, locate_sound
from whisper_peft.data.archives import unpack
from whisper_peft.data.audio import AudioError, duration_s, load_audio
from whisper_peft.data.rows import Row
from whisper_peft.data.sources import load_source
from whisper_peft.data.streams import first_rows
from whisper_peft.errors import UserError
from whisper_peft.runs import read_jsonl


def refusal(read, *arguments, **options) -> str:
    """Return the message of a refusal, which must be one line."""
    with pytest.raises(UserError) as refused:
        read(*arguments, **options)
    message = str(refused.value)
    assert "\n" not in message
    return message


def wav(seconds: float = 0.5) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, make_wave(seconds), 16000, format="WAV")
    return file.getvalue()


# addresses ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server():
    """A server that keeps the path of each request."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(wav())

        do_HEAD = do_POST = do_GET

        def log_message(self, *arguments):
            """Print nothing."""

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_address[1]}", requests
    running.shutdown()
    running.server_close()


def addresses(http: str, folder: Path) -> list[str]:
    """Return audio paths that are addresses, not files."""
    (folder / "here.wav").write_bytes(wav())
    return [
        f"{http}/internal.wav",
        f"HTTP{http[4:]}/x.wav",
        f"zip://1.wav::{http}/clips.zip",
        f"simplecache::{http}/x.wav",
        f"file://{folder}/here.wav",
        "s3://bucket/1.wav",
        "hf://datasets/other/name/1.wav",
        "ftp://127.0.0.1/1.wav",
        "\\\\127.0.0.1\\share\\1.wav",
        f"memory://x::{http}/y",
        "github://a:b@main/x.wav",
    ]


def write_parquet(path: Path, **columns) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


STRUCT = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "parquet struct", "stream"])
def test_row_40_addresses_in_a_data_set_are_never_opened(tmp_path, server, kind):
    http, requests = server
    listed = addresses(http, tmp_path)
    path = tmp_path / f"a.{'parquet' if kind in ('parquet struct', 'stream') else kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"audio_filepath": url, "text": "a"}) + "\n" for url in listed))
    elif kind == "csv":
        path.write_text("file_name,text\n" + "".join(f"{url},a\n" for url in listed))
    elif kind == "parquet":
        write_parquet(path, audio=listed, text=["a"] * len(listed))
    else:
        cells = pyarrow.array([{"bytes": None, "path": url} for url in listed], type=STRUCT)
        write_parquet(path, audio=cells, text=["a"] * len(listed))
    rows = first_rows(str(path), load_source, most=100) if kind == "stream" else load_source(str(path))
    assert len(rows) == len(listed)
    for number, (row, address) in enumerate(zip(rows, listed, strict=True)):
        with pytest.raises(AudioError, match="addresses in a data set are never opened"):
            row.sound()
        assert row.name == address or row.name.endswith(f"#{number}")
    assert requests == []


def test_row_40_check_names_the_rows_with_addresses(tmp_path, server, run_cli):
    http, requests = server
    folder = make_speech(tmp_path / "speech", clips=3)
    with (folder / "metadata.csv").open("a") as file:
        file.write(f"{http}/internal.wav,secret words\n")
    done = run_cli("check", folder, "--json")
    assert done.returncode == 3, done.stderr
    findings = [finding for finding in json.loads(done.stdout)["findings"] if finding["severity"] == "error"]
    assert [clip["place"] for finding in findings for clip in finding["clips"]] == ["metadata.csv:5"]
    assert "never opened" in findings[0]["clips"][0]["detail"]
    assert requests == []


def test_row_40_a_table_with_images_is_read_without_opening_their_addresses(tmp_path, server):
    """`datasets` decodes the images of a row together with its text, and would open their addresses."""
    http, requests = server
    kind = datasets.Features(
        {
            "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "text": datasets.Value("string"),
            "picture": datasets.Image(),
            "prompt": datasets.Image(),
            "more": datasets.List(datasets.Image()),
        }
    )
    remote = {"bytes": None, "path": f"{http}/a.png"}
    row = {"audio": {"bytes": wav(), "path": None}, "text": "a", "picture": remote, "prompt": remote, "more": [remote]}
    table = datasets.Dataset.from_list([row, row], features=kind)
    path = tmp_path / "a.parquet"
    with path.open("wb") as file:
        pyarrow.parquet.write_table(table.data.table, file)
    for rows in (load_source(str(path)), first_rows(str(path), load_source, most=10)):
        assert [len(load_audio(loaded_row.sound())) for loaded_row in rows] == [8000, 8000]
    assert requests == []


def test_row_40_a_play_list_in_place_of_sound_opens_no_address(tmp_path, server):
    http, requests = server
    pages = {
        "a.m3u8": f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{http}/a.ts\n#EXT-X-ENDLIST\n",
        "b.m3u8": f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1000\n{http}/b.m3u8\n",
        "c.wav": f"ffconcat version 1.0\nfile {http}/c.wav\n",
        "d.wav": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    }
    for name, page in pages.items():
        (tmp_path / name).write_text(page)
        for read in (load_audio, duration_s):
            began = time.monotonic()
            with pytest.raises(AudioError):
                read(str(tmp_path / name))
            # For a session description, the reader used to wait 10 s for sound from the network.
            assert time.monotonic() - began < 8
    assert requests == []


def test_row_40_a_hub_data_set_opens_its_own_files_and_no_others():
    own = [
        "1.wav",
        "./clips/1.wav",
        "hf://datasets/me/it/1.wav",
        "hf://datasets/me/it@main/1.wav",
        "zip://1.wav::hf://datasets/me/it/clips.zip",
    ]
    assert all(isinstance(locate_sound(name, "me/it"), HubSound) for name in own)
    others = [
        "hf://datasets/me/item/1.wav",
        "hf://datasets/me/it/../other/1.wav",
        "hf://me/it/1.wav",
        "../other/1.wav",
        "http://x::hf://datasets/me/it/1.wav",
        "zip://1.wav::http://x/hf://datasets/me/it/clips.zip",
    ]
    assert not any(isinstance(locate_sound(name, "me/it"), (HubSound, str)) for name in others)


@pytest.mark.parametrize(
    "name", ["C:/clips/1.wav", "C:\\clips\\1.wav", "a:b.wav", "a::b.wav", "1.wav", "/x/1.wav", "x//y"]
)
def test_plain_paths_are_no_addresses(name):
    assert not is_address(name)


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=40))
def test_no_name_in_a_local_table_leads_to_the_hub(name):
    assert not isinstance(locate_sound(name, "/folder"), HubSound)


def test_row_40_a_card_that_names_addresses_is_refused(tmp_path, server):
    http, requests = server
    write_parquet(tmp_path / "a.parquet", audio=["1.wav"], text=["a"])
    for files in (
        f"{http}/x.parquet",
        f"{{train: '{http}/x.parquet'}}",
        f"[{{split: train, path: 'zip://*::{http}/a'}}]",
    ):
        (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {files}\n---\n")
        message = refusal(load_source, str(tmp_path))
        assert "README.md: configs names" in message and "never opened" in message
    assert requests == []


# cards ----------------------------------------------------------------------------------------------------------------

GROWING = "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))])


@pytest.mark.parametrize(
    "page",
    [
        "configs: [",
        "a: b: c",
        "configs:\n\t- x",
        GROWING,
        "[" * 10_000,
        "d: 2024-02-31",
        "- a\n- b",
        "just words",
        "!!python/x 1",
    ],
    ids=lambda page: repr(page[:12]),
)
@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
def test_row_31_a_broken_card_is_refused_with_its_name(tmp_path, name, page):
    write_parquet(tmp_path / "a.parquet", audio=["1.wav"], text=["a"])
    (tmp_path / name).write_text(f"---\n{page}\n---\n\n# A data set\n" if name == "README.md" else page)
    message = refusal(load_source, str(tmp_path))
    assert f"{tmp_path}/{name}: its YAML settings" in message and len(message) < 700


@pytest.mark.parametrize(
    "page",
    [
        "configs: 5",
        "configs:\n- 5",
        "dataset_info: [5]",
        "dataset_info:\n  features: evil",
        "configs:\n- data_files: {a: 5}",
    ],
)
def test_row_31_a_card_with_wrong_types_is_ignored_or_refused_in_one_line(tmp_path, page):
    write_parquet(tmp_path / "a.parquet", audio=["1.wav"], text=["a"])
    (tmp_path / "README.md").write_text(f"---\n{page}\n---\n")
    try:
        load_source(str(tmp_path))
    except UserError as error:
        assert str(tmp_path) in str(error) and "\n" not in str(error)


def test_a_data_set_with_a_valid_card_is_read(tmp_path):
    write_parquet(tmp_path / "a.parquet", audio=["1.wav"], text=["a"])
    for page in ("# only words\n", "---\nlicense: cc0-1.0\n---\n", "---\n---\n", "--- a rule\n", ""):
        (tmp_path / "README.md").write_text(page)
        assert len(load_source(str(tmp_path))) == 1


# Parquet --------------------------------------------------------------------------------------------------------------

ARRAY = pyarrow.struct([("array", pyarrow.list_(pyarrow.float32())), ("sampling_rate", pyarrow.int64())])


@pytest.mark.parametrize(
    ("column", "values", "kind", "said"),
    [
        ("audio", [1, 2], pyarrow.int64(), "'audio' holds int64"),
        ("audio", [True, False], pyarrow.bool_(), "'audio' holds bool"),
        ("audio", [[0.5], [0.1]], pyarrow.list_(pyarrow.float32()), "'audio' holds List"),
        ("audio", [{"array": [0.1], "sampling_rate": 1}] * 2, ARRAY, "decoded before; store the sound files"),
        ("audio", [{"x": 1}] * 2, pyarrow.struct([("x", pyarrow.int64())]), "'audio' holds"),
        (
            "audio",
            [{"bytes": 1, "path": "a"}] * 2,
            pyarrow.struct([("bytes", pyarrow.int64()), ("path", pyarrow.string())]),
            "'audio' holds",
        ),
        ("audio", [None, None], pyarrow.null(), "'audio' holds null"),
        ("text", [[1], [2]], pyarrow.list_(pyarrow.int64()), "'text' holds List"),
        ("text", [{"a": 1}] * 2, pyarrow.struct([("a", pyarrow.int64())]), "'text' holds"),
        ("text", [True, False], pyarrow.bool_(), "'text' holds bool"),
        ("segments", [5, 6], pyarrow.int64(), "'segments' holds int64"),
        ("segments", [[5], [6]], pyarrow.list_(pyarrow.int64()), "'segments' holds List"),
        ("start", [True, False], pyarrow.bool_(), "'start' holds bool"),
        ("end", [[1.0], [2.0]], pyarrow.list_(pyarrow.float64()), "'end' holds List"),
        ("no_speech", [[1.0], [2.0]], pyarrow.list_(pyarrow.float64()), "'no_speech' holds List"),
        ("language", [[1.0], [2.0]], pyarrow.list_(pyarrow.float64()), "'language' holds List"),
        ("speaker_id", [{"a": 1}] * 2, pyarrow.struct([("a", pyarrow.int64())]), "'speaker_id' holds"),
    ],
)
def test_row_27_a_column_of_the_wrong_type_is_refused_with_its_name(tmp_path, column, values, kind, said):
    columns = {"audio": ["1.wav", "2.wav"], "text": ["a", "b"], column: pyarrow.array(values, type=kind)}
    path = write_parquet(tmp_path / "a.parquet", **columns)
    for message in (refusal(load_source, str(path)), refusal(first_rows, str(path), load_source, most=9)):
        assert str(path) in message and said in message, message


def test_row_27_a_table_without_rows_or_with_doubled_column_names_is_refused(tmp_path):
    path = write_parquet(
        tmp_path / "a.parquet", audio=pyarrow.array([], type=STRUCT), text=pyarrow.array([], type="string")
    )
    assert "a.parquet: no rows in it" in refusal(load_source, str(path))
    sound = pyarrow.array([{"bytes": wav(), "path": None}], type=STRUCT)
    table = pyarrow.table([sound, pyarrow.array(["a"]), pyarrow.array(["b"])], names=["audio", "text", "text"])
    pyarrow.parquet.write_table(table, path)
    assert "a.parquet: two columns are called 'text'" in refusal(load_source, str(path))


def test_row_27_a_label_that_stands_for_no_word_counts_as_an_unknown_language(tmp_path):
    import datasets

    sound = pyarrow.array([{"bytes": wav(), "path": None}] * 2, type=STRUCT)
    kinds = {"language": datasets.ClassLabel(names=["hi", "en"]), "text": datasets.Value("string")}
    page = {"info": {"features": datasets.Features({**kinds, "audio": datasets.Audio()}).to_dict()}}
    table = pyarrow.table({"audio": sound, "text": ["a", "b"], "language": [1, 7]})
    pyarrow.parquet.write_table(
        table.replace_schema_metadata({b"huggingface": json.dumps(page).encode()}), tmp_path / "a.parquet"
    )
    rows = load_source(str(tmp_path / "a.parquet"))
    assert [(row.language, row.unknown_language) for row in rows] == [("en", None), (None, "7")]


def test_row_27_only_the_rows_without_sound_are_refused(tmp_path):
    (tmp_path / "1.wav").write_bytes(wav())
    values = [{"bytes": wav(), "path": None}, None, {"bytes": b"", "path": ""}, {"bytes": None, "path": "1.wav"}]
    path = write_parquet(tmp_path / "a.parquet", audio=pyarrow.array(values, type=STRUCT), text=["a", None, "c", "d"])
    rows = load_source(str(path))
    for row in (rows[1], rows[2]):
        with pytest.raises(AudioError, match="no sound in this row"):
            row.sound()
    assert [len(load_audio(rows[number].sound())) for number in (0, 3)] == [8000, 8000]
    assert [row.text for row in rows] == ["a", "", "c", "d"]


def test_row_27_columns_of_all_suitable_types_are_read(tmp_path):
    (tmp_path / "1.wav").write_bytes(wav())
    part = pyarrow.struct([("start", pyarrow.float64()), ("end", pyarrow.float32()), ("text", pyarrow.string())])
    path = write_parquet(
        tmp_path / "a.parquet",
        file_name=pyarrow.array(["1.wav"], type=pyarrow.large_string()),
        text=[7],
        segments=pyarrow.array([[{"start": 0.0, "end": 0.5, "text": "7"}]], type=pyarrow.list_(part)),
        start=pyarrow.array([0], type=pyarrow.int8()),
        no_speech=[False],
        speaker_id=[3],
        language=["hi"],
        other=pyarrow.array([[[1]]], type=pyarrow.list_(pyarrow.list_(pyarrow.int8()))),
    )
    [row] = load_source(str(path))
    assert (row.text, row.language, row.speaker, row.segments[0].end_s) == ("7", "hi", "3", 0.5)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda page: page[:-20], "truncated"),
        (lambda page: page[: len(page) // 2], "truncated"),
        (lambda page: b"<!doctype html><html></html>", "an HTML page"),
        (lambda page: bytes(1000), "no Parquet file"),
        (lambda page: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (lambda page: page[:4] + bytes(len(page) - 12) + page[-8:], "cannot be read as a data set"),
        (lambda page: page[:-8] + b"\xff\xff\xff\x7fPAR1", "cannot be read as a data set"),
    ],
)
def test_row_27_a_damaged_parquet_file_is_refused_with_the_reason(tmp_path, damage, said):
    path = write_parquet(tmp_path / "folder.parquet", audio=["1.wav"] * 100, text=["a"] * 100)
    path.write_bytes(damage(path.read_bytes()))
    for source in (path, tmp_path):
        message = refusal(load_source, str(source))
        assert said in message and str(tmp_path) in message
    assert said in refusal(first_rows, str(path), load_source, most=9)


def test_row_34_a_fifo_in_place_of_a_parquet_file_is_refused_before_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / "a.parquet")
    assert "a pipe (fifo)" in refusal(load_source, str(tmp_path))


# archives -------------------------------------------------------------------------------------------------------------

SUFFIXES = {
    ".tar": "w",
    ".tar.gz": "w:gz",
    ".tgz": "w:gz",
    ".tar.bz2": "w:bz2",
    ".tbz2": "w:bz2",
    ".tar.xz": "w:xz",
    ".txz": "w:xz",
}


def pack(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], mode: str | None = None) -> Path:
    suffix = next(ending for ending in sorted(SUFFIXES, key=len, reverse=True) if path.name.endswith(ending))
    with tarfile.open(path, mode or SUFFIXES[suffix]) as archive:
        for member, content in members:
            member.size = member.size or len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def clips(n_clips: int = 5) -> list[tuple[tarfile.TarInfo, bytes]]:
    tsv = "client_id\tpath\tsentence\n" + "".join(f"s\t{n}.mp3\ttext {n}\n" for n in range(n_clips))
    names = [("te/train.tsv", tsv.encode())]
    names += [(f"te/clips/{n}.mp3", random.Random(n).randbytes(700)) for n in range(n_clips)]
    return [(tarfile.TarInfo(name), content) for name, content in names]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_row_31_every_kind_of_tar_is_unpacked(tmp_path, suffix):
    path = pack(tmp_path / f"cv{suffix}", clips())
    assert [row.text for row in load_source(f"{path}:train")] == [f"text {n}" for n in range(5)]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_row_31_an_archive_with_a_flipped_bit_or_a_missing_end_is_refused_in_one_line(tmp_path, suffix):
    path = pack(tmp_path / f"cv{suffix}", clips())
    whole = path.read_bytes()
    chance = random.Random(suffix)
    n_refused = 0
    for number in range(40):
        page = bytearray(whole)
        if number % 2:
            del page[chance.randrange(1, len(page)) :]
        else:
            place = chance.randrange(len(page))
            page[place] ^= 1 << chance.randrange(8)
        path.write_bytes(page)
        try:
            shutil.rmtree(unpack(path))
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            n_refused += 1
    # A .tar has no checksums over its files, and bits at the end of a stream mean nothing. All other damage is found.
    assert n_refused >= (20 if suffix == ".tar" else 36)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_row_31_a_damaged_header_is_not_taken_for_the_end_of_the_archive(tmp_path):
    """The module tarfile stops at a damaged header and drops the rest of the archive silently."""
    path = pack(tmp_path / "cv.tar", clips())
    page = bytearray(path.read_bytes())
    page[page.index(b"te/clips/3.mp3")] ^= 1
    path.write_bytes(page)
    assert "broken off" in refusal(unpack, path)
    # Cut the archive between two files.
    path.write_bytes(path.read_bytes()[: page.index(b"te/clips/4.mp3")])
    assert "broken off" in refusal(unpack, path)


def test_a_pointer_or_a_web_page_in_place_of_an_archive_is_named(tmp_path):
    path = tmp_path / "cv.tar.gz"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    assert "git lfs pull" in refusal(load_source, f"{path}:train")
    path.write_bytes(b"<html><body>404</body></html>")
    assert "an HTML page" in refusal(load_source, f"{path}:train")


def bomb(name: str, size: int) -> bytes:
    """Return the tar header of a file of `size` bytes, without the bytes."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("name", "page"),
    [
        ("huge.tar.gz", gzip.compress(bomb("te/1.mp3", 1 << 42) + bytes(1 << 20))),
        ("huge.tar.xz", lzma.compress(bomb("te/1.mp3", 1 << 42) + bytes(1 << 20))),
        ("huge.tar.bz2", bz2.compress(bomb("te/1.mp3", 1 << 42) + bytes(1 << 20))),
        ("passed_over.tar.gz", gzip.compress(bomb("te/1", 1 << 42).replace(b"ustar  \x000", b"ustar  \x00Z", 1))),
        ("huge.tar", bomb("te/1.mp3", 1 << 42)),
    ],
    # gzip writes the time of day into a page, so a page cannot be the name of its test.
    ids=("gz", "xz", "bz2", "passed over", "tar"),
)
def test_row_31_an_archive_bomb_is_refused_before_it_fills_the_disk(tmp_path, name, page):
    (tmp_path / name).write_bytes(page)
    began = time.monotonic()
    message = refusal(unpack, tmp_path / name)
    assert "no room" in message or "do not trust this archive" in message or "broken off" in message
    assert time.monotonic() - began < 20
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_row_31_the_growth_the_files_and_the_depth_of_an_archive_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_ALWAYS_ALLOWED_BYTES", 1 << 20)
    monkeypatch.setattr(archives, "_ALWAYS_ALLOWED_FILES", 100)
    zeros = pack(tmp_path / "zeros.tar.gz", [(tarfile.TarInfo(f"{n}.mp3"), bytes(100_000)) for n in range(60)])
    assert "do not trust this archive" in refusal(unpack, zeros)
    empty_files = pack(tmp_path / "many.tar.xz", [(tarfile.TarInfo(f"{n}"), b"") for n in range(5000)])
    assert "do not trust this archive" in refusal(unpack, empty_files)
    deep = pack(tmp_path / "deep.tar", [(tarfile.TarInfo("a/" * 1500 + "b"), b"")])
    assert "folders deep" in refusal(unpack, deep)
    behind = tmp_path / "behind.tar.gz"
    behind.write_bytes(gzip.compress(bytes(1024) + bytes(64 << 20)))
    assert "broken off" in refusal(unpack, behind)
    assert not list(tmp_path.glob("*.unpacked")) and not list(tmp_path.glob(".*"))


def test_row_31_an_archive_header_that_would_fill_the_memory_is_refused(tmp_path):
    member = tarfile.TarInfo("x")
    member.type = tarfile.XHDTYPE
    member.size = 1 << 40
    header = member.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(header + bytes(1 << 20)))
    assert "broken off" in refusal(unpack, tmp_path / "a.tar.gz")
    chain = tarfile.TarInfo("x")
    chain.type = tarfile.XHDTYPE
    chain.size = 10
    block = chain.tobuf(tarfile.GNU_FORMAT) + b"10 a=bcde\n".ljust(512, b"\0")
    (tmp_path / "b.tar").write_bytes(block * 5000)
    assert "broken off" in refusal(unpack, tmp_path / "b.tar")


@pytest.mark.parametrize("size", [-512, -1024, -(1 << 40)])
def test_row_31_a_file_of_negative_size_in_an_archive_does_not_hang_the_reader(tmp_path, size):
    """CVE-2025-8194: in older Pythons, the module tarfile reads such a header again for ever."""
    member = tarfile.TarInfo("a")
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" + (size % (1 << 88)).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(1024))
    assert "broken off" in refusal(unpack, tmp_path / "a.tar")
    pax = tarfile.TarInfo("b")
    pax.pax_headers = {"size": str(size)}
    with tarfile.open(tmp_path / "b.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("c"), io.BytesIO())
        archive.addfile(pax, io.BytesIO())
    refusal(unpack, tmp_path / "b.tar")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../x", "leads out"),
        ("/x", "leads out"),
        ("a/../../x", "leads out"),
        ("..\\x", "leads out"),
        ("C:/x", "leads out"),
        ("x" * 300, "too long"),
        (".", "cannot be unpacked"),
        ("a\x1b]0;owned\x07/../../b", "\\\\x1b"),
    ],
)
def test_row_31_an_impossible_name_in_an_archive_is_refused_in_one_line(tmp_path, name, said):
    path = pack(tmp_path / "a.tar", [(tarfile.TarInfo(name), b"x")])
    message = refusal(unpack, path)
    assert said.replace("\\\\", "\\") in message and "\x1b" not in message
    assert [file.name for file in tmp_path.rglob("*")] == ["a.tar"]


def test_row_29_an_archive_with_names_that_are_not_utf8_is_unpacked(tmp_path):
    path = tmp_path / "a.tar"
    name = os.fsdecode(b"te/\xff\xfe.mp3")
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape") as archive:
        for member_name in (name, "te/a\x1b[2J\r.mp3"):
            archive.addfile(tarfile.TarInfo(member_name), io.BytesIO())
    folder = unpack(path)
    assert sorted(os.listdir(os.fsencode(folder / "te"))) == [b"a\x1b[2J\r.mp3", b"\xff\xfe.mp3"]


def test_links_and_devices_in_an_archive_are_not_unpacked(tmp_path):
    members = []
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
        member = tarfile.TarInfo(f"special{kind[0]}")
        member.type = kind
        member.linkname = "/etc/passwd"
        members.append((member, b""))
    folder = unpack(pack(tmp_path / "a.tar", [*members, (tarfile.TarInfo("x"), b"x")]))
    assert sorted(file.name for file in folder.iterdir()) == ["whisper_peft.json", "x"]


# permissions and names ------------------------------------------------------------------------------------------------


@pytest.fixture
def locked(monkeypatch):
    """Make the system refuse listed paths and all paths below them, as it does for a user without permission."""
    refused: list[str] = []

    def guard(function):
        def guarded(path, *arguments, **options):
            name = os.path.abspath(os.fspath(path)) if isinstance(path, (str, os.PathLike)) else ""
            for refused_path in refused:
                if name.startswith(f"{refused_path}/") or (name == refused_path and function not in (os.stat,)):
                    raise PermissionError(13, "Permission denied", str(path))
            return function(path, *arguments, **options)

        return guarded

    for name in ("stat", "open", "scandir", "listdir"):
        monkeypatch.setattr(os, name, guard(getattr(os, name)))
    return refused


def test_row_28_a_folder_without_read_permission_is_named(tmp_path, locked):
    folder = make_speech(tmp_path / "speech" / "train", clips=1)
    locked.append(str(tmp_path / "speech"))
    for source in (tmp_path / "speech", f"{tmp_path / 'speech'}:train", folder, folder / "metadata.csv"):
        message = refusal(load_source, str(source))
        assert "no permission to read it" in message and str(tmp_path / "speech") in message


def test_row_28_a_data_file_without_read_permission_is_named(tmp_path, locked):
    (tmp_path / "talk.wav").write_bytes(wav())
    (tmp_path / "talk.srt").write_text("1\n00:00:00,000 --> 00:00:00,400\na\n")
    (tmp_path / "pq").mkdir()
    write_parquet(tmp_path / "pq" / "a.parquet", audio=["1.wav"], text=["a"])
    pack(tmp_path / "cv.tar.gz", clips())
    for name in ("talk.srt", "pq/a.parquet", "cv.tar.gz"):
        locked[:] = [str(tmp_path / name)]
        source = tmp_path / name
        message = refusal(load_source, f"{source}:train" if name.startswith("cv") else str(source))
        assert "no permission to read it" in message and name in message
    locked[:] = [str(tmp_path / "pq")]
    assert "no permission" in refusal(load_source, str(tmp_path / "pq"))


def test_row_28_a_folder_that_the_system_itself_refuses_is_named(tmp_path):
    folder = make_speech(tmp_path / "speech", clips=1)
    folder.chmod(0)
    reading, writing = os.pipe()
    child = os.fork()
    # root may read everything, so the child becomes another user.
    if child == 0:
        if os.geteuid() == 0:
            os.setuid(65534)
        try:
            load_source(str(folder))
            said = "read"
        except UserError as error:
            said = str(error)
        except BaseException as error:
            said = f"a traceback: {error!r}"
        os.write(writing, said.encode())
        os._exit(0)
    os.waitpid(child, 0)
    folder.chmod(stat.S_IRWXU)
    said = os.read(reading, 10_000).decode()
    os.close(reading)
    os.close(writing)
    assert "no permission to read it" in said


def test_row_29_a_folder_with_names_that_are_not_utf8_is_read(tmp_path):
    stem = os.path.join(os.fsencode(tmp_path), b"talk \xff\xe9")
    with open(stem + b".wav", "wb") as file:
        file.write(wav(2.0))
    with open(stem + b".hi.srt", "wb") as file:
        file.write(b"1\n00:00:00,000 --> 00:00:01,000\na\n")
    for source in (str(tmp_path), os.fsdecode(stem + b".wav"), os.fsdecode(stem + b".hi.srt")):
        [row] = load_source(source)
        assert len(load_audio(row.sound(), start_s=row.start_s, end_s=row.end_s)) == 16_000


def test_row_29_a_recording_whose_name_is_not_utf8_is_scored_and_listed(tiny_model, tmp_path):
    folder = tmp_path / "talks"
    folder.mkdir()
    stem = os.path.join(os.fsencode(folder), b"talk \xff\xe9\x1b[2J")
    with open(stem + b".wav", "wb") as file:
        file.write(wav(1.0))
    with open(stem + b".hi.srt", "wb") as file:
        file.write("1\n00:00:00,000 --> 00:00:00,900\nघर\n".encode())
    assert evaluate(str(tiny_model), str(folder), output=str(tmp_path / "scored")).clips == 1
    clip, recording = read_jsonl(tmp_path / "scored" / "transcripts.jsonl")
    assert os.fsencode(clip["audio"]) == os.fsencode(recording["audio"]) == stem + b".wav"


def test_row_29_a_manifest_that_is_not_utf8_is_refused_in_one_line(tmp_path):
    (tmp_path / "m.csv").write_bytes(b"file_name,text\n\xff\xe9.wav,a\n")
    assert "not UTF-8" in refusal(load_source, str(tmp_path / "m.csv"))


def test_row_29_a_table_in_a_folder_that_is_not_utf8_is_read_or_refused_in_one_line(tmp_path):
    folder = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"data \xff"))
    os.mkdir(folder)
    source = os.path.join(folder, "a.parquet")
    write_parquet(tmp_path / "a.parquet", audio=["1.wav"], text=["a"]).rename(source)
    for path in (source, folder):
        try:
            assert isinstance(load_source(path)[0], Row)
        except UserError as error:
            assert "\n" not in str(error)
