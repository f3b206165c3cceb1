"""SpeechDataset: decode, augment and encode one row, or say why it is left out."""

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

# The user's own augmentation: (wave float32 (n_samples,) at 16 kHz, random generator) -> wave.
AugmentFunction = Callable[[np.ndarray, np.random.Generator], np.ndarray]

# Each random decision about a clip has its own generator, seeded by (seed, epoch, row, purpose), so that switching one
# of them on changes none of the others. The user's `augment` has no purpose number: it came first, and its draws stay.
USERS_FUNCTION = 0
PROMPTS = 1
TIMESTAMPS = 2
EFFECTS = 3
NO_SPEECH = 4
GAPS = 5


@dataclass(frozen=True)
class Pick:
    """One row that was drawn for one optimizer step.

    Attributes:
        row: Number of the row.
        epoch: Epoch of the step. It seeds the clip's augmentation.
        slack_s: Silence wanted after the step's longest clip, in seconds; infinity asks for the model's whole window.
        given: The row itself, where it comes from a stream; None where `row` is its number in the dataset.
        again: How many times the row came earlier in this epoch; over 0 only where its source's weight is over 1.
        joined: The clips that are stitched behind this one, into one window.
    """

    row: int
    epoch: int = 0
    slack_s: float = math.inf
    given: Row | None = None
    again: int = 0
    joined: tuple[Pick, ...] = ()

    @property
    def clips(self) -> tuple[Pick, ...]:
        """The picks of the window's clips, each alone.

        Example:
            >>> [clip.row for clip in Pick(3, joined=(Pick(8), Pick(1))).clips]
            [3, 8, 1]
        """
        return (dataclasses.replace(self, joined=()), *self.joined)


@dataclass(frozen=True)
class Sound:
    """One clip, decoded and augmented.

    Attributes:
        pick: The pick that the clip was made for.
        row: The row after augmentation, which may have taken its speech away.
        wave: float32 (n_samples,), mono, at the model's sample rate.
        time_scale: Factor for the times of the row's segments; None where `augment` changed the length of the wave, so
            that nobody knows the times.
        kept: Whether this is the clip as it was recorded, because its augmented form could not be used.
    """

    pick: Pick
    row: Row
    wave: np.ndarray
    time_scale: float | None = 1.0
    kept: bool = False


@dataclass(frozen=True)
class Example:
    """One clip or one stitched window, ready for the collator.

    Attributes:
        row: Number of the row; in a stitched window, the number of its first row.
        input_features: float32 (n_mels, n_frames of this clip), the log-mel.
        floor: Log-mel value of silence in this clip.
        decoder_input_ids: int64 (n_tokens,).
        labels: int64 (n_tokens,), one step ahead of `decoder_input_ids`, -100 over a prompt.
        seconds: Length of the sound.
        slack_s: Silence wanted after the step's longest clip, in seconds; carried over from the pick.
        kept: Number of clips that were not augmented, because their augmented form could not be used.
        n_clips: Number of clips in this window.
        left_out: The clips of this window that could not be used.
    """

    row: int
    input_features: np.ndarray
    floor: float
    decoder_input_ids: np.ndarray
    labels: np.ndarray
    seconds: float
    slack_s: float = math.inf
    kept: int = 0
    n_clips: int = 1
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class LeftOut:
    """A clip that cannot be used, and why. It leaves its optimizer step and is never replaced.

    Attributes:
        row: Number of the row.
        audio: Name of the sound file.
        place: Where the row was read, for example "metadata.csv:12".
        reason: Why the clip cannot be used, as left_out.jsonl has it.
        others: The other clips of a stitched window in which no clip could be used.
    """

    row: int
    audio: str
    place: str
    reason: str
    others: tuple[LeftOut, ...] = ()


def leave_signals_to_main(worker_id: int) -> None:
    """Leave Ctrl-C to the main process; every DataLoader worker calls this at its start.

    A terminal sends Ctrl-C to all processes at once. The main process writes a checkpoint first and stops the workers
    afterwards.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class SpeechDataset:
    """Rows as examples. Each example is made when it is asked for, and none is stored.

    The index is a row number or a `Pick`. The same pick gives the same example in any worker, in any process, and after
    a resume, because every random decision is seeded by (seed, epoch, row).

    Args:
        rows: Rows, as `load_source` returns them.
        preparation: What the trained checkpoint asks of its input.
        language: Language code for rows that name none. English-only checkpoints ignore it.
        task: "transcribe" or "translate".
        language_token: Language code whose token all rows borrow, whatever their language; None borrows none.
        clean: Function from text to text that is applied before tokens are made.
        augment: Function (wave float32 (n_samples,) at 16 kHz, random generator) -> wave; None for none.
        augmentation: Effects, applied before `augment`; None for none.
        prompts: Share of the clips that get the text before them as a prompt, where it is known.
        timestamps: Share of the clips whose text has its times: the times of its segments where the row has them, else
            the start and end of its speech. A clip that would then be over the token limit is learnt without times.
        seed: Seed of the augmentation and of these shares.
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
        augment: AugmentFunction | None = None,
        augmentation: Augmentation | None = None,
        prompts: float = 0.0,
        timestamps: float = 0.0,
        seed: int = 0,
    ):
        self.rows = rows
        self.preparation = preparation
        self.language = language
        self.task = task
        self.language_token = language_token
        self.clean = clean
        self.augment = augment
        self.augmentation = augmentation
        self.prompts = prompts
        self.timestamps = timestamps
        self.seed = seed

    def __len__(self) -> int:
        """Return the number of rows, usable or not."""
        return len(self.rows)

    def __getitem__(self, pick: Pick | int) -> Example | LeftOut:
        """Make the example of one row or of one stitched window, or say why there is none."""
        if not isinstance(pick, Pick):
            pick = Pick(int(pick))
        sounds: list[Sound] = []
        left_out: list[LeftOut] = []
        for clip in pick.clips:
            row = clip.given or self.rows[clip.row]
            try:
                sound = self._read(clip, row)
                if not pick.joined:
                    return self._example(pick, [sound], [])
                # Encode the clip alone only to learn whether it can be used: one bad clip must not spoil its window.
                self._tokens([sound], [0.0])
                sounds.append(sound)
            except (AudioError, ValueError) as error:
                left_out.append(LeftOut(clip.row, row.name, row.place, str(error)))
        if not sounds:
            return dataclasses.replace(left_out[0], others=tuple(left_out[1:]))
        return self._example(pick, sounds, left_out)

    def duration_s(self, row_number: int) -> float:
        """Return the seconds of a row from its header; 0 where the header cannot be read.

        Such a row is left out later, when its sound is read.
        """
        return self.seconds_of(self.rows[row_number])

    @staticmethod
    def seconds_of(row: Row) -> float:
        """Return the seconds of a row from its header; 0 where the header cannot be read."""
        end_s = row.end_s
        if end_s is None:
            try:
                end_s = duration_s(row.sound())
            except AudioError:
                return 0.0
        return max(0.0, end_s - row.start_s)

    def usable_s(self, row: Row | int) -> float | None:
        """Return the seconds of a row from its header; None where header and text show that it cannot be used."""
        seconds, fault = self._look_at(row)
        if fault:
            return None
        return seconds

    def fault(self, row: Row | int) -> str | None:
        """Say why a clip cannot be used, as far as its header and its text tell.

        The header may be wrong, so training still tries to read such a clip; but it takes no place in a step.

        Returns:
            The reason, as left_out.jsonl has it; None where nothing is wrong so far.
        """
        return self._look_at(row)[1]

    def _look_at(self, row: Row | int) -> tuple[float, str | None]:
        """Return the seconds of a row and its fault; read the sound once at most, for it may be far away."""
        row = self._row(row)
        end_s = row.end_s
        # A piece of a recording states its own end. The header of the recording is not read for it, because thousands
        # of rows may share that file; only a file that is gone is noticed.
        is_gone = end_s is not None and isinstance(row.audio, str) and not os.path.exists(row.audio)
        if end_s is None or is_gone:
            try:
                length_s = duration_s(row.sound())
            except AudioError as error:
                return 0.0, str(error)
            if end_s is None:
                end_s = length_s
        seconds = end_s - row.start_s
        if seconds <= 0:
            return 0.0, f"no such piece of a recording: start_s {row.start_s}, end_s {end_s}"
        if seconds > self.preparation.window_s:
            return seconds, f"{seconds:.1f} s of audio; the model takes {self.preparation.window_s:g} s"
        return seconds, self._fault_of_text(row)

    def _fault_of_text(self, row: Row) -> str | None:
        """Say why a transcript cannot be learnt; None where it can."""
        if row.no_speech:
            return None
        text = self.clean(row.text)
        # A token is one byte at least. So a short text is surely within the limit, and need not be encoded.
        if text and len(text.encode("utf-8", "surrogatepass")) <= self.preparation.max_label_tokens // 2:
            return None
        try:
            self.preparation.encode_text([Segment(text)], language=self.language_of(row), task=self.task)
        except ValueError as error:
            return str(error)
        return None

    def text(self, row_number: int) -> str:
        """Return the cleaned transcript of a row."""
        return self.clean(self.rows[row_number].text)

    def language_of(self, row: Row | int) -> str | None:
        """Return the code of a row's language token: a borrowed one, else the row's own, else the default."""
        return self.language_token or self._row(row).language or self.language

    def _row(self, row: Row | int) -> Row:
        if isinstance(row, int):
            return self.rows[row]
        return row

    def _read(self, pick: Pick, row: Row) -> Sound:
        """Decode and augment one clip.

        Raises:
            AudioError: The clip cannot be decoded.
            TooLongError: The clip is longer than the model's window.
            ValueError: The row says why it cannot be used.
        """
        if row.fault:
            raise ValueError(row.fault)
        if row.unknown_language and not self.language_token:
            raise ValueError(f"language {short_repr(row.unknown_language)}, which Whisper does not know")
        row = self._choose_end(pick, row)
        window_s = self.preparation.window_s
        wave = read_sound(row.sound(), start_s=row.start_s, end_s=row.end_s, longest_s=window_s).wave
        if len(wave) > self.preparation.window_samples:
            # This call raises TooLongError, whose message is the one for left_out.jsonl.
            self.preparation.encode_audio(wave)
        as_recorded = Sound(pick, row, wave, kept=True)
        try:
            sound = self._augment(pick, row, wave)
        except AudioError:
            # The clip is good; a noise file could not be read.
            return as_recorded
        if len(sound.wave) > self.preparation.window_samples:
            return as_recorded
        return sound

    def _choose_end(self, pick: Pick, row: Row) -> Row:
        """Choose where a clip of a recording ends.

        A clip that is learnt with its times gets its whole window, whose end cuts a segment. Any other clip ends with
        its last whole segment. In a stitched window another clip follows, so the clip ends there, too. The same holds
        with an `augment` of the user's own, after which nobody may know the times.
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

    def _augment(self, pick: Pick, row: Row, wave: np.ndarray) -> Sound:
        """Apply the effects and then the user's function to one clip.

        Raises:
            AudioError: A file of noise or of a room cannot be read.
            ValueError: The user's function returned no mono wave, or the clip cannot be learnt anyway.
        """
        time_scale: float | None = 1.0
        effects = self.augmentation
        if effects is not None:
            if self._loses_speech(pick, row, effects):
                # Encode the clip's text only to raise where it cannot be learnt. Without this, a bad clip would be left
                # out in some epochs and not in others.
                self._tokens([Sound(pick, row, wave)], [0.0])
                silence = effects.without_speech(wave, self._generator(pick, EFFECTS))
                return Sound(pick, dataclasses.replace(row, no_speech=True), silence)
            changed = effects(wave, self._generator(pick, EFFECTS))
            # Speed is the only effect that changes the length, and it scales all times alike.
            time_scale = len(changed) / len(wave)
            wave = changed
        if self.augment is not None:
            changed = np.asarray(self.augment(wave.copy(), self._generator(pick, USERS_FUNCTION)), dtype=np.float32)
            if changed.ndim != 1 or not len(changed) or not np.isfinite(changed).all():
                raise ValueError(f"augment returned shape {changed.shape} or non-finite samples; expected a mono wave")
            if len(changed) != len(wave):
                time_scale = None
            wave = changed
        return Sound(pick, row, wave, time_scale)

    def _loses_speech(self, pick: Pick, row: Row, effects: Augmentation) -> bool:
        """Draw whether noise takes the place of a clip's speech."""
        return not row.no_speech and self._generator(pick, NO_SPEECH).random() < effects.no_speech

    def _generator(self, pick: Pick, purpose: int) -> np.random.Generator:
        """Make the generator of one random decision about one clip."""
        key = [self.seed, pick.epoch, pick.row]
        # A purpose of 0 and a first visit add nothing to the key: older runs had such keys, and their draws must stay.
        if pick.again:
            key += [purpose, pick.again]
        elif purpose:
            key.append(purpose)
        return np.random.default_rng(key)

    def _example(self, pick: Pick, sounds: list[Sound], left_out: list[LeftOut]) -> Example:
        """Stitch clips into one window and encode it; a single clip is a window of one."""
        rate_hz = self.preparation.sample_rate_hz
        n_sounds = len(sounds)
        # Augmentation may have made the clips longer. The last ones leave the window until sound and text fit.
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

    def _tokens(self, sounds: Sequence[Sound], starts_s: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """Encode the texts of a window's clips.

        Two decisions are drawn, both for the window's first clip: whether the text has its times, and whether it has a
        prompt.

        Args:
            sounds: The clips.
            starts_s: Start of each clip in the window, in seconds.

        Returns:
            decoder_input_ids and labels, int64 (n_tokens,) each.

        Raises:
            TooLongError: The text has more tokens than the model takes.
            ValueError: The text is empty, or its language is unknown.
        """
        pick = sounds[0].pick
        spoken = [(sound, start_s) for sound, start_s in zip(sounds, starts_s, strict=True) if not sound.row.no_speech]
        encode = functools.partial(
            self.preparation.encode_text,
            language=self.language_of(sounds[0].row),
            task=self.task,
            no_speech=not spoken,
            prompt=self._prompt(sounds[0]),
        )
        if spoken and self._is_timed(pick):
            timed = []
            for sound, start_s in spoken:
                timed += self._timed_segments(sound, start_s)
            # With its times a text may be over the limit. It is then learnt without: which clips are left out must not
            # depend on a draw.
            with contextlib.suppress(TooLongError):
                return encode(timed, timestamps=True, next_start_s=self._next_start_s(sounds[0]))
        return encode([Segment(self.clean(sound.row.text)) for sound, _ in spoken])

    def _prompt(self, sound: Sound) -> str:
        """Draw whether a clip has a prompt, and return it; an empty text where it has none."""
        prompt = sound.row.prompt
        if prompt and self._generator(sound.pick, PROMPTS).random() < self.prompts:
            return self.clean(prompt)
        return ""

    def _next_start_s(self, sound: Sound) -> float | None:
        """Return the start of the segment that the end of a clip's window cuts; None where it cuts none."""
        if sound.row.next_start_s is None or sound.time_scale is None:
            return None
        return min(sound.row.next_start_s * sound.time_scale, self.preparation.window_s)

    def _timed_segments(self, sound: Sound, start_s: float) -> list[Segment]:
        """Return a clip's text with its times in the window: those of its segments, else those of its speech."""
        rate_hz = self.preparation.sample_rate_hz
        parts: list[tuple[str, float, float]] = []
        if sound.time_scale is not None:
            parts = self._times_of_segments(sound.row, len(sound.wave) / rate_hz, sound.time_scale)
        if not parts:
            speech_start_s, speech_end_s = find_speech(sound.wave, rate_hz)
            parts = [(self.clean(sound.row.text), speech_start_s, speech_end_s)]
        return [Segment(text, start_s + first_s, start_s + last_s) for text, first_s, last_s in parts]

    def _times_of_segments(self, row: Row, seconds: float, time_scale: float) -> list[tuple[str, float, float]]:
        """Return (text, start_s, end_s) of a row's segments, so that times never go back, as Whisper writes them.

        Args:
            row: The row.
            seconds: Length of its sound after augmentation. No time lies behind it.
            time_scale: Factor for the times of the segments.

        Returns:
            One entry for each segment; an empty list where the segments do not say the row's text.
        """
        texts = [segment.text for segment in row.segments]
        if self.clean(row.text) not in (self.clean(join_segments(texts)), self.clean(" ".join(texts))):
            return []
        parts = []
        now_s = 0.0
        for segment in row.segments:
            start_s = min(max(now_s, segment.start_s * time_scale), seconds)
            now_s = min(max(start_s, segment.end_s * time_scale), seconds)
            parts.append((self.clean(segment.text), start_s, now_s))
        return parts
