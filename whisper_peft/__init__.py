"""whisper-peft: parameter-efficient fine-tuning of Whisper.

The public names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_ROOMS = {
    "errors": ("Notice", "UserError"),
    "recipe": ("Recipe",),
    "recipe_dicts": ("override",),
    "recipe_files": ("load_recipe", "save_recipe"),
    "data.audio": ("load_audio",),
    "data.rows": ("Row", "Segment"),
    "data.sources": ("load_source",),
    "data.features": ("Preparation",),
    "data.augmentation": ("Augmentation",),
    "data.dataset": ("SpeechDataset", "Pick", "Example", "LeftOut"),
    "data.batching": ("steps", "cut"),
    "data.collator": ("SpeechCollator",),
    "model.configs": ("load_preparation",),
    "model.loading": ("load_base",),
    "model.build": ("add_adapter", "build_model", "condense_silence", "load_model"),
    "model.locating": ("locate",),
    "evaluation.normalizers": ("normalize",),
    "evaluation.metrics": (
        "score",
        "bootstrap_interval",
        "paired_interval",
        "paired_loss_interval",
        "speech_error_rate",
    ),
    "evaluation.clip_transcripts": ("transcribe_rows",),
    "evaluation.transcribing": ("transcribe", "transcribe_each"),
    "evaluation.evaluation_result": ("EvaluationResult",),
    "evaluation.scoring": ("evaluate",),
    "checking.report": ("CheckReport",),
    "checking.check": ("check",),
    "training.loss": ("token_loss_sum",),
    "training.planning": ("MemoryPlan", "plan", "plan_matrix"),
    "training.prepare": ("Prepared", "prepare"),
    "training.train": ("train", "TrainResult"),
    "delivery.merging": ("merge", "MergeReport"),
    "delivery.exporting.export": ("export",),
    "delivery.exporting.report": ("ExportReport",),
    "delivery.publishing": ("publish", "PublishReport"),
    "delivery.pushing": ("Push",),
    "delivery.demo": ("demo",),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = sorted(_ROOM_OF)


def __getattr__(name: str) -> object:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'whisper_peft' has no attribute '{name}'")
    return getattr(importlib.import_module(f"whisper_peft.{_ROOM_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
