"""The identity of a base by the SHA-256 of its weights, and the place of its files: a folder, or the Hub's cache."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from whisper_peft import runs
from whisper_peft.errors import UserError
from whisper_peft.files import UnusableFileError, is_folder, open_file, short_repr
from whisper_peft.model.adapter_configs import ADAPTER_WEIGHTS
from whisper_peft.model.foreign import describe_missing_weights
from whisper_peft.model.from_pretrained import load_or_explain, without_bars

# The weights of a model in one file.
WEIGHTS = "model.safetensors"
# The file that names the shards of a model whose weights are in several files.
WEIGHTS_INDEX = "model.safetensors.index.json"
# The file beside an adapter of ours that says which weights it was trained on.
BASE_FACTS = "base.json"
# The fields of that file, each with a regular expression for its value.
FACT_FORMS = {
    "path": r"(?s).+",
    "hub_id": r"[\w.-]+(/[\w.-]+)?",
    "commit": r"[0-9a-f]{7,64}",
    "sha256": r"[0-9a-f]{64}",
    "quantize": r"8bit|4bit",
}
# The name of a shard: a file beside the index, in no other folder.
_SHARD = re.compile(r"[\w.-]+\.safetensors")


def base_facts(adapter: Path) -> dict:
    """Read what an adapter of ours knows about its base.

    Args:
        adapter: The adapter's folder.

    Returns:
        The content of base.json; empty for an adapter that another program made.

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
                f"{path}: {key} is {short_repr(value)}, which whisper-peft never writes; copy the adapter again, or "
                "delete the file if you know the adapter's base."
            )
    return facts


def base_identity(source: str, *, revision: str | None = None) -> dict:
    """Identify the weights of a base: by its path, or its Hub id and commit, and by the SHA-256 of the safetensors.

    Args:
        source: A model folder or a Hub id. A base on the Hub is downloaded, if it has not been yet.
        revision: A commit on the Hub; None is the newest.

    Returns:
        The fields of base.json, without `quantize`.
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
        UserError: There are no safetensors, a shard is missing, or the index is damaged.
    """
    if is_folder(str(source)):
        folder = Path(source)
        if (folder / WEIGHTS).exists():
            return [folder / WEIGHTS]
        if not (folder / WEIGHTS_INDEX).exists():
            raise UserError(f"{folder}: {describe_missing_weights(folder)}.")
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
    """Fetch one file of a model on the Hub, if the cache does not have it.

    Args:
        source: A Hub id.
        name: The name of the file.
        revision: A commit on the Hub; None is the newest.

    Returns:
        The path in the cache.

    Raises:
        UserError: The Hub does not have the file, or is not reachable.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def fetch(source: str, *, filename: str, revision: str | None) -> str:
        try:
            return hf_hub_download(source, filename, revision=revision)
        except LocalEntryNotFoundError:
            # A subclass of the next one, which says that the Hub was not reached.
            raise
        except EntryNotFoundError:
            if filename in (WEIGHTS, WEIGHTS_INDEX):
                raise UserError(
                    f"{source}: no {WEIGHTS} on the Hub; weights are read from safetensors only. Take a model that "
                    "has them, or convert it on a machine where you trust it."
                ) from None
            raise

    return Path(load_or_explain(fetch, source, "the model", filename=name, revision=revision))


def weights_sha256(folder: Path) -> str:
    """Compute the SHA-256 over the safetensors that transformers loads from a folder, in the order of their names."""
    return _sha256_of(weight_files(folder))


def adapter_sha256(adapter: Path) -> str:
    """Compute the SHA-256 of an adapter's weights."""
    return _sha256_of([adapter / ADAPTER_WEIGHTS])


def _sha256_of(files: list[Path]) -> str:
    """Compute one SHA-256 over the content of some files."""
    digest = hashlib.sha256()
    for path in files:
        with open_file(path) as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def _shards(index: Path) -> list[str]:
    """Return the names of the shards in an index, sorted.

    Raises:
        UserError: The index names no shard, or something that is not a file beside it.
    """
    shard_of_tensor = runs.read_json(index).get("weight_map")
    shards = list(shard_of_tensor.values()) if isinstance(shard_of_tensor, dict) else []
    proper = [shard for shard in shards if isinstance(shard, str) and _SHARD.fullmatch(shard)]
    if not shards or len(proper) < len(shards):
        raise UnusableFileError(index, "weight_map must name a safetensors file beside it for each tensor")
    return sorted(set(proper))


def known_commit(adapter: Path, source: str) -> str | None:
    """Return the commit of a base on the Hub, if an adapter of ours was trained on that base.

    Args:
        adapter: The adapter's folder.
        source: The base's Hub id, or another place, for which there is no commit.
    """
    facts = base_facts(adapter)
    return facts.get("commit") if facts.get("hub_id") == source else None
