"""The ggml files of whisper.cpp: the layout, and the check that a file is whole.

whisper.cpp believes what it reads: a damaged file can end the whole process. So a file is checked before it is loaded.
All numbers are little-endian and have 32 bits. A file holds, one behind the other:

- the magic number and the fields of `GgmlHeader`;
- the mel filters: rows, columns and float32 (n_mels, n_fft // 2 + 1);
- the tokens of text: how many, and for each its number of bytes and its bytes;
- the tensors: for each its number of dimensions, the bytes of its name, its type, its shape from the last dimension to
  the first, its name and its data.
"""

from __future__ import annotations

import dataclasses
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from whisper_peft.errors import UserError

GGML_MAGIC = 0x67676D6C
# Version of the block layouts, which stands in the thousands of the file's type.
QUANTIZATION_VERSION = 2
# Frequencies of a spectrum of 400 samples.
GGML_FREQUENCIES = 201
# Values in a block of every quantised type.
GGML_BLOCK = 32
# No name of a tensor and no token of text is so long.
_MOST_NAME_BYTES = 1000
# What whisper.cpp has built in: the sizes of the vocabularies, the encoder's positions and the decoder's tokens.
_VOCABULARIES = (51864, 51865, 51866)
_N_POSITIONS = 1500
_N_TOKENS = 448
# No Whisper has so many layers. A false number of them would cost much memory.
_MOST_LAYERS = 1000


@dataclass(frozen=True)
class GgmlType:
    """A type of weights.

    Attributes:
        name: Its name, for example "q8_0".
        tensor_number: Its number in the head of a tensor.
        file_number: Its number in the head of a file, whose large tensors have this type.
        block_values: Number of values that are stored together.
        block_bytes: Size of these values in bytes.
    """

    name: str
    tensor_number: int
    file_number: int
    block_values: int
    block_bytes: int

    @property
    def is_block_type(self) -> bool:
        """Tell whether values are quantised in blocks."""
        return self.block_values > 1


F32 = GgmlType("f32", 0, 0, 1, 4)
F16 = GgmlType("f16", 1, 1, 1, 2)
# The types of large tensors. There is a file of float32, too, but whisper.cpp 1.8.5 ends the whole process when it runs
# one on a CPU: its convolutions ask for float16.
GGML_TYPES = {
    weights.name: weights
    for weights in (
        F16,
        GgmlType("q4_0", 2, 2, GGML_BLOCK, 18),
        GgmlType("q4_1", 3, 3, GGML_BLOCK, 20),
        GgmlType("q5_0", 6, 8, GGML_BLOCK, 22),
        GgmlType("q5_1", 7, 9, GGML_BLOCK, 24),
        GgmlType("q8_0", 8, 7, GGML_BLOCK, 34),
    )
}


@dataclass(frozen=True)
class GgmlHeader:
    """The numbers at the start of a file, in their order.

    Attributes:
        n_vocab: Number of tokens.
        n_audio_ctx: Positions of the encoder.
        n_audio_state: Width of the encoder.
        n_audio_head: Heads of a layer of the encoder.
        n_audio_layer: Layers of the encoder.
        n_text_ctx: Positions of the decoder.
        n_text_state: Width of the decoder.
        n_text_head: Heads of a layer of the decoder.
        n_text_layer: Layers of the decoder.
        n_mels: Mel bins.
        file_type: Number of the type of the large tensors, plus 1,000 times the version of the block layouts.
    """

    n_vocab: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int
    n_mels: int
    file_type: int

    def pack(self) -> bytes:
        """Return the magic number and the fields as bytes."""
        return struct.pack("<12i", GGML_MAGIC, *dataclasses.astuple(self))

    @property
    def weights(self) -> GgmlType | None:
        """The type of the large tensors; None if we do not know it."""
        by_number = {weights.file_number: weights for weights in GGML_TYPES.values()}
        return by_number.get(self.file_type % 1000)

    @property
    def n_languages(self) -> int:
        """Number of languages that whisper.cpp reads from the size of the vocabulary; 0 for an English-only model."""
        return max(0, self.n_vocab - 51766)


def pack_file_type(weights: GgmlType) -> int:
    """Return the type of a file, as its header holds it."""
    if weights.is_block_type:
        return weights.file_number + 1000 * QUANTIZATION_VERSION
    return weights.file_number


@dataclass(frozen=True)
class GgmlTensor:
    """A tensor as whisper.cpp expects it.

    Attributes:
        shape: Its shape, as torch counts.
        type: The type of its values.
    """

    shape: tuple[int, ...]
    type: GgmlType

    @property
    def n_bytes(self) -> int:
        """Size of its data in bytes."""
        return math.prod(self.shape) // self.type.block_values * self.type.block_bytes


def expected_tensors(header: GgmlHeader, weights: GgmlType) -> dict[str, GgmlTensor]:
    """Return all tensors that whisper.cpp asks for, by name.

    Vectors, positions and the biases of the convolutions are float32 in every file, and the kernels of the convolutions
    are float16. Everything else has the type of the file.

    Args:
        header: The header of the file.
        weights: The type of the large tensors.
    """
    width = header.n_audio_state
    tensors = {
        "encoder.positional_embedding": GgmlTensor((header.n_audio_ctx, width), F32),
        "encoder.conv1.weight": GgmlTensor((width, header.n_mels, 3), F16),
        "encoder.conv1.bias": GgmlTensor((width, 1), F32),
        "encoder.conv2.weight": GgmlTensor((width, width, 3), F16),
        "encoder.conv2.bias": GgmlTensor((width, 1), F32),
        **_norm("encoder.ln_post", width),
    }
    for layer in range(header.n_audio_layer):
        prefix = f"encoder.blocks.{layer}"
        tensors |= _attention(f"{prefix}.attn", width, weights)
        tensors |= _feed_forward(prefix, width, weights)
    width = header.n_text_state
    tensors |= {
        "decoder.positional_embedding": GgmlTensor((header.n_text_ctx, width), F32),
        "decoder.token_embedding.weight": GgmlTensor((header.n_vocab, width), weights),
        **_norm("decoder.ln", width),
    }
    for layer in range(header.n_text_layer):
        prefix = f"decoder.blocks.{layer}"
        tensors |= _attention(f"{prefix}.attn", width, weights)
        tensors |= _attention(f"{prefix}.cross_attn", width, weights)
        tensors |= _feed_forward(prefix, width, weights)
    return tensors


def _norm(prefix: str, width: int) -> dict[str, GgmlTensor]:
    return {f"{prefix}.{part}": GgmlTensor((width,), F32) for part in ("weight", "bias")}


def _attention(prefix: str, width: int, weights: GgmlType) -> dict[str, GgmlTensor]:
    """Return the tensors of an attention and of the norm before it. The keys have no bias."""
    tensors = _norm(f"{prefix}_ln", width)
    for part in ("query", "key", "value", "out"):
        tensors[f"{prefix}.{part}.weight"] = GgmlTensor((width, width), weights)
        if part != "key":
            tensors[f"{prefix}.{part}.bias"] = GgmlTensor((width,), F32)
    return tensors


def _feed_forward(prefix: str, width: int, weights: GgmlType) -> dict[str, GgmlTensor]:
    return {
        **_norm(f"{prefix}.mlp_ln", width),
        f"{prefix}.mlp.0.weight": GgmlTensor((4 * width, width), weights),
        f"{prefix}.mlp.0.bias": GgmlTensor((4 * width,), F32),
        f"{prefix}.mlp.2.weight": GgmlTensor((width, 4 * width), weights),
        f"{prefix}.mlp.2.bias": GgmlTensor((width,), F32),
    }


class _Damage(Exception):
    """A file is not what whisper.cpp expects."""


def check_ggml_file(path: Path) -> GgmlHeader:
    """Check that a file is whole, so that whisper.cpp can load it without harm.

    Every tensor must be there once with the right shape, type and size, and the file must end behind the last one.

    Args:
        path: The file.

    Returns:
        Its header.

    Raises:
        UserError: It is damaged, cut short, or no such file at all.
    """
    try:
        with path.open("rb") as file:
            return _read_and_check(file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    except _Damage as damage:
        raise UserError(f"{path}: {damage}; export the model again.") from None


def _read_and_check(file: BinaryIO, size: int) -> GgmlHeader:
    if _read_numbers(file, 1) != (GGML_MAGIC,):
        raise _Damage("not a ggml file of whisper.cpp")
    header = GgmlHeader(*_read_numbers(file, 11))
    weights = header.weights
    if header.file_type == F32.file_number:
        raise _Damage("its weights are float32, which whisper.cpp does not run")
    if weights is None or not all(0 < number < 10_000_000 for number in dataclasses.astuple(header)[:-1]):
        raise _Damage("its header is damaged")
    _check_sizes(header)
    if _read_numbers(file, 2) != (header.n_mels, GGML_FREQUENCIES):
        raise _Damage("its mel filters do not fit its header")
    _skip(file, 4 * header.n_mels * GGML_FREQUENCIES, size)
    (n_tokens,) = _read_numbers(file, 1)
    if not 0 < n_tokens <= header.n_vocab:
        raise _Damage("its tokens do not fit its header")
    for _ in range(n_tokens):
        (n_bytes,) = _read_numbers(file, 1)
        _skip(file, n_bytes, size, most=_MOST_NAME_BYTES)
    if max(header.n_audio_layer, header.n_text_layer) > _MOST_LAYERS:
        raise _Damage("its header is damaged")
    waiting = expected_tensors(header, weights)
    for name, shape, number in _read_tensor_heads(file, size):
        tensor = waiting.pop(name, None)
        if tensor is None:
            raise _Damage(f"its tensor {name!r} is unknown to whisper.cpp, or there twice")
        if (tensor.shape, tensor.type.tensor_number) != (shape, number):
            raise _Damage(f"its tensor {name} has the wrong shape or type")
        _skip(file, tensor.n_bytes, size)
    if waiting:
        raise _Damage(f"cut short or damaged: {len(waiting)} tensors are missing")
    return header


def _check_sizes(header: GgmlHeader) -> None:
    """Refuse sizes that whisper.cpp would read past the end of its buffers with.

    Raises:
        _Damage: There is such a size.
    """
    state = header.n_audio_state
    is_sound = (
        header.n_vocab in _VOCABULARIES
        and header.n_audio_ctx == _N_POSITIONS
        and header.n_text_ctx == _N_TOKENS
        and header.n_text_state == state
        and state % header.n_audio_head == 0
        and state % header.n_text_head == 0
    )
    if not is_sound:
        raise _Damage("its sizes are not those of a Whisper")


def _read_tensor_heads(file: BinaryIO, size: int) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Yield name, shape and number of the type of each tensor. The caller goes past its data."""
    while file.tell() < size:
        n_dimensions, n_bytes, number = _read_numbers(file, 3)
        if not 0 < n_dimensions <= 4 or not 0 < n_bytes <= _MOST_NAME_BYTES:
            raise _Damage("the head of a tensor is damaged")
        shape = _read_numbers(file, n_dimensions)[::-1]
        name = file.read(n_bytes).decode("utf-8", "replace")
        yield name, shape, number


def _read_numbers(file: BinaryIO, count: int) -> tuple[int, ...]:
    content = file.read(4 * count)
    if len(content) < 4 * count:
        raise _Damage("cut short")
    return struct.unpack(f"<{count}i", content)


def _skip(file: BinaryIO, n_bytes: int, size: int, *, most: int | None = None) -> None:
    """Go past some bytes, which must be in the file."""
    if n_bytes < 0 or (most is not None and n_bytes > most):
        raise _Damage("damaged")
    if file.tell() + n_bytes > size:
        raise _Damage("cut short")
    file.seek(n_bytes, os.SEEK_CUR)
