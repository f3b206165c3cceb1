"""Stitching: windows of up to 30 s that are made from single clips of one speaker.

A model that only ever hears single sentences forgets what a window full of speech is: it stops after the first
sentence of a recording. So a share of the clips is joined into longer windows, with silence between them and with the
time of each clip. Which clips are joined depends on the seed and the epoch alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whisper_peft.data.rows import Row

GAP_S = (0.2, 1.0)  # shortest and longest silence between two joined clips
TOKENS_OF_A_PREFIX = 6  # start, language, task, no timestamps, end, and one to spare
TOKENS_OF_A_TIME = 3  # that a clip's text adds: its two times and a space
MOST_JOINED = 24  # in one window; clips of a second each would fill 30 s with more

FRAME_S = 0.02  # the unit of the level detector, and of Whisper's times
QUIET_PERCENTILE = 10  # a clip's noise floor is the level that a tenth of its frames stay under
LOUD_PERCENTILE = 95
MOST_RANGE_DB = 60.0  # telephones send digital silence, which is far below any sound that counts
LEAST_RANGE_DB = 12.0  # a clip with less between floor and speech has no silence that a level can tell
ABOVE_FLOOR = 0.35  # speech is what rises over the floor by this share of the range
LEAST_FRAMES = 3  # of speech in a row: a click is no speech
SPEECH_MARGIN_S = 0.06  # kept before and after, for weak first and last sounds


def find_speech(wave: np.ndarray, sample_rate_hz: int) -> tuple[float, float]:
    """Find where a clip's speech begins and ends, by its level over its own noise floor.

    The level of 20 ms frames is held against a threshold between the noise floor (10th percentile) and the speech
    (95th percentile). The first and the last three frames in a row above it are the ends of the speech, with a margin
    of 60 ms. A clip whose level hardly changes counts as speech from start to end.

    Args:
        wave: float32 (n_samples,).
        sample_rate_hz: Its rate.

    Returns:
        (start_s, end_s), in seconds from the start of the clip.
    """
    length_s = len(wave) / sample_rate_hz
    levels = frame_levels_db(wave, sample_rate_hz)
    if len(levels) < LEAST_FRAMES:
        return 0.0, length_s
    floor, loud = np.percentile(levels, (QUIET_PERCENTILE, LOUD_PERCENTILE))
    floor = max(floor, loud - MOST_RANGE_DB)
    if loud - floor < LEAST_RANGE_DB:
        return 0.0, length_s
    is_speech = levels > floor + ABOVE_FLOOR * (loud - floor)
    in_a_row = np.convolve(is_speech, np.ones(LEAST_FRAMES, dtype=int), mode="valid") == LEAST_FRAMES
    places = np.flatnonzero(in_a_row)
    if not len(places):
        return 0.0, length_s
    start_s = places[0] * FRAME_S - SPEECH_MARGIN_S
    end_s = (places[-1] + LEAST_FRAMES) * FRAME_S + SPEECH_MARGIN_S
    return max(0.0, float(start_s)), min(length_s, float(end_s))


def frame_levels_db(wave: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Measure the level of each whole 20 ms frame, float64 (n_frames,), in decibels below full scale."""
    n_samples = round(FRAME_S * sample_rate_hz)
    n_frames = len(wave) // n_samples
    frames = wave[: n_frames * n_samples].reshape(n_frames, n_samples).astype(np.float64)
    return 10 * np.log10(np.square(frames).mean(axis=1) + 1e-12)


def noise_like(wave: np.ndarray, n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Make noise that sounds like the quiet parts of a clip.

    White noise gets the average spectrum of the clip's quietest tenth of 20 ms frames, and so their level.

    Args:
        wave: float32 (n_wave_samples,), the clip.
        n_samples: Length of the noise.
        rng: Where the noise is drawn from.

    Returns:
        float32 (n_samples,).
    """
    frame = 320  # samples: 20 ms at 16 kHz; at another rate only the resolution of the spectrum changes
    n_frames = len(wave) // frame
    if n_frames == 0 or n_samples == 0:
        return np.zeros(n_samples, dtype=np.float32)
    frames = wave[: n_frames * frame].reshape(n_frames, frame).astype(np.float64)
    energies = np.square(frames).sum(axis=1)
    n_quiet = max(1, n_frames // 10)
    quiet = frames[np.argsort(energies, kind="stable")[:n_quiet]]
    window = np.hanning(frame)
    power = np.mean(np.abs(np.fft.rfft(quiet * window, axis=1)) ** 2, axis=0)  # (frame // 2 + 1,)
    spectrum = np.fft.rfft(rng.standard_normal(n_samples))
    places_of_noise = np.linspace(0, 1, len(spectrum))
    places_of_power = np.linspace(0, 1, len(power))
    shaped = np.fft.irfft(spectrum * np.sqrt(np.interp(places_of_noise, places_of_power, power)), n_samples)
    wanted_rms = np.sqrt(np.square(quiet).mean())
    found_rms = np.sqrt(np.square(shaped).mean())
    if found_rms == 0:
        return np.zeros(n_samples, dtype=np.float32)
    return (shaped * (wanted_rms / found_rms)).astype(np.float32)


def number_voices(rows: Sequence[Row], parts: Sequence[tuple[int, float]] = ()) -> np.ndarray:
    """Number the voices of rows, int64 (n_rows,): rows of one number may be joined.

    They are of one speaker and one language, and where no speaker is named, of one source. A row without speech has a
    number of its own, so that it is never joined.

    Args:
        rows: The rows, source after source.
        parts: (rows, weight) of the sources; without them, all rows are of one source.
    """
    sources = np.repeat(np.arange(len(parts)), [n_rows for n_rows, _ in parts]).tolist() or [0] * len(rows)
    numbers: dict[tuple, int] = {}
    voices = np.empty(len(rows), dtype=np.int64)
    for place, (row, source) in enumerate(zip(rows, sources, strict=True)):
        voice = (source, row.speaker, row.language)
        if row.no_speech:
            voice = (source, row.speaker, row.language, place)
        voices[place] = numbers.setdefault(voice, len(numbers))
    return voices


def gather(
    order: np.ndarray, voices: np.ndarray, share: float, rng: np.random.Generator, *, most_clips: int = MOST_JOINED
) -> tuple[np.ndarray, np.ndarray]:
    """Choose a share of an epoch's clips for stitching, and put those that belong together beside each other.

    Args:
        order: int64 (n_clips,), row numbers in the order of the epoch.
        voices: int64 (n_rows,), equal for rows that may be joined: one speaker's, else one source's.
        share: Share of the clips to choose.
        rng: Draws the groups and the new order.
        most_clips: Largest group.

    Returns:
        The new order, int64 (n_clips,), and the group of each place in it, int64 (n_clips,): -1 for a clip that stays
        alone; the clips of a group stand in a row. A chosen clip without a partner stays alone, so where many speakers
        have one clip each fewer than `share` are joined.
    """
    alone = np.full(len(order), -1, dtype=np.int64)
    if share <= 0 or len(order) < 2:
        return order, alone
    by_voice = np.argsort(voices[order], kind="stable")  # keeps the epoch's order within a voice
    sorted_voices = voices[order][by_voice]
    first_of_voice = np.searchsorted(sorted_voices, sorted_voices)
    place_in_voice = np.arange(len(order)) - first_of_voice
    group = first_of_voice + place_in_voice // most_clips * most_clips  # named after the place of its first clip
    names, sizes = np.unique(group, return_counts=True)
    candidates = rng.permutation(np.flatnonzero(sizes > 1))
    n_chosen = np.cumsum(sizes[candidates])
    wanted = share * len(order)
    # The group that crosses the wanted number is shortened to it, so that small sets get their share, too.
    n_whole = int(np.searchsorted(n_chosen, wanted, side="right"))
    chosen = set(names[candidates[:n_whole]].tolist())
    is_chosen = np.isin(group, list(chosen))
    if n_whole < len(candidates):
        n_so_far = n_chosen[n_whole - 1] if n_whole else 0
        rest = round(float(wanted - n_so_far))
        if rest > 1:
            places = np.flatnonzero(group == names[candidates[n_whole]])[:rest]
            is_chosen[places] = True
    grouped = np.empty(len(order), dtype=np.int64)
    grouped[by_voice] = np.where(is_chosen, group, -1)
    keys = rng.random(len(order))
    key_of_group = rng.random(len(order))
    keys = np.where(grouped >= 0, key_of_group[grouped], keys)
    new_places = np.argsort(keys, kind="stable")
    return order[new_places], grouped[new_places]


def fill_windows(
    seconds: Sequence[float],
    tokens: Sequence[int],
    *,
    window_s: float,
    max_tokens: int,
    most_clips: int = MOST_JOINED,
) -> list[slice]:
    """Cut a group of clips into windows that they fill, one after the other.

    Args:
        seconds: Length of each clip, in the order of the group.
        tokens: Number of tokens of each clip's text, with its times.
        window_s: Longest window, in seconds. Between two clips the longest gap is counted.
        max_tokens: Largest number of tokens in a window.
        most_clips: Largest number of clips in a window.

    Returns:
        One slice over the clips for each window.

    Example:
        >>> fill_windows([10.0, 12.0, 9.0, 3.0], [20, 20, 20, 20], window_s=30.0, max_tokens=440)
        [slice(0, 2, None), slice(2, 4, None)]
    """
    windows = []
    first = 0
    length_s = 0.0
    n_tokens = 0
    for place, (clip_s, clip_tokens) in enumerate(zip(seconds, tokens, strict=True)):
        is_full = (
            length_s + GAP_S[1] + clip_s > window_s
            or n_tokens + clip_tokens > max_tokens
            or place - first >= most_clips
        )
        if place > first and is_full:
            windows.append(slice(first, place))
            first = place
        if place == first:
            length_s = clip_s
            n_tokens = clip_tokens
        else:
            length_s += GAP_S[1] + clip_s
            n_tokens += clip_tokens
    if first < len(seconds):
        windows.append(slice(first, len(seconds)))
    return windows


def join(
    waves: Sequence[np.ndarray], max_samples: int, sample_rate_hz: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[float]]:
    """Join clips into one window, with 0.2 to 1.0 s of their own noise floor between them.

    Where the window would become too long, the gaps become shorter; where even the shortest gaps do not help, the last
    clips are not joined.

    Args:
        waves: float32 (n_samples,) each; the first one fits alone.
        max_samples: Longest window.
        sample_rate_hz: Rate of all.
        rng: Draws the gaps and the noise in them.

    Returns:
        The window, float32 (n_samples,), and the start of each clip that is in it, in seconds.
    """
    if len(waves) == 1:
        return waves[0], [0.0]
    shortest, longest = (round(gap_s * sample_rate_hz) for gap_s in GAP_S)
    lengths = np.cumsum([len(wave) for wave in waves]) + shortest * np.arange(len(waves))
    n_clips = max(1, int(np.searchsorted(lengths, max_samples, side="right")))
    room = max_samples - int(lengths[n_clips - 1])
    extra = rng.integers(0, longest - shortest + 1, size=n_clips - 1)  # beyond the shortest gap
    if extra.sum() > room:
        extra = (extra * (room / extra.sum())).astype(int)
    parts = []
    starts_s = []
    n_so_far = 0
    for place, wave in enumerate(waves[:n_clips]):
        if place:
            gap = _gap(waves[place - 1], wave, shortest + int(extra[place - 1]), rng)
            parts.append(gap)
            n_so_far += len(gap)
        starts_s.append(n_so_far / sample_rate_hz)
        parts.append(wave)
        n_so_far += len(wave)
    return np.concatenate(parts), starts_s


def _gap(before: np.ndarray, after: np.ndarray, n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Make noise that fades from one clip's floor into the next one's."""
    fade = np.linspace(0, 1, n_samples, dtype=np.float32)
    return (1 - fade) * noise_like(before, n_samples, rng) + fade * noise_like(after, n_samples, rng)
