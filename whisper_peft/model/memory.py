"""A prediction of the memory that training a Whisper takes, part by part, in bytes.

tests/test_planning.py holds it against the tensors that are really alive.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from whisper_peft.model.activations import Load, count_kept
from whisper_peft.model.architecture import Architecture
from whisper_peft.model.head import EVALUATED_ROWS, LOSS_ROWS
from whisper_peft.model.trained_weights import (
    FLOAT_BYTES,
    Method,
    adapter_parameters,
    cast_bytes,
    count_trainable,
    kept_cast_bytes,
    loading_bytes,
    optimizer_bytes,
    unpacked_bytes,
    weight_bytes,
)

# Bytes that tokenizer, libraries and their handles take in a run, by the kind of device.
CONTEXT = {"cpu": 300_000_000, "cuda": 550_000_000}


@dataclass(frozen=True)
class Point:
    """One point in time, with the bytes in memory then; the weights of the base and the context are not among them.

    Args:
        name: What happens at this point.
        adapters: Weights of the adapter, in float32.
        optimizer: State of the optimizer.
        activations: What the forward keeps for the backward, and what is on its way through a layer.
        logits: Logits and their gradient.
        gradients: Gradients of weights.
        generation: All that an evaluation needs.
        loading: What loading the model needs beside its weights.
    """

    name: str
    adapters: float = 0
    optimizer: float = 0
    activations: float = 0
    logits: float = 0
    gradients: float = 0
    generation: float = 0
    loading: float = 0

    @property
    def parts(self) -> dict[str, float]:
        """Return the bytes by the name of the part."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "name"}

    @property
    def total(self) -> float:
        """Return the bytes of all parts together."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Memory:
    """The bytes at the highest point of a run, by part; `peak` is their sum."""

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    generation: int
    loading: int
    context: int

    @property
    def peak(self) -> int:
        """Return the bytes of all parts together."""
        return sum(dataclasses.asdict(self).values())


def predict_memory(shape: Architecture, method: Method, load: Load) -> Memory:
    """Predict the memory at the highest point of a run.

    The highest point can lie in the forward or the backward of a step, or in an evaluation. On a CPU it can also be the
    loading of the model, when there is neither an adapter nor an optimizer yet.

    Args:
        shape: The dimensions of the model.
        method: How it is trained.
        load: The largest micro-batch.

    Returns:
        The parts of the memory at that point.
    """
    points = step_points(shape, method, load)
    if load.evaluated_clips:
        points.append(Point("evaluation", generation=evaluation_bytes(shape, method, load)))
    adapters = adapter_parameters(shape, method) * FLOAT_BYTES
    optimizer = optimizer_bytes(count_trainable(shape, method), method)
    points = [dataclasses.replace(point, adapters=adapters, optimizer=optimizer) for point in points]
    if method.device == "cpu":
        points.append(Point("loading", loading=loading_bytes(shape, method)))
    highest = max(points, key=lambda point: point.total)
    return Memory(
        weights=weight_bytes(shape, method),
        context=CONTEXT[method.device],
        **{part: int(size) for part, size in highest.parts.items()},
    )


def step_points(shape: Architecture, method: Method, load: Load) -> list[Point]:
    """List the points of a step that can be its highest, in the order of time.

    The adapter and the optimizer are not counted: they are the same at all points.

    Args:
        shape: The dimensions of the model.
        method: How it is trained.
        load: The micro-batch.
    """
    kept = count_kept(shape, method, load)
    kept_casts = kept_cast_bytes(shape, method)
    encoder_kept = kept.inputs + kept.stem + kept.encoder
    in_encoder_layer = in_layer_bytes(shape, method, load.encoder_rows)
    in_decoder_layer = in_layer_bytes(shape, method, load.decoder_rows)
    all_gradients = count_trainable(shape, method) * FLOAT_BYTES
    # Gradients add up over the micro-batches of a step, so those of an earlier one exist all the time.
    earlier_gradients = all_gradients if load.micro_batches > 1 else 0
    head_gradients = shape.embedding * FLOAT_BYTES if method.is_full else 0
    # The weight gradient of the head is made in the compute type before it is float32.
    head_gradients_made = shape.embedding * method.compute_bytes if method.is_full else 0
    decoder_gradients = all_gradients * _decoder_share(shape, method)
    logits = load.targets * shape.vocab * method.compute_bytes
    # The loss makes about three copies of some rows at a time, in float32.
    loss_rows = 3 * LOSS_ROWS * shape.vocab * FLOAT_BYTES
    return [
        Point(
            "loss, at the end of the forward",
            activations=kept.total + cast_bytes(shape, method),
            logits=2 * logits + loss_rows,
            gradients=earlier_gradients,
        ),
        Point(
            "backward of the head",
            activations=kept.total + kept_casts,
            logits=logits + head_gradients_made,
            gradients=max(earlier_gradients, head_gradients),
        ),
        Point(
            "backward of the last decoder layer",
            activations=kept.total + kept_casts + kept.decoder_again + in_decoder_layer,
            gradients=max(earlier_gradients, head_gradients),
        ),
        Point(
            "backward of the last encoder layer",
            activations=encoder_kept + kept_casts + kept.encoder_again + in_encoder_layer,
            gradients=max(earlier_gradients, decoder_gradients),
        ),
        Point(
            "end of the backward",
            activations=kept.inputs + kept.stem + load.encoder_rows * shape.d_model * FLOAT_BYTES,
            gradients=all_gradients,
        ),
    ]


def _decoder_share(shape: Architecture, method: Method) -> float:
    """Return the share of the gradients that the decoder has."""
    if method.freeze == "encoder":
        return 1.0
    if method.is_full:
        return (shape.decoder_matrices + shape.embedding) / shape.parameters
    n_trained = count_trainable(shape, method)
    if not n_trained:
        return 0.0
    return count_trainable(shape, dataclasses.replace(method, encoder=False)) / n_trained


def in_layer_bytes(shape: Architecture, method: Method, n_rows: int) -> int:
    """Count the gradients of activations on their way back through the widest part of a layer.

    Args:
        shape: The dimensions of the model.
        method: How it is trained.
        n_rows: Rows of the layer.
    """
    wide_bytes = method.compute_bytes
    if not method.is_full:
        # peft casts an adapter's input to float32; with dropout and under autocast there are two of it.
        wide_bytes = 2 * FLOAT_BYTES if method.dropout and method.is_reduced else FLOAT_BYTES
    gradients = n_rows * (shape.ffn_width * wide_bytes + shape.d_model * FLOAT_BYTES)
    return gradients + unpacked_bytes(shape, method)


def evaluation_bytes(shape: Architecture, method: Method, load: Load) -> int:
    """Count the highest point of an evaluation's batch: encoding, generating the last token, or the token losses."""
    d_model = shape.d_model
    clips = load.evaluated_clips
    n_positions = clips * load.evaluated_positions
    n_tokens = clips * load.evaluated_tokens
    log_mels = clips * 2 * load.evaluated_positions * shape.n_mels * FLOAT_BYTES
    encoder_output = n_positions * d_model * FLOAT_BYTES
    casts = 0
    if method.is_full and method.is_reduced:
        casts = shape.parameters * method.compute_bytes
    # The states on their way through the widest part of an encoder layer.
    encoding = n_positions * (3 * d_model * FLOAT_BYTES + 2 * shape.ffn_width * method.compute_bytes)
    # Keys and values of every position and every token. Growing them by a token copies those of one layer's tokens.
    cached = shape.decoder_layers * 2 * (n_positions + n_tokens) * d_model * method.compute_bytes
    cached += 2 * n_tokens * d_model * method.compute_bytes
    # What generation makes of one token's logits: a few copies in float32.
    last_token = 5 * clips * shape.vocab * FLOAT_BYTES
    losses = EVALUATED_ROWS * shape.vocab * (2 * FLOAT_BYTES + method.compute_bytes)
    return log_mels + encoder_output + casts + max(encoding, cached + last_token, losses)
