"""The feature extractor of a checkpoint, made from settings that were checked first."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_peft.errors import Notice
from whisper_peft.files import printable, read_json_file
from whisper_peft.model.fields import FLAG, OBJECT, FieldKind, check_fields, number, one_of, optional, whole
from whisper_peft.model.tokenizer_files import Find

if TYPE_CHECKING:
    from transformers import WhisperFeatureExtractor

# The file with the settings. transformers 5 writes them into the second one.
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
# Whisper's log-mels have 100 frames a second, and its window has 30 s.
_FRAMES_PER_S = 100
_DEFAULT_WINDOW_FRAMES = 3000
EXTRACTOR_FIELDS: dict[str, FieldKind] = {
    "feature_size": whole(1, 1024),
    "sampling_rate": whole(16_000, 16_000),
    "hop_length": whole(1, 16_384),
    "chunk_length": whole(1, 3600),
    "n_fft": whole(2, 65_536),
    "padding_value": number(-1e6, 1e6),
    "padding_side": one_of(("right", "left")),
    "dither": number(0.0, 1.0),
    "return_attention_mask": FLAG,
}


def load_feature_extractor(
    find: Find, *, n_mels: int | None = None, window_frames: int | None = None, source: str = ""
) -> WhisperFeatureExtractor | None:
    """Load a feature extractor.

    Args:
        find: Finds the files of the checkpoint.
        n_mels: Mel bins of the model. With them, an extractor is made for a checkpoint without settings of one.
        window_frames: Frames of the model's window, for the same purpose.
        source: The name of the checkpoint, for the notice that the extractor was made so.

    Returns:
        The extractor; None if the checkpoint has no settings of one and `n_mels` is not given.

    Raises:
        UserError: The settings cannot be used. The message names the file and the field.
    """
    from transformers import WhisperFeatureExtractor

    place, page = _read_extractor_settings(find)
    if page is None and n_mels is None:
        return None
    if page is None:
        seconds = max(1, (window_frames or _DEFAULT_WINDOW_FRAMES) // _FRAMES_PER_S)
        page = {"feature_size": n_mels, "chunk_length": seconds}
        warnings.warn(
            f"{printable(source)}: no {PREPROCESSOR} in it; made from config.json ({n_mels} mel bins, {seconds} s).",
            Notice,
            stacklevel=2,
        )
    settings = {name: value for name, value in page.items() if name in EXTRACTOR_FIELDS}
    check_fields(place, settings, EXTRACTOR_FIELDS)
    return WhisperFeatureExtractor(**settings)


def _read_extractor_settings(find: Find) -> tuple[str | Path, dict[str, Any] | None]:
    """Read the settings of an extractor from the file that has them.

    Returns:
        The file, and its settings; None in place of the settings if there are none.
    """
    path = find(PROCESSOR)
    if path is not None:
        processor = read_json_file(path)
        page = processor.get("feature_extractor", processor.get("audio_processor"))
        check_fields(path, {"feature_extractor": page}, {"feature_extractor": optional(OBJECT)})
        if page is not None:
            return path, page
    path = find(PREPROCESSOR)
    if path is None:
        return PREPROCESSOR, None
    return path, read_json_file(path)
