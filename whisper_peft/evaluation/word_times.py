"""Find when each word is spoken, from the cross-attention of the alignment heads, by dynamic time warping.

The decoder reads the text of some segments once more, with the sound of their window. The heads that follow the sound
(`alignment_heads` of the generation config) show for each token where the model listened. The cheapest path through
that map gives each token its time, as in openai-whisper. It does not matter how the text was decoded.
"""

from __future__ import annotations

import contextlib
import statistics
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from whisper_peft.data.features import Preparation
from whisper_peft.data.text import has_spaces
from whisper_peft.errors import UserError
from whisper_peft.evaluation.generation import full_limit
from whisper_peft.model.build import whisper_of

if TYPE_CHECKING:
    import torch

# Width of the median filter over encoder positions, as in openai-whisper.
POSITIONS_MEDIAN = 7
# No window takes its typical word for longer than this, in seconds, as in openai-whisper.
TYPICAL_WORD_S = 0.7
# Sound behind the last segment of a window that is heard as well, in seconds, for a word that ends late.
LATE_WORD_MARGIN_S = 0.5
# Unicode categories of marks and closing punctuation, which belong to the text before them.
JOINS_BEFORE = ("Mn", "Mc", "Me", "Po", "Pe", "Pf", "Pd", "Cf")
# Unicode categories of opening punctuation, which belongs to the text behind it.
OPENS = ("Ps", "Pi")


def alignment_heads(model) -> list[tuple[int, int]]:
    """Return the alignment heads of a model.

    Args:
        model: Whisper, or an adapter on one. When it was loaded, heads that it does not have were left out.

    Returns:
        Pairs of a decoder layer and a head.

    Raises:
        UserError: The generation config names no heads.
    """
    whisper = whisper_of(model)
    heads = getattr(whisper.generation_config, "alignment_heads", None)
    if not heads:
        raise UserError(
            "--word-times: the model's generation config names no alignment_heads; copy them from the "
            "generation_config.json of the checkpoint it was trained from, or leave --word-times away."
        )
    return [(layer, head) for layer, head in heads]


def add_word_times(
    model, preparation: Preparation, wave: np.ndarray, segments: list[dict], *, language: str | None, task: str
) -> None:
    """Give segments their `words`, and the times of their first and last word.

    Args:
        model: Whisper in eval mode, or an adapter on one, on its device.
        preparation: The preparation of its checkpoint.
        wave: The recording: float32 (n_samples,), mono, at `preparation.sample_rate_hz`.
        segments: Segments as `transcribe_waves` makes them; they are changed in place. Each gets ``words``:
            ``{"word": text with the space before it, "start": seconds, "end": seconds}``. Words and segments are in
            order and do not overlap.
        language: Whisper's code; None for an English-only checkpoint.
        task: "transcribe" or "translate".
    """
    heads = alignment_heads(model)
    text_language = "en" if task == "translate" else language
    earliest_s = 0.0
    for group in _windows(preparation, segments, text_language):
        spoken = _time_words(
            model, preparation, wave, group, heads, language=language, task=task, text_language=text_language
        )
        durations_s = [word.end_s - word.start_s for words in spoken for word in words]
        longest_s = 0.0
        if durations_s:
            longest_s = 2 * min(TYPICAL_WORD_S, statistics.median(durations_s))
        for segment, words in zip(group, spoken, strict=True):
            _leave_pauses_out(words, segment, longest_s)
            segment["words"] = []
            for word in words:
                start_s = max(earliest_s, word.start_s)
                end_s = max(start_s, word.end_s)
                segment["words"].append({"word": word.text, "start": round(start_s, 2), "end": round(end_s, 2)})
                earliest_s = end_s
            if words:
                segment["start"] = segment["words"][0]["start"]
                segment["end"] = segment["words"][-1]["end"]


def _time_words(
    model,
    preparation: Preparation,
    wave: np.ndarray,
    group: list[dict],
    heads: list[tuple[int, int]],
    *,
    language: str | None,
    task: str,
    text_language: str | None,
) -> list[list[_Word]]:
    """Find the words of some segments and their times in the recording.

    Args:
        model: Whisper in eval mode, or an adapter on one, on its device.
        preparation: The preparation of its checkpoint.
        wave: The recording: float32 (n_samples,).
        group: Segments that fit into one window.
        heads: The alignment heads.
        language: Whisper's code; None for an English-only checkpoint.
        task: "transcribe" or "translate".
        text_language: Whisper's code of the language that the text is written in.

    Returns:
        The words of each segment. They are as long as the path makes them, with the pauses around them.
    """
    recording_s = len(wave) / preparation.sample_rate_hz
    begin_s = max(0.0, min(group[0]["start"], recording_s - 0.1))
    until_s = min(recording_s, begin_s + preparation.window_s, group[-1]["end"] + LATE_WORD_MARGIN_S)
    first_sample = int(begin_s * preparation.sample_rate_hz)
    sound = wave[first_sample : first_sample + preparation.window_samples]
    ids_of_segments = [_token_ids(preparation, segment["text"], text_language) for segment in group]
    ids = [token for tokens in ids_of_segments for token in tokens]
    # The encoder has one position for two frames.
    n_positions = max(1, round((until_s - begin_s) * preparation.frames_per_s / 2))
    edges = _token_edges(model, preparation, sound, ids, n_positions, heads, language=language, task=task)
    times_s = begin_s + edges * 2 / preparation.frames_per_s
    spaced = has_spaces(text_language or "en")
    spoken = []
    at = 0
    for tokens in ids_of_segments:
        words = []
        for text, start, end in _words_of(preparation, tokens, spaced=spaced):
            words.append(_Word(text, float(times_s[at + start]), float(times_s[at + end])))
        spoken.append(words)
        at += len(tokens)
    return spoken


@dataclass
class _Word:
    """A word and the times that the path through the map gives it, in seconds."""

    text: str
    start_s: float
    end_s: float


def _leave_pauses_out(words: list[_Word], segment: dict, longest_s: float) -> None:
    """Take a pause before or behind a segment out of its first and last word.

    The path gives every moment to some token, so a pause goes to one of its neighbours. The segment's own times tell
    where the pause ends, if they are plausible. Otherwise the word lasts no longer than `longest_s`.

    Args:
        words: The words of the segment; their times are changed in place.
        segment: The segment, with `start` and `end` in seconds.
        longest_s: Longest time that a first or last word is believed to last, in seconds.
    """
    if not words:
        return
    first = words[0]
    last = words[-1]
    if first.end_s - first.start_s > longest_s:
        first.start_s = max(first.end_s - longest_s, min(segment["start"], first.end_s - longest_s / 2))
    if last.end_s - last.start_s > longest_s:
        last.end_s = min(last.start_s + longest_s, max(segment["end"], last.start_s + longest_s / 2))


def _windows(preparation: Preparation, segments: list[dict], text_language: str | None) -> Iterator[list[dict]]:
    """Yield runs of segments that fit into one window of the model, in sound and in tokens."""
    group: list[dict] = []
    n_tokens = 0
    for segment in segments:
        size = len(_token_ids(preparation, segment["text"], text_language))
        fits_sound = not group or segment["end"] - group[0]["start"] <= preparation.window_s
        if group and not (fits_sound and n_tokens + size <= full_limit(preparation)):
            yield group
            group = []
            n_tokens = 0
        group.append(segment)
        n_tokens += size
    if group:
        yield group


def _token_ids(preparation: Preparation, text: str, text_language: str | None) -> list[int]:
    """Return the tokens of a segment's text, as many as the decoder can read."""
    return preparation.words.of_segment(text, text_language)[: full_limit(preparation)]


def _token_edges(
    model,
    preparation: Preparation,
    sound: np.ndarray,
    ids: list[int],
    n_positions: int,
    heads: list[tuple[int, int]],
    *,
    language: str | None,
    task: str,
) -> np.ndarray:
    """Find the encoder position at which each token begins.

    Args:
        model: Whisper in eval mode, or an adapter on one, on its device.
        preparation: The preparation of its checkpoint.
        sound: float32 (n_samples,), at most one window.
        ids: The tokens of the text.
        n_positions: Number of encoder positions in which the text is spoken.
        heads: The alignment heads.
        language: Whisper's code; None for an English-only checkpoint.
        task: "transcribe" or "translate".

    Returns:
        int (n_tokens + 1,): the positions; the last one is where the last token ends.
    """
    import torch

    whisper = whisper_of(model)
    device = whisper.device
    dtype = next(whisper.get_encoder().parameters()).dtype
    prefix = preparation.prefix(language, task)
    tokens = torch.tensor([[*prefix, *ids, preparation.eot]], device=device)
    features = torch.from_numpy(preparation.encode_stretch(sound, preparation.window_frames))[None]
    with torch.no_grad(), _listening(whisper, heads, n_positions) as maps:
        whisper.model(input_features=features.to(device, dtype), decoder_input_ids=tokens, use_cache=False)
    # The place before a token predicts it, so its attention shows where the token is heard.
    weights = torch.stack(maps)[:, len(prefix) - 1 : -1]  # (n_heads, n_tokens + 1, n_positions)
    spread = weights.std(dim=-2, keepdim=True, unbiased=False)
    weights = (weights - weights.mean(dim=-2, keepdim=True)) / spread.clamp(min=1e-9)
    cost = -_median_filter(weights).mean(dim=0)
    return _cheapest_path(cost.cpu().numpy().astype(np.float64))


@contextlib.contextmanager
def _listening(whisper, heads: list[tuple[int, int]], n_positions: int) -> Iterator[list[torch.Tensor]]:
    """Collect the cross-attention of some heads during a forward inside the context.

    It is computed from the queries and keys of the layers, which an adapter has changed already. The fused kernels keep
    no weights, and asking transformers for them would switch every layer to slow kernels.

    Args:
        whisper: A WhisperForConditionalGeneration.
        heads: Pairs of a decoder layer and a head.
        n_positions: Number of encoder positions to look at, from the first one on.

    Yields:
        A list that the forward fills with float32 (n_tokens, n_positions) for each head.
    """
    maps: list[torch.Tensor] = []
    queries: dict[int, torch.Tensor] = {}
    hooks = []
    for layer_number in sorted({layer for layer, _ in heads}):
        attention = whisper.model.decoder.layers[layer_number].encoder_attn
        chosen = [head for layer, head in heads if layer == layer_number]

        def keep_query(module, inputs, output, layer_number=layer_number) -> None:
            queries[layer_number] = output[0]

        def add_maps(module, inputs, output, layer_number=layer_number, attention=attention, chosen=chosen) -> None:
            for head in chosen:
                columns = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
                query = queries[layer_number][:, columns].float() * attention.scaling
                maps.append((query @ output[0][:n_positions, columns].float().T).softmax(dim=-1))

        hooks.append(attention.q_proj.register_forward_hook(keep_query))
        hooks.append(attention.k_proj.register_forward_hook(add_maps))
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def _median_filter(weights: torch.Tensor) -> torch.Tensor:
    """Replace each of the weights (n_heads, n_tokens, n_positions) by the median around it. Ends are mirrored."""
    import torch

    half = POSITIONS_MEDIAN // 2
    if weights.shape[-1] <= half:
        return weights
    padded = torch.nn.functional.pad(weights, (half, half), mode="reflect")
    return padded.unfold(-1, POSITIONS_MEDIAN, 1).median(dim=-1).values


def _cheapest_path(cost: np.ndarray) -> np.ndarray:
    """Find the cheapest path through a map of costs. Each step goes on by one row, one position, or both.

    Args:
        cost: float64 (n_rows, n_positions).

    Returns:
        int (n_rows,): the position at which the path enters each row.

    Example:
        >>> _cheapest_path(np.array([[0, 0, 9, 9], [9, 9, 0, 9], [9, 9, 9, 0]], dtype=float)).tolist()
        [0, 2, 3]
    """
    n_rows, n_columns = cost.shape
    total = np.full((n_rows + 1, n_columns + 1), np.inf)
    total[0, 0] = 0.0
    # The step that led to each cell: 0 by both, 1 from the row above, 2 from the column before.
    came_from = np.zeros((n_rows + 1, n_columns + 1), dtype=np.int8)
    # The cells of a diagonal depend only on the two diagonals before it, so they are computed at once.
    for diagonal in range(2, n_rows + n_columns + 1):
        rows = np.arange(max(1, diagonal - n_columns), min(n_rows, diagonal - 1) + 1)
        columns = diagonal - rows
        choices = np.stack([total[rows - 1, columns - 1], total[rows - 1, columns], total[rows, columns - 1]])
        best = choices.argmin(axis=0)
        came_from[rows, columns] = best
        total[rows, columns] = cost[rows - 1, columns - 1] + choices[best, np.arange(len(rows))]
    entered = np.zeros(n_rows, dtype=np.int64)
    row = n_rows
    column = n_columns
    while row > 0 and column > 0:
        # The path runs backwards, so this is overwritten until the first column of the row.
        entered[row - 1] = column - 1
        step = came_from[row, column]
        if step != 2:
            row -= 1
        if step != 1:
            column -= 1
    return entered


def _words_of(preparation: Preparation, ids: list[int], *, spaced: bool) -> Iterator[tuple[str, int, int]]:
    """Cut tokens into words.

    In a script without spaces, a word is the smallest run of tokens that makes whole characters. Punctuation goes with
    the word before it, and an opening mark with the word behind it.

    Args:
        preparation: The preparation of the checkpoint.
        ids: The tokens of a text.
        spaced: The script puts spaces between words.

    Yields:
        The text of a word with the space before it, its first token, and the token behind its last.
    """
    units = list(_whole_characters(preparation, ids))
    word = ""
    start = 0
    for number, (text, first, _) in enumerate(units):
        if word.strip() and _begins_word(text, word, spaced=spaced):
            yield word, start, first
            word = ""
        if not word:
            start = first
        word += text
        if number == len(units) - 1 and word.strip():
            yield word, start, len(ids)


def _begins_word(text: str, word: str, *, spaced: bool) -> bool:
    """Tell whether a text begins a new word, or goes on with the one before it."""
    if spaced:
        return text.startswith(" ")
    return not _is_only(JOINS_BEFORE, text) and not _is_only(OPENS, word)


def _is_only(categories: tuple[str, ...], text: str) -> bool:
    """Tell whether all characters of a text, but for the spaces at its ends, are in some Unicode categories."""
    return all(unicodedata.category(character) in categories for character in text.strip())


def _whole_characters(preparation: Preparation, ids: list[int]) -> Iterator[tuple[str, int, int]]:
    """Cut tokens into the smallest runs that decode to whole characters.

    A vowel sign or another mark is never separated from the letter before it.

    Args:
        preparation: The preparation of the checkpoint.
        ids: The tokens of a text.

    Yields:
        The text of a run, its first token, and the token behind its last.
    """
    first = 0
    for end in range(1, len(ids) + 1):
        text = preparation.words.decode(ids[first:end])
        if end < len(ids):
            # The tokenizer decodes a part of a character to the replacement character.
            is_partial = "\ufffd" in text
            # Four tokens hold the whole of the next character: no character has more than four bytes.
            following = preparation.words.decode(ids[end : end + 4])[:1]
            is_followed_by_mark = bool(following) and unicodedata.category(following)[0] == "M"
            if is_partial or is_followed_by_mark:
                continue
        yield text, first, end
        first = end
