"""Streams mix sources by weight, draw no row twice in an epoch, and resume after a kill; so do listed sources."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from conftest import make_speech, tiny_recipe
from test_hub import table

from whisper_peft import UserError, publish, runs, train
from whisper_peft.data.batching import clips_per_epoch, steps
from whisper_peft.data.rows import Row
from whisper_peft.data.sources import load_source
from whisper_peft.data.streams import ListedRows, RowStream, StreamSource, first_rows, open_stream


@pytest.fixture(scope="module")
def parquet(tmp_path_factory) -> Path:
    """Write twelve clips to three files."""
    folder = tmp_path_factory.mktemp("stream") / "train"
    folder.mkdir()
    for number in range(3):
        table(4, first=4 * number).to_parquet(str(folder / f"train-{number:05}-of-00003.parquet"))
    return folder


def texts(drawn: list[tuple[Row, int]]) -> list[str]:
    return [row.text for row, _ in drawn]


def test_a_stream_draws_every_row_of_every_file_once_an_epoch(parquet):
    stream = RowStream([open_stream(str(parquet), load_source)], seed=1)
    drawn = stream.draw(36)
    everything = sorted(row.text for row in load_source(str(parquet)))
    for epoch in range(3):
        assert sorted(row.text for row, of in drawn if of == epoch) == everything
    assert texts(drawn)[:12] != everything and texts(drawn)[:12] != texts(drawn)[12:24]
    assert drawn[0][0].sound() == next(row.sound() for row in load_source(str(parquet)) if row.text == drawn[0][0].text)
    assert texts(RowStream([open_stream(str(parquet), load_source)], seed=2).draw(36)) != texts(drawn)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_a_resumed_stream_draws_the_same_rows_as_an_uninterrupted_one(parquet, blocks):
    """This holds for any state, also after the end of an epoch, and with a source of listed rows in the mixture."""

    def fresh() -> RowStream:
        listed = StreamSource([ListedRows([Row(f"{n}.wav", f"l{n}") for n in range(5)], 7)], 2.0, "listed")
        return RowStream([open_stream(str(parquet), load_source), listed], seed=3)

    stream = fresh()
    for _ in range(blocks):
        stream.draw(7)
    state = json.loads(json.dumps(stream.state()))
    wanted = [texts(stream.draw(7)) for _ in range(4)]
    other = fresh()
    other.go_on(state)
    assert [texts(other.draw(7)) for _ in range(4)] == wanted
    # The state also works in the same process.
    stream.go_on(state)
    assert [texts(stream.draw(7)) for _ in range(4)] == wanted
    assert other.fingerprint() == stream.fingerprint()


def test_the_fingerprint_of_a_stream_changes_with_its_sources_and_weights(parquet, tmp_path):
    folder = make_speech(tmp_path / "listed", clips=1)

    def of(weight: float, *rows: str) -> str:
        listed = open_stream(str(folder), lambda source: [Row(f"{text}.wav", text) for text in rows], weight=weight)
        return RowStream([open_stream(str(parquet), load_source), listed], seed=3).fingerprint()

    assert of(1.0, "a") == of(1.0, "a") and len({of(1.0, "a"), of(2.0, "a"), of(1.0, "b")}) == 3


def test_a_stream_draws_from_its_sources_by_weight():
    sources = []
    for name, weight in (("a", 3.0), ("b", 1.0)):
        sources.append(StreamSource([ListedRows([Row(f"{name}.wav", name)] * 3, 0)], weight, name))
    counts = Counter(texts(RowStream(sources, seed=0).draw(4000)))
    assert 2850 < counts["a"] < 3150


def test_a_stream_names_a_source_without_rows():
    stream = RowStream([StreamSource([ListedRows([], 0)], 1.0, "nothing")], seed=0)
    with pytest.raises(UserError, match="nothing: no rows"):
        stream.draw(1)


def test_a_stream_that_breaks_off_says_how_to_resume(parquet, tmp_path):
    folder = shutil.copytree(parquet, tmp_path / "train")
    stream = RowStream([open_stream(str(folder), load_source)], seed=0)
    (folder / "train-00001-of-00003.parquet").write_bytes(b"no parquet any more")
    with pytest.raises(UserError, match=r"the stream broke off .* --resume"):
        stream.draw(12)


def test_the_first_rows_of_a_stream_keep_the_order_of_the_source(parquet):
    assert [row.text for row in first_rows(str(parquet), load_source, most=3)] == ["वाक्य 0", "वाक्य 1", "वाक्य 2"]


# mixtures of listed rows ----------------------------------------------------------------------------------------------


def rows_of_an_epoch(parts: list[tuple[int, float]], epoch: int, batch_size: int = 4) -> list[int]:
    n_rows = sum(n for n, _ in parts)
    per_epoch = -(-clips_per_epoch(parts) // batch_size)
    drawn = steps(n_rows, batch_size, seed=5, duration_s=lambda row: 1.0, parts=parts, start=epoch * per_epoch)
    return [pick.row for _ in range(per_epoch) for pick in next(drawn)]


def test_an_epoch_takes_rows_of_listed_sources_by_weight():
    parts = [(10, 2.0), (40, 0.25), (3, 1.0)]
    seen = Counter()
    for epoch in range(4):
        counts = Counter(rows_of_an_epoch(parts, epoch))
        assert all(counts[row] == 2 for row in range(10)) and all(counts[row] == 1 for row in range(50, 53))
        assert sum(counts[row] for row in range(10, 50)) == 10
        seen += Counter({row: counts[row] for row in range(10, 50) if counts[row]})
    # Each epoch draws other rows.
    assert set(seen.values()) == {1} and len(seen) == 40


def test_a_source_with_a_small_weight_still_gives_at_least_one_row():
    assert clips_per_epoch([(3, 0.01), (20, 1.0)]) == 21
    assert len({rows_of_an_epoch([(3, 0.01), (20, 1.0)], epoch, 21)[i] for epoch in range(3) for i in range(21)}) == 23


def test_a_mixture_of_one_source_gives_the_same_steps_as_the_source_alone():
    assert rows_of_an_epoch([(17, 1.0)], 2) == [
        pick.row
        for step in [steps(17, 4, seed=5, duration_s=lambda row: 1.0, start=10)]
        for _ in range(5)
        for pick in next(step)
    ]


# runs -----------------------------------------------------------------------------------------------------------------


def test_a_mixture_trains_each_source_in_its_language(tiny_model, speech, tmp_path):
    other = make_speech(tmp_path / "other", clips=8, seed=4)
    recipe = tiny_recipe(
        tiny_model,
        speech,
        **{
            "data.train": [str(speech / "train"), {"source": str(other), "weight": 0.5, "language": "english"}],
            "train.steps": None,
            "train.epochs": 1.0,
            "evaluate.compare_clips": 0,
        },
    )
    facts = train(recipe, output=tmp_path / "run").facts
    n_train = len(load_source(str(speech / "train")))
    assert facts["steps"] == -(-(n_train + 4) // recipe.train.batch_size)
    assert facts["data"]["train_clips"] == n_train + 8
    card = publish(tmp_path / "run", "me/mixed", base="openai/whisper-small", dry_run=True).card
    assert "train, other (weight 0.5): " in card and str(tmp_path) not in card


def test_a_resumed_streamed_run_equals_an_uninterrupted_one(tiny_model, speech, parquet, tmp_path):
    from safetensors.torch import load_file

    changes = {
        "data.train": [str(parquet), {"source": str(speech / "train"), "weight": 0.5}],
        "data.streaming": True,
        "data.shuffle_buffer": 8,
        "train.steps": 7,
        "train.workers": 2,
        "evaluate.every_steps": 7,
        "evaluate.compare_clips": 0,
        "model.language": "hi",
    }
    recipe = tiny_recipe(tiny_model, speech, **changes)
    whole = train(recipe, output=tmp_path / "whole")
    assert whole.facts["data"]["train_clips"] is None and whole.facts["train_hours"] > 0
    card = publish(whole.run, "me/streamed", base="openai/whisper-small", dry_run=True).card
    assert "train (weight 0.5): a stream, " in card

    class Killed(Exception):
        pass

    def kill(checkpoint: Path) -> None:
        raise Killed

    stopping = tiny_recipe(tiny_model, speech, **{**changes, "evaluate.every_steps": 3})
    with pytest.raises(Killed):
        train(stopping, output=tmp_path / "stopped", on_checkpoint=[kill])
    assert runs.read_json(tmp_path / "stopped/checkpoints/checkpoint-3" / runs.STREAM)["first_step"] == 2
    assert train(resume=tmp_path / "stopped").facts["train_hours"] is None
    last = Path("checkpoints/checkpoint-7/adapter_model.safetensors")
    whole_weights, stopped_weights = load_file(whole.run / last), load_file(tmp_path / "stopped" / last)
    assert all((whole_weights[name] == stopped_weights[name]).all() for name in whole_weights)


def test_a_streamed_run_needs_steps_and_an_eval_source(tiny_model, speech, parquet, tmp_path):
    stream = {"data.train": [str(parquet)], "data.streaming": True}
    for changes, said in (
        ({"train.steps": None, "train.epochs": 1.0}, "set --steps"),
        ({"data.eval": None}, "name --eval"),
    ):
        with pytest.raises(UserError, match=said):
            train(tiny_recipe(tiny_model, speech, **{**stream, **changes}), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
