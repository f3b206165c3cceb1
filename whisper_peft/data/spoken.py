"""Rows in a language that Whisper does not know: they are counted and named, and never count as rows without one."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import get_close_matches

from whisper_peft.data.languages import LANGUAGES
from whisper_peft.data.rows import Row
from whisper_peft.errors import UserError
from whisper_peft.files import printable, short_repr

# A message names at most so many values.
_MOST_NAMED = 5
# A name that is at least so similar to one of Whisper's is misspelt, as "hindii" is. 1 stands for equal names.
_LEAST_SIMILARITY = 0.9


def settle_languages(
    rows: Sequence[Row],
    name: str,
    *,
    language: str | None,
    borrowed: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Decide which language stands in for those that Whisper does not know.

    Args:
        rows: The rows of one source.
        name: The source, for messages.
        language: Code of the language that the user names. None: the user names none.
        borrowed: If True, all rows get a borrowed language token, so their languages do not matter.
        say: Called with a line that says which language stands in.

    Returns:
        The rows. If no row of the source is in a language that Whisper knows, the rows in unknown languages are now in
        `language`: then it is clear what the user means.

    Raises:
        UserError: It is not clear. The message has the unknown languages, how many rows name them, and the remedy.
    """
    if borrowed or not any(row.unknown_language for row in rows):
        return list(rows)
    finding = f"{printable(name)}: language: {name_unknown(rows)}, which Whisper does not know"
    if any(row.language for row in rows):
        raise UserError(
            f"{finding}, beside rows in {_list_known_languages(rows)}; correct the column or leave these rows out, or "
            "borrow one token for all rows: --language-token LANG."
        )
    if language is None:
        raise UserError(
            f"{finding}; correct the column, name the language that these rows are in (--language LANG), or borrow the "
            "token of a related one (--language-token LANG)."
        )
    say(f"{finding}; they are taken for {LANGUAGES[language]}, as --language says.")
    return [take_for(row, language) for row in rows]


def take_for(row: Row, code: str) -> Row:
    """Return the row in this language, if it names one that Whisper does not know."""
    if row.unknown_language is None:
        return row
    return dataclasses.replace(row, language=code, unknown_language=None)


def name_unknown(rows: Sequence[Row]) -> str:
    """Name the languages that Whisper does not know, with their rows: "12 rows say 'xx' (the first: m.csv:3)"."""
    counts = Counter(row.unknown_language for row in rows if row.unknown_language)
    first = next(row for row in rows if row.unknown_language)
    names = []
    for value, count in counts.most_common(_MOST_NAMED):
        rows_say = "1 row says" if count == 1 else f"{count:,} rows say"
        names.append(f"{rows_say} {short_repr(value)}")
    listed = ", ".join(names)
    if len(counts) > _MOST_NAMED:
        listed += f" and {len(counts) - _MOST_NAMED:,} other values"
    if first.place:
        listed += f" (the first: {printable(first.place)})"
    return listed


def refuse_slips(rows: Sequence[Row], name: str) -> None:
    """Refuse languages that are misspelt.

    Args:
        rows: The rows of one source.
        name: The source, for the message.

    Raises:
        UserError: A language is not one of Whisper's, but very similar to one.
    """
    counts = Counter(row.unknown_language for row in rows if row.unknown_language)
    for value, count in counts.items():
        close = get_close_matches(value.lower(), LANGUAGES.values(), n=1, cutoff=_LEAST_SIMILARITY)
        if close:
            place = next(row.place for row in rows if row.unknown_language == value)
            n_rows = "1 row" if count == 1 else f"{count:,} rows"
            raise UserError(
                f"{printable(name)}: {printable(place)}: language {short_repr(value)} in {n_rows} is not one that "
                f"Whisper knows (did you mean {close[0]}?)."
            )


def _list_known_languages(rows: Sequence[Row]) -> str:
    """List the languages of the rows that Whisper knows, for a message."""
    names = sorted({LANGUAGES[row.language] for row in rows if row.language})
    listed = ", ".join(names[:_MOST_NAMED])
    if len(names) > _MOST_NAMED:
        listed += " and others"
    return listed
