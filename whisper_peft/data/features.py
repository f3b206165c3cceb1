"""Sound to log-mel, and text to tokens: the two contracts that training, evaluation and delivery share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from whisper_peft.data.rows import Segment
from whisper_peft.data.words import Words
from whisper_peft.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, WhisperProcessor

# The label of a position where no loss is taken.
IGNORED = -100

# Without these tokens nothing can be written down, or read, as Whisper does.
NEEDED_TOKENS = ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>", "<|transcribe|>")

# Characters of the longest token of any Whisper. A text with more characters than this for each token that the model
# takes is surely too long, so it need not be encoded to be refused.
LONGEST_TOKEN = 128

# Seconds between one time token and the next.
TIME_STEP_S = 0.02

# Silence is 8 orders of magnitude (log10 of power) below the loudest bin of a clip, and never below 1e-10. OpenAI chose
# both numbers, and the scale (x + 4) / 4; see log_mel_spectrogram in openai/whisper, audio.py.
DYNAMIC_RANGE = 8.0
LOWEST_LOG = -10.0


class TooLongError(ValueError):
    """An example over a limit of the model. The message is the reason written to left_out.jsonl."""


class Preparation:
    """The input that a checkpoint asks for: mel bins, window, vocabulary and limits, all read from its files.

    Args:
        processor: The checkpoint's WhisperProcessor.
        config: The checkpoint's WhisperConfig.
        multilingual: Whether prompts carry language and task tokens. Those of `.en` checkpoints carry none.

    The numbers below are those of OpenAI's checkpoints.

    Attributes:
        sample_rate_hz: Samples a second of every wave, 16,000.
        n_fft: Samples of one spectrum, 400.
        hop_samples: Samples from one frame to the next, 160.
        frames_per_s: Frames a second, 100.
        n_mels: Mel bins of a frame, 80 or 128.
        window_frames: Frames of the model's whole window, 3,000.
        window_samples: Samples of the model's whole window, 480,000.
        window_s: Seconds of the model's whole window, 30.
        max_label_tokens: Largest number of tokens of prefix, text and prompt together, 448.
        max_prompt_tokens: Largest number of tokens of a prompt, 223.
        mel_filters: float32 (n_fft // 2 + 1, n_mels), from power spectrum to mel bins.
        eot: Id of `<|endoftext|>`.
        no_timestamps: Id of `<|notimestamps|>`.
        first_timestamp: Id of `<|0.00|>`, the first time token.
    """

    def __init__(self, processor: WhisperProcessor, config: PreTrainedConfig, *, multilingual: bool):
        extractor = processor.feature_extractor
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.multilingual = multilingual
        self.sample_rate_hz: int = extractor.sampling_rate
        self.n_fft: int = extractor.n_fft
        self.hop_samples: int = extractor.hop_length
        self.frames_per_s: float = self.sample_rate_hz / self.hop_samples
        self.n_mels: int = config.num_mel_bins
        # The encoder makes one position of two frames.
        self.window_frames: int = 2 * config.max_source_positions
        self.window_samples: int = self.window_frames * self.hop_samples
        self.window_s: float = self.window_samples / self.sample_rate_hz
        self.max_label_tokens: int = config.max_target_positions
        # OpenAI's code gives a prompt the same room: half of the positions, without <|startofprev|>.
        self.max_prompt_tokens: int = config.max_target_positions // 2 - 1
        if extractor.feature_size != self.n_mels:
            raise UserError(
                f"{config.name_or_path}: the processor makes {extractor.feature_size} mel bins, the model takes "
                f"{self.n_mels}; take processor and model from the same checkpoint."
            )
        self.mel_filters = np.asarray(extractor.mel_filters, dtype=np.float32)
        self.eot = self.token_id("<|endoftext|>")
        self.no_timestamps = self.token_id("<|notimestamps|>")
        self.first_timestamp = self.no_timestamps + 1

    def token_id(self, token: str) -> int:
        """Return the id of a special token.

        Raises:
            UserError: The checkpoint's vocabulary has no such token.
        """
        token_id = self._find_token(token)
        if token_id is None and token in NEEDED_TOKENS:
            raise UserError(
                f"{self.tokenizer.name_or_path}: its tokenizer has no token {token}, so it is not a Whisper's; copy "
                "the tokenizer's files from the base model."
            )
        if token_id is None:
            raise UserError(
                f"{self.tokenizer.name_or_path}: no token {token}; a language this checkpoint does not know can "
                "borrow a related one's token with --language-token LANG."
            )
        return token_id

    def _find_token(self, token: str) -> int | None:
        """Return the id of a special token; None where the vocabulary has no such token."""
        token_id = self.tokenizer.convert_tokens_to_ids(token)
        if token_id == self.tokenizer.unk_token_id and token != self.tokenizer.unk_token:
            return None
        return token_id

    def prefix(self, language: str | None, task: str = "transcribe", *, timestamps: bool = False) -> list[int]:
        """Return the tokens that every transcript starts with.

        Args:
            language: Whisper's code of the language. English-only checkpoints ignore it.
            task: "transcribe" or "translate". English-only checkpoints ignore it.
            timestamps: Whether the text has its times.

        Raises:
            UserError: The checkpoint does not know the language, or none is given.
        """
        tokens = [self.token_id("<|startoftranscript|>")]
        if self.multilingual:
            if language is None:
                raise _no_language()
            tokens += [self.token_id(f"<|{language}|>"), self.token_id(f"<|{task}|>")]
        if not timestamps:
            tokens.append(self.no_timestamps)
        return tokens

    def check_languages(self, spoken: Iterable[tuple[str | None, str]], task: str = "transcribe") -> None:
        """Refuse clips in a language that the checkpoint has no token for. An English-only one has no such tokens.

        Args:
            spoken: For each clip the code of its language, and its place for the message. The code is None where the
                clip names no language.
            task: "transcribe" or "translate". An English-only checkpoint cannot translate.

        Raises:
            UserError: There are such clips. The message counts them by language and names the first.
        """
        if not self.multilingual and task != "transcribe":
            raise UserError(f"task {task}: this is an English-only checkpoint, which can only transcribe.")
        counts: Counter[str] = Counter()
        n_clips = 0
        first = ""
        known: dict[str | None, bool] = {}
        for code, place in spoken:
            n_clips += 1
            if code not in known:
                known[code] = self._knows(code)
            if not known[code]:
                first = first or place
                counts[str(code)] += 1
        if not counts:
            return
        if n_clips == 1:
            unknown = f"the language '{min(counts)}'"
        else:
            shown = ", ".join(f"'{code}' ({count})" for code, count in counts.most_common(5))
            unknown = f"the language of {counts.total()} of {n_clips} clips: {shown}"
        if self.multilingual:
            raise UserError(
                f"{first}: this checkpoint has no token for {unknown}; borrow a related language's with "
                "--language-token LANG, or leave these clips out."
            )
        raise UserError(
            f"{first}: an English-only checkpoint cannot be given {unknown}; take a multilingual one, or leave these "
            "clips out."
        )

    def _knows(self, code: str | None) -> bool:
        """Tell whether the checkpoint can be given a language.

        Raises:
            UserError: No language is given, and the checkpoint needs one.
        """
        if not self.multilingual:
            return code in (None, "en")
        if code is None:
            raise _no_language()
        return self._find_token(f"<|{code}|>") is not None

    def encode_text(
        self,
        segments: Sequence[Segment],
        *,
        language: str | None,
        task: str = "transcribe",
        timestamps: bool = False,
        prompt: str = "",
        no_speech: bool = False,
        next_start_s: float | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode segments: the decoder's input, and its labels one step ahead.

        Each segment begins as Whisper's own segments do: with a space, unless its script puts none between words. One
        space is left out: a lone space token directly after the prefix, because every decoder suppresses it there.

        "Hello." in English, without times, with the prompt "Yes":

            position   decoder_input_ids        labels
            0          <|startofprev|>          -100
            1          " Yes"                   -100
            2          <|startoftranscript|>    <|en|>
            3          <|en|>                   <|transcribe|>
            4          <|transcribe|>           <|notimestamps|>
            5          <|notimestamps|>         " Hello"
            6          " Hello"                 "."
            7          "."                      <|endoftext|>

        With times, there is no `<|notimestamps|>`, and each segment stands between its start and its end:
        `<|0.00|> Hello.<|0.74|>`.

        Args:
            segments: Segments of the transcript, with their times where `timestamps` is set.
            language: Whisper's code of the language. English-only checkpoints ignore it.
            task: "transcribe" or "translate".
            timestamps: Whether the text has its times.
            prompt: Text before the transcript, which is not learnt. It is cut at its start where it is too long.
            no_speech: Whether the clip has no speech, so that it needs no text.
            next_start_s: Start of a segment that the window's end cuts, in seconds; only its start becomes a token, and
                only with `timestamps`. None where the end cuts no segment.

        Returns:
            decoder_input_ids, int64 (n_tokens,), and labels, int64 (n_tokens,), which are -100 over the prompt.

        Raises:
            TooLongError: Prefix and text have more tokens than the model takes. Nothing is ever cut but a prompt.
            ValueError: The text is empty, and the row does not say `no_speech`.
        """
        body = self._encode_body(segments, language if task == "transcribe" else "en", timestamps=timestamps)
        if not body and not no_speech:
            raise ValueError("empty text")
        if timestamps and next_start_s is not None:
            body.append(self._time_token(next_start_s))
        prefix = self.prefix(language, task, timestamps=timestamps)
        if len(prefix) + len(body) > self.max_label_tokens:
            raise TooLongError(
                f"{len(body)} text tokens; with the {len(prefix)} of the prefix the model takes {self.max_label_tokens}"
            )
        previous = self._encode_prompt(prompt, self.max_label_tokens - len(prefix) - len(body) - 1)
        inputs = np.array(previous + prefix + body, dtype=np.int64)
        labels = np.append(inputs[1:], self.eot)
        # There is no loss on the prompt, and none for predicting <|startoftranscript|> after it.
        labels[: len(previous)] = IGNORED
        return inputs, labels

    def _encode_body(self, segments: Sequence[Segment], language: str | None, *, timestamps: bool) -> list[int]:
        """Encode the text of segments, without prefix and end.

        Raises:
            TooLongError: The text is so long that encoding it could take gigabytes of memory.
        """
        n_characters = sum(len(segment.text) for segment in segments)
        if n_characters > LONGEST_TOKEN * self.max_label_tokens:
            raise TooLongError(f"{n_characters:,} characters of text; the model takes {self.max_label_tokens} tokens")
        body: list[int] = []
        for segment in segments:
            tokens = self.words.of_segment(segment.text, language)
            if not timestamps and not body:
                tokens = self.words.without_lone_space(tokens)
            if timestamps and tokens:
                tokens = [self._time_token(segment.start_s), *tokens, self._time_token(segment.end_s)]
            body += tokens
        return body

    def _encode_prompt(self, prompt: str, room: int) -> list[int]:
        """Encode a prompt with its `<|startofprev|>`.

        Args:
            prompt: The text; an empty one gives no tokens.
            room: Largest number of tokens of the text. Of a longer prompt only the end is kept, next to the transcript.
        """
        if not prompt.strip():
            return []
        # A space stands first in every language, as in OpenAI's code.
        tokens = self.words.encode(" " + prompt.strip())
        room = min(self.max_prompt_tokens, room)
        if room <= 0:
            return []
        return [self.token_id("<|startofprev|>"), *tokens[-room:]]

    def n_tokens(self, text: str) -> int:
        """Count the tokens of a text as one segment that begins with a space.

        Of a text that is far over the limit only the beginning is counted, which is over the limit, too.
        """
        most_characters = LONGEST_TOKEN * self.max_label_tokens
        return self.words.count(" " + text.strip()[:most_characters])

    @cached_property
    def words(self) -> Words:
        """Text to tokens and back, without special tokens."""
        # One time for each of the encoder's positions, and one for the end of the window.
        n_times = self.window_frames // 2 + 1
        return Words(self.tokenizer, markers=range(self.eot, self.first_timestamp + n_times))

    def _time_token(self, seconds: float | None) -> int:
        """Return the id of the time token next to a time in the window."""
        # A Segment that a caller built by hand may have no end.
        if seconds is None or not 0 <= seconds <= self.window_s:
            raise ValueError(f"a segment time of {seconds} s; expected 0 to {self.window_s:g}")
        return self.first_timestamp + round(seconds / TIME_STEP_S)

    def encode_audio(self, wave: np.ndarray) -> tuple[np.ndarray, float]:
        """Compute the log-mel of one clip as WhisperFeatureExtractor does, without the padding to the window.

        Args:
            wave: float32 (n_samples,), mono, at `sample_rate_hz`.

        Returns:
            The log-mel, float32 (n_mels, n_frames of this clip), and its floor: the value that silence has beside this
            clip, ``(max(log_max - 8, -10) + 4) / 4``, with which the collator pads.

        Raises:
            TooLongError: The clip is longer than the model's window.
        """
        if len(wave) > self.window_samples:
            raise TooLongError(f"{len(wave) / self.sample_rate_hz:.1f} s of audio; the model takes {self.window_s:g} s")
        # The STFT reflects the wave at its ends. The clip's last frames must see the silence after the clip, not its
        # mirror image, so zeros are put behind it. Only at the end of the full window the extractor itself reflects.
        log_mel, floor = self._compute_log_mel(wave, min(len(wave) + self.n_fft, self.window_samples))
        n_frames = min(self.window_frames, (len(wave) + self.n_fft // 2) // self.hop_samples + 1, log_mel.shape[1])
        return log_mel[:, :n_frames], floor

    def encode_stretch(self, wave: np.ndarray, n_frames: int) -> np.ndarray:
        """Compute the log-mel of a stretch of a long recording, with silence after its end.

        Args:
            wave: float32 (n_samples,), mono, at `sample_rate_hz`, at most `n_frames` long.
            n_frames: Number of frames of the result; it may be more than one window.

        Returns:
            float32 (n_mels, n_frames).
        """
        return self._compute_log_mel(wave, n_frames * self.hop_samples)[0]

    def _compute_log_mel(self, wave: np.ndarray, n_samples: int) -> tuple[np.ndarray, float]:
        """Compute the log-mel of a wave that is padded with zeros, and its floor.

        Args:
            wave: float32 (at most n_samples,).
            n_samples: Length after padding.

        Returns:
            float32 (n_mels, n_samples // hop_samples), and the value of silence in it.
        """
        # Importing torch takes seconds. Commands that compute no log-mel must not wait for it.
        import torch

        padded = np.zeros(n_samples, dtype=np.float32)
        padded[: len(wave)] = wave
        spectrum = torch.stft(
            torch.from_numpy(padded),
            self.n_fft,
            self.hop_samples,
            window=torch.hann_window(self.n_fft),
            return_complex=True,
        )
        # (n_fft // 2 + 1, n_frames). The extractor drops the last frame, too.
        power = spectrum[:, :-1].abs() ** 2
        mel = torch.from_numpy(self.mel_filters).T @ power
        log_mel = mel.clamp(min=1e-10).log10()
        floor = max(log_mel.max().item() - DYNAMIC_RANGE, LOWEST_LOG)
        return ((log_mel.clamp(min=floor) + 4.0) / 4.0).numpy(), (floor + 4.0) / 4.0

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode generated tokens to text without special tokens, times, and spaces at its ends."""
        return self.words.decode(tokens).strip()


def _no_language() -> UserError:
    return UserError("model.language: not set, and the row names none; add --language NAME.")
