"""A tiny model trains a few steps on real speech from every kind of source."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import datasets
import pytest
from conftest import make_tiny_model, tiny_recipe

from whisper_peft import load_source, train
from whisper_peft.runs import read_jsonl


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny model with the window and the token limit of real ones."""
    folder = tmp_path_factory.mktemp("model") / "whisper"
    return make_tiny_model(folder, max_source_positions=1500, max_target_positions=448)


def packed(shared: Path, folder: Path) -> str:
    """Pack the Telugu release of Common Voice as it is downloaded."""
    with tarfile.open(folder / "te.tar.gz", "w:gz") as archive:
        archive.add(shared / "data" / "common_voice_te" / "te", "cv-corpus-delta/te")
    return f"{folder / 'te.tar.gz'}:other"


def parquet(shared: Path, folder: Path) -> str:
    """Write Malayalam clips into a Parquet file."""
    rows = load_source(str(shared / "data" / "malayalam" / "test"))[:12]
    sound = [{"bytes": Path(row.audio).read_bytes(), "path": Path(row.audio).name} for row in rows]
    table = datasets.Dataset.from_dict({"audio": sound, "sentence": [row.text for row in rows]})
    table.to_parquet(str(folder / "clips.parquet"))
    return str(folder / "clips.parquet")


def manifest(shared: Path, folder: Path) -> str:
    """Write a manifest of pieces of the story, in the form that NeMo uses."""
    audio = shared / "data" / "longform" / "ml_vasanavikruthi.ogg"
    segments = json.loads(audio.with_suffix(".json").read_text())[:12]
    lines = [
        {
            "audio_filepath": str(audio),
            "offset": segment["start"],
            "duration": segment["end"] - segment["start"],
            "text": segment["text"],
        }
        for segment in segments
    ]
    (folder / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder / "m.jsonl")


SOURCES = {
    "folder": lambda shared, folder: f"{shared / 'data' / 'malayalam'}:test",
    "release": lambda shared, folder: f"{shared / 'data' / 'common_voice_te' / 'te'}:other",
    "packed release": packed,
    "webm": lambda shared, folder: str(shared / "data" / "webm"),
    "story": lambda shared, folder: str(shared / "data" / "longform" / "ml_vasanavikruthi.ogg"),
    "parquet": parquet,
    "manifest": manifest,
}


def few_steps(model: Path, shared: Path, folder: Path, sources: list, **changes) -> None:
    recipe = tiny_recipe(
        model,
        folder,
        **{
            "data.train": sources,
            "data.eval": str(shared / "data" / "webm"),
            "data.test": None,
            "model.language_token": "hi",
            "train.steps": 2,
            "evaluate.compare_clips": 0,
            "evaluate.max_clips": 1,
            "evaluate.best_metric": "loss",
            "data.max_left_out": 1.0,
            **changes,
        },
    )
    run = train(recipe, output=folder / "run")
    assert run.facts["steps"] == 2
    # The tiny model has one token for each byte, so some sentences of the story are too long for it.
    assert all("text tokens" in record["reason"] for record in read_jsonl(run.run / "left_out.jsonl"))


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_source_trains(kind, shared, model, tmp_path):
    few_steps(model, shared, tmp_path, [SOURCES[kind](shared, tmp_path)])


@pytest.mark.parametrize("beside", [None, "folder", "story"])
def test_a_stream_trains_alone_and_beside_other_sources(beside, shared, model, tmp_path):
    others = [SOURCES[beside](shared, tmp_path)] if beside else []
    streamed = {"data.streaming": True, "data.shuffle_buffer": 8}
    few_steps(model, shared, tmp_path, [parquet(shared, tmp_path), *others], **streamed)
