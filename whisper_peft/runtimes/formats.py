"""The formats that a model can be exported to, and the runtime of each."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass

from whisper_peft.errors import UserError


@dataclass(frozen=True)
class Format:
    """A format of exported models.

    Attributes:
        name: Its name on the command line, for example "ctranslate2".
        runtime: Name of the program that runs it, for example "faster-whisper".
        distribution: The Python package in which the runtime is installed.
        module: The module that this package is imported as.
        extra: The extra of whisper-peft that installs everything that the format needs.
        writer: Modules that write the format, beside those that whisper-peft always needs.
        precisions: Types of weights that are not quantised. The first one is the default.
        quantizations: Types of weights that are quantised.
        holds: The package that the extra holds at an old version, in words; such an extra wants an environment of its
            own. None if it holds none.
    """

    name: str
    runtime: str
    distribution: str
    module: str
    extra: str
    writer: tuple[str, ...]
    precisions: tuple[str, ...]
    quantizations: tuple[str, ...]
    holds: str | None = None

    @property
    def remedy(self) -> str:
        """The end of a sentence about something that is missing: how to install everything that the format needs."""
        package = f'"whisper-peft[{self.extra}]"'
        if self.holds is None:
            return f"pip install {package} installs it"
        folder = f"{self.extra}-env"
        return (
            f"it wants an environment of its own, because it holds {self.holds}: python -m venv {folder}; "
            f"{folder}/bin/pip install {package}"
        )

    def runtime_version(self) -> str | None:
        """Return the version of the installed runtime; None if it is not installed.

        Where a package of another name brings the runtime, its name stands before the version, which is its own.
        """
        if not _is_installed(self.module):
            return None
        try:
            version = importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            # Another package has a module of the same name.
            return None
        if self.distribution == self.runtime:
            return version
        return f"{self.distribution} {version}"

    def check_quantization(self, quantization: str | None) -> str:
        """Return the type of weights: the one that is named, or else the default.

        Raises:
            UserError: The format has no such type.
        """
        if quantization is None:
            return self.precisions[0]
        known = (*self.precisions, *self.quantizations)
        if quantization not in known:
            raise UserError(f"--quantization {quantization}: {self.name} has {', '.join(known)}.")
        return quantization

    def check_writer(self) -> None:
        """Refuse to export where a package that writes the format is missing.

        Raises:
            UserError: It is not installed.
        """
        missing = [module for module in self.writer if not _is_installed(module)]
        if missing:
            raise UserError(f"--format {self.name}: {missing[0]} is not installed; {self.remedy}.")


def _is_installed(module: str) -> bool:
    """Tell whether a module can be imported, or at least whether it is there."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        # The package that the module would be in is missing.
        return False


EXPORT_FORMATS = {
    format.name: format
    for format in (
        Format(
            name="ctranslate2",
            runtime="faster-whisper",
            distribution="faster-whisper",
            module="faster_whisper",
            extra="ctranslate2",
            writer=("ctranslate2",),
            precisions=("float16", "float32", "bfloat16"),
            quantizations=("int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16"),
        ),
        Format(
            name="ggml",
            runtime="whisper.cpp",
            distribution="pywhispercpp",
            module="pywhispercpp",
            extra="ggml",
            writer=("gguf",),
            precisions=("f16",),
            quantizations=("q8_0", "q5_1", "q5_0", "q4_1", "q4_0"),
        ),
        Format(
            name="openai",
            runtime="openai-whisper",
            distribution="openai-whisper",
            module="whisper",
            extra="openai",
            writer=(),
            precisions=("float16", "float32"),
            quantizations=(),
        ),
        Format(
            name="onnx",
            runtime="onnxruntime",
            distribution="onnxruntime",
            module="optimum.onnxruntime",
            extra="onnx",
            writer=("optimum.onnxruntime",),
            precisions=("float32",),
            quantizations=("int8",),
            holds="transformers below 4.58",
        ),
        Format(
            name="mlx",
            runtime="mlx-whisper",
            distribution="mlx-whisper",
            module="mlx_whisper",
            extra="mlx",
            writer=(),
            precisions=("float16", "float32", "bfloat16"),
            quantizations=("q8", "q4"),
        ),
    )
}


def format_named(name: str) -> Format:
    """Return a format by its name.

    Raises:
        UserError: There is no such format.
    """
    if name not in EXPORT_FORMATS:
        raise UserError(f"--format {name}: expected one of {', '.join(EXPORT_FORMATS)}.")
    return EXPORT_FORMATS[name]
