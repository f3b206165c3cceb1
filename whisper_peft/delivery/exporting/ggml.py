"""Write a model for whisper.cpp: one file with the mel filters, the tokens and the weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from whisper_peft.delivery.exporting.openai_names import openai_name
from whisper_peft.delivery.exporting.source import ModelToExport
from whisper_peft.errors import UserError
from whisper_peft.model.generation_defaults import published_alignment_heads
from whisper_peft.runtimes.ggml_file import (
    GGML_BLOCK,
    GGML_TYPES,
    GgmlHeader,
    GgmlTensor,
    GgmlType,
    expected_tensors,
    pack_file_type,
)

if TYPE_CHECKING:
    import torch

# The name that whisper.cpp's own converters give to their file.
GGML_WEIGHTS = "ggml-model.bin"
# The --dtw of whisper-cli for each of OpenAI's shapes: width, decoder layers, vocabulary.
_DTW_PRESETS = {
    (384, 4, 51864): "tiny.en",
    (384, 4, 51865): "tiny",
    (512, 6, 51864): "base.en",
    (512, 6, 51865): "base",
    (768, 12, 51864): "small.en",
    (768, 12, 51865): "small",
    (1024, 24, 51864): "medium.en",
    (1024, 24, 51865): "medium",
    (1280, 32, 51865): "large.v2",
    (1280, 32, 51866): "large.v3",
    (1280, 4, 51866): "large.v3.turbo",
}
# whisper.cpp takes a decoder of so many layers for a first Distil-Whisper, unless its vocabulary is that of large-v3.
_DISTIL_LAYERS = 2
_LARGE_V3_VOCABULARY = 51866


class GgmlWriter:
    """Writes the ggml layout of whisper.cpp, which has OpenAI's special tokens and 30 s built in; see `Writer`."""

    def check(self, source: ModelToExport) -> None:
        """Refuse a model that whisper.cpp would misread."""
        source.check_openai_layout("ggml", "whisper.cpp", own_words=True)
        # whisper.cpp suppresses this token at the start, and ends the whole process without it.
        if b" " not in source.text_tokens():
            raise UserError(f"{source.name}: its vocabulary has no token for a lone space, which whisper.cpp needs.")

    def write(self, source: ModelToExport, folder: Path, quantization: str) -> str:
        """Write ggml-model.bin; see `Writer.write`."""
        weights = GGML_TYPES[quantization]
        header = _header_of(source, weights)
        if weights.is_block_type and header.n_text_state % GGML_BLOCK:
            raise UserError(
                f"{source.name}: {quantization} stores {GGML_BLOCK} values together, and the width of the model, "
                f"{header.n_text_state}, is no multiple of it; take --quantization f16."
            )
        with (folder / GGML_WEIGHTS).open("wb") as file:
            file.write(header.pack())
            _write_mel_filters(file, source)
            _write_tokens(file, source)
            _write_tensors(file, source, expected_tensors(header, weights))
        return GGML_WEIGHTS

    def notes(self, source: ModelToExport, quantization: str) -> list[str]:
        """Say which command runs the file, and how to get good times of words."""
        notes = [f"whisper-cli -m {GGML_WEIGHTS} -f AUDIO transcribes with it."]
        if source.preparation.multilingual:
            command = f"whisper-cli -m {GGML_WEIGHTS} -l {source.language or 'auto'} -f AUDIO"
            notes = [f"{command} transcribes with it; without -l, whisper-cli takes every recording for English."]
        preset = _dtw_preset_of(source)
        if preset is not None:
            notes.append(
                "whisper.cpp guesses the times of words from token probabilities; with -nfa -ojf --dtw "
                f"{preset}, whisper-cli takes them from the alignment heads (t_dtw)."
            )
        if source.config.decoder_layers == _DISTIL_LAYERS and source.config.vocab_size != _LARGE_V3_VOCABULARY:
            notes.append("whisper.cpp takes a decoder of 2 layers for a first Distil-Whisper, and gives no times.")
        return notes


def _dtw_preset_of(source: ModelToExport) -> str | None:
    """Return the --dtw whose heads are the model's own; None if there is none."""
    config = source.config
    published = published_alignment_heads(config)
    if published is None or sorted(map(list, source.alignment_heads or [])) != sorted(published):
        return None
    return _DTW_PRESETS.get((config.d_model, config.decoder_layers, config.vocab_size))


def _header_of(source: ModelToExport, weights: GgmlType) -> GgmlHeader:
    config = source.config
    return GgmlHeader(
        n_vocab=config.vocab_size,
        n_audio_ctx=config.max_source_positions,
        n_audio_state=config.d_model,
        n_audio_head=config.encoder_attention_heads,
        n_audio_layer=config.encoder_layers,
        n_text_ctx=config.max_target_positions,
        n_text_state=config.d_model,
        n_text_head=config.decoder_attention_heads,
        n_text_layer=config.decoder_layers,
        n_mels=config.num_mel_bins,
        file_type=pack_file_type(weights),
    )


def _write_mel_filters(file: BinaryIO, source: ModelToExport) -> None:
    # (n_mels, n_fft // 2 + 1)
    filters = np.ascontiguousarray(source.preparation.mel_filters.T, dtype="<f4")
    file.write(np.array(filters.shape, dtype="<i4").tobytes())
    file.write(filters.tobytes())


def _write_tokens(file: BinaryIO, source: ModelToExport) -> None:
    """Write the tokens of text. whisper.cpp makes up the names of the special tokens behind them itself."""
    tokens = source.text_tokens()
    file.write(np.array(len(tokens), dtype="<i4").tobytes())
    for token in tokens:
        file.write(np.array(len(token), dtype="<i4").tobytes())
        file.write(token)


def _write_tensors(file: BinaryIO, source: ModelToExport, expected: dict[str, GgmlTensor]) -> None:
    """Write all tensors.

    Raises:
        UserError: The model has other tensors than whisper.cpp, one with another shape, or a value beyond float16.
    """
    tensors = {openai_name(name) or name: tensor for name, tensor in source.tensors().items()}
    odd = sorted(tensors.keys() ^ expected.keys())
    if odd:
        raise UserError(f"{source.name}: whisper.cpp and the model do not both have a tensor {odd[0]}.")
    for name, target in expected.items():
        values = _as_array(tensors[name], target.shape)
        if values is None:
            raise UserError(
                f"{source.name}: {name} has the shape {tuple(tensors[name].shape)}; whisper.cpp has {target.shape}."
            )
        data = pack_values(values, target.type)
        if data is None:
            raise UserError(
                f"{source.name}: a value of {name} is beyond float16, and whisper.cpp runs no float32; take --format "
                "ctranslate2."
            )
        encoded = name.encode()
        file.write(np.array([len(target.shape), len(encoded), target.type.tensor_number], dtype="<i4").tobytes())
        file.write(np.array(target.shape[::-1], dtype="<i4").tobytes())
        file.write(encoded)
        file.write(data)


def _as_array(tensor: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the values of a tensor as float32 of a shape, which may end in a 1; None if it has another shape."""
    values = tensor.detach().float().cpu().numpy()
    if shape[-1] == 1:
        values = values[..., None]
    return values if values.shape == shape else None


def pack_values(values: np.ndarray, target: GgmlType) -> bytes | None:
    """Return values as a ggml file stores them; None if one is too large for it.

    Args:
        values: float32. The last dimension of a quantised type is a multiple of 32.
        target: The type to store.
    """
    if target.name == "f32":
        return values.astype("<f4").tobytes()
    if not np.abs(values).max() <= np.finfo(np.float16).max:
        return None
    if target.name == "f16":
        return values.astype("<f2").tobytes()
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    return quantize(values, GGMLQuantizationType(target.tensor_number)).tobytes()
