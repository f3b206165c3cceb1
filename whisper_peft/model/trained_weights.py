"""The number of weights that a method of training has, trains and stores, and the bytes that they take."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from whisper_peft.model.architecture import Architecture

# Bytes of a number in float32.
FLOAT_BYTES = 4
# A layer of bitsandbytes in 4 bits has a scale for each block of so many weights. The scales themselves are in 8 bits,
# with one float32 for each 256 of them.
_WEIGHTS_PER_SCALE = 64
# An 8-bit optimizer has a scale for each block of so many numbers, as have the scales of 4-bit weights.
_NUMBERS_PER_SCALE = 256


@dataclass(frozen=True)
class Method:
    """How a model is trained, as far as memory depends on it.

    Args:
        mode: full or lora.
        quantize: 8bit or 4bit for the frozen base of an adapter; None for one that is not quantised.
        precision: fp32, bf16 or fp16.
        device: cpu or cuda.
        gradient_checkpointing: Whether the activations of a layer are computed again in the backward.
        optimizer: A name as `train.optimizer` takes it.
        freeze: "encoder" if it is not trained, else None.
        rank: Rank of the adapter's factors.
        dropout: Dropout on the adapter's input.
        attention: Whether the linear layers of attention have adapters.
        mlp: Whether the feed-forward layers have adapters.
        encoder: Whether the layers of the encoder have adapters.
        decoder: Whether the layers of the decoder have adapters.
        dora: Whether the adapters are DoRA's.
        trained_modules: Names of modules that are trained in full beside the adapter.
    """

    mode: str = "lora"
    quantize: str | None = None
    precision: str = "bf16"
    device: str = "cuda"
    gradient_checkpointing: bool = False
    optimizer: str = "adamw"
    freeze: str | None = None
    rank: int = 32
    dropout: float = 0.05
    attention: bool = True
    mlp: bool = True
    encoder: bool = True
    decoder: bool = True
    dora: bool = False
    trained_modules: tuple[str, ...] = ()

    @property
    def is_full(self) -> bool:
        """Tell whether all weights are trained, not an adapter."""
        return self.mode == "full"

    @property
    def is_reduced(self) -> bool:
        """Tell whether the matrix products are computed in 16 bits."""
        return self.precision != "fp32"

    @property
    def compute_bytes(self) -> int:
        """Return the bytes of a number in the compute type."""
        return 2 if self.is_reduced else FLOAT_BYTES

    @property
    def mask_bytes(self) -> int:
        """Return the bytes that a dropout's mask takes for each number."""
        return 1 if self.device == "cuda" else FLOAT_BYTES

    @property
    def encoder_keeps_activations(self) -> bool:
        """Tell whether the encoder keeps activations; it keeps none where nothing in it, or before it, is trained."""
        return self.freeze != "encoder" and (self.is_full or self.encoder)


def weight_bytes(shape: Architecture, method: Method) -> int:
    """Count the model without its adapter, as `build_model` holds it."""
    if method.is_full:
        return shape.parameters * FLOAT_BYTES
    matrices = shape.encoder_matrices + shape.decoder_matrices
    # `cast_frozen_weights` holds these in the compute type, and the rest in float32.
    cast = shape.convolutions + shape.embedding + shape.biases
    rest = shape.positions + shape.norms
    bytes_per_weight = {
        None: method.compute_bytes,
        # Each row of a matrix has a scale.
        "8bit": 1 + FLOAT_BYTES / shape.d_model,
        "4bit": 0.5 + 1 / _WEIGHTS_PER_SCALE + FLOAT_BYTES / (_WEIGHTS_PER_SCALE * _NUMBERS_PER_SCALE),
    }[method.quantize]
    return round(matrices * bytes_per_weight + cast * method.compute_bytes + rest * FLOAT_BYTES)


def loading_bytes(shape: Architecture, method: Method) -> int:
    """Count what loading the model needs beside its weights.

    That is the checkpoint's file, which is mapped into memory with 16 bits a weight. The base of an adapter is first
    loaded in these 16 bits and then converted, so both copies exist for a moment.
    """
    copies = 1 if method.is_full else 2
    return shape.parameters * 2 * copies


def adapter_parameters(shape: Architecture, method: Method) -> int:
    """Count the weights of an adapter, and those of the modules that are trained in full beside it."""
    if method.is_full:
        return 0
    d_model = shape.d_model
    ffn_width = shape.ffn_width
    attention = 0
    mlp = 0
    # Two factors for each linear layer. DoRA adds a magnitude for each of its outputs.
    if method.attention:
        attention = 4 * (2 * method.rank * d_model + method.dora * d_model)
    if method.mlp:
        mlp = (2 * method.rank + method.dora) * (d_model + ffn_width)
    count = sum(shape.parameters_of(name) for name in method.trained_modules)
    if method.encoder:
        count += shape.layers * (attention + mlp)
    if method.decoder:
        # A decoder layer attends to the text and to the sound.
        count += shape.decoder_layers * (2 * attention + mlp)
    return count


def count_trainable(shape: Architecture, method: Method) -> int:
    """Count the weights that have gradients."""
    is_frozen = method.freeze == "encoder"
    if not method.is_full:
        return adapter_parameters(shape, dataclasses.replace(method, encoder=method.encoder and not is_frozen))
    d_model = shape.d_model
    # The encoder's position embeddings are sinusoids, and always frozen.
    frozen = shape.max_positions * d_model
    if is_frozen:
        biases_and_norms = shape.layers * (8 * d_model + shape.ffn_width) + 2 * d_model
        frozen += shape.encoder_matrices + shape.convolutions + biases_and_norms
    return shape.parameters - frozen


def optimizer_bytes(n_trained: int, method: Method) -> int:
    """Count AdamW's two moments of each trained weight.

    A paged optimizer is counted as well: as long as a GPU has room, its state lies there.

    Args:
        n_trained: Number of trained weights.
        method: How the model is trained.
    """
    if method.optimizer == "adamw":
        return n_trained * 2 * FLOAT_BYTES
    # 8 bits for each moment, and a scale for each block.
    return round(n_trained * 2 * (1 + FLOAT_BYTES / _NUMBERS_PER_SCALE))


def cast_bytes(shape: Architecture, method: Method) -> int:
    """Count the copies of trained weights that autocast makes in the forward, and keeps until its end."""
    if not method.is_reduced:
        return 0
    if not method.is_full:
        return adapter_parameters(shape, method) * method.compute_bytes
    cast = shape.decoder_matrices + shape.convolutions + shape.embedding
    if method.freeze != "encoder":
        cast += shape.encoder_matrices
    return cast * method.compute_bytes


def kept_cast_bytes(shape: Architecture, method: Method) -> int:
    """Count the copies of `cast_bytes` that the backward needs.

    Those are all of them, or with gradient checkpointing the copies of one layer and of the head.
    """
    casts = cast_bytes(shape, method)
    if not method.gradient_checkpointing:
        return casts
    one_layer = casts // (shape.layers + shape.decoder_layers)
    if method.is_full and method.is_reduced:
        return one_layer + shape.embedding * method.compute_bytes
    return one_layer


def unpacked_bytes(shape: Architecture, method: Method) -> int:
    """Count the weights that the widest linear layer makes while it computes."""
    d_model = shape.d_model
    ffn_width = shape.ffn_width
    unpacked = 0
    if method.quantize:
        unpacked += d_model * ffn_width * (FLOAT_BYTES + method.compute_bytes)
    if method.dora:
        # For the norm of the weights, peft computes the update by multiplying a unit matrix.
        unpacked += (ffn_width * ffn_width + 3 * d_model * ffn_width) * FLOAT_BYTES
    return unpacked
