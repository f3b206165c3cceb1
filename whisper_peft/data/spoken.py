"""Rows whose language Whisper does not know: counted, named, and never taken for rows that name none."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import get_close_matches

from whisper_peft.data.languages import LANGUAGES
from whisper_peft.data.rows import Row
from whisper_peft.errors import UserError
from whisper_peft.files import printable, short_repr

_MOST_NAMED = 5  # values in one message
_SLIP = 0.9  # a name so like one of Whisper's is a slip of the pen: "hindii"


def settle_languages(
    rows: Sequence[Row],
    name: str,
    *,
    language: str | None,
    borrowed: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Decide what the rows in languages that Whisper does not know are taken for.

    Args:
        rows: The rows of one source.
        name: The source, for messages.
        language: Code of the language that the user says; None where nothing is said.
        borrowed: Whether all rows get a borrowed language token, whatever they say.
        say: Told what the rows are taken for.

    Returns:
        The rows. Those of unknown languages are in `language` where no row of the source is in a known one: then it
        is clear what the user means.

    Raises:
        UserError: It is not clear; with the values, how many rows have them, and the remedy.
    """
    if borrowed or not any(row.unknown_language for row in rows):
        return list(rows)
    finding = f"{printable(name)}: language: {name_unknown(rows)}, which Whisper does not know"
    if any(row.language for row in rows):
        raise UserError(
            f"{finding}, beside rows in {_known(rows)}; correct the column or leave these rows out, or borrow one "
            "token for all rows: --language-token LANG."
        )
    if language is None:
        raise UserError(
            f"{finding}; correct the column, say which language they are to be taken for (--language LANG), or borrow "
            "the token of a related one (--language-token LANG)."
        )
    say(f"{finding}; they are taken for {LANGUAGES[language]}, as --language says.")
    return [take_for(row, language) for row in rows]


def take_for(row: Row, code: str) -> Row:
    """The row in this language, where it names one that Whisper does not know."""
    if row.unknown_language is None:
        return row
    return dataclasses.replace(row, language=code, unknown_language=None)


def name_unknown(rows: Sequence[Row]) -> str:
    """Name the languages of rows that Whisper does not know, with counts: "12 rows say 'xx' (the first: m.csv:3)"."""
    counts = Counter(row.unknown_language for row in rows if row.unknown_language)
    first = next(row for row in rows if row.unknown_language)
    said = [f"{_rows_say(count)} {short_repr(value)}" for value, count in counts.most_common(_MOST_NAMED)]
    more = f" and {len(counts) - _MOST_NAMED:,} other values" if len(counts) > _MOST_NAMED else ""
    place = f" (the first: {printable(first.place)})" if first.place else ""
    return ", ".join(said) + more + place


def refuse_slips(rows: Sequence[Row], name: str) -> None:
    """Refuse languages that are misspelt.

    Raises:
        UserError: A language is not one of Whisper's, but very like one.
    """
    counts = Counter(row.unknown_language for row in rows if row.unknown_language)
    for value, count in counts.items():
        close = get_close_matches(value.lower(), LANGUAGES.values(), n=1, cutoff=_SLIP)
        if close:
            place = next(row.place for row in rows if row.unknown_language == value)
            raise UserError(
                f"{printable(name)}: {printable(place)}: language {short_repr(value)} in "
                f"{count:,} row{'' if count == 1 else 's'} is not one that Whisper knows (did you mean {close[0]}?)."
            )


def _rows_say(count: int) -> str:
    return "1 row says" if count == 1 else f"{count:,} rows say"


def _known(rows: Sequence[Row]) -> str:
    names = sorted({LANGUAGES[row.language] for row in rows if row.language})
    return ", ".join(names[:_MOST_NAMED]) + (" and others" if len(names) > _MOST_NAMED else "")
