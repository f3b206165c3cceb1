"""Recognise models of other programs and other kinds by their content, and say what to do with them."""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from pathlib import Path

from whisper_peft.errors import UserError
from whisper_peft.files import foreign_content, open_file, read_json_file, short_repr

HEAD_BYTES = 4096  # of a file: enough to tell what it is
FULL_WEIGHTS = "take the full weights that it was made from (model.safetensors, transformers layout)"
CONVERT = (
    "convert it on a machine where you trust the file: load it with transformers and save it with save_pretrained(OUT)"
)
PICKLED = f"pickled weights, which can run code when they are loaded; {CONVERT}"
OPENAI = f"a checkpoint of openai-whisper; {FULL_WEIGHTS}, or convert it with convert_openai_to_hf.py of transformers"

# First bytes of a file -> what it is and what to do. Sources: ggml.h (0x67676d6c, little endian), the GGUF
# specification, the HDF5 specification, the schema of TensorFlow Lite, and Python's pickle protocol 2 and later.
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
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
# What `bitsandbytes`, GPTQ, AWQ and the like call the tensors they add to a quantised layer.
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
        UnusableFileError: It cannot be opened.
    """
    with open_file(path) as file:
        head = file.read(HEAD_BYTES)
    found = foreign_content(head)
    if found:
        return found
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
    """Say what a zip archive holds. NumPy and PyTorch save theirs as zip; no pickle in it is loaded."""
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
    mlx = {"n_mels", "n_audio_state", "n_audio_layer"} <= set(config)
    if mlx:
        return f"a model of MLX (its config.json has n_audio_state); {FULL_WEIGHTS}"
    # CTranslate2's converter writes these, and no model_type.
    if "model_type" not in config and {"alignment_heads", "suppress_ids", "lang_ids"} & set(config):
        return f"a CTranslate2 model, as faster-whisper uses it; {FULL_WEIGHTS}"
    if config.get("quantization_config") is not None:
        return quantization(config["quantization_config"])
    return None


def quantization(setting: object) -> str:
    """Say what a `quantization_config` means for us.

    Args:
        setting: The value in config.json.
    """
    kind = setting.get("quant_method") if isinstance(setting, dict) else None
    remedy = "take the full weights instead; --quantize 8bit or 4bit makes them small again"
    if kind == "bitsandbytes" or (kind is None and isinstance(setting, dict) and _bitsandbytes_bits(setting)):
        bits = _bitsandbytes_bits(setting)
        if bits:
            return (
                f"these are {bits}-bit weights of bitsandbytes; train on the full ones with --quantize {bits}bit, and "
                f"evaluate and transcribe with the full ones, too (--quantize {bits}bit holds them in {bits} bits)"
            )
    known = ("gptq", "awq", "aqlm", "hqq", "quanto", "eetq", "fp8", "fbgemm_fp8", "compressed-tensors", "torchao")
    if isinstance(kind, str) and kind in known:
        return f"these weights are quantised by {kind}; {remedy}"
    return f"quantization_config in config.json is {short_repr(setting)}, which no quantised Whisper has; {remedy}"


def _bitsandbytes_bits(setting: dict) -> int | None:
    for bits in (8, 4):
        if setting.get(f"load_in_{bits}bit") is True:
            return bits
    return None


def foreign_tensors(names: Collection[str]) -> str | None:
    """Say what tensors belong to by their names, if it is not a Whisper of transformers.

    Args:
        names: Names of tensors in a safetensors file.
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
    if (folder / "config.json").is_file():
        found = foreign_config(read_json_file(folder / "config.json"))
    else:
        found = _without_config(folder)
    if found:
        raise UserError(f"{folder}: {found}.")


def _without_config(folder: Path) -> str:
    names = names_in(folder)
    for name in names:
        if Path(name).suffix in (*_PICKLE_SUFFIXES, ".onnx", ".npz", ".gguf", ".tflite"):
            found = foreign_file(folder / name)
            if found:
                return f"{name} is {found}"
    if any(name.endswith(".safetensors") for name in names):
        return "weights without config.json; copy config.json from the model they belong to"
    if {"tokenizer.json", "vocab.json", "preprocessor_config.json"} & set(names):
        return "only a tokenizer or a feature extractor, no model (config.json, model.safetensors)"
    return "holds no model (config.json), adapter (adapter_config.json) or run (run.json)"


def without_weights(folder: Path) -> str:
    """Say what a model folder holds in place of model.safetensors.

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
        if Path(name).suffix in (*_PICKLE_SUFFIXES, ".npz", ".gguf", ".tflite"):
            found = foreign_file(folder / name) or PICKLED
            return f"only {name} in place of model.safetensors: {found}"
    others = [name for name in names if name.endswith(".safetensors")]
    if any("-of-" in name for name in others):
        return f"parts of the weights ({others[0]}) without model.safetensors.index.json; copy that file, too"
    if others:
        return f"only {others[0]} in place of model.safetensors; rename it, if that is the whole model"
    return "no weights; needs model.safetensors"


def names_in(folder: Path) -> list[str]:
    """Name the files of a folder, sorted.

    Raises:
        UserError: The folder may not be read.
    """
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}).") from None
