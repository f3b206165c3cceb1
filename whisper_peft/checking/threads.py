"""Threads for what waits for decoders and disks."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from whisper_peft.progress import bar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], label: str, progress: bool
) -> Iterator[Result]:
    """Call a function with each item, in several threads. Decoders work outside of the interpreter's lock.

    Args:
        function: Called once with each item.
        items: The items.
        label: What the progress bar says.
        progress: Whether to show a progress bar on stderr.

    Yields:
        The results, in the order of the items. Only a few are waiting at any time, so memory stays small.
    """
    n_threads = min(8, (os.cpu_count() or 1) + 1)
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(n_threads) as pool, bar(label, len(items), progress) as update:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 4 * n_threads:
                yield waiting.popleft().result()
                update(1)
        while waiting:
            yield waiting.popleft().result()
            update(1)
