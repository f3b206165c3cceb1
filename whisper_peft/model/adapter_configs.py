"""The config of an adapter, checked before peft sees it; its regular expressions are matched under a time limit."""

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

# The names that peft gives to the two files of an adapter.
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# The largest rank, as `lora.rank` of a recipe has it.
MAX_RANK = 8192
# Seconds for matching all regular expressions of an adapter with all names of modules.
MATCHING_S = 2.0
# Characters of a regular expression, or of a name of a module.
_MAX_PATTERN = 2000

_PATTERN = short_text(_MAX_PATTERN)
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
# Fields that no adapter for Whisper has. peft imports the module that the first one names, and copies layers as often
# as the second one says.
NEVER_USED = ("megatron_config", "layer_replication")
# A name of a module, or a part of one.
_PLAIN = re.compile(r"[\w.-]+")
# A tame regular expression is one that Python's own engine matches in no time: it has no repeated group, no
# look-around, no back-reference, and at most two repetitions without end. Ours is tame: see `lora.make_target_pattern`.
_TAME = re.compile(r"(?:[\w.^$|()?\[\]-]|\\[.dw]|[*+](?![*+]))*")
# Repetitions without end in a tame expression.
MAX_REPEATS = 2


def read_adapter_config(folder: str | Path) -> dict[str, Any]:
    """Read the adapter_config.json of an adapter.

    Args:
        folder: The adapter's folder.

    Returns:
        Its content, in which every field that we know is of the right kind.

    Raises:
        UnusableFileError: It cannot be read, belongs to another kind of adapter than LoRA, or a field holds a value
            that it cannot have. The message names the field.
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
        for module in page.get(name) or ():
            # peft makes a regular expression of each.
            if not _PLAIN.fullmatch(module):
                refuse_field(path, name, module, "expected names of modules")
    _check_rank(path, page)
    return page


def _check_rank(path: Path, page: Mapping[str, Any]) -> None:
    """Refuse a rank that the adapter's weights do not have, before anything of that size is allocated."""
    ranks = _read_stored_ranks(path)
    rank = page.get("r", 8)
    if ranks and not page.get("rank_pattern") and rank > max(ranks.values()):
        refuse_field(path, "r", rank, f"the adapter's weights have rank {max(ranks.values())}")


def _read_stored_ranks(path: Path) -> dict[str, int]:
    """Read the rank of each module that an adapter has weights for, by the module's name."""
    ranks = {}
    for name, shape in weight_shapes([path.parent / ADAPTER_WEIGHTS]).items():
        module, separator, _ = name.partition(".lora_A.")
        if separator and len(shape) > 1:
            # The factor A is (rank, n_inputs).
            ranks[module.removeprefix("base_model.model.")] = shape[0]
    return ranks


def _check_rank_pattern(path: Path, patterns: Mapping[str, int]) -> None:
    """Refuse a rank for single modules that their weights do not have."""
    ranks = _read_stored_ranks(path)
    for pattern, rank in patterns.items():
        stored = [ranks[module] for module in ranks if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module)]
        if stored and rank > max(stored):
            refuse_field(path, "rank_pattern", rank, f"the adapter's weights have rank {max(stored)} there")


def load_peft_config(adapter: Path, model: nn.Module) -> LoraConfig:
    """Make peft's config of a saved adapter, for the model that it goes onto.

    An adapter may name modules by a regular expression, and one could be written that takes for ever. Unless it is
    tame, it is matched here under a time limit, and peft is given the names that it matches.

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
            fields[name] = _match_modules(path, name, value, "{}", modules, deadline)
    patterns = fields.get("layers_pattern") or ()
    if isinstance(patterns, str):
        patterns = [patterns]
    for pattern in patterns:
        if not _PLAIN.fullmatch(pattern):
            refuse_field(path, "layers_pattern", pattern, "expected names of modules")
    for name in ("rank_pattern", "alpha_pattern"):
        fields[name] = _replace_patterns(path, name, fields.get(name) or {}, modules, deadline)
    _check_rank_pattern(path, fields["rank_pattern"])
    try:
        return LoraConfig(**fields)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        reason = printable(" ".join(str(error).split()))[:200]
        raise UnusableFileError(path, f"peft refuses it ({reason})") from None


def is_tame(pattern: str) -> bool:
    r"""Tell whether Python's own engine matches a regular expression in no time, whatever the name.

    Args:
        pattern: The regular expression.

    Example:
        >>> is_tame(r".*decoder.*(q_proj|v_proj)$")
        True
        >>> is_tame(r"(a+)+$")
        False
        >>> is_tame(r"(?=model).*")
        False
    """
    repeats = len(re.findall(r"[*+]", pattern))
    if not _TAME.fullmatch(pattern) or repeats > MAX_REPEATS or re.search(r"\)[*+]|\(\?", pattern):
        return False
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _replace_patterns(
    path: Path, name: str, patterns: Mapping[str, Any], modules: Iterable[str], deadline: float
) -> dict[str, Any]:
    """Return a field that has a value for each pattern, with names of modules in place of patterns that are not tame.

    Args:
        path: The file, for messages.
        name: The field.
        patterns: The value for each pattern.
        modules: The names of the model's modules.
        deadline: When matching has to end, as `time.monotonic` counts.
    """
    by_module: dict[str, Any] = {}
    for pattern, value in patterns.items():
        if len(pattern) > _MAX_PATTERN:
            refuse_field(path, name, pattern, "no name of a module is so long")
        if is_tame(pattern):
            by_module[pattern] = value
        else:
            matches = _match_modules(path, name, pattern, r"(?:.*\.)?(?:{})", modules, deadline)
            by_module.update(dict.fromkeys(matches, value))
    return by_module


def _match_modules(
    path: Path, name: str, pattern: str, around: str, modules: Iterable[str], deadline: float
) -> list[str]:
    """Return the modules whose names a regular expression matches.

    Args:
        path: The file, for messages.
        name: The field.
        pattern: The regular expression.
        around: What peft puts around it, with {} in its place.
        modules: The names of the model's modules.
        deadline: When matching has to end, as `time.monotonic` counts.

    Raises:
        UnusableFileError: The pattern is no regular expression, takes too long, or matches nothing.
    """
    # Unlike Python's own engine, this one takes a time limit.
    import regex

    matches = []
    try:
        compiled = regex.compile(around.replace("{}", pattern))
        for module in modules:
            left_s = max(0.001, deadline - time.monotonic())
            if compiled.fullmatch(module, timeout=left_s):
                matches.append(module)
    except TimeoutError:
        refuse_field(path, name, pattern, "this regular expression takes too long; name the modules in a list")
    except (regex.error, RecursionError, OverflowError, MemoryError) as error:
        refuse_field(path, name, pattern, f"not a regular expression ({short_repr(str(error))}); name the modules")
    if not matches:
        refuse_field(path, name, pattern, "it matches no module of this model")
    return matches
