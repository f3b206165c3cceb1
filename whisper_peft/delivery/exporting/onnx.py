"""Write a model as ONNX with optimum's own exporter, in the layout that transformers.js and optimum load."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_peft import runs
from whisper_peft.delivery.exporting.source import ModelToExport
from whisper_peft.delivery.loaded_files import LOADED_FILES
from whisper_peft.errors import UserError
from whisper_peft.runtimes.onnx_runtime import (
    DECODER,
    ENCODER,
    ONNX_FOLDER,
    QUANTIZED_SUFFIX,
    cross_attention_name,
    quiet,
)

if TYPE_CHECKING:
    from transformers import WhisperConfig

# Operators whose weights become int8. Convolutions stay in float32: they hold little, and browsers run none in int8.
_QUANTIZED_OPERATORS = ["MatMul", "Gather"]


class OnnxWriter:
    """Writes ONNX; see `Writer`. Vocabulary and window lie beside the weights, so any will do."""

    def check(self, source: ModelToExport) -> None:
        """Refuse a model whose decoder has another number of attention heads than its encoder."""
        config = source.config
        if config.decoder_attention_heads != config.encoder_attention_heads:
            raise UserError(
                f"{source.name}: {config.encoder_attention_heads} attention heads in the encoder and "
                f"{config.decoder_attention_heads} in the decoder, and optimum takes them to be equally many; take "
                "--format ctranslate2."
            )

    def write(self, source: ModelToExport, folder: Path, quantization: str) -> str:
        """Write encoder and decoder to `onnx/`, and configs, tokenizer and feature extractor above; see `Writer.write`.

        The decoder has one file for the first step and for all others, as transformers.js loads it. It returns its
        cross-attentions, too, from which word times are found.
        """
        models = folder / ONNX_FOLDER
        models.mkdir()
        # On the same disk as the result, so that large files are moved and not copied.
        with tempfile.TemporaryDirectory(prefix=".onnx.", dir=folder.parent) as work:
            exported = Path(work)
            _export(source, exported)
            for name in (ENCODER, DECODER):
                if quantization == "int8":
                    _quantize_part(exported / f"{name}.onnx", models / f"{name}{QUANTIZED_SUFFIX}.onnx")
                else:
                    _move(exported, name, models)
        _copy_companions(source.folder, folder)
        _configure_transformers_js(folder, "q8" if quantization == "int8" else "fp32")
        return "."

    def notes(self, source: ModelToExport, quantization: str) -> list[str]:
        """Return nothing: optimum and transformers.js read all that they need from the folder."""
        return []


def _export(source: ModelToExport, folder: Path) -> None:
    """Write encoder, decoder and merged decoder in float32 with optimum."""
    from optimum.exporters.onnx import onnx_export_from_model

    model = source.load()
    # The other implementations of attention do not return the attention.
    model.set_attn_implementation("eager")
    try:
        with quiet():
            onnx_export_from_model(
                model,
                output=folder,
                task="automatic-speech-recognition-with-past",
                custom_onnx_configs=_onnx_configs(source.config),
                model_kwargs={"output_attentions": True},
                nb_max_frames=source.preparation.window_frames,
                # The proof compares the outputs, on speech.
                do_validation=False,
            )
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise UserError(f"{source.name}: optimum does not export it: {error}.") from None


def _onnx_configs(config: WhisperConfig) -> dict[str, Any]:
    """Return optimum's description of the three parts, with the cross-attentions of the decoder as outputs."""
    from optimum.exporters.onnx.model_configs import WhisperOnnxConfig

    class WithCrossAttentions(WhisperOnnxConfig):
        @property
        def outputs(self) -> dict[str, dict[int, str]]:
            outputs = super().outputs
            if self._behavior == "decoder":
                axes = {0: "batch_size", 2: "decoder_sequence_length", 3: "encoder_sequence_length"}
                outputs |= {cross_attention_name(layer): axes for layer in range(config.decoder_layers)}
            return outputs

    whole = WithCrossAttentions(config, task="automatic-speech-recognition")
    return {
        "encoder_model": whole.with_behavior("encoder"),
        "decoder_model": whole.with_behavior("decoder", use_past=True, use_past_in_inputs=False),
        "decoder_with_past_model": whole.with_behavior("decoder", use_past=True, use_past_in_inputs=True),
    }


def _move(exported: Path, name: str, models: Path) -> None:
    """Move a part, and its weights if they lie in a file beside it."""
    for file in exported.glob(f"{name}.onnx*"):
        shutil.move(file, models / file.name)


def _quantize_part(part: Path, target: Path) -> None:
    """Write a part again with int8 weights: 7 bits of each, with a scale for each column of a matrix.

    Products of 8 bits overflow on processors without instructions for them, so what the proof finds on one computer
    would not hold on another. With 7 bits nothing overflows.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantized = part.with_name("quantized.onnx")
    is_large = _data_of(part).is_file()
    _untie_output_layer(part)
    with quiet():
        quantize_dynamic(
            part,
            quantized,
            op_types_to_quantize=_QUANTIZED_OPERATORS,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            use_external_data_format=is_large,
            # The two ways through the merged decoder are subgraphs.
            extra_options={"EnableSubgraph": True},
        )
    _rewrite(quantized, target, is_large=is_large)


def _untie_output_layer(part: Path) -> None:
    """Give the output layer weights of its own, because onnxruntime quantises no product with a transposed weight."""
    import onnx

    model = onnx.load(str(part))
    weights = {weight.name: weight for weight in model.graph.initializer}
    ways = [attribute.g for node in model.graph.node for attribute in node.attribute if attribute.HasField("g")]
    transposed: dict[str, Any] = {}
    for way in ways:
        for node in list(way.node):
            if node.op_type == "Transpose" and node.input[0] in weights:
                array = onnx.numpy_helper.to_array(weights[node.input[0]]).T
                transposed[node.output[0]] = onnx.numpy_helper.from_array(array.copy(), node.output[0])
                way.node.remove(node)
    model.graph.initializer.extend(transposed.values())
    onnx.save(model, str(part), save_as_external_data=_data_of(part).is_file(), location="untied.data")


def _rewrite(part: Path, target: Path, *, is_large: bool) -> None:
    """Write a part in another place, with its weights in the file beside it that transformers.js expects."""
    import onnx

    onnx.save(onnx.load(str(part)), str(target), save_as_external_data=is_large, location=_data_of(target).name)


def _data_of(part: Path) -> Path:
    """Return the file for the weights of a part that is too large for one file (2 GB)."""
    return part.with_name(f"{part.name}_data")


def _copy_companions(source: Path, folder: Path) -> None:
    """Copy the configs, the tokenizer and the feature extractor."""
    for file in source.iterdir():
        if file.name in LOADED_FILES and ".safetensors" not in file.name:
            shutil.copyfile(file, folder / file.name)


def _configure_transformers_js(folder: Path, dtype: str) -> None:
    """Tell transformers.js in config.json which files there are.

    By itself it looks for int8 in a browser and for float32 in Node, and it expects no weights in files of their own.

    Args:
        folder: The export.
        dtype: The name that transformers.js has for the type of the weights.
    """
    settings: dict[str, Any] = {"dtype": dtype}
    apart = [part.name for part in (folder / ONNX_FOLDER).glob("*.onnx") if _data_of(part).is_file()]
    if apart:
        settings["use_external_data_format"] = dict.fromkeys(sorted(apart), 1)
    config = runs.read_json(folder / "config.json")
    runs.write_json(folder / "config.json", {**config, "transformers.js_config": settings})
