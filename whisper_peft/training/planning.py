"""plan(recipe): will a run fit, with which micro-batch, and how long does an epoch take."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

from whisper_peft import runs
from whisper_peft.data.batching import clips_per_epoch, steps_per_epoch
from whisper_peft.data.words import Words
from whisper_peft.errors import UserError
from whisper_peft.model.activations import Load
from whisper_peft.model.architecture import PUBLISHED, Architecture
from whisper_peft.model.configs import load_config, load_processor
from whisper_peft.model.devices import GIB, best_precision
from whisper_peft.model.locating import locate
from whisper_peft.model.memory import Memory
from whisper_peft.model.trained_weights import count_trainable
from whisper_peft.recipe import Recipe
from whisper_peft.recipe_dicts import override
from whisper_peft.recipe_files import HUB_PREFIX, read_recipe
from whisper_peft.training.defaults import keep_adapter_settings
from whisper_peft.training.fitting import (
    Clips,
    Device,
    Fit,
    find_remedy,
    fit_to_memory,
    found_device,
    imagined_device,
    measure_clips,
    memory_of,
    method_of,
    most_at_once_s,
)
from whisper_peft.training.resolved import ResolvedRecipe
from whisper_peft.training.splits import Speech, load_rows

# A run is refused if the prediction is this many times the free memory: a prediction may be off by as much.
REFUSED_ABOVE = 1.15
# The columns of the matrix: name -> mode and quantisation.
MATRIX = {"full": ("full", None), "lora": ("lora", None), "lora 8bit": ("lora", "8bit"), "lora 4bit": ("lora", "4bit")}


@dataclass(frozen=True)
class MemoryPlan:
    """The predicted memory of a run, and what follows from it.

    Attributes:
        device: The device that it is predicted for.
        model: MODEL as the recipe names it.
        mode: full or lora.
        quantize: Bits of an adapter's base, 8bit or 4bit; None if it is not quantised.
        precision: fp32, bf16 or fp16.
        window: Kind of the windows.
        batch_size: Number of clips in a step.
        gradient_checkpointing: True if activations are computed again in the backward pass.
        parameters: Number of the model's weights.
        trainable: Number of the weights that are trained.
        clips: Number of training clips; 0 where they could not be looked at, and their length is assumed.
        memory: Bytes by part at the highest point; `memory.peak` is their sum.
        fits: True if the peak is not more than what is free.
        micro_batch_s: Seconds of windows in memory at once; None where the recipe names a number of clips.
        clips_at_once: Number of clips in memory at once, where they are longest.
        hours_per_epoch: Hours of an epoch; None if no step was timed.
        remedy: What to change where it does not fit; None if it fits.
    """

    device: Device
    model: str
    mode: str
    quantize: str | None
    precision: str
    window: str
    batch_size: int
    gradient_checkpointing: bool
    parameters: int
    trainable: int
    clips: int
    memory: Memory
    fits: bool
    micro_batch_s: float | None
    clips_at_once: int
    hours_per_epoch: float | None
    remedy: str | None

    def as_dict(self) -> dict:
        """Return the plan as plain values, as `plan --json` prints it; `memory` has the peak among its parts."""
        page = dataclasses.asdict(self)
        page["memory"]["peak"] = self.memory.peak
        return page


def shape_of(name: str) -> Architecture:
    """Return the architecture of a MODEL. Those of OpenAI's own checkpoints are known without a download."""
    published = _published(name)
    if published is not None:
        return PUBLISHED[published]
    located = locate(name)
    return Architecture.of(load_config(located.base, revision=located.commit))


def _published(name: str) -> str | None:
    """Tell which of OpenAI's own checkpoints a MODEL is; None if it is another model."""
    match = re.fullmatch(rf"(?:{HUB_PREFIX})?openai/whisper-([\w.-]+)", name)
    if match is None or match[1] not in PUBLISHED or Path(name).exists():
        return None
    return match[1]


def choose_micro_batch(
    recipe: ResolvedRecipe, speech: Speech, shape: Architecture, *, force: bool
) -> tuple[ResolvedRecipe, MemoryPlan, Load]:
    """Choose the largest micro-batch that fits this device.

    Args:
        recipe: The recipe of a run.
        speech: Its splits.
        shape: Architecture of the model.
        force: True to accept a run that does not fit.

    Returns:
        The recipe with its micro-batch, the plan, and the micro-batch that needs the most memory.

    Raises:
        UserError: It clearly takes more memory than there is.
    """
    device = found_device()
    dataset = speech.train
    words = dataset.preparation.words
    clips = measure_clips(dataset.rows, clean=dataset.clean, timestamps=dataset.timestamps, words=words)
    most_s = most_at_once_s(recipe.train.batch_size, shape.window_s, device.kind)
    fit = fit_to_memory(recipe, shape, device, clips, most_s=most_s)
    made = _make_plan(recipe, shape, device, clips, fit, most_s=most_s)
    if fit.memory.peak > REFUSED_ABOVE * device.free and not force:
        raise UserError(f"{plan_line(made)} It does not fit: {made.remedy}; or --force.")
    train = dataclasses.replace(recipe.train, micro_batch_s=fit.micro_batch_s)
    return dataclasses.replace(recipe, train=train), made, fit.load


def plan_line(made: MemoryPlan) -> str:
    """Say what was planned, in a line."""
    return (
        f"Memory: {made.memory.peak / GIB:.1f} GB predicted, {made.device.free / GIB:.1f} GB free "
        f"({made.device.name}); micro-batches of up to {made.clips_at_once} of the {made.batch_size} clips of a step."
    )


def plan(
    recipe: Recipe | str | Path | None = None,
    *,
    changes: dict[str, object] | None = None,
    gpu_memory: str | None = None,
    step_s: float | None = None,
) -> MemoryPlan:
    """Predict whether a run fits, with which micro-batch, and how long an epoch takes.

    Everything is predicted from shapes: no weights are read. Training clips that can be read are looked at, else their
    length is assumed.

    Args:
        recipe: A Recipe, a path, the name of a shipped one, or a run folder.
        changes: Recipe keys to set.
        gpu_memory: Memory of a GPU to plan for, as "8GB"; None plans for the device that is here.
        step_s: Seconds of an optimizer step; None takes those of the run, if `recipe` is one.

    Returns:
        The plan.

    Raises:
        UserError: Settings or a model cannot be used.
    """
    run = None
    if isinstance(recipe, (str, Path)) and runs.is_run(Path(recipe)):
        run = Path(recipe)
    recipe = read_recipe(recipe, changes or {})
    device = imagined_device(gpu_memory) if gpu_memory else found_device()
    if recipe.train.precision == "auto" and not gpu_memory:
        recipe = override(recipe, {"train.precision": best_precision()})
    shape = shape_of(recipe.model.name)
    if not _published(recipe.model.name):
        recipe, _ = keep_adapter_settings(recipe, locate(recipe.model.name))
    clips = _look_at_clips(recipe, must_exist="data.train" in (changes or {}))
    if run is not None and step_s is None:
        step_s = _timed_step_s(run)
    most_s = most_at_once_s(recipe.train.batch_size, shape.window_s, device.kind)
    fit = fit_to_memory(recipe, shape, device, clips, most_s=most_s)
    return _make_plan(recipe, shape, device, clips, fit, most_s=most_s, step_s=step_s)


def _timed_step_s(run: Path) -> float | None:
    """Return the seconds that a step of a run took; None if it made none."""
    facts = runs.read_json(run / runs.FACTS)
    if not facts.get("steps"):
        return None
    return facts["train_seconds"] / facts["steps"]


def _make_plan(
    recipe: Recipe,
    shape: Architecture,
    device: Device,
    clips: Clips,
    fit: Fit,
    *,
    most_s: float,
    step_s: float | None = None,
) -> MemoryPlan:
    """Put together what is known about a recipe on a device.

    Args:
        recipe: The recipe.
        shape: Architecture of the model.
        device: Where it trains.
        clips: The clips that it trains on.
        fit: Its micro-batch.
        most_s: See `fit_to_memory`.
        step_s: Seconds of an optimizer step, if they are known.
    """
    method = method_of(recipe, device)
    fits = fit.memory.peak <= device.free
    hours_per_epoch = None
    # Nobody knows where a stream ends, so it has no epoch.
    if step_s and clips.count and not recipe.data.streaming:
        hours_per_epoch = steps_per_epoch(clips.count, recipe.train.batch_size) * step_s / 3600
    return MemoryPlan(
        device=device,
        model=recipe.model.name,
        mode=recipe.train.mode,
        quantize=recipe.train.quantize,
        precision=method.precision,
        window=recipe.features.window,
        batch_size=recipe.train.batch_size,
        gradient_checkpointing=recipe.train.gradient_checkpointing,
        parameters=shape.parameters,
        trainable=count_trainable(shape, method),
        clips=clips.count,
        memory=fit.memory,
        fits=fits,
        micro_batch_s=fit.micro_batch_s,
        clips_at_once=fit.load.clips,
        hours_per_epoch=hours_per_epoch,
        remedy=None if fits else find_remedy(recipe, shape, device, clips, most_s=most_s),
    )


def _look_at_clips(recipe: Recipe, *, must_exist: bool) -> Clips:
    """Measure the training clips; where they cannot be read here, assume their length.

    Args:
        recipe: The recipe that names them.
        must_exist: True if the user named them on the command line: then they must be there.

    Raises:
        UserError: They must be there, and cannot be read.
    """
    try:
        rows = load_rows(recipe)
    except UserError:
        if must_exist:
            raise
        return Clips()
    words = None
    if not _published(recipe.model.name):
        located = locate(recipe.model.name)
        tokenizer = load_processor(located.base, revision=located.commit).tokenizer
        # Words are only counted here, so no token needs to be known as a marker.
        words = Words(tokenizer, markers=range(0))
    clips = measure_clips(rows.train, timestamps=recipe.features.timestamps, words=words)
    return dataclasses.replace(clips, count=clips_per_epoch(rows.parts) or clips.count)


def plan_matrix(
    recipe: Recipe | str | Path | None = None,
    *,
    changes: dict[str, object] | None = None,
    gpu_memory: str | None = None,
) -> dict:
    """Predict the peak of every published size in every mode.

    Args:
        recipe: See `plan`. Its model, mode and quantisation are replaced by those of each cell.
        changes: Recipe keys to set.
        gpu_memory: Memory of a GPU, as "8GB"; None if nothing has to fit.

    Returns:
        `peaks`: size -> mode -> bytes, with the whole step in memory at once; `smallest`: the same with one clip at a
        time; and what it was predicted for.
    """
    recipe = read_recipe(recipe, changes or {})
    device = imagined_device(gpu_memory or "80GB")
    clips = _look_at_clips(recipe, must_exist="data.train" in (changes or {}))
    return {
        "peaks": _peaks(recipe, device, clips, micro_batch_size=recipe.train.batch_size),
        "smallest": _peaks(recipe, device, clips, micro_batch_size=1),
        "gpu_memory": device.memory if gpu_memory else None,
        "window": recipe.features.window,
        "batch_size": recipe.train.batch_size,
        "clips": clips.count,
        "precision": method_of(recipe, device).precision,
        "gradient_checkpointing": recipe.train.gradient_checkpointing,
    }


def _peaks(recipe: Recipe, device: Device, clips: Clips, *, micro_batch_size: int) -> dict[str, dict[str, int]]:
    """Predict the bytes at the peak: size -> mode -> bytes."""
    peaks: dict[str, dict[str, int]] = {}
    for size, shape in PUBLISHED.items():
        peaks[size] = {}
        for column, (mode, quantize) in MATRIX.items():
            cell = {"train.mode": mode, "train.quantize": quantize, "train.micro_batch_size": micro_batch_size}
            memory, _ = memory_of(override(recipe, cell), shape, device, clips)
            peaks[size][column] = memory.peak
    return peaks
