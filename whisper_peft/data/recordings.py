"""Find the caption file of a recording, by the names that downloaders and transcription programs give."""

from __future__ import annotations

import logging
import os
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from whisper_peft.data.text import language_code
from whisper_peft.errors import UserError
from whisper_peft.files import printable

SOUND_SUFFIXES = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".mp4", ".mkv", ".mov", ".webm", ".aac", ".wma", ".aiff",
    ".aif",
)  # fmt: skip
SUBTITLE_SUFFIXES = (".srt", ".vtt", ".json")
# Words that media servers and download programs put behind the language: subtitles for the deaf and the like.
_KINDS_OF_CAPTIONS = frozenset({"asr", "auto", "cc", "default", "hi", "orig", "sdh"})
_LANGUAGE_TAG = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{1,12}){0,4}")
# yt-dlp names the parts of a download "talk.f140.m4a", but its captions "talk.en.vtt".
_FORMAT_TAG = re.compile(r"\.f\d{1,4}(-\w{1,8})?$")
_MOST_LISTED = 5


@dataclass(frozen=True)
class Recording:
    """A sound or video file, and the file of its segments."""

    audio: Path
    segments: Path
    language: str | None = None  # Whisper's code, where the name of the file of segments states it


@dataclass(frozen=True)
class _Captions:
    """A caption file that belongs to a recording."""

    name: str
    tags: tuple[str, ...] = ()  # what stands between the recording's name and the suffix: ("en-orig",)

    @property
    def spoken(self) -> str:
        """What tells its language from other files': a code, or the tag where Whisper has no code; '' without any."""
        for tag in self.tags:
            # "hi" behind a language means captions for the hearing impaired; alone it is Hindi.
            if tag.lower() not in _KINDS_OF_CAPTIONS or tag.lower() == "hi":
                return _code(tag) or tag.lower()
        return ""

    @property
    def language(self) -> str | None:
        """Whisper's code for the language in the name, if there is one."""
        return _code(self.spoken)

    @property
    def rank(self) -> tuple[int, int, str]:
        """Its place among files of one language: talk.en before talk.en-orig, .srt before .vtt before .json."""
        suffix = os.path.splitext(self.name)[1].lower()
        return len(".".join(self.tags)), SUBTITLE_SUFFIXES.index(suffix), self.name


def recording_of(path: Path) -> Recording | None:
    """Find what a recording or a caption file belongs together with.

    Args:
        path: A sound file or a caption file.

    Returns:
        Both; None if there is no other beside it.

    Raises:
        UserError: The recording has captions in several languages.
    """
    captions_of = _captions_by_sound(path.parent)
    if path.suffix.lower() in SOUND_SUFFIXES:
        captions = captions_of.get(path.name)
        found = _chosen(path, captions) if captions else None
    else:
        found = None
        for sound in sorted(captions_of, key=_by_suffix, reverse=True):
            for captions in captions_of[sound]:
                if captions.name == path.name:
                    found = Recording(path.with_name(sound), path, captions.language)
    if found is not None:
        _tell_languages([found])
    return found


def recordings_in(folder: Path, wanted: str | None = None) -> list[Recording]:
    """Find all recordings of a folder that have captions beside them.

    Of two sound files with the same captions, as talk.mp4 and talk.wav, one is taken.

    Args:
        folder: The folder; those below it are not looked into.
        wanted: Language of the captions, where there are several.

    Raises:
        UserError: A recording has captions in several languages, and none of them was named.
    """
    captions_of = _captions_by_sound(folder)
    spoken = wanted and (_code(wanted) or wanted.lower())
    found: dict[Path, Recording] = {}
    without = []
    for sound in sorted(captions_of, key=_by_suffix):
        captions = captions_of[sound]
        if spoken is not None:
            captions = [one for one in captions if one.spoken == spoken]
        if captions:
            recording = _chosen(folder / sound, captions, folder)
            found.setdefault(recording.segments, recording)
        else:
            without.append(sound)
    recordings = sorted(found.values(), key=lambda recording: recording.audio)
    if recordings and without:
        logging.getLogger(__name__).warning(
            "%s: passed over, as no captions are beside: %s: %s.",
            printable(folder),
            _counted(len(without)),
            _shown(without),
        )
    _tell_languages(recordings)
    return recordings


def _captions_by_sound(folder: Path) -> dict[str, list[_Captions]]:
    """Give each sound file of a folder its caption files."""
    names = sorted(entry.name for entry in os.scandir(folder))
    found: dict[str, list[_Captions]] = {}
    sounds: dict[str, list[str]] = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in SOUND_SUFFIXES:
            found[name] = []
            for key in {name, stem, _FORMAT_TAG.sub("", stem)}:
                sounds.setdefault(_normal(key), []).append(name)
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in SUBTITLE_SUFFIXES:
            continue
        for owner, tags in _possible_owners(stem):
            if _normal(owner) in sounds:
                for sound in sounds[_normal(owner)]:
                    found[sound].append(_Captions(name, tags))
                break
    return found


def _normal(name: str) -> str:
    """Bring a name into one spelling: file systems of Apple decompose letters."""
    return unicodedata.normalize("NFC", name)


def _possible_owners(stem: str) -> list[tuple[str, tuple[str, ...]]]:
    """List what may be the recording's name in the name of a caption file, the longest first.

    Example:
        >>> _possible_owners("talk.en.sdh")
        [('talk.en.sdh', ()), ('talk.en', ('sdh',)), ('talk', ('en', 'sdh'))]
    """
    owners: list[tuple[str, tuple[str, ...]]] = [(stem, ())]
    tags: tuple[str, ...] = ()
    for _ in range(3):
        stem, dot, tag = stem.rpartition(".")
        if not dot or not _is_tag(tag):
            break
        tags = (tag, *tags)
        owners.append((stem, tags))
    return owners


def _is_tag(word: str) -> bool:
    is_short = word.lower() in _KINDS_OF_CAPTIONS or _LANGUAGE_TAG.fullmatch(word)
    return bool(is_short) or _code(word) is not None  # "hindi"


@lru_cache
def _code(tag: str) -> str | None:
    """Find Whisper's code for a language tag, if it knows the language."""
    try:
        return language_code(tag)
    except UserError:
        return None


def _chosen(sound: Path, captions: Sequence[_Captions], folder: Path | None = None) -> Recording:
    """Choose the caption file of a recording: the one without a language in its name, or of its only language."""
    plain = [one for one in captions if not one.spoken]
    candidates = plain or list(captions)
    by_language = sorted({one.spoken for one in candidates})
    if len(by_language) > 1:
        if folder is None:
            best = [min((one for one in candidates if one.spoken == spoken), key=lambda one: one.rank)
                    for spoken in by_language]  # fmt: skip
            choices = [str(sound.with_name(one.name)) for one in best]
        else:
            choices = [f"{folder}:{spoken}" for spoken in by_language]
        raise UserError(
            f"{sound}: captions in several languages beside it; name those in the language that is spoken, as the "
            f"source: {' or '.join(shlex.quote(choice) for choice in choices)}."
        )
    best = min(candidates, key=lambda one: one.rank)
    return Recording(sound, sound.with_name(best.name), best.language)


def _by_suffix(sound: str) -> tuple[int, str]:
    return SOUND_SUFFIXES.index(os.path.splitext(sound)[1].lower()), sound


def _tell_languages(recordings: list[Recording]) -> None:
    """Tell which languages the names of caption files gave."""
    named = [one for one in recordings if one.language is not None]
    if not named:
        return
    counts = Counter(one.language for one in named)
    shown = ", ".join(f"{language} ({_counted(count)})" for language, count in counts.most_common(_MOST_LISTED))
    place = named[0].segments if len(named) == 1 else named[0].segments.parent
    logging.getLogger(__name__).warning(
        "%s: the name of a caption file says which language is spoken: %s.", printable(place), shown
    )


def _counted(count: int) -> str:
    return f"{count:,} recording{'s' if count > 1 else ''}"


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return printable(", ".join(names[:_MOST_LISTED]) + more)
