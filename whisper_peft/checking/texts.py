"""Find faults in texts alone: script, normal form, invisible characters, markup, digits, capitals, punctuation."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from whisper_peft.checking.findings import MOST_READ, Findings
from whisper_peft.data.rows import Row
from whisper_peft.data.text import is_spaceless

_NO_NORMAL_FORM = "neither NFC nor NFD"
# If this share of a source's letters is in one script, texts in another script are noted.
_NEARLY_ALL = 0.9
# If this share of a source's texts follows one policy, for capitals or for punctuation, the other texts are noted.
_MOST_TEXTS = 0.6
# Thai and Khmer have spaces between phrases. Spaces stand between words where there are at least this many pieces, of
# at most so many letters on average: phrases are longer.
_FEWEST_PIECES = 3
_LONGEST_WORDS = 4
_NOISE = r"[\w ]*(?:noise|laugh|music|inaudible|unclear|silence|applause|cough)[\w ]*"
_ENTITY_PATTERN = r"&(?:[a-z]{2,8}|#\d{1,6});"
_MARKUP_PATTERN = re.compile(
    # Tags, brackets, entities, noises between stars or parentheses, escaped line breaks.
    rf"<[/|!]?[^\W\d][^<>]{{0,80}}>|\[[^\[\]]{{0,80}}\]|\{{[^{{}}]{{0,80}}\}}|{_ENTITY_PATTERN}"
    rf"|\*{_NOISE}\*|\({_NOISE}\)|\\[nt]"
    # The signs of *emphasis* alone: its words are spoken.
    r"|(?<![^\s*_])[*_]{1,3}(?=\w)|(?<=[\w.,!?])[*_]{1,3}(?![^\s.,!?*_])"
    # Errors of a spreadsheet, addresses, notes of music.
    r"|#(?:NAME\?|REF!|N/A|VALUE!|DIV/0!)|https?://\S+|[♪♫]",
    re.IGNORECASE,
)
_EMPHASIS = frozenset("*_")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]"
)
# Letters for formulas. They look like Latin or Greek, but belong to no script.
_MATHEMATICAL_LETTERS = "[\U0001d400-\U0001d7ff]"
_OTHER_SCRIPT = "Other"

# fmt: off
# Values of Unicode's Script property: the scripts in modern use (UAX 31, tables 5 and 7).
_SCRIPTS = (
    "Adlam", "Arabic", "Armenian", "Balinese", "Bamum", "Batak", "Bengali", "Bopomofo", "Canadian_Aboriginal",
    "Chakma", "Cham", "Cherokee", "Cyrillic", "Devanagari", "Ethiopic", "Georgian", "Greek", "Gujarati",
    "Gurmukhi", "Han", "Hangul", "Hanifi_Rohingya", "Hebrew", "Hiragana", "Javanese", "Kannada", "Katakana",
    "Kayah_Li", "Khmer", "Lao", "Latin", "Lepcha", "Limbu", "Lisu", "Malayalam", "Mandaic", "Meetei_Mayek",
    "Miao", "Mongolian", "Myanmar", "New_Tai_Lue", "Newa", "Nko", "Nyiakeng_Puachue_Hmong", "Ol_Chiki", "Oriya",
    "Saurashtra", "Sinhala", "Sundanese", "Syloti_Nagri", "Syriac", "Tai_Le", "Tai_Tham", "Tai_Viet", "Tamil",
    "Telugu", "Thaana", "Thai", "Tibetan", "Tifinagh", "Vai", "Wancho", "Yi",
)
# The scripts that a language of Whisper's is written in. A language that is not here is written in Latin letters.
_SCRIPTS_OF_LANGUAGES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("ru", "uk", "bg", "mk", "be", "tg", "ba", "kk", "mn", "tt"), ("Cyrillic",)),
    **dict.fromkeys(("sr", "bs", "uz", "az", "tk"), ("Cyrillic", "Latin")),
    **dict.fromkeys(("ar", "fa", "ur", "ps"), ("Arabic",)), "sd": ("Arabic", "Devanagari"),
    **dict.fromkeys(("hi", "mr", "ne", "sa"), ("Devanagari",)), **dict.fromkeys(("bn", "as"), ("Bengali",)),
    **dict.fromkeys(("he", "yi"), ("Hebrew",)), **dict.fromkeys(("zh", "yue"), ("Han",)),
    "ja": ("Hiragana", "Katakana", "Han"), "ko": ("Hangul", "Han"), "pa": ("Gurmukhi", "Arabic"),
    "el": ("Greek",), "hy": ("Armenian",), "ka": ("Georgian",), "am": ("Ethiopic",), "ta": ("Tamil",),
    "te": ("Telugu",), "kn": ("Kannada",), "ml": ("Malayalam",), "gu": ("Gujarati",), "si": ("Sinhala",),
    "th": ("Thai",), "lo": ("Lao",), "my": ("Myanmar",), "km": ("Khmer",), "bo": ("Tibetan",),
    "ha": ("Latin", "Arabic"), "ms": ("Latin", "Arabic"), "su": ("Latin", "Sundanese"), "jw": ("Latin", "Javanese"),
}
# fmt: on


@cache
def _script_pattern() -> Any:
    """Return a pattern with one named group for each script; letters of all scripts or of none are not matched."""
    import regex

    groups = [rf"(?P<{script}>\p{{Script={script}}})" for script in _SCRIPTS]
    groups.append(f"(?P<Mathematical>{_MATHEMATICAL_LETTERS})")
    groups.append(rf"(?P<{_OTHER_SCRIPT}>[^\p{{Script=Common}}\p{{Script=Inherited}}\p{{Script=Unknown}}])")
    return regex.compile("|".join(groups))


@lru_cache(maxsize=1 << 14)
def script_of(character: str) -> str | None:
    """Return the script of a letter or of a vowel sign, by Unicode's Script property.

    Returns:
        The name of the script, or "Other" for one that is not in modern use. None for what is no letter, and for
        letters and marks that several scripts share.

    Example:
        >>> [script_of(character) for character in "aж字कー5"]
        ['Latin', 'Cyrillic', 'Han', 'Devanagari', None, None]
    """
    if unicodedata.category(character)[0] not in "LM":
        return None
    match = _script_pattern().match(character)
    if match is None:
        return None
    return match.lastgroup.replace("_", " ")


def count_scripts(text: str) -> Counter[str]:
    """Count the letters of each script in a text.

    Example:
        >>> count_scripts("दो radio")
        Counter({'Latin': 5, 'Devanagari': 2})
    """
    return Counter(script for script in map(script_of, text) if script)


def without_markup(text: str) -> str:
    """Return the text without tags, brackets, entities and invisible characters, in NFC and with single spaces.

    Example:
        >>> without_markup("<b>Tom</b> &amp; [noise] *really*  Tim")
        'Tom & really Tim'
    """
    if re.search(_ENTITY_PATTERN, text, re.IGNORECASE):
        # Some texts were escaped twice.
        text = html.unescape(html.unescape(text))
    plain = _INVISIBLE.sub("", _MARKUP_PATTERN.sub(_replace_markup, text))
    return " ".join(unicodedata.normalize("NFC", plain).split())


def _replace_markup(match: re.Match) -> str:
    """Replace markup with a space, but the signs of emphasis with nothing: they stand inside a phrase."""
    if set(match[0]) <= _EMPHASIS:
        return ""
    return " "


@dataclass(frozen=True, slots=True)
class _TextFacts:
    """The facts about one text.

    Attributes:
        row: Number of its row.
        scripts: Number of letters of each script.
        form: NFC, NFD or neither; None if all normal forms of the text are equal.
        has_digits: Whether a number is in digits.
        casing: How it uses capitals; None if its script has none.
        ends_with_mark: Whether it ends with a mark of punctuation.
    """

    row: int
    scripts: Counter[str]
    form: str | None
    has_digits: bool
    casing: str | None
    ends_with_mark: bool


def look_at_texts(findings: Findings, source: int, *, language: str | None, task: str) -> None:
    """Find what is wrong with the texts of a source, each alone and compared with the others.

    Args:
        findings: Takes what is found.
        source: Number of the source.
        language: Code for rows that name none. If it is None, the script of nearly all letters is taken to be right.
        task: "transcribe" or "translate"; every translation is English.
    """
    texts = []
    for number, row in enumerate(findings.sources[source].rows):
        if row.text.strip():
            text = row.text[:MOST_READ]
            _look_at_characters(findings, source, number, text)
            texts.append(_collect_facts(number, text))
    _look_at_scripts(findings, source, texts, language=language, task=task)
    _look_at_forms(findings, source, texts)
    _look_at_digits(findings, source, texts)
    casings = {text.row: text.casing for text in texts if text.casing}
    _look_at_policy(findings, source, "casing", casings)
    ends = {text.row: "ends with a mark" if text.ends_with_mark else "ends without a mark" for text in texts}
    _look_at_policy(findings, source, "punctuation", ends)


def _look_at_characters(findings: Findings, source: int, number: int, text: str) -> None:
    """Find characters that no text should have, spaces between Chinese or Thai words, and markup."""
    broken = {c for c in text if c == "\ufffd" or unicodedata.category(c) in ("Co", "Cs", "Cn")}
    if broken:
        findings.add("broken-characters", source, number, _list_code_points(broken))
    invisible = set(_INVISIBLE.findall(text))
    if invisible:
        findings.add("control-characters", source, number, _list_code_points(invisible))
    pieces = [piece for piece in text.split() if is_spaceless(piece)]
    n_letters = sum(unicodedata.category(character)[0] == "L" for piece in pieces for character in piece)
    if len(pieces) >= _FEWEST_PIECES and n_letters <= _LONGEST_WORDS * len(pieces):
        findings.add("spaced-words", source, number, " ".join(pieces[:6]))
    markup = _MARKUP_PATTERN.findall(text)
    if markup:
        findings.add("markup", source, number, ", ".join(markup[:3]), suggestion=without_markup(text))


def _list_code_points(characters: set[str]) -> str:
    return ", ".join(f"U+{ord(character):04X}" for character in sorted(characters)[:5])


def _collect_facts(number: int, text: str) -> _TextFacts:
    last = text.rstrip().rstrip("\"'”’»)")[-1:]
    return _TextFacts(
        row=number,
        scripts=count_scripts(_MARKUP_PATTERN.sub(" ", text)),
        form=_normal_form_of(text),
        has_digits=any(unicodedata.category(character) == "Nd" for character in text),
        casing=_casing_of(text),
        ends_with_mark=bool(last) and unicodedata.category(last)[0] == "P",
    )


def _normal_form_of(text: str) -> str | None:
    """Tell the normal form of a text; None if NFC and NFD are equal.

    Example:
        >>> _normal_form_of("caf\u00e9"), _normal_form_of("cafe\u0301"), _normal_form_of("tea")
        ('NFC', 'NFD', None)
    """
    if text.isascii():
        return None
    composed = unicodedata.normalize("NFC", text)
    decomposed = unicodedata.normalize("NFD", text)
    if text == composed == decomposed:
        return None
    if text == composed:
        return "NFC"
    if text == decomposed:
        return "NFD"
    return _NO_NORMAL_FORM


def _casing_of(text: str) -> str | None:
    """Say in words how a text uses capitals; None if its script has no capitals."""
    has_upper = any(map(str.isupper, text))
    has_lower = any(map(str.islower, text))
    if has_upper and has_lower:
        return "capitals and small"
    if has_upper:
        return "capitals only"
    if has_lower:
        return "small only"
    return None


def _look_at_scripts(
    findings: Findings, source: int, texts: Sequence[_TextFacts], *, language: str | None, task: str
) -> None:
    main_script = _find_main_script(texts)
    for text in texts:
        row = findings.sources[source].rows[text.row]
        expected = main_script
        if task == "translate":
            expected = ("Latin",)
        else:
            spoken = row.language or language
            if spoken and not row.unknown_language:
                expected = _SCRIPTS_OF_LANGUAGES.get(spoken, ("Latin",))
        if expected and text.scripts:
            _look_at_script(findings, source, text, row, expected)


def _find_main_script(texts: Sequence[_TextFacts]) -> tuple[str, ...]:
    """Return the script of nearly all letters; nothing if there is none."""
    letters: Counter[str] = Counter()
    for text in texts:
        letters.update(text.scripts)
    for script, count in letters.most_common(1):
        if count >= _NEARLY_ALL * letters.total():
            return (script,)
    return ()


def _look_at_script(findings: Findings, source: int, text: _TextFacts, row: Row, expected: tuple[str, ...]) -> None:
    """Hold the letters of one text against the scripts that are expected."""
    n_letters = text.scripts.total()
    n_right = sum(text.scripts[script] for script in expected)
    if 2 * n_right < n_letters:
        script, count = text.scripts.most_common(1)[0]
        detail = f"{count} of {n_letters} letters are {script}, not {' or '.join(expected)}"
        findings.add("wrong-script", source, text.row, detail, weight=n_letters)
    elif len(text.scripts) > 1:
        words = [word for word in row.text[:MOST_READ].split() if _is_mixed(word, set(expected))]
        if words:
            findings.add("mixed-script", source, text.row, ", ".join(words[:3]))


def _is_mixed(word: str, expected: set[str]) -> bool:
    """Tell whether letters of an expected script touch letters of another one.

    What stands behind a hyphen is a word of its own.

    Example:
        >>> _is_mixed("mоre", {"Latin"}), _is_mixed("e-почта", {"Latin"})
        (True, False)
    """
    for piece in re.split(r"[\W\d_]", word):
        scripts = set(count_scripts(piece))
        if scripts & expected and scripts - expected:
            return True
    return False


def _look_at_forms(findings: Findings, source: int, texts: Sequence[_TextFacts]) -> None:
    """Find texts in another normal form than most."""
    forms = Counter(text.form for text in texts if text.form)
    usual = "NFD"
    if forms["NFC"] >= forms["NFD"]:
        usual = "NFC"
    for text in texts:
        if text.form and text.form != usual:
            findings.add("mixed-normal-forms", source, text.row, f"{text.form}; most: {usual}")


def _look_at_digits(findings: Findings, source: int, texts: Sequence[_TextFacts]) -> None:
    """Find numbers in digits where most texts have none."""
    with_digits = [text.row for text in texts if text.has_digits]
    if 2 * len(with_digits) < len(texts):
        for number in with_digits:
            text = findings.sources[source].rows[number].text[:MOST_READ]
            findings.add("digits", source, number, ", ".join(re.findall(r"\S*\d\S*", text)[:3]))


def _look_at_policy(findings: Findings, source: int, kind: str, policies: dict[int, str]) -> None:
    """Find texts that follow another policy than most.

    Args:
        findings: Takes what is found.
        source: Number of the source.
        kind: Kind of finding.
        policies: For each row, its policy in words.
    """
    counts = Counter(policies.values())
    if len(counts) < 2:
        return
    usual, count = counts.most_common(1)[0]
    if count < _MOST_TEXTS * len(policies):
        return
    for number, policy in policies.items():
        if policy != usual:
            findings.add(kind, source, number, f"{policy}; most: {usual}")
