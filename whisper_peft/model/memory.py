"""How much memory training a Whisper takes, part by part.

What autograd keeps of a layer is counted tensor by tensor, as transformers' Whisper, peft and bitsandbytes run it
(tests/test_planning.py holds the count against the tensors that are really alive). Sizes are in bytes, in the
variables: N positions or tokens of a micro-batch in all, d the model's width.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from whisper_peft.model.architecture import Architecture
from whisper_peft.model.devices import PLAIN_ATTENTION_KEYS

# Bytes of what every page and message of ours calls a GB: cards are sold and shown by nvidia-smi in this unit.
GIB = 1024**3
FLOAT = 4  # bytes of float32
ROWS = 32  # of logits in float32 at a time in training: 51,865 of a vocabulary each, about what a CPU's cache holds
EVALUATED_ROWS = 256  # of logits at a time where no gradient is wanted: they are made as they are needed
CONTEXT = {"cpu": 300_000_000, "cuda": 550_000_000}  # what tokenizer, libraries and their handles bring in with a run


@dataclass(frozen=True)
class Method:
    """How a model is trained, as far as memory goes."""

    mode: str = "lora"
    quantize: str | None = None
    precision: str = "bf16"
    device: str = "cuda"
    gradient_checkpointing: bool = False
    optimizer: str = "adamw"
    freeze: str | None = None
    rank: int = 32
    dropout: float = 0.05
    attention: bool = True  # whether these layers have adapters
    mlp: bool = True
    encoder: bool = True
    decoder: bool = True
    dora: bool = False
    trained_modules: tuple[str, ...] = ()  # beside the adapter, in full

    @property
    def width(self) -> int:
        """Bytes of a number in the matrix products."""
        return FLOAT if self.precision == "fp32" else 2

    @property
    def mask(self) -> int:
        """Bytes of a number in a dropout's mask."""
        return 1 if self.device == "cuda" else FLOAT


@dataclass(frozen=True)
class Load:
    """A micro-batch, and the batch of an evaluation."""

    clips: int
    positions: int  # the encoder's, of a clip
    tokens: int  # of the longest transcript
    targets: int  # tokens with a loss, of all clips
    micro_batches: int = 1
    evaluated_clips: int = 0  # at a time; 0: no evaluation
    evaluated_positions: int = 0
    evaluated_tokens: int = 0  # of the longest text made


PARTS = ("adapters", "optimizer", "gradients", "activations", "logits", "generation", "loading")  # of one point in time


@dataclass(frozen=True)
class Memory:
    """Bytes by part; `peak` is their sum."""

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
        """All parts at once."""
        return sum(dataclasses.asdict(self).values())


def predict_memory(shape: Architecture, method: Method, load: Load) -> Memory:
    """Memory at the highest point of a run.

    Args:
        shape: of the model.
        method: of training.
        load: the largest micro-batch.

    Returns:
        Memory, its parts being those of that point: of a step's forward and backward, of an evaluation, or on a CPU
        of loading the model, when there is neither adapter nor optimizer yet.
    """
    points = step_points(shape, method, load)
    if load.evaluated_clips:
        points.append({"generation": evaluation_bytes(shape, method, load)})
    learning = {
        "adapters": adapter_parameters(shape, method) * FLOAT,
        "optimizer": optimizer_bytes(trainable(shape, method), method),
    }  # fmt: skip
    points = [{**learning, **parts} for parts in points]
    if method.device == "cpu":
        points.append({"loading": loading_bytes(shape, method)})
    parts = max(points, key=lambda parts: sum(parts.values()))
    return Memory(
        weights=weight_bytes(shape, method), context=CONTEXT[method.device],
        **{name: int(parts.get(name, 0)) for name in PARTS},
    )  # fmt: skip


def loading_bytes(shape: Architecture, method: Method) -> int:
    """Beside the weights: the file that is mapped and, where they are made of them, its own weights in 16 bits."""
    return shape.parameters * (2 if method.mode == "full" else 4)


def weight_bytes(shape: Architecture, method: Method) -> int:
    """The model without its adapter, as `build_model` holds it."""
    matrices = shape.encoder_matrices + shape.decoder_matrices
    cast, rest = shape.convolutions + shape.embedding + shape.biases, shape.positions + shape.norms
    if method.mode == "full":
        return shape.parameters * FLOAT
    per_weight = {
        None: method.width,
        "8bit": 1 + FLOAT / shape.d_model,  # a scale a row
        "4bit": 0.5 + 1 / 64 + FLOAT / (64 * 256),  # a scale a block of 64, itself in 8 bits with one a 256
    }[method.quantize]
    return round(matrices * per_weight + cast * method.width + rest * FLOAT)


def adapter_parameters(shape: Architecture, method: Method) -> int:
    """Weights of the adapter's factors."""
    if method.mode == "full":
        return 0
    d, f, r = shape.d_model, shape.f, method.rank
    mlp = 2 * r * (d + f) + method.dora * (d + f) if method.mlp else 0  # DoRA: a magnitude for each output
    attention = 4 * (2 * r * d + method.dora * d) if method.attention else 0
    encoder = shape.layers * (attention + mlp) if method.encoder else 0
    decoder = shape.decoder_layers * (2 * attention + mlp) if method.decoder else 0
    return encoder + decoder + sum(shape.parameters_of(name) for name in method.trained_modules)


def trainable(shape: Architecture, method: Method) -> int:
    """How many weights have gradients."""
    if method.mode == "lora":
        only = dataclasses.replace(method, encoder=method.encoder and method.freeze != "encoder")
        return adapter_parameters(shape, only)
    frozen = shape.max_positions * shape.d_model  # the encoder's sinusoids
    if method.freeze == "encoder":
        d = shape.d_model
        frozen += shape.encoder_matrices + shape.convolutions + shape.layers * (8 * d + shape.f) + 2 * d
    return shape.parameters - frozen


def optimizer_bytes(trained: int, method: Method) -> int:
    """AdamW's two moments; in 8 bits, with a scale a block of 256. Paged ones are counted, too: they may lie there."""
    return round(trained * 2 * (FLOAT if method.optimizer == "adamw" else 1 + FLOAT / 256))


def kept_of_input(n: int, width: int, method: Method, *, adapted: bool, fresh: bool, sharing: int = 1) -> int:
    """What autograd keeps of the input of `sharing` linear layers that read the same (n, width).

    Args:
        n: positions or tokens in all.
        width: of the input.
        method: of training.
        adapted: whether these layers have adapters.
        fresh: whether the input is in float32 (a layer norm's) and has to be cast for reduced precision.
        sharing: how many layers read it.
    """
    a, size = method.width, n * width
    cast_each = fresh and a < FLOAT
    as_it_is = size * a * (sharing if cast_each else 1)
    kept = 0
    if method.mode == "full":
        kept += as_it_is
    if method.mode == "lora" and adapted:
        dropped = size * sharing * (a + method.mask) if method.dropout else as_it_is
        kept += dropped + n * method.rank * sharing * a
    return kept


def dora_kept(n: int, inputs: int, outputs: int, method: Method, *, sharing: int = 1) -> int:
    """What DoRA keeps beside LoRA of `sharing` linear layers: both summands before they are scaled.

    With dropout it multiplies by the base's weights once more, and keeps their copy in this precision.
    """
    copied = method.dropout and (method.quantize or method.width < FLOAT)
    return sharing * (2 * n * outputs * method.width + (inputs * outputs * method.width if copied else 0))


def attention_kept(queries: int, keys: int, clips: int, shape: Architecture, method: Method) -> int:
    """Of one attention, between its projections: queries, keys, values, and the scores or what stands for them."""
    d, a = shape.d_model, method.width
    kept = (queries + 2 * keys) * d * a
    plain = method.device == "cpu" and a < FLOAT and keys // clips <= PLAIN_ATTENTION_KEYS
    if plain:
        return kept + shape.heads * queries * (keys // clips) * a
    return kept + queries * d * a + shape.heads * queries * FLOAT


def layer_kept(shape: Architecture, method: Method, n: int, clips: int, *, states: int = 0) -> int:
    """What autograd keeps of one layer.

    Args:
        shape: of the model.
        method: of training.
        n: its positions or tokens in all.
        clips: how many they belong to.
        states: a decoder layer's: the encoder's positions in all.
    """
    d, f, half = shape.d_model, shape.f, method.decoder if states else method.encoder
    attention, mlp = method.attention and half, method.mlp and half
    norms = (3 if states else 2) * n * (d + 2) * FLOAT
    kept = norms + attention_kept(n, n, clips, shape, method)
    kept += kept_of_input(n, d, method, adapted=attention, fresh=True, sharing=3)
    kept += kept_of_input(n, d, method, adapted=attention, fresh=False)
    if states:
        kept += attention_kept(n, states, clips, shape, method)
        kept += kept_of_input(n, d, method, adapted=attention, fresh=True)
        kept += kept_of_input(n, d, method, adapted=attention, fresh=False)
        shared = method.width == FLOAT and not (method.mode == "lora" and method.dropout)
        if not shared:  # else it is the encoder's output itself
            kept += kept_of_input(states, d, method, adapted=attention, fresh=True, sharing=2)
    kept += kept_of_input(n, d, method, adapted=mlp, fresh=True)
    kept += n * f * method.width  # into the activation function
    if method.dora and attention:
        kept += dora_kept(n, d, d, method, sharing=6 if states else 4)
        kept += dora_kept(states, d, d, method, sharing=2) if states else 0
    if method.dora and mlp:
        kept += dora_kept(n, d, f, method) + dora_kept(n, f, d, method)
    return kept + kept_of_input(n, f, method, adapted=mlp, fresh=False)


def step_points(shape: Architecture, method: Method, load: Load) -> list[dict[str, float]]:
    """Gradients, activations and logits at the points of a step that can be its highest."""
    d, f, a = shape.d_model, shape.f, method.width
    n, t = load.clips * load.positions, load.clips * load.tokens
    full, frozen = method.mode == "full", method.freeze == "encoder"
    encoder_layer = layer_kept(shape, method, n, load.clips)
    decoder_layer = layer_kept(shape, method, t, load.clips, states=n)
    stem = (load.clips * 2 * load.positions * shape.n_mels * a * (a < FLOAT) + 5 * n * d * a) if full else 0
    if frozen or not (full or method.encoder):  # nothing behind its input learns: it keeps nothing
        encoder_layer = stem = 0
    ends = n * d * 2 * FLOAT + t * d * 2 * FLOAT + load.targets * d * (FLOAT + a * (a < FLOAT))
    if method.gradient_checkpointing:
        encoder, decoder = shape.layers * n * d * FLOAT, shape.decoder_layers * t * d * FLOAT
        again = {"encoder": encoder_layer, "decoder": decoder_layer}
    else:
        encoder, decoder = shape.layers * encoder_layer, shape.decoder_layers * decoder_layer
        again = {"encoder": 0, "decoder": 0}
    casts = 0
    if a < FLOAT:
        matrices = shape.encoder_matrices * (not frozen) + shape.decoder_matrices + shape.convolutions + shape.embedding
        casts = (matrices if full else adapter_parameters(shape, method)) * a
    later = casts  # autocast keeps its copies until the forward ends; what was saved for the backward, until then
    if method.gradient_checkpointing:
        later = casts // (shape.layers + shape.decoder_layers) + shape.embedding * a * full * (a < FLOAT)
    trained = trainable(shape, method) * FLOAT
    behind = trained if load.micro_batches > 1 else 0  # of the micro-batches before
    decoder_share = trained if frozen else trained * _decoder_share(shape, method)
    embedding = shape.embedding * FLOAT if full else 0
    unpacked = d * f * (FLOAT + a) if method.quantize else 0  # a layer's weights, while it computes
    if method.dora:  # and their norm: the update is made by multiplying a unit matrix
        unpacked += (f * f + 3 * d * f) * FLOAT
    inputs = load.clips * 2 * load.positions * shape.n_mels * FLOAT
    all_of_it = encoder + decoder + stem + ends + later + inputs

    def in_layer(size: int) -> int:
        """Gradients on their way through the widest part of a layer: peft casts an adapter's input to float32."""
        wide = a if full else FLOAT * (2 if method.dropout and a < FLOAT else 1)
        return size * (f * wide + d * FLOAT) + unpacked

    logits, rows = load.targets * shape.vocab * a, 3 * ROWS * shape.vocab * FLOAT
    points = [
        {"activations": all_of_it - later + casts, "logits": 2 * logits + rows, "gradients": behind},
        {"activations": all_of_it, "logits": logits + embedding / FLOAT * a, "gradients": max(behind, embedding)},
        {"activations": all_of_it + again["decoder"] + in_layer(t), "gradients": max(behind, embedding)},
        {"activations": encoder + stem + later + inputs + again["encoder"] + in_layer(n),
         "gradients": max(behind, decoder_share)},
        {"activations": stem + inputs + n * d * FLOAT, "gradients": trained},
    ]  # fmt: skip
    return points


def _decoder_share(shape: Architecture, method: Method) -> float:
    """How much of the gradients the decoder has."""
    if method.mode == "lora":
        whole = trainable(shape, method)
        return trainable(shape, dataclasses.replace(method, encoder=False)) / whole if whole else 0.0
    return (shape.decoder_matrices + shape.embedding) / shape.parameters


def evaluation_bytes(shape: Architecture, method: Method, load: Load) -> int:
    """Of an evaluation's batch: keys and values for every position and token, a few copies of one token's logits."""
    d, a, clips = shape.d_model, method.width, load.evaluated_clips
    n, t = clips * load.evaluated_positions, clips * load.evaluated_tokens
    encoding = n * (3 * d * FLOAT + 2 * shape.f * a)  # the states on their way through the widest part of a layer
    states = n * d * FLOAT + clips * 2 * load.evaluated_positions * shape.n_mels * FLOAT
    cached = shape.decoder_layers * 2 * (n + t) * d * a + 2 * t * d * a
    step = 5 * clips * shape.vocab * FLOAT
    logits = EVALUATED_ROWS * shape.vocab * (2 * FLOAT + a)
    casts = (shape.parameters if method.mode == "full" and a < FLOAT else 0) * a
    return states + casts + max(encoding, cached + step, logits)
