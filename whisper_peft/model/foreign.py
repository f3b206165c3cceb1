"""Recognition of models of other programs and other kinds by their content, each with what the user can do."""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from pathlib import Path

from whisper_peft.errors import UserError
from whisper_peft.files import foreign_content, open_file, read_json_file, short_repr

# Bytes at the start of a file that are read to tell what it is.
HEAD_BYTES = 4096
# Ends of a message: what to do.
FULL_WEIGHTS = "take the full weights that it was made from (model.safetensors, transformers layout)"
CONVERT = (
    "convert it on a machine where you trust the file: load it with transformers and save it with save_pretrained(OUT)"
)
# What a file is, and what to do.
PICKLED = f"pickled weights, which can run code when they are loaded; {CONVERT}"
OPENAI = f"a checkpoint of openai-whisper; {FULL_WEIGHTS}, or convert it with convert_openai_to_hf.py of transformers"

# An offset, the bytes that stand there in a file, what the file is and what to do. Sources: ggml.h (0x67676d6c, little
# endian), the GGUF specification, the HDF5 specification, the schema of TensorFlow Lite, and Python's pickle protocol 2
# and later.
_MAGIC = (
    (0, b"lmgg", f"a ggml model of whisper.cpp; {FULL_WEIGHTS}"),
    (0, b"GGUF", f"a GGUF model; {FULL_WEIGHTS}"),
    (0, b"\x89HDF\r\n\x1a\n", f"weights of TensorFlow; {CONVERT}"),
    (4, b"TFL3", f"a TensorFlow Lite model; {FULL_WEIGHTS}"),
    (0, b"\x80\x02", PICKLED),
    (0, b"\x80\x03", PICKLED),
    (0, b"\x80\x04", PICKLED),
    (0, b"\x80\x05", PICKLED),
)
# Endings of files that are most likely pickles or need a library to convert.
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
# Endings of weights of other programs.
_OTHER_SUFFIXES = (".npz", ".gguf", ".tflite")
# Values of `quant_method` in config.json, beside bitsandbytes.
_QUANTIZING_METHODS = (
    "gptq",
    "awq",
    "aqlm",
    "hqq",
    "quanto",
    "eetq",
    "fp8",
    "fbgemm_fp8",
    "compressed-tensors",
    "torchao",
)
# Names of the tensors that bitsandbytes, GPTQ, AWQ and the like add to a quantised layer, and what they are.
_QUANTIZED_NAMES = {
    "SCB": "8-bit weights of bitsandbytes",
    "weight_format": "8-bit weights of bitsandbytes",
    "absmax": "4-bit weights of bitsandbytes",
    "quant_map": "4-bit weights of bitsandbytes",
    "qweight": "GPTQ or AWQ weights",
    "qzeros": "GPTQ or AWQ weights",
    "weight_scale": "weights in scaled 8-bit numbers",
    "biases": "quantised weights of MLX",
}


def foreign_file(path: Path) -> str | None:
    """Say what a file is, if it is a model of another program or no model at all.

    Args:
        path: A regular file.

    Returns:
        What it is and what to do; None if it is not known.

    Raises:
        UnusableFileError: The file cannot be opened.
    """
    with open_file(path) as file:
        head = file.read(HEAD_BYTES)
    description = foreign_content(head)
    if description:
        return description
    for offset, magic, meaning in _MAGIC:
        if head[offset:].startswith(magic):
            return meaning
    if b"WhisperSpec\x00" in head[:64]:
        return f"a CTranslate2 model, as faster-whisper uses it; {FULL_WEIGHTS}"
    if head.startswith(b"PK\x03\x04"):
        return _zip_content(path)
    if path.suffix == ".onnx":
        return f"an ONNX model; {FULL_WEIGHTS}"
    return None


def _zip_content(path: Path) -> str:
    """Say what a zip archive holds: NumPy and PyTorch save their files as zip. No pickle in it is loaded."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickles = [name for name in names if name.endswith("data.pkl")]
            if not pickles:
                if any(name.endswith(".npy") for name in names):
                    return f"NumPy arrays, as MLX keeps its weights; {FULL_WEIGHTS}"
                return "a zip archive; unpack it"
            with archive.open(pickles[0]) as file:
                instructions = file.read(1024**2)
    except (OSError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile):
        return "a zip archive that is cut off or damaged"
    if b"model_state_dict" in instructions and b"n_audio_state" in instructions:
        return OPENAI
    return PICKLED


def foreign_config(config: dict) -> str | None:
    """Say what a config.json belongs to, if it is not a model that transformers can train.

    Args:
        config: The content of config.json.

    Returns:
        What it is and what to do; None for an ordinary config of transformers.
    """
    is_mlx = {"n_mels", "n_audio_state", "n_audio_layer"} <= set(config)
    if is_mlx:
        return f"a model of MLX (its config.json has n_audio_state); {FULL_WEIGHTS}"
    # CTranslate2's converter writes these, and no model_type.
    if "model_type" not in config and {"alignment_heads", "suppress_ids", "lang_ids"} & set(config):
        return f"a CTranslate2 model, as faster-whisper uses it; {FULL_WEIGHTS}"
    if config.get("quantization_config") is not None:
        return describe_quantization(config["quantization_config"])
    return None


def describe_quantization(setting: object) -> str:
    """Say how a model is quantised, and what to do.

    Args:
        setting: The value of `quantization_config` in config.json.
    """
    fields = setting if isinstance(setting, dict) else {}
    method = fields.get("quant_method")
    # Older files of bitsandbytes name no method..
    bits = _bitsandbytes_bits(fields) if method in (None, "bitsandbytes") else None
    if bits:
        return (
            f"these are {bits}-bit weights of bitsandbytes; train on the full ones with --quantize {bits}bit, and "
            f"evaluate and transcribe with the full ones, too (--quantize {bits}bit holds them in {bits} bits)"
        )
    remedy = "take the full weights instead; --quantize 8bit or 4bit makes them small again"
    if isinstance(method, str) and method in _QUANTIZING_METHODS:
        return f"these weights are quantised by {method}; {remedy}"
    return f"quantization_config in config.json is {short_repr(setting)}, which no quantised Whisper has; {remedy}"


def _bitsandbytes_bits(fields: dict) -> int | None:
    """Return 8 or 4 if the fields of a `quantization_config` say so, else None."""
    for bits in (8, 4):
        if fields.get(f"load_in_{bits}bit") is True:
            return bits
    return None


def foreign_tensors(names: Collection[str]) -> str | None:
    """Say by the names of tensors what they belong to, if it is not transformers' Whisper.

    Args:
        names: Names of tensors in a safetensors file.

    Returns:
        What they are and what to do; None if the names tell nothing.
    """
    last_words = {name.rpartition(".")[2] for name in names}
    for word, meaning in _QUANTIZED_NAMES.items():
        if word in last_words:
            return f"these are {meaning}; take the full weights"
    if any(".blocks." in name or name.startswith("blocks.") for name in names):
        return "these are the names of openai-whisper or MLX; convert it with convert_openai_to_hf.py of transformers"
    if any(".base_layer." in name for name in names):
        return (
            "this is a model that was saved with an adapter in it, not merged; save the adapter alone "
            "(PeftModel.save_pretrained), or merge it before saving (merge_and_unload)"
        )
    if any(".lora_" in name for name in names):
        return "these are the tensors of an adapter; name its folder, with adapter_config.json in it"
    if any("classifier." in name or "projector." in name for name in names):
        return "this is a model for another task than writing down speech"
    return None


def refuse_foreign_folder(folder: Path) -> None:
    """Refuse a folder whose config.json, or lack of one, shows that it is no Whisper that we can load.

    Args:
        folder: A folder without adapter_config.json and run.json.

    Raises:
        UserError: It is a model of another program, is quantised, or holds no model.
    """
    description: str | None
    if (folder / "config.json").is_file():
        description = foreign_config(read_json_file(folder / "config.json"))
    else:
        description = _describe_missing_config(folder)
    if description:
        raise UserError(f"{folder}: {description}.")


def _describe_missing_config(folder: Path) -> str:
    """Say what a folder without config.json holds, and what to do."""
    names = names_in(folder)
    for name in names:
        if Path(name).suffix in (*_PICKLE_SUFFIXES, *_OTHER_SUFFIXES, ".onnx"):
            description = foreign_file(folder / name)
            if description:
                return f"{name} is {description}"
    if any(name.endswith(".safetensors") for name in names):
        return "weights without config.json; copy config.json from the model they belong to"
    if {"tokenizer.json", "vocab.json", "preprocessor_config.json"} & set(names):
        return "only a tokenizer or a feature extractor, no model (config.json, model.safetensors)"
    return "holds no model (config.json), adapter (adapter_config.json) or run (run.json)"


def describe_missing_weights(folder: Path) -> str:
    """Say what a model folder holds in place of model.safetensors, and what to do.

    Args:
        folder: A folder with config.json.
    """
    names = names_in(folder)
    for name in names:
        if Path(name).suffix == ".onnx":
            return f"an ONNX export ({name}); {FULL_WEIGHTS}"
    if (folder / "onnx").is_dir():
        return f"an ONNX export (onnx/); {FULL_WEIGHTS}"
    if any(name.startswith("openvino_") for name in names):
        return f"an OpenVINO export; {FULL_WEIGHTS}"
    for name in names:
        if Path(name).suffix in (*_PICKLE_SUFFIXES, *_OTHER_SUFFIXES):
            description = foreign_file(folder / name) or PICKLED
            return f"only {name} in place of model.safetensors: {description}"
    others = [name for name in names if name.endswith(".safetensors")]
    if any("-of-" in name for name in others):
        return f"parts of the weights ({others[0]}) without model.safetensors.index.json; copy that file, too"
    if others:
        return f"only {others[0]} in place of model.safetensors; rename it, if that is the whole model"
    return "no weights in it; copy model.safetensors there"


def names_in(folder: Path) -> list[str]:
    """Return the names of the files in a folder, sorted.

    Raises:
        UserError: The folder may not be read.
    """
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}).") from None
