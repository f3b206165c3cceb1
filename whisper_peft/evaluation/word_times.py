"""When each word is spoken: from the cross-attention of the alignment heads, by dynamic time warping.

The text of some segments is given to the decoder once more, with the sound of their window. The heads that follow the
sound (`alignment_heads` of the generation config) say for each token where the model listened; the cheapest path
through that map gives each token its time, as openai-whisper does it. It needs nothing of how the text was decoded.
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

POSITIONS_MEDIAN = 7  # width of the median filter over encoder positions, openai-whisper's
TYPICAL_WORD_S = 0.7  # the median of a window's words is taken for no longer than that, as in openai-whisper
MARGIN_S = 0.5  # heard behind the last segment of a window, for a word that ends late


def alignment_heads(model) -> list[tuple[int, int]]:
    """Find the alignment heads of a model.

    Returns:
        Pairs of a decoder layer and a head.

    Raises:
        UserError: Its generation config names none. What the model does not have was left out when it was loaded.
    """
    whisper = whisper_of(model)
    named = getattr(whisper.generation_config, "alignment_heads", None)
    if not named:
        raise UserError(
            "--word-times: the model's generation config names no alignment_heads; copy them from the "
            "generation_config.json of the checkpoint it was trained from, or leave --word-times away."
        )
    return [(layer, head) for layer, head in named]


def add_word_times(
    model, preparation: Preparation, wave: np.ndarray, segments: list[dict], *, language: str | None, task: str
) -> None:
    """Give segments their `words`, and the times of their first and last word.

    Args:
        model: Whisper in eval mode, or an adapter on one, on its device.
        preparation: Of its checkpoint.
        wave: float32 (n_samples,), the recording.
        segments: As `transcribe_waves` makes them; changed in place. Each gets ``words``:
            ``{"word": text with the space before it, "start": seconds, "end": seconds}``. Words and segments are in
            order and do not overlap.
        language: Whisper's code; None for an English-only checkpoint.
        task: transcribe or translate.
    """
    heads = alignment_heads(model)
    recording_s = len(wave) / preparation.sample_rate_hz
    earliest_s = 0.0
    written = "en" if task == "translate" else language
    spaced = has_spaces(written or "en")
    for group in _windows(preparation, segments, written):
        begin_s = max(0.0, min(group[0]["start"], recording_s - 0.1))
        until_s = min(recording_s, begin_s + preparation.window_s, group[-1]["end"] + MARGIN_S)
        first = int(begin_s * preparation.sample_rate_hz)
        sound = wave[first : first + preparation.window_samples]
        ids = [_token_ids(preparation, segment["text"], written) for segment in group]
        flat = [token for tokens in ids for token in tokens]
        n_positions = max(1, round((until_s - begin_s) * preparation.frames_per_s / 2))
        edges = _token_edges(model, preparation, sound, flat, n_positions, heads, language=language, task=task)
        times_s = begin_s + edges * 2 / preparation.frames_per_s
        spoken = []
        at = 0
        for tokens in ids:
            words = [
                _Word(text, float(times_s[at + start]), float(times_s[at + end]))
                for text, start, end in _words_of(preparation, tokens, spaced=spaced)
            ]
            spoken.append(words)
            at += len(tokens)
        durations_s = [word.end_s - word.start_s for words in spoken for word in words]
        longest_s = 2 * min(TYPICAL_WORD_S, statistics.median(durations_s)) if durations_s else 0.0
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


@dataclass
class _Word:
    """A word as the path through the map times it."""

    text: str
    start_s: float
    end_s: float


def _leave_pauses_out(words: list[_Word], segment: dict, longest_s: float) -> None:
    """Take a pause before or behind a segment out of its first and last word.

    The path gives every moment to some token, and so a pause to one of its neighbours. The segment's own times, where
    the model gave any, say where the pause ends; else a word is no longer than `longest_s` there.
    """
    if not words:
        return
    first, last = words[0], words[-1]
    if first.end_s - first.start_s > longest_s:
        first.start_s = max(first.end_s - longest_s, min(segment["start"], first.end_s - longest_s / 2))
    if last.end_s - last.start_s > longest_s:
        last.end_s = min(last.start_s + longest_s, max(segment["end"], last.start_s + longest_s / 2))


def _windows(preparation: Preparation, segments: list[dict], written: str | None) -> Iterator[list[dict]]:
    """Yield runs of segments that fit into one window of the model, in sound and in tokens."""
    group: list[dict] = []
    n_tokens = 0
    for segment in segments:
        size = len(_token_ids(preparation, segment["text"], written))
        fits_sound = not group or segment["end"] - group[0]["start"] <= preparation.window_s
        if group and not (fits_sound and n_tokens + size <= full_limit(preparation)):
            yield group
            group = []
            n_tokens = 0
        group.append(segment)
        n_tokens += size
    if group:
        yield group


def _token_ids(preparation: Preparation, text: str, written: str | None) -> list[int]:
    return preparation.words.of_segment(text, written)[: full_limit(preparation)]


def _token_edges(
    model,
    preparation: Preparation,
    sound: np.ndarray,
    ids: list[int],
    n_positions: int,
    heads: list,
    *,
    language: str | None,
    task: str,
) -> np.ndarray:
    """Find at which encoder position each token begins.

    Returns:
        int (n_tokens + 1,): the positions, the last one where the last token ends.
    """
    import torch

    whisper = whisper_of(model)
    device, dtype = whisper.device, next(whisper.get_encoder().parameters()).dtype
    prefix = preparation.prefix(language, task)
    tokens = torch.tensor([[*prefix, *ids, preparation.eot]], device=device)
    features = torch.from_numpy(preparation.encode_stretch(sound, preparation.window_frames))[None]
    with torch.no_grad(), _listening(whisper, heads, n_positions) as maps:
        whisper.model(input_features=features.to(device, dtype), decoder_input_ids=tokens, use_cache=False)
    # (n_heads, n_tokens + 1, n_positions): what is heard when a token is to be said is seen at the place before it
    weights = torch.stack(maps)[:, len(prefix) - 1 : -1]
    spread = weights.std(dim=-2, keepdim=True, unbiased=False)
    weights = (weights - weights.mean(dim=-2, keepdim=True)) / spread.clamp(min=1e-9)
    cost = -_median_filtered(weights).mean(dim=0)
    return _path(cost.cpu().numpy().astype(np.float64))


@contextlib.contextmanager
def _listening(whisper, heads: list[tuple[int, int]], n_positions: int) -> Iterator[list[torch.Tensor]]:
    """Inside, a forward fills a list with the cross-attention float32 (n_tokens, n_positions) of each head.

    It is made from the queries and keys of the layers, with an adapter's part in them: the fused kernels keep no
    weights, and asking transformers for them would switch every layer to the slow ones.
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


def _median_filtered(weights: torch.Tensor) -> torch.Tensor:
    """Weights (n_heads, n_tokens, n_positions), each the median of those around it; ends are mirrored."""
    import torch

    half = POSITIONS_MEDIAN // 2
    if weights.shape[-1] <= half:
        return weights
    padded = torch.nn.functional.pad(weights, (half, half), mode="reflect")
    return padded.unfold(-1, POSITIONS_MEDIAN, 1).median(dim=-1).values


def _path(cost: np.ndarray) -> np.ndarray:
    """Find the cheapest way through a map of costs, each step one token, one position or both further.

    Args:
        cost: float64 (n_rows, n_positions).

    Returns:
        int (n_rows,): the position at which the way enters each row.

    Example:
        >>> _path(np.array([[0, 0, 9, 9], [9, 9, 0, 9], [9, 9, 9, 0]], dtype=float)).tolist()
        [0, 2, 3]
    """
    n_rows, n_columns = cost.shape
    total = np.full((n_rows + 1, n_columns + 1), np.inf)
    total[0, 0] = 0.0
    came_from = np.zeros((n_rows + 1, n_columns + 1), dtype=np.int8)  # 0: both, 1: a row above, 2: a column before
    for diagonal in range(2, n_rows + n_columns + 1):  # its cells depend on the two diagonals before it only
        rows = np.arange(max(1, diagonal - n_columns), min(n_rows, diagonal - 1) + 1)
        columns = diagonal - rows
        choices = np.stack([total[rows - 1, columns - 1], total[rows - 1, columns], total[rows, columns - 1]])
        best = choices.argmin(axis=0)
        came_from[rows, columns] = best
        total[rows, columns] = cost[rows - 1, columns - 1] + choices[best, np.arange(len(rows))]
    entered = np.zeros(n_rows, dtype=np.int64)
    row, column = n_rows, n_columns
    while row > 0 and column > 0:
        entered[row - 1] = column - 1  # overwritten until the first column of this row
        step = came_from[row, column]
        if step != 2:
            row -= 1
        if step != 1:
            column -= 1
    return entered


def _words_of(preparation: Preparation, ids: list[int], *, spaced: bool) -> Iterator[tuple[str, int, int]]:
    """Yield the words of some tokens: text with the space before it, first token, and the token behind the last.

    In a script without spaces, a word is the smallest run of tokens that is whole characters. Punctuation goes with
    the word before it, an opening mark with the word behind it.
    """
    units = list(_whole_characters(preparation, ids))
    word = ""
    start = 0
    for number, (text, first, _) in enumerate(units):
        begins = text.startswith(" ") if spaced else not (_joins_before(text) or _opens(word))
        if word.strip() and begins:
            yield word, start, first
            word = ""
        if not word:
            start = first
        word += text
        if number == len(units) - 1 and word.strip():
            yield word, start, len(ids)


def _joins_before(text: str) -> bool:
    """Whether a text is only marks and closing punctuation, which belong to what stands before them."""
    return all(unicodedata.category(one) in ("Mn", "Mc", "Me", "Po", "Pe", "Pf", "Pd", "Cf") for one in text.strip())


def _opens(text: str) -> bool:
    return bool(text.strip()) and all(unicodedata.category(one) in ("Ps", "Pi") for one in text.strip())


def _whole_characters(preparation: Preparation, ids: list[int]) -> Iterator[tuple[str, int, int]]:
    """Yield the smallest runs of tokens that decode to whole characters: text, first token, token behind the last.

    A vowel sign or another mark is never parted from the letter before it.
    """
    first = 0
    for end in range(1, len(ids) + 1):
        text = preparation.words.decode(ids[first:end])
        if "\ufffd" in text and end < len(ids):
            continue
        following = preparation.words.decode(ids[end : end + 4])[:1] if end < len(ids) else ""
        if following and unicodedata.category(following)[0] == "M":
            continue
        yield text, first, end
        first = end
