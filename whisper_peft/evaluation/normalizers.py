"""Normalise texts for scoring, safely in every script.

Whisper's own basic normaliser deletes every Unicode mark. In Hindi, Malayalam, Thai and vocalised Arabic, marks are
vowels and tones, so its error rates compare skeletons of words. The normaliser of this module keeps every mark.
"""

from __future__ import annotations

import re
import unicodedata

# Reports print this name beside the figures. A change of the rules that can change a score needs a new version number.
MARK_PRESERVING = "whisper-peft mark-preserving v1"

# Letters that are stored in two ways and look the same in both. Canonical normalisation (NFC) does not unite them.
# Some of them contain a joiner, so they must be replaced before joiners are dropped.
_SAME_LETTERS = {
    # Malayalam chillus before Unicode 5.1: consonant + virama + zero-width joiner.
    "ണ\u0d4d\u200d": "ൺ",
    "ന\u0d4d\u200d": "ൻ",
    "ര\u0d4d\u200d": "ർ",
    "ല\u0d4d\u200d": "ൽ",
    "ള\u0d4d\u200d": "ൾ",
    "ക\u0d4d\u200d": "ൿ",
    # Bengali khanda ta before Unicode 4.1.
    "ত\u09cd\u200d": "ৎ",
    # Malayalam conjunct of na and rra, with a chillu or with the plain consonant.
    "ൻ\u0d4d\u0d31": "ന\u0d4d\u0d31",
    # Thai and Lao sara am as circle + aa, and Thai sara ae typed as two sara e.
    "\u0e4d\u0e32": "\u0e33",
    "\u0ecd\u0eb2": "\u0eb3",
    "\u0e40\u0e40": "\u0e41",
    # Catalan double l, whose dot would split the word.
    "l\u00b7l": "\u0140l",
}
_SAME_LETTER = re.compile("|".join(_SAME_LETTERS))
_TONE_INSIDE_SARA_AM = re.compile("(?:\u0e4d([\u0e48-\u0e4b])\u0e32)|(?:\u0ecd([\u0ec8-\u0ecb])\u0eb2)")
# Hebrew writes gershayim inside abbreviations; typists usually take a plain quotation mark for it.
_HEBREW_ABBREVIATION = re.compile('(?<=[\u05d0-\u05ea])"(?=[\u05d0-\u05ea])')

# Inside a word, an apostrophe belongs to it ("don't", "oʻzbek"). These are ASCII, typographic, full-width and letter
# apostrophes, the Hawaiian and Uzbek okina, accents that are typed in their place, the Armenian apostrophe, and Hebrew
# geresh and gershayim.
_APOSTROPHES = frozenset("'\u2018\u2019\u201b\u02bc\u02bb\uff07`\u00b4\u055a\u05f3\u05f4")
# An apostrophe at the edge of a word is a quotation mark, and so is the second of two.
_QUOTE = re.compile("(?:^|(?<= ))'+|'+(?= |$)|'(?=')")

# Particles that are read aloud, although Unicode files them under punctuation.
_MYANMAR_WORDS = frozenset("\u104c\u104d\u104e\u104f")
# Characters inside a word that are no letters: the Armenian stress, exclamation, question and abbreviation marks, which
# stand over a vowel; the Arabic tatweel, which fills a line; grapheme joiners, fillers and variation selectors, which
# nobody sees.
_DROPPED = re.compile(
    "[\u055b\u055c\u055e\u055f\u0640\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)
# Kinds of decomposition whose parts are the same letters as the whole.
_WIDTH_AND_POSITION = ("<wide>", "<narrow>", "<isolated>", "<initial>", "<medial>", "<final>")


class _CharacterTable(dict[int, str]):
    """A table for `str.translate` that finds the replacement of a character when it first appears."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        if character in _MYANMAR_WORDS:
            replacement = character
        elif character in _APOSTROPHES:
            replacement = "'"
        elif category in ("Cf", "Me") or _DROPPED.match(character):
            replacement = ""
        elif category[0] in "PSZ" or category == "Cc":
            replacement = " "
        elif unicodedata.decomposition(character).startswith(_WIDTH_AND_POSITION):
            # The positional form of an Arabic vowel sign carries a space or a tatweel as its base. Drop that.
            replacement = unicodedata.normalize("NFKC", character).lstrip(" \u0640")
        else:
            replacement = character
        self[code] = replacement
        return replacement


_CHARACTERS = _CharacterTable()


def as_written(text: str) -> str:
    """Return a text as the rates without normaliser compare it.

    It is in NFC, with single spaces for all white space, and otherwise unchanged. NFC unites spellings that differ only
    in storage, such as `é` in one or two code points, which no reader can tell apart.

    Example:
        >>> as_written(" Good\\tmorning,  Asha. ")
        'Good morning, Asha.'
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def normalize(text: str) -> str:
    """Return a text in the mark-preserving form that normalised rates compare.

    - **NFC**, not NFKC: NFKC turns `™` into `tm`, `´` into a space with a stray mark, and `½` into two numbers. Of its
      foldings, only full-width, half-width and Arabic positional forms are applied, because they are the same letters.
    - **Case** is folded (`Straße` = `STRASSE`), in all languages alike: Turkish `I` becomes `i`, not `ı`.
    - **Punctuation and symbols** (Unicode P and S, with danda and tsheg) become spaces: `well-known` is two words, and
      `3.5` two numbers. An apostrophe inside a word stays, in one form for all that are typed. The Myanmar signs that
      are words stay, too. Armenian marks over a vowel go without a space.
    - **Marks** (Mn and Mc: vowel signs, viramas, harakat, tones) stay. A missing mark is an error.
    - **Joiners** (ZWJ, ZWNJ) and other invisible format characters (zero-width space, soft hyphen, direction marks) are
      dropped, because typists use them inconsistently and nobody hears them: Persian `می‌روم` equals `میروم`. Where a
      joiner makes another letter (old Malayalam chillus, Bengali khanda ta), that letter replaces it. Variation
      selectors, enclosing marks and the Arabic tatweel are dropped, too.
    - **Letters with two encodings** that look the same (Thai `ำ`, Malayalam `ന്റ`) get one of them.

    Digits of other scripts, Persian against Arabic `ی`/`ي`, and numbers in words stay as they are.

    Example:
        >>> normalize("“Don’t!” she said.")
        "don't she said"
        >>> normalize("नमस्ते, दुनिया।")
        'नमस्ते दुनिया'
    """
    text = unicodedata.normalize("NFC", text).casefold()
    # Case folding turns the Turkish dotted capital into i and a combining dot, which nobody types.
    text = text.replace("i\u0307", "i")
    text = _TONE_INSIDE_SARA_AM.sub(_tone_before_sara_am, text)
    text = _SAME_LETTER.sub(lambda letter: _SAME_LETTERS[letter[0]], text)
    text = _HEBREW_ABBREVIATION.sub("\u05f4", text)
    text = unicodedata.normalize("NFC", text.translate(_CHARACTERS))
    text = _QUOTE.sub("", " ".join(text.split()))
    return " ".join(text.split())


def _tone_before_sara_am(match: re.Match[str]) -> str:
    """Return a Thai or Lao tone mark followed by sara am, which was typed as circle, tone and aa."""
    if match[1]:
        return f"{match[1]}\u0e33"
    return f"{match[2]}\u0eb3"
