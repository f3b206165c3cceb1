"""Guarded reading: every file that a user or a stranger gives us is opened, parsed and shown through this module.

A fifo or a device is refused before it is opened. Text, JSON and YAML have limits on size, depth and number of nodes.
Each problem is an `UnusableFileError`, whose message names the file and whose `reason` does not.
"""

from __future__ import annotations

import errno
import json
import os
import re
import reprlib
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from whisper_peft.errors import UserError

# Largest size of a text file. A page of settings has some kilobytes; a tokenizer.json of Whisper has 4 MB.
MAX_TEXT_BYTES = 64 * 1024**2
# Largest nesting of JSON and YAML.
MAX_DEPTH = 100
MAX_YAML_NODES = 100_000

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_HTML = re.compile(rb"\s*(<!--.*?-->\s*)?<(!doctype\s+html|html|head)\b", re.IGNORECASE | re.DOTALL)
# Control characters (ESC, BEL, CSI, carriage return), line separators, and halves of surrogate pairs.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SHOWN_ESCAPES = {"\r": "\\r", "\x1b": "\\x1b", "\n": "\\n", "\t": "\\t"}


class UnusableFileError(UserError):
    """A file that cannot be read.

    Args:
        path: The file.
        reason: What is wrong with it and, where we know it, what to do. It ends without a full stop.
    """

    def __init__(self, path: str | Path | bytes, reason: str):
        super().__init__(f"{printable(path)}: {reason}.")
        self.reason = reason


class YamlSyntaxError(ValueError):
    """A page that is not YAML."""


def open_file(path: str | Path, *, allow_empty: bool = False) -> BinaryIO:
    """Open a regular file for reading; refuse everything else before it is opened.

    Args:
        path: The file. Links are followed.
        allow_empty: Whether to open a file of size 0. Files in /proc have that size, too.

    Returns:
        The open file, at its start.

    Raises:
        UnusableFileError: The file is missing or empty, is a folder, a fifo, a socket or a device, or may not be read.
    """
    try:
        state = os.stat(path)
        _refuse_irregular(path, state, allow_empty)
        # A fifo that took the file's place in between does not block, and is refused below.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        # ValueError: there is a NUL in the name.
        raise UnusableFileError(path, reason_of(error)) from None
    file = os.fdopen(handle, "rb")
    try:
        _refuse_irregular(path, os.fstat(handle), allow_empty)
    except UnusableFileError:
        file.close()
        raise
    return file


def _refuse_irregular(path: str | Path, state: os.stat_result, allow_empty: bool) -> None:
    kinds = (
        (stat.S_ISDIR, "a folder, not a file"),
        (stat.S_ISFIFO, "a pipe (fifo), not a file"),
        (stat.S_ISSOCK, "a socket, not a file"),
        (stat.S_ISCHR, "a device, not a file"),
        (stat.S_ISBLK, "a device, not a file"),
    )
    for is_kind, reason in kinds:
        if is_kind(state.st_mode):
            raise UnusableFileError(path, reason)
    if state.st_size == 0 and not allow_empty:
        raise UnusableFileError(path, "the file is empty")


def reason_of(error: BaseException) -> str:
    """Say in a few words why the system refused a file."""
    code = getattr(error, "errno", None)
    known = {
        errno.ENOENT: "no such file",
        errno.ENOTDIR: "no such file",
        errno.EACCES: "no permission to read it",
        errno.EPERM: "no permission to read it",
        errno.EISDIR: "a folder, not a file",
        errno.ENAMETOOLONG: "a name too long for any file",
        errno.ELOOP: "a link that leads to itself",
        errno.EMFILE: "too many open files; raise the limit with ulimit -n 4096",
        errno.ENOSPC: "no space left on this disk",
    }
    if code in known:
        return known[code]
    return f"cannot be read ({getattr(error, 'strerror', None) or printable(str(error))})"


def foreign_content(head: bytes) -> str | None:
    """Recognise the content that a failed download leaves in place of a file.

    Args:
        head: The first bytes of the file: 512, or all of a shorter file.

    Returns:
        What the content is and what the user can do, or None.

    Example:
        >>> foreign_content(b"version https://git-lfs.github.com/spec/v1\\noid sha256:12")
        'a Git LFS pointer, not the file itself; fetch it with: git lfs pull'
    """
    if head.startswith(_LFS_POINTER):
        return "a Git LFS pointer, not the file itself; fetch it with: git lfs pull"
    if _HTML.match(head):
        return "an HTML page, not the file itself; the download failed, so download it again"
    return None


def read_text(path: str | Path, *, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Raises:
        UnusableFileError: The file cannot be opened, is larger than `max_bytes`, or is not UTF-8.
    """
    with open_file(path, allow_empty=True) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            # read() reserves as much memory as it is asked for.
            content = file.read(min(max_bytes, size) + 1)
        except OSError as error:
            raise UnusableFileError(path, reason_of(error)) from None
    if len(content) > max_bytes:
        raise UnusableFileError(path, f"larger than {max_bytes // 1024**2} MB, which no file of this kind is")
    foreign = foreign_content(content[:4096])
    if foreign:
        raise UnusableFileError(path, foreign)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnusableFileError(path, f"not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None


def read_json_file(path: str | Path, *, kind: type = dict, max_bytes: int = MAX_TEXT_BYTES) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        kind: Type of the whole content: dict, list or object.
        max_bytes: Size above which the file is refused.

    Raises:
        UnusableFileError: The file cannot be read, is not JSON, is nested too deeply, or its content has another type.
    """
    text = read_text(path, max_bytes=max_bytes)
    try:
        content = parse_json(text)
    except ValueError as error:
        raise UnusableFileError(path, f"not JSON ({error})") from None
    if not isinstance(content, kind):
        names: dict[type, str] = {dict: "an object", list: "a list"}
        wanted = names.get(kind, kind.__name__)
        raise UnusableFileError(path, f"its content is {_json_kind(content)}; expected {wanted}")
    return content


def parse_json(text: str) -> Any:
    """Parse JSON within limits.

    Raises:
        ValueError: The text is not JSON, is nested more than 100 levels deep, or holds an impossible number.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from None
    except ValueError as error:
        # Python refuses an integer of thousands of digits with this error, too.
        raise ValueError(printable(str(error))) from None
    if _is_deeper(content, MAX_DEPTH):
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
    return content


def _is_deeper(content: Any, max_depth: int) -> bool:
    """Tell whether lists and objects are nested more than so many levels deep."""
    level = [content]
    for _ in range(max_depth):
        level = [child for item in level for child in _children(item)]
        if not level:
            return False
    return True


def _children(item: Any) -> Iterable[Any]:
    if isinstance(item, dict):
        return [value for value in item.values() if isinstance(value, (dict, list))]
    if isinstance(item, list):
        return [value for value in item if isinstance(value, (dict, list))]
    return ()


def _json_kind(content: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(content), "a number")


def parse_yaml(text: str, *, unique_keys: bool = False) -> Any:
    """Parse a YAML page within limits. An alias counts each time that it is used.

    Args:
        text: The page.
        unique_keys: Whether to refuse a key that stands twice in one mapping. In YAML itself the last one wins.

    Raises:
        YamlSyntaxError: The page is not YAML, or a key stands twice.
        ValueError: The page is nested more than 100 levels deep, has more than 100,000 nodes, or holds an impossible
            date or number.
    """
    import yaml

    try:
        # The loader is a SafeLoader: it makes plain values only.
        return yaml.load(text, _limited_loader(unique_keys))
    except yaml.YAMLError as error:
        raise YamlSyntaxError(printable(" ".join(str(error).split()))) from None
    except (ValueError, OverflowError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise ValueError(printable(" ".join(str(error).split()))[:200]) from None
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from None


def _limited_loader(unique_keys: bool) -> type:
    """Make a class that loads YAML within our limits."""
    import yaml

    class LimitedLoader(yaml.SafeLoader):
        """A SafeLoader that counts the nodes that a reader of the page meets."""

        def __init__(self, stream: str):
            super().__init__(stream)
            self.depth = 0
            self.n_nodes = 0
            # Number of nodes under each anchor.
            self.sizes: dict[str | None, int] = {}

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            if isinstance(event, yaml.AliasEvent):
                if event.anchor in self.anchors and event.anchor not in self.sizes:
                    raise ValueError(f"the alias *{event.anchor} stands inside its own anchor")
                self._count(self.sizes.get(event.anchor, 1))
                return super().compose_node(parent, index)
            before = self.n_nodes
            self._count(1)
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
            node = super().compose_node(parent, index)
            self.depth -= 1
            if event.anchor:
                self.sizes[event.anchor] = self.n_nodes - before
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            if unique_keys:
                self._refuse_doubled_keys(node)
            return super().construct_mapping(node, deep)

        def _refuse_doubled_keys(self, node: Any) -> None:
            seen = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue
                if key.value in seen:
                    raise yaml.YAMLError(
                        f"{short_repr(key.value)} stands twice, again in line {key.start_mark.line + 1}"
                    )
                seen.add(key.value)

        def _count(self, nodes: int) -> None:
            self.n_nodes += nodes
            if self.n_nodes > MAX_YAML_NODES:
                raise ValueError(f"more than {MAX_YAML_NODES:,} nodes, aliases counted as often as they are used")

    return LimitedLoader


def printable(text: object, *, keep_line_breaks: bool = False) -> str:
    """Escape the characters that a terminal obeys instead of showing them.

    Args:
        text: A message, a name or a transcript. Bytes are decoded as UTF-8.
        keep_line_breaks: Whether line breaks and tabs stay as they are.

    Returns:
        The text with control characters, line separators and halves of surrogate pairs as backslash escapes.

    Example:
        >>> printable("a\\x1b[2Jb")
        'a\\\\x1b[2Jb'
    """
    text = os.fsdecode(text) if isinstance(text, bytes) else str(text)
    text = _UNPRINTABLE.sub(_escape, text)
    if keep_line_breaks:
        return text
    return text.replace("\n", "\\n").replace("\t", "\\t")


def short_repr(value: object) -> str:
    """Format a value for a message: shortened if it is long or deep, and escaped.

    Example:
        >>> short_repr("x" * 1000)
        "'xxxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxxxx'"
    """
    shown = reprlib.Repr()
    shown.maxstring = 62
    shown.maxother = 62
    return printable(shown.repr(value))


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    if character in _SHOWN_ESCAPES:
        return _SHOWN_ESCAPES[character]
    # A byte of a file name that is not UTF-8 (PEP 383).
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def printable_json(text: str) -> str:
    """Escape in JSON text the characters that a terminal obeys or that cannot be encoded. It means the same."""
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def is_folder(text: str) -> bool:
    """Tell whether a text is the path of a folder here. A text that cannot be a path is none."""
    try:
        return Path(text).is_dir()
    except (OSError, ValueError):
        return False
