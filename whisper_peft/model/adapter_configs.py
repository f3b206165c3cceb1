"""The config of an adapter: checked before peft sees it, and its regular expressions matched under a time limit."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_peft.files import UnusableFileError, printable, read_json_file, short_repr
from whisper_peft.model.fields import (
    FLAG,
    OBJECT,
    FieldKind,
    check_fields,
    either,
    list_of,
    map_of,
    number,
    one_of,
    optional,
    refuse_field,
    short_text,
    whole,
)
from whisper_peft.model.weights import weight_shapes

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import nn

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MAX_RANK = 8192  # as `lora.rank` of a recipe
MATCHING_S = 2.0  # for all regular expressions of an adapter, on all names of modules

_PATTERN = short_text(2000)
_PATTERNS = optional(either(_PATTERN, list_of(short_text(300), 10_000)))
_NAMES = optional(list_of(short_text(300), 10_000))
ADAPTER_FIELDS: dict[str, FieldKind] = {
    "base_model_name_or_path": optional(short_text(4096)),
    "revision": optional(short_text(300)),
    "task_type": optional(short_text(100)),
    "inference_mode": optional(FLAG),
    "r": whole(1, MAX_RANK),
    "lora_alpha": number(0.0, 1e6),
    "lora_dropout": number(0.0, 1.0),
    "bias": one_of(("none", "all", "lora_only")),
    "fan_in_fan_out": FLAG,
    "use_rslora": FLAG,
    "use_dora": FLAG,
    "init_lora_weights": optional(either(FLAG, short_text(100))),
    "target_modules": _PATTERNS,
    "exclude_modules": _PATTERNS,
    "target_parameters": _NAMES,
    "modules_to_save": _NAMES,
    "layers_to_transform": optional(either(whole(0, 1000), list_of(whole(0, 1000), 1000))),
    "layers_pattern": _PATTERNS,
    "rank_pattern": optional(map_of(whole(1, MAX_RANK))),
    "alpha_pattern": optional(map_of(number(0.0, 1e6))),
    "trainable_token_indices": optional(either(list_of(whole(0, 1_000_000)), map_of(list_of(whole(0, 1_000_000))))),
    "auto_mapping": optional(OBJECT),
}
# peft imports the module that the first names, and copies layers as often as the second says.
NEVER_USED = ("megatron_config", "layer_replication")
# A name of a module, or a part of one.
_PLAIN = re.compile(r"[\w.-]+")
# A regular expression that Python's own engine is through with at once: no repeated group, no look-around, no
# back-reference, and no more than two repetitions without end. Ours is one: see `lora.make_target_pattern`.
_TAME = re.compile(r"(?:[\w.^$|()?\[\]-]|\\[.dw]|[*+](?![*+]))*")
MAX_REPEATS = 2


def read_adapter_config(folder: str | Path) -> dict[str, Any]:
    """Read the adapter_config.json of an adapter.

    Args:
        folder: The adapter's folder.

    Returns:
        Its content, every field that we know of the right kind.

    Raises:
        UnusableFileError: It cannot be read, is of another kind of adapter than LoRA, or a field holds what it cannot.
            The message names the field.
    """
    path = Path(folder) / ADAPTER_CONFIG
    page = read_json_file(path)
    peft_type = page.get("peft_type")
    if peft_type != "LORA":
        refuse_field(path, "peft_type", peft_type, "only LoRA adapters (LORA) can be loaded")
    check_fields(path, page, ADAPTER_FIELDS)
    for name in NEVER_USED:
        if page.get(name):
            refuse_field(path, name, page[name], "no adapter for Whisper has it; expected null")
    for name in ("modules_to_save", "target_parameters"):
        for module in page.get(name) or ():  # peft makes a regular expression of each
            if not _PLAIN.fullmatch(module):
                refuse_field(path, name, module, "expected names of modules")
    _check_rank(path, page)
    return page


def _check_rank(path: Path, page: Mapping[str, Any]) -> None:
    """Refuse a rank that the adapter's weights do not have, before anything of that size is allocated."""
    ranks = _stored_ranks(path)
    rank = page.get("r", 8)
    if ranks and not page.get("rank_pattern") and rank > max(ranks.values()):
        refuse_field(path, "r", rank, f"the adapter's weights have rank {max(ranks.values())}")


def _stored_ranks(path: Path) -> dict[str, int]:
    """Return the modules that an adapter has weights for, each with its rank."""
    shapes = weight_shapes([path.parent / ADAPTER_WEIGHTS])
    return {
        name.partition(".lora_A.")[0].removeprefix("base_model.model."): shape[0]
        for name, shape in shapes.items()
        if ".lora_A." in name and len(shape) > 1
    }


def _check_rank_pattern(path: Path, patterns: Mapping[str, int]) -> None:
    """Refuse a rank for single modules that their weights do not have."""
    ranks = _stored_ranks(path)
    for pattern, rank in patterns.items():
        stored = [ranks[module] for module in ranks if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module)]
        if stored and rank > max(stored):
            refuse_field(path, "rank_pattern", rank, f"the adapter's weights have rank {max(stored)} there")


def load_peft_config(adapter: Path, model: nn.Module) -> LoraConfig:
    """Make peft's config of a saved adapter for the model that it goes onto.

    Where the adapter names modules by a regular expression that could take for ever, it is matched here under a time
    limit, and peft is given the names that it matches.

    Args:
        adapter: The adapter's folder.
        model: The base.

    Raises:
        UnusableFileError: See `read_adapter_config`; or a regular expression takes too long, or matches nothing.
    """
    from peft import LoraConfig

    path = adapter / ADAPTER_CONFIG
    page = read_adapter_config(adapter)
    known = {field.name for field in dataclasses.fields(LoraConfig) if field.init}
    fields = {name: value for name, value in page.items() if name in known and name != "peft_type"}
    modules = [name for name, _ in model.named_modules() if name]
    deadline = time.monotonic() + MATCHING_S
    for name in ("target_modules", "exclude_modules"):
        value = fields.get(name)
        if isinstance(value, str) and value != "all-linear" and not is_tame(value):
            fields[name] = _matching(path, name, value, "{}", modules, deadline)
    patterns = fields.get("layers_pattern") or ()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if not _PLAIN.fullmatch(pattern):
            refuse_field(path, "layers_pattern", pattern, "expected names of modules")
    for name in ("rank_pattern", "alpha_pattern"):
        fields[name] = _by_name(path, name, fields.get(name) or {}, modules, deadline)
    _check_rank_pattern(path, fields["rank_pattern"])
    try:
        return LoraConfig(**fields)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        reason = printable(" ".join(str(error).split()))[:200]
        raise UnusableFileError(path, f"peft refuses it ({reason})") from None


def is_tame(pattern: str) -> bool:
    """Tell whether Python's regular expressions are through with a pattern at once, whatever the name.

    Example:
        >>> is_tame(r".*decoder.*(q_proj|v_proj)$"), is_tame(r"(a+)+$")
        (True, False)
    """
    repeats = len(re.findall(r"[*+]", pattern))
    if not _TAME.fullmatch(pattern) or repeats > MAX_REPEATS or re.search(r"\)[*+]|\(\?", pattern):
        return False
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _by_name(
    path: Path, name: str, patterns: Mapping[str, Any], modules: Iterable[str], deadline: float
) -> dict[str, Any]:
    """Return what a pattern for each of some modules says, with names of modules in place of wild patterns."""
    named: dict[str, Any] = {}
    for pattern, value in patterns.items():
        if len(pattern) > 2000:
            refuse_field(path, name, pattern, "no name of a module is so long")
        if is_tame(pattern):
            named[pattern] = value
        else:
            matches = _matching(path, name, pattern, r"(?:.*\.)?(?:{})", modules, deadline)
            named.update(dict.fromkeys(matches, value))
    return named


def _matching(path: Path, name: str, pattern: str, around: str, modules: Iterable[str], deadline: float) -> list[str]:
    """Return the modules whose names a regular expression matches.

    Raises:
        UnusableFileError: It is none, takes too long, or matches nothing.
    """
    import regex  # a dependency of transformers; unlike Python's own engine it takes a time limit

    try:
        compiled = regex.compile(around.replace("{}", pattern))
        matches = [
            module for module in modules if compiled.fullmatch(module, timeout=max(0.001, deadline - time.monotonic()))
        ]
    except TimeoutError:
        refuse_field(path, name, pattern, "this regular expression takes too long; name the modules in a list")
    except (regex.error, RecursionError, OverflowError, MemoryError) as error:
        refuse_field(path, name, pattern, f"not a regular expression ({short_repr(str(error))}); name the modules")
    if not matches:
        refuse_field(path, name, pattern, "it matches no module of this model")
    return matches
