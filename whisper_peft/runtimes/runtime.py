"""The common ground of all runtimes: how they are asked, and what they answer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Request:
    """The wishes of the user. Everything else is left at the runtime's own default.

    Attributes:
        language: Whisper's code; None lets the runtime listen for it, or is for an English-only model.
        task: "transcribe" or "translate".
        prompt: Names and jargon, as they are spelt; None for none.
        word_times: Whether to find the times of words.
        beams: Number of beams; None takes the runtime's own number.
        times: Whether to give times also where the runtime would give none, because a recording is short.
    """

    language: str | None
    task: str = "transcribe"
    prompt: str | None = None
    word_times: bool = False
    beams: int | None = None
    times: bool = False


@dataclass(frozen=True)
class RuntimeWord:
    """A word with its times, in seconds from the start of the recording."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class RuntimeSegment:
    """A segment as a runtime returns it.

    Attributes:
        text: The text as the runtime wrote it, with the spaces at its ends.
        start_s: Start in the recording, in seconds.
        end_s: End in the recording, in seconds.
        words: Its words, if the user asked for them.
    """

    text: str
    start_s: float
    end_s: float
    words: tuple[RuntimeWord, ...] = ()


@dataclass(frozen=True)
class RuntimeOutput:
    """The answer of a runtime for one recording.

    Attributes:
        segments: The segments in their order.
        language: Whisper's code of the language that it decoded in; None if the runtime does not say.
    """

    segments: tuple[RuntimeSegment, ...]
    language: str | None = None

    @property
    def text(self) -> str:
        """The whole text, with the model's own spaces between segments."""
        return "".join(segment.text for segment in self.segments).strip()


class Runtime(Protocol):
    """An exported model that is loaded in its runtime."""

    def transcribe(self, wave: np.ndarray, request: Request) -> RuntimeOutput:
        """Transcribe a recording of any length with the runtime's default decoding.

        Args:
            wave: The recording: float32 (n_samples,), mono, at 16 kHz.
            request: The wishes of the user.

        Raises:
            UserError: The runtime cannot do what the user asks for.
        """
        ...

    def encode(self, wave: np.ndarray) -> np.ndarray | None:
        """Return the encoder's output for the first window of a recording, if the runtime gives it.

        Args:
            wave: The recording: float32 (n_samples,), mono, at 16 kHz.

        Returns:
            float32 (n_positions, d_model); None if the runtime keeps it to itself.
        """
        ...


def n_threads() -> int:
    """Return how many threads a runtime takes: OMP_NUM_THREADS, or else one for each core that we may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
