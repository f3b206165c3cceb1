"""Use a model's losses as evidence about texts: each beside its own sound, and beside the sounds of the rows around."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np

# A loss this many robust deviations above the usual one makes a text unlikely.
_UNLIKELY = 5.0
# The losses tell texts apart if the usual gain of the own sound is this many deviations from 0.
_TELLS_APART = 2
# A text is unlikely, too, if its own sound gains it less than a quarter of the usual, and this many deviations less.
_LOW_GAIN_SHARE = 4
_LOW_GAIN = 2.5
# Deviations below this are taken for it: losses are never that alike.
_LEAST_DEVIATION = 0.05


def find_unlikely_texts(own_losses: np.ndarray, by_text: np.ndarray) -> Iterator[tuple[int, str]]:
    """Find rows whose text has a far larger loss than others', or hardly a smaller one than beside others' sounds.

    Args:
        own_losses: Loss of each row's text beside its own sound, float (n_rows,); NaN for rows to be passed over.
        by_text: From `losses_by_text`.

    Yields:
        The row, and why its text is unlikely.
    """
    own_column = by_text.shape[1] // 2
    elsewhere = np.delete(by_text, own_column, axis=1)
    gains = _median_of_known(elsewhere, axis=1) - own_losses
    usual_loss = np.nanmedian(own_losses)
    usual_gain = np.nanmedian(gains)
    loss_deviation = _deviation_of_known(own_losses)
    gain_deviation = _deviation_of_known(gains)
    tells_texts_apart = usual_gain > _TELLS_APART * gain_deviation
    low_gain = min(usual_gain / _LOW_GAIN_SHARE, usual_gain - _LOW_GAIN * gain_deviation)
    for row, loss in enumerate(own_losses):
        if loss > usual_loss + _UNLIKELY * loss_deviation:
            yield row, f"loss {loss:.2f} a token; usual: {usual_loss:.2f}"
        elif tells_texts_apart and gains[row] < low_gain:
            detail = f"its loss is {gains[row]:.2f} a token below that beside others' sound; usual: {usual_gain:.2f}"
            yield row, detail


def _deviation_of_known(values: np.ndarray) -> float:
    return max(_LEAST_DEVIATION, 1.4826 * np.nanmedian(np.abs(values - np.nanmedian(values))))


def losses_by_text(losses: np.ndarray) -> np.ndarray:
    """Sort losses by the row of the text, where `neighbour_losses` sorts them by the row of the sound.

    Args:
        losses: float (n_rows, 7); [sound, 3 + d] is the loss of the text d rows further down.

    Returns:
        float (n_rows, 7); [text, 3 + d] is the loss beside the sound d rows further down. NaN where there is none.

    Example:
        >>> losses = np.array([[np.nan, 1.0, 2.0], [3.0, 4.0, np.nan]])
        >>> losses_by_text(losses)
        array([[nan,  1.,  3.],
               [ 2.,  4., nan]])
    """
    n_rows, width = losses.shape
    reach = width // 2
    by_text = np.full_like(losses, np.nan)
    for step in range(-reach, reach + 1):
        sounds = np.arange(max(0, step), n_rows + min(0, step))
        by_text[sounds - step, reach + step] = losses[sounds, reach - step]
    return by_text


def _median_of_known(values: np.ndarray, *, axis: int) -> np.ndarray:
    with warnings.catch_warnings():
        # A row without any loss has the median NaN, which is what we want.
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmedian(values, axis=axis)


def gains_of(losses: np.ndarray) -> dict[int, np.ndarray]:
    """For each shift, tell how much better the text `shift` rows further up fits each sound than what stands there.

    What stands there is both the sound's own text and the text's own sound: the mean of the two counts. The median loss
    of each text is subtracted first, because some texts are unlikely beside any sound.

    Args:
        losses: float (n_rows, 7); see `losses_by_text`.

    Returns:
        For each shift, float (n_rows,) by the row of the sound, in nats per token; NaN where it is not known.
    """
    n_rows, width = losses.shape
    reach = width // 2
    usual = _median_of_known(losses_by_text(losses), axis=1)
    gains = {}
    for shift in (*range(-reach, 0), *range(1, reach + 1)):
        sounds = np.arange(max(0, shift), n_rows + min(0, shift))
        texts = sounds - shift
        standing = (losses[sounds, reach] - usual[sounds] + losses[texts, reach] - usual[texts]) / 2
        gains[shift] = np.full(n_rows, np.nan)
        gains[shift][sounds] = standing - (losses[sounds, reach - shift] - usual[texts])
    return gains
