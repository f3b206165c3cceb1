"""What a run leaves: an adapter or a model that loads alone, and the weights of its checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

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
from whisper_peft.training.splits import Speech


def set_generation_language(model, speech: Speech) -> None:
    """Tells generation which language and task the model was trained for, where it is one."""
    dataset = speech.train
    if not dataset.preparation.multilingual:
        return
    languages = {dataset.language_of(number) for number in range(len(dataset))}
    config = whisper_of(model).generation_config
    config.language = languages.pop() if len(languages) == 1 else None
    config.task = dataset.task


def save_artefact(folder: Path, model, located: Located, base: dict) -> None:
    """Writes an adapter or a model that loads alone: weights, processor, generation config, and which base."""
    whisper = whisper_of(model)
    whisper.config.use_cache = True  # the Trainer switches it off
    with without_bars():
        model.save_pretrained(str(folder))
    save_processor(load_processor(located.base, revision=located.commit), folder)
    whisper.generation_config.save_pretrained(str(folder))
    if model is not whisper:
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty card
        runs.write_json(folder / BASE_FACTS, base)


def save_processor(processor, folder: Path) -> None:
    """Writes the processor in the layouts of transformers 4 and 5, so that either loads it."""
    processor.save_pretrained(str(folder))
    processor.feature_extractor.save_pretrained(str(folder))  # preprocessor_config.json
    processor.tokenizer.save_pretrained(str(folder))
    path = folder / "tokenizer_config.json"
    settings = runs.read_json(path)
    if isinstance(settings.get("extra_special_tokens"), list):  # transformers 5's word; 4 takes it for a mapping
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
        runs.write_json(path, settings)


def load_weights(model, checkpoint: Path) -> None:
    """Put a checkpoint's weights into the model they came from.

    Raises:
        UserError: See `count_weights`.
    """
    count_weights(model, checkpoint)
    state = dict(tensors_of(_weights_of(model, checkpoint)))
    if whisper_of(model) is model:
        model.load_state_dict(state, strict=False)  # proj_out is tied to the token embedding, and not stored
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
    files = _weights_of(model, checkpoint)
    if whisper_of(model) is model:
        names = fit_base(read_header(files), shapes_of(model), place=str(checkpoint))
    else:
        names = fit_to_adapter(model, checkpoint)
    if any(name != new_name for name, new_name in names.items()):  # the Trainer would load none of these
        raise UserError(f"{checkpoint}: the names of its tensors were changed; go on from an earlier checkpoint.")
    refuse_not_finite(tensors_of(files), place=str(checkpoint), remedy="go on from an earlier checkpoint")


def _weights_of(model, checkpoint: Path) -> list[Path]:
    return weight_files(checkpoint) if whisper_of(model) is model else [checkpoint / ADAPTER_WEIGHTS]


def replace_artefact(path: Path, model, located: Located, base: dict) -> None:
    """Writes the artefact whole; a resumed run with more steps puts its new one in the old one's place."""
    old = path.with_name(f".{path.name}.old")
    if path.exists():
        path.rename(old)
    with runs.new_folder(path) as folder:
        save_artefact(folder, model, located, base)
    if old.exists():
        shutil.rmtree(old)
