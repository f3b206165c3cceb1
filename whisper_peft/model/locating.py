"""The way from a MODEL argument to a base, an adapter on a base, or a run."""

from __future__ import annotations

import dataclasses
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from whisper_peft import runs
from whisper_peft.errors import UserError
from whisper_peft.files import UnusableFileError, is_folder, printable, reason_of
from whisper_peft.model.adapter_configs import ADAPTER_CONFIG, read_adapter_config
from whisper_peft.model.foreign import foreign_file, refuse_foreign_folder
from whisper_peft.model.identity import base_facts, base_identity, download, known_commit
from whisper_peft.recipe_files import HUB_PREFIX, expand_home

# Folders that a message names.
_MOST_FILES = 8
# The fields of base.json that tell one base from another, the surest one first, and what a message calls them.
_IDENTITY_WORDS = {"sha256": "SHA-256", "hub_id": "Hub id"}


@dataclass(frozen=True)
class Located:
    """The model that a MODEL argument leads to: a base, an adapter on a base, or either of them from a run.

    Args:
        name: The argument as the user wrote it.
        base: Folder or Hub id of the full weights.
        adapter: Folder of the adapter; None for a stand-alone model.
        run: Folder of the run; None if the argument leads to no run.
        from_hub: Whether the base is on the Hub.
        commit: Commit of a base on the Hub on which an adapter of ours was trained; None is the newest.
    """

    name: str
    base: str
    adapter: Path | None = None
    run: Path | None = None
    from_hub: bool = False
    commit: str | None = None

    @property
    def quantize(self) -> str | None:
        """Return how the base of an adapter of ours was quantised in training; None if it was not, or is not known."""
        if self.adapter is None:
            return None
        return base_facts(self.adapter).get("quantize")


def locate(name: str | Path) -> Located:
    """Find what MODEL means: a local model, a run, an adapter folder, or a Hub id. An existing path wins.

    Args:
        name: The argument as the user wrote it.

    Raises:
        UserError: There is a file, or a folder that holds no model; or there is nothing, and it cannot be a Hub id.
    """
    argument = str(name)
    if argument.startswith(HUB_PREFIX):
        hub_id = argument.removeprefix(HUB_PREFIX)
        # transformers would take the folder.
        if _look_at(Path(hub_id)):
            raise UserError(f"{argument}: a local {hub_id} is in the way of the Hub's; run this from another folder.")
        return Located(argument, hub_id, from_hub=True)
    path = expand_home(argument)
    kind = _look_at(path)
    if kind == "folder":
        return _locate_folder(argument, path)
    if kind == "file":
        raise UserError(
            f"{printable(path)}: a file; MODEL is a folder with a model, an adapter or a run, or a Hub id."
            f"{_describe_file(path)}"
        )
    if not looks_like_hub_id(argument):
        raise UserError(f"{printable(argument)}: no such folder, and not a Hub id (owner/name) either.")
    # "runs/mine" beside a folder runs/ means a folder that is missing, not somebody's model.
    if path.parent.is_dir():
        near = sorted(folder.name for folder in path.parent.iterdir() if folder.is_dir() and folder.name[0] != ".")
        raise UserError(
            f"{argument}: no such folder; {path.parent} holds {', '.join(near[:_MOST_FILES]) or 'none'}. For a model "
            f"on the Hub write {HUB_PREFIX}{argument}."
        )
    return Located(argument, argument, from_hub=True)


def _locate_folder(name: str, path: Path) -> Located:
    """Find what a folder holds: a run, an adapter or a model.

    Raises:
        UserError: It holds none of them, or one that cannot be used.
    """
    if runs.is_run(path):
        return _locate_run(name, path.resolve())
    if (path / ADAPTER_CONFIG).is_file():
        return _locate_adapter(name, path.resolve(), run=None)
    refuse_foreign_folder(path)
    return Located(name, str(path.resolve()))


def _look_at(path: Path) -> Literal["folder", "file"] | None:
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


def _describe_file(path: Path) -> str:
    """Return a sentence on what a file is that was given as MODEL; empty if it is not known."""
    try:
        description = foreign_file(path)
    except UnusableFileError as error:
        description = error.reason
    return f" This one: {description}." if description else ""


def looks_like_hub_id(text: str) -> bool:
    r"""Tell owner/name from what can only be a path, of this system or of another one.

    Args:
        text: What the user wrote as MODEL.

    Example:
        >>> looks_like_hub_id("openai/whisper-small")
        True
        >>> looks_like_hub_id("./whisper-small")
        False
        >>> looks_like_hub_id(r"C:\models\whisper-small")
        False
        >>> looks_like_hub_id("runs/hindi/adapter")
        False
    """
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", text, re.ASCII) is not None


def _locate_run(name: str, run: Path) -> Located:
    """Find the adapter or the model of a run.

    Raises:
        UserError: The run has not finished.
    """
    if (run / runs.ADAPTER).is_dir():
        return _locate_adapter(name, run / runs.ADAPTER, run)
    if (run / runs.MODEL).is_dir():
        return Located(name, str(run / runs.MODEL), run=run)
    raise UserError(f"{run}: not finished yet, no model in it; whisper-peft train --resume {run} goes on.")


def _locate_adapter(name: str, adapter: Path, run: Path | None) -> Located:
    """Find the base that an adapter's config names; whether it is there is not checked.

    Raises:
        UserError: The config cannot be used, or names no base.
    """
    base = read_adapter_config(adapter).get("base_model_name_or_path")
    if not base:
        raise UserError(
            f"{adapter / ADAPTER_CONFIG}: names no base model (base_model_name_or_path); write the folder or the Hub "
            "id of the model that the adapter was trained on there."
        )
    from_hub = not is_folder(base)
    return Located(name, base, adapter, run, from_hub=from_hub, commit=known_commit(adapter, base))


def locate_start(name: str, base: str | Path | None, *, resumed: bool) -> Located:
    """Find the model that a run begins with; the model, or the base of an adapter, may have moved.

    Args:
        name: The recipe's model.
        base: Where the base is now; None if it has not moved.
        resumed: Whether an earlier run is resumed. Then `base` may also be a stand-alone model that has moved.

    Raises:
        UserError: It is not found, or `base` is given for a model that has no base.
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
    return _locate_moved_base(base)


def with_base(located: Located, base: str | Path | None = None) -> Located:
    """Find the base of an adapter, and check that it is the one that the adapter was trained on.

    Args:
        located: The adapter.
        base: Where the base is now, if it has moved.

    Raises:
        UserError: There is no such base, an adapter in place of it, or other weights.
    """
    adapter = located.adapter
    assert adapter is not None, "a stand-alone model has no base"
    if base is None:
        _refuse_missing_base(located)
    else:
        moved = _locate_moved_base(base)
        commit = known_commit(adapter, moved.base)
        located = dataclasses.replace(located, base=moved.base, from_hub=moved.from_hub, commit=commit)
    known = base_facts(adapter)
    keys = [key for key in _IDENTITY_WORDS if key in known]
    if not keys:
        # Another program made the adapter, and nothing is known about its base.
        return located
    key = keys[0]
    identity = base_identity(located.base, revision=located.commit)
    if known[key] != identity.get(key):
        raise UserError(
            f"{located.base}: not the weights this adapter was trained on (another {_IDENTITY_WORDS[key]}); name the "
            "right base with --base MODEL."
        )
    return located


def _locate_moved_base(base: str | Path) -> Located:
    """Find a base where the user says that it is now.

    Raises:
        UserError: It is not found, or is an adapter.
    """
    located = locate(base)
    if located.adapter:
        raise UserError(f"--base {base}: an adapter; the base is a stand-alone model.")
    return located


def _refuse_missing_base(located: Located) -> None:
    """Refuse an adapter whose base is not where its config says.

    Raises:
        UserError: The folder is gone, belongs to another machine, or is an adapter; or the Hub does not have the base.
    """
    base = printable(located.base)[:200]
    remedy = "say where it is with --base MODEL"
    if is_folder(located.base):
        if (Path(located.base) / ADAPTER_CONFIG).is_file():
            raise UserError(f"{located.adapter}: its base {base} is an adapter itself; merge that one, then {remedy}.")
        return
    if not looks_like_hub_id(located.base):
        raise UserError(f"{base}: the adapter's base has moved, it is not here. {located.adapter} needs it; {remedy}.")
    try:
        download(located.base, "config.json", located.commit)
    except UserError as error:
        raise UserError(f"{located.adapter}: the adapter's base {base} is not found; {remedy}. ({error})") from None
