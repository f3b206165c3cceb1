"""The options that several commands share, and what they change in a recipe."""

from __future__ import annotations

import functools
from collections.abc import Callable

import click

from whisper_peft.cli.printer import Printer
from whisper_peft.cli.quiet import show_notices
from whisper_peft.recipe import Recipe
from whisper_peft.recipe_dicts import SETTINGS, parse_settings, rule_of
from whisper_peft.settings import Setting, allowed_types

WINDOW_HELP = "Window of the encoder: full (30 s); condensed and tight are quicker, for a model trained with them."
TIMES_HELP = "Use or ignore the columns with start and end (default: ask where they do not fit the files)."
AUDIO_COLUMN_HELP = "Column with the sound file, where it has no usual name."
TEXT_COLUMN_HELP = "Column with the transcript, where it has no usual name."
PROMPT_HELP = "Column with the text that was said before each clip (default: none)."
BASE_HELP = "The base of an adapter, if it has moved."
TASK_HELP = "Write the words as they are spoken, or their English translation."

AT_LEAST_1 = click.IntRange(min=1)
BEAMS = click.IntRange(1, 100)
CLIPS = click.IntRange(1, 65_536)
WINDOWS = click.Choice(["full", "condensed", "tight"])
TASKS = click.Choice(["transcribe", "translate"])
TIMES = click.Choice(["use", "ignore"])
QUANTIZE = click.option(
    "--quantize",
    type=click.Choice(["as-trained", "none", "8bit", "4bit"]),
    default="as-trained",
    show_default=True,
    help="Load the base as it was trained, in full precision, or in 8 or 4 bits.",
)
PRECISION = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="Precision of the arithmetic. auto: the best half precision on a GPU, fp32 on a CPU.",
)
# What a source may be. It stands behind the help of --train only: three options with it would fill the screen.
SOURCE_HELP = (
    "SRC is an AudioFolder, a Common Voice release (DIR:split), a manifest, a Parquet file, a recording with captions "
    "or a Hub data set. Repeatable."
)


class ClipsAtOnce(click.ParamType):
    """A number of clips, or auto."""

    name = "clips"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Return auto or a number; refuse everything else."""
        if value == "auto":
            return "auto"
        # click's types take the text of the command line, although their annotations name the result.
        number: int = click.ParamType.__call__(CLIPS, value, param, ctx)
        return number


def output_options(function: Callable) -> Callable:
    """Add --json and --quiet, which every command has; the function is given a `Printer` as `out`."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, everything else on stderr.")
    @click.option("--quiet", is_flag=True, help="Print results and errors only.")
    @functools.wraps(function)
    def wrapped(*, as_json: bool, quiet: bool, **arguments: object) -> object:
        out = Printer(as_json, quiet)
        show_notices(out.say)
        return function(out=out, **arguments)

    return wrapped


def recipe_options(function: Callable) -> Callable:
    """Add RECIPE, an option for each setting that names one, and --set.

    The function is given `recipe` and the `changes` that the options make in it, by their keys.
    """
    settings_with_option = {_parameter_name(key): key for key, entry in SETTINGS.items() if entry.rule.option}

    @functools.wraps(function)
    def wrapped(*, settings: tuple[str, ...], **arguments: object) -> object:
        options = {key: arguments.pop(name) for name, key in settings_with_option.items()}
        return function(changes=_changes(settings, options), **arguments)

    decorators = [click.argument("recipe", required=False)]
    decorators += [_option_of(SETTINGS[key]) for key in settings_with_option.values()]
    decorators.append(
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set any recipe key. Repeatable.")
    )
    for decorator in reversed(decorators):
        wrapped = decorator(wrapped)
    return wrapped


def _parameter_name(key: str) -> str:
    """Name the parameter of a setting's option.

    >>> _parameter_name("train.steps")
    'train_steps'
    """
    return key.replace(".", "_")


def _option_of(setting: Setting) -> Callable:
    """Make the command-line option of a setting from its rule."""
    rule = setting.rule
    key = setting.key
    kinds = allowed_types(setting.kind)
    is_source = key in ("data.train", "data.eval", "data.test")
    words = [choice for choice in rule.choices if choice is not None]
    # A number outside its bounds is refused by the recipe, with the key that a page would have it under.
    kind: object = str
    if words:
        kind = click.Choice(words)
    elif int in kinds:
        kind = int
    elif float in kinds:
        kind = float
    assert rule.option is not None, f"{key} has no option"
    return click.option(
        rule.option,
        _parameter_name(key),
        type=kind,
        multiple=key == "data.train",
        metavar="SRC" if is_source else None,
        help=_help_of(setting),
    )


def _help_of(setting: Setting) -> str:
    """Write the help of a setting's option: what it does, and its default."""
    if setting.key == "data.train":
        return f"Training data. {SOURCE_HELP}"
    rule = rule_of(setting.key)
    default = rule.null if setting.default is None else setting.default
    return f"{rule.help} Default: {default}."


def _changes(settings: tuple[str, ...], options: dict[str, object]) -> dict[str, object]:
    """Merge --set and the options that stand for recipe keys into one mapping. An option wins."""
    changes = parse_settings(Recipe(), settings, place="--set ")
    for key, value in options.items():
        if value is None or value == ():
            continue
        changes[key] = list(value) if isinstance(value, tuple) else value
    # Steps and epochs are two units of one thing: who sets one of them replaces the other in the recipe.
    if "train.steps" in changes and "train.epochs" not in changes:
        changes["train.epochs"] = None
    elif "train.epochs" in changes and "train.steps" not in changes:
        changes["train.steps"] = None
    return changes
