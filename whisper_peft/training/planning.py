"""plan(recipe): will it fit, in how large pieces, and how long does an epoch take."""

from __future__ import annotations

import dataclasses
import os
import platform
import random
import re
from dataclasses import dataclass
from pathlib import Path

from whisper_peft import runs
from whisper_peft.data.batching import SLACK_S, clips_at_once, clips_per_epoch, most_joined, steps_per_epoch
from whisper_peft.data.dataset import SpeechDataset
from whisper_peft.data.stitching import GAP_S, TOKENS_OF_A_PREFIX, fill_windows
from whisper_peft.data.subtitles import TOKENS_OF_A_TIME
from whisper_peft.data.words import Words
from whisper_peft.errors import UserError
from whisper_peft.evaluation.generation import AT_ONCE
from whisper_peft.model.activations import Load
from whisper_peft.model.architecture import PUBLISHED, Architecture
from whisper_peft.model.configs import load_config, load_processor
from whisper_peft.model.devices import GIB, best_precision
from whisper_peft.model.locating import locate
from whisper_peft.model.lora import parse_targets
from whisper_peft.model.memory import Memory, predict_memory
from whisper_peft.model.trained_weights import Method, count_trainable
from whisper_peft.recipe import Recipe, override
from whisper_peft.recipe_files import HUB_PREFIX, read_recipe
from whisper_peft.training.defaults import adapters_own
from whisper_peft.training.splits import Speech, load_rows

REFUSED_ABOVE = 1.15  # times the free memory: a prediction may be off by as much
MOST_CHARACTERS = 10_000  # of a text that are looked at: far over the token limit
SAMPLE = 512  # clips whose headers and texts are read to know how long they are
ASSUMED_S, TOKENS_PER_S = 15.0, 15  # of clips that cannot be looked at: long for read sentences
TOKENS_PER_BYTE = 0.72  # of text, where no tokenizer is at hand: Malayalam's, the most
PARTS_OF_BUDGET = (1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64)
FILLED = 0.9  # of the free memory, where the micro-batch is ours to choose
MATRIX = {"full": ("full", None), "lora": ("lora", None), "lora 8bit": ("lora", "8bit"), "lora 4bit": ("lora", "4bit")}
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
    """Where a run will be: `kind` is cuda or cpu, sizes are in bytes."""

    kind: str
    name: str
    memory: int
    free: int


@dataclass(frozen=True)
class Clips:
    """How long clips are: (seconds, tokens) of a sample; `count` of all, 0 where they are only assumed."""

    sizes: tuple[tuple[float, int], ...] = ((ASSUMED_S, round(ASSUMED_S * TOKENS_PER_S)),)
    count: int = 0


def found_device() -> Device:
    """The device that a run on this machine takes."""
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return Device("cuda", torch.cuda.get_device_name(), total, free)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")  # what may be taken without swapping, where the system says
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if meminfo.exists() else None
    free = int(found[1]) * 1024 if found else total
    return Device("cpu", f"CPU ({platform.machine()}, {os.cpu_count()} cores)", total, free)


def imagined_device(memory: str) -> Device:
    """A GPU with so much memory.

    Raises:
        UserError: not a size, as 8GB or 500MB.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([GM])?(?:I?B)?", memory.strip().upper())
    size = float(match[1]) * (GIB / 1024 if match[2] == "M" else GIB) if match else 0.0
    if not size:
        raise UserError(f"--gpu-memory {memory}: expected a size, as 8GB.")
    return Device("cuda", f"a GPU of {size / GIB:g} GB", int(size), int(size))


def shape_of(name: str) -> Architecture:
    """The architecture of a MODEL; openai's own are known without a download."""
    if known := _published(name):
        return PUBLISHED[known]
    located = locate(name)
    return Architecture.of(load_config(located.base, revision=located.commit))


def _published(name: str) -> str | None:
    """Which of openai's own checkpoints a MODEL is."""
    found = re.fullmatch(rf"(?:{HUB_PREFIX})?openai/whisper-([\w.-]+)", name)
    return found[1] if found and found[1] in PUBLISHED and not Path(name).exists() else None


def method_of(recipe: Recipe, device: Device) -> Method:
    """What of a recipe matters for memory."""
    train = recipe.train
    layers, halves = parse_targets(recipe.lora.targets)
    precision = {"cuda": "bf16", "cpu": "fp32"}[device.kind] if train.precision == "auto" else train.precision
    return Method(
        mode=train.mode, quantize=train.quantize, precision=precision, device=device.kind,
        gradient_checkpointing=train.gradient_checkpointing, optimizer=train.optimizer, freeze=train.freeze,
        rank=recipe.lora.rank, dropout=recipe.lora.dropout, attention="attention" in layers, mlp="mlp" in layers,
        encoder="encoder" in halves, decoder="decoder" in halves, dora=recipe.lora.dora,
        trained_modules=recipe.lora.modules_to_save,
    )  # fmt: skip


def clips_of(dataset: SpeechDataset, words: Words | None = None) -> Clips:
    """How long the clips of a data set are, by the headers and texts of a sample.

    Args:
        dataset: of rows.
        words: the model's tokenizer; None: tokens are guessed from the length of the text, on the high side.
    """
    count = len(dataset)
    sample = range(count) if count <= SAMPLE else random.Random(0).sample(range(count), SAMPLE)
    texts = [dataset.text(row)[:MOST_CHARACTERS] for row in sample]
    if words is not None:
        tokens = [words.count(text) for text in texts]
    else:
        tokens = [round(len(text.encode()) * TOKENS_PER_BYTE) for text in texts]
    if dataset.timestamps:  # a start and an end of each segment, or of the clip
        tokens = [n + 2 * max(1, len(dataset.rows[row].segments)) for row, n in zip(sample, tokens, strict=True)]
    seconds = [_longest_s(dataset, row) for row in sample]
    return Clips(tuple(zip(seconds, tokens, strict=True)), count)


def _longest_s(dataset: SpeechDataset, row_number: int) -> float:
    """Return the seconds of a clip; of one that is cut from a recording, with the rest of its window."""
    row = dataset.rows[row_number]
    if dataset.timestamps and row.window_end_s is not None:
        return row.window_end_s - row.start_s
    return dataset.duration_s(row_number)


def loads(recipe: Recipe, shape: Architecture, clips: Clips, kind: str) -> list[Load]:
    """The first micro-batch of every step that the sample makes."""
    features, train = recipe.features, recipe.train
    slack_s = SLACK_S[features.window] if features.slack_s is None else features.slack_s
    whole = features.window == "full" or features.full_share or features.full_last
    silence = shape.silence_positions if features.window == "condensed" else 0
    slowed = max(1.0, 1 / recipe.augment.speed_factor[0]) if recipe.augment.speed else 1.0
    sizes = sorted(clips.sizes * max(1, -(-train.batch_size // len(clips.sizes))))
    budget_s, evaluated = AT_ONCE[kind]
    evaluated = max(1, min(evaluated, int(budget_s / shape.window_s), clips.count or evaluated))
    found = []
    steps = [sizes[first : first + train.batch_size] for first in range(0, len(sizes), train.batch_size)]
    if features.stitch:
        steps += stitched_steps(sizes, train.batch_size, shape)
    for step in steps:
        window_s = shape.window_s if whole else min(shape.window_s, step[-1][0] * slowed + slack_s)
        size = train.micro_batch_size
        at_once = min(len(step), clips_at_once(window_s, train.micro_batch_s) if size == "auto" else size)
        tokens = [min(shape.max_tokens, count + 5) for _, count in step[-at_once:]]  # with prefix and end
        found.append(Load(
            at_once, min(shape.max_positions, shape.positions_of(window_s) + silence), max(tokens), sum(tokens),
            micro_batches=-(-len(step) // at_once), evaluated_clips=evaluated,
            evaluated_positions=shape.max_positions,
            evaluated_tokens=min(shape.max_tokens, int(1.5 * max(tokens)) + 10),
        ))  # fmt: skip
    return found


def stitched_steps(
    sizes: list[tuple[float, int]], batch_size: int, shape: Architecture
) -> list[list[tuple[float, int]]]:
    """Make the steps of stitched windows that clips of these sizes would give.

    Args:
        sizes: (seconds, tokens) of clips.
        batch_size: Clips in a step.
        shape: Of the model, whose window and token limit they fill.

    Returns:
        Steps of (seconds, tokens), the longest last.
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
        joined = (
            min(shape.window_s, sum(seconds + GAP_S[1] for seconds, _ in clips)),
            sum(tokens + TOKENS_OF_A_TIME for _, tokens in clips),
        )
        steps.append([joined] * max(1, batch_size // len(clips)))
    return steps


def memory_of(recipe: Recipe, shape: Architecture, device: Device, clips: Clips) -> tuple[Memory, Load]:
    """The memory of a recipe's largest micro-batch, and that."""
    method = method_of(recipe, device)
    found = [(predict_memory(shape, method, load), load) for load in set(loads(recipe, shape, clips, device.kind))]
    return max(found, key=lambda pair: pair[0].peak)


def fitted(
    recipe: Recipe, shape: Architecture, device: Device, clips: Clips, *, most_s: float
) -> tuple[Recipe, Memory, Load]:
    """A recipe with the largest micro-batch that the device has memory for, or the smallest if none fits.

    Args:
        recipe: one that names its micro-batch keeps it.
        shape: of the model.
        device: where it runs.
        clips: that it trains on.
        most_s: seconds of windows in memory at once that are not worth exceeding.
    """
    if recipe.train.micro_batch_size != "auto" or recipe.train.micro_batch_s:
        return (recipe, *memory_of(recipe, shape, device, clips))
    for part in PARTS_OF_BUDGET:
        tried = override(recipe, {"train.micro_batch_s": max(most_s / part, 1.0)})
        memory, load = memory_of(tried, shape, device, clips)
        if memory.peak <= FILLED * device.free or load.clips == 1:
            break
    return tried, memory, load


def remedy(recipe: Recipe, shape: Architecture, device: Device, clips: Clips, *, most_s: float) -> str:
    """The nearest setting that fits, as words of the command line."""
    words = {"train.mode": "--mode {}", "train.quantize": "--quantize {}"}
    for changes in REMEDIES:
        other = override(recipe, {**REMEDIES[0], **changes})
        if other != recipe and fitted(other, shape, device, clips, most_s=most_s)[1].peak <= device.free:
            named = {
                key: {True: "true", None: "null"}.get(value, value)
                for key, value in changes.items()
                if override(recipe, {key: value}) != recipe
            }
            return "try " + " ".join(words.get(key, f"--set {key}={{}}").format(value) for key, value in named.items())
    return "nothing that can be set here makes it fit; take a smaller model"


def most_at_once_s(batch_size: int, window_s: float, kind: str) -> float:
    """Seconds of windows in memory at once that pay: a GPU takes the whole step, a CPU eight whole windows."""
    return window_s * (batch_size if kind == "cuda" else min(8, batch_size))


def check_memory(recipe: Recipe, speech: Speech, shape: Architecture, *, force: bool) -> tuple[Recipe, Load, str]:
    """The recipe with a micro-batch that fits this device, the largest one, and what was planned, as a line.

    Raises:
        UserError: it takes clearly more than there is.
    """
    device, clips = found_device(), clips_of(speech.train, speech.train.preparation.words)
    most_s = most_at_once_s(recipe.train.batch_size, shape.window_s, device.kind)
    recipe, memory, load = fitted(recipe, shape, device, clips, most_s=most_s)
    line = (
        f"Memory: {memory.peak / GIB:.1f} GB predicted, {device.free / GIB:.1f} GB free ({device.name}); "
        f"{load.clips} of {recipe.train.batch_size} clips at once where they are longest."
    )
    if memory.peak > REFUSED_ABOVE * device.free and not force:
        better = remedy(recipe, shape, device, clips, most_s=most_s)
        raise UserError(f"{line} It does not fit: {better}; or --force.")
    return recipe, load, line


def plan(
    recipe: Recipe | str | Path | None = None,
    *,
    changes: dict[str, object] | None = None,
    gpu_memory: str | None = None,
    step_s: float | None = None,
) -> dict:
    """Predicts the memory of a run by part, the largest micro-batch that fits, and the hours of an epoch.

    Needs no GPU, and no download for openai's own checkpoints. Data that can be read is looked at (headers and texts
    of at most 512 clips); else clips of 15 s with 15 tokens a second are assumed, and `clips` is 0.

    Args:
        recipe: a Recipe, a path, the name of a shipped one, or a run folder, whose steps have been timed.
        changes: recipe keys to set.
        gpu_memory: plan for a GPU with so much, as "8GB"; None: for the device that is here.
        step_s: seconds of an optimizer step, if they are known; None: the run's.

    Returns:
        `memory`: bytes by part and their sum, `peak`; `fits`; `micro_batch_s` and `clips_at_once` (of the longest
        clips); `hours_per_epoch`, None where no step was timed; `remedy`, None where it fits; and what it was
        predicted for.

    Raises:
        UserError: settings or a model that cannot be used.
    """
    run = Path(recipe) if isinstance(recipe, (str, Path)) and runs.is_run(Path(recipe)) else None
    recipe = read_recipe(recipe, changes or {})
    device = imagined_device(gpu_memory) if gpu_memory else found_device()
    if recipe.train.precision == "auto" and not gpu_memory:
        recipe = override(recipe, {"train.precision": best_precision()})
    shape = shape_of(recipe.model.name)
    if not _published(recipe.model.name):
        recipe, _ = adapters_own(recipe, locate(recipe.model.name))
    clips = _look_at(recipe, asked="data.train" in (changes or {}))
    if run is not None and step_s is None:
        facts = runs.read_json(run / runs.FACTS)
        step_s = facts["train_seconds"] / facts["steps"] if facts.get("steps") else None
    most_s = most_at_once_s(recipe.train.batch_size, shape.window_s, device.kind)
    fitting, memory, load = fitted(recipe, shape, device, clips, most_s=most_s)
    method = method_of(recipe, device)
    steps = 0 if recipe.data.streaming else steps_per_epoch(clips.count, recipe.train.batch_size)
    fits = memory.peak <= device.free
    return {
        "device": dataclasses.asdict(device), "model": recipe.model.name, "mode": recipe.train.mode,
        "quantize": recipe.train.quantize, "precision": method.precision, "window": recipe.features.window,
        "batch_size": recipe.train.batch_size, "gradient_checkpointing": recipe.train.gradient_checkpointing,
        "parameters": shape.parameters, "trainable": count_trainable(shape, method), "clips": clips.count,
        "memory": {**dataclasses.asdict(memory), "peak": memory.peak}, "fits": fits,
        "micro_batch_s": fitting.train.micro_batch_s, "clips_at_once": load.clips,
        "hours_per_epoch": steps * step_s / 3600 if steps and step_s else None,
        "remedy": None if fits else remedy(recipe, shape, device, clips, most_s=most_s),
    }  # fmt: skip


def _look_at(recipe: Recipe, *, asked: bool) -> Clips:
    """The training clips, where they can be read here; those that the user named (`asked`) must be there."""
    try:
        found = load_rows(recipe)
    except UserError:
        if asked:
            raise
        return Clips()
    words = None
    if not _published(recipe.model.name):
        located = locate(recipe.model.name)
        tokenizer = load_processor(located.base, revision=located.commit).tokenizer
        words = Words(tokenizer, markers=range(0))  # only counts
    timestamps = recipe.features.timestamps
    clips = clips_of(SpeechDataset(found.train, None, language=recipe.model.language, timestamps=timestamps), words)
    return dataclasses.replace(clips, count=clips_per_epoch(found.parts) or clips.count)


def plan_matrix(
    recipe: Recipe | str | Path | None = None,
    *,
    changes: dict[str, object] | None = None,
    gpu_memory: str | None = None,
) -> dict:
    """Every published size against every mode: bytes at the peak, the whole step in memory at once.

    Args:
        recipe: as in `plan`; its model, mode and quantisation are those of each cell instead.
        changes: recipe keys to set.
        gpu_memory: also say what fits into so much.

    Returns:
        `peaks`: size -> mode -> bytes; `smallest`: the same with one clip at a time; and what it was predicted for.
    """
    recipe = read_recipe(recipe, changes or {})
    device = imagined_device(gpu_memory or "80GB")
    clips = _look_at(recipe, asked="data.train" in (changes or {}))
    found: dict[str, dict[str, dict[str, int]]] = {"peaks": {}, "smallest": {}}
    for name, shape in PUBLISHED.items():
        for size, micro in (("peaks", recipe.train.batch_size), ("smallest", 1)):
            found[size][name] = {}
            for word, (mode, quantize) in MATRIX.items():
                cell = {"train.mode": mode, "train.quantize": quantize, "train.micro_batch_size": micro}
                found[size][name][word] = memory_of(override(recipe, cell), shape, device, clips)[0].peak
    return {
        **found, "gpu_memory": device.memory if gpu_memory else None, "window": recipe.features.window,
        "batch_size": recipe.train.batch_size, "clips": clips.count,
        "precision": method_of(recipe, device).precision,
        "gradient_checkpointing": recipe.train.gradient_checkpointing,
    }  # fmt: skip
