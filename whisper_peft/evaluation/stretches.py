"""Decode stretches of recordings: some windows at a time, of several recordings side by side.

transformers keeps the scores of the whole vocabulary for every token, so it receives a *stretch* of some minutes at a
time.

transformers 5.24 mixes up the rows of a batch as soon as it decodes one of them again: it looks up `should_skip` and
the no-speech probabilities by the place in the smaller batch. Therefore a stretch is first decoded together with those
of other recordings, at temperature 0 only. A stretch with a window that should be decoded again is then decoded once
more, alone.
"""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from whisper_peft.data.features import Preparation
from whisper_peft.evaluation.generation import errors_only
from whisper_peft.evaluation.pieces import Decoding, Piece, tokens_left

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

# Windows in a stretch. Four of 30 s take 0.4 GB of scores if each is full of tokens. Longer stretches take more memory,
# and shorter ones more time, because every stretch encodes one window in vain.
STRETCH_WINDOWS = 4
# transformers decodes a window at the first temperature, and goes on to the next one if the window passes a limit. The
# values are transformers' own, except for the ratio of a window's tokens to their compressed size. The usual 1.35 fits
# English: right transcripts of 30 s reach 1.9 in Hindi and 3.7 in Malayalam, and loops more than 7.
FALLBACK: dict[str, Any] = {
    "temperature": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    "compression_ratio_threshold": 4.0,
    "logprob_threshold": -1.0,
    "no_speech_threshold": 0.6,
}
# Settings for stretches side by side. With one temperature the limit changes nothing, but without it transformers does
# not keep the scores.
FIRST_TRY: dict[str, Any] = {"temperature": (0.0,), "logprob_threshold": FALLBACK["logprob_threshold"]}

# Whatever a caller tells its recordings apart by.
Key = TypeVar("Key")


@dataclass
class ActiveRecording(Generic[Key]):
    """A recording that is being transcribed.

    Attributes:
        key: The caller's key for it.
        wave: float32 (n_samples,).
        n_frames: Length in frames.
        first_frame: The frame at which the next stretch begins.
        pieces: The pieces that are decoded so far.
        told_share: The share that was last reported. A stretch that is decoded again begins at one reported before.
    """

    key: Key
    wave: np.ndarray
    n_frames: int
    first_frame: int = 0
    pieces: list[Piece] = field(default_factory=list)
    told_share: float = -1.0

    @property
    def done(self) -> bool:
        """Tell whether the next stretch would begin behind the recording."""
        return self.first_frame >= self.n_frames


def decode_next_stretches(
    whisper,
    preparation: Preparation,
    recordings: list[ActiveRecording[Key]],
    decoding: Decoding,
    progress: Callable[[Key, float], object],
) -> None:
    """Decode the next stretch of each recording, and move each recording on to the stretch after it."""
    stretches: list[_Stretch | None] = [None] * len(recordings)
    if len(recordings) > 1:
        stretches = _decode_stretches(whisper, preparation, recordings, decoding, FIRST_TRY, progress)
    for recording, stretch in zip(recordings, stretches, strict=True):
        if stretch is None:
            (stretch,) = _decode_stretches(whisper, preparation, [recording], decoding, FALLBACK, progress)
        # Only a first try leaves a stretch undecided.
        assert stretch is not None
        recording.pieces += stretch.pieces
        recording.first_frame += stretch.n_frames


@dataclass(frozen=True)
class _Stretch:
    """A decoded stretch.

    Attributes:
        pieces: What is spoken in it.
        n_frames: Frames from its start to the start of the next stretch.
    """

    pieces: list[Piece]
    n_frames: int


def _decode_stretches(
    whisper,
    preparation: Preparation,
    recordings: list[ActiveRecording[Key]],
    decoding: Decoding,
    thresholds: dict[str, Any],
    progress: Callable[[Key, float], object],
) -> list[_Stretch | None]:
    """Decode the next stretch of each recording together.

    Args:
        whisper: A WhisperForConditionalGeneration in eval mode.
        preparation: The preparation of its checkpoint.
        recordings: The recordings.
        decoding: How they are decoded.
        thresholds: `FIRST_TRY`; or `FALLBACK`, for a recording alone.
        progress: Called with the key of a recording and the share of it that is done.

    Returns:
        The stretch of each recording. After a first try, None stands for a stretch with a window that must be decoded
        again. With the fallback there is none, because transformers decodes such a window again itself.
    """
    import torch

    window = preparation.window_frames
    lengths = [min(STRETCH_WINDOWS * window, recording.n_frames - recording.first_frame) for recording in recordings]
    features, mask = _encode_stretches(preparation, recordings, lengths)

    def tell(row: int, frame: int) -> None:
        recording = recordings[row]
        share = (recording.first_frame + frame) / recording.n_frames
        if share > recording.told_share:
            recording.told_share = share
            progress(recording.key, share)

    walk = _Walk(lengths, tell)
    options = dict(thresholds)
    if preparation.multilingual:
        options |= {"language": decoding.language, "task": decoding.task}
    if decoding.prompt_ids:
        # Without condition_on_prev_tokens, transformers puts the prompt before every window.
        options["prompt_ids"] = torch.tensor(decoding.prompt_ids, device=whisper.device)
    if len(recordings) > 1:
        options["attention_mask"] = mask.to(whisper.device)
    # A higher temperature draws tokens at random.
    with errors_only(), _seeded(whisper.device):
        segments_of_rows = whisper.generate(
            features.to(whisper.device, next(whisper.get_encoder().parameters()).dtype),
            return_timestamps=True,
            return_segments=True,
            num_beams=decoding.beams,
            use_cache=True,
            max_new_tokens=tokens_left(preparation, decoding),
            monitor_progress=walk.at_window,
            stopping_criteria=[walk],
            **options,
        )["segments"]
    stretches: list[_Stretch | None] = []
    for recording, length, segments, next_frame in zip(
        recordings, lengths, segments_of_rows, walk.next_frames, strict=True
    ):
        start_s = recording.first_frame / preparation.frames_per_s
        end_s = start_s + length / preparation.frames_per_s
        within = [segment["result"] for segment in segments if start_s + float(segment["start"]) < end_s]
        if thresholds is FIRST_TRY and any(_is_doubtful(result, preparation) for result in within):
            stretches.append(None)
            continue
        # Every stretch is given a window behind it, so the walk has reached one.
        assert next_frame is not None
        ends = (preparation.eot, whisper.generation_config.pad_token_id)
        stretches.append(_Stretch([_segment_to_piece(segment, start_s, ends) for segment in segments], next_frame))
    return stretches


def _encode_stretches(
    preparation: Preparation, recordings: list[ActiveRecording[Key]], lengths: list[int]
) -> tuple[Tensor, Tensor]:
    """Compute the log-mels of stretches, each with one window behind it.

    Args:
        preparation: The preparation of the checkpoint.
        recordings: The recordings.
        lengths: Frames in the next stretch of each recording.

    Returns:
        float32 (n_recordings, n_mels, n_frames) padded with zeros, and int64 (n_recordings, n_frames) with 1 where
        there is sound. transformers does not read what is padded.
    """
    import torch

    window = preparation.window_frames
    hop = preparation.hop_samples
    features = torch.zeros(len(recordings), preparation.n_mels, max(lengths) + window)
    mask = torch.zeros(len(recordings), max(lengths) + window, dtype=torch.long)
    for row, (recording, length) in enumerate(zip(recordings, lengths, strict=True)):
        first = recording.first_frame
        n_frames = length + window
        sound = recording.wave[first * hop : (first + n_frames) * hop]
        features[row, :, :n_frames] = torch.from_numpy(preparation.encode_stretch(sound, n_frames))
        mask[row, :n_frames] = 1
    return features, mask


class _Walk:
    """Follows `generate` through stretches side by side: it is its `monitor_progress` and a stopping criterion.

    The last window of a stretch may need sound from behind the stretch, so every stretch is given one window more than
    it has. A window that starts in there is not decoded: the next stretch begins with it.

    Args:
        n_frames: Length of each stretch, in frames.
        progress: Called with the row of a stretch and the frame at which a window begins.

    Attributes:
        next_frames: For each stretch, the frame of the first window behind it; None while there is none.
        active_rows: The stretches that are in transformers' batch.
    """

    def __init__(self, n_frames: list[int], progress: Callable[[int, int], object]):
        self.n_frames = n_frames
        self.progress = progress
        self.next_frames: list[int | None] = [None] * len(n_frames)
        self.active_rows: list[int] = []

    def at_window(self, seek) -> None:
        """Note where the next window of each row begins.

        Args:
            seek: int (n_rows, 2): the first frame of each row's window, and the row's last frame.
        """
        self.active_rows = []
        for row, (frame, end) in enumerate(seek.tolist()):
            # transformers takes such a row out of the batch.
            if frame >= end:
                continue
            self.active_rows.append(row)
            if frame < self.n_frames[row]:
                self.progress(row, frame)
            elif self.next_frames[row] is None:
                self.next_frames[row] = frame

    def __call__(self, input_ids, scores, **kwargs):
        """Return bool (batch,): which windows to end. A window behind its stretch ends after its first time token."""
        import torch

        is_over = [self.next_frames[row] is not None for row in self.active_rows]
        n_beams = len(input_ids) // len(is_over)
        return torch.tensor(is_over, device=input_ids.device).repeat_interleave(n_beams)


def _segment_to_piece(segment: dict, start_s: float, ends: tuple[int, int]) -> Piece:
    """Turn a segment of transformers into a piece.

    Args:
        segment: `start` and `end` in seconds of the stretch, `tokens`, and the `result` of its window.
        start_s: Start of the stretch in the recording, in seconds.
        ends: The tokens after which a model has ended a window itself.
    """
    last_token = int(segment["result"]["sequences"][-1])
    return Piece(
        start_s=start_s + float(segment["start"]),
        end_s=start_s + float(segment["end"]),
        ids=segment["tokens"].tolist(),
        ended=last_token in ends,
    )


def _is_doubtful(result: dict, preparation: Preparation) -> bool:
    """Tell whether a window must be decoded again, because its tokens repeat themselves or the model was guessing.

    Args:
        result: A window that was decoded at temperature 0: `sequences` with the prefix and padding, and `scores`.
        preparation: The preparation of the checkpoint.
    """
    import torch

    scores = result["scores"]
    tokens = result["sequences"][-len(scores) :]
    is_end = tokens == preparation.eot
    if is_end.any():
        tokens = tokens[: int(is_end.int().argmax()) + 1]
    vocabulary_size = scores[0].shape[-1]
    if _compression_ratio(tokens.tolist(), vocabulary_size=vocabulary_size) > FALLBACK["compression_ratio_threshold"]:
        return True
    log_probabilities = torch.stack(list(scores[: len(tokens)])).float().log_softmax(dim=-1)
    chosen = log_probabilities.gather(-1, tokens.to(log_probabilities.device)[:, None])
    return float(chosen.mean()) < FALLBACK["logprob_threshold"]


def _compression_ratio(tokens: list[int], *, vocabulary_size: int) -> float:
    """Divide the bytes of tokens by their bytes when compressed, as transformers does.

    Example:
        >>> _compression_ratio([7] * 60, vocabulary_size=51865) > 7
        True
    """
    n_bytes = int(math.log2(vocabulary_size) / 8) + 1
    content = b"".join(token.to_bytes(n_bytes, "little") for token in tokens)
    return len(content) / len(zlib.compress(content))


@contextlib.contextmanager
def _seeded(device):
    """Draw the same random numbers every time, and leave the caller's random state alone."""
    import torch

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield
