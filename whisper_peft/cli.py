"""The command line: parse, call one function, print."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable

import click

from whisper_peft import __version__
from whisper_peft.errors import Interrupted, UserError

WINDOW_HELP = "full (30 s), or condensed or tight: quicker, for a model trained so."
SRC_HELP = "AudioFolder, Common Voice release (DIR:split) or manifest (.jsonl, .csv, .tsv)."


AT_LEAST_1 = click.IntRange(min=1)
WINDOWS = click.Choice(["full", "condensed", "tight"])


class ClipsAtOnce(click.ParamType):
    """A number of clips, or auto."""

    name = "clips"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Refuses what is neither."""
        return value if value == "auto" else AT_LEAST_1.convert(value, param, ctx)


class Commands(click.Group):
    """Commands in the order of a project, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """As defined."""
        return list(self.commands)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="whisper-peft")
def cli() -> None:
    """Fine-tune Whisper on your own speech: train, evaluate, merge, transcribe."""


def main() -> None:
    """The entry point: one line and exit code 1 for what the user can mend, a traceback for what we must."""
    try:
        code = cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except UserError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except Interrupted as stop:
        click.echo(f"Stopped: {stop}", err=True)
        sys.exit(stop.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    sys.exit(code if isinstance(code, int) else 0)


def output_options(function: Callable) -> Callable:
    """--json and --quiet, as every command has them; keeps everything but the result off stdout."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, everything else on stderr.")
    @click.option("--quiet", is_flag=True, help="Print results and errors only.")
    @functools.wraps(function)
    def wrapped(*, as_json: bool, quiet: bool, **arguments: object) -> object:
        return function(out=Printer(as_json, quiet), **arguments)

    return wrapped


class Printer:
    """Where lines go: progress to stderr, results to stdout, JSON instead of them where it is asked for."""

    def __init__(self, as_json: bool, quiet: bool):
        self.as_json, self.quiet = as_json, quiet
        _hush_libraries()

    def say(self, line: str) -> None:
        """A line about what happens."""
        if not self.quiet:
            click.echo(line, err=True)

    def result(self, content: object, lines: list[str]) -> None:
        """The result: as lines for people, or as JSON."""
        if self.as_json:
            click.echo(json.dumps(content, ensure_ascii=False, default=str))
        else:
            for line in lines:
                click.echo(line)


def _hush_libraries() -> None:
    """Libraries warn of what our own code has taken care of; their errors still show."""
    import logging
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    for name in ("accelerate", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)


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


@cli.command()
@click.argument("recipe", required=False)
@click.option("--mode", type=click.Choice(["full", "lora"]), help="All weights, or a LoRA adapter (default: lora).")
@click.option("--model", help="Hub id, model folder, run or adapter folder to start from.")
@click.option("--language", help="Name or code of the language, as hindi or hi.")
@click.option("--language-token", help="Borrow this language's token for one that Whisper does not know.")
@click.option("--task", type=click.Choice(["transcribe", "translate"]))
@click.option("--train", "train_source", multiple=True, metavar="SRC", help=f"Learns. {SRC_HELP} Repeatable.")
@click.option("--eval", "eval_source", metavar="SRC", help="Selects the checkpoint (default: a tenth of train).")
@click.option("--test", "test_source", metavar="SRC", help="Scored once before and once after.")
@click.option("--steps", type=int, help="Optimizer steps.")
@click.option("--epochs", type=float, help="Passes over the training clips (default: 3).")
@click.option("--batch-size", type=int, help="Clips in one optimizer step.")
@click.option("--learning-rate", type=float)
@click.option("--window", type=WINDOWS, help="How much of 30 s is computed (default: condensed).")
@click.option("--audio-column", help="Where the columns have other than the usual names.")
@click.option("--text-column")
@click.option("--quantize", help="8bit or 4bit base (not built yet).")
@click.option("--seed", type=int)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override any recipe key. Repeatable.")
@click.option("--output", type=click.Path(), help="The new run folder (default: runs/<recipe or model>-<n>).")
@click.option("--resume", type=click.Path(), metavar="RUN", help="Go on with a run from its newest checkpoint.")
@click.option("--dry-run", is_flag=True, help="Read the data and print the resolved recipe; train nothing.")
@output_options
def train(
    out: Printer, recipe: str | None, settings: tuple[str, ...], output: str | None, resume: str | None, dry_run: bool,
    mode: str | None, model: str | None, language: str | None, language_token: str | None, task: str | None,
    train_source: tuple[str, ...], eval_source: str | None, test_source: str | None, steps: int | None,
    epochs: float | None, batch_size: int | None, learning_rate: float | None, window: str | None,
    audio_column: str | None, text_column: str | None, quantize: str | None, seed: int | None,
) -> None:  # fmt: skip
    """Fine-tune as RECIPE says (a file, or the name of a shipped one), flags winning over it.

    Example: whisper-peft train quickstart
    """
    flags = {
        "train.mode": mode, "model.name": model, "model.language": language, "model.language_token": language_token,
        "model.task": task, "data.train": train_source, "data.eval": eval_source, "data.test": test_source,
        "train.steps": steps, "train.epochs": epochs, "train.batch_size": batch_size,
        "data.audio_column": audio_column, "data.text_column": text_column,
        "train.learning_rate": learning_rate, "features.window": window, "train.quantize": quantize,
        "train.seed": seed,
    }  # fmt: skip
    if resume and (recipe or output):
        raise click.UsageError("--resume takes the run's own recipe and folder; leave RECIPE and --output away.")
    if not resume and not recipe and not train_source:
        raise click.UsageError("name a RECIPE, or the data with --train SRC.")
    changes = _changes(settings, flags)
    if resume:  # what stands for the other unit is no change; --epochs itself is refused by the run
        changes = {key: value for key, value in changes.items() if value is not None}
    elif output is None and not dry_run:
        output = _free_run_name(recipe, model, changes.get("train.mode"))
    from whisper_peft.recipe import as_dict
    from whisper_peft.training.train import train as run_training

    result = run_training(
        recipe, output=output, resume=resume, changes=changes, dry_run=dry_run, say=out.say,
        progress=not out.quiet,
    )  # fmt: skip
    if dry_run:
        import yaml

        page = as_dict(result)
        out.result(page, [yaml.safe_dump(page, sort_keys=False, allow_unicode=True).rstrip()])
        return
    out.result({"run": str(result.run), **result.facts}, _train_lines(result))


def _free_run_name(recipe: str | None, model: str | None, mode: str | None) -> str:
    from pathlib import Path

    stem = "-".join(filter(None, [Path(recipe or model or "run").stem, mode]))
    return next(path for n in range(1, 10_000) if not Path(path := f"runs/{stem}-{n}").exists())


def _train_lines(result) -> list[str]:
    facts, shown = result.facts, _shown_path(result.run)
    lines = [f"Trained {facts['steps']} steps in {facts['train_seconds'] / 60:.1f} minutes; best: step "
             f"{facts['best_step']} (by {facts['best_metric']} on the eval clips)."]  # fmt: skip
    if facts.get("left_out"):
        lines.append(f"Left out: {facts['left_out']} clips, each named in {shown}/left_out.jsonl.")
    before, after, final = facts.get("before"), facts.get("after"), facts.get("final")
    if before and after:
        what = "test" if after["split"] == "test" else "eval (the selection set, optimistic)"
        lines.append(f"On {after['clips']} {what} clips:")
        lines.append(f"  {'':8}{'WER':>9}{'CER':>9}{'token loss':>12}")
        for name, row in (("before", before), ("after", after)):
            lines.append(f"  {name:8}{row['wer']:>9.1%}{row['cer']:>9.1%}{row['token_loss']:>12.3f}")
    if final and (not after or final["clips"] != after["clips"]):
        lines.append(f"Whole {final['split']} set, {final['clips']} clips: WER {final['wer']:.1%}, "
                     f"CER {final['cer']:.1%}.")  # fmt: skip
    if final and final["reached_limit"]:
        lines.append(f"{final['reached_limit']} transcripts reached the generation limit.")
    lines.append("Next:")
    data = _data_of(result.run)
    source = data.test or data.eval  # a held-out tenth is no source of its own, and the rest was learnt from
    columns = "".join(
        f" --{kind}-column {name}" for kind, name in (("audio", data.audio_column), ("text", data.text_column)) if name
    )
    if source:
        lines.append(f"  whisper-peft evaluate {shown} {_shown_path(source)}{columns}")
    if facts["mode"] == "lora":
        lines.append(f"  whisper-peft merge {shown} {shown}-merged")
    lines.append(f"  whisper-peft transcribe {shown} {_first_clip(result.run)}")
    return lines


def _data_of(run):
    from whisper_peft.recipe import load_recipe

    return load_recipe(run / "recipe.yaml").data


def _first_clip(run) -> str:
    from whisper_peft.runs import read_jsonl

    scored = read_jsonl(run / "transcripts.jsonl")
    return _shown_path(scored[0]["audio"]) if scored else "AUDIO"


def _shown_path(path: object) -> str:
    """A path as a person would type it here."""
    text = os.path.relpath(str(path)) if os.path.isabs(str(path)) else str(path)
    return str(path) if text.startswith("../..") else text


@cli.command()
@click.argument("model")
@click.argument("source", metavar="SRC")
@click.option("--language", help="Name or code, for clips that name none (default: what the model was trained for).")
@click.option("--task", type=click.Choice(["transcribe", "translate"]), help="Default: what the run was trained for.")
@click.option("--output", type=click.Path(), help="A new folder for report.json and transcripts.jsonl.")
@click.option("--batch-size", type=ClipsAtOnce(), default="auto", show_default=True, help="Clips at a time.")
@click.option("--window", type=WINDOWS, default="full", show_default=True, help=WINDOW_HELP)
@click.option("--beams", type=AT_LEAST_1, default=1, show_default=True, help="1 is greedy.")
@click.option("--max-new-tokens", type=AT_LEAST_1, help="Limit on generation (default: the model's own).")
@click.option("--max-clips", type=AT_LEAST_1, help="Only the first so many.")
@click.option("--base", help="The adapter's base, if it has moved.")
@click.option("--audio-column", help="Where the columns have other than the usual names.")
@click.option("--text-column")
@output_options
def evaluate(out: Printer, model: str, source: str, **options) -> None:
    """Score MODEL on SRC: WER and CER with intervals, raw and normalised.

    MODEL is a Hub id, a model folder, a run or an adapter folder.
    """
    from whisper_peft.evaluation.scoring import evaluate as run_evaluation

    with _bar("transcribing", out) as bar:
        result = run_evaluation(model, source, progress=bar, **options)
    out.result(result, _score_lines(result, options["output"]))


def _score_lines(result: dict, output: str | None) -> list[str]:
    language = f", language {result['language']}" if result["language"] else ""
    lines = [f"{result['model']} on {result['source']}: {result['clips']} clips{language}, {result['window']} windows, "
             f"{result['seconds']:.0f} s"]  # fmt: skip
    lines.append(f"  {'':18}{'rate':>8}  {'95 % interval':>17}{'subst.':>8}{'delet.':>8}{'insert.':>8}")
    for key, name in (("wer", "WER"), ("cer", "CER"), ("wer_normalized", "WER, normalised"),
                      ("cer_normalized", "CER, normalised")):  # fmt: skip
        interval = result.get(f"{key}_interval")
        shown = f"{interval[0]:.1%} to {interval[1]:.1%}" if interval else ""
        counts = "".join(f"{result[f'{key}_{kind}']:>8}" for kind in ("substitutions", "deletions", "insertions"))
        lines.append(f"  {name:18}{result[key]:>8.1%}  {shown:>17}{counts}")
    lines.append(f"  token loss {result['token_loss']:.3f}; normaliser: {result['normalizer']}")
    if result["reached_limit"]:
        lines.append(f"  {result['reached_limit']} transcripts reached the limit of {result['max_new_tokens']} tokens")
    if result["left_out"]:
        lines.append(
            f"  {result['left_out']} clips left out" + (f", named in {output}/left_out.jsonl" if output else "")
        )
    if output:
        lines.append(f"  transcripts: {output}/transcripts.jsonl")
    return lines


@cli.command()
@click.argument("model", metavar="RUN|ADAPTER")
@click.argument("output", metavar="OUT", type=click.Path())
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="Default: the base's own.")
@click.option("--base", help="The adapter's base, if it has moved.")
@click.option("--check", metavar="SRC", help="Clips to compare on (default: the run's own).")
@click.option("--language", help="Of the check clips, where nothing else says.")
@output_options
def merge(out: Printer, model: str, output: str, **options) -> None:
    """Fold an adapter into its base: a stand-alone model, checked against the adapter."""
    from whisper_peft.delivery.merging import merge as run_merge

    report = run_merge(model, output, say=out.say, **options)
    lines = [
        f"Merged into {output} ({report['dtype']}), checked on {report['checked_on']}.",
        f"  largest logit difference {report['logit_gap']:.2e}, limit {report['logit_limit']:.2e}",
        f"  transcripts that differ: {report['transcripts_differing']} of {report['clips']}",
    ]
    for pair in report["transcripts"]:
        lines += [f"    adapter: {pair['adapter']}", f"    merged:  {pair['merged']}"]
    out.result({"output": output, **report}, lines)


@cli.command()
@click.argument("model")
@click.argument("audio", nargs=-1, required=True, type=click.Path())
@click.option("--language", help="Name or code (default: what the model was trained for).")
@click.option("--task", type=click.Choice(["transcribe", "translate"]), default="transcribe", show_default=True)
@click.option("--batch-size", type=ClipsAtOnce(), default="auto", show_default=True, help="Clips at a time.")
@click.option("--window", type=WINDOWS, default="full", show_default=True, help=WINDOW_HELP)
@click.option("--beams", type=AT_LEAST_1, default=1, show_default=True, help="1 is greedy.")
@click.option("--base", help="The adapter's base, if it has moved.")
@output_options
def transcribe(out: Printer, model: str, audio: tuple[str, ...], **options) -> None:
    """Write down what is said in AUDIO files of up to 30 s."""
    from whisper_peft.evaluation.transcribing import transcribe as run_transcription

    with _bar("transcribing", out) as bar:
        found = run_transcription(model, audio, progress=lambda clips: bar(clips, len(audio)), **options)
    named = len(found) > 1
    out.result(
        {"transcripts": found},
        [f"{_shown_path(one['audio'])}: {one['text']}" if named else one["text"] for one in found],
    )


@contextlib.contextmanager
def _bar(label: str, out: Printer):
    """A progress bar on stderr that learns its length from the first call."""
    if out.quiet:
        yield lambda clips, total: None
        return
    from tqdm import tqdm

    with tqdm(desc=label, unit="clip", leave=False, disable=None) as bar:

        def update(clips: int, total: int) -> None:
            bar.total = total
            bar.update(clips)

        yield update


@cli.group()
def recipes() -> None:
    """The recipes that ship with whisper-peft."""


@recipes.command("list")
@output_options
def list_recipes(out: Printer) -> None:
    """Names and first lines."""
    from whisper_peft.recipe import shipped_recipes

    found = [(path.stem, _first_comment(path)) for path in shipped_recipes()]
    out.result(
        {"recipes": [{"name": name, "about": about} for name, about in found]},
        [f"{name:20} {about}" for name, about in found],
    )


def _first_comment(path) -> str:
    line = path.read_text(encoding="utf-8").partition("\n")[0]
    return line.lstrip("# ").strip()


@recipes.command("show")
@click.argument("name")
@output_options
def show_recipe(out: Printer, name: str) -> None:
    """Print a recipe."""
    from whisper_peft.recipe import as_dict, find_recipe, load_recipe

    page = find_recipe(name).read_text(encoding="utf-8").rstrip()
    out.result(as_dict(load_recipe(name)) if out.as_json else None, [page])


@recipes.command("copy")
@click.argument("name")
@click.argument("file", type=click.Path())
@output_options
def copy_recipe(out: Printer, name: str, file: str) -> None:
    """Copy a recipe to FILE, to edit it."""
    from whisper_peft.recipe import copy_recipe as run_copy

    path = run_copy(name, file)
    out.result({"recipe": str(path)}, [f"Wrote {path}; train it with: whisper-peft train {path}"])
