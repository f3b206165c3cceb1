"""A hook of mkdocs: pages of the site that do not lie in docs/, and links that lead out of docs/.

README.md, CONTRIBUTING.md, CHANGELOG.md and benchmarks/README.md become pages of the site. The page reference.md lists
every public name; mkdocstrings fills it from the docstrings. A link to a file that is no page of the site becomes the
name of that file.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path, PurePosixPath

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
# Files of the repository that become pages, by their names in the site.
PAGES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changes.md": "CHANGELOG.md",
    "benchmarks.md": "benchmarks/README.md",
}
_LINK = re.compile(r"(!?)\[([^\]]+)\]\(([^)\s]+)\)")


def on_files(files, config):
    """Add the generated pages."""
    for name, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text))
    files.append(File.generated(config, "reference.md", content=reference_page()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Mend the links of a page."""
    origin = PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return mend_links(markdown, PurePosixPath(origin))


def mend_links(text: str, origin: PurePosixPath) -> str:
    """Rewrite links for the site.

    Args:
        text: A page.
        origin: Where the page lies in the repository.
    """
    names = {source: name for name, source in PAGES.items()}

    def mend(match: re.Match[str]) -> str:
        picture, label, target = match.groups()
        path, hash_sign, anchor = target.partition("#")
        if "://" in target or not path:
            return match[0]
        place = _normalize(origin.parent / path)
        if place in names:
            return f"{picture}[{label}]({names[place]}{hash_sign}{anchor})"
        if place.startswith("docs/"):
            return f"{picture}[{label}]({place.removeprefix('docs/')}{hash_sign}{anchor})"
        # There is no such page, so the path stands for the link.
        is_name = label.strip("`") in (place, PurePosixPath(place).name)
        return f"`{place}`" if is_name else f"{label} (`{place}`)"

    return _LINK.sub(mend, text)


def _normalize(path: PurePosixPath) -> str:
    """Resolve the .. in a path."""
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)


def reference_page() -> str:
    """Write the page that names every public name, for mkdocstrings to fill."""
    sys.path.insert(0, str(ROOT))
    import whisper_peft

    lines = [
        "# Every public name",
        "",
        "This page is generated from the docstrings. [The tour](python-api.md) explains them.",
    ]
    for name in whisper_peft.__all__:
        lines += ["", f"::: whisper_peft.{whisper_peft._ROOM_OF[name]}.{name}"]
    return "\n".join(lines) + "\n"
