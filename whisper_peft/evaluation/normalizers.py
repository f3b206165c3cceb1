"""Text to text for scoring, safe for every script.

Whisper's own basic normaliser deletes every Unicode mark. In Hindi, Malayalam, Thai or vocalised Arabic the marks are
vowels and tones, so its error rates compare skeletons of words. Here every mark stays.
"""

from __future__ import annotations

import re
import unicodedata

# The name reports print beside the figures. A change of rules that can change a score needs a new version number.
MARK_PRESERVING = "whisper-peft mark-preserving v1"

# Letters that are stored in two ways and look the same in both. Canonical normalisation (NFC) does not join them.
# Where the joiner is part of the letter, it must be read before joiners are dropped.
_SAME_LETTERS = {
    # Malayalam chillus before Unicode 5.1: consonant + virama + zero-width joiner.
    "ണ\u0d4d\u200d": "ൺ", "ന\u0d4d\u200d": "ൻ", "ര\u0d4d\u200d": "ർ", "ല\u0d4d\u200d": "ൽ", "ള\u0d4d\u200d": "ൾ",
    "ക\u0d4d\u200d": "ൿ",
    # Bengali khanda ta before Unicode 4.1.
    "ত\u09cd\u200d": "ৎ",
    # Malayalam conjunct of na and rra, with a chillu or with the plain consonant.
    "ൻ\u0d4d\u0d31": "ന\u0d4d\u0d31",
    # Thai and Lao sara am as circle + aa, and Thai sara ae typed as twice sara e.
    "\u0e4d\u0e32": "\u0e33", "\u0ecd\u0eb2": "\u0eb3", "\u0e40\u0e40": "\u0e41",
    # Catalan double l, whose dot would split the word.
    "l\u00b7l": "\u0140l",
}  # fmt: skip
_SAME_LETTER = re.compile("|".join(_SAME_LETTERS))
_TONE_INSIDE_SARA_AM = re.compile("(?:\u0e4d([\u0e48-\u0e4b])\u0e32)|(?:\u0ecd([\u0ec8-\u0ecb])\u0eb2)")
_HEBREW_ABBREVIATION = re.compile('(?<=[\u05d0-\u05ea])"(?=[\u05d0-\u05ea])')  # usually typed with a plain quote

# ASCII, typographic, full-width and letter apostrophes, the Hawaiian and Uzbek okina, accents typed in their place,
# the Armenian apostrophe, Hebrew geresh and gershayim. Inside a word they belong to it ("don't", "oʻzbek").
_APOSTROPHES = frozenset("'\u2018\u2019\u201b\u02bc\u02bb\uff07`\u00b4\u055a\u05f3\u05f4")
_QUOTE = re.compile("(?:^|(?<= ))'+|'+(?= |$)|'(?=')")  # an apostrophe at the edge of a word, or a second one

_MYANMAR_WORDS = frozenset("\u104c\u104d\u104e\u104f")  # particles that are read aloud, though their category is Po
# Not letters, and inside a word: the Armenian stress, exclamation, question and abbreviation marks, which stand over
# a vowel; the Arabic tatweel, which fills a line; grapheme joiner, fillers and variation selectors, which nobody sees.
_DROPPED = re.compile(
    "[\u055b\u055c\u055e\u055f\u0640\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)
_WIDTH_AND_POSITION = ("<wide>", "<narrow>", "<isolated>", "<initial>", "<medial>", "<final>")


class _CharacterTable(dict[int, str]):
    """What each character becomes, worked out at its first appearance, for `str.translate`."""

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
            # The positional form of an Arabic vowel sign carries a space or a tatweel, only to have something under it.
            replacement = unicodedata.normalize("NFKC", character).lstrip(" \u0640")
        else:
            replacement = character
        self[code] = replacement
        return replacement


_CHARACTERS = _CharacterTable()


def as_written(text: str) -> str:
    """Returns the text as raw scores see it: NFC, white space collapsed to single spaces, nothing else changed.

    NFC joins what differs only in storage (`é` in one or two code points), which no reader can see.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def normalize(text: str) -> str:
    """Returns the text in the mark-preserving form that normalised scores compare.

    - **NFC**, not NFKC: NFKC turns `™` into `tm`, `´` into a space with a stray mark and `½` into two numbers. Of its
      foldings only full-width, half-width and Arabic positional forms are done, since they are the same letters.
    - **Case** is folded (`Straße` = `STRASSE`), for all languages alike: Turkish `I` becomes `i`, not `ı`.
    - **Punctuation and symbols** (Unicode P and S, so also danda and tsheg) become spaces: `well-known` is two words,
      `3.5` two numbers. An apostrophe inside a word stays, in one form whichever was typed; so do the Myanmar signs
      that are words. Armenian marks over a vowel go without a space.
    - **Marks** (Mn and Mc: vowel signs, viramas, harakat, tones) stay. A mark that is missing is an error.
    - **Joiners** (ZWJ, ZWNJ) and other invisible format characters (zero-width space, soft hyphen, direction marks)
      are dropped, so Persian `می‌روم` equals `میروم`: typists use them inconsistently and nobody hears them. Where a
      joiner makes another letter (old Malayalam chillus, Bengali khanda ta), that letter takes its place. Variation
      selectors, enclosing marks and the Arabic tatweel are dropped, too.
    - **Letters with two encodings** that look the same (Thai `ำ`, Malayalam `ന്റ`) get one.

    Digits of other scripts, Persian against Arabic `ی`/`ي` and spelled-out numbers are left as they are.
    """
    # Case folding spells the Turkish dotted capital as i and a combining dot, which nobody types.
    text = unicodedata.normalize("NFC", text).casefold().replace("i\u0307", "i")
    text = _TONE_INSIDE_SARA_AM.sub(lambda tone: f"{tone[1]}\u0e33" if tone[1] else f"{tone[2]}\u0eb3", text)
    text = _SAME_LETTER.sub(lambda letter: _SAME_LETTERS[letter[0]], text)
    text = _HEBREW_ABBREVIATION.sub("\u05f4", text)
    text = unicodedata.normalize("NFC", text.translate(_CHARACTERS))
    text = _QUOTE.sub("", " ".join(text.split()))
    return " ".join(text.split())
