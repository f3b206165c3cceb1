"""The commands: each parses its options, calls one public function and prints the result."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import tempfile
import textwrap
import traceback

import click

from whisper_peft import __version__
from whisper_peft.cli.export_lines import export_lines
from whisper_peft.cli.lines import (
    check_lines,
    demo_lines,
    matrix_lines,
    merge_lines,
    plan_lines,
    publish_lines,
    train_lines,
)
from whisper_peft.cli.options import (
    AT_LEAST_1,
    AUDIO_COLUMN_HELP,
    BASE_HELP,
    BEAMS,
    PRECISION,
    PROMPT_HELP,
    QUANTIZE,
    TASK_HELP,
    TASKS,
    TEXT_COLUMN_HELP,
    TIMES,
    TIMES_HELP,
    WINDOW_HELP,
    WINDOWS,
    ClipsAtOnce,
    output_options,
    recipe_options,
)
from whisper_peft.cli.printer import Printer
from whisper_peft.cli.quiet import hide_library_messages
from whisper_peft.cli.recipes import recipes
from whisper_peft.cli.score_lines import score_lines
from whisper_peft.errors import Interrupted, UserError
from whisper_peft.files import printable, reason_of
from whisper_peft.model.devices import GIB
from whisper_peft.runtimes.formats import EXPORT_FORMATS

# The exit code of a bug of ours: EX_SOFTWARE of sysexits.h.
BUG = 70
# What the system refuses for want of something: the user can mend it.
SYSTEM_LIMITS = (errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EROFS, errno.EDQUOT, errno.ENOMEM)


class Commands(click.Group):
    """A group that lists its commands in the order of a project, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the commands in the order in which they are defined."""
        return list(self.commands)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="whisper-peft")
def cli() -> None:
    """Fine-tune Whisper on your own speech: check, train, evaluate, merge, transcribe, demo, publish."""


def main() -> None:
    """Run the command line.

    A mistake that the user can mend ends in one line and exit code 1. A bug of ours ends in one line and exit code 70,
    and its traceback is kept in a file.
    """
    hide_library_messages()
    _accept_any_text()
    try:
        code = cli(standalone_mode=False)
    except click.ClickException as error:
        click.echo(printable(_message_of(error), keep_line_breaks=True), err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except UserError as error:
        click.echo(f"Error: {printable(error)}", err=True)
        sys.exit(1)
    except Interrupted as stop:
        click.echo(f"Stopped: {printable(stop)}", err=True)
        sys.exit(stop.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except MemoryError:
        click.echo("Error: not enough memory on this machine; take smaller batches or a smaller model.", err=True)
        sys.exit(1)
    except Exception as error:
        sys.exit(_report_unexpected(error))
    sys.exit(code if isinstance(code, int) else 0)


def _message_of(error: click.ClickException) -> str:
    """Return what click prints for a wrong command line: the usage, if there is one, and the error."""
    shown = io.StringIO()
    error.show(file=shown)
    return shown.getvalue().rstrip("\n")


def _accept_any_text() -> None:
    """Make stdout and stderr escape what their encoding cannot write, such as a file name that is not UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _report_unexpected(error: Exception) -> int:
    """Print one line for an exception that nobody expected.

    The user can mend a file that the system refuses. Everything else is our bug, and its traceback is kept.

    Returns:
        The exit code.
    """
    name = getattr(error, "filename", None)
    if isinstance(error, OSError) and (name is not None or error.errno in SYSTEM_LIMITS):
        place = f"{printable(name)}: " if name is not None else ""
        click.echo(f"Error: {place}{reason_of(error)}.", err=True)
        return 1
    trace = "".join(traceback.format_exception(error))
    with tempfile.NamedTemporaryFile(
        "w", prefix="whisper-peft-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as file:
        file.write(trace)
    kind = type(error).__name__
    reason = textwrap.shorten(printable(error), 200, placeholder=" ...")
    click.echo(
        f"Error: {kind}: {reason}. This is a bug in whisper-peft; please report it with {file.name}, which holds the "
        "traceback.",
        err=True,
    )
    return BUG


@cli.command()
@click.argument("sources", metavar="SRC...|RECIPE", nargs=-1, required=True)
@click.option("--language", help="Language of clips that name none: a name or a code.")
@click.option("--model", help="Model that helps to find texts beside the wrong sound: Hub id, model, run or adapter.")
@click.option("--no-audio", is_flag=True, help="Look at headers and texts only.")
@click.option("--html", type=click.Path(), metavar="FILE", help="Write the report as a page to look at and listen to.")
@click.option("--fix", type=click.Path(), metavar="OUT", help="Write a cleaned manifest: a .jsonl file, or a folder.")
@click.option("--audio-column", help=AUDIO_COLUMN_HELP)
@click.option("--text-column", help=TEXT_COLUMN_HELP)
@click.option("--prompt-column", help=PROMPT_HELP)
@click.option("--times", type=TIMES, help=TIMES_HELP)
@output_options
def check(out: Printer, sources: tuple[str, ...], no_audio: bool, **options) -> int:
    """Look at the data before you spend a GPU-hour on it.

    Name one SRC for each split, or a RECIPE for its sources. Nothing is changed. The exit code is 3 if there are errors
    in the data.

    Example: whisper-peft check my-speech:train my-speech:test
    """
    from whisper_peft.checking.check import check as run_check
    from whisper_peft.checking.check import is_recipe

    recipe = next((source for source in sources if is_recipe(source)), None)
    if recipe is not None:
        if len(sources) > 1:
            raise click.UsageError(f"{recipe} is a recipe; name it alone, or name sources only.")
        sources = ()
    report = run_check(sources, recipe=recipe, audio=not no_audio, progress=not out.quiet, **options)
    out.result(report.as_dict(), check_lines(report, html=options["html"]))
    return 3 if report.errors else 0


@cli.command()
@recipe_options
@click.option("--gpu-memory", metavar="SIZE", help="Memory of the GPU to plan for, as 8GB (default: the device here).")
@click.option("--matrix", is_flag=True, help="Predict the memory of every published size in every mode.")
@output_options
def plan(out: Printer, recipe: str | None, changes: dict[str, object], gpu_memory: str | None, matrix: bool) -> None:
    """Predict whether training fits into memory, with which micro-batch, and how long an epoch takes.

    RECIPE is a file, the name of a shipped recipe, or a run folder.

    Example: whisper-peft plan small-hindi-lora --gpu-memory 8GB
    """
    from whisper_peft.training import planning

    if matrix:
        peaks = planning.plan_matrix(recipe, changes=changes, gpu_memory=gpu_memory)
        out.result(peaks, matrix_lines(peaks))
        return
    memory_plan = planning.plan(recipe, changes=changes, gpu_memory=gpu_memory)
    out.result(memory_plan.as_dict(), plan_lines(memory_plan))
    if not memory_plan.fits:
        peak = memory_plan.memory.peak / GIB
        free = memory_plan.device.free / GIB
        raise UserError(f"{memory_plan.model}: {peak:.1f} GB do not fit into {free:.1f} GB; {memory_plan.remedy}.")


@cli.command()
@recipe_options
@click.option("--output", type=click.Path(), help="The new run folder (default: runs/<recipe or model>-<n>).")
@click.option("--resume", type=click.Path(), metavar="RUN", help="Continue a run from its newest checkpoint.")
@click.option("--dry-run", is_flag=True, help="Read the data and print the resolved recipe; train nothing.")
@click.option("--force", is_flag=True, help="Train although the plan says that memory is too small.")
@click.option("--push", metavar="REPO", help="Upload each checkpoint, and then the result, to the Hub (owner/name).")
@click.option("--private", is_flag=True, help="With --push: make a new REPO private.")
@click.option(
    "--base",
    metavar="MODEL",
    help="The base of --model ADAPTER or of --resume RUN, if it has moved. With --push, the base on the Hub if --model "
    "is a folder.",
)
@output_options
def train(
    out: Printer,
    recipe: str | None,
    changes: dict[str, object],
    output: str | None,
    resume: str | None,
    dry_run: bool,
    force: bool,
    push: str | None,
    private: bool,
    base: str | None,
) -> None:
    """Fine-tune a Whisper with the settings of RECIPE: a file, or the name of a shipped recipe.

    Options win over the recipe.

    Example: whisper-peft train quickstart
    """
    if resume and (recipe or output):
        raise click.UsageError("--resume uses the recipe and the folder of the run; leave out RECIPE and --output.")
    if not resume and not recipe and not changes.get("data.train"):
        raise click.UsageError("name a RECIPE, or name the data with --train SRC.")
    if private and not push:
        raise click.UsageError("--private needs --push REPO.")
    if resume:
        # Steps and epochs replace each other by a null, which is no change to a run. --epochs itself is refused later.
        changes = {key: value for key, value in changes.items() if value is not None}
    elif output is None and not dry_run:
        names = [recipe or changes.get("model.name") or "run", changes.get("train.mode")]
        output = _free_run_name([str(name) for name in names if name])
    if dry_run:
        _print_prepared(out, recipe, output=output, resume=resume, base=base, changes=changes, force=force)
        return
    from whisper_peft.training.train import train as run_training

    with _pushing(out, resume or recipe, changes, push, private=private, base=base) as pushed:
        # For a push from a model folder, --base names the base on the Hub, which is nothing to the training.
        own_base = None
        if pushed is None or pushed.from_adapter:
            own_base = base
        result = run_training(
            recipe,
            output=output,
            resume=resume,
            base=own_base,
            changes=changes,
            force=force,
            say=out.say,
            on_checkpoint=[pushed] if pushed else [],
            progress=not out.quiet,
        )
        published = pushed.finish(result.run) if pushed else None
    page = {"run": str(result.run), **result.facts}
    lines = train_lines(result)
    if pushed:
        page["published"] = published.as_dict() if published else None
    if published:
        lines += publish_lines(published, dry_run=False)
    out.result(page, lines)


def _print_prepared(
    out: Printer,
    recipe: str | None,
    *,
    output: str | None,
    resume: str | None,
    base: str | None,
    changes: dict[str, object],
    force: bool,
) -> None:
    """Prepare a run, train nothing, and print its recipe with a value for every setting."""
    import yaml

    from whisper_peft.recipe_dicts import as_dict
    from whisper_peft.training.prepare import prepare

    prepared = prepare(recipe, output=output, resume=resume, base=base, changes=changes, force=force, say=out.say)
    page = as_dict(prepared.recipe)
    out.result(page, [yaml.safe_dump(page, sort_keys=False, allow_unicode=True).rstrip()])


def _pushing(
    out: Printer, recipe: str | None, changes: dict[str, object], repo: str | None, *, private: bool, base: str | None
):
    """Open a `Push` to a repository; without one, a context manager that gives None."""
    if repo is None:
        return contextlib.nullcontext()
    from whisper_peft.delivery.pushing import Push
    from whisper_peft.recipe_files import read_recipe

    return Push(repo, read_recipe(recipe, changes), private=private, base=base, say=out.say)


def _free_run_name(names: list[str]) -> str:
    """Name a run folder that does not exist yet, after a recipe or model and a mode."""
    from pathlib import Path

    stem = "-".join([Path(names[0]).stem, *names[1:]])
    number = 1
    while Path(f"runs/{stem}-{number}").exists():
        number += 1
    return f"runs/{stem}-{number}"


@cli.command()
@click.argument("model")
@click.argument("source", metavar="SRC")
@click.option(
    "--language",
    help="Language of clips that name none: a name, a code, or auto (default: what the model was trained for).",
)
@click.option("--task", type=TASKS, help=f"{TASK_HELP} Default: what the model was trained for.")
@click.option("--output", type=click.Path(), help="A new folder for report.json and transcripts.jsonl.")
@click.option("--batch-size", type=ClipsAtOnce(), default="auto", show_default=True, help="Clips at a time.")
@click.option("--window", type=WINDOWS, default="full", show_default=True, help=WINDOW_HELP)
@click.option("--beams", type=BEAMS, help="1 is greedy (default: 1; an export: its runtime's own number).")
@click.option("--max-new-tokens", type=AT_LEAST_1, help="Limit on generation (default: the model's own).")
@click.option("--max-clips", type=AT_LEAST_1, help="Score only this many clips, the first ones.")
@PRECISION
@click.option("--base", help=BASE_HELP)
@QUANTIZE
@click.option("--audio-column", help=AUDIO_COLUMN_HELP)
@click.option("--text-column", help=TEXT_COLUMN_HELP)
@click.option("--times", type=TIMES, help=TIMES_HELP)
@click.option("--cut", is_flag=True, help="Score recordings in clips only, not also as a whole.")
@output_options
def evaluate(out: Printer, model: str, source: str, **options) -> None:
    """Score MODEL on SRC: word and character error rates with intervals, raw and normalised.

    MODEL is a Hub id, a model folder, a run, an adapter folder or an export. Recordings with segment times are scored
    in clips and as a whole: their text, speech without output, times and loops.
    """
    from whisper_peft.evaluation.scoring import evaluate as run_evaluation

    with out.clips_bar("transcribing") as clips_done, out.seconds_bar("whole recordings") as seconds_done:
        result = run_evaluation(
            model, source, progress=clips_done, recordings_progress=seconds_done, say=out.say, **options
        )
    out.result(result.as_dict(), score_lines(result, options["output"]))


@cli.command()
@click.argument("model", metavar="RUN|ADAPTER")
@click.argument("output", metavar="OUT", type=click.Path())
@click.option(
    "--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="Type of the weights (default: the base's)."
)
@click.option("--base", help=BASE_HELP)
@click.option("--check", metavar="SRC", help="Clips to compare adapter and merged model on (default: the run's).")
@click.option("--language", help="Language of the clips to compare on, if nothing else names it.")
@output_options
def merge(out: Printer, model: str, output: str, **options) -> None:
    """Fold an adapter into its base. The result is a stand-alone model, which is checked against the adapter."""
    from whisper_peft.delivery.merging import merge as run_merge

    report = run_merge(model, output, say=out.say, **options)
    out.result({"output": output, **report.as_dict()}, merge_lines(output, report))


@cli.command()
@click.argument("model")
@click.argument("output", metavar="OUT", type=click.Path())
@click.option(
    "--format", required=True, type=click.Choice(list(EXPORT_FORMATS)), help="Format, named after what reads it."
)
@click.option("--quantization", metavar="TYPE", help="Type of the weights (default: the format's usual one).")
@click.option("--check", metavar="SRC", help="Clips to prove the export on (default: the run's).")
@click.option("--clips", type=AT_LEAST_1, help="Largest number of clips to prove it on, 5 or more (default: 16).")
@click.option("--base", help=BASE_HELP)
@click.option("--language", help="Language of the clips, if nothing else names it.")
@click.option("--unproved", is_flag=True, help="Export although the runtime is not installed, without a proof.")
@output_options
def export(out: Printer, model: str, output: str, **options) -> None:
    """Write MODEL for another runtime, and prove there that it says the same as in transformers.

    MODEL is a run, an adapter or a model folder. The runtime transcribes clips, and recordings of about 25 s that are
    joined from clips, with its own default decoding. If it is worse than transformers, nothing is written.

    Example: whisper-peft export runs/hindi hindi-ct2 --format ctranslate2
    """
    from whisper_peft.delivery.exporting.export import export as run_export

    with out.clips_bar("proving") as outputs_done:
        report = run_export(model, output, say=out.say, progress=outputs_done, **options)
    out.result({"output": output, **report.as_dict()}, export_lines(output, report))


@cli.command()
@click.argument("model")
@click.argument("audio", nargs=-1, required=True, type=click.Path())
@click.option("--language", help="A name, a code, or auto (default: what the model was trained for).")
@click.option("--task", type=TASKS, default="transcribe", show_default=True, help=TASK_HELP)
@click.option(
    "--format",
    "formats",
    multiple=True,
    metavar="LIST",
    help="Any of txt, srt, vtt, tsv, json, joined by commas, or all (default: txt). All but txt have times.",
)
@click.option(
    "--output",
    type=click.Path(),
    metavar="DIR",
    help="Write files named after the recordings. A recording whose files are there is passed over.",
)
@click.option("--word-times", is_flag=True, help="Find out when each word is spoken.")
@click.option(
    "--prompt",
    metavar="TEXT",
    help="Names and jargon as they are spelt. The model reads it at every window; an export, at the first one.",
)
@click.option("--chunked", is_flag=True, help="Cut long recordings into overlapping chunks: quicker, less exact.")
@click.option("--batch-size", type=ClipsAtOnce(), default="auto", show_default=True, help="Recordings at a time.")
@click.option("--window", type=WINDOWS, default="full", show_default=True, help=WINDOW_HELP)
@click.option("--beams", type=BEAMS, help="1 is greedy (default: 1; an export: its runtime's own number).")
@PRECISION
@click.option("--base", help=BASE_HELP)
@QUANTIZE
@output_options
def transcribe(out: Printer, model: str, audio: tuple[str, ...], **options) -> int:
    """Write down what is said in AUDIO.

    MODEL may also be an export, which its own runtime decodes. AUDIO is any number of files of any length and format,
    folders, patterns, or - for a list on stdin. A file that cannot be used is named and passed over; the exit code is
    then 1.

    Example: whisper-peft transcribe runs/hindi talks/ --format txt,srt --output texts
    """
    from whisper_peft.cli.transcribe import transcribe_all

    return transcribe_all(out, model, audio, **options)


@cli.command()
@click.argument("model")
@click.option(
    "--compare",
    metavar="MODEL",
    default="base",
    show_default=True,
    help="Model to show beside MODEL. base: what MODEL was trained from. none: no other model.",
)
@click.option(
    "--language",
    help="Language when the page opens: a name, a code, or auto (default: what the model was trained for).",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="Port; 0 takes a free one."
)
@click.option(
    "--share",
    is_flag=True,
    help="Make a link on the internet through Gradio's servers. Whoever has it can use the page.",
)
@click.option("--base", help=BASE_HELP)
@QUANTIZE
@output_options
def demo(out: Printer, model: str, **options) -> None:
    """Serve a page on this machine, where MODEL listens to a microphone or a file.

    The model before training stands beside it, with the differences marked. The command needs the extra
    whisper-peft[demo].
    """
    from whisper_peft.delivery.demo import demo as run_demo

    run_demo(model, say=out.say, ready=lambda facts: out.result(facts, demo_lines(facts)), **options)


@cli.command()
@click.argument("model")
@click.argument("repo")
@click.option("--private", is_flag=True, help="Make a new REPO private.")
@click.option("--dry-run", is_flag=True, help="Print the card and the files; touch no network.")
@click.option("--base", metavar="HUB_ID", help="The adapter's base on the Hub, if it was trained on a folder.")
@click.option("--license", help="Licence of the weights, as apache-2.0.")
@click.option("--language", help="Language on the card: a name or a code (default: the run's).")
@click.option("--dataset-tags", multiple=True, metavar="HUB_ID", help="Data set that it was trained on. Repeatable.")
@click.option("--dataset", help="Name of the scored data on the card (default: the last name of the run's source).")
@click.option("--dataset-args", help="Configuration and split of the scored data, in words.")
@click.option("--model-name", help="Title of the card (default: the name in REPO).")
@click.option("--finetuned-from", metavar="HUB_ID", help="Name of the base on the card (default: the base).")
@click.option("--tasks", help="Task on the card (default: automatic-speech-recognition).")
@click.option("--tags", multiple=True, help="Tags besides whisper and whisper-peft. Repeatable.")
@output_options
def publish(out: Printer, model: str, repo: str, **options) -> None:
    """Upload MODEL to the Hub as REPO (owner/name), with a model card filled in from its run.

    MODEL is a run, an adapter or a model folder. Log in with hf auth login, or set HF_TOKEN.
    """
    from whisper_peft.delivery.publishing import publish as run_publishing

    report = run_publishing(model, repo, say=out.say, **options)
    out.result({**report.as_dict(), "dry_run": options["dry_run"]}, publish_lines(report, dry_run=options["dry_run"]))


cli.add_command(recipes)
