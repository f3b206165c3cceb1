"""The encoder is exact on the full window and near it on a condensed one, and is saved as a plain model."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import QUICKSTART

from whisper_peft import SpeechDataset, load_base, load_preparation, load_source, transcribe_rows
from whisper_peft.data.collator import SpeechCollator
from whisper_peft.data.dataset import Pick
from whisper_peft.model.build import condense_silence
from whisper_peft.model.windows import attention_bias, silence_positions, silence_weight


@pytest.fixture(scope="module")
def whisper():
    """Load the model of the quickstart, which is small but trained."""
    return load_base(str(QUICKSTART / "model")).eval()


@pytest.fixture(scope="module")
def dataset():
    rows = load_source(str(QUICKSTART / "speech" / "test"))
    return SpeechDataset(rows, load_preparation(str(QUICKSTART / "model")), language="hi")


def encode(model, features) -> torch.Tensor:
    with torch.no_grad():
        return model.get_encoder()(features).last_hidden_state


def batch_of(dataset, rows, slack_s: float) -> dict:
    return SpeechCollator(dataset.preparation)([dataset[Pick(row, slack_s=slack_s)] for row in rows])


@pytest.mark.parametrize("window", ["full", "condensed", "tight"])
def test_the_full_window_is_bit_identical_to_transformers(window, whisper, dataset):
    from transformers import WhisperForConditionalGeneration

    plain = WhisperForConditionalGeneration.from_pretrained(QUICKSTART / "model", dtype=torch.float32).eval()
    batch = batch_of(dataset, range(3), math.inf)
    inputs = {key: batch[key] for key in ("input_features", "decoder_input_ids")}
    condense_silence(whisper, window)
    with torch.no_grad():
        assert torch.equal(whisper(**inputs).logits, plain(**inputs).logits)


def test_a_condensed_window_is_nearer_to_the_full_one_than_a_tight_one(whisper, dataset):
    rows = [row for row in range(len(dataset)) if dataset.duration_s(row) < 1.6][:8]
    whole, short = batch_of(dataset, rows, math.inf), batch_of(dataset, rows, 0.1)
    assert short["input_features"].shape[-1] < 0.6 * whole["input_features"].shape[-1]

    def answers(batch: dict, window: str) -> torch.Tensor:
        condense_silence(whisper, window)
        inputs = {key: batch[key] for key in ("input_features", "decoder_input_ids")}
        with torch.no_grad():
            return whisper(**inputs).logits.log_softmax(-1)[batch["labels"] >= 0]

    reference = answers(whole, "full")
    gap = {
        # This is the Kullback-Leibler divergence.
        window: (reference.exp() * (reference - answers(short, window))).sum(-1).mean().item()
        for window in ("tight", "condensed")
    }
    assert 0 <= gap["condensed"] < gap["tight"] / 2, gap


def test_a_condensed_window_that_saves_no_positions_equals_the_full_one(whisper, dataset):
    condense_silence(whisper, "condensed")
    whole = batch_of(dataset, range(2), math.inf)["input_features"]
    # The silence behind the clip gets as many positions as stand for it in the condensed window.
    n_frames = 2 * (150 - silence_positions(150))
    short = encode(whisper, whole[..., :n_frames])
    assert short.shape[1] == 150
    # The last position is left out: its convolution ends in zeros, which are not silence.
    torch.testing.assert_close(short[:, :-1], encode(whisper, whole)[:, :-1], atol=5e-2, rtol=0)
    longer = encode(whisper, whole[..., : n_frames + 4])
    assert longer.shape[1] == 150


def test_the_weights_of_silence_stand_for_all_positions_of_the_full_window():
    for n_head in (1, 100, 700, 1436, 1437, 1499, 1500):
        chosen = min(64, 1500 - n_head)
        weight = silence_weight(n_head + chosen, chosen, 1500)
        assert n_head + chosen * weight == pytest.approx(1500)
    states = torch.zeros(1, 164, 8)
    bias = attention_bias(states, 64, 1500)
    assert bias[0, 0, 0, :100].eq(0).all() and bias[0, 0, 0, 100:].exp().sum().item() == pytest.approx(1400, rel=1e-5)
    assert attention_bias(states, 0, 1500) is None
    assert attention_bias(torch.zeros(1, 1500, 8), 64, 1500) is None
    assert attention_bias(states.half(), 64, 1500).dtype == torch.float16
    with torch.autocast("cpu", torch.bfloat16):
        assert attention_bias(states, 64, 1500).dtype == torch.bfloat16


def test_a_clip_is_encoded_alone_as_in_a_batch(whisper, dataset):
    """Silence differs from clip to clip, so each clip has its own silence behind it."""
    condense_silence(whisper, "condensed")
    batch = batch_of(dataset, range(4), 0.2)["input_features"]
    together = encode(whisper, batch)
    for number in range(4):
        torch.testing.assert_close(
            encode(whisper, batch[number : number + 1])[0], together[number], atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("window", ["condensed", "tight"])
def test_generation_encodes_the_short_window_once(window, whisper, dataset, monkeypatch):
    condense_silence(whisper, window)
    frames = []
    encoder = whisper.get_encoder()
    hook = encoder.conv1.register_forward_pre_hook(lambda module, inputs: frames.append(inputs[0].shape[-1]))
    rows = [row for row in range(len(dataset)) if dataset.duration_s(row) < 1.6][:4]
    result = transcribe_rows(whisper, dataset, rows, slack_s=0.2, max_new_tokens=8, beams=2)
    hook.remove()
    longest = max(dataset[row].input_features.shape[1] for row in rows)
    assert len(result.transcripts) == 4
    # The frames include the edge of silence.
    assert len(frames) == 1 and longest + 20 <= frames[0] <= longest + 30


def test_cached_generation_chooses_the_same_tokens_as_teacher_forcing(whisper, dataset):
    """The bias on the attention of the decoder holds in every step of generation, not only in the first."""
    condense_silence(whisper, "condensed")
    preparation = dataset.preparation
    row = min(range(len(dataset)), key=dataset.duration_s)
    batch = batch_of(dataset, [row], 0.1)
    result = transcribe_rows(whisper, dataset, [row], slack_s=0.1, max_new_tokens=6)
    assert result.transcripts[0].n_tokens > 1
    ids = [*preparation.prefix("hi"), *preparation.words.encode(result.transcripts[0].text)]
    with torch.no_grad():
        logits = whisper(
            input_features=batch["input_features"], decoder_input_ids=torch.tensor([ids]), use_cache=False
        ).logits[0]
    chosen = logits[len(preparation.prefix("hi")) - 1 : -1].argmax(-1).tolist()
    assert preparation.decode(chosen) == result.transcripts[0].text


def test_generation_in_bf16_gives_nearly_the_transcripts_of_float32(whisper, dataset):
    """In bf16, each single query must see all cached keys, although the kind of attention differs from float32."""
    condense_silence(whisper, "condensed")

    def heard(**options) -> list[str]:
        return [
            transcript.text
            for transcript in transcribe_rows(
                whisper, dataset, range(12), slack_s=0.2, max_new_tokens=20, **options
            ).transcripts
        ]

    exact = heard()
    rounded = heard(autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    assert len(set(exact)) > 6
    assert sum(a == b for a, b in zip(exact, rounded, strict=True)) >= 9


@pytest.mark.parametrize("kind", ["encoder", "causal", "one query", "cross", "cross with a mask"])
def test_plain_attention_equals_fused_attention(kind):
    """Plain attention is used on a CPU in bf16, because it is faster there."""
    from types import SimpleNamespace

    from whisper_peft.model.attention import attention

    draw = torch.Generator().manual_seed(0)
    n_keys = 40 if "cross" in kind else 24
    query = torch.randn(2, 3, 1 if kind == "one query" else 24, 16, generator=draw)
    key, value = (torch.randn(2, 3, n_keys, 16, generator=draw) for _ in range(2))
    mask = torch.randn(1, 1, 1, n_keys, generator=draw) if "mask" in kind else None
    module = SimpleNamespace(is_causal=kind in ("causal", "one query"), training=False, num_key_value_groups=1)

    def call(dtype: torch.dtype) -> torch.Tensor:
        some = (tensor.to(dtype) for tensor in (query, key, value))
        return attention(module, *some, None if mask is None else mask.to(dtype), scaling=0.25)[0]

    assert call(torch.bfloat16).dtype == torch.bfloat16
    torch.testing.assert_close(call(torch.bfloat16).float(), call(torch.float32), atol=3e-2, rtol=3e-2)
    if kind == "causal":
        later = key.clone()
        # Attention must not see the keys that come later.
        later[:, :, 12:] += 9.0
        some = (tensor.bfloat16() for tensor in (query, later, value))
        other = attention(module, *some, None, scaling=0.25)[0]
        assert torch.equal(other[:, :12], call(torch.bfloat16)[:, :12])


def test_a_condensed_window_works_with_gradient_checkpointing_and_bf16(dataset):
    model = load_base(str(QUICKSTART / "model"))
    condense_silence(model, "condensed")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch = batch_of(dataset, range(4), 0.1)
    gradients = []
    # Checkpointing works only in training mode. This model has no dropout, so both modes compute the same.
    for training in (True, False):
        model.train(training)
        model.zero_grad()
        model(
            input_features=batch["input_features"],
            decoder_input_ids=batch["decoder_input_ids"],
            labels=batch["labels"],
            use_cache=False,
        ).loss.backward()
        gradients.append(model.get_encoder().layers[0].fc1.weight.grad.clone())
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        hidden = model.get_encoder()(batch["input_features"]).last_hidden_state
    assert hidden.isfinite().all()


def test_saved_models_and_adapters_name_the_class_of_transformers(whisper, tmp_path):
    from whisper_peft import add_adapter
    from whisper_peft.runs import read_json

    model = load_base(str(QUICKSTART / "model"))
    model.save_pretrained(tmp_path / "model")
    assert read_json(tmp_path / "model" / "config.json")["architectures"] == ["WhisperForConditionalGeneration"]
    add_adapter(model, rank=2).save_pretrained(tmp_path / "adapter")
    auto = read_json(tmp_path / "adapter" / "adapter_config.json")["auto_mapping"]
    assert auto["parent_library"] == "transformers.models.whisper.modeling_whisper"


def test_the_silence_behind_a_masked_clip_stays_silence(whisper, dataset):
    """SpecAugment writes zeros, which are loud, into the features; the silence behind the clip must stay silent."""
    condense_silence(whisper, "condensed")
    features = batch_of(dataset, [0], 0.2)["input_features"]
    masked = features.clone()
    masked[..., -30:] = 0.0
    n_head = features.shape[-1] // 2
    silent = encode(whisper, masked)[:, n_head:]
    assert (silent - encode(whisper, features)[:, n_head:]).abs().mean() < 0.5 * silent.abs().mean()
