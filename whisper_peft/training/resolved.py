"""The recipe of a run that can begin: every number that the user left open has a value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from whisper_peft.recipe import Evaluate, Lora, Recipe, Train

# A field without a default must be written as `field()`: a bare annotation would inherit the default of the base class.


@dataclass(frozen=True, kw_only=True)
class ResolvedLora(Lora):
    """Settings of the adapter, with its alpha."""

    alpha: int = field()


@dataclass(frozen=True, kw_only=True)
class ResolvedTrain(Train):
    """Settings of the optimisation, with all that follows from mode, model size and hardware."""

    steps: int = field()
    learning_rate: float = field()
    warmup_steps: int = field()
    workers: int = field()


@dataclass(frozen=True, kw_only=True)
class ResolvedEvaluate(Evaluate):
    """Settings of the scoring during training, with its interval and its metric."""

    every_steps: int = field()
    best_metric: str = field()


@dataclass(frozen=True, kw_only=True)
class ResolvedRecipe(Recipe):
    """All settings of a run that can begin.

    It has the same keys in the same order as a `Recipe`, so both are saved as the same page.
    """

    lora: ResolvedLora = field()
    train: ResolvedTrain = field()
    evaluate: ResolvedEvaluate = field()


Settings = TypeVar("Settings")


def with_values(kind: type[Settings], settings: Any, values: Mapping[str, object]) -> Settings:
    """Make settings of another kind from given ones.

    Args:
        kind: The dataclass to make.
        settings: A dataclass that has all its fields.
        values: Fields with another value than in `settings`.

    Example:
        >>> with_values(ResolvedLora, Lora(rank=8), {"alpha": 16}).alpha
        16
    """
    kept = {setting.name: getattr(settings, setting.name) for setting in dataclasses.fields(settings)}
    return kind(**{**kept, **values})
