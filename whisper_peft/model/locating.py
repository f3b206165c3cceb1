"""Where MODEL leads: a base, an adapter on one, or a run."""

from __future__ import annotations

import dataclasses
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from whisper_peft import runs
from whisper_peft.errors import UserError
from whisper_peft.files import UnusableFileError, is_folder, printable, reason_of
from whisper_peft.model.adapter_configs import read_adapter_config
from whisper_peft.model.foreign import foreign_file, refuse_foreign_folder
from whisper_peft.model.identity import ADAPTER_CONFIG, base_facts, base_identity, download, known_commit
from whisper_peft.recipe_files import HUB_PREFIX, expanded


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
        return base_facts(self.adapter).get("quantize") if self.adapter else None


def locate(name: str | Path) -> Located:
    """Finds what MODEL means: a local model, a run, an adapter folder, or a Hub id; an existing path wins.

    Raises:
        UserError: a folder that holds none of these, or an adapter whose base has gone.
    """
    text = str(name)
    path = expanded(text)
    if text.startswith(HUB_PREFIX):
        name = text.removeprefix(HUB_PREFIX)
        if _kind_of(Path(name)):  # transformers would take the folder
            raise UserError(f"{text}: a local {name} is in the way of the Hub's; run this from another folder.")
        return Located(text, name, from_hub=True)
    kind = _kind_of(path)
    if kind == "folder":
        if runs.is_run(path):
            return _locate_run(text, path.resolve())
        if (path / ADAPTER_CONFIG).is_file():
            return _locate_adapter(text, path.resolve(), run=None)
        refuse_foreign_folder(path)
        return Located(text, str(path.resolve()))
    if kind:
        raise UserError(
            f"{printable(path)}: a file; MODEL is a folder with a model, an adapter or a run, or a Hub id."
            f"{_what_it_is(path)}"
        )
    if not looks_like_hub_id(text):
        raise UserError(f"{printable(text)}: no such folder, and not a Hub id (owner/name) either.")
    if path.parent.is_dir():  # "runs/mine" with a runs/ here is a folder that is missing, not somebody's model
        near = sorted(folder.name for folder in path.parent.iterdir() if folder.is_dir() and folder.name[0] != ".")
        raise UserError(
            f"{text}: no such folder; {path.parent} holds {', '.join(near[:8]) or 'none'}. For a model on the Hub "
            f"write {HUB_PREFIX}{text}."
        )
    return Located(text, text, from_hub=True)


def _kind_of(path: Path) -> str | None:
    """Say what is at a path: a folder, a file, or nothing (None).

    Raises:
        UserError: It may not be looked at, or the name is too long for any file.
    """
    try:
        return "folder" if stat.S_ISDIR(os.stat(path).st_mode) else "file"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{printable(path)[:200]}: {reason_of(error)}.") from None


def _what_it_is(path: Path) -> str:
    """Say what a file is that was named as MODEL; empty if it is not known."""
    try:
        found = foreign_file(path)
    except UnusableFileError as error:
        found = error.reason
    return f" This one: {found}." if found else ""


def looks_like_hub_id(text: str) -> bool:
    """Tell owner/name from what can only be a path, of this system or of another one."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", text, re.ASCII) is not None


def _locate_run(name: str, run: Path) -> Located:
    if (run / runs.ADAPTER).is_dir():
        return _locate_adapter(name, run / runs.ADAPTER, run)
    if (run / runs.MODEL).is_dir():
        return Located(name, str(run / runs.MODEL), run=run)
    raise UserError(f"{run}: not finished yet, no model in it; whisper-peft train --resume {run} goes on.")


def _locate_adapter(name: str, adapter: Path, run: Path | None) -> Located:
    base = read_adapter_config(adapter).get("base_model_name_or_path")
    if not base:
        raise UserError(
            f"{adapter / ADAPTER_CONFIG}: names no base model (base_model_name_or_path); write there the folder or "
            "the Hub id of the model that the adapter was trained on."
        )
    from_hub = not is_folder(base)
    return Located(name, base, adapter, run, from_hub=from_hub, commit=known_commit(adapter, base))


def locate_start(name: str, base: str | Path | None, *, resumed: bool) -> Located:
    """Find what a run begins with, whose place or whose base may have moved.

    Args:
        name: The recipe's model.
        base: Where the base is now; None: where it was.
        resumed: Whether a run goes on. Then `base` may also stand for a stand-alone model that has moved.

    Raises:
        UserError: It is not found, or `base` is given for a model that has none.
    """
    if base is None:
        try:
            located = locate(name)
        except UserError as error:
            if resumed and not is_folder(name):
                raise UserError(f"{error} If it has moved, say where it is now with --model MODEL.") from None
            raise
        return with_base(located) if located.adapter else located
    if is_folder(name) and locate(name).adapter:
        return with_base(locate(name), base)
    if not resumed:
        raise UserError(f"--base {base}: only an adapter has a base, and {name} is none; leave --base away.")
    moved = locate(base)
    if moved.adapter:
        raise UserError(f"--base {base}: an adapter; the base is a stand-alone model.")
    return moved


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
    else:
        _find_base(located)
    known = base_facts(located.adapter)
    if "sha256" not in known and "hub_id" not in known:
        return located  # an adapter of somebody else's: nothing is known about its base
    found = base_identity(located.base, revision=located.commit)
    word = "sha256" if "sha256" in known else "hub_id"
    if known[word] != found.get(word):
        raise UserError(
            f"{located.base}: not the weights this adapter was trained on (another "
            f"{'SHA-256' if word == 'sha256' else 'Hub id'}); name the right base with --base MODEL."
        )
    return located


def _find_base(located: Located) -> None:
    """Refuse an adapter whose base is not where its config says.

    Raises:
        UserError: The folder is gone, is of another machine, or is itself an adapter; or the Hub does not have it.
    """
    base = printable(located.base)[:200]
    remedy = "say where it is with --base MODEL"
    if is_folder(located.base):
        if (Path(located.base) / ADAPTER_CONFIG).is_file():
            raise UserError(f"{located.adapter}: its base {base} is an adapter itself; merge that one, and {remedy}.")
        return
    if not looks_like_hub_id(located.base):
        raise UserError(f"{base}: the adapter's base has moved, it is not here. {located.adapter} needs it; {remedy}.")
    try:
        download(located.base, "config.json", located.commit)
    except UserError as error:
        raise UserError(f"{located.adapter}: the adapter's base {base} is not found; {remedy}. ({error})") from None
