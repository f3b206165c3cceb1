"""Recordings of any length to text: short ones in batches, long ones by transformers' own long-form decoding.

That decoding walks through a recording window by window: each begins where the last one's timestamps say that speech
was cut, and one that looks like a loop or like guessing is made again at a higher temperature (Radford et al. 2022,
section 3.8). It is given a *stretch* of some minutes at a time, because it keeps the scores of the whole vocabulary for
every token it has made.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_peft.data.audio import AudioError, duration_s, load_audio
from whisper_peft.data.dataset import SpeechDataset
from whisper_peft.data.features import Preparation
from whisper_peft.data.rows import Row
from whisper_peft.data.text import AUTO_LANGUAGE
from whisper_peft.errors import UserError
from whisper_peft.evaluation.languages import detect_language, listen_for_languages, resolve_language
from whisper_peft.evaluation.transcribing import (
    errors_only,
    full_limit,
    generate,
    set_window,
    transcribe_rows,
)
from whisper_peft.model.build import load_model, whisper_of
from whisper_peft.model.devices import to_device
from whisper_peft.recipe_files import expanded

if TYPE_CHECKING:
    import numpy as np

STRETCH_WINDOWS = 4  # of 30 s: 0.4 GB of scores if each is full of tokens; every stretch encodes one window in vain
# When a window is made again, and how; transformers' values but for the compression ratio (of a window's tokens).
# Its 1.35 is of English: right transcripts of 30 s have up to 1.9 in Hindi and 3.7 in Malayalam, loops more than 7.
FALLBACK = {
    "temperature": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), "compression_ratio_threshold": 4.0, "logprob_threshold": -1.0,
    "no_speech_threshold": 0.6,
}  # fmt: skip


def transcribe_wave(
    model,
    preparation: Preparation,
    wave: np.ndarray,
    *,
    language: str | None,
    task: str = "transcribe",
    beams: int = 1,
    progress: Callable[[float], object] = lambda share: None,
) -> dict:
    """Transcribes one recording of any length; the same one gives the same text.

    Args:
        model: Whisper in eval mode, or an adapter on one, on its device.
        preparation: of its checkpoint.
        wave: float32 (n_samples,), mono, at `preparation.sample_rate_hz`.
        language: Whisper's code; None for an English-only checkpoint.
        task: transcribe or translate.
        beams: 1 is greedy.
        progress: told the share of the recording that is done, at each window of a long one.

    Returns:
        ``text`` and ``reached_limit``, and of a recording longer than the model's window ``segments``:
        ``{"start": seconds, "end": seconds, "text": …}`` each.
    """
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    whisper = whisper_of(model)
    device, dtype = whisper.device, next(whisper.get_encoder().parameters()).dtype
    if len(wave) <= preparation.window_samples:
        features = torch.from_numpy(preparation.encode_stretch(wave, preparation.window_frames))[None]
        limit = full_limit(preparation)
        with torch.no_grad():
            states = whisper.get_encoder()(features.to(device, dtype)).last_hidden_state
            encoded = BaseModelOutput(last_hidden_state=states)
            (ids,) = generate(
                whisper, preparation, encoded, language=language, task=task, max_new_tokens=limit, beams=beams
            )
        return {"text": preparation.decode(ids), "reached_limit": len(ids) >= limit}
    walk = _segments(whisper, preparation, wave, language=language, task=task, beams=beams, progress=progress)
    segments, reached_limit, length_s = [], False, len(wave) / preparation.sample_rate_hz
    text = ""
    for start_s, end_s, ids, ended in walk:
        said = preparation.words.decode(ids)
        if said.strip() and start_s < length_s:  # behind it is only the silence that fills the last window
            segments.append({"start": round(start_s, 2), "end": round(min(end_s, length_s), 2), "text": said.strip()})
            # The model itself writes the space between its segments. Adding one here would hide that it does not.
            text += said
            reached_limit |= not ended
    return {"text": re.sub(" {2,}", " ", text).strip(), "reached_limit": reached_limit, "segments": segments}


class _Walk:
    """What generate is told, and tells, of a stretch: its `monitor_progress` and a stopping criterion.

    Behind the stretch, whose last window needs the sound of one more, nothing is decoded: the next stretch begins with
    the first window that starts there.
    """

    def __init__(self, n_frames: int, progress: Callable[[int], object]):
        self.n_frames, self.progress = n_frames, progress
        self.next_frame: int | None = None

    def at_window(self, seek) -> None:
        """Told before each window: int (1, 2), its first frame and the number of frames."""
        frame = int(seek[0, 0])
        if frame < self.n_frames:
            self.progress(frame)
        elif self.next_frame is None:
            self.next_frame = frame

    def __call__(self, input_ids, scores, **kwargs):
        """bool (batch,): whether the window is over; one behind the stretch is, after its first timestamp."""
        import torch

        return torch.full((len(input_ids),), self.next_frame is not None, device=input_ids.device)


def _segments(
    whisper, preparation: Preparation, wave: np.ndarray, *, language: str | None, task: str, beams: int, progress
) -> Iterator[tuple[float, float, list[int], bool]]:
    """Yields start and end in seconds, token ids, and whether its window came to its own end."""
    import torch

    words = {"language": language, "task": task} if preparation.multilingual else {}
    hop, window = preparation.hop_samples, preparation.window_frames
    n_all, first = -(-len(wave) // hop), 0
    while first < n_all:
        n_frames = min(STRETCH_WINDOWS * window, n_all - first)
        sound = wave[first * hop : (first + n_frames + window) * hop]
        features = torch.from_numpy(preparation.encode_stretch(sound, n_frames + window))[None]
        walk = _Walk(n_frames, lambda frame, first=first: progress((first + frame) / n_all))
        with errors_only(), _seeded(whisper.device):  # a fallback draws at random
            found = whisper.generate(
                features.to(whisper.device, next(whisper.get_encoder().parameters()).dtype),
                return_timestamps=True, return_segments=True, num_beams=beams, use_cache=True,
                max_new_tokens=full_limit(preparation), monitor_progress=walk.at_window, stopping_criteria=[walk],
                **FALLBACK, **words,
            )["segments"][0]  # fmt: skip
        start_s = first / preparation.frames_per_s
        plain = [
            (
                start_s + float(one["start"]), start_s + float(one["end"]), one["tokens"].tolist(),
                int(one["result"]["sequences"][-1]) == preparation.eot,
            )
            for one in found
        ]  # fmt: skip
        del found  # and the scores in it
        yield from plain
        first += walk.next_frame


@contextlib.contextmanager
def _seeded(device):
    """The same random draws every time, and none of the caller's."""
    import torch

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


def transcribe(
    model: str | Path,
    audio: Iterable[str | Path],
    *,
    language: str | None = None,
    task: str = "transcribe",
    batch_size: int | str = "auto",
    window: str = "full",
    beams: int = 1,
    base: str | None = None,
    quantize: str = "as-trained",
    progress: Callable[[int], object] = lambda clips: None,
) -> list[dict]:
    """Transcribes recordings of any length.

    Args:
        model: any MODEL: Hub id, model, adapter or run folder.
        audio: files of any format.
        language: a name or code; None: the one the model was trained for, as its generation config says; "auto": the
            one that the model hears in each recording.
        task: transcribe or translate.
        batch_size: short recordings at a time; "auto": as many as fill 240 s of windows, 64 at most (a CPU: 120 s, 16).
        window: full (30 s), or condensed or tight, quicker, for a model trained so; long recordings are always heard
            in full windows, one after the other.
        beams: 1 is greedy.
        base: the adapter's base, if it has moved.
        quantize: the base in "8bit", "4bit" or "none"; "as-trained": as the adapter knew it.
        progress: told how many recordings were done since it was last told.

    Returns:
        One ``{"audio": path, "text": transcript, "reached_limit": …}`` each, in the order given; one longer than the
        model's window (30 s) also has ``segments``: see `transcribe_wave`. With "auto" each has its ``language``.

    Raises:
        UserError: a recording that is missing or unreadable, or a language that the model does not know.
    """
    files = [str(expanded(file)) for file in audio]
    loaded, preparation, _ = load_model(model, base=base, quantize=quantize)
    code = resolve_language(loaded, preparation, language)
    listens = code == AUTO_LANGUAGE
    preparation.check_languages([] if listens else [(code, "--language")], task)
    short, long = [], []
    for file in files:
        try:
            nearly = preparation.window_s - 0.5  # a header may say a little less than there is
            (short if duration_s(file) <= nearly else long).append(file)
        except AudioError as error:
            raise UserError(f"{file}: {error}.") from None
    rows = [Row(file, "", None if listens else code, no_speech=True) for file in short]
    if listens:
        rows = listen_for_languages(loaded, preparation, rows)
    dataset = SpeechDataset(rows, preparation, task=task)
    found = transcribe_rows(
        to_device(loaded), dataset, range(len(short)), batch_size=batch_size, slack_s=set_window(loaded, window),
        max_new_tokens=full_limit(preparation), beams=beams, with_loss=False, progress=progress,
    )  # fmt: skip
    long += [one.audio for one in found.left_out]  # holds more than its header states, or is refused with the reason
    heard = {short[one.row]: {"text": one.text, "reached_limit": one.reached_limit} for one in found.transcripts}
    if listens:
        for one in found.transcripts:
            heard[short[one.row]]["language"] = rows[one.row].language
    for file in long:
        try:
            wave = load_audio(file, sample_rate_hz=preparation.sample_rate_hz)
        except AudioError as error:
            raise UserError(f"{file}: {error}.") from None
        spoken = detect_language(loaded, preparation, wave) if listens else code
        heard[file] = transcribe_wave(loaded, preparation, wave, language=spoken, task=task, beams=beams)
        if listens:
            heard[file]["language"] = spoken
        progress(1)
    return [{"audio": file, **heard[file]} for file in files]
