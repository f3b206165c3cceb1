"""Find the caption file of a recording, by the names that downloaders and transcription programs give."""

from __future__ import annotations

import logging
import os
import re
import shlex
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from whisper_peft.data.text import language_code
from whisper_peft.errors import UserError
from whisper_peft.files import printable

# Of two sound files with the same captions, the one whose suffix comes first is taken.
SOUND_SUFFIXES = (
    ".wav",
    ".flac",
    ".ogg",
    ".oga",
    ".opus",
    ".mp3",
    ".m4a",
    ".mp4",
    ".mkv",
    ".mov",
    ".webm",
    ".aac",
    ".wma",
    ".aiff",
    ".aif",
)
# Of two caption files of one language, the one whose suffix comes first is taken.
SUBTITLE_SUFFIXES = (".srt", ".vtt", ".json")
# Media servers and download programs put these words behind the language: subtitles for the deaf and the like.
_KINDS_OF_CAPTIONS = frozenset({"asr", "auto", "cc", "default", "hi", "orig", "sdh"})
_LANGUAGE_TAG = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{1,12}){0,4}")
# yt-dlp names the parts of a download "talk.f140.m4a", but its captions "talk.en.vtt".
_FORMAT_TAG = re.compile(r"\.f\d{1,4}(-\w{1,8})?$")
# The largest number of tags between the name of a recording and the suffix.
_MOST_TAGS = 3
# The largest number of names that a message lists.
_MOST_LISTED_RECORDINGS = 5


@dataclass(frozen=True)
class Recording:
    """A sound or video file, and the file of its segments."""

    audio: Path
    segments: Path
    # Whisper's code, if the name of the file of segments states it.
    language: str | None = None


@dataclass(frozen=True)
class _Captions:
    """A caption file that belongs to a recording."""

    name: str
    # The words between the recording's name and the suffix, such as ("en-orig",).
    tags: tuple[str, ...] = ()

    @property
    def spoken(self) -> str:
        """The language in the name: Whisper's code, or the tag if Whisper has no code; "" if there is none."""
        for tag in self.tags:
            # "hi" behind a language means captions for the hearing impaired; alone it is Hindi.
            if tag.lower() not in _KINDS_OF_CAPTIONS or tag.lower() == "hi":
                return _find_language_code(tag) or tag.lower()
        return ""

    @property
    def language(self) -> str | None:
        """Whisper's code for the language in the name, if there is one."""
        return _find_language_code(self.spoken)

    @property
    def rank(self) -> tuple[int, int, str]:
        """Its place among files of one language: talk.en before talk.en-orig, .srt before .vtt before .json."""
        suffix = os.path.splitext(self.name)[1].lower()
        return len(".".join(self.tags)), SUBTITLE_SUFFIXES.index(suffix), self.name


def find_captioned_recording(path: Path) -> Recording | None:
    """Find the recording to which a sound file or a caption file belongs.

    Args:
        path: The sound file or the caption file.

    Returns:
        The recording with its captions; None if the other file is not beside this one.

    Raises:
        UserError: The recording has captions in several languages.
    """
    captions_by_sound = _find_captions(path.parent)
    recording = None
    if path.suffix.lower() in SOUND_SUFFIXES:
        captions = captions_by_sound.get(path.name)
        if captions:
            recording = _choose_captions(path, captions)
    else:
        recording = _find_owner(path, captions_by_sound)
    if recording is not None:
        _tell_languages([recording])
    return recording


def _find_owner(path: Path, captions_by_sound: dict[str, list[_Captions]]) -> Recording | None:
    """Find the recording of a caption file; of several, the one whose suffix comes first."""
    for sound in sorted(captions_by_sound, key=_suffix_rank):
        for captions in captions_by_sound[sound]:
            if captions.name == path.name:
                return Recording(path.with_name(sound), path, captions.language)
    return None


def find_captioned_recordings(folder: Path, wanted: str | None = None) -> list[Recording]:
    """Find all recordings of a folder that have captions beside them.

    Of two sound files with the same captions, such as talk.mp4 and talk.wav, one is taken.

    Args:
        folder: The folder; folders in it are not looked into.
        wanted: Language of the captions, for recordings with captions in several languages.

    Raises:
        UserError: A recording has captions in several languages, and none of them was named.
    """
    captions_by_sound = _find_captions(folder)
    spoken = None
    if wanted is not None:
        spoken = _find_language_code(wanted) or wanted.lower()
    recording_of_captions: dict[Path, Recording] = {}
    without_captions = []
    for sound in sorted(captions_by_sound, key=_suffix_rank):
        captions = captions_by_sound[sound]
        if spoken is not None:
            captions = [file for file in captions if file.spoken == spoken]
        if captions:
            recording = _choose_captions(folder / sound, captions, folder)
            recording_of_captions.setdefault(recording.segments, recording)
        else:
            without_captions.append(sound)
    recordings = sorted(recording_of_captions.values(), key=lambda recording: recording.audio)
    if recordings and without_captions:
        logging.getLogger(__name__).warning(
            "%s: recordings without captions beside them are passed over, %s: %s.",
            printable(folder),
            _count_recordings(len(without_captions)),
            _list_first(without_captions),
        )
    _tell_languages(recordings)
    return recordings


def _find_captions(folder: Path) -> dict[str, list[_Captions]]:
    """Find the caption files of each sound file in a folder, by the name of the sound file."""
    names = sorted(entry.name for entry in os.scandir(folder))
    captions_by_sound: dict[str, list[_Captions]] = {}
    # Captions may have any of several names in common with a sound file.
    sounds_by_key: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in SOUND_SUFFIXES:
            captions_by_sound[name] = []
            for key in {name, stem, _FORMAT_TAG.sub("", stem)}:
                sounds_by_key[_compose(key)].append(name)
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in SUBTITLE_SUFFIXES:
            continue
        for owner, tags in _list_possible_owners(stem):
            if _compose(owner) in sounds_by_key:
                for sound in sounds_by_key[_compose(owner)]:
                    captions_by_sound[sound].append(_Captions(name, tags))
                break
    return captions_by_sound


def _compose(name: str) -> str:
    """Bring a name into one spelling: file systems of Apple decompose letters."""
    return unicodedata.normalize("NFC", name)


def _list_possible_owners(stem: str) -> list[tuple[str, tuple[str, ...]]]:
    """List what may be the recording's name in the name of a caption file, the longest name first.

    Returns:
        Each name, with the tags that stand behind it.

    Example:
        >>> _list_possible_owners("talk.en.sdh")
        [('talk.en.sdh', ()), ('talk.en', ('sdh',)), ('talk', ('en', 'sdh'))]
    """
    owners: list[tuple[str, tuple[str, ...]]] = [(stem, ())]
    tags: tuple[str, ...] = ()
    for _ in range(_MOST_TAGS):
        stem, dot, tag = stem.rpartition(".")
        if not dot or not _is_tag(tag):
            break
        tags = (tag, *tags)
        owners.append((stem, tags))
    return owners


def _is_tag(word: str) -> bool:
    """Tell whether a word in the name of a caption file is about its language or its kind.

    Example:
        >>> _is_tag("pt_BR"), _is_tag("hindi"), _is_tag("sdh"), _is_tag("part2")
        (True, True, True, False)
    """
    is_short = word.lower() in _KINDS_OF_CAPTIONS or _LANGUAGE_TAG.fullmatch(word)
    return bool(is_short) or _find_language_code(word) is not None


@lru_cache
def _find_language_code(tag: str) -> str | None:
    """Find Whisper's code for a language tag, if Whisper knows the language."""
    try:
        return language_code(tag)
    except UserError:
        return None


def _choose_captions(sound: Path, captions: Sequence[_Captions], folder: Path | None = None) -> Recording:
    """Choose the caption file of a recording: one without a language in its name, or one in its only language.

    Args:
        sound: The sound file.
        captions: Its caption files, at least one.
        folder: The folder that the user named as the source; None if the user named the recording.

    Raises:
        UserError: The captions are in several languages.
    """
    without_language = [file for file in captions if not file.spoken]
    candidates = without_language or list(captions)
    languages = sorted({file.spoken for file in candidates})
    if len(languages) > 1:
        choices = []
        for language in languages:
            if folder is None:
                best = min((file for file in candidates if file.spoken == language), key=lambda file: file.rank)
                choices.append(str(sound.with_name(best.name)))
            else:
                choices.append(f"{folder}:{language}")
        raise UserError(
            f"{sound}: captions in several languages beside it; name those in the language that is spoken, as the "
            f"source: {' or '.join(shlex.quote(choice) for choice in choices)}."
        )
    best = min(candidates, key=lambda file: file.rank)
    return Recording(sound, sound.with_name(best.name), best.language)


def _suffix_rank(sound: str) -> tuple[int, str]:
    """Return the place of a sound file among others: by its suffix, then by its name."""
    return SOUND_SUFFIXES.index(os.path.splitext(sound)[1].lower()), sound


def _tell_languages(recordings: list[Recording]) -> None:
    """Tell which languages the names of caption files gave."""
    with_language = [recording for recording in recordings if recording.language is not None]
    if not with_language:
        return
    counts = Counter(recording.language for recording in with_language)
    languages = ", ".join(
        f"{language} ({_count_recordings(count)})" for language, count in counts.most_common(_MOST_LISTED_RECORDINGS)
    )
    place = with_language[0].segments
    if len(with_language) > 1:
        place = place.parent
    logging.getLogger(__name__).warning(
        "%s: the name of a caption file says which language is spoken: %s.", printable(place), languages
    )


def _count_recordings(count: int) -> str:
    """Write a number of recordings.

    Example:
        >>> _count_recordings(1), _count_recordings(2000)
        ('1 recording', '2,000 recordings')
    """
    return f"{count:,} recording{'s' if count > 1 else ''}"


def _list_first(names: list[str]) -> str:
    """List the first names, and say how many more there are."""
    listed = ", ".join(names[:_MOST_LISTED_RECORDINGS])
    if len(names) > _MOST_LISTED_RECORDINGS:
        listed += f" and {len(names) - _MOST_LISTED_RECORDINGS} more"
    return printable(listed)
