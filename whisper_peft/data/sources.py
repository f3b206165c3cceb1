"""SRC -> rows of (audio reference, text, language, start, end); nothing is decoded, no audio file is touched.

A source is an AudioFolder, an unpacked Common Voice release or a manifest, as `PATH` or `PATH:split+split`.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whisper_peft.errors import UserError

KINDS_OF_SRC = (
    "A source is a folder with metadata.csv or metadata.jsonl (AudioFolder; FOLDER:split for one of its splits), "
    "an unpacked Common Voice release (DIR:train, DIR:train+dev), or a manifest (.jsonl, .csv, .tsv)"
)
_LATER = "come in a later version"
_LATER_SUFFIXES = {
    ".parquet": "Parquet files",
    ".arrow": "Arrow files",
    ".gz": "packed releases",
    ".tgz": "packed releases",
    ".tar": "packed releases",
    ".zip": "packed releases",
    ".srt": "subtitles",
    ".vtt": "subtitles",
}
_SOUND_SUFFIXES = frozenset(
    [".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".mp4", ".webm", ".aac", ".wma", ".aiff", ".aif"]
)
_COLUMNS = {
    "audio": ("audio", "file_name", "file", "path", "audio_filepath", "audio_path", "wav", "filename"),
    "text": ("transcription", "text", "sentence", "transcript", "transcription_text", "normalized_text"),
    "language": ("language", "lang", "locale"),
    "start_s": ("start_s", "start", "offset"),
    "end_s": ("end_s", "end"),
    "no_speech": ("no_speech",),
    "speaker": ("speaker_id", "speaker", "client_id"),
}
_SPLIT_NAMES = (
    ("train", "training"),
    ("validation", "valid", "val", "dev"),
    ("test", "testing", "eval", "evaluation"),
)
_MAX_HELD_OUT = 500


@dataclass(frozen=True, slots=True)
class Row:
    """One clip as its source names it."""

    audio: str | bytes  # absolute path, or the contents of the file
    text: str
    language: str | None = None  # Whisper's code
    start_s: float = 0.0
    end_s: float | None = None
    no_speech: bool = False
    speaker: str | None = None
    place: str = ""  # "metadata.csv:12", where the row was read, for messages


def load_source(source: str, *, audio_column: str | None = None, text_column: str | None = None) -> list[Row]:
    """Read the rows of a source; an existing path always wins over the reading as PATH:split.

    Args:
        source: path of a folder or manifest, with `:split` or `:split+split` where the folder has splits.
        audio_column: column or key that names the sound file, if not one of the usual.
        text_column: column or key of the transcript, if not one of the usual.

    Raises:
        UserError: There is no such source, or it cannot be read; the message names the place and the remedy.
    """
    path, splits = _path_and_splits(source)
    if path.is_dir():
        tables = _tables_of_folder(path, splits)
    elif splits:
        raise UserError(f"{source}: {path} is a file, and only folders have splits; leave ':{'+'.join(splits)}' out.")
    else:
        tables = [_Table(path)]
    rows = [row for table in tables for row in _rows(table, audio_column, text_column)]
    if not rows:
        raise UserError(
            f"{source}: no rows in it, only {_listed(table.path.name for table in tables)} without any clip."
        )
    return rows


def fingerprint(rows: Iterable[Row]) -> str:
    """Compute the SHA-256 over (path, start_s, end_s, text) of the rows as read, in their order; no file is touched."""
    digest = hashlib.sha256()
    for row in rows:
        audio = row.audio if isinstance(row.audio, str) else hashlib.sha256(row.audio).hexdigest()
        fields = f"{audio}\0{row.start_s!r}\0{row.end_s!r}\0{len(row.text)}\0{row.text}\n"
        digest.update(fields.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def hold_out(rows: list[Row], *, seed: int) -> tuple[list[Row], list[Row]]:
    """Hold a seeded tenth of the rows out of training, at most 500.

    Where every row names its speaker, and there are two at least, no speaker is on both sides: the held-out part is
    whole speakers. Otherwise it is clips. A text is never on both sides either; in the rare set where all speakers say
    the same, only the speakers are kept apart. What can be on neither side is left out of both.

    Returns:
        (train, held out), each in the order of `rows`.

    Raises:
        UserError: The rows cannot be parted, because there is one only, or all say the same.
    """
    by_speaker = all(row.speaker for row in rows) and len({row.speaker for row in rows}) > 1
    groups: defaultdict[Any, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[row.speaker if by_speaker else (_spoken(row) or index)].append(index)
    if len(groups) < 2:
        raise UserError(
            f"data.train: {len(rows)} clip(s) with one text cannot be parted into training and evaluation; name --eval."
        )
    wanted = min(_MAX_HELD_OUT, max(1, round(len(rows) / 10)))
    chance = random.Random(seed)
    order = list(groups.values())
    chance.shuffle(order)
    held: list[list[int]] = []
    for group in order:
        if sum(map(len, held)) + len(group) <= wanted:
            held.append(group)
    left = sorted((group for group in order if group not in held), key=len)
    if 2 * sum(map(len, held)) < wanted and len(left) > 1:
        held.append(left[0])  # more than a tenth, but training cannot keep a part of a speaker anyway
    chosen = sorted(index for group in held for index in group)
    training = set(range(len(rows))).difference(chosen)
    if by_speaker:
        texts = {_spoken(rows[index]) for index in training} - {""}
        chosen = [index for index in chosen if _spoken(rows[index]) not in texts] or chosen
    chosen = sorted(chance.sample(chosen, min(_MAX_HELD_OUT, len(chosen))))
    return [rows[index] for index in sorted(training)], [rows[index] for index in chosen]


def _spoken(row: Row) -> str:
    return " ".join(row.text.split()).casefold()


# From SRC to the tables of rows in it --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    """One file of rows, and where its audio paths start from."""

    path: Path
    audio_folder: Path | None = None  # else the folder of the file
    only_under: str | None = None  # only rows whose audio path starts with this folder


def _path_and_splits(source: str) -> tuple[Path, list[str]]:
    path = Path(source).expanduser()
    if _exists(path):
        return path.absolute(), []
    name, colon, splits = source.rpartition(":")
    if colon and name and _exists(Path(name).expanduser()):
        chosen = [split.strip() for split in splits.split("+")]
        if not all(chosen):
            raise UserError(f"{source}: a split without a name; write {name}:train or {name}:train+dev.")
        return Path(name).expanduser().absolute(), list(dict.fromkeys(chosen))
    hub = re.fullmatch(r"(hf:)?[\w.-]+/[\w.-]+(:[^/]*)?", source)
    and_hub = f" Hub data sets (owner/name:config:split) {_LATER}." if hub else ""
    raise UserError(f"{source}: no such file or folder.{and_hub} {KINDS_OF_SRC}.")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False


def _tables_of_folder(folder: Path, splits: list[str]) -> list[_Table]:
    own = _metadata(folder)
    if own and not splits:
        return [_Table(own)]
    release = None if own else _common_voice_folder(folder)
    if release:
        return _common_voice_tables(release, splits)
    subfolders = _subfolders(folder)
    below = {child.name: table for child in subfolders if (table := _metadata(child))}
    if not own and not below:
        raise UserError(f"{folder}: {_no_metadata(folder)}")
    if not splits:
        if len(below) > 1:
            raise UserError(f"{folder}: name one of its splits: {_listed(f'{folder}:{name}' for name in below)}.")
        return [_Table(table) for table in below.values()]
    tables = []
    for split in splits:
        name = _find_split(split, below)
        inside = _find_split(split, (child.name for child in subfolders))
        if name:
            tables.append(_Table(below[name]))
        elif own and inside:
            tables.append(_Table(own, only_under=inside))
        else:
            found = _listed(below) if below else "none"
            raise UserError(f"{folder}: no split {split!r} in it; its splits: {found}.")
    return tables


def _metadata(folder: Path) -> Path | None:
    found = [folder / name for name in ("metadata.csv", "metadata.jsonl", "metadata.tsv") if (folder / name).is_file()]
    if len(found) > 1:
        raise UserError(
            f"{folder}: {_listed(path.name for path in found)}; leave one of them, or name it as the source."
        )
    return found[0] if found else None


def _no_metadata(folder: Path) -> str:
    names = sorted(entry.name for entry in os.scandir(folder))
    if any(name.endswith(".parquet") for name in names):
        return f"Parquet folders {_LATER}. {KINDS_OF_SRC}."
    manifests = [name for name in names if Path(name).suffix in TABLE_SUFFIXES]
    hint = f"; did you mean {_listed(f'{folder / name}' for name in manifests[:3])}?" if manifests else "."
    return f"no metadata.csv or metadata.jsonl in it, nor in its subfolders{hint} {KINDS_OF_SRC}."


def _subfolders(folder: Path) -> list[Path]:
    return sorted(Path(entry) for entry in os.scandir(folder) if entry.is_dir())


def _find_split(wanted: str, names: Iterable[str]) -> str | None:
    """Find a split by its own name, else by a synonym: dev, valid, val and validation are one."""
    by_lower = {name.lower(): name for name in names}
    synonyms = next((group for group in _SPLIT_NAMES if wanted.lower() in group), ())
    return next((by_lower[name] for name in (wanted.lower(), *synonyms) if name in by_lower), None)


def _common_voice_folder(folder: Path) -> Path | None:
    """The language folder of an unpacked release: this one, or the only such one below it; None if there is none."""
    if _common_voice_splits(folder):
        return folder
    languages = [child for child in _subfolders(folder) if _common_voice_splits(child)]
    if len(languages) > 1:
        raise UserError(f"{folder}: several languages; name one: {_listed(f'{child}:train' for child in languages)}.")
    return languages[0] if languages else None


def _common_voice_splits(folder: Path) -> dict[str, Path]:
    """The split tables of a Common Voice language folder, by name; its other tables have other columns."""
    splits = {}
    for path in sorted(folder.glob("*.tsv")):
        with open(path, "rb") as file:
            columns = file.readline().lstrip(b"\xef\xbb\xbf").rstrip(b"\r\n").split(b"\t")
        if {b"client_id", b"path", b"sentence"} <= set(columns):
            splits[path.stem] = path
    return splits


def _common_voice_tables(folder: Path, splits: list[str]) -> list[_Table]:
    found = _common_voice_splits(folder)
    sizes = {name: _count_rows(path) for name, path in found.items()}
    has = ", ".join(f"{name} ({size:,} rows)" for name, size in sizes.items())
    if not splits:
        raise UserError(f"{folder}: name a split of this release, as in {folder}:train; it has {has}.")
    names = []
    for split in splits:
        name = _find_split(split, found)
        if name is None or not sizes[name]:
            what = "is empty" if name else "is not there"
            raise UserError(f"{folder}: split {split!r} {what}; this release has {has}.")
        names.append(name)
    return [_Table(found[name], audio_folder=folder / "clips") for name in dict.fromkeys(names)]


def _count_rows(path: Path) -> int:
    with open(path, "rb") as file:
        return max(0, sum(1 for line in file if line.strip()) - 1)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


# From tables to rows -------------------------------------------------------------------------------------------------


def _check_kind(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix in TABLE_SUFFIXES:
        return
    if suffix in _LATER_SUFFIXES:
        raise UserError(f"{path}: {_LATER_SUFFIXES[suffix]} {_LATER}. {KINDS_OF_SRC}.")
    if suffix in _SOUND_SUFFIXES:
        raise UserError(f"{path}: a sound file alone has no transcript. {KINDS_OF_SRC}.")
    raise UserError(f"{path}: no source. {KINDS_OF_SRC}.")


def _rows(table: _Table, audio_column: str | None, text_column: str | None) -> Iterator[Row]:
    """Read the rows of a table; which column means what is found once, and again where the keys of a .jsonl change."""
    _check_kind(table.path)
    audio_folder = str(table.audio_folder or table.path.parent)
    named = {"audio": audio_column, "text": text_column}
    names: tuple[str, ...] | None = None
    meanings: dict[str, list[int]] = {}
    languages: dict[Any, str | None] = {"": None, None: None}
    for number, row_names, values in read_table(table.path):
        place = f"{table.path.name}:{number}"
        at = f"{table.path}:{number}"
        if row_names != names:
            names = row_names
            meanings = _meanings(at, names, named)
        audio = _pick(at, "audio", meanings, names, values)
        if not isinstance(audio, str):
            raise UserError(f"{at}: no name of a sound file, but {audio!r}.")
        if table.only_under and audio.replace("\\", "/").removeprefix("./").split("/")[0] != table.only_under:
            continue
        no_speech = _flag(at, _pick(at, "no_speech", meanings, names, values)) if "no_speech" in meanings else False
        if "text" not in meanings and not no_speech:
            raise UserError(f"{at}: {_no_column('text', names)}")
        text = _pick(at, "text", meanings, names, values)
        if isinstance(text, (bool, list, dict)):
            raise UserError(f"{at}: the text is no string, but {text!r}.")
        language = _pick(at, "language", meanings, names, values)
        if language not in languages:
            languages[language] = _language(at, language)
        start_s = _seconds(at, _pick(at, "start_s", meanings, names, values)) or 0.0
        end_s = _seconds(at, _pick(at, "end_s", meanings, names, values))
        if "duration" in meanings and end_s is None:
            duration = _seconds(at, _pick(at, "duration", meanings, names, values))
            end_s = None if duration is None else start_s + duration
        speaker = _pick(at, "speaker", meanings, names, values)
        yield Row(
            audio=os.path.join(audio_folder, audio),
            text="" if text is None else str(text),
            language=languages[language],
            start_s=start_s,
            end_s=end_s,
            no_speech=no_speech,
            speaker=None if speaker is None else str(speaker),
            place=place,
        )


def _meanings(at: str, names: tuple[str, ...], named: dict[str, str | None]) -> dict[str, list[int]]:
    """Find the columns for each meaning, the most telling name first."""
    lower = [name.strip().lower() for name in names]
    meanings = {}
    for meaning, usual in _COLUMNS.items():
        column = named.get(meaning)
        if column is not None and column not in names:
            raise UserError(f"{at}: no column {column!r} (data.{meaning}_column); there are {_listed(names)}.")
        wanted = [column] if column is not None else usual
        among = names if column is not None else lower
        found = [index for name in wanted for index, other in enumerate(among) if other == name]
        if found:
            meanings[meaning] = found
    if "audio" not in meanings:
        raise UserError(f"{at}: {_no_column('audio', names)}")
    # NeMo's duration is the length of a piece; elsewhere it only repeats how long the file is.
    if "duration" in lower and ("audio_filepath" in lower or "offset" in lower):
        meanings["duration"] = [lower.index("duration")]
    return meanings


def _no_column(meaning: str, names: tuple[str, ...]) -> str:
    return (
        f"no column for the {meaning}, which is usually called {' or '.join(_COLUMNS[meaning])}; there are "
        f"{_listed(names)[:200]}. The first line names the columns; another name goes into data.{meaning}_column."
    )


def _pick(at: str, meaning: str, meanings: dict[str, list[int]], names: tuple[str, ...], values: list[Any]) -> Any:
    """The value that has this meaning, None if there is none or it is empty; two that differ are refused."""
    picked, source = None, ""
    for index in meanings.get(meaning, ()):
        value = values[index].strip() if isinstance(values[index], str) else values[index]
        if value is None or value == "":
            continue
        if picked is None:
            picked, source = value, names[index]
        elif value != picked:
            remedy = f"data.{meaning}_column" if meaning in ("audio", "text") else "one column only"
            raise UserError(
                f"{at}: columns {source!r} and {names[index]!r} could both be the {meaning}, and differ; say which: "
                f"{remedy}."
            )
    return picked


def _language(at: str, name: Any) -> str | None:
    """Whisper's code; None for the code of a language that Whisper does not know: the recipe's is taken then."""
    try:
        return language_code(str(name))
    except UserError as error:
        if re.fullmatch(r"[a-z]{2,3}([-_]\w+)*", str(name)):
            return None
        raise UserError(f"{at}: {error}") from None


def _seconds(at: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if isinstance(value, bool) or not math.isfinite(seconds):
        raise UserError(f"{at}: {value!r} is no time in seconds.")
    return seconds


def _flag(at: str, value: Any) -> bool:
    word = str(value).lower()
    if value is None or word in ("false", "0", "no"):
        return False
    if word in ("true", "1", "yes"):
        return True
    raise UserError(f"{at}: no_speech is {value!r}; write true or false.")
