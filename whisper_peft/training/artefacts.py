"""The results of a run: an adapter or a model that loads alone, and the weights of its checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_peft import runs
from whisper_peft.errors import UserError
from whisper_peft.model.adapter_configs import ADAPTER_WEIGHTS
from whisper_peft.model.build import whisper_of
from whisper_peft.model.configs import load_processor
from whisper_peft.model.from_pretrained import without_bars
from whisper_peft.model.identity import BASE_FACTS, weight_files
from whisper_peft.model.loading import shapes_of
from whisper_peft.model.locating import Located
from whisper_peft.model.lora import fit_to_adapter
from whisper_peft.model.tensor_matching import fit_base
from whisper_peft.model.weights import read_header, refuse_not_finite, tensors_of
from whisper_peft.training.converter_files import ONE_FILE, complete_config, write_tokenizer_tables
from whisper_peft.training.splits import Speech

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration


def set_generation_language(model, speech: Speech) -> None:
    """Store language and task in the generation config; the language only if all training rows share one."""
    dataset = speech.train
    if not dataset.preparation.multilingual:
        return
    languages = {dataset.language_of(number) for number in range(len(dataset))}
    config = whisper_of(model).generation_config
    config.language = languages.pop() if len(languages) == 1 else None
    config.task = dataset.task


def save_artefact(folder: Path, model, located: Located, base: dict) -> None:
    """Write an adapter or a model that loads alone: weights, processor and generation config.

    Args:
        folder: An empty folder.
        model: Whisper, or an adapter on one.
        located: The base.
        base: What run.json says of the base; written beside an adapter.
    """
    whisper = whisper_of(model)
    # The Trainer switches the cache off for training; whoever loads the model wants it.
    whisper.config.use_cache = True
    save_processor(load_processor(located.base, revision=located.commit), folder)
    if model is whisper:
        save_model(whisper, folder)
        return
    with without_bars():
        model.save_pretrained(str(folder))
    whisper.generation_config.save_pretrained(str(folder))
    # peft writes an empty card.
    (folder / "README.md").unlink(missing_ok=True)
    runs.write_json(folder / BASE_FACTS, base)


def save_model(whisper: WhisperForConditionalGeneration, folder: Path) -> None:
    """Write a whole model as one file of weights, its config and its generation config."""
    with without_bars():
        whisper.save_pretrained(str(folder), max_shard_size=ONE_FILE)
    whisper.generation_config.save_pretrained(str(folder))
    complete_config(folder)


def save_processor(processor, folder: Path) -> None:
    """Write the processor in the layouts of transformers 4 and 5, so that either loads it, and for converters."""
    processor.save_pretrained(str(folder))
    # transformers 4 reads preprocessor_config.json and the tokenizer's own files.
    processor.feature_extractor.save_pretrained(str(folder))
    processor.tokenizer.save_pretrained(str(folder))
    path = folder / "tokenizer_config.json"
    settings = runs.read_json(path)
    if isinstance(settings.get("extra_special_tokens"), list):
        # transformers 5 writes a list under this name, where transformers 4 expects a mapping.
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
        runs.write_json(path, settings)
    write_tokenizer_tables(processor.tokenizer, folder)


def load_weights(model, checkpoint: Path) -> None:
    """Put a checkpoint's weights into the model that they came from.

    Raises:
        UserError: See `count_weights`.
    """
    count_weights(model, checkpoint)
    state = dict(tensors_of(_weight_files_of(model, checkpoint)))
    if whisper_of(model) is model:
        # Not strict: proj_out is tied to the token embedding, and not stored.
        model.load_state_dict(state, strict=False)
    else:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, state)


def count_weights(model, checkpoint: Path) -> None:
    """Hold the weights of a checkpoint against the model that they are to go into.

    Args:
        model: A Whisper, or an adapter on one.
        checkpoint: A checkpoint of a run.

    Raises:
        UserError: A tensor is missing, left over, of another name or shape, or not of finite numbers.
    """
    files = _weight_files_of(model, checkpoint)
    if whisper_of(model) is model:
        names = fit_base(read_header(files), shapes_of(model), place=str(checkpoint))
    else:
        names = fit_to_adapter(model, checkpoint)
    # The Trainer loads tensors by their names, so it would pass over a renamed one without a word.
    if any(name != new_name for name, new_name in names.items()):
        raise UserError(f"{checkpoint}: the names of its tensors were changed; go on from an earlier checkpoint.")
    refuse_not_finite(tensors_of(files), place=str(checkpoint), remedy="go on from an earlier checkpoint")


def _weight_files_of(model, checkpoint: Path) -> list[Path]:
    """Return the files with the weights of a checkpoint: of a whole model, or of an adapter."""
    return weight_files(checkpoint) if whisper_of(model) is model else [checkpoint / ADAPTER_WEIGHTS]


def replace_artefact(path: Path, model, located: Located, base: dict) -> None:
    """Write the artefact of a run whole. A resumed run with more steps replaces its old one.

    Args:
        path: The folder of the artefact in the run folder.
        model: Whisper, or an adapter on one.
        located: The base.
        base: What run.json says of the base.
    """
    old = path.with_name(f".{path.name}.old")
    if path.exists():
        path.rename(old)
    with runs.new_folder(path) as folder:
        save_artefact(folder, model, located, base)
    if old.exists():
        shutil.rmtree(old)
