"""An exported model on the disk: its folder, and export.json in it, by which we know it again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whisper_peft import runs
from whisper_peft.data.features import Preparation
from whisper_peft.data.languages import LANGUAGES
from whisper_peft.errors import UserError
from whisper_peft.model.configs import load_preparation
from whisper_peft.recipe_files import expand_home
from whisper_peft.runtimes.formats import EXPORT_FORMATS, Format

# In the folder of an exported model: what it is. `whisper-peft export` writes it.
EXPORT = "export.json"
# In the folder of an exported model: the proof that its runtime says what transformers says.
EXPORT_REPORT = "export_report.json"
# In the folder of an exported model: tokenizer, feature extractor and configs in the layout of transformers. A format
# that keeps them beside its weights has no such folder.
PROCESSOR_FOLDER = "processor"


@dataclass(frozen=True)
class Export:
    """An exported model.

    Attributes:
        folder: Its folder.
        format: Its format.
        quantization: The type of its weights, for example "float16" or "int8".
        weights: Name of the file that a runtime is given, or "." if it is given the folder.
        language: Whisper's code of the language that the model was trained for; None if it has several, or is
            English-only.
        task: "transcribe" or "translate".
        multilingual: Whether it has tokens for languages.
        alignment_heads: The (layer, head) pairs that show when a word is spoken; None if the model names none.
    """

    folder: Path
    format: Format
    quantization: str
    weights: str
    language: str | None
    task: str
    multilingual: bool
    alignment_heads: list[list[int]] | None

    @property
    def path(self) -> Path:
        """The file or the folder that the runtime is given."""
        return self.folder / self.weights

    @property
    def is_quantized(self) -> bool:
        """Tell whether its weights are quantised."""
        return self.quantization in self.format.quantizations

    def preparation(self) -> Preparation:
        """Load its tokenizer and feature extractor."""
        folder = self.folder / PROCESSOR_FOLDER
        return load_preparation(str(folder if folder.is_dir() else self.folder))

    def as_dict(self) -> dict[str, Any]:
        """Return the content of export.json."""
        return {
            "format": self.format.name,
            "runtime": self.format.runtime,
            "quantization": self.quantization,
            "weights": self.weights,
            "language": self.language,
            "task": self.task,
            "multilingual": self.multilingual,
            "alignment_heads": self.alignment_heads,
        }


def find_export(model: str | Path) -> Export | None:
    """Find the exported model that a MODEL argument leads to; None if it leads to anything else.

    Raises:
        UserError: Its export.json is damaged, or a file that it names is gone.
    """
    folder = expand_home(str(model))
    if not (folder / EXPORT).is_file():
        return None
    page = runs.read_json(folder / EXPORT)
    try:
        export = Export(
            folder=folder.resolve(),
            format=EXPORT_FORMATS[page["format"]],
            quantization=EXPORT_FORMATS[page["format"]].check_quantization(page["quantization"]),
            weights=str(page["weights"]),
            language=_known_value(page["language"], (None, *LANGUAGES)),
            task=_known_value(page["task"], ("transcribe", "translate")),
            multilingual=bool(page["multilingual"]),
            alignment_heads=_heads_of(page["alignment_heads"]),
        )
        is_inside = export.path.resolve().is_relative_to(export.folder) and export.path.exists()
    except (KeyError, TypeError, ValueError, UserError):
        raise UserError(f"{folder / EXPORT}: damaged; export the model again.") from None
    if not is_inside:
        raise UserError(f"{export.path}: gone; export the model again.")
    return export


def _known_value(value: Any, known: Collection[Any]) -> Any:
    """Return a value that is one of the known ones.

    Raises:
        ValueError: It is another one.
    """
    if value not in known:
        raise ValueError(value)
    return value


def _heads_of(value: Any) -> list[list[int]] | None:
    """Return (layer, head) pairs, or None.

    Raises:
        TypeError: The value is something else.
        ValueError: A pair has not two numbers.
    """
    if value is None:
        return None
    return [[int(layer), int(head)] for layer, head in value]
