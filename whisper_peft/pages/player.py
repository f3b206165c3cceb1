"""The player of a page: it has its sound with it."""

from __future__ import annotations

import base64
import io

import numpy as np
from markupsafe import Markup

from whisper_peft.pages.text import escape_attribute

# Seconds of a recording that a player holds.
LONGEST_SOUND_S = 30.0


def make_player(wave: np.ndarray, label: str, *, of_s: float | None = None, sample_rate_hz: int = 16_000) -> Markup:
    """Make a player that holds its sound, about 6 kB for each second of speech.

    Args:
        wave: Samples, float32 (n_samples,), mono. Only the first 30 s are kept.
        label: What is heard, for those who do not see the page.
        of_s: Seconds of the whole recording, if the wave is only its beginning.
        sample_rate_hz: Sample rate of the wave, in Hz.
    """
    kept = wave[: int(LONGEST_SOUND_S * sample_rate_hz)]
    # LAME may crash on samples beyond full scale.
    media_type, sound = _compress(np.clip(np.nan_to_num(kept), -1.0, 1.0), sample_rate_hz)
    player = Markup('<audio controls preload="metadata" aria-label="{}" src="data:{};base64,{}"></audio>').format(
        escape_attribute(label), media_type, base64.b64encode(sound).decode("ascii")
    )
    whole_s = max(of_s or 0.0, len(wave) / sample_rate_hz)
    if whole_s > LONGEST_SOUND_S:
        note = '<span class="quiet">the first {:g} of {:,.1f} s</span>'
        player += Markup(note).format(LONGEST_SOUND_S, whole_s)
    return player


def _compress(wave: np.ndarray, sample_rate_hz: int) -> tuple[str, bytes]:
    """Compress a wave to MP3: every browser plays it, and libsndfile makes it ten times as fast as Opus.

    Returns:
        The media type and the file. It is WAV if libsndfile was built without MP3.
    """
    import soundfile

    file = io.BytesIO()
    if "MP3" in soundfile.available_formats():
        soundfile.write(file, wave, sample_rate_hz, format="MP3")
        return "audio/mpeg", file.getvalue()
    soundfile.write(file, wave, sample_rate_hz, format="WAV", subtype="PCM_16")
    return "audio/wav", file.getvalue()
