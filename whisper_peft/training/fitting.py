"""The largest micro-batch that fits into the memory of a device, and what to change where none fits."""

from __future__ import annotations

import math
import os
import platform
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from whisper_peft.data.batching import SLACK_S, clips_at_once, most_joined
from whisper_peft.data.dataset import SpeechDataset
from whisper_peft.data.rows import Row
from whisper_peft.data.stitching import GAP_S, TOKENS_OF_A_PREFIX, fill_windows
from whisper_peft.data.subtitles import TOKENS_OF_A_TIME
from whisper_peft.data.text import clean_text
from whisper_peft.data.words import Words, estimate_tokens
from whisper_peft.errors import UserError
from whisper_peft.evaluation.generation import AT_ONCE
from whisper_peft.model.activations import Load
from whisper_peft.model.architecture import Architecture
from whisper_peft.model.devices import GIB
from whisper_peft.model.lora import parse_targets
from whisper_peft.model.memory import Memory, predict_memory
from whisper_peft.model.trained_weights import Method
from whisper_peft.recipe import Recipe, Train
from whisper_peft.recipe_dicts import as_dict, flatten, override

# Share of the free memory that a micro-batch may fill if we choose it: a prediction may be off by the rest.
FILLED = 0.9
# The seconds of windows in memory at once are divided by these, one after the other, until the micro-batch fits.
DIVISORS = (1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64)
# Whole windows in memory at once that pay on a CPU: more of them only take memory.
MOST_WINDOWS_ON_CPU = 8
# Number of clips whose headers and texts are read to know how long the clips are.
SAMPLED_CLIPS = 512
# Characters of a text that are counted; far more than the token limit allows.
COUNTED_CHARACTERS = 10_000
# Length of clips that cannot be looked at, in seconds: long for read sentences.
ASSUMED_S = 15.0
ASSUMED_TOKENS_PER_S = 15
# Tokens of the prefix and the end, beside the text.
TOKENS_BESIDE_TEXT = 5
# Settings that make a run fit, the smallest change first.
REMEDIES: tuple[dict[str, object], ...] = (
    {"train.micro_batch_size": "auto", "train.micro_batch_s": None},
    {"train.gradient_checkpointing": True},
    {"train.mode": "lora"},
    {"train.mode": "lora", "train.gradient_checkpointing": True},
    {"train.mode": "lora", "train.quantize": "8bit", "train.gradient_checkpointing": True},
    {"train.mode": "lora", "train.quantize": "4bit", "train.gradient_checkpointing": True},
)


@dataclass(frozen=True)
class Device:
    """A device that a run trains on.

    Attributes:
        kind: cuda or cpu.
        name: Its name, for people.
        memory: All its memory, in bytes.
        free: What may be taken of it, in bytes.
    """

    kind: str
    name: str
    memory: int
    free: int


@dataclass(frozen=True)
class Clips:
    """The lengths of clips.

    Attributes:
        sizes: (seconds, tokens) of the clips of a sample.
        count: Number of all clips; 0 where the sizes are only assumed.
    """

    sizes: tuple[tuple[float, int], ...] = ((ASSUMED_S, round(ASSUMED_S * ASSUMED_TOKENS_PER_S)),)
    count: int = 0


@dataclass(frozen=True)
class Fit:
    """The micro-batch of a recipe on a device.

    Attributes:
        micro_batch_s: Seconds of windows in memory at once; None where the recipe names a number of clips.
        memory: Predicted memory at the highest point.
        load: The micro-batch that needs the most memory.
    """

    micro_batch_s: float | None
    memory: Memory
    load: Load


def found_device() -> Device:
    """Return the device that a run on this machine takes."""
    import psutil
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return Device("cuda", torch.cuda.get_device_name(), total, free)
    memory = psutil.virtual_memory()
    # `available` is what may be taken without swapping, which is more than what is unused.
    return Device("cpu", f"CPU ({platform.machine()}, {os.cpu_count()} cores)", memory.total, memory.available)


def imagined_device(memory: str) -> Device:
    """Return a GPU with so much memory.

    Raises:
        UserError: It is not a size.

    Example:
        >>> imagined_device("8GB").name
        'a GPU of 8 GB'
    """
    size = parse_size(memory)
    return Device("cuda", f"a GPU of {size / GIB:g} GB", size, size)


def parse_size(text: str) -> int:
    """Return the bytes of a size as people write it; without a unit it is in GB.

    A GB has 1024³ bytes, as on the cards' boxes and in nvidia-smi.

    Raises:
        UserError: It is not a size.

    Example:
        >>> parse_size("8GB") == parse_size("8 GiB") == parse_size("8g") == parse_size("8") == 8 * 1024**3
        True
        >>> parse_size("500MB")
        524288000
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([GM])?(?:I?B)?", text.strip().upper())
    size = 0.0
    if match is not None:
        unit = GIB / 1024 if match[2] == "M" else GIB
        size = float(match[1]) * unit
    if not size:
        raise UserError(f"--gpu-memory {text}: expected a size, as 8GB.")
    return int(size)


def method_of(recipe: Recipe, device: Device) -> Method:
    """Return what matters of a recipe for memory."""
    train = recipe.train
    layers, halves = parse_targets(recipe.lora.targets)
    precision = train.precision
    if precision == "auto":
        precision = {"cuda": "bf16", "cpu": "fp32"}[device.kind]
    return Method(
        mode=train.mode,
        quantize=train.quantize,
        precision=precision,
        device=device.kind,
        gradient_checkpointing=train.gradient_checkpointing,
        optimizer=train.optimizer,
        freeze=train.freeze,
        rank=recipe.lora.rank,
        dropout=recipe.lora.dropout,
        attention="attention" in layers,
        mlp="mlp" in layers,
        encoder="encoder" in halves,
        decoder="decoder" in halves,
        dora=recipe.lora.dora,
        trained_modules=recipe.lora.modules_to_save,
    )


def measure_clips(
    rows: Sequence[Row],
    *,
    clean: Callable[[str], str] = clean_text,
    timestamps: float = 0.0,
    words: Words | None = None,
) -> Clips:
    """Measure how long clips are, by the headers and texts of a sample.

    Args:
        rows: The rows of the clips.
        clean: Cleans a text before it is counted.
        timestamps: Share of clips that are learnt with the times of their text.
        words: The model's tokenizer; None guesses the tokens from the length of the text, on the high side.
    """
    sample = list(rows)
    if len(sample) > SAMPLED_CLIPS:
        sample = random.Random(0).sample(sample, SAMPLED_CLIPS)
    sizes = []
    for row in sample:
        text = clean(row.text)[:COUNTED_CHARACTERS]
        tokens = _count_tokens(text, words)
        if timestamps:
            # A start and an end of each segment, or of the clip.
            tokens += 2 * max(1, len(row.segments))
        sizes.append((_longest_s(row, timestamps), tokens))
    return Clips(tuple(sizes), len(rows))


def _count_tokens(text: str, words: Words | None) -> int:
    """Count the tokens of a text; without a tokenizer, estimate them from its length."""
    if words is not None:
        return words.count(text)
    return estimate_tokens(text)


def _longest_s(row: Row, timestamps: float) -> float:
    """Return the seconds of a clip; learnt with its times, a clip of a recording has the rest of its window, too."""
    if timestamps and row.window_end_s is not None:
        return row.window_end_s - row.start_s
    return SpeechDataset.seconds_of(row)


def loads_of_steps(recipe: Recipe, shape: Architecture, clips: Clips, kind: str) -> list[Load]:
    """Return the largest micro-batch of every step that the clips of a sample make.

    Args:
        recipe: The recipe.
        shape: Architecture of the model.
        clips: The clips that it trains on.
        kind: Kind of the device, cuda or cpu.
    """
    features = recipe.features
    has_full_windows = features.window == "full" or features.full_share > 0 or features.full_last > 0
    slack_s = SLACK_S[features.window] if features.slack_s is None else features.slack_s
    silence = shape.silence_positions if features.window == "condensed" else 0
    stretch = 1.0
    if recipe.augment.speed:
        # Augmentation may slow a clip down, so that it gets longer.
        stretch = max(1.0, 1 / recipe.augment.speed_factor[0])
    evaluated_s, most_evaluated = AT_ONCE[kind]
    evaluated = max(1, min(most_evaluated, int(evaluated_s / shape.window_s), clips.count or most_evaluated))
    loads = []
    for step in _steps_of(recipe, shape, clips):
        window_s = shape.window_s
        if not has_full_windows:
            longest_s = step[-1][0]
            window_s = min(window_s, longest_s * stretch + slack_s)
        at_once = _clips_at_once(recipe.train, window_s, len(step))
        tokens = [min(shape.max_tokens, count + TOKENS_BESIDE_TEXT) for _, count in step[-at_once:]]
        longest = max(tokens)
        load = Load(
            at_once,
            min(shape.max_positions, shape.positions_of(window_s) + silence),
            longest,
            sum(tokens),
            micro_batches=math.ceil(len(step) / at_once),
            evaluated_clips=evaluated,
            evaluated_positions=shape.max_positions,
            evaluated_tokens=min(shape.max_tokens, int(1.5 * longest) + 10),
        )
        loads.append(load)
    return loads


def _steps_of(recipe: Recipe, shape: Architecture, clips: Clips) -> list[list[tuple[float, int]]]:
    """Make the steps of the clips of a sample: (seconds, tokens), clips of like length together, the longest last."""
    batch_size = recipe.train.batch_size
    # A sample that is smaller than a step stands for more clips like these.
    copies = max(1, math.ceil(batch_size / len(clips.sizes)))
    sizes = sorted(clips.sizes * copies)
    steps = [sizes[first : first + batch_size] for first in range(0, len(sizes), batch_size)]
    if recipe.features.stitch:
        steps += stitched_steps(sizes, batch_size, shape)
    return steps


def _clips_at_once(train: Train, window_s: float, n_clips: int) -> int:
    """Return the number of clips of a step that are in memory at once."""
    if isinstance(train.micro_batch_size, int):
        return min(n_clips, train.micro_batch_size)
    budget_s = math.inf if train.micro_batch_s is None else train.micro_batch_s
    return min(n_clips, clips_at_once(window_s, budget_s))


def stitched_steps(
    sizes: list[tuple[float, int]], batch_size: int, shape: Architecture
) -> list[list[tuple[float, int]]]:
    """Make the steps of stitched windows that clips of these sizes would give.

    Args:
        sizes: (seconds, tokens) of the clips.
        batch_size: Number of clips in a step.
        shape: Architecture of the model, whose window and token limit the clips fill.

    Returns:
        The steps: (seconds, tokens) of each window, the longest last.
    """
    cuts = fill_windows(
        [seconds for seconds, _ in sizes],
        [tokens + TOKENS_OF_A_TIME for _, tokens in sizes],
        window_s=shape.window_s,
        max_tokens=shape.max_tokens - TOKENS_OF_A_PREFIX,
        most_clips=most_joined(batch_size),
    )
    steps = []
    for window in cuts:
        clips = sizes[window]
        joined_s = sum(seconds + GAP_S[1] for seconds, _ in clips)
        joined_tokens = sum(tokens + TOKENS_OF_A_TIME for _, tokens in clips)
        joined = (min(shape.window_s, joined_s), joined_tokens)
        steps.append([joined] * max(1, batch_size // len(clips)))
    return steps


def memory_of(recipe: Recipe, shape: Architecture, device: Device, clips: Clips) -> tuple[Memory, Load]:
    """Predict the memory of a recipe's largest micro-batch; return it, and that micro-batch."""
    method = method_of(recipe, device)
    loads = set(loads_of_steps(recipe, shape, clips, device.kind))
    predictions = [(predict_memory(shape, method, load), load) for load in loads]
    return max(predictions, key=lambda prediction: prediction[0].peak)


def fit_to_memory(recipe: Recipe, shape: Architecture, device: Device, clips: Clips, *, most_s: float) -> Fit:
    """Find the largest micro-batch that the device has memory for, or the smallest if none fits.

    Args:
        recipe: The recipe. One that names its micro-batch keeps it.
        shape: Architecture of the model.
        device: Where it trains.
        clips: The clips that it trains on.
        most_s: Seconds of windows in memory at once; more are not worth their memory.
    """
    train = recipe.train
    if train.micro_batch_size != "auto" or train.micro_batch_s:
        memory, load = memory_of(recipe, shape, device, clips)
        return Fit(train.micro_batch_s, memory, load)
    for divisor in DIVISORS:
        micro_batch_s = max(most_s / divisor, 1.0)
        memory, load = memory_of(override(recipe, {"train.micro_batch_s": micro_batch_s}), shape, device, clips)
        if memory.peak <= FILLED * device.free or load.clips == 1:
            break
    return Fit(micro_batch_s, memory, load)


def find_remedy(recipe: Recipe, shape: Architecture, device: Device, clips: Clips, *, most_s: float) -> str:
    """Name the smallest change that makes a recipe fit, in words of the command line.

    Args:
        recipe: A recipe that does not fit.
        shape: Architecture of the model.
        device: Where it trains.
        clips: The clips that it trains on.
        most_s: See `fit_to_memory`.
    """
    settings = flatten(as_dict(recipe))
    for remedy in REMEDIES:
        changes = {**REMEDIES[0], **remedy}
        if all(settings[key] == value for key, value in changes.items()):
            continue
        fit = fit_to_memory(override(recipe, changes), shape, device, clips, most_s=most_s)
        if fit.memory.peak > device.free:
            continue
        options = [_option(key, value) for key, value in remedy.items() if settings[key] != value]
        return f"try {' '.join(options)}"
    return "nothing that can be set here makes it fit; take a smaller model"


def _option(key: str, value: object) -> str:
    """Write a setting as an option of the command line.

    Example:
        >>> _option("train.quantize", "4bit"), _option("train.gradient_checkpointing", True)
        ('--quantize 4bit', '--set train.gradient_checkpointing=true')
    """
    if key in ("train.mode", "train.quantize"):
        return f"--{key.removeprefix('train.')} {value}"
    if value is None:
        return f"--set {key}=null"
    if value is True:
        return f"--set {key}=true"
    return f"--set {key}={value}"


def most_at_once_s(batch_size: int, window_s: float, kind: str) -> float:
    """Return the seconds of windows in memory at once that pay: the whole step on a GPU, eight windows on a CPU.

    Args:
        batch_size: Number of clips in a step.
        window_s: Seconds of the model's whole window.
        kind: Kind of the device, cuda or cpu.

    Example:
        >>> most_at_once_s(20, 30.0, "cuda"), most_at_once_s(20, 30.0, "cpu")
        (600.0, 240.0)
    """
    if kind == "cuda":
        return window_s * batch_size
    return window_s * min(MOST_WINDOWS_ON_CPU, batch_size)
