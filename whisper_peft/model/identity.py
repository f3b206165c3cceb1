"""Which weights exactly a base is, and where its files are: in a folder, or in the cache of what came from the Hub."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from whisper_peft import runs
from whisper_peft.errors import UserError
from whisper_peft.files import UnusableFileError, is_folder, open_file, short_repr
from whisper_peft.model.foreign import without_weights
from whisper_peft.model.from_pretrained import load_or_explain, without_bars

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE_FACTS = "base.json"  # beside an adapter of ours: which weights it was trained on
# What may stand in base.json, and how it must look.
FACT_FORMS = {
    "path": r"(?s).+",
    "hub_id": r"[\w.-]+(/[\w.-]+)?",
    "commit": r"[0-9a-f]{7,64}",
    "sha256": r"[0-9a-f]{64}",
    "quantize": r"8bit|4bit",
}


def base_facts(adapter: Path) -> dict:
    """Read what an adapter of ours knows of its base.

    Args:
        adapter: The adapter's folder.

    Returns:
        The content of base.json; empty for an adapter of somebody else's.

    Raises:
        UserError: The file holds something that we never write.
    """
    path = adapter / BASE_FACTS
    if not path.exists():
        return {}
    facts = runs.read_json(path)
    for key, form in FACT_FORMS.items():
        value = facts.get(key)
        if value is not None and not (isinstance(value, str) and re.fullmatch(form, value)):
            raise UserError(
                f"{path}: {key} is {short_repr(value)}, which cannot be; copy the adapter again, or delete the file if "
                "you know the adapter's base."
            )
    return facts


def base_identity(source: str, *, revision: str | None = None) -> dict:
    """Which weights these are: a path, or a Hub id and commit, and the SHA-256 of the safetensors.

    A Hub base is downloaded for it, if it has not been yet.
    """
    files = weight_files(source, revision=revision)
    if is_folder(source):
        return {"path": str(Path(source).resolve()), "sha256": _sha256_of(files)}
    # The Hub's cache has a folder for each commit.
    return {"hub_id": source, "commit": files[0].parent.name, "sha256": _sha256_of(files)}


def weight_files(source: str | Path, *, revision: str | None = None) -> list[Path]:
    """Find the safetensors files that transformers loads: one file, or the shards that an index names.

    Args:
        source: A model folder or a Hub id. What is on the Hub is downloaded, if it has not been yet.
        revision: A commit on the Hub; None is the newest.

    Raises:
        UserError: There are none, a shard is missing, or the index is damaged.
    """
    if is_folder(str(source)):
        folder = Path(source)
        if (folder / WEIGHTS).exists():
            return [folder / WEIGHTS]
        if not (folder / WEIGHTS_INDEX).exists():
            raise UserError(f"{folder}: {without_weights(folder)}.")
        return [folder / shard for shard in _shards(folder / WEIGHTS_INDEX)]
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    source = str(source)
    download(source, "config.json", revision)
    try:
        with without_bars():
            return [Path(hf_hub_download(source, WEIGHTS, revision=revision))]
    except (EntryNotFoundError, OSError):
        index = download(source, WEIGHTS_INDEX, revision)
        return [download(source, shard, revision) for shard in _shards(index)]


def download(source: str, name: str, revision: str | None) -> Path:
    """Fetch one file of a model on the Hub, if the cache does not have it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def fetch(source: str, **options: object) -> str:
        try:
            return hf_hub_download(source, **options)
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            if name in (WEIGHTS, WEIGHTS_INDEX):
                raise UserError(
                    f"{source}: no {WEIGHTS} on the Hub; weights are read from safetensors only. Take a model that "
                    "has them, or convert it on a machine where you trust it."
                ) from None
            raise

    return Path(load_or_explain(fetch, source, "the model", filename=name, revision=revision))


def weights_sha256(folder: Path) -> str:
    """SHA-256 over the safetensors that transformers loads from a folder, in the order of their names."""
    return _sha256_of(weight_files(folder))


def adapter_sha256(adapter: Path) -> str:
    """Compute the SHA-256 of an adapter's weights."""
    return _sha256_of([adapter / ADAPTER_WEIGHTS])


def _sha256_of(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with open_file(path) as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def _shards(index: Path) -> list[str]:
    """Name the shards of an index, sorted.

    Raises:
        UserError: The index names none, or something that is no file beside it.
    """
    names = runs.read_json(index).get("weight_map")
    values = list(names.values()) if isinstance(names, dict) else []
    proper = [value for value in values if isinstance(value, str) and re.fullmatch(r"[\w.-]+\.safetensors", value)]
    if not values or len(proper) < len(values):
        raise UnusableFileError(index, "weight_map must name a safetensors file beside it for each tensor")
    return sorted(set(proper))


def known_commit(adapter: Path, source: str) -> str | None:
    """The commit of a Hub base that an adapter of ours was trained on."""
    known = base_facts(adapter)
    return known.get("commit") if known.get("hub_id") == source else None
