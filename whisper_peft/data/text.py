"""How transcripts are cleaned, split and joined, and Whisper's code for a language by any of its names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from typing import Literal

from whisper_peft.data.languages import (
    CODES_BY_ISO_639,
    ENGLISH_NAMES,
    LANGUAGE_ALIASES,
    LANGUAGES,
    NATIVE_NAMES,
    NOT_GIVEN,
    TWO_LANGUAGES,
)
from whisper_peft.errors import UserError
from whisper_peft.files import short_repr

# The model recognises the language itself. Only commands that run a model on the clips take it.
AUTO_LANGUAGE = "auto"
# Languages that put no spaces between words.
_WITHOUT_SPACES = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km", "bo"})
# A language of two or three letters, then script, country and variants, such as zh_Hans_CN or en_US.UTF-8.
_LOCALE = re.compile(r"([a-z]{2,3})[-_]([a-z]{4}|[a-z]{2}|[0-9]{3})(?:[-_][a-z0-9]+)*(?:[.@][\w.@-]+)?")
# Scripts whose words are written without spaces between them, by the blocks of Unicode.
_SPACELESS_BLOCKS = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u0f00-\u0fff"  # Tibetan
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Myanmar
    "\u1780-\u17ff\u19e0-\u19ff"  # Khmer
    "\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf"  # Tai Le, New Tai Lue, Tai Tham, Tai Viet
    "\u1b00-\u1b7f\ua980-\ua9df"  # Balinese, Javanese
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Chinese
    "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Japanese kana
    "\u3100-\u312f\u31a0-\u31bf"  # Bopomofo
    "\U0001b000-\U0001b16f\U00020000-\U0003ffff"  # further kana and Chinese characters
)
_SPACELESS = re.compile(f"[{_SPACELESS_BLOCKS}]")
_SPACE_BESIDE_SPACELESS = re.compile(f"(?<=[{_SPACELESS_BLOCKS}])\\s+|\\s+(?=[{_SPACELESS_BLOCKS}])")
# A word, or a character of a script without spaces between words.
_WORD_OR_CHARACTER = re.compile(f"[{_SPACELESS_BLOCKS}]|[^\\s{_SPACELESS_BLOCKS}]+")
_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7ff]")
# Whisper writes no space before a segment in these languages, and in these scripts, which Unicode's names of their
# characters begin with.
_LANGUAGES_WITHOUT_FIRST_SPACE = frozenset({"zh", "yue", "ja", "th"})
_SCRIPTS_WITHOUT_FIRST_SPACE = (
    "CJK ",
    "IDEOGRAPHIC ",
    "HIRAGANA ",
    "KATAKANA",
    "HALFWIDTH KATAKANA",
    "HENTAIGANA ",
    "BOPOMOFO ",
    "THAI ",
)
_NORMAL_FORMS: tuple[Literal["NFC", "NFD", "NFKC", "NFKD"], ...] = ("NFC", "NFD", "NFKC", "NFKD")
# These belong to the spelling of a word if they stand inside it: apostrophes, the Catalan middle dot, Hebrew geresh and
# gershayim, the Tibetan tsheg.
_SPELLS_WITHIN_WORDS = frozenset("'\u2018\u2019\uff07\u00b7\u05f3\u05f4\u0f0b")
# Unicode does not class these as punctuation, but people type them as such: "|" stands for the danda.
_SYMBOLS_AS_PUNCTUATION = frozenset("|`^~<>")


def language_code(name: str) -> str:
    """Find Whisper's code for a language.

    Args:
        name: A code of ISO 639 in two or three letters, a locale (hi-IN, zh_CN), the language's English name, or the
            name that its speakers give it. Case and accents do not matter.

    Returns:
        The code of Whisper's language token.

    Raises:
        UserError: Whisper has no token for it.

    Example:
        >>> [language_code(name) for name in ("hindi", "hin", "hi-IN", "हिन्दी")]
        ['hi', 'hi', 'hi', 'hi']
    """
    code = _find_code(name)
    if code:
        return code
    wanted = _plain_name(name)
    if wanted == AUTO_LANGUAGE:
        raise UserError(
            "language 'auto': only transcribe, evaluate, merge and demo listen for the language. A text to learn from "
            "or to check needs it named, because its language token is part of what is learnt: --language NAME."
        )
    # Codes of two or three letters resemble too many words.
    long_names = [known for known in _codes_by_name() if len(known) > 3]
    close = get_close_matches(wanted, long_names, n=3, cutoff=0.7)
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    raise UserError(
        f"language {short_repr(name)}: not one that Whisper knows{hint}. For a language it does not know, borrow the "
        "token of a related one: --language-token LANG, for example --language-token hindi."
    )


def _find_code(name: str) -> str | None:
    """Find Whisper's code for a language; None if Whisper does not know it, or the name is ambiguous."""
    known = _codes_by_name()
    wanted = _plain_name(name)
    if wanted in known:
        return known[wanted]
    locale = _LOCALE.fullmatch(name.strip().lower())
    if locale:
        # "hi-en" means Hindi and English in turn, not the Hindi of a country.
        if locale[2] in TWO_LANGUAGES:
            return None
        return known.get(locale[1])
    # "Spanish; Castilian" and "Chinese (China)" are taken. "Pyu (Myanmar)" is not: it begins with another language.
    parts = [_plain_name(part) for part in re.split(r"[;()]", name)]
    if len(parts[0]) <= 3 or parts[0] not in known:
        return None
    codes = {known[part] for part in parts if part in known}
    # "Chinese (Cantonese)" names two languages: nobody can tell which one is meant.
    return codes.pop() if len(codes) == 1 else None


def names_no_language(value: str) -> bool:
    """Tell whether a cell of a language column stands for "not given": empty, und, unknown, None, nan and the like."""
    return value.strip().lower() in NOT_GIVEN


@cache
def _codes_by_name() -> dict[str, str]:
    """Return Whisper's codes by every plain name of their languages."""
    codes: dict[str, str] = {}
    for table in (NATIVE_NAMES, ENGLISH_NAMES, CODES_BY_ISO_639, LANGUAGE_ALIASES):
        codes |= {_plain_name(name): code for name, code in table.items()}
    # Whisper's own names and codes come last: they win where two tables disagree.
    codes |= {english: code for code, english in LANGUAGES.items()}
    return codes | {code: code for code in LANGUAGES}


def _plain_name(name: str) -> str:
    """Return a name in small letters and single spaces, without accents. Vowel signs and other marks stay."""
    letters = unicodedata.normalize("NFKD", name.casefold())
    letters = "".join(letter for letter in letters if not "\u0300" <= letter <= "\u036f")
    return " ".join(re.sub(r"[-_,/]", " ", unicodedata.normalize("NFC", letters)).split())


def has_spaces(language_code: str) -> bool:
    """Tell whether a language puts spaces between words. Others are scored by their character error rate."""
    return language_code not in _WITHOUT_SPACES


def without_word_spaces(text: str) -> str:
    """Remove the spaces that stand beside letters of a script without spaces between words.

    Such a space is a habit of the annotator or the model, and nobody hears it. Between words of other scripts the
    spaces stay.

    Example:
        >>> without_word_spaces("我 用 Visual Studio 写 代码")
        '我用Visual Studio写代码'
    """
    return _SPACE_BESIDE_SPACELESS.sub("", text)


def split_words(text: str) -> list[str]:
    """Split a text into words. In a script without spaces between words, each character counts as one word.

    Example:
        >>> split_words("我用Visual Studio")
        ['我', '用', 'Visual', 'Studio']
    """
    return _WORD_OR_CHARACTER.findall(text)


def drop_first_words(text: str, n_words: int) -> str:
    """Return a text without its first words, counted as `split_words` counts them.

    Example:
        >>> drop_first_words("大家好吗", 2)
        '好吗'
    """
    starts = [match.start() for match in _WORD_OR_CHARACTER.finditer(text)]
    if n_words >= len(starts):
        return ""
    return text[starts[n_words] :]


def is_spaceless(text: str) -> bool:
    """Tell whether a text is written in a script without spaces between words.

    Chinese characters in a Korean text do not count: Korean puts spaces between its words.

    Example:
        >>> [is_spaceless(text) for text in ("楼市成交", "Word", "漢字를 쓴다")]
        [True, False, False]
    """
    return bool(_SPACELESS.search(text)) and not _HANGUL.search(text)


def is_mostly_spaceless(texts: Iterable[str]) -> bool:
    """Tell whether most letters of some texts belong to a script without spaces between words."""
    n_letters = 0
    n_spaceless = 0
    for text in texts:
        n_letters += sum(map(_is_letter, text))
        if is_spaceless(text):
            n_spaceless += sum(map(_is_letter, _SPACELESS.findall(text)))
    return 2 * n_spaceless > n_letters


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] == "L"


def begins_with_space(text: str, language: str | None) -> bool:
    """Tell whether Whisper itself puts a space before a segment with this text.

    Whisper does so in every language but Chinese, Cantonese, Japanese and Thai, as was measured (docs/data.md). It does
    so also in Lao, Khmer, Burmese and Tibetan, where a space stands between sentences. In the four languages without
    it, a text that begins in another script gets its space: it is a name, or a language that borrows their token.

    Args:
        text: The text of the segment.
        language: Whisper's code for the language. None: the script of the first letter decides.

    Example:
        >>> begins_with_space("Hello", "zh"), begins_with_space("你好", "zh"), begins_with_space("2024年", "zh")
        (True, False, False)
    """
    if language is not None and language not in _LANGUAGES_WITHOUT_FIRST_SPACE:
        return True
    for character in text:
        if _is_letter(character):
            return not unicodedata.name(character, "").startswith(_SCRIPTS_WITHOUT_FIRST_SPACE)
    return language is None


def join_segments(texts: Iterable[str]) -> str:
    """Join the texts of segments to one text, with spaces where Whisper itself writes them.

    Example:
        >>> join_segments(["Good morning.", " How are you?"]), join_segments(["你好。", "早上好。"])
        ('Good morning. How are you?', '你好。早上好。')
    """
    text = ""
    for segment in texts:
        words = segment.strip()
        if text and words and begins_with_space(words, None):
            text += " "
        text += words
    return text


def clean_text(
    text: str, *, normal_form: str | None = "NFC", lowercase: bool = False, remove_punctuation: bool = False
) -> str:
    """Clean a transcript: characters in one normal form, single spaces between words, and no space at the ends.

    Args:
        text: The transcript as the data set has it.
        normal_form: Unicode's normal form: NFC, NFD, NFKC or NFKD. None: the characters stay as they are.
        lowercase: If True, capital letters become small ones.
        remove_punctuation: If True, punctuation becomes a space. Vowel signs and all other marks stay, and so do the
            joiners (ZWJ, ZWNJ) and punctuation that belongs to the spelling of a word, such as the apostrophe in
            "don't".

    Returns:
        The clean text. It may be empty.

    Raises:
        UserError: The normal form is not one of Unicode's.

    Example:
        >>> clean_text(" Don't   go! ")
        "Don't go!"
        >>> clean_text("पानी लाओ। Don't go!", lowercase=True, remove_punctuation=True)
        "पानी लाओ don't go"
    """
    if lowercase:
        text = text.lower()
    if normal_form is not None:
        if normal_form not in _NORMAL_FORMS:
            raise UserError(
                f"data.text.normal_form: {normal_form!r} is unknown; write one of {', '.join(_NORMAL_FORMS)} or null."
            )
        text = unicodedata.normalize(normal_form, text)
    if remove_punctuation:
        text = _replace_punctuation(text)
    return " ".join(text.split())


def _replace_punctuation(text: str) -> str:
    """Replace punctuation by spaces, except where it belongs to the spelling of a word."""
    characters = []
    for index, character in enumerate(text):
        if _is_punctuation(character) and not _is_spelling(text, index):
            characters.append(" ")
        else:
            characters.append(character)
    return "".join(characters)


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character)[0] == "P" or character in _SYMBOLS_AS_PUNCTUATION


def _is_spelling(text: str, index: int) -> bool:
    """Tell whether the character at an index can belong to the spelling of a word, and stands inside one."""
    if text[index] not in _SPELLS_WITHIN_WORDS or not 0 < index < len(text) - 1:
        return False
    return all(
        unicodedata.category(neighbour)[0] in "LMN" or neighbour in "\u200c\u200d"
        for neighbour in (text[index - 1], text[index + 1])
    )
