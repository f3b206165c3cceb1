"""Transcripts made clean, and the languages that Whisper knows."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

from whisper_peft.errors import UserError

# In the order of Whisper's language tokens; the last one, Cantonese, is known from large-v3 on.
# fmt: off
LANGUAGES: dict[str, str] = {
    "en": "english", "zh": "chinese", "de": "german", "es": "spanish", "ru": "russian", "ko": "korean",
    "fr": "french", "ja": "japanese", "pt": "portuguese", "tr": "turkish", "pl": "polish", "ca": "catalan",
    "nl": "dutch", "ar": "arabic", "sv": "swedish", "it": "italian", "id": "indonesian", "hi": "hindi",
    "fi": "finnish", "vi": "vietnamese", "he": "hebrew", "uk": "ukrainian", "el": "greek", "ms": "malay",
    "cs": "czech", "ro": "romanian", "da": "danish", "hu": "hungarian", "ta": "tamil", "no": "norwegian",
    "th": "thai", "ur": "urdu", "hr": "croatian", "bg": "bulgarian", "lt": "lithuanian", "la": "latin",
    "mi": "maori", "ml": "malayalam", "cy": "welsh", "sk": "slovak", "te": "telugu", "fa": "persian",
    "lv": "latvian", "bn": "bengali", "sr": "serbian", "az": "azerbaijani", "sl": "slovenian", "kn": "kannada",
    "et": "estonian", "mk": "macedonian", "br": "breton", "eu": "basque", "is": "icelandic", "hy": "armenian",
    "ne": "nepali", "mn": "mongolian", "bs": "bosnian", "kk": "kazakh", "sq": "albanian", "sw": "swahili",
    "gl": "galician", "mr": "marathi", "pa": "punjabi", "si": "sinhala", "km": "khmer", "sn": "shona",
    "yo": "yoruba", "so": "somali", "af": "afrikaans", "oc": "occitan", "ka": "georgian", "be": "belarusian",
    "tg": "tajik", "sd": "sindhi", "gu": "gujarati", "am": "amharic", "yi": "yiddish", "lo": "lao", "uz": "uzbek",
    "fo": "faroese", "ht": "haitian creole", "ps": "pashto", "tk": "turkmen", "nn": "nynorsk", "mt": "maltese",
    "sa": "sanskrit", "lb": "luxembourgish", "my": "myanmar", "bo": "tibetan", "tl": "tagalog", "mg": "malagasy",
    "as": "assamese", "tt": "tatar", "haw": "hawaiian", "ln": "lingala", "ha": "hausa", "ba": "bashkir",
    "jw": "javanese", "su": "sundanese", "yue": "cantonese",
}

LANGUAGE_ALIASES: dict[str, str] = {
    "burmese": "my", "valencian": "ca", "flemish": "nl", "haitian": "ht", "letzeburgesch": "lb", "pushto": "ps",
    "panjabi": "pa", "moldavian": "ro", "moldovan": "ro", "sinhalese": "si", "castilian": "es", "mandarin": "zh",
    # Codes and names that data sets use and Whisper does not; Whisper's code for Javanese is not the one of ISO 639.
    "cmn": "zh", "farsi": "fa", "fil": "tl", "filipino": "tl", "iw": "he", "jv": "jw", "nb": "no", "bokmal": "no",
}
# fmt: on

_WITHOUT_SPACES = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km", "bo"})
# Where Whisper writes no space before a segment: the languages, and the scripts by the names of their characters.
_LANGUAGES_WITHOUT_FIRST_SPACE = frozenset({"zh", "yue", "ja", "th"})
_SCRIPTS_WITHOUT_FIRST_SPACE = (
    "CJK ", "IDEOGRAPHIC ", "HIRAGANA ", "KATAKANA", "HALFWIDTH KATAKANA", "HENTAIGANA ", "BOPOMOFO ", "THAI ",
)  # fmt: skip
_NORMAL_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
# Inside a word these spell it: apostrophes, the Catalan middle dot, Hebrew geresh and gershayim, the Tibetan tsheg.
_SPELLS_WITHIN_WORDS = frozenset("'\u2018\u2019\uff07\u00b7\u05f3\u05f4\u0f0b")
_SYMBOLS_AS_PUNCTUATION = frozenset("|`^~<>")  # no punctuation for Unicode; "|" is typed for the danda


def language_code(name: str) -> str:
    """Find Whisper's code for a language given by name, code or locale: "hindi", "Hindi", "hi", "hi-IN" -> "hi".

    Raises:
        UserError: Whisper has no token for it.
    """
    wanted = " ".join(name.lower().replace("_", "-").split())
    by_name = {english: code for code, english in LANGUAGES.items()}
    for key in (wanted, wanted.split("-")[0]):
        if key in LANGUAGES:
            return key
        if key in by_name or key in LANGUAGE_ALIASES:
            return by_name.get(key) or LANGUAGE_ALIASES[key]
    close = get_close_matches(wanted, [*by_name, *LANGUAGE_ALIASES], n=3, cutoff=0.7)
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    raise UserError(
        f"language {name!r}: not one that Whisper knows{hint}. For a language it does not know, borrow the token of a "
        "related one: --language-token LANG, for example --language-token hindi."
    )


def has_spaces(language_code: str) -> bool:
    """Tell whether a language puts spaces between words; one that does not is scored by its character error rate."""
    return language_code not in _WITHOUT_SPACES


def begins_with_space(text: str, language: str | None) -> bool:
    """Tell whether Whisper itself puts a space before a segment with this text.

    It does so in every language but Chinese, Cantonese, Japanese and Thai, as was measured (docs/data.md): also in Lao,
    Khmer, Burmese and Tibetan, where a space stands between sentences. In those four, text in letters of another script
    gets its space: a name, or a language that borrows their token.

    Args:
        text: Of the segment.
        language: Whisper's code of its language; None: the script of the first letter tells.

    Example:
        >>> begins_with_space("Hello", "zh"), begins_with_space("你好", "zh"), begins_with_space("2024年", "zh")
        (True, False, False)
    """
    if language is not None and language not in _LANGUAGES_WITHOUT_FIRST_SPACE:
        return True
    for character in text:
        if unicodedata.category(character).startswith("L"):
            return not unicodedata.name(character, "").startswith(_SCRIPTS_WITHOUT_FIRST_SPACE)
    return language is None


def join_segments(texts: Iterable[str]) -> str:
    """Join the texts of segments to one text, with spaces where Whisper itself writes them."""
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
    """Clean a transcript: the same text in one spelling, single spaces, none at the ends.

    Args:
        text: as the data set has it.
        normal_form: of Unicode: NFC, NFD, NFKC, NFKD, or None to leave the characters alone.
        lowercase: whether to lower the case.
        remove_punctuation: whether to put a space for punctuation. Vowel signs and all other marks stay, as do the
            joiners (ZWJ, ZWNJ) and what spells a word from inside, such as the apostrophe in "don't".

    Returns:
        The clean text; it may be empty.

    Raises:
        UserError: The normal form is not one of Unicode's.
    """
    if lowercase:
        text = text.lower()
    if normal_form is not None:
        if normal_form not in _NORMAL_FORMS:
            raise UserError(f"data.text.normal_form: {normal_form!r} is none of {', '.join(_NORMAL_FORMS)} and null.")
        text = unicodedata.normalize(normal_form, text)
    if remove_punctuation:
        text = "".join(
            " " if _is_punctuation(character) and not _spells(text, index) else character
            for index, character in enumerate(text)
        )
    return " ".join(text.split())


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character)[0] == "P" or character in _SYMBOLS_AS_PUNCTUATION


def _spells(text: str, index: int) -> bool:
    """Whether the character at index is one that spells, and stands within a word."""
    if text[index] not in _SPELLS_WITHIN_WORDS or not 0 < index < len(text) - 1:
        return False
    return all(
        unicodedata.category(neighbour)[0] in "LMN" or neighbour in "\u200c\u200d"
        for neighbour in (text[index - 1], text[index + 1])
    )
