"""The feature extractor of a checkpoint, from settings that have been looked at first."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from whisper_peft.errors import Notice
from whisper_peft.files import printable, read_json_file
from whisper_peft.model.fields import FLAG, OBJECT, FieldKind, check_fields, number, one_of, optional, whole
from whisper_peft.model.vocabulary import Find

if TYPE_CHECKING:
    from transformers import WhisperFeatureExtractor

PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
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
        n_mels: Mel bins of the model, for a checkpoint without settings of an extractor.
        window_frames: Frames of the model's window, likewise.
        source: The name of the checkpoint, for the remark that it was made from these two.

    Returns:
        The extractor; None where there are no settings of one, and `n_mels` is not given.

    Raises:
        UserError: The settings cannot be used. The message names the file and the field.
    """
    from transformers import WhisperFeatureExtractor

    path = find(PROCESSOR)
    page = None
    if path is not None:  # transformers 5 keeps them in there
        whole_page = read_json_file(path)
        page = whole_page.get("feature_extractor", whole_page.get("audio_processor"))
        check_fields(path, {"feature_extractor": page}, {"feature_extractor": optional(OBJECT)})
    if page is None:
        path = find(PREPROCESSOR)
        page = None if path is None else read_json_file(path)
    if page is None and n_mels is None:
        return None
    if page is None:
        seconds = max(1, (window_frames or 3000) // 100)
        page = {"feature_size": n_mels, "chunk_length": seconds}
        warnings.warn(
            f"{printable(source)}: no {PREPROCESSOR} in it; made from config.json ({n_mels} mel bins, {seconds} s).",
            Notice, stacklevel=2,
        )  # fmt: skip
    settings = {name: value for name, value in page.items() if name in EXTRACTOR_FIELDS}
    check_fields(path or PREPROCESSOR, settings, EXTRACTOR_FIELDS)
    return WhisperFeatureExtractor(**settings)
