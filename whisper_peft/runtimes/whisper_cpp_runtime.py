"""ggml models in whisper.cpp."""

from __future__ import annotations

import codecs
import contextlib
import threading
import unicodedata
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from whisper_peft.data.text import has_spaces
from whisper_peft.errors import UserError
from whisper_peft.runtimes.exports import Export
from whisper_peft.runtimes.ggml_file import check_ggml_file
from whisper_peft.runtimes.runtime import Request, RuntimeOutput, RuntimeSegment, RuntimeWord, n_threads

if TYPE_CHECKING:
    import numpy as np

_RATE_HZ = 16_000
# whisper.cpp hears nothing in shorter recordings, and reads beyond the end of the shortest ones.
_SHORTEST_SAMPLES = _RATE_HZ // 10
# Beams that whisper.cpp has room for.
_MOST_BEAMS = 8
# Candidates that whisper-cli samples when it falls back to a higher temperature.
_BEST_OF = 5
# Units of whisper.cpp's times in a second.
_TICKS_PER_S = 100
# Unicode's categories of opening marks.
_OPENING = ("Ps", "Pi")
# The level of errors in whisper.cpp's log.
_ERROR_LEVEL = 4


class WhisperCpp:
    """A model in whisper.cpp, decoding as its program whisper-cli does unless it is told otherwise.

    That is with times, five beams, five candidates at each higher temperature, and whisper.cpp's thresholds. Its
    Python binding would decode with one beam, but people run whisper-cli, or programs with its defaults. The language
    alone differs: whisper-cli takes every recording for English, and here None lets the model listen.

    The times of words come from the probabilities of time tokens, as in the outputs of whisper-cli. The way through the
    alignment heads (--dtw) is not taken: whisper.cpp 1.8.5 ends the whole process if less than 0.16 s of sound is left.

    Args:
        export: The exported model.

    Raises:
        UserError: The file is damaged, or whisper.cpp does not load it.
    """

    def __init__(self, export: Export):
        import _pywhispercpp as binding

        self.export = export
        self.header = check_ggml_file(export.path)
        self._binding = binding
        with _collected_errors(binding) as errors:
            context = binding.whisper_init_from_file_with_params(
                str(export.path), binding.whisper_context_default_params()
            )
        # The binding returns a context even if whisper.cpp made none.
        if errors:
            raise UserError(f"{export.folder}: whisper.cpp does not load it ({errors[0]}); export it again.")
        self._context = context
        # whisper.cpp keeps its results in the context, so one recording waits for the other.
        self._turn = threading.Lock()
        weakref.finalize(self, binding.whisper_free, context)

    def transcribe(self, wave: np.ndarray, request: Request) -> RuntimeOutput:
        """Transcribe a recording; see `Runtime.transcribe`. Less than 0.1 s gives no text, as in whisper-cli."""
        parameters = self._parameters(request)
        if len(wave) < _SHORTEST_SAMPLES:
            return RuntimeOutput(())
        with self._turn:
            with _collected_errors(self._binding) as errors:
                status = self._binding.whisper_full(self._context, parameters, wave, len(wave))
            if status != 0:
                reason = errors[0] if errors else f"error {status}"
                raise UserError(f"{self.export.folder}: whisper.cpp cannot transcribe with it ({reason}).")
            language = self._language_heard()
            segments = self._segments(len(wave) / _RATE_HZ, language, word_times=request.word_times)
            return RuntimeOutput(tuple(segments), language)

    def encode(self, wave: np.ndarray) -> np.ndarray | None:
        """Return None: the binding does not give the encoder's output."""
        return None

    def _parameters(self, request: Request) -> Any:
        """Return the parameters of whisper.cpp: those of whisper-cli, and the wishes of the user.

        Raises:
            UserError: whisper.cpp or the model does not know the language, or there are too many beams.
        """
        strategies = self._binding.whisper_sampling_strategy
        strategy = strategies.WHISPER_SAMPLING_BEAM_SEARCH
        if request.beams == 1:
            strategy = strategies.WHISPER_SAMPLING_GREEDY
        parameters = self._binding.whisper_full_default_params(strategy)
        parameters.greedy = {"best_of": _BEST_OF}
        if request.beams is not None and request.beams > 1:
            if request.beams > _MOST_BEAMS:
                raise UserError(f"--beams {request.beams}: whisper.cpp has room for {_MOST_BEAMS}.")
            parameters.beam_search = {"beam_size": request.beams, "patience": -1.0}
        parameters.language = self._language_to_decode(request.language)
        parameters.translate = request.task == "translate"
        parameters.token_timestamps = request.word_times
        parameters.n_threads = n_threads()
        parameters.print_progress = False
        if request.prompt:
            parameters.initial_prompt = request.prompt
        return parameters

    def _language_to_decode(self, language: str | None) -> str:
        """Return the language as whisper.cpp takes it.

        Raises:
            UserError: The model does not know it.
        """
        if not self.export.multilingual:
            return "en"
        if language is None:
            return ""
        with _collected_errors(self._binding):
            number = self._binding.whisper_lang_id(language)
        if not 0 <= number < self.header.n_languages:
            raise UserError(f"--language {language}: whisper.cpp does not know it in this model.")
        return language

    def _language_heard(self) -> str:
        """Return Whisper's code of the language that the last recording was decoded in."""
        if not self.export.multilingual:
            return "en"
        return self._binding.whisper_lang_str(self._binding.whisper_full_lang_id(self._context))

    def _segments(self, length_s: float, language: str, *, word_times: bool) -> Iterator[RuntimeSegment]:
        """Yield the segments of the last recording.

        A character may be spread over two segments. It belongs to the one that it ends in.
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        n_segments = self._binding.whisper_full_n_segments(self._context)
        for number in range(n_segments):
            is_last = number == n_segments - 1
            text = decoder.decode(self._binding.whisper_full_get_segment_text(self._context, number), final=is_last)
            start = self._binding.whisper_full_get_segment_t0(self._context, number)
            end = self._binding.whisper_full_get_segment_t1(self._context, number)
            words: tuple[RuntimeWord, ...] = ()
            if word_times:
                words = tuple(self._words(number, language, length_s))
            yield RuntimeSegment(text, _seconds(start, length_s), _seconds(end, length_s), words)

    def _words(self, segment: int, language: str, length_s: float) -> Iterator[RuntimeWord]:
        """Yield the words of a segment with their times."""
        tokens = []
        for number in range(self._binding.whisper_full_n_tokens(self._context, segment)):
            token = self._binding.whisper_full_get_token_data(self._context, segment, number)
            if token.id < self._binding.whisper_token_eot(self._context):
                written = self._binding.whisper_token_to_bytes(self._context, token.id)
                tokens.append((written, token.t0, token.t1))
        for word, start, end in join_words(tokens, spaced=has_spaces(language)):
            yield RuntimeWord(word, _seconds(start, length_s), _seconds(end, length_s))


def join_words(tokens: list[tuple[bytes, int, int]], *, spaced: bool) -> Iterator[tuple[str, int, int]]:
    """Join tokens to words.

    Args:
        tokens: For each its bytes, its start and its end.
        spaced: The script puts spaces between words. Without, a word is the smallest run of whole characters. A vowel
            sign or a punctuation mark goes with the word before it, and an opening mark with the word behind it. Latin
            letters and digits stay together.

    Yields:
        The text of a word with the space before it, its start and its end.
    """
    word = ""
    start = 0
    end = 0
    for text, unit_start, unit_end in _whole_units(tokens):
        begins = text.startswith(" ") if spaced else not _belongs_together(word, text)
        if word.strip() and begins:
            yield word, start, end
            word = ""
        if not word:
            start = unit_start
        word += text
        end = max(start, unit_end)
    if word.strip():
        yield word, start, end


def _whole_units(tokens: list[tuple[bytes, int, int]]) -> Iterator[tuple[str, int, int]]:
    """Yield the smallest runs of tokens that hold whole characters, with their start and end."""
    waiting = b""
    start = 0
    for number, (written, token_start, token_end) in enumerate(tokens):
        if not waiting:
            start = token_start
        waiting += written
        if _is_whole(waiting) or number == len(tokens) - 1:
            yield waiting.decode("utf-8", "replace"), start, token_end
            waiting = b""


def _is_whole(written: bytes) -> bool:
    """Tell whether bytes are whole characters, or can never become some."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(written)
    except UnicodeDecodeError:
        return True
    return not decoder.getstate()[0]


def _belongs_together(word: str, text: str) -> bool:
    """Tell whether a text goes with the word before it, in a script without spaces."""
    first = unicodedata.category(text.strip()[:1] or " ")
    last = unicodedata.category(word.strip()[-1:] or " ")
    is_mark = first[0] in "MP" and first not in _OPENING
    return is_mark or last in _OPENING or (_is_latin(word[-1:]) and _is_latin(text[:1]))


def _is_latin(character: str) -> bool:
    """Tell whether a character is a plain letter or digit, which forms words in every language."""
    return character.isascii() and character.isalnum()


def _seconds(ticks: int, length_s: float) -> float:
    """Return a time of whisper.cpp in seconds. It may lie behind the end of the recording there."""
    return min(max(ticks, 0) / _TICKS_PER_S, length_s)


@contextlib.contextmanager
def _collected_errors(binding: Any) -> Iterator[list[str]]:
    """Keep whisper.cpp from writing its log to stderr, and collect the errors in it."""
    errors: list[str] = []

    def keep(level: int, text: str) -> None:
        if level == _ERROR_LEVEL:
            errors.append(text.strip())

    binding.whisper_log_set(keep)
    try:
        yield errors
    finally:
        # A callback that is still set when Python ends would crash it.
        binding.whisper_log_set(None)
