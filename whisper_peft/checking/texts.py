"""What is wrong with texts alone: script, normal form, invisible characters, markup, digits, capitals, punctuation."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from whisper_peft.checking.findings import MOST_READ, Findings
from whisper_peft.data.rows import Row
from whisper_peft.data.text import is_spaceless

NEITHER = "neither NFC nor NFD"
_NEARLY_ALL = 0.9  # of the letters of a source in one script: then texts in another are remarked on
_MOST_OF = 0.6  # of the texts with one policy: then the others are
_FEWEST_WORDS = 3  # between spaces: fewer may be phrases
_LONGEST_WORDS = 4  # letters on average: phrases, between which Thai and Khmer have spaces, are longer
_JOINERS = frozenset("\u200c\u200d")  # they spell
_NOISE = r"[\w ]*(?:noise|laugh|music|inaudible|unclear|silence|applause|cough)[\w ]*"
_ENTITY = r"&(?:[a-z]{2,8}|#\d{1,6});"
_MARKUP = re.compile(
    rf"<[/|!]?[^\W\d][^<>]{{0,80}}>|\[[^\[\]]{{0,80}}\]|\{{[^{{}}]{{0,80}}\}}|{_ENTITY}|\*{_NOISE}\*|\({_NOISE}\)|\\[nt]"
    r"|(?<![^\s*_])[*_]{1,3}(?=\w)|(?<=[\w.,!?])[*_]{1,3}(?![^\s.,!?*_])"  # of *emphasis*: its words are spoken
    r"|#(?:NAME\?|REF!|N/A|VALUE!|DIV/0!)|https?://\S+|[♪♫]",
    re.IGNORECASE,
)
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]"
)
# fmt: off
_SCRIPTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("ru", "uk", "bg", "mk", "be", "tg", "ba", "kk", "mn", "tt"), ("CYRILLIC",)),
    **dict.fromkeys(("sr", "bs", "uz", "az", "tk"), ("CYRILLIC", "LATIN")),
    **dict.fromkeys(("ar", "fa", "ur", "ps"), ("ARABIC",)), "sd": ("ARABIC", "DEVANAGARI"),
    **dict.fromkeys(("hi", "mr", "ne", "sa"), ("DEVANAGARI",)), **dict.fromkeys(("bn", "as"), ("BENGALI",)),
    **dict.fromkeys(("he", "yi"), ("HEBREW",)), **dict.fromkeys(("zh", "yue"), ("CJK",)),
    "ja": ("HIRAGANA", "KATAKANA", "CJK", "KATAKANA-HIRAGANA"), "ko": ("HANGUL", "CJK"), "pa": ("GURMUKHI", "ARABIC"),
    "el": ("GREEK",), "hy": ("ARMENIAN",), "ka": ("GEORGIAN",), "am": ("ETHIOPIC",), "ta": ("TAMIL",),
    "te": ("TELUGU",), "kn": ("KANNADA",), "ml": ("MALAYALAM",), "gu": ("GUJARATI",), "si": ("SINHALA",),
    "th": ("THAI",), "lo": ("LAO",), "my": ("MYANMAR",), "km": ("KHMER",), "bo": ("TIBETAN",),
    "ha": ("LATIN", "ARABIC"), "ms": ("LATIN", "ARABIC"), "su": ("LATIN", "SUNDANESE"), "jw": ("LATIN", "JAVANESE"),
}  # every other language that Whisper knows is written in Latin letters
# fmt: on


@lru_cache(maxsize=1 << 14)
def script_of(character: str) -> str | None:
    """The script of a letter or vowel sign, by the first word of its Unicode name: "LATIN"; None of other signs."""
    if unicodedata.category(character)[0] not in "LM":
        return None
    script = unicodedata.name(character, "").split(" ")[0]
    if script in ("COMBINING", "MODIFIER", "FEMININE", "MASCULINE", "VARIATION", ""):
        return None
    return {"FULLWIDTH": "LATIN", "HALFWIDTH": "KATAKANA", "MICRO": "LATIN"}.get(script, script)


@dataclass(frozen=True, slots=True)
class _Text:
    """What is known of one text."""

    row: int
    scripts: Counter[str]
    form: str | None  # NFC, or another; None where all forms are one
    has_digits: bool
    casing: str | None  # of scripts with two cases
    ends_with_mark: bool


def without_markup(text: str) -> str:
    """The text without tags, brackets, entities and invisible characters, in NFC and single spaces."""
    plain = html.unescape(html.unescape(text)) if re.search(_ENTITY, text, re.IGNORECASE) else text  # some are so twice
    return " ".join(unicodedata.normalize("NFC", _INVISIBLE.sub("", _MARKUP.sub(_instead, plain))).split())


def _instead(found: re.Match) -> str:
    """Nothing of emphasis: what it stood around is a word still; a space of all else."""
    return "" if set(found[0]) <= {"*", "_"} else " "


def scripts_of(text: str) -> Counter[str]:
    """How many letters of each script a text has."""
    return Counter(script for script in map(script_of, text) if script)


def look_at_texts(findings: Findings, part: int, *, language: str | None, task: str) -> None:
    """Find what is wrong with the texts of a part, each alone and against the part's others.

    Args:
        findings: takes what is found.
        part: its number.
        language: code for rows that name none; None: the script that nearly all are in is taken to be right.
        task: of a translation every text is English.
    """
    texts = []
    for number, row in enumerate(findings.parts[part].rows):
        if row.text.strip():
            _look_at_one(findings, part, number, row.text[:MOST_READ])
            texts.append(_known(number, row.text[:MOST_READ]))
    letters = sum((text.scripts for text in texts), Counter())
    for text in texts:
        row = findings.parts[part].rows[text.row]
        spoken = None if row.unknown_language else row.language or language
        code = "en" if task == "translate" else spoken
        _look_at_script(findings, part, text, row, _SCRIPTS.get(code, ("LATIN",)) if code else _main_script(letters))
    forms = Counter(text.form for text in texts if text.form)
    usual = "NFC" if forms["NFC"] >= forms["NFD"] else "NFD"
    for text in texts:
        if text.form == NEITHER or (text.form and text.form != usual):
            findings.add("mixed-normal-forms", part, text.row, f"{text.form}; most: {usual}")
    with_digits = [text for text in texts if text.has_digits]
    if 2 * len(with_digits) < len(texts):
        for text in with_digits:
            shown = re.findall(r"\S*\d\S*", findings.parts[part].rows[text.row].text[:MOST_READ])
            findings.add("digits", part, text.row, ", ".join(shown[:3]))
    _look_at_policy(findings, part, "casing", {text.row: text.casing for text in texts if text.casing})
    ends = {text.row: "ends with a mark" if text.ends_with_mark else "ends without a mark" for text in texts}
    _look_at_policy(findings, part, "punctuation", ends)


def _look_at_one(findings: Findings, part: int, number: int, text: str) -> None:
    broken = sorted({c for c in text if c == "\ufffd" or unicodedata.category(c) in ("Co", "Cs", "Cn")})
    if broken:
        findings.add("broken-characters", part, number, ", ".join(f"U+{ord(c):04X}" for c in broken[:5]))
    invisible = sorted(set(_INVISIBLE.findall(text)))
    if invisible:
        findings.add("control-characters", part, number, ", ".join(f"U+{ord(c):04X}" for c in invisible[:5]))
    pieces = [piece for piece in text.split() if is_spaceless(piece)]
    n_letters = sum(unicodedata.category(character)[0] == "L" for piece in pieces for character in piece)
    if len(pieces) >= _FEWEST_WORDS and n_letters <= _LONGEST_WORDS * len(pieces):
        findings.add("spaced-words", part, number, " ".join(pieces[:6]))
    if found := _MARKUP.findall(text):
        findings.add("markup", part, number, ", ".join(found[:3]), suggestion=without_markup(text))


def _known(number: int, text: str) -> _Text:
    composed = unicodedata.normalize("NFC", text)
    form = None
    if not text.isascii() and (text != composed or composed != unicodedata.normalize("NFD", text)):
        form = "NFC" if text == composed else "NFD" if unicodedata.is_normalized("NFD", text) else NEITHER
    upper, lower = any(map(str.isupper, text)), any(map(str.islower, text))
    casing = "capitals and small" if upper and lower else "capitals only" if upper else "small only" if lower else None
    last = text.rstrip().rstrip("\"'”’»)")[-1:]
    scripts = scripts_of(_MARKUP.sub(" ", text))
    return _Text(
        number, scripts, form, any(unicodedata.category(c) == "Nd" for c in text), casing,
        bool(last) and unicodedata.category(last)[0] == "P",
    )  # fmt: skip


def _main_script(letters: Counter[str]) -> tuple[str, ...]:
    """The script that nearly all letters are in; nothing if there is none."""
    [(script, count)] = letters.most_common(1) or [("", 0)]
    return (script,) if count >= _NEARLY_ALL * max(1, sum(letters.values())) else ()


def _look_at_script(findings: Findings, part: int, text: _Text, row: Row, expected: tuple[str, ...]) -> None:
    total = sum(text.scripts.values())
    if not expected or not total:
        return
    right = sum(text.scripts[script] for script in expected)
    if 2 * right < total:
        script, count = text.scripts.most_common(1)[0]
        findings.add("wrong-script", part, text.row, f"{count} of {total} letters are {script.title()}, not "
                     f"{' or '.join(one.title() for one in expected)}", weight=total)  # fmt: skip
        return
    if len(text.scripts) > 1:
        words = [word for word in row.text[:MOST_READ].split() if _is_mixed(word, set(expected))]
        if words:
            findings.add("mixed-script", part, text.row, ", ".join(words[:3]))


def _is_mixed(word: str, expected: set[str]) -> bool:
    """Whether letters of the expected script and of another touch; what stands behind a hyphen is a word of its own."""
    for piece in re.split(r"[\W\d_]", word):
        scripts = {script for script in map(script_of, piece) if script}
        if scripts & expected and scripts - expected:
            return True
    return False


def _look_at_policy(findings: Findings, part: int, kind: str, policies: dict[int, str]) -> None:
    counts = Counter(policies.values())
    if len(counts) > 1 and counts.most_common(1)[0][1] >= _MOST_OF * len(policies):
        usual = counts.most_common(1)[0][0]
        for number, policy in policies.items():
            if policy != usual:
                findings.add(kind, part, number, f"{policy}; most: {usual}")
