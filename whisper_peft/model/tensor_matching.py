"""Match the tensors of safetensors files with those of a model, before anything is loaded.

Libraries load what fits, leave the rest of a model as it was, and warn. Here every tensor is accounted for.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from whisper_peft.errors import Notice, UserError
from whisper_peft.files import printable
from whisper_peft.model.foreign import foreign_tensors
from whisper_peft.model.weights import HEAD_WEIGHT, Shape, TensorHeader, list_names

# The types of weights, as safetensors calls them.
FLOATS = ("F64", "F32", "F16", "BF16")
# Words that torch.compile, FSDP, gradient checkpointing and DataParallel put into the names of what they wrap.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module")
# The words with which the names of Whisper's own modules begin.
HALVES = ("encoder", "decoder")
# The cause and the remedy where most tensors hold no number.
EMPTIED = (
    "The tensors are empty, as each process of DeepSpeed ZeRO-3 or FSDP saves them; gather the weights of all "
    "processes into one model first (DeepSpeed: zero_to_fp32.py)"
)
# The adapter's name within the name of a tensor, as in lora_A.default.weight. It stands in a model's own state, and not
# in what peft saves.
_ADAPTER_NAME = re.compile(
    r"(?<=\.lora_[AB])\.\w+(?=\.weight$)|(?<=\.lora_magnitude_vector)\.\w+(?=\.weight$)|\.default\b"
)


@dataclass(frozen=True)
class Misfit:
    """How the tensors of files differ from those of a model.

    Args:
        shapes: The shape of each tensor in the files, by its name.
        accepted: The shape of each tensor that the model takes, by its name.
        n_required: How many tensors the model needs.
        n_fit: How many of them are there, with the right shape.
        missing: Names of needed tensors that are not there.
        left_over: Names of tensors that the model does not take.
        reshaped: Names of tensors that have another shape in the model.
    """

    shapes: Mapping[str, Shape]
    accepted: Mapping[str, Shape]
    n_required: int
    n_fit: int
    missing: list[str]
    left_over: list[str]
    reshaped: list[str]


def fit_base(header: TensorHeader, expected: Mapping[str, Shape], *, place: str) -> dict[str, str]:
    """Match the tensors of a base with the model that its config describes.

    Args:
        header: The tensors of the files.
        expected: The shape of each tensor of the model, by its name.
        place: The folder or Hub id, for messages.

    Returns:
        The model's name for each tensor that is to be loaded, by its name in the files.

    Raises:
        UserError: A tensor is missing, left over, of another shape or not of floating-point numbers.
    """
    # These may be missing: the head's weight is the token embedding's, and the positions are sinusoids.
    fixed = {HEAD_WEIGHT, "model.encoder.embed_positions.weight"}
    required = {name: shape for name, shape in expected.items() if name not in fixed}
    optional = {name: expected[name] for name in fixed if name in expected}
    names = _match_names(
        header, required, optional, place=place, rename=_write_base_name, guess_cause=_guess_base_cause
    )
    _refuse_types(header, place=place)
    return names


def fit_adapter(
    header: TensorHeader, expected: Mapping[str, Shape], optional: Mapping[str, Shape], *, place: str
) -> dict[str, str]:
    """Match the tensors of an adapter with those that its config and its base call for.

    Args:
        header: The tensors of the adapter's file.
        expected: The shape of each tensor, by the name under which peft saves it.
        optional: Further tensors that peft would load, as embeddings that were saved with an adapter.
        place: The adapter's folder, for messages.

    Returns:
        peft's name for each tensor, by its name in the file.

    Raises:
        UserError: A tensor is missing, left over, of another shape or not of floating-point numbers.
    """
    names = _match_names(
        header, expected, optional, place=place, rename=write_adapter_name, guess_cause=_guess_adapter_cause
    )
    _refuse_types(header, place=place)
    return names


def _refuse_types(header: TensorHeader, *, place: str) -> None:
    """Refuse tensors of whole numbers, of truth values, or of floats in 8 bits.

    Converted to floats, they would be other weights than those that were trained.

    Raises:
        UserError: There is such a tensor.
    """
    others = [name for name in header.types if header.types[name] not in FLOATS]
    if others:
        kind = header.types[others[0]]
        raise UserError(
            f"{place}: {list_names(others)} is of type {kind}, and weights are F32, F16 or BF16; take the full weights."
        )


def _match_names(
    header: TensorHeader,
    required: Mapping[str, Shape],
    optional: Mapping[str, Shape],
    *,
    place: str,
    rename: Callable[[str], str],
    guess_cause: Callable[[Misfit], str],
) -> dict[str, str]:
    """Find the model's name for each tensor, as it is or without a wrapper's words.

    Args:
        header: The tensors of the files.
        required: The shapes of the tensors that have to be there.
        optional: The shapes of those that may be there.
        place: The folder or Hub id, for messages.
        rename: Takes a wrapper's words out of a name.
        guess_cause: Names the likely cause of what does not fit, and the remedy.

    Raises:
        UserError: A tensor is missing, left over or of another shape.
    """
    accepted = {**required, **optional}
    names = {name: name for name in header.shapes}
    if _do_all_fit(names, header.shapes, required, accepted):
        return names
    new_names = {name: rename(name) for name in header.shapes}
    if _do_all_fit(new_names, header.shapes, required, accepted):
        _warn_of_new_names(new_names, place)
        return new_names
    misfit = _find_misfit(header.shapes, required, accepted)
    raise UserError(f"{place}: {_describe_misfit(misfit)}. {guess_cause(misfit)}.")


def _do_all_fit(
    names: Mapping[str, str], shapes: Mapping[str, Shape], required: Mapping[str, Shape], accepted: Mapping[str, Shape]
) -> bool:
    """Tell whether the model's names are all there once, with the model's shapes."""
    new_names = set(names.values())
    if len(new_names) < len(names) or not set(required) <= new_names:
        return False
    return all(accepted.get(new) == shapes[name] for name, new in names.items())


def _write_base_name(name: str) -> str:
    """Write a tensor's name as WhisperForConditionalGeneration has it."""
    words = [word for word in name.split(".") if word not in WRAPPERS]
    for place, word in enumerate(words):
        if word in HALVES:
            return ".".join(["model", *words[place:]])
        if word == "proj_out":
            return ".".join(words[place:])
    return name


def write_adapter_name(name: str) -> str:
    """Write a tensor's name as peft saves it: with peft's prefix, without wrappers and the adapter's name.

    Args:
        name: The name in a file.

    Example:
        >>> write_adapter_name("model.decoder.layers.0.fc1.lora_A.default.weight")
        'base_model.model.model.decoder.layers.0.fc1.lora_A.weight'
    """
    words = _ADAPTER_NAME.sub("", _write_base_name(name)).split(".")
    return ".".join(["base_model", "model", *words])


def _warn_of_new_names(names: Mapping[str, str], place: str) -> None:
    """Say which words were taken out of the names.

    Nothing is said where only `model.` was added, as for a bare WhisperModel.
    """
    dropped: list[str] = []
    for name, new_name in names.items():
        kept = new_name.split(".")
        for word in name.split("."):
            if word in kept:
                kept.remove(word)
            elif f"{word}." not in dropped:
                dropped.append(f"{word}.")
    if dropped:
        words = " and ".join(f"'{printable(word)}'" for word in dropped)
        warnings.warn(
            f"{place}: took {words} out of the names of the tensors, as torch.compile and other wrappers write them; "
            f"then all {len(names)} tensors fit.",
            Notice,
            stacklevel=2,
        )


def _find_misfit(shapes: Mapping[str, Shape], required: Mapping[str, Shape], accepted: Mapping[str, Shape]) -> Misfit:
    """Compare the tensors of files, under the names that they have there, with those of the model."""
    return Misfit(
        shapes=shapes,
        accepted=accepted,
        n_required=len(required),
        n_fit=sum(shapes.get(name) == shape for name, shape in required.items()),
        missing=[name for name in required if name not in shapes],
        left_over=[name for name in shapes if name not in accepted],
        reshaped=[name for name in shapes if name in accepted and accepted[name] != shapes[name]],
    )


def _describe_misfit(misfit: Misfit) -> str:
    """Say how many tensors fit, and which do not."""
    parts = []
    if misfit.missing:
        parts.append(f"{len(misfit.missing)} missing ({list_names(misfit.missing)})")
    if misfit.left_over:
        parts.append(f"{len(misfit.left_over)} left over ({list_names(misfit.left_over)})")
    if misfit.reshaped:
        first = misfit.reshaped[0]
        parts.append(
            f"{len(misfit.reshaped)} of another shape ({printable(first)} is {_write_shape(misfit.shapes[first])}, the "
            f"model has {_write_shape(misfit.accepted[first])})"
        )
    return f"{misfit.n_fit} of {misfit.n_required} tensors fit: {'; '.join(parts)}"


def _guess_base_cause(misfit: Misfit) -> str:
    """Return the likely cause why a base does not fit, and the remedy."""
    if _is_emptied(misfit.shapes):
        return EMPTIED
    foreign = foreign_tensors(misfit.left_over)
    if foreign:
        return f"Likely {foreign}"
    if misfit.reshaped and not misfit.missing and not misfit.left_over:
        return "Likely config.json belongs to a Whisper of another size; copy the one of these weights"
    if misfit.missing and not misfit.left_over and not misfit.reshaped:
        return "Likely a part of the weights was not saved or not copied; copy the model again"
    if misfit.left_over and not misfit.missing:
        return "Likely it has layers of its own, or config.json names fewer layers; only a plain Whisper can be used"
    return "Likely the weights belong to another model than config.json, or were saved under other names"


def _guess_adapter_cause(misfit: Misfit) -> str:
    """Return the likely cause why an adapter does not fit, and the remedy."""
    if not misfit.shapes:
        return "The file holds no tensors"
    if _is_emptied(misfit.shapes):
        return EMPTIED
    for name in misfit.reshaped:
        if _is_rank_changed(name, misfit.shapes[name], misfit.accepted[name]):
            return "Likely the rank (r) in adapter_config.json is not that of the weights; copy the adapter again"
    has_lora_of_whisper = any(
        "lora_" in name and name.startswith("base_model.model.model.") for name in misfit.left_over
    )
    if misfit.reshaped or has_lora_of_whisper:
        return (
            "Likely the adapter was trained on a Whisper of another size, or adapter_config.json is another "
            "adapter's; name the right base with --base MODEL"
        )
    if misfit.missing and not misfit.left_over:
        return "Likely a part of the adapter was not saved or not copied; copy it again"
    return "Likely the adapter belongs to another kind of model, or was saved by another program"


def _is_emptied(shapes: Mapping[str, Shape]) -> bool:
    """Tell whether most tensors hold not a single number."""
    n_empty = sum(0 in shape for shape in shapes.values())
    return 2 * n_empty > len(shapes)


def _is_rank_changed(name: str, stored: Shape, expected: Shape) -> bool:
    """Tell whether two shapes of a factor differ in the rank only.

    Args:
        name: The tensor's name, which tells A (rank, n_inputs) from B (n_outputs, rank).
        stored: The shape in the file.
        expected: The shape in the model.
    """
    if len(stored) != 2 or len(expected) != 2:
        return False
    if ".lora_A." in name:
        return stored[0] != expected[0] and stored[1] == expected[1]
    return ".lora_B." in name and stored[1] != expected[1] and stored[0] == expected[0]


def _write_shape(shape: Shape) -> str:
    """Return a shape in words, as 384 × 1536."""
    return " × ".join(map(str, shape)) or "a single number"
