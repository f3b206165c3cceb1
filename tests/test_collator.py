"""The collator pads log-mels with each clip's own floor and tokens by length, and changes nothing else."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import make_wave

from whisper_peft.data.batching import cut
from whisper_peft.data.collator import SpeechCollator
from whisper_peft.data.dataset import Example, LeftOut
from whisper_peft.data.features import IGNORED
from whisper_peft.data.rows import Segment
from whisper_peft.model.build import load_model
from whisper_peft.model.configs import load_preparation


@pytest.fixture(scope="module")
def preparation(tiny_model):
    return load_preparation(str(tiny_model))


def example(preparation, row: int, seconds: float, text: str, *, gain: float = 1.0, prompt: str = "") -> Example:
    wave = gain * make_wave(seconds, seed=row)
    features, floor = preparation.encode_audio(wave)
    inputs, labels = preparation.encode_text([Segment(text)], language="hi", prompt=prompt)
    return Example(row, features, floor, inputs, labels, seconds)


@pytest.fixture(scope="module")
def examples(preparation) -> list[Example]:
    """Five clips of rising length and gain, with texts of different length and one prompt."""
    texts = ("घर", "घर पानी", "abc", "लाल नीला", "x")
    return [
        example(preparation, row, 0.5 + 0.4 * row, text, gain=2.0 ** (row - 4), prompt="abc" if row == 2 else "")
        for row, text in enumerate(texts)
    ]


def test_a_batch_has_the_expected_keys_shapes_and_dtypes(preparation, examples):
    batch = SpeechCollator(preparation)(examples)
    longest = max(len(example.labels) for example in examples)
    assert set(batch) == {
        "input_features",
        "decoder_input_ids",
        "labels",
        "rows",
        "seconds",
        "n_clips",
        "kept",
        "left_out",
    }
    assert batch["input_features"].shape == (5, 80, 300)
    assert batch["input_features"].dtype == torch.float32
    assert batch["decoder_input_ids"].shape == batch["labels"].shape == (5, longest)
    assert batch["decoder_input_ids"].dtype == batch["labels"].dtype == torch.int64
    assert sorted(batch["rows"]) == [0, 1, 2, 3, 4]
    assert batch["seconds"] == pytest.approx(sum(example.seconds for example in examples))
    assert batch["left_out"] == []


def test_log_mels_are_padded_with_the_floor_of_their_own_clip(preparation, examples):
    floors = {example.floor for example in examples}
    assert len(floors) == 5
    batch = SpeechCollator(preparation)(examples)
    for features, row in zip(batch["input_features"].numpy(), batch["rows"], strict=True):
        example = examples[row]
        n_frames = example.input_features.shape[1]
        assert n_frames < 300
        assert np.array_equal(features[:, :n_frames], example.input_features)
        assert np.unique(features[:, n_frames:]).tolist() == [np.float32(example.floor)]


def test_tokens_are_masked_by_length_and_never_by_id(preparation, examples):
    eot = preparation.eot
    # The padding token is the end token, so masking by id would also mask the end.
    assert preparation.tokenizer.pad_token_id == eot
    batch = SpeechCollator(preparation)(examples)
    for inputs, labels, row in zip(batch["decoder_input_ids"], batch["labels"], batch["rows"], strict=True):
        example, n = examples[row], len(examples[row].labels)
        assert inputs[:n].tolist() == example.decoder_input_ids.tolist()
        assert labels[:n].tolist() == example.labels.tolist()
        assert set(inputs[n:].tolist()) <= {eot}
        assert set(labels[n:].tolist()) <= {IGNORED}
        # The end token is learnt once, at the end of the text.
        assert (labels == eot).nonzero().flatten().tolist() == [n - 1]
        assert (inputs == preparation.token_id("<|startoftranscript|>")).sum() == 1
        # The prompt has five tokens: <|startofprev|>, a space and three letters.
        n_prompt = 5 if row == 2 else 0
        assert (labels[:n] == IGNORED).sum() == n_prompt
    assert IGNORED not in batch["decoder_input_ids"]


def test_a_clip_is_encoded_alike_alone_and_in_a_batch(preparation, examples):
    collate = SpeechCollator(preparation)
    together = collate(examples)
    for place, row in enumerate(together["rows"]):
        alone = collate([examples[row]])
        n = alone["labels"].shape[1]
        assert torch.equal(alone["input_features"][0], together["input_features"][place])
        assert torch.equal(alone["decoder_input_ids"][0], together["decoder_input_ids"][place, :n])
        assert torch.equal(alone["labels"][0], together["labels"][place, :n])


def test_the_model_gives_a_clip_the_same_logits_alone_and_in_a_batch(preparation, examples, tiny_model):
    model, _, _ = load_model(tiny_model)
    collate = SpeechCollator(preparation)

    def logits(batch) -> torch.Tensor:
        with torch.no_grad():
            return model(
                input_features=batch["input_features"], decoder_input_ids=batch["decoder_input_ids"], use_cache=False
            ).logits

    batch = collate(examples)
    whole = logits(batch)
    for place, row in enumerate(batch["rows"]):
        n = len(examples[row].labels)
        torch.testing.assert_close(whole[place, :n], logits(collate([examples[row]]))[0], rtol=0, atol=1e-5)
    for size in (1, 2, 3):
        keys = ("input_features", "decoder_input_ids")
        pieces = [logits({key: batch[key][piece] for key in keys}) for piece in cut(5, size)]
        torch.testing.assert_close(torch.cat(pieces), whole, rtol=0, atol=1e-5)


def test_the_order_of_the_clips_does_not_matter(preparation, examples):
    batch, other = SpeechCollator(preparation)(examples), SpeechCollator(preparation)(examples[::-1])
    # The longest clip comes first, so that the first micro-batch is the largest.
    assert batch["rows"] == other["rows"] == [4, 3, 2, 1, 0]
    for key in ("input_features", "decoder_input_ids", "labels"):
        assert torch.equal(batch[key], other[key])


def test_left_out_clips_are_passed_on_and_never_replaced(preparation, examples):
    bad = LeftOut(7, "x.wav", "metadata.csv:8", "no such file")
    batch = SpeechCollator(preparation)([examples[0], bad, examples[1]])
    without = SpeechCollator(preparation)(examples[:2])
    assert batch["left_out"] == [bad]
    assert batch["rows"] == without["rows"] == [1, 0]
    for key in ("input_features", "decoder_input_ids", "labels"):
        assert torch.equal(batch[key], without[key])


def test_a_step_of_left_out_clips_alone_is_an_empty_batch(preparation):
    bad = LeftOut(7, "x.wav", "metadata.csv:8", "no such file")
    batch = SpeechCollator(preparation)([bad, bad])
    # An empty batch has the shortest window, because the longest window of all ranks counts.
    assert batch["input_features"].shape == (0, 80, 2)
    assert (batch["labels"] != IGNORED).sum() == 0
    assert (batch["rows"], batch["seconds"], len(batch["left_out"])) == ([], 0, 2)


def test_the_collator_does_not_change_the_examples(preparation, examples):
    before = [(example.input_features.copy(), example.labels.copy()) for example in examples]
    SpeechCollator(preparation)(examples)["labels"].fill_(0)
    for (features, labels), example in zip(before, examples, strict=True):
        assert np.array_equal(features, example.input_features)
        assert np.array_equal(labels, example.labels)


@pytest.mark.parametrize(
    ("slack_s", "frames"), [(0.0, 100), (0.005, 102), (0.5, 150), (0.51, 152), (9.0, 300), (math.inf, 300)]
)
def test_a_window_is_the_longest_clip_plus_its_slack(preparation, examples, slack_s, frames):
    clip = dataclasses.replace(
        examples[0], input_features=np.tile(examples[0].input_features, 9)[:, :100], slack_s=slack_s
    )
    shorter = dataclasses.replace(clip, input_features=clip.input_features[:, :61])
    batch = SpeechCollator(preparation)([shorter, clip])
    assert batch["input_features"].shape == (2, 80, frames)
    for number, example in enumerate((shorter, clip)):
        n_frames = example.input_features.shape[1]
        assert np.array_equal(batch["input_features"][number, :, :n_frames], example.input_features)
        assert (batch["input_features"][number, :, n_frames:] == np.float32(example.floor)).all()
