"""Options that several commands have, and what they make of a recipe."""

from __future__ import annotations

import functools
from collections.abc import Callable

import click

from whisper_peft.cli.lines import Printer

WINDOW_HELP = "full (30 s), or condensed or tight: quicker, for a model trained so."
SRC_HELP = "AudioFolder, Common Voice release (DIR:split), manifest, Parquet, subtitled recording, Hub data set."
PROMPT_HELP = "The column of what was said before each clip (default: none)."
TIMES_HELP = "Use or ignore the columns with start and end (default: ask where they do not fit the files)."

AT_LEAST_1 = click.IntRange(min=1)
BEAMS = click.IntRange(1, 100)
CLIPS = click.IntRange(1, 65_536)
WINDOWS = click.Choice(["full", "condensed", "tight"])
TIMES = click.Choice(["use", "ignore"])
QUANTIZE = click.option(
    "--quantize", type=click.Choice(["as-trained", "none", "8bit", "4bit"]), default="as-trained", show_default=True,
    help="How many bits the base is held in.",
)  # fmt: skip


PRECISION = click.option(
    "--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), default="auto", show_default=True,
    help="Of the model's arithmetic. auto: the best half precision on a GPU, fp32 on a CPU.",
)  # fmt: skip


class ClipsAtOnce(click.ParamType):
    """A number of clips, or auto."""

    name = "clips"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Refuses what is neither."""
        return value if value == "auto" else CLIPS.convert(value, param, ctx)


def output_options(function: Callable) -> Callable:
    """--json and --quiet, as every command has them; keeps everything but the result off stdout."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, everything else on stderr.")
    @click.option("--quiet", is_flag=True, help="Print results and errors only.")
    @functools.wraps(function)
    def wrapped(*, as_json: bool, quiet: bool, **arguments: object) -> object:
        return function(out=Printer(as_json, quiet), **arguments)

    return wrapped


def _changes(settings: tuple[str, ...], flags: dict[str, object]) -> dict[str, object]:
    """--set and the flags that stand for recipe keys, as one mapping; a flag wins."""
    from whisper_peft.recipe import Recipe, parse_settings

    changes = parse_settings(Recipe(), settings, place="--set ")
    for key, value in flags.items():
        if value is not None and value != ():
            changes[key] = list(value) if isinstance(value, tuple) else value
    if "train.steps" in changes and "train.epochs" not in changes:
        changes["train.epochs"] = None  # a flag replaces what the recipe says in the other unit
    elif "train.epochs" in changes and "train.steps" not in changes:
        changes["train.steps"] = None
    return changes


RECIPE_OPTIONS = (
    click.argument("recipe", required=False),
    click.option("--mode", type=click.Choice(["full", "lora"]), help="All weights, or a LoRA adapter (default: lora)."),
    click.option("--model", help="Hub id, model folder, run or adapter folder to start from."),
    click.option("--language", help="Name or code of the language, as hindi or hi."),
    click.option("--language-token", help="Borrow this language's token for one that Whisper does not know."),
    click.option("--task", type=click.Choice(["transcribe", "translate"])),
    click.option("--train", "train_source", multiple=True, metavar="SRC", help=f"Learns. {SRC_HELP} Repeatable."),
    click.option("--eval", "eval_source", metavar="SRC", help="Selects the checkpoint (default: a tenth of train)."),
    click.option("--test", "test_source", metavar="SRC", help="Scored once before and once after."),
    click.option("--steps", type=int, help="Optimizer steps."),
    click.option("--epochs", type=float, help="Passes over the training clips (default: 3)."),
    click.option("--batch-size", type=int, help="Clips in one optimizer step."),
    click.option("--learning-rate", type=float),
    click.option("--window", type=WINDOWS, help="How much of 30 s is computed (default: condensed)."),
    click.option("--audio-column", help="Where the columns have other than the usual names."),
    click.option("--text-column"),
    click.option("--prompt-column", help=PROMPT_HELP),
    click.option("--times", type=TIMES, help=TIMES_HELP),
    click.option("--quantize", type=click.Choice(["8bit", "4bit"]), help="An adapter's base in so many bits."),
    click.option("--seed", type=int),
    click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override any recipe key. Repeatable."),
)
FLAGS = {
    "mode": "train.mode", "model": "model.name", "language": "model.language",
    "language_token": "model.language_token", "task": "model.task", "train_source": "data.train",
    "eval_source": "data.eval", "test_source": "data.test", "steps": "train.steps", "epochs": "train.epochs",
    "batch_size": "train.batch_size", "learning_rate": "train.learning_rate", "window": "features.window",
    "audio_column": "data.audio_column", "text_column": "data.text_column",
    "prompt_column": "data.prompt_column", "times": "data.times", "quantize": "train.quantize",
    "seed": "train.seed",
}  # fmt: skip


def recipe_options(function: Callable) -> Callable:
    """RECIPE, the flags that stand for its keys, and --set; the function is handed the changes they make."""

    @functools.wraps(function)
    def wrapped(*, settings: tuple[str, ...], **arguments: object) -> object:
        flags = {key: arguments.pop(name) for name, key in FLAGS.items()}
        return function(changes=_changes(settings, flags), **arguments)

    for option in reversed(RECIPE_OPTIONS):
        wrapped = option(wrapped)
    return wrapped
