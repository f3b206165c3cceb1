"""The activations that autograd keeps of a step, in bytes, as the memory prediction counts them.

They are counted tensor by tensor, as transformers' Whisper, peft and bitsandbytes compute them.

Some words that the functions share:

- A *row* is one position of the encoder or one token of the decoder. A micro-batch has `clips × positions` rows in the
  encoder and `clips × tokens` rows in the decoder.
- *kept* is what the forward stores for the backward.
- The *compute type* is the type of the matrix products: float32, or under autocast bf16 or fp16.
"""

from __future__ import annotations

from dataclasses import dataclass

from whisper_peft.model.architecture import Architecture
from whisper_peft.model.attention import PLAIN_ATTENTION_KEYS
from whisper_peft.model.trained_weights import FLOAT_BYTES, Method


@dataclass(frozen=True)
class Load:
    """The size of a micro-batch, and of the batch of an evaluation.

    Args:
        clips: Clips in the micro-batch.
        positions: Encoder positions of one clip.
        tokens: Tokens of the longest transcript.
        targets: Tokens with a loss, of all clips together.
        micro_batches: Micro-batches in a step.
        evaluated_clips: Clips that an evaluation holds in memory at once; 0 if there is no evaluation.
        evaluated_positions: Encoder positions of one clip in an evaluation.
        evaluated_tokens: Tokens of the longest text that an evaluation generates.
    """

    clips: int
    positions: int
    tokens: int
    targets: int
    micro_batches: int = 1
    evaluated_clips: int = 0
    evaluated_positions: int = 0
    evaluated_tokens: int = 0

    @property
    def encoder_rows(self) -> int:
        """Return the encoder positions of all clips together."""
        return self.clips * self.positions

    @property
    def decoder_rows(self) -> int:
        """Return the decoder positions of all clips together, the padding included."""
        return self.clips * self.tokens


@dataclass(frozen=True)
class Kept:
    """The bytes that the forward of a step keeps, by place in the model.

    Args:
        inputs: The log-mels.
        stem: The two convolutions.
        encoder: All encoder layers; with gradient checkpointing only their inputs.
        decoder: All decoder layers, likewise.
        ends: The input and the output of the last layer norm of encoder and decoder, and the states before the head.
        encoder_again: One encoder layer, which gradient checkpointing computes again; without it, 0.
        decoder_again: One decoder layer, likewise.
    """

    inputs: int
    stem: int
    encoder: int
    decoder: int
    ends: int
    encoder_again: int
    decoder_again: int

    @property
    def total(self) -> int:
        """Return the bytes at the end of the forward."""
        return self.inputs + self.stem + self.encoder + self.decoder + self.ends


def count_kept(shape: Architecture, method: Method, load: Load) -> Kept:
    """Count what the forward of a step keeps, by place in the model."""
    encoder_layer = 0
    stem = 0
    if method.encoder_keeps_activations:
        encoder_layer = encoder_layer_kept(shape, method, load)
        stem = _stem_kept(shape, method, load)
    decoder_layer = decoder_layer_kept(shape, method, load)
    encoder = shape.layers * encoder_layer
    decoder = shape.decoder_layers * decoder_layer
    encoder_again = 0
    decoder_again = 0
    if method.gradient_checkpointing:
        # Of each layer only the input is kept, in float32.
        encoder = shape.layers * load.encoder_rows * shape.d_model * FLOAT_BYTES
        decoder = shape.decoder_layers * load.decoder_rows * shape.d_model * FLOAT_BYTES
        encoder_again = encoder_layer
        decoder_again = decoder_layer
    return Kept(
        inputs=_mel_numbers(shape, load) * FLOAT_BYTES,
        stem=stem,
        encoder=encoder,
        decoder=decoder,
        ends=_ends_kept(shape, method, load),
        encoder_again=encoder_again,
        decoder_again=decoder_again,
    )


def _mel_numbers(shape: Architecture, load: Load) -> int:
    """Count the numbers of the log-mels: two frames for each position."""
    return load.clips * 2 * load.positions * shape.n_mels


def _stem_kept(shape: Architecture, method: Method, load: Load) -> int:
    """Count what the two convolutions keep, which only a full training trains.

    The first one has twice as many rows as the encoder: its output is kept, and its activation as the input of the
    second one. Of the second one, whose stride is 2, the output is kept.
    """
    if not method.is_full:
        return 0
    cast_input = _mel_numbers(shape, load) * method.compute_bytes if method.is_reduced else 0
    return cast_input + 5 * load.encoder_rows * shape.d_model * method.compute_bytes


def _ends_kept(shape: Architecture, method: Method, load: Load) -> int:
    """Count the input and the output of the last layer norms, and the states before the head."""
    d_model = shape.d_model
    last_norms = (load.encoder_rows + load.decoder_rows) * d_model * 2 * FLOAT_BYTES
    cast_state = method.compute_bytes if method.is_reduced else 0
    return last_norms + load.targets * d_model * (FLOAT_BYTES + cast_state)


def encoder_layer_kept(shape: Architecture, method: Method, load: Load) -> int:
    """Count what autograd keeps of one encoder layer."""
    n_rows = load.encoder_rows
    attention = _self_attention_kept(shape, method, n_rows, load.clips, adapted=method.attention and method.encoder)
    mlp = _mlp_kept(shape, method, n_rows, adapted=method.mlp and method.encoder)
    return 2 * _norm_kept(shape, n_rows) + attention + mlp


def decoder_layer_kept(shape: Architecture, method: Method, load: Load) -> int:
    """Count what autograd keeps of one decoder layer."""
    n_rows = load.decoder_rows
    has_attention_adapters = method.attention and method.decoder
    attention = _self_attention_kept(shape, method, n_rows, load.clips, adapted=has_attention_adapters)
    cross_attention = _cross_attention_kept(shape, method, load, adapted=has_attention_adapters)
    mlp = _mlp_kept(shape, method, n_rows, adapted=method.mlp and method.decoder)
    return 3 * _norm_kept(shape, n_rows) + attention + cross_attention + mlp


def _norm_kept(shape: Architecture, n_rows: int) -> int:
    """Count a layer norm's input, with the mean and the deviation of each row."""
    return n_rows * (shape.d_model + 2) * FLOAT_BYTES


def _self_attention_kept(shape: Architecture, method: Method, n_rows: int, n_clips: int, *, adapted: bool) -> int:
    """Count an attention of rows to each other, with its four projections."""
    d_model = shape.d_model
    kept = attention_kept(n_rows, n_rows, n_clips, shape, method)
    # Queries, keys and values are projected from one input.
    kept += input_kept(n_rows, d_model, method, adapted=adapted, is_float32=True, n_layers=3)
    kept += input_kept(n_rows, d_model, method, adapted=adapted, is_float32=False)
    if method.dora and adapted:
        kept += dora_kept(n_rows, d_model, d_model, method, n_layers=4)
    return kept


def _cross_attention_kept(shape: Architecture, method: Method, load: Load, *, adapted: bool) -> int:
    """Count an attention of the decoder to the encoder's output, with its four projections."""
    d_model = shape.d_model
    n_rows = load.decoder_rows
    kept = attention_kept(n_rows, load.encoder_rows, load.clips, shape, method)
    kept += input_kept(n_rows, d_model, method, adapted=adapted, is_float32=True)
    kept += input_kept(n_rows, d_model, method, adapted=adapted, is_float32=False)
    # Keys and values are projected from the encoder's output. In float32 and without dropout, that is the input itself,
    # and all layers share it.
    is_shared = not method.is_reduced and (method.is_full or not method.dropout)
    if not is_shared:
        kept += input_kept(load.encoder_rows, d_model, method, adapted=adapted, is_float32=True, n_layers=2)
    if method.dora and adapted:
        kept += dora_kept(n_rows, d_model, d_model, method, n_layers=2)
        kept += dora_kept(load.encoder_rows, d_model, d_model, method, n_layers=2)
    return kept


def _mlp_kept(shape: Architecture, method: Method, n_rows: int, *, adapted: bool) -> int:
    """Count the two feed-forward layers, and the input of the activation function between them."""
    d_model = shape.d_model
    ffn_width = shape.ffn_width
    kept = input_kept(n_rows, d_model, method, adapted=adapted, is_float32=True)
    kept += n_rows * ffn_width * method.compute_bytes
    kept += input_kept(n_rows, ffn_width, method, adapted=adapted, is_float32=False)
    if method.dora and adapted:
        kept += dora_kept(n_rows, d_model, ffn_width, method) + dora_kept(n_rows, ffn_width, d_model, method)
    return kept


def input_kept(n_rows: int, width: int, method: Method, *, adapted: bool, is_float32: bool, n_layers: int = 1) -> int:
    """Count what autograd keeps of one input (n_rows, width) that some linear layers read.

    Args:
        n_rows: Rows of the input.
        width: Numbers in a row.
        method: How the model is trained.
        adapted: Whether the layers have adapters.
        is_float32: Whether the input is in float32, as a layer norm's output is. Autocast then casts it anew for each
            layer.
        n_layers: Number of linear layers that read the input.
    """
    n_numbers = n_rows * width
    n_copies = n_layers if is_float32 and method.is_reduced else 1
    copies = n_numbers * n_copies * method.compute_bytes
    if method.is_full:
        return copies
    if not adapted:
        return 0
    # Each adapter has a dropout of its own, which keeps its output and its mask. Without dropout there are the copies.
    kept = copies
    if method.dropout:
        kept = n_numbers * n_layers * (method.compute_bytes + method.mask_bytes)
    between_factors = n_rows * method.rank * n_layers * method.compute_bytes
    return kept + between_factors


def dora_kept(n_rows: int, n_inputs: int, n_outputs: int, method: Method, *, n_layers: int = 1) -> int:
    """Count what linear layers with DoRA keep beside what LoRA keeps: both summands, before they are scaled.

    Args:
        n_rows: Rows of the input.
        n_inputs: Width of the input.
        n_outputs: Width of the output.
        method: How the model is trained.
        n_layers: Number of such layers.
    """
    kept = 2 * n_rows * n_outputs * method.compute_bytes
    # With dropout, DoRA multiplies by the base's weights once more, and keeps their copy in the compute type.
    is_copied = method.dropout and (method.quantize or method.is_reduced)
    if is_copied:
        kept += n_inputs * n_outputs * method.compute_bytes
    return n_layers * kept


def attention_kept(n_queries: int, n_keys: int, n_clips: int, shape: Architecture, method: Method) -> int:
    """Count what one attention keeps between its projections.

    Args:
        n_queries: Queries of all clips together.
        n_keys: Keys of all clips together.
        n_clips: Number of clips.
        shape: The dimensions of the model.
        method: How it is trained.
    """
    keys_of_a_clip = n_keys // n_clips
    kept = (n_queries + 2 * n_keys) * shape.d_model * method.compute_bytes
    # See `attention.attention`: plain products keep the scores, the fused kernel its output and a number a query.
    is_plain = method.device == "cpu" and method.is_reduced and keys_of_a_clip <= PLAIN_ATTENTION_KEYS
    if is_plain:
        return kept + shape.heads * n_queries * keys_of_a_clip * method.compute_bytes
    return kept + n_queries * shape.d_model * method.compute_bytes + shape.heads * n_queries * FLOAT_BYTES
