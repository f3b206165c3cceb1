"""check(SRC...): look at the data before a GPU-hour is spent on it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from whisper_peft import runs
from whisper_peft.checking.checks import CheckedData, Limits, check_sources
from whisper_peft.checking.findings import SourceRows
from whisper_peft.checking.fix import write_mended
from whisper_peft.checking.neighbour_losses import neighbour_losses
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
from whisper_peft.recipe import Model, Recipe
from whisper_peft.recipe_files import read_recipe, shipped_recipes

MOST_STREAMED = 500  # clips that are looked at of a source that a recipe streams


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
    """Looks for what is wrong with a data set; changes nothing in it.

    Args:
        sources: any SRC, or several, each of which is a split.
        recipe: instead of sources: a Recipe, a path, or the name of a shipped one; its train, eval and test.
        language: name or code, for clips that name none.
        model: any MODEL, whose losses tell texts that belong elsewhere; without it, lengths have to.
        audio: whether to decode the clips; without, only headers and texts are looked at.
        html: a new file for the report as a page with players.
        fix: a new place for cleaned manifests: a .jsonl file for one source, else a folder.
        audio_column: where the columns have other than the usual names.
        text_column: likewise.
        prompt_column: the column of what was said before each clip; None: no column is.
        times: "use" or "ignore" the columns with start and end; None: ask where they do not fit the files.
        progress: show bars on stderr.

    Returns:
        Sources, findings (the worst first), and how many clips have an error, a warning or a note.

    Raises:
        UserError: nothing that could be checked, or an output that exists.
    """
    for path, remedy in ((html, "name another --html"), (fix, "name another --fix")):
        if path is not None:
            runs.refuse_existing(Path(path), remedy)
    named = [str(one) for one in ([sources] if isinstance(sources, (str, Path)) else sources)]
    if bool(named) == (recipe is not None):
        raise UserError("check: name sources, or a recipe, and not both.")
    settings = read_recipe(recipe, {}) if recipe is not None else Recipe()
    language = language or settings.model.language
    code = language_code(language) if language else None
    loaded, preparation, located = _model(model, settings.model if recipe is not None else Model())
    named_columns = {
        "audio_column": audio_column,
        "text_column": text_column,
        "prompt_column": prompt_column,
        "times": times,
    }
    remarks: list[str] = []
    columns = settings.data.columns | {name: value for name, value in named_columns.items() if value}
    columns["say"] = remarks.append
    read = partial(load_source, **columns, n_tokens=preparation.n_tokens if preparation else utf8_bytes)
    if named:
        listed = load_sources(named, read, remarks.append)
        parts = [SourceRows(name, rows, name) for name, rows in zip(named, listed, strict=True)]
    else:
        parts = _parts(settings, read, columns)
    clean = partial(clean_text, **dataclasses.asdict(settings.data.text))
    if preparation is not None:
        token = settings.model.language_token and language_code(settings.model.language_token)
        spoken = [(token or row.language or code, row.place or row.name) for part in parts for row in part.rows]
        preparation.check_languages([clip for clip in spoken if clip[0] is not None], settings.model.task)

    def losses(rows: Sequence[Row]) -> np.ndarray:
        speech = label_rows(loaded, located, preparation, rows, language=language, task=settings.model.task)
        speech.clean = clean
        with bar(f"{model} listens", len(rows), progress) as update:
            return neighbour_losses(loaded, speech, progress=update)

    limits = Limits(preparation.window_s if preparation else 30.0, preparation, clean)
    borrowed = bool(settings.model.language_token)
    checked = check_sources(
        parts,
        limits=limits,
        language=None if borrowed else code,
        task=settings.model.task,
        borrowed=borrowed,
        times=columns["times"],
        audio=audio,
        losses=None if loaded is None else losses,
        progress=progress,
    )
    fixed = None if fix is None else write_mended(checked, Path(fix))
    report = checked.report(
        model=None if model is None else str(model),
        tokens="counted" if preparation else "estimated",
        remarks=remarks,
        fixed=fixed,
    )
    if html is not None:
        from whisper_peft.checking.page import write_check_page

        write_check_page(report, Path(html), partial(_wave, checked))
    return report


def is_recipe(name: str) -> bool:
    """Whether an argument names a recipe and not a source."""
    path = Path(name)
    if path.exists():
        return path.suffix.lower() in (".yaml", ".yml") or runs.is_run(path)
    return path.suffix.lower() in (".yaml", ".yml") or name in {file.stem for file in shipped_recipes()}


def _parts(recipe: Recipe, read: Callable[[str], list[Row]], columns: dict[str, object]) -> list[SourceRows]:
    """The sources of a recipe; those that it streams by their first clips."""
    data = recipe.data
    if not data.train:
        raise UserError("data.train: not set; nothing to check.")
    listed = [(one.source, "train", one.language) for one in data.sources]
    listed += [(source, split, None) for split, source in (("eval", data.eval), ("test", data.test)) if source]
    if data.streaming:
        by_source = [first_rows(source, read, most=MOST_STREAMED, **columns) for source, *_ in listed]
    else:
        by_source = load_sources([source for source, *_ in listed], read, columns["say"])
    parts = []
    for (source, split, language), rows in zip(listed, by_source, strict=True):
        sampled = data.streaming and len(rows) == MOST_STREAMED
        code = language and language_code(language)
        name = f"{split}: {source}" + (f" (the first {MOST_STREAMED} clips)" if sampled else "")
        parts.append(SourceRows(name, [fill_in_language(row, code) for row in rows], split))
    return parts


def _model(model: str | Path | None, settings: Model) -> tuple[object | None, Preparation | None, Located | None]:
    """The model whose losses are asked for, and what counts tokens: that of the recipe, if it is here already."""
    if model is not None:
        return load_model(model)
    with contextlib.suppress(UserError):
        located = locate(settings.name)
        if not located.from_hub or _is_here(located.base):
            return None, load_preparation(located.base, revision=located.commit), located
    return None, None, None


def _is_here(hub_id: str) -> bool:
    """Whether a model's vocabulary has been downloaded before; to look at data nothing is."""
    from huggingface_hub import try_to_load_from_cache

    return all(isinstance(try_to_load_from_cache(hub_id, name), str) for name in ("vocab.json", "config.json"))


def _wave(checked: CheckedData, clip: ReportedClip) -> np.ndarray | None:
    """The sound of a clip of a report, as far as its player goes."""
    part = next(part for part in checked.parts if part.name == clip.source)
    row = part.rows[clip.row]
    end_s = row.end_s
    if clip.duration_s is not None and clip.duration_s > LONGEST_SOUND_S:  # hours may be more than memory holds
        end_s = row.start_s + LONGEST_SOUND_S
    try:
        return load_audio(row.sound(), start_s=row.start_s, end_s=end_s)
    except AudioError:
        return None
