"""A bar for what takes long."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def bar(label: str, total: int, shown: bool) -> Iterator[Callable[[int], object]]:
    """A progress bar of clips on stderr, which is told how many more are done; or nothing."""
    if not shown:
        yield lambda clips: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=label, unit="clip", leave=False, disable=None) as shown_bar:
        yield shown_bar.update
