"""Waveform to log-mel, and segments to tokens: the two contracts every mode shares."""

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

IGNORED = -100  # the label where no loss is taken
# Without these nothing can be written down, or read, as Whisper does.
NEEDED_TOKENS = ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>", "<|transcribe|>")
LONGEST_TOKEN = 128  # characters: no token has more, so a text of more than so many a token needs no counting


class TooLongError(ValueError):
    """An example over a limit of the model; the message is the reason written to left_out.jsonl."""


class Preparation:
    """What a checkpoint asks of its input: mel bins, window, vocabulary and limits, all read from its files.

    Args:
        processor: the checkpoint's WhisperProcessor.
        config: the checkpoint's WhisperConfig.
        multilingual: whether prompts carry language and task tokens (`.en` checkpoints have none).
    """

    def __init__(self, processor: WhisperProcessor, config: PreTrainedConfig, *, multilingual: bool):
        extractor = processor.feature_extractor
        self.processor, self.tokenizer, self.multilingual = processor, processor.tokenizer, multilingual
        self.sample_rate_hz: int = extractor.sampling_rate
        self.n_fft: int = extractor.n_fft
        self.hop_samples: int = extractor.hop_length
        self.frames_per_s: float = self.sample_rate_hz / self.hop_samples
        self.n_mels: int = config.num_mel_bins
        self.window_frames: int = 2 * config.max_source_positions
        self.window_samples: int = self.window_frames * self.hop_samples
        self.window_s: float = self.window_samples / self.sample_rate_hz
        self.max_label_tokens: int = config.max_target_positions
        self.max_prompt_tokens: int = config.max_target_positions // 2 - 1
        if extractor.feature_size != self.n_mels:
            raise UserError(
                f"{config.name_or_path}: the processor makes {extractor.feature_size} mel bins, the model takes "
                f"{self.n_mels}; take processor and model from the same checkpoint."
            )
        self.mel_filters = np.asarray(extractor.mel_filters, dtype=np.float32)  # (n_fft // 2 + 1, n_mels)
        self.eot = self.token_id("<|endoftext|>")
        self.no_timestamps = self.token_id("<|notimestamps|>")
        self.first_timestamp = self.no_timestamps + 1

    def token_id(self, token: str) -> int:
        """The id of a special token.

        Raises:
            UserError: the checkpoint's vocabulary has no such token.
        """
        found = self._find_token(token)
        if found is None and token in NEEDED_TOKENS:
            raise UserError(
                f"{self.tokenizer.name_or_path}: its tokenizer has no token {token}, so it is not a Whisper's; copy "
                "the tokenizer's files from the base model."
            )
        if found is None:
            raise UserError(
                f"{self.tokenizer.name_or_path}: no token {token}; a language this checkpoint does not know can "
                "borrow a related one's token with --language-token LANG."
            )
        return found

    def _find_token(self, token: str) -> int | None:
        found = self.tokenizer.convert_tokens_to_ids(token)
        if found == self.tokenizer.unk_token_id and token != self.tokenizer.unk_token:
            return None
        return found

    def prefix(self, language: str | None, task: str = "transcribe", *, timestamps: bool = False) -> list[int]:
        """The tokens every transcript starts with.

        Args:
            language: Whisper language code; ignored by English-only checkpoints.
            task: transcribe or translate; likewise.
            timestamps: whether timestamp tokens follow.

        Raises:
            UserError: a language this checkpoint does not know, or none given.
        """
        tokens = [self.token_id("<|startoftranscript|>")]
        if self.multilingual:
            if language is None:
                raise UserError("model.language: not set, and the row names none; add --language NAME.")
            tokens += [self.token_id(f"<|{language}|>"), self.token_id(f"<|{task}|>")]
        return tokens if timestamps else [*tokens, self.no_timestamps]

    def check_languages(self, spoken: Iterable[tuple[str | None, str]], task: str = "transcribe") -> None:
        """Refuse clips in a language that the checkpoint has no token for; an English-only one has none at all.

        Args:
            spoken: For each clip the code of its language (None: it names none) and its place, for the message.
            task: transcribe or translate; an English-only checkpoint cannot translate.

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
            found = f"the language '{min(counts)}'"
        else:
            shown = ", ".join(f"'{code}' ({count})" for code, count in counts.most_common(5))
            found = f"the language of {counts.total()} of {n_clips} clips: {shown}"
        if self.multilingual:
            raise UserError(
                f"{first}: this checkpoint has no token for {found}; borrow a related language's with "
                "--language-token LANG, or leave these clips out."
            )
        raise UserError(
            f"{first}: an English-only checkpoint cannot be given {found}; take a multilingual one, or leave these "
            "clips out."
        )

    def _knows(self, code: str | None) -> bool:
        if not self.multilingual:
            return code in (None, "en")
        if code is None:
            raise UserError("model.language: not set, and the row names none; add --language NAME.")
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
        """Encode segments: tokens in, and tokens out one step ahead.

        Each segment begins as Whisper's own segments do: with a space, unless its script puts none between words. One
        space is left out: a lone space token directly after the prefix, because every decoder suppresses it there.

        With times, `next_start_s` is the start of a segment that the window's end cuts: only its start is a token.

        Returns:
            decoder_input_ids, int64 (n_tokens,): ``[<|startofprev|> prompt…] <|startoftranscript|> … text…``, and
            labels, int64 (n_tokens,): the same one step ahead, ending in ``<|endoftext|>``; -100 over the prompt.

        Raises:
            TooLongError: prefix and text have more tokens than the model takes; nothing is ever cut but a prompt.
            ValueError: empty text in a row that does not say `no_speech`.
        """
        body = []
        n_characters = sum(len(segment.text) for segment in segments)
        if n_characters > LONGEST_TOKEN * self.max_label_tokens:  # tokens of megabytes would take gigabytes
            raise TooLongError(f"{n_characters:,} characters of text; the model takes {self.max_label_tokens} tokens")
        for segment in segments:
            words = self.words.of_segment(segment.text, language if task == "transcribe" else "en")
            if not timestamps and not body:
                words = self.words.without_lone_space(words)
            if timestamps and words:
                words = [self._timestamp(segment.start_s), *words, self._timestamp(segment.end_s)]
            body += words
        if not body and not no_speech:
            raise ValueError("empty text")
        if timestamps and next_start_s is not None:
            body.append(self._timestamp(next_start_s))
        prefix = self.prefix(language, task, timestamps=timestamps)
        if len(prefix) + len(body) > self.max_label_tokens:
            raise TooLongError(
                f"{len(body)} text tokens; with the {len(prefix)} of the prefix the model takes {self.max_label_tokens}"
            )
        previous = []
        if prompt.strip():
            words = self.words.encode(" " + prompt.strip())  # in every language, as in OpenAI's code
            room = min(self.max_prompt_tokens, self.max_label_tokens - len(prefix) - len(body) - 1)
            if room > 0:
                previous = [self.token_id("<|startofprev|>"), *words[-room:]]
        inputs = np.array(previous + prefix + body, dtype=np.int64)
        labels = np.append(inputs[1:], self.eot)
        labels[: len(previous)] = IGNORED  # up to the position that predicts <|startoftranscript|>
        return inputs, labels

    def n_tokens(self, text: str) -> int:
        """Count the tokens that a text has as one segment, at most with its space; of a text over the limit, enough."""
        most = LONGEST_TOKEN * self.max_label_tokens
        return self.words.count(" " + text.strip()[:most])

    @cached_property
    def words(self) -> Words:
        """Text to tokens and back, without special tokens."""
        n_times = self.window_frames // 2 + 1  # one for each of the encoder's positions, and one for the end
        return Words(self.tokenizer, markers=range(self.eot, self.first_timestamp + n_times))

    def _timestamp(self, seconds: float | None) -> int:
        if seconds is None or not 0 <= seconds <= self.window_s:
            raise ValueError(f"a segment time of {seconds} s; expected 0 to {self.window_s:g}")
        return self.first_timestamp + round(seconds / 0.02)

    def encode_audio(self, wave: np.ndarray) -> tuple[np.ndarray, float]:
        """Log-mel of one clip, as WhisperFeatureExtractor computes it, without the padding to the window.

        Args:
            wave: float32 (n_samples,), mono, at `sample_rate_hz`.

        Returns:
            float32 (n_mels, n_frames of this clip) and its floor: the value that silence has beside this clip,
            ``(max(log_max - 8, -10) + 4) / 4``, with which the collator pads.

        Raises:
            TooLongError: longer than the model's window.
        """
        if len(wave) > self.window_samples:
            raise TooLongError(f"{len(wave) / self.sample_rate_hz:.1f} s of audio; the model takes {self.window_s:g} s")
        # The clip's last frames must see the silence after it, not its mirror image; at the full window the
        # extractor itself reflects.
        log_mel, floor = self._log_mel(wave, min(len(wave) + self.n_fft, self.window_samples))
        n_frames = min(self.window_frames, (len(wave) + self.n_fft // 2) // self.hop_samples + 1, log_mel.shape[1])
        return log_mel[:, :n_frames], floor

    def encode_stretch(self, wave: np.ndarray, n_frames: int) -> np.ndarray:
        """Log-mel of a stretch of a long recording; behind its end there is silence.

        Args:
            wave: float32 (n_samples,), mono, at `sample_rate_hz`, at most `n_frames` long.
            n_frames: of the result, any number of windows.

        Returns:
            float32 (n_mels, n_frames).
        """
        return self._log_mel(wave, n_frames * self.hop_samples)[0]

    def _log_mel(self, wave: np.ndarray, n_samples: int) -> tuple[np.ndarray, float]:
        """Log-mel (n_mels, n_samples // hop_samples) of a waveform with zeros behind it, and its floor."""
        import torch

        padded = np.zeros(n_samples, dtype=np.float32)
        padded[: len(wave)] = wave
        spectrum = torch.stft(
            torch.from_numpy(padded), self.n_fft, self.hop_samples, window=torch.hann_window(self.n_fft),
            return_complex=True,
        )  # fmt: skip
        power = spectrum[:, :-1].abs() ** 2  # (n_fft // 2 + 1, n_frames); the extractor drops the last frame, too
        mel = torch.from_numpy(self.mel_filters).T @ power
        log_mel = mel.clamp(min=1e-10).log10()
        floor = max(log_mel.max().item() - 8.0, -10.0)
        return ((log_mel.clamp(min=floor) + 4.0) / 4.0).numpy(), (floor + 4.0) / 4.0

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode generated tokens to text without special tokens and times, and without space at its ends."""
        return self.words.decode(tokens).strip()
