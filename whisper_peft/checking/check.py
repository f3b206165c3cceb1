"""check(SRC...): look at the data before a GPU-hour is spent on it.

The steps: read the sources, look for faults (`checks`), then write cleaned manifests (`fix`) and the page (`page`) if
they are asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from whisper_peft import runs
from whisper_peft.checking.checks import CheckedData, check_sources
from whisper_peft.checking.findings import SourceRows
from whisper_peft.checking.fix import write_fixed_manifests
from whisper_peft.checking.limits import Limits
from whisper_peft.checking.neighbour_losses import neighbour_losses
from whisper_peft.checking.page import write_check_page
from whisper_peft.checking.report import CheckReport, ReportedClip
from whisper_peft.data.audio import AudioError, load_audio
from whisper_peft.data.features import Preparation
from whisper_peft.data.rows import Row, fill_in_language
from whisper_peft.data.sources import load_source, load_sources
from whisper_peft.data.streams import first_rows
from whisper_peft.data.subtitles import utf8_bytes
from whisper_peft.data.text import clean_text, language_code
from whisper_peft.errors import UserError
from whisper_peft.evaluation.scoring import label_rows
from whisper_peft.model.build import load_model
from whisper_peft.model.configs import load_preparation
from whisper_peft.model.locating import Located, locate
from whisper_peft.pages.player import LONGEST_SOUND_S
from whisper_peft.progress import bar
from whisper_peft.recipe import Recipe
from whisper_peft.recipe_files import read_recipe, shipped_recipes

# Clips that are looked at of a source that a recipe streams.
MOST_STREAMED = 500


def check(
    sources: str | Path | Sequence[str | Path] = (),
    *,
    recipe: Recipe | str | Path | None = None,
    language: str | None = None,
    model: str | Path | None = None,
    audio: bool = True,
    html: str | Path | None = None,
    fix: str | Path | None = None,
    audio_column: str | None = None,
    text_column: str | None = None,
    prompt_column: str | None = None,
    times: str | None = None,
    progress: bool = False,
) -> CheckReport:
    """Look for what is wrong with a data set. Nothing is changed in it.

    Args:
        sources: Any SRC, or several. Each of several is a split.
        recipe: A Recipe, its path or the name of a shipped one, whose train, eval and test are checked instead.
        language: Name or code of the language of clips that name none.
        model: Any MODEL. Its losses tell texts that belong elsewhere; without it, only lengths tell.
        audio: Whether to decode the clips. Otherwise only headers and texts are looked at.
        html: A new file for the report as a page with players.
        fix: A new place for cleaned manifests: a .jsonl file for one source, otherwise a folder.
        audio_column: Column with the sound files, if it does not have a usual name.
        text_column: Column with the transcripts, if it does not have a usual name.
        prompt_column: Column with what was said before each clip; None if no column has it.
        times: "use" or "ignore" the columns with start and end; None to ask where they do not fit the files.
        progress: Whether to show progress bars on stderr.

    Returns:
        Sources, findings (the worst first), and how many clips have an error, a warning or a note.

    Raises:
        UserError: There is nothing that could be checked, or an output exists already.
    """
    for output, remedy in ((html, "name another --html"), (fix, "name another --fix")):
        if output is not None:
            runs.refuse_existing(Path(output), remedy)
    names = [str(sources)] if isinstance(sources, (str, Path)) else [str(source) for source in sources]
    if bool(names) == (recipe is not None):
        raise UserError("check: name sources, or a recipe, and not both.")
    settings = Recipe() if recipe is None else read_recipe(recipe, {})
    task = settings.model.task
    language = language or settings.model.language
    code = language_code(language) if language else None
    borrowed_code = None
    if settings.model.language_token:
        borrowed_code = language_code(settings.model.language_token)
    listener = _find_listener(model, settings.model.name)
    chosen = {
        "audio_column": audio_column,
        "text_column": text_column,
        "prompt_column": prompt_column,
        "times": times,
    }
    columns = settings.data.columns | {name: value for name, value in chosen.items() if value}
    remarks: list[str] = []
    if recipe is None:
        listed = _read_sources(names, columns, listener, remarks.append)
    else:
        listed = _read_sources_of_recipe(settings, columns, listener, remarks.append)
    if listener.preparation is not None:
        _check_languages(listener.preparation, listed, borrowed_code, code, task)
    clean = partial(clean_text, **dataclasses.asdict(settings.data.text))
    losses = None
    if listener.model is not None:
        hear = partial(_listen_to_rows, listener, clean=clean, language=language, task=task)
        losses = partial(hear, label=f"{model} listens", progress=progress)
    checked = check_sources(
        listed,
        limits=_limits_of(listener, clean),
        language=None if borrowed_code else code,
        task=task,
        borrowed=borrowed_code is not None,
        times=columns["times"],
        audio=audio,
        losses=losses,
        progress=progress,
    )
    fixed = None
    if fix is not None:
        fixed = write_fixed_manifests(checked, Path(fix))
    report = checked.report(
        model=None if model is None else str(model),
        tokens=listener.way_of_counting,
        remarks=remarks,
        fixed=fixed,
    )
    if html is not None:
        write_check_page(report, Path(html), partial(_load_clip, checked))
    return report


def is_recipe(name: str) -> bool:
    """Tell whether an argument names a recipe, and not a source."""
    path = Path(name)
    is_yaml = path.suffix.lower() in (".yaml", ".yml")
    if path.exists():
        return is_yaml or runs.is_run(path)
    return is_yaml or name in {file.stem for file in shipped_recipes()}


@dataclass(frozen=True)
class _Listener:
    """The model that helps a check, and what belongs to it.

    Attributes:
        model: The model, in eval mode; None if its losses are not asked for.
        preparation: Counts tokens; None if no vocabulary is here.
        located: Where the model was found.
    """

    model: Any = None
    preparation: Preparation | None = None
    located: Located | None = None

    @property
    def way_of_counting(self) -> str:
        """Say how tokens are found: "counted" or "estimated"."""
        if self.preparation is None:
            return "estimated"
        return "counted"


def _find_listener(model: str | Path | None, fallback: str) -> _Listener:
    """Load a model whose losses are asked for.

    Args:
        model: What the user named; None if no losses are asked for.
        fallback: The model whose vocabulary counts tokens then, if it is here already. Nothing is downloaded only to
            look at data.
    """
    if model is not None:
        return _Listener(*load_model(model))
    with contextlib.suppress(UserError):
        located = locate(fallback)
        if not located.from_hub or _is_downloaded(located.base):
            return _Listener(None, load_preparation(located.base, revision=located.commit), located)
    return _Listener()


def _is_downloaded(hub_id: str) -> bool:
    """Tell whether the vocabulary of a model on the Hub has been downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    return all(isinstance(try_to_load_from_cache(hub_id, name), str) for name in ("vocab.json", "config.json"))


def _limits_of(listener: _Listener, clean: Callable[[str], str]) -> Limits:
    if listener.preparation is None:
        return Limits(clean=clean)
    return Limits(listener.preparation.window_s, listener.preparation, clean)


def _reader(columns: dict, listener: _Listener, say: Callable[[str], None]) -> Callable[..., list[Row]]:
    """Return a function that reads the rows of a source."""
    n_tokens = utf8_bytes
    if listener.preparation is not None:
        n_tokens = listener.preparation.n_tokens
    return partial(load_source, **columns, say=say, n_tokens=n_tokens)


def _read_sources(
    names: Sequence[str], columns: dict, listener: _Listener, say: Callable[[str], None]
) -> list[SourceRows]:
    """Read the sources that a user named. Each is a split."""
    rows_of_sources = load_sources(names, _reader(columns, listener, say), say)
    return [SourceRows(name, rows, name) for name, rows in zip(names, rows_of_sources, strict=True)]


def _read_sources_of_recipe(
    recipe: Recipe, columns: dict, listener: _Listener, say: Callable[[str], None]
) -> list[SourceRows]:
    """Read the sources of a recipe; those that it streams by their first clips."""
    data = recipe.data
    if not data.train:
        raise UserError("data.train: not set; nothing to check.")
    # Name, split, and the language of rows that name none.
    wanted = [(source.source, "train", source.language) for source in data.sources]
    for split, name in (("eval", data.eval), ("test", data.test)):
        if name:
            wanted.append((name, split, None))
    names = [name for name, _, _ in wanted]
    read = _reader(columns, listener, say)
    if data.streaming:
        rows_of_sources = [first_rows(name, read, most=MOST_STREAMED, say=say, **columns) for name in names]
    else:
        rows_of_sources = load_sources(names, read, say)
    listed = []
    for (name, split, language), rows in zip(wanted, rows_of_sources, strict=True):
        code = language and language_code(language)
        shown = f"{split}: {name}"
        if data.streaming and len(rows) == MOST_STREAMED:
            shown += f" (the first {MOST_STREAMED} clips)"
        listed.append(SourceRows(shown, [fill_in_language(row, code) for row in rows], split))
    return listed


def _check_languages(
    preparation: Preparation, sources: Sequence[SourceRows], borrowed: str | None, language: str | None, task: str
) -> None:
    """Refuse rows in a language that the model has no token for.

    Args:
        preparation: The model's preparation.
        sources: The sources.
        borrowed: Code of the language token that all rows get; None if there is none.
        language: Code for rows that name none.
        task: "transcribe" or "translate".
    """
    clips = []
    for source in sources:
        for row in source.rows:
            code = borrowed or row.language or language
            if code is not None:
                clips.append((code, row.place or row.name))
    preparation.check_languages(clips, task)


def _listen_to_rows(
    listener: _Listener,
    rows: Sequence[Row],
    *,
    clean: Callable[[str], str],
    language: str | None,
    task: str,
    label: str,
    progress: bool,
) -> np.ndarray:
    """Compute the losses of each row's text, and of the texts around it, by `neighbour_losses`."""
    assert listener.located is not None and listener.preparation is not None, "a loaded model has both"
    dataset = label_rows(
        listener.model, listener.located, listener.preparation, rows, language=language, task=task, clean=clean
    )
    with bar(label, len(rows), progress) as update:
        return neighbour_losses(listener.model, dataset, progress=update)


def _load_clip(checked: CheckedData, clip: ReportedClip) -> np.ndarray | None:
    """Decode a clip of a report, as far as its player goes; None if it cannot be decoded."""
    source = next(source for source in checked.sources if source.name == clip.source)
    row = source.rows[clip.row]
    end_s = row.end_s
    if clip.duration_s is not None and clip.duration_s > LONGEST_SOUND_S:
        # Hours of sound may be more than memory holds.
        end_s = row.start_s + LONGEST_SOUND_S
    try:
        return load_audio(row.sound(), start_s=row.start_s, end_s=end_s)
    except AudioError:
        return None
