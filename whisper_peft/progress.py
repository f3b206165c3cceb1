"""The progress bar that everything slow shows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

# Called with how much more is done, and with the total where the bar learns it on the way.
Update = Callable[..., object]

CLIPS = "clip"
SECONDS = "s of sound"
# tqdm's own bar would print fractions of a second and a rate that nobody needs.
_SECONDS_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of sound [{elapsed}<{remaining}]"


@contextlib.contextmanager
def bar(label: str, total: float | None, shown: bool, unit: str = CLIPS) -> Iterator[Update]:
    """Show a progress bar on stderr while the body runs.

    Args:
        label: What is being done.
        total: How much there is to do; None if the first update tells it. The bar then appears with that update.
        shown: Whether there is a bar at all.
        unit: CLIPS or SECONDS.

    Yields:
        A function `update(done, total=None)` that takes how much more is done.
    """
    if not shown:
        yield lambda done, total=None: None
        return
    from tqdm import tqdm

    # disable=None: no bar where stderr is no terminal.
    options: dict[str, Any] = {"desc": label, "unit": unit, "leave": False, "disable": None}
    if unit == SECONDS:
        options["bar_format"] = _SECONDS_FORMAT
    with contextlib.ExitStack() as stack:
        shown_bar = None if total is None else stack.enter_context(tqdm(total=total, **options))

        def update(done: float, total: float | None = None) -> None:
            nonlocal shown_bar
            if shown_bar is None:
                shown_bar = stack.enter_context(tqdm(total=total, **options))
            shown_bar.update(done)

        yield update
