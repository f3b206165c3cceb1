"""Where MODEL leads: a base, an adapter on one, a run; and which weights exactly a base is."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

from whisper_peft import runs
from whisper_peft.errors import UserError
from whisper_peft.recipe_files import expanded

HUB_PREFIX = "hf:"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
BASE_FACTS = "base.json"  # beside an adapter of ours: which weights it was trained on


@dataclass(frozen=True)
class Located:
    """What a MODEL argument leads to: a base, an adapter on one, or either one from a run."""

    name: str  # as the user wrote it
    base: str  # folder or Hub id of the full weights
    adapter: Path | None = None
    run: Path | None = None
    from_hub: bool = False
    commit: str | None = None  # of a Hub base that an adapter of ours was trained on

    @property
    def quantize(self) -> str | None:
        """How the base of an adapter of ours was quantised in training; None: not, or it is not known."""
        facts = self.adapter / BASE_FACTS if self.adapter else None
        return runs.read_json(facts).get("quantize") if facts and facts.is_file() else None


def locate(name: str | Path) -> Located:
    """Finds what MODEL means: a local model, a run, an adapter folder, or a Hub id; an existing path wins.

    Raises:
        UserError: a folder that holds none of these, or an adapter whose base has gone.
    """
    text = str(name)
    path = expanded(text)
    if text.startswith(HUB_PREFIX):
        name = text.removeprefix(HUB_PREFIX)
        if Path(name).exists():  # transformers would take the folder
            raise UserError(f"{text}: a local {name} is in the way of the Hub's; run this from another folder.")
        return Located(text, name, from_hub=True)
    if path.is_dir():
        if runs.is_run(path):
            return _locate_run(text, path.resolve())
        if (path / "adapter_config.json").is_file():
            return _locate_adapter(text, path.resolve(), run=None)
        if (path / "config.json").is_file():
            return Located(text, str(path.resolve()))
        raise UserError(f"{path}: holds no model (config.json), adapter (adapter_config.json) or run (run.json).")
    if path.exists():
        raise UserError(f"{path}: a file; MODEL is a folder with a model, an adapter or a run, or a Hub id.")
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise UserError(f"{text}: no such folder, and not a Hub id (owner/name) either.")
    if path.parent.is_dir():  # "runs/mine" with a runs/ here is a folder that is missing, not somebody's model
        near = sorted(folder.name for folder in path.parent.iterdir() if folder.is_dir() and folder.name[0] != ".")
        raise UserError(
            f"{text}: no such folder; {path.parent} holds {', '.join(near[:8]) or 'none'}. For a model on the Hub "
            f"write {HUB_PREFIX}{text}."
        )
    return Located(text, text, from_hub=True)


def _locate_run(name: str, run: Path) -> Located:
    if (run / runs.ADAPTER).is_dir():
        return _locate_adapter(name, run / runs.ADAPTER, run)
    if (run / runs.MODEL).is_dir():
        return Located(name, str(run / runs.MODEL), run=run)
    raise UserError(f"{run}: not finished yet, no model in it; whisper-peft train --resume {run} goes on.")


def _locate_adapter(name: str, adapter: Path, run: Path | None) -> Located:
    base = runs.read_json(adapter / "adapter_config.json").get("base_model_name_or_path")
    if not base:
        raise UserError(f"{adapter}/adapter_config.json: names no base model (base_model_name_or_path).")
    return Located(name, base, adapter, run, from_hub=not Path(base).is_dir(), commit=known_commit(adapter, base))


@contextlib.contextmanager
def without_bars():
    """No bar for what takes a second: stderr is for what the user should read."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_or_explain(load, source: str, what: str, **options: object):
    """Calls a from_pretrained, and turns what a user can cause into one clear line."""
    from safetensors import SafetensorError

    try:
        with without_bars():
            return load(source, **options)
    except (OSError, ValueError, SafetensorError) as error:
        first = " ".join(str(error).split())
        if Path(source).is_dir():
            raise UserError(f"{source}: {what} cannot be loaded ({first[:300]}).") from None
        raise UserError(
            f"{source}: {what} is neither a local folder nor reachable on the Hub ({first[:200]}). Check the name, "
            "the network and, for a gated model, 'hf auth login'."
        ) from None


def with_base(located: Located, base: str | Path | None = None) -> Located:
    """An adapter with the base it was trained on, which is looked for at `base` if it has moved.

    Raises:
        UserError: no such base, an adapter instead of one, or other weights.
    """
    if base is not None:
        other = locate(base)
        if other.adapter:
            raise UserError(f"--base {base}: an adapter; the base is a stand-alone model.")
        commit = known_commit(located.adapter, other.base)
        located = dataclasses.replace(located, base=other.base, from_hub=other.from_hub, commit=commit)
    elif not Path(located.base).is_dir() and Path(located.base).is_absolute():
        raise UserError(
            f"{located.base}: the adapter's base has moved; evaluate, transcribe and merge find it with --base MODEL."
        )
    facts = located.adapter / BASE_FACTS
    if not facts.is_file():
        return located  # an adapter of somebody else's: nothing is known about its base
    known, found = runs.read_json(facts), base_identity(located.base, revision=located.commit)
    word = "sha256" if "sha256" in known else "hub_id"
    if word in known and known[word] != found.get(word):
        raise UserError(
            f"{located.base}: not the weights this adapter was trained on (another "
            f"{'SHA-256' if word == 'sha256' else 'Hub id'}); name the right base with --base MODEL."
        )
    return located


def base_identity(source: str, *, revision: str | None = None) -> dict:
    """Which weights these are: a path, or a Hub id and commit, and the SHA-256 of the safetensors.

    A Hub base is downloaded for it, if it has not been yet.
    """
    folder = Path(source)
    if folder.is_dir():
        return {"path": str(folder.resolve()), "sha256": weights_sha256(folder)}
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def download(name: str) -> Path:
        return Path(load_or_explain(hf_hub_download, source, "the model", filename=name, revision=revision))

    folder = download("config.json").parent
    commit = folder.name  # the Hub's cache has a folder for each commit
    try:
        folder = Path(hf_hub_download(source, WEIGHTS, revision=revision)).parent
    except (EntryNotFoundError, OSError):
        index = download(WEIGHTS_INDEX)
        for shard in _shards(index):
            download(shard)
        folder = index.parent
    return {"hub_id": source, "commit": commit, "sha256": weights_sha256(folder)}


def weights_sha256(folder: Path) -> str:
    """SHA-256 over the safetensors that transformers loads from a folder, in the order of their names."""
    index = folder / WEIGHTS_INDEX
    names = [WEIGHTS] if (folder / WEIGHTS).is_file() else _shards(index) if index.is_file() else []
    digest = hashlib.sha256()
    for name in names or sorted(file.name for file in folder.glob("*.safetensors")):
        with (folder / name).open("rb") as handle:
            while chunk := handle.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def _shards(index: Path) -> list[str]:
    return sorted(set(runs.read_json(index)["weight_map"].values()))


def known_commit(adapter: Path, source: str) -> str | None:
    """The commit of a Hub base that an adapter of ours was trained on."""
    facts = adapter / BASE_FACTS
    known = runs.read_json(facts) if facts.is_file() else {}
    return known.get("commit") if known.get("hub_id") == source else None
