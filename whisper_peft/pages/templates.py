"""The templates of our HTML pages. They lie beside the code that fills them, as `*.html.jinja`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment

PACKAGE = Path(__file__).parents[1]


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(PACKAGE),
        # Everything that is put into a page is escaped, unless it is Markup, which only our own functions return.
        autoescape=True,
        # A misspelt name in a template is an error, not an empty place in the page.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(name: str, **values: object) -> str:
    """Fill a template.

    Args:
        name: Path of the template inside the package, for example "checking/page.html.jinja".
        **values: What the template names. Text is escaped.

    Returns:
        The page as HTML.
    """
    return _environment().get_template(name).render(**values)
