"""Text as HTML: whatever it holds, it is never markup, and characters that cannot be seen are named."""

from __future__ import annotations

import html
import unicodedata

from markupsafe import Markup

# Characters of one transcript or name that a page shows. The rest is only counted.
MOST_SHOWN_CHARACTERS = 500
# Format characters that a reader needs: the joiners spell, and the signs over numbers have a shape of their own.
_VISIBLE_FORMAT_CHARACTERS = frozenset(
    "\u200c\u200d\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
)


def escape_text(text: str, longest: int = MOST_SHOWN_CHARACTERS) -> Markup:
    r"""Turn text into HTML for an element of its own, which has `dir="auto"`.

    Characters that cannot be seen are named. A long text is cut, and the page says so.

    Args:
        text: Any string.
        longest: Number of characters that are shown.

    Example:
        >>> escape_text("<b>\ufeff")
        Markup('&lt;b&gt;<bdi class="unseen">U+FEFF</bdi>')
    """
    parts = []
    for character in text[:longest]:
        name = _name_of_unseen(character)
        if name is None:
            parts.append(html.escape(character))
        else:
            parts.append(_mark_unseen(name))
    if len(text) > longest:
        parts.append(_mark_unseen(f"… of {len(text):,} characters"))
    return Markup("".join(parts))


def _mark_unseen(words: str) -> str:
    # A <bdi>, because the letters of our words must not decide the direction of the text around them.
    return f'<bdi class="unseen">{words}</bdi>'


def isolate_text(text: str, longest: int = MOST_SHOWN_CHARACTERS) -> Markup:
    """Turn text into HTML within a line: its direction of writing ends with it. The rest is as in `escape_text`."""
    return Markup("<bdi>{}</bdi>").format(escape_text(text, longest))


def show_path(text: str, longest: int = MOST_SHOWN_CHARACTERS) -> Markup:
    """Turn a path into HTML within a line. The line may break after each slash.

    Example:
        >>> show_path("clips/1.wav")
        Markup('<bdi>clips/<wbr>1.wav</bdi>')
    """
    shown = Markup("/<wbr>").join(escape_text(part) for part in text[:longest].split("/"))
    if len(text) > longest:
        shown += "…"
    return Markup("<bdi>{}</bdi>").format(shown)


def escape_attribute(text: str, longest: int = MOST_SHOWN_CHARACTERS) -> Markup:
    r"""Turn text into HTML where no element can stand: in an attribute or in a title.

    Example:
        >>> escape_attribute('"\0')
        Markup('&quot;U+0000')
    """
    named = [_name_of_unseen(character) or character for character in text[:longest]]
    return Markup(html.escape("".join(named)))


def _name_of_unseen(character: str) -> str | None:
    """Return what stands for a character that cannot be seen; None for one that can."""
    category = unicodedata.category(character)
    code = ord(character)
    # Python holds a byte of a file name that is not UTF-8 in this range.
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    is_unseen = category in ("Cc", "Cs", "Co", "Zl", "Zp")
    is_format = category == "Cf" and character not in _VISIBLE_FORMAT_CHARACTERS
    if is_unseen or is_format:
        return f"U+{code:04X}"
    return None
