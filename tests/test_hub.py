"""Parquet files and local copies of Hub repositories are read as Hub data sets are, but offline."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
from conftest import make_wave

from whisper_peft.data.addresses import HubSound
from whisper_peft.data.audio import load_audio
from whisper_peft.data.dataset import SpeechDataset
from whisper_peft.data.folders import Columnar
from whisper_peft.data.hub import read_revision
from whisper_peft.data.rows import Row, fingerprint
from whisper_peft.data.sources import load_source
from whisper_peft.data.typed_tables import read_sound_cell
from whisper_peft.errors import UserError
from whisper_peft.model.configs import load_preparation


def wav(number: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, make_wave(0.5, seed=number), 16000, format="WAV")
    return file.getvalue()


def table(n_rows: int, first: int = 0, **columns) -> datasets.Dataset:
    """Make a table like that of a Hub data set: sound as Audio, a text, a speaker and a language label."""
    numbers = range(first, first + n_rows)
    features = datasets.Features(
        {
            "client_id": datasets.Value("string"),
            "path": datasets.Value("string"),
            "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "sentence": datasets.Value("string"),
            "language": datasets.ClassLabel(names=["hi", "te"]),
            **{name: datasets.Value("string") for name in columns},
        }
    )
    rows = {
        "client_id": [f"s{number % 2}" for number in numbers],
        "path": [f"{number}.wav" for number in numbers],
        "audio": [{"bytes": wav(number), "path": f"{number}.wav"} for number in numbers],
        "sentence": [f"वाक्य {number}" for number in numbers],
        "language": [number % 2 for number in numbers],
        **{name: [value] * n_rows for name, value in columns.items()},
    }
    # The sound is cast and not encoded as Audio, because encoding needs torchcodec.
    return datasets.Dataset.from_dict(rows, features=features).cast_column("audio", datasets.Audio(decode=False))


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A clone of a Hub repository with two configurations, the first in two files."""
    folder = tmp_path_factory.mktemp("hub") / "clone"
    for config, split, n_rows, files in (("hi", "train", 6, 2), ("hi", "validation", 3, 1), ("te", "test", 2, 1)):
        (folder / config).mkdir(parents=True, exist_ok=True)
        whole = table(n_rows)
        for number in range(files):
            part = whole.shard(files, number, contiguous=True)
            part.to_parquet(str(folder / config / f"{split}-{number:05}-of-{files:05}.parquet"))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: hi\n  data_files:\n  - {split: train, path: hi/train-*}\n"
        "  - {split: validation, path: hi/validation-*}\n- config_name: te\n  data_files:\n"
        "  - {split: test, path: te/test-*}\n---\n"
    )
    return folder


def refusal(source: object, **options: str) -> str:
    with pytest.raises(UserError) as refused:
        load_source(str(source), **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_repository_gives_rows_with_their_sound(repository):
    rows = load_source(f"{repository}:hi:train")
    assert [row.text for row in rows] == [f"वाक्य {number}" for number in range(6)]
    assert [row.language for row in rows] == ["hi", "te"] * 3 and [row.speaker for row in rows] == ["s0", "s1"] * 3
    assert [row.sound() for row in rows] == [wav(number) for number in range(6)]
    assert len({row.name for row in rows}) == 6
    assert np.array_equal(load_audio(rows[5].sound()), load_audio(wav(5)))
    assert fingerprint(rows) == fingerprint(load_source(f"{repository}:hi:train"))
    # Two readings of a source give equal rows, so rows can be looked up in a set.
    assert rows == load_source(f"{repository}:hi:train")


def test_splits_have_synonyms_and_can_be_joined(repository):
    assert len(load_source(f"{repository}:hi:dev")) == 3
    both = load_source(f"{repository}:hi:train+validation")
    assert [row.text for row in both][5:7] == ["वाक्य 5", "वाक्य 0"] and both[6].sound() == wav(0)


def test_a_repository_without_configuration_or_split_names_the_choices(repository):
    assert "name one of its configurations" in refusal(repository)
    assert "no configuration 'mr'; there are hi, te" in refusal(f"{repository}:mr:train")
    assert "no split 'test'; there are train, validation" in refusal(f"{repository}:hi:test")
    assert f"add the split: {repository}:hi:train" in refusal(f"{repository}:hi")


def test_a_parquet_file_gives_rows_with_sound_and_place(tmp_path):
    table(3).to_parquet(str(tmp_path / "a.parquet"))
    rows = load_source(str(tmp_path / "a.parquet"))
    assert [row.sound() for row in rows] == [wav(number) for number in range(3)]
    assert rows[2].place == f"{tmp_path / 'a.parquet'}:3"


def test_a_table_may_hold_sound_as_bytes_or_as_paths(tmp_path):
    (tmp_path / "0.wav").write_bytes(wav(0))
    bare = datasets.Dataset.from_dict({"wav": [wav(0)], "text": ["एक"]})
    bare.to_parquet(str(tmp_path / "bare.parquet"))
    assert load_source(str(tmp_path / "bare.parquet"))[0].sound() == wav(0)
    paths = datasets.Dataset.from_dict({"file_name": ["0.wav"], "text": ["एक"]})
    paths.to_parquet(str(tmp_path / "paths.parquet"))
    assert load_audio(load_source(str(tmp_path / "paths.parquet"))[0].sound()).size == 8000
    kind = {"audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
    named = datasets.Dataset.from_dict(
        {"audio": [{"bytes": None, "path": "0.wav"}], "text": ["एक"]},
        features=datasets.Features({**kind, "text": datasets.Value("string")}),
    )
    named.to_parquet(str(tmp_path / "named.parquet"))
    assert load_audio(load_source(str(tmp_path / "named.parquet"))[0].sound()).size == 8000


def test_ambiguous_columns_are_refused_until_one_is_named(tmp_path):
    both = table(2).add_column("noisy", [{"bytes": wav(9), "path": "9.wav"}] * 2)
    both.to_parquet(str(tmp_path / "both.parquet"))
    assert "audio and noisy hold sound; name one: data.audio_column" in refusal(tmp_path / "both.parquet")
    assert load_source(str(tmp_path / "both.parquet"), audio_column="noisy")[0].sound() == wav(9)
    table(2, text="other").to_parquet(str(tmp_path / "texts.parquet"))
    assert "could both be the text, and differ" in refusal(tmp_path / "texts.parquet")
    assert load_source(str(tmp_path / "texts.parquet"), text_column="text")[0].text == "other"


@pytest.mark.parametrize("page", [b"", b"PAR1 no parquet", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_broken_parquet_file_is_refused(tmp_path, page):
    (tmp_path / "a.parquet").write_bytes(page)
    assert "cannot be read as a data set" in refusal(tmp_path / "a.parquet")


def test_a_sound_file_of_a_hub_data_set_is_fetched(tmp_path, monkeypatch):
    opened = []

    def open_here(address):
        opened.append(address)
        return io.BytesIO(wav(0))

    monkeypatch.setattr("fsspec.open", open_here)
    for path in (
        "hf://datasets/owner/name@abc/clips/0.wav",
        "clips/0.wav",
        "zip://0.wav::hf://datasets/owner/name/c.zip",
    ):
        sound = read_sound_cell({"bytes": None, "path": path}, "owner/name")
        assert isinstance(sound, HubSound) and sound.read() == wav(0)
    assert opened == [
        "hf://datasets/owner/name@abc/clips/0.wav",
        "hf://datasets/owner/name/clips/0.wav",
        "zip://0.wav::hf://datasets/owner/name/c.zip",
    ]


def test_a_hub_file_that_cannot_be_fetched_leaves_only_its_clip_out(tiny_model):
    address = "hf://datasets/owner/name/no.wav"
    dataset = SpeechDataset([Row(HubSound(address), "एक", "hi")], load_preparation(str(tiny_model)))
    assert "cannot be fetched" in dataset[0].reason and dataset[0].audio == address
    assert dataset.duration_s(0) == 0


def test_a_revision_changes_with_the_contents(tmp_path, monkeypatch):
    columns = Columnar(str(tmp_path / "a.parquet"), is_file=True)
    table(2).to_parquet(columns.source)
    before = read_revision(columns)
    assert before == read_revision(columns)
    table(3).to_parquet(columns.source)
    assert read_revision(columns) != before
    info = type("Info", (), {"sha": "abc"})
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda self, name: info)
    assert read_revision(Columnar("owner/name", "hi", ("train",))) == "abc"


class Hub:
    """Stands in for the functions of `datasets` that ask the Hub about a repository."""

    def __init__(self, monkeypatch, error: Exception, parquet: Path | None = None):
        self.revisions, self.error, self.parquet = [], error, parquet
        self.real = {name: getattr(datasets, name) for name in ("get_dataset_config_names", "get_dataset_split_names")}
        self.load = datasets.load_dataset
        monkeypatch.setattr(datasets, "get_dataset_config_names", self.configs)
        monkeypatch.setattr(datasets, "get_dataset_split_names", self.splits)
        monkeypatch.setattr(datasets, "load_dataset", self.table)

    def configs(self, name, revision=None):
        self.revisions.append(revision)
        if revision is None or self.parquet is None:
            raise self.error
        return self.real["get_dataset_config_names"](str(self.parquet))

    def splits(self, name, config, revision=None):
        return self.real["get_dataset_split_names"](str(self.parquet), config)

    def table(self, name, config, split, revision, streaming):
        self.revisions.append(revision)
        return self.load(str(self.parquet), config, split=split, streaming=streaming)


SCRIPT = RuntimeError("Dataset scripts are no longer supported, but found x.py")


def test_a_data_set_with_a_script_is_read_from_its_parquet_revision(monkeypatch, repository, caplog):
    hub = Hub(monkeypatch, SCRIPT, repository)
    assert len(load_source("owner/name:hi:train")) == 6
    assert "not run; its Parquet revision (refs/convert/parquet) is taken" in caplog.text
    assert hub.revisions == [None, "refs/convert/parquet", "refs/convert/parquet"]
    Hub(monkeypatch, SCRIPT)
    assert "made by a loading script" in refusal("owner/name:hi:train")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (datasets.exceptions.DatasetNotFoundError("Dataset 'x' is a gated dataset on the Hub."), "hf auth login"),
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'x' doesn't exist on the Hub or cannot be accessed."),
            "no such data set on the Hub",
        ),
        (ConnectionError("Couldn't reach 'x' on the Hub"), "the Hub cannot be reached"),
    ],
)
def test_a_refusal_of_the_hub_is_explained(monkeypatch, error, said):
    Hub(monkeypatch, error)
    assert said in refusal("owner/name:hi:train")
