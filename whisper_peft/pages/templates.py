"""The templates of our HTML pages. They lie beside the code that fills them, as `*.html.jinja`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from whisper_peft.pages.text import escape_attribute, escape_text, isolate_text, show_path

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES_ROOT = Path(__file__).parents[1]


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES_ROOT),
        # Everything that is put into a page is escaped, unless it is Markup, which only our own functions return.
        autoescape=True,
        # A misspelt name in a template is an error, not an empty place in the page.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # What comes from data goes through one of these. They also name what cannot be seen, and cut what is too long.
    for show in (escape_text, isolate_text, show_path, escape_attribute):
        environment.filters[show.__name__] = show
    return environment


def render(name: str, /, **values: object) -> Markup:
    """Fill a template.

    Args:
        name: Path of the template inside the package, for example "checking/page.html.jinja".
        **values: What the template names. Text is escaped.

    Returns:
        The HTML. As it is Markup, another template may take it as it stands.
    """
    return Markup(_environment().get_template(name).render(**values))
