"""SpeechDataset: decode, augment, encode one row; what was left out, and why."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from whisper_peft.data.audio import AudioError, duration_s, read_sound
from whisper_peft.data.augmentation import Augmentation
from whisper_peft.data.features import Preparation, TooLongError
from whisper_peft.data.rows import Row, Segment
from whisper_peft.data.stitching import find_speech, join
from whisper_peft.data.text import clean_text, join_segments
from whisper_peft.files import short_repr

Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]
# What is drawn by seed, epoch and row, from a generator each; the user's function has the one without a number.
PROMPTS, TIMESTAMPS, EFFECTS, NO_SPEECH, GAPS = 1, 2, 3, 4, 5


@dataclass(frozen=True)
class Pick:
    """One row drawn for one optimizer step; `epoch` and `again` seed its augmentation."""

    row: int
    epoch: int = 0
    slack_s: float = math.inf  # silence wanted behind the step's longest clip; infinite: the model's whole window
    given: Row | None = None  # the row itself, where it is of a stream
    again: int = 0  # how often it has come in this epoch before, where its source's weight is over 1
    joined: tuple[Pick, ...] = ()  # the clips that are stitched behind this one, into one window

    @property
    def clips(self) -> tuple[Pick, ...]:
        """The picks of the window's clips, each alone."""
        return (dataclasses.replace(self, joined=()), *self.joined)


@dataclass(frozen=True)
class Sound:
    """One clip, decoded and augmented."""

    pick: Pick
    row: Row  # after augmentation, which may have taken its speech away
    wave: np.ndarray  # float32 (n_samples,)
    stretch: float | None = 1.0  # factor for the times of the row's segments; None where nobody knows it
    kept: bool = False  # the augmented clip could not be used: this is the clip as it was


@dataclass(frozen=True)
class Example:
    """One clip ready for the collator."""

    row: int
    input_features: np.ndarray  # float32 (n_mels, n_frames of this clip)
    floor: float  # the log-mel of silence beside this clip
    decoder_input_ids: np.ndarray  # int64 (n_tokens,)
    labels: np.ndarray  # int64 (n_tokens,), one step ahead, -100 over a prompt
    seconds: float
    slack_s: float = math.inf  # as in its Pick
    kept: int = 0  # clips that stayed as they were, because the augmented ones could not be used
    n_clips: int = 1  # stitched into this window
    left_out: tuple[LeftOut, ...] = ()  # clips of this window that could not be used


@dataclass(frozen=True)
class LeftOut:
    """A clip that cannot be used, and why; it leaves its optimizer step and is never replaced."""

    row: int
    audio: str
    place: str
    reason: str
    others: tuple[LeftOut, ...] = ()  # the other clips of a stitched window, where none could be used


def leave_signals_to_main(worker_id: int) -> None:
    """In a process that reads audio: Ctrl-C reaches every process of a terminal; the main one decides what follows."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class SpeechDataset:
    """Rows as examples, made when they are asked for: nothing is cached.

    Indexed with a row number, or with a `Pick` that also has the epoch, which seeds the augmentation, and the window;
    so the same pick gives the same example in any worker, on any rank, and after a resume.

    Args:
        rows: as `load_source` gives them.
        preparation: of the checkpoint that is trained.
        language: code for rows that name none; English-only checkpoints ignore it.
        task: transcribe or translate.
        clean: text -> text, before tokens are made.
        augment: (wave float32 (n_samples,) at 16 kHz, random generator) -> wave, or None.
        augmentation: effects, which come before it, or None.
        prompts: the share of clips that are given what was said before them, where that is known.
        timestamps: the share of clips whose text has its times: of its segments where the row has them, else of the
            clip's start and end. A clip that they would bring over the token limit has none.
        seed: of the augmentation and of these shares.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        preparation: Preparation,
        *,
        language: str | None = None,
        task: str = "transcribe",
        language_token: str | None = None,
        clean: Callable[[str], str] = clean_text,
        augment: Augment | None = None,
        augmentation: Augmentation | None = None,
        prompts: float = 0.0,
        timestamps: float = 0.0,
        seed: int = 0,
    ):
        self.rows, self.preparation, self.task, self.clean = rows, preparation, task, clean
        self.language, self.language_token, self.augment, self.seed = language, language_token, augment, seed
        self.augmentation, self.prompts, self.timestamps = augmentation, prompts, timestamps

    def __len__(self) -> int:
        """The number of rows, usable or not."""
        return len(self.rows)

    def __getitem__(self, pick: Pick | int) -> Example | LeftOut:
        """Make the example of one row or of one stitched window, or say why there is none."""
        pick = pick if isinstance(pick, Pick) else Pick(int(pick))
        sounds: list[Sound] = []
        left_out: list[LeftOut] = []
        for clip in pick.clips:
            row = clip.given or self.rows[clip.row]
            try:
                sound = self._sound(clip, row)
                if not pick.joined:
                    return self._example(pick, [sound], [])
                self._tokens([sound], [0.0])  # raises where the clip could not be learnt alone
                sounds.append(sound)
            except (AudioError, ValueError) as error:
                left_out.append(LeftOut(clip.row, row.name, row.place, str(error)))
        if not sounds:
            return dataclasses.replace(left_out[0], others=tuple(left_out[1:]))
        return self._example(pick, sounds, left_out)

    def duration_s(self, row_number: int) -> float:
        """Seconds of a row from its header; 0 where it cannot be told (the row is then left out when it is read)."""
        return self.seconds_of(self.rows[row_number])

    @staticmethod
    def seconds_of(row: Row) -> float:
        """Seconds of a row from its header; 0 where it cannot be told."""
        try:
            end_s = row.end_s if row.end_s is not None else duration_s(row.sound())
        except AudioError:
            return 0.0
        return max(0.0, end_s - row.start_s)

    def usable_s(self, row: Row | int) -> float | None:
        """Seconds of a row from its header; None where header and text show that it cannot be used."""
        seconds, fault = self._look(self.rows[row] if isinstance(row, int) else row)
        return None if fault else seconds

    def fault(self, row: Row | int) -> str | None:
        """Say why a clip cannot be used, as far as its header and its text tell.

        The header may be wrong, so who trains still tries such a clip; but it takes no place in an optimizer step.

        Returns:
            The reason, as left_out.jsonl has it; None where nothing is wrong so far.
        """
        return self._look(self.rows[row] if isinstance(row, int) else row)[1]

    def _look(self, row: Row) -> tuple[float, str | None]:
        """Seconds of a row, and what is wrong with it; the sound is read once at most, for it may be far away."""
        try:
            is_piece = row.end_s is not None and (not isinstance(row.audio, str) or os.path.exists(row.audio))
            end_s = row.end_s if is_piece else duration_s(row.sound())  # of a piece no header is read: others share it
        except AudioError as error:
            return 0.0, str(error)
        seconds = (end_s if row.end_s is None else row.end_s) - row.start_s
        if seconds <= 0:
            return 0.0, f"no such piece of a recording: start_s {row.start_s}, end_s {end_s}"
        if seconds > self.preparation.window_s:
            return seconds, f"{seconds:.1f} s of audio; the model takes {self.preparation.window_s:g} s"
        return seconds, self._fault_of_text(row)

    def _fault_of_text(self, row: Row) -> str | None:
        if row.no_speech:
            return None
        text = self.clean(row.text)
        if text and len(text.encode("utf-8", "surrogatepass")) <= self.preparation.max_label_tokens // 2:
            return None  # a token is a byte at least
        try:
            self.preparation.encode_text([Segment(text)], language=self.language_of(row), task=self.task)
        except ValueError as error:
            return str(error)
        return None

    def text(self, row_number: int) -> str:
        """The cleaned transcript of a row."""
        return self.clean(self.rows[row_number].text)

    def language_of(self, row: Row | int) -> str | None:
        """The language token's code for a row: a borrowed one, the row's own, or the default."""
        row = self.rows[row] if isinstance(row, int) else row
        return self.language_token or row.language or self.language

    def _sound(self, pick: Pick, row: Row) -> Sound:
        """Decode and augment one clip.

        Raises:
            AudioError: It cannot be decoded.
            TooLongError: It is longer than the model's window.
            ValueError: Its row says why it cannot be used.
        """
        if row.fault:
            raise ValueError(row.fault)
        if row.unknown_language and not self.language_token:
            raise ValueError(f"language {short_repr(row.unknown_language)}, which Whisper does not know")
        row = self._as_heard(pick, row)
        window_s = self.preparation.window_s
        wave = read_sound(row.sound(), start_s=row.start_s, end_s=row.end_s, longest_s=window_s).wave
        if len(wave) > self.preparation.window_samples:
            self.preparation.encode_audio(wave)  # raises
        try:
            changed, changed_row, stretch = self._augmented(pick, row, wave)
        except AudioError:  # a file of noise
            return Sound(pick, row, wave, kept=True)
        if len(changed) > self.preparation.window_samples:
            return Sound(pick, row, wave, kept=True)
        return Sound(pick, changed_row, changed, stretch)

    def _as_heard(self, pick: Pick, row: Row) -> Row:
        """Give a clip of a recording its whole window where it is learnt with times, else its last whole segment's end.

        Not in a stitched window, where another clip stands behind it, and not with an augmentation of the user's own,
        after which nobody may know the times.
        """
        if row.window_end_s is None:
            return row
        timed = not pick.joined and self.augment is None and self._is_timed(pick)
        if timed:
            return dataclasses.replace(row, end_s=row.window_end_s)
        return dataclasses.replace(row, window_end_s=None, next_start_s=None)

    def _is_timed(self, pick: Pick) -> bool:
        """Draw whether a clip is learnt with its times."""
        return self._generator(pick, TIMESTAMPS).random() < self.timestamps

    def _example(self, pick: Pick, sounds: list[Sound], left_out: list[LeftOut]) -> Example:
        """Stitch clips into one window, and encode it; one clip alone is a window, too."""
        rate_hz = self.preparation.sample_rate_hz
        n_sounds = len(sounds)
        while True:
            waves = [sound.wave for sound in sounds[:n_sounds]]
            wave, starts_s = join(waves, self.preparation.window_samples, rate_hz, self._generator(pick, GAPS))
            n_sounds = len(starts_s)
            try:
                inputs, labels = self._tokens(sounds[:n_sounds], starts_s)
                break
            except TooLongError:
                if n_sounds == 1:
                    raise
                n_sounds -= 1
        no_room = "augmented, it has no room in its stitched window"
        for sound in sounds[n_sounds:]:
            left_out.append(LeftOut(sound.pick.row, sound.row.name, sound.row.place, no_room))
        features, floor = self.preparation.encode_audio(wave)
        return Example(
            sounds[0].pick.row,
            features,
            floor,
            inputs,
            labels,
            len(wave) / rate_hz,
            pick.slack_s,
            kept=sum(sound.kept for sound in sounds[:n_sounds]),
            n_clips=n_sounds,
            left_out=tuple(left_out),
        )

    def _augmented(self, pick: Pick, row: Row, wave: np.ndarray) -> tuple[np.ndarray, Row, float | None]:
        """The wave and the row after augmentation, and by what its times are to be multiplied; None: nobody knows."""
        stretch, effects = 1.0, self.augmentation
        if effects is not None:
            if not row.no_speech and self._generator(pick, NO_SPEECH).random() < effects.no_speech:
                self._tokens([Sound(pick, row, wave)], [0.0])  # raises: what is left out is so in every epoch
                silence = effects.without_speech(wave, self._generator(pick, EFFECTS))
                return silence, dataclasses.replace(row, no_speech=True), stretch
            changed = effects(wave, self._generator(pick, EFFECTS))
            wave, stretch = changed, len(changed) / len(wave)
        if self.augment is not None:
            changed = np.asarray(self.augment(wave.copy(), self._generator(pick)), dtype=np.float32)
            if changed.ndim != 1 or not len(changed) or not np.isfinite(changed).all():
                raise ValueError(f"augment returned shape {changed.shape} or non-finite samples; expected a mono wave")
            wave, stretch = changed, stretch if len(changed) == len(wave) else None
        return wave, row, stretch

    def _generator(self, pick: Pick, purpose: int = 0) -> np.random.Generator:
        more = (purpose, pick.again) if pick.again else (purpose,) if purpose else ()
        return np.random.default_rng((self.seed, pick.epoch, pick.row, *more))

    def _tokens(self, sounds: Sequence[Sound], starts_s: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """Encode the texts of a window's clips.

        Whether the text has its times, and whether it has a prompt, is drawn for the first clip.

        Args:
            sounds: The clips.
            starts_s: Where each begins in the window, in seconds.

        Returns:
            decoder_input_ids and labels, int64 (n_tokens,) each.
        """
        pick, row = sounds[0].pick, sounds[0].row
        spoken = [(sound, start_s) for sound, start_s in zip(sounds, starts_s, strict=True) if not sound.row.no_speech]
        prompted = row.prompt and self._generator(pick, PROMPTS).random() < self.prompts
        encode = functools.partial(
            self.preparation.encode_text,
            language=self.language_of(row),
            task=self.task,
            no_speech=not spoken,
            prompt=self.clean(row.prompt) if prompted else "",
        )
        if spoken and self._is_timed(pick):
            next_start_s = None
            if row.next_start_s is not None:
                next_start_s = min(row.next_start_s * sounds[0].stretch, self.preparation.window_s)
            timed = [segment for sound, start_s in spoken for segment in self._timed(sound, start_s)]
            with contextlib.suppress(TooLongError):  # which clips are left out does not depend on the draw
                return encode(timed, timestamps=True, next_start_s=next_start_s)
        return encode([Segment(self.clean(sound.row.text)) for sound, _ in spoken])

    def _timed(self, sound: Sound, start_s: float) -> list[Segment]:
        """Give a clip's text its times in the window: those of its segments, else those of its speech."""
        rate_hz = self.preparation.sample_rate_hz
        segments = []
        if sound.stretch is not None:
            segments = self._segments(sound.row, len(sound.wave) / rate_hz, sound.stretch)
        if not segments:
            segments = [Segment(self.clean(sound.row.text), *find_speech(sound.wave, rate_hz))]
        return [Segment(part.text, start_s + part.start_s, start_s + part.end_s) for part in segments]

    def _segments(self, row: Row, seconds: float, stretch: float) -> list[Segment]:
        """The row's segments with times that never go back, as Whisper says them; none where they say another text."""
        texts = [one.text for one in row.segments]
        if self.clean(row.text) not in (self.clean(join_segments(texts)), self.clean(" ".join(texts))):
            return []
        segments, now_s = [], 0.0
        for one in row.segments:
            start_s = min(max(now_s, one.start_s * stretch), seconds)
            now_s = min(max(start_s, one.end_s * stretch), seconds)
            segments.append(Segment(self.clean(one.text), start_s, now_s))
        return segments
