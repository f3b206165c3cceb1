"""What a model's losses say of texts, each beside its own sound and beside those of the rows around it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np

UNLIKELY = 5.0  # robust deviations over the usual loss


def unlikely_texts(own: np.ndarray, by_text: np.ndarray) -> Iterator[tuple[int, str]]:
    """Find rows whose text has a far larger loss than others', or hardly a smaller one than beside others' sounds.

    Args:
        own: (n_rows,), NaN for those that are not looked at.
        by_text: see `by_text`.
    """
    reach = by_text.shape[1] // 2
    elsewhere = np.delete(by_text, reach, axis=1)
    gained = _middle(elsewhere, axis=1) - own
    usual, usually = np.nanmedian(own), np.nanmedian(gained)
    spread, spread_gained = (
        max(0.05, 1.4826 * np.nanmedian(np.abs(values - np.nanmedian(values)))) for values in (own, gained)
    )
    tells = usually > 2 * spread_gained  # else the model does not know one text from another
    for number, loss in enumerate(own):
        if loss > usual + UNLIKELY * spread:
            yield number, f"loss {loss:.2f} a token; usual: {usual:.2f}"
        elif tells and gained[number] < min(usually / 4, usually - 2.5 * spread_gained):
            yield (
                number,
                f"its loss is {gained[number]:.2f} a token below that beside others' sound; usual: {usually:.2f}",
            )


def by_text(losses: np.ndarray) -> np.ndarray:
    """(n_rows, 7): the losses of a row's text beside the sounds of the rows from 3 before to 3 after."""
    n_rows, width = losses.shape
    reach = width // 2
    found = np.full_like(losses, np.nan)
    for step in range(-reach, reach + 1):
        sound = np.arange(max(0, step), n_rows + min(0, step))
        found[sound - step, reach + step] = losses[sound, reach - step]
    return found


def _middle(values: np.ndarray, *, axis: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a row without any loss
        return np.nanmedian(values, axis=axis)


def gains_of(losses: np.ndarray) -> dict[int, np.ndarray]:
    """shift -> by the row of a sound: how much better the text of so many rows further up fits than what stands there.

    What stands there is both: the sound's own text, and the text's own sound. Each text's middle loss is taken off, as
    some texts are unlikely beside any sound.
    """
    n_rows, width = losses.shape
    reach = width // 2
    usual = _middle(by_text(losses), axis=1)
    gains = {}
    for shift in (*range(-reach, 0), *range(1, reach + 1)):
        sound = np.arange(max(0, shift), n_rows + min(0, shift))
        text = sound - shift
        stands = (losses[sound, reach] - usual[sound] + losses[text, reach] - usual[text]) / 2
        gains[shift] = np.full(n_rows, np.nan)
        gains[shift][sound] = stands - (losses[sound, reach - shift] - usual[text])
    return gains
