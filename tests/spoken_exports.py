"""Models and exports for the tests of formats that have OpenAI's vocabulary built in."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from conftest import make_speech
from openai_vocabulary import KINDS, openai_tokenizer, save_checkpoint

from whisper_peft.delivery.exporting.formats import writer_of
from whisper_peft.delivery.exporting.source import ModelToExport
from whisper_peft.runtimes.exports import Export
from whisper_peft.runtimes.formats import EXPORT_FORMATS
from whisper_peft.runtimes.runtime import Request, Runtime

# The model of `save_speaking_checkpoint` writes this, whatever it hears.
SPOKEN = "hello world"
# It takes every sound for this language.
HEARD_LANGUAGE = "hi"


def save_openai_checkpoint(kind: str, folder: Path, **changes) -> Path:
    """Write a narrow random checkpoint whose feed-forward layers are as wide as OpenAI's: 4 times the model."""
    width = 4 * changes.get("d_model", 2 * KINDS[kind].decoder_heads)
    return save_checkpoint(kind, folder, encoder_ffn_dim=width, decoder_ffn_dim=width, **changes)


def save_speaking_checkpoint(kind: str, folder: Path, **changes) -> Path:
    """Write a checkpoint that always writes `SPOKEN`, so that decoding in a runtime is quick and known.

    The layers of its decoder add next to nothing. The position alone decides on the next token: the positional
    embeddings are long vectors at right angles to each other, and so are the embeddings of the tokens that follow.
    """
    import torch
    from transformers import WhisperForConditionalGeneration

    save_openai_checkpoint(kind, folder, **changes)
    model = WhisperForConditionalGeneration.from_pretrained(str(folder))
    decoder = model.model.decoder
    width = model.config.d_model
    tokens = _spoken_tokens(kind)
    # Directions without a mean, because the last layer norm would take the mean away.
    noise = np.random.default_rng(0).normal(size=(width, len(tokens)))
    directions = np.linalg.qr(noise - noise.mean(axis=0))[0].T * width**0.5
    with torch.no_grad():
        for layer in decoder.layers:
            for module in (layer.self_attn.out_proj, layer.encoder_attn.out_proj, layer.fc2):
                module.weight.mul_(1e-3)
                module.bias.mul_(1e-3)
        for position, token in enumerate(tokens):
            direction = torch.from_numpy(directions[position]).float()
            decoder.embed_tokens.weight[token] = 40 / width * direction
            decoder.embed_positions.weight[position] = 200 * direction
        # Where no time may stand, the end is the next best behind the words.
        decoder.embed_positions.weight[len(tokens) - 2] += 100 * direction
    model.save_pretrained(str(folder))
    return folder


def _spoken_tokens(kind: str) -> list[int]:
    """Return the token that follows each position: language, task, 0 s, the words, 1 s, and the end."""
    tokenizer = openai_tokenizer(kind)
    before = [tokenizer.timestamp_begin]
    if KINDS[kind].multilingual:
        before = [tokenizer.to_language_token(HEARD_LANGUAGE), tokenizer.transcribe, *before]
    return [*before, *tokenizer.encode(f" {SPOKEN}"), tokenizer.timestamp_begin + 50, tokenizer.eot]


def write_export(source: ModelToExport, folder: Path, format: str, quantization: str) -> Export:
    """Write a model with the writer of a format, after its own checks, without a proof."""
    writer = writer_of(format)
    writer.check(source)
    folder.mkdir()
    return Export(
        folder=folder,
        format=EXPORT_FORMATS[format],
        quantization=quantization,
        weights=writer.write(source, folder, quantization),
        language=None,
        task="transcribe",
        multilingual=source.preparation.multilingual,
        alignment_heads=source.alignment_heads,
    )


def make_check_source(folder: Path) -> Path:
    """Write three clips with `SPOKEN` as their transcript."""
    make_speech(folder, 3)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["file_name", "transcription"], *([f"{n}.wav", SPOKEN] for n in range(3))])
    return folder


def compare_on_english(shared: Path, runtime: Runtime) -> float:
    """Transcribe two clips of the English story in a runtime and in transformers, and compare.

    Args:
        shared: The shared folder.
        runtime: The real base in its runtime.

    Returns:
        The word error rate against what transformers writes, as a fraction.
    """
    from whisper_peft import score
    from whisper_peft.data.audio import load_audio
    from whisper_peft.evaluation.longform import transcribe_wave
    from whisper_peft.model.build import load_model

    model, preparation, _ = load_model(shared / "models" / "whisper-base")
    story = next((shared / "data" / "longform").glob("en_*.mp3"))
    expected, heard = [], []
    for start_s in (0.0, 40.0):
        wave = load_audio(story, start_s=start_s, end_s=start_s + 12.0)
        expected.append(transcribe_wave(model, preparation, wave, language="en")["text"])
        heard.append(runtime.transcribe(wave, Request("en")).text)
    assert all(len(text.split()) > 10 for text in expected), expected
    return score(expected, heard)["wer"]


def transformers_outputs(model: Path, wave: np.ndarray, tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the encoder's output (n_positions, d_model) and the logits (n_tokens, n_vocabulary) in transformers.

    Args:
        model: The folder of the model.
        wave: 30 s of sound.
        tokens: The decoder's input.
    """
    import torch
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    whisper = WhisperForConditionalGeneration.from_pretrained(str(model))
    extractor = WhisperFeatureExtractor.from_pretrained(str(model))
    features = extractor(wave, sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        outputs = whisper(input_features=features, decoder_input_ids=torch.tensor([tokens]))
    return outputs.encoder_last_hidden_state[0].numpy(), outputs.logits[0].numpy()


def gap(output: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, divided by the largest absolute value that is expected."""
    return float(np.abs(output - expected).max() / np.abs(expected).max())
