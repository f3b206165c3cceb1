"""Recordings of any length to text, window by window: transformers' own long-form decoding.

That decoding walks through a recording window by window: each begins where the last one's timestamps say that speech
was cut, and one that looks like a loop or like guessing is made again at a higher temperature (Radford et al. 2022,
section 3.8). It is given a *stretch* of some minutes at a time, because it keeps the scores of the whole vocabulary for
every token it has made.

Several recordings go side by side. transformers mixes up the rows of a batch as soon as one of them is made again
(5.24: `should_skip` and the no-speech probabilities are looked up by the place in the smaller batch), so a stretch is
first decoded together with others, at temperature 0, and what should be made again is decoded once more, alone.
"""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from whisper_peft.data.features import Preparation
from whisper_peft.evaluation.generation import encode, errors_only, generate
from whisper_peft.evaluation.pieces import Decoding, Piece, assemble, tokens_left
from whisper_peft.model.build import whisper_of

if TYPE_CHECKING:
    import numpy as np

STRETCH_WINDOWS = 4  # of 30 s: 0.4 GB of scores if each is full of tokens; every stretch encodes one window in vain
# When a window is made again, and how; transformers' values but for the compression ratio (of a window's tokens).
# Its 1.35 is of English: right transcripts of 30 s have up to 1.9 in Hindi and 3.7 in Malayalam, loops more than 7.
FALLBACK = {
    "temperature": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), "compression_ratio_threshold": 4.0, "logprob_threshold": -1.0,
    "no_speech_threshold": 0.6,
}  # fmt: skip
# Of recordings side by side. The threshold only makes transformers keep the scores.
FIRST_TRY = {"temperature": (0.0,), "logprob_threshold": FALLBACK["logprob_threshold"]}


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
    """Transcribe one recording of any length; the same one gives the same text.

    Args:
        model: Whisper in eval mode, or an adapter on one, on its device.
        preparation: Of its checkpoint.
        wave: float32 (n_samples,), mono, at `preparation.sample_rate_hz`.
        language: Whisper's code; None for an English-only checkpoint.
        task: transcribe or translate.
        beams: 1 is greedy.
        progress: Told the share of the recording that is done, at each window of a long one.

    Returns:
        ``text`` and ``reached_limit``, and of a recording longer than the model's window ``segments``:
        ``{"start": seconds, "end": seconds, "text": …}`` each.
    """
    decoding = Decoding(language, task, beams)
    if len(wave) <= preparation.window_samples:
        return transcribe_short_wave(model, preparation, wave, decoding)
    heard = transcribe_waves(model, preparation, [(None, wave)], decoding, progress=lambda key, share: progress(share))
    return next(heard)[1]


def transcribe_short_wave(model, preparation: Preparation, wave: np.ndarray, decoding: Decoding) -> dict:
    """Transcribe one recording that fits into the model's window, without times.

    Returns:
        ``text`` and ``reached_limit``.
    """
    import torch

    whisper = whisper_of(model)
    features = torch.from_numpy(preparation.encode_stretch(wave, preparation.window_frames))[None]
    limit = tokens_left(preparation, decoding)
    with torch.no_grad():
        (ids,) = generate(
            whisper,
            preparation,
            encode(whisper, features),
            language=decoding.language,
            task=decoding.task,
            max_new_tokens=limit,
            beams=decoding.beams,
            prompt_ids=decoding.prompt_ids,
        )
    return {"text": preparation.decode(ids), "reached_limit": len(ids) >= limit}


@dataclass
class _Recording:
    """A recording that is being heard."""

    key: object
    wave: np.ndarray
    n_frames: int
    first_frame: int = 0  # of the next stretch
    pieces: list[Piece] = field(default_factory=list)
    told_share: float = -1.0  # a stretch that is made again begins at a share that was told before

    @property
    def done(self) -> bool:
        return self.first_frame >= self.n_frames


def transcribe_waves(
    model,
    preparation: Preparation,
    waves: Iterable[tuple[object, np.ndarray]],
    decoding: Decoding,
    *,
    at_once: int = 1,
    progress: Callable[[object, float], object] = lambda key, share: None,
) -> Iterator[tuple[object, dict]]:
    """Transcribe recordings with times, several side by side.

    Args:
        model: Whisper in eval mode, or an adapter on one, on its device.
        preparation: Of its checkpoint.
        waves: Pairs of a key and a recording, float32 (n_samples,), mono, at `preparation.sample_rate_hz`. The next
            one is asked for when there is room for it.
        decoding: How they are decoded.
        at_once: Number of recordings that are decoded together.
        progress: Told the key and the share of a recording that is done.

    Yields:
        The key of a recording that is done, and its ``text``, ``reached_limit`` and ``segments``.
    """
    whisper = whisper_of(model)
    waiting = iter(waves)
    active: list[_Recording] = []
    while True:
        while len(active) < at_once:
            following = next(waiting, None)
            if following is None:
                break
            key, wave = following
            active.append(_Recording(key, wave, -(-len(wave) // preparation.hop_samples)))
        if not active:
            return
        _hear_stretches(whisper, preparation, active, decoding, progress)
        for recording in [recording for recording in active if recording.done]:
            active.remove(recording)
            length_s = len(recording.wave) / preparation.sample_rate_hz
            yield recording.key, assemble(preparation, recording.pieces, length_s)


class _Walk:
    """What generate is told, and tells, of stretches side by side: its `monitor_progress` and a stopping criterion.

    Behind a stretch, whose last window needs the sound of one more, nothing is decoded: the next stretch begins with
    the first window that starts there.

    Args:
        n_frames: Of each stretch.
        progress: Told the row and the frame at which a window begins.
    """

    def __init__(self, n_frames: list[int], progress: Callable[[int, int], object]):
        self.n_frames = n_frames
        self.progress = progress
        self.next_frames: list[int | None] = [None] * len(n_frames)
        self.active_rows: list[int] = []

    def at_window(self, seek) -> None:
        """Told before each window: int (n_rows, 2), the first frame of each row's window and the row's last frame."""
        self.active_rows = []
        for row, (frame, end) in enumerate(seek.tolist()):
            if frame >= end:  # transformers takes it out of the batch
                continue
            self.active_rows.append(row)
            if frame < self.n_frames[row]:
                self.progress(row, frame)
            elif self.next_frames[row] is None:
                self.next_frames[row] = frame

    def __call__(self, input_ids, scores, **kwargs):
        """bool (batch,): whether a window is over; one behind its stretch is, after its first timestamp."""
        import torch

        over = torch.tensor([self.next_frames[row] is not None for row in self.active_rows], device=input_ids.device)
        return over.repeat_interleave(len(input_ids) // len(over))  # by beams


def _hear_stretches(
    whisper,
    preparation: Preparation,
    recordings: list[_Recording],
    decoding: Decoding,
    progress: Callable[[object, float], object],
) -> None:
    """Decode the next stretch of each recording, and move each on to the one after it."""
    if len(recordings) > 1:
        pairs = _decode_stretches(whisper, preparation, recordings, decoding, FIRST_TRY, progress)
        doubtful = [recording for recording, pair in zip(recordings, pairs, strict=True) if pair is None]
    else:
        pairs = [None]
        doubtful = recordings
    for recording in doubtful:
        (pair,) = _decode_stretches(whisper, preparation, [recording], decoding, FALLBACK, progress)
        pairs[recordings.index(recording)] = pair
    for recording, (pieces, next_frame) in zip(recordings, pairs, strict=True):
        recording.pieces += pieces
        recording.first_frame += next_frame


def _decode_stretches(
    whisper, preparation: Preparation, recordings: list[_Recording], decoding: Decoding, thresholds: dict, progress
) -> list[tuple[list[Piece], int] | None]:
    """Decode the next stretch of each recording together.

    Returns:
        The pieces of each, and the frame of its stretch at which the next one begins. None for a stretch with a window
        that the fallback would make again; alone there is none, as transformers makes it again.
    """
    import torch

    window = preparation.window_frames
    lengths = [min(STRETCH_WINDOWS * window, one.n_frames - one.first_frame) for one in recordings]
    features = torch.zeros(len(recordings), preparation.n_mels, max(lengths) + window)
    mask = torch.zeros(len(recordings), max(lengths) + window, dtype=torch.long)
    for row, (recording, n_frames) in enumerate(zip(recordings, lengths, strict=True)):
        hop = preparation.hop_samples
        first = recording.first_frame
        sound = recording.wave[first * hop : (first + n_frames + window) * hop]
        features[row, :, : n_frames + window] = torch.from_numpy(preparation.encode_stretch(sound, n_frames + window))
        mask[row, : n_frames + window] = 1

    def tell(row: int, frame: int) -> None:
        recording = recordings[row]
        share = (recording.first_frame + frame) / recording.n_frames
        if share > recording.told_share:
            recording.told_share = share
            progress(recording.key, share)

    walk = _Walk(lengths, tell)
    words = {"language": decoding.language, "task": decoding.task} if preparation.multilingual else {}
    if decoding.prompt_ids:  # without condition_on_prev_tokens transformers puts it before every window
        words["prompt_ids"] = torch.tensor(decoding.prompt_ids, device=whisper.device)
    if len(recordings) > 1:
        words["attention_mask"] = mask.to(whisper.device)
    with errors_only(), _seeded(whisper.device):  # a fallback draws at random
        found = whisper.generate(
            features.to(whisper.device, next(whisper.get_encoder().parameters()).dtype),
            return_timestamps=True, return_segments=True, num_beams=decoding.beams, use_cache=True,
            max_new_tokens=tokens_left(preparation, decoding), monitor_progress=walk.at_window,
            stopping_criteria=[walk], **thresholds, **words,
        )["segments"]  # fmt: skip
    stretches: list[tuple[list[Piece], int] | None] = []
    for row, recording in enumerate(recordings):
        start_s = recording.first_frame / preparation.frames_per_s
        behind_s = start_s + lengths[row] / preparation.frames_per_s
        segments = found[row]
        within = [one["result"] for one in segments if start_s + float(one["start"]) < behind_s]
        if thresholds is FIRST_TRY and any(_is_doubtful(result, preparation) for result in within):
            stretches.append(None)
            continue
        pieces = [
            Piece(
                start_s + float(one["start"]),
                start_s + float(one["end"]),
                one["tokens"].tolist(),
                int(one["result"]["sequences"][-1]) in (preparation.eot, whisper.generation_config.pad_token_id),
            )
            for one in segments
        ]
        stretches.append((pieces, walk.next_frames[row]))
    return stretches


def _is_doubtful(result: dict, preparation: Preparation) -> bool:
    """Tell whether a window would be made again: its tokens repeat themselves, or the model was guessing.

    Args:
        result: Of a window, decoded at temperature 0: `sequences` with the prefix and padding, and `scores`.
        preparation: Of the checkpoint.
    """
    import torch

    scores = result["scores"]
    tokens = result["sequences"][-len(scores) :]
    is_end = tokens == preparation.eot
    if is_end.any():
        tokens = tokens[: int(is_end.int().argmax()) + 1]
    if (
        _compression_ratio(tokens.tolist(), vocabulary_size=scores[0].shape[-1])
        > FALLBACK["compression_ratio_threshold"]
    ):
        return True
    log_probabilities = torch.stack(list(scores[: len(tokens)])).float().log_softmax(dim=-1)
    chosen = log_probabilities.gather(-1, tokens.to(log_probabilities.device)[:, None])
    return float(chosen.mean()) < FALLBACK["logprob_threshold"]


def _compression_ratio(tokens: list[int], *, vocabulary_size: int) -> float:
    """Bytes of tokens over bytes when compressed, as transformers counts them."""
    n_bytes = int(math.log2(vocabulary_size) / 8) + 1
    content = b"".join(token.to_bytes(n_bytes, "little") for token in tokens)
    return len(content) / len(zlib.compress(content))


@contextlib.contextmanager
def _seeded(device):
    """The same random draws every time, and none of the caller's."""
    import torch

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield
