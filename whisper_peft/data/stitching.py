"""Stitching: windows of up to 30 s that are made from single clips of one speaker.

A model that only ever hears single sentences forgets what a window full of speech is: it stops after the first
sentence of a recording. So a share of the clips is joined into longer windows, with silence between them and with the
time of each clip. Which clips are joined depends on the seed and the epoch alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whisper_peft.data.rows import Row

# Shortest and longest silence between two joined clips, in seconds.
GAP_S = (0.2, 1.0)

# Tokens around the text of a window: start, language, task, no timestamps, end, and one to spare.
TOKENS_OF_A_PREFIX = 6

# Largest number of clips in one window. Clips of a second each would fill 30 s with more.
MOST_JOINED = 24

# Frame of the level detector, in seconds. It is also the unit of Whisper's times.
FRAME_S = 0.02

# A clip's noise floor is the level that a tenth of its frames stay under; its speech is as loud as the loudest
# twentieth.
QUIET_PERCENTILE = 10
LOUD_PERCENTILE = 95

# Largest range from noise floor to speech, in decibels. Telephones send digital silence, which is far below any sound
# that counts.
MOST_RANGE_DB = 60.0

# Smallest range, in decibels. In a clip with less, the level cannot tell silence from speech.
LEAST_RANGE_DB = 12.0

# A frame is speech where it rises over the floor by this share of the range.
ABOVE_FLOOR = 0.35

# Frames of speech in a row, at least. A click has fewer.
LEAST_FRAMES = 3

# Seconds that are kept before and after the speech, for weak first and last sounds.
SPEECH_MARGIN_S = 0.06

# Samples of a frame from which noise is made: 20 ms at 16 kHz. At another rate only the resolution of the spectrum
# changes.
NOISE_FRAME_SAMPLES = 320


def find_speech(wave: np.ndarray, sample_rate_hz: int) -> tuple[float, float]:
    """Find where a clip's speech begins and ends, by its level over its own noise floor.

    The level of 20 ms frames is held against a threshold between the noise floor (10th percentile) and the speech
    (95th percentile). The first and the last three frames in a row above it are the ends of the speech, with a margin
    of 60 ms. A clip whose level hardly changes counts as speech from start to end.

    Args:
        wave: float32 (n_samples,).
        sample_rate_hz: Rate of the wave.

    Returns:
        (start_s, end_s) of the speech, in seconds from the start of the clip.
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
    """Measure the level of each whole 20 ms frame, float64 (n_frames,), in decibels of full scale.

    Example:
        A second of full scale, as 50 frames of 0 dB.

        >>> frame_levels_db(np.ones(16_000), 16_000).round(3).tolist() == [0.0] * 50
        True
    """
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
        rng: Generator that the noise is drawn from.

    Returns:
        float32 (n_samples,).
    """
    n_frames = len(wave) // NOISE_FRAME_SAMPLES
    if n_frames == 0 or n_samples == 0:
        return np.zeros(n_samples, dtype=np.float32)
    frames = wave[: n_frames * NOISE_FRAME_SAMPLES].reshape(n_frames, NOISE_FRAME_SAMPLES).astype(np.float64)
    energies = np.square(frames).sum(axis=1)
    n_quiet = max(1, n_frames // 10)
    quiet = frames[np.argsort(energies, kind="stable")[:n_quiet]]
    taper = np.hanning(NOISE_FRAME_SAMPLES)
    # (NOISE_FRAME_SAMPLES // 2 + 1,), the average spectrum of the quiet frames.
    power = np.mean(np.abs(np.fft.rfft(quiet * taper, axis=1)) ** 2, axis=0)
    # White noise gets this spectrum, whatever its length, and then the level of the quiet frames.
    spectrum = np.fft.rfft(rng.standard_normal(n_samples))
    places_of_noise = np.linspace(0, 1, len(spectrum))
    places_of_power = np.linspace(0, 1, len(power))
    shaped = np.fft.irfft(spectrum * np.sqrt(np.interp(places_of_noise, places_of_power, power)), n_samples)
    wanted_rms = np.sqrt(np.square(quiet).mean())
    shaped_rms = np.sqrt(np.square(shaped).mean())
    if shaped_rms == 0:
        return np.zeros(n_samples, dtype=np.float32)
    return (shaped * (wanted_rms / shaped_rms)).astype(np.float32)


def number_voices(rows: Sequence[Row], parts: Sequence[tuple[int, float]] = ()) -> np.ndarray:
    """Give each row the number of its voice, int64 (n_rows,). Rows with the same number may be joined.

    A voice is one speaker in one language, and where no speaker is named, one source in one language. A row without
    speech has a number of its own, so that it is never joined.

    Args:
        rows: The rows, source after source.
        parts: (number of rows, weight) of each source. Without them, all rows are of one source.

    Example:
        >>> asha = Row("1.wav", "one", speaker="Asha")
        >>> ravi = Row("2.wav", "two", speaker="Ravi")
        >>> number_voices([asha, ravi, asha]).tolist()
        [0, 1, 0]
    """
    sources = np.repeat(np.arange(len(parts)), [n_rows for n_rows, _ in parts]).tolist() or [0] * len(rows)
    numbers: dict[tuple, int] = {}
    voices = np.empty(len(rows), dtype=np.int64)
    for place, (row, source) in enumerate(zip(rows, sources, strict=True)):
        voice: tuple = (source, row.speaker, row.language)
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
        voices: int64 (n_rows,), see `number_voices`.
        share: Share of the clips to choose.
        rng: Generator that the groups and the new order are drawn from.
        most_clips: Largest group.

    Returns:
        The new order, int64 (n_clips,), and the group of each place in it, int64 (n_clips,). The clips of a group have
        one number and stand in a row; -1 marks a clip that stays alone. A chosen clip without a partner stays alone, so
        where many speakers have one clip each, fewer than `share` are joined.

    Example:
        Rows 0 to 3 are of one voice, rows 4 and 5 of another. All clips are joined, at most three together: row 3 is
        the fourth of its voice and has no partner.

        >>> voices = np.array([0, 0, 0, 0, 1, 1])
        >>> order, groups = gather(np.arange(6), voices, 1.0, np.random.default_rng(0), most_clips=3)
        >>> order.tolist()
        [4, 5, 0, 1, 2, 3]
        >>> groups.tolist()
        [4, 4, 0, 0, 0, -1]
    """
    alone = np.full(len(order), -1, dtype=np.int64)
    if share <= 0 or len(order) < 2:
        return order, alone
    # A stable sort keeps the epoch's order within a voice.
    by_voice = np.argsort(voices[order], kind="stable")
    groups_by_voice = _number_groups(voices[order][by_voice], most_clips)
    is_chosen = _choose_clips(groups_by_voice, share * len(order), rng)
    groups = np.empty(len(order), dtype=np.int64)
    groups[by_voice] = np.where(is_chosen, groups_by_voice, -1)
    # The clips of a group get one random key together, so that they stand in a row in the new order.
    keys = rng.random(len(order))
    keys_of_groups = rng.random(len(order))
    keys = np.where(groups >= 0, keys_of_groups[groups], keys)
    new_places = np.argsort(keys, kind="stable")
    return order[new_places], groups[new_places]


def _number_groups(sorted_voices: np.ndarray, most_clips: int) -> np.ndarray:
    """Cut the clips of each voice into groups, and name each group after the place of its first clip.

    Args:
        sorted_voices: int64 (n_clips,), voices in rising order.
        most_clips: Largest group.

    Returns:
        int64 (n_clips,), the group of each clip.

    Example:
        >>> _number_groups(np.array([7, 7, 7, 9, 9]), most_clips=2).tolist()
        [0, 0, 2, 3, 3]
    """
    first_of_voice = np.searchsorted(sorted_voices, sorted_voices)
    place_in_voice = np.arange(len(sorted_voices)) - first_of_voice
    return first_of_voice + place_in_voice // most_clips * most_clips


def _choose_clips(groups: np.ndarray, n_wanted: float, rng: np.random.Generator) -> np.ndarray:
    """Draw groups of two clips or more until enough clips are chosen, bool (n_clips,)."""
    names, sizes = np.unique(groups, return_counts=True)
    candidates = rng.permutation(np.flatnonzero(sizes > 1))
    n_chosen = np.cumsum(sizes[candidates])
    n_whole = int(np.searchsorted(n_chosen, n_wanted, side="right"))
    is_chosen = np.isin(groups, names[candidates[:n_whole]])
    # The group that crosses the wanted number is shortened to it, so that small sets get their share, too.
    if n_whole < len(candidates):
        n_so_far = 0
        if n_whole:
            n_so_far = n_chosen[n_whole - 1]
        rest = round(float(n_wanted - n_so_far))
        # One clip alone is no group.
        if rest > 1:
            places = np.flatnonzero(groups == names[candidates[n_whole]])[:rest]
            is_chosen[places] = True
    return is_chosen


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
        window_s: Longest window, in seconds. Each gap between two clips counts as the longest one.
        max_tokens: Largest number of tokens in a window.
        most_clips: Largest number of clips in a window.

    Returns:
        One slice over the clips for each window.

    Example:
        Clips of 10 and 12 s and a gap of 1 s fill 23 s, so the clip of 9 s begins a second window.

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

    Where the window would become too long, the gaps become shorter. Where even the shortest gaps do not help, the last
    clips are not joined.

    Args:
        waves: float32 (n_samples,) each. The first one fits alone.
        max_samples: Longest window.
        sample_rate_hz: Rate of all waves.
        rng: Generator that the gaps and the noise in them are drawn from.

    Returns:
        The window, float32 (n_samples,), and the start of each clip that is in it, in seconds.

    Example:
        Three clips of a second in a window of at most 2.5 s: two of them fit, with a gap of 0.2 to 0.5 s.

        >>> second = np.zeros(16_000, dtype=np.float32)
        >>> window, starts_s = join([second] * 3, 40_000, 16_000, np.random.default_rng(0))
        >>> len(starts_s), starts_s[0], 1.2 <= starts_s[1] <= 1.5
        (2, 0.0, True)
    """
    if len(waves) == 1:
        return waves[0], [0.0]
    shortest, longest = (round(gap_s * sample_rate_hz) for gap_s in GAP_S)
    lengths = np.cumsum([len(wave) for wave in waves]) + shortest * np.arange(len(waves))
    n_clips = max(1, int(np.searchsorted(lengths, max_samples, side="right")))
    room = max_samples - int(lengths[n_clips - 1])
    # What each gap is longer than the shortest one.
    extra = rng.integers(0, longest - shortest + 1, size=n_clips - 1)
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
