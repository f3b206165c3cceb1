"""The pages beside the weights of a checkpoint: config, processor and generation config."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from whisper_peft.data.features import Preparation
from whisper_peft.errors import UserError
from whisper_peft.model.identity import load_or_explain

if TYPE_CHECKING:
    from transformers import GenerationConfig, WhisperForConditionalGeneration, WhisperProcessor


def load_config(source: str, *, revision: str | None = None):
    """The WhisperConfig of a base.

    Args:
        source: local folder or Hub id.
        revision: commit on the Hub; None is the newest.

    Raises:
        UserError: not found, or not a Whisper.
    """
    from transformers import AutoConfig

    config = load_or_explain(AutoConfig.from_pretrained, source, "the model's config", revision=revision or "main")
    if config.model_type != "whisper":
        raise UserError(f"{source}: a {config.model_type} model; this tool trains Whisper only.")
    return config


def load_processor(source: str, *, revision: str | None = None) -> WhisperProcessor:
    """The processor (feature extractor and tokenizer) that lies beside a model."""
    from transformers import WhisperProcessor

    load, commit = WhisperProcessor.from_pretrained, revision or "main"
    try:
        return load_or_explain(load, source, "the processor", revision=commit)
    except AttributeError:  # transformers 4 cannot read the list that 5 writes; the tokens are in tokenizer.json anyway
        return load_or_explain(load, source, "the processor", revision=commit, extra_special_tokens={})


def load_preparation(source: str, *, revision: str | None = None) -> Preparation:
    """Processor and limits of a checkpoint as the data path needs them; reads no weights."""
    config, processor = load_config(source, revision=revision), load_processor(source, revision=revision)
    multilingual = getattr(load_generation_config(source, revision=revision), "is_multilingual", None)
    if multilingual is None:  # checkpoints without a generation config: openai's own rule
        multilingual = config.vocab_size >= 51865
    return Preparation(processor, config, multilingual=bool(multilingual))


def load_generation_config(source: str | Path, *, revision: str | None = None) -> GenerationConfig | None:
    """The generation config of a checkpoint with all of Whisper's fields; None where there is none.

    transformers drops `lang_to_id` and the like from a file that is marked as derived from the model's config.
    """
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(str(source), revision=revision or "main", _from_model_config=False)
    except OSError:
        return None


def repair_generation_config(model: WhisperForConditionalGeneration) -> None:
    """Keeps Whisper's generation fields across save and load.

    A config marked as derived from the model is rebuilt on reload and loses `lang_to_id` and the like, and
    `forced_decoder_ids` left in it make saving fail (transformers 5).
    """
    config = model.generation_config
    config._from_model_config = False
    if getattr(config, "forced_decoder_ids", None) is not None:
        config.forced_decoder_ids = None
    if getattr(model.config, "forced_decoder_ids", None) is not None:
        model.config.forced_decoder_ids = None
