"""Count the tensors of safetensors files against a model, before anything is loaded.

Libraries load what fits, leave the rest of a model as it was, and warn. Here every tensor is accounted for.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_peft.errors import Notice, UserError
from whisper_peft.files import UnusableFileError, printable
from whisper_peft.model.foreign import foreign_file, foreign_tensors

if TYPE_CHECKING:
    import torch

MOST_NAMED = 3  # tensors that a message names
FLOATS = ("F64", "F32", "F16", "BF16")
# What torch.compile, FSDP, gradient checkpointing and DataParallel put into the names of what they wrap.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module")
HALVES = ("encoder", "decoder")
EMPTIED = (
    "The tensors are empty, as each process of DeepSpeed ZeRO-3 or FSDP saves them; gather the weights of all "
    "processes into one model first (DeepSpeed: zero_to_fp32.py)"
)
HEAD = "proj_out.weight"
EMBEDDING = "model.decoder.embed_tokens.weight"
# A model's own state, unlike what peft saves, has the adapter's name in the names: lora_A.default.weight.
_ADAPTER_NAME = re.compile(
    r"(?<=\.lora_[AB])\.\w+(?=\.weight$)|(?<=\.lora_magnitude_vector)\.\w+(?=\.weight$)|\.default\b"
)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """What safetensors files say of their tensors: shapes and types by name, and which file holds each."""

    shapes: dict[str, Shape]
    types: dict[str, str]
    file_of: dict[str, Path]


def read_header(files: Sequence[Path]) -> Header:
    """Read names, shapes and types of the tensors in safetensors files; no tensor is read.

    Args:
        files: One file, or all shards of a model.

    Raises:
        UnusableFileError: A file is something else, is cut off or is damaged, or two files hold one tensor.
    """
    from safetensors import SafetensorError, safe_open

    header = Header({}, {}, {})
    for file in files:
        found = foreign_file(file)
        if found:
            raise UnusableFileError(file, found)
        try:
            with safe_open(str(file), framework="np") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - safe_open has no __iter__
                    if name in header.file_of:
                        raise UnusableFileError(
                            file,
                            f"{printable(name)[:100]} is in {header.file_of[name].name}, too, so these shards are not "
                            "of one saving; copy or download the model again",
                        )
                    piece = tensors.get_slice(name)
                    header.shapes[name] = tuple(piece.get_shape())
                    header.types[name] = piece.get_dtype()
                    header.file_of[name] = file
        except (SafetensorError, OSError, ValueError, OverflowError) as error:
            raise UnusableFileError(
                file, f"cut off, damaged or no safetensors file ({_one_line(error)}); copy or download it again"
            ) from None
    return header


def weight_shapes(files: Iterable[Path]) -> dict[str, Shape]:
    """Read the shapes of all tensors in safetensors files, where there is something to compare a config with.

    Returns:
        The shape of each tensor, by its name. It is empty where a file is missing or damaged: loading says so.
    """
    try:
        return read_header(list(files)).shapes
    except UnusableFileError:
        return {}


def fit_base(header: Header, expected: Mapping[str, Shape], *, place: str) -> dict[str, str]:
    """Hold the tensors of a base against the model that its config describes.

    Args:
        header: Of the files.
        expected: Shapes by name, as the model has them.
        place: The folder or Hub id, for messages.

    Returns:
        The model's name for each tensor that is to be loaded, by its name in the files.

    Raises:
        UserError: A tensor is missing, left over, of another shape or not of floating-point numbers.
    """
    fixed = {HEAD, "model.encoder.embed_positions.weight"}  # tied to the token embedding; sinusoids
    required = {name: shape for name, shape in expected.items() if name not in fixed}
    optional = {name: expected[name] for name in fixed if name in expected}
    names = _fit(header, required, optional, place=place, rename=_base_name, cause=_base_cause)
    _refuse_types(header, place=place)
    return names


def fit_adapter(
    header: Header, expected: Mapping[str, Shape], optional: Mapping[str, Shape], *, place: str
) -> dict[str, str]:
    """Hold the tensors of an adapter against those that its config and its base call for.

    Args:
        header: Of the adapter's file.
        expected: Shapes by name, as peft saves them.
        optional: Further names that peft would load, as embeddings saved with an adapter.
        place: The adapter's folder, for messages.

    Returns:
        peft's name for each tensor, by its name in the file.

    Raises:
        UserError: A tensor is missing, left over, of another shape or not of floating-point numbers.
    """
    names = _fit(header, expected, optional, place=place, rename=adapter_name, cause=_adapter_cause)
    _refuse_types(header, place=place)
    return names


def _refuse_types(header: Header, *, place: str) -> None:
    """Refuse tensors of whole numbers, of truth values, or of floats in 8 bits.

    Raises:
        UserError: There is one. Converted to floats it would be other weights than those that were trained.
    """
    others = [name for name in header.types if header.types[name] not in FLOATS]
    if others:
        kind = header.types[others[0]]
        raise UserError(
            f"{place}: {_named(others)} is of type {kind}, and weights are F32, F16 or BF16; take the full weights."
        )


def _fit(header, required, optional, *, place, rename, cause) -> dict[str, str]:
    """Find the model's name for each tensor, by the names as they are or by names without a wrapper's words."""
    accepted = {**required, **optional}
    names = {name: name for name in header.shapes}
    if not _all_fit(names, header.shapes, required, accepted):
        other_names = {name: rename(name) for name in header.shapes}
        if _all_fit(other_names, header.shapes, required, accepted):
            _say_renamed(other_names, place)
            return other_names
        raise UserError(_misfit(header, required, accepted, place=place, cause=cause))
    return names


def _all_fit(
    names: Mapping[str, str], shapes: Mapping[str, Shape], required: Mapping[str, Shape], accepted: Mapping[str, Shape]
) -> bool:
    new_names = set(names.values())
    if len(new_names) < len(names) or not set(required) <= new_names:
        return False
    return all(accepted.get(new) == shapes[name] for name, new in names.items())


def _base_name(name: str) -> str:
    """Write a tensor's name as WhisperForConditionalGeneration has it."""
    words = [word for word in name.split(".") if word not in WRAPPERS]
    for place, word in enumerate(words):
        if word in HALVES:
            return ".".join(["model", *words[place:]])
        if word == "proj_out":
            return ".".join(words[place:])
    return name


def adapter_name(name: str) -> str:
    """Write a tensor's name as peft saves it: without wrappers, the adapter's name and with peft's prefix."""
    words = _ADAPTER_NAME.sub("", _base_name(name)).split(".")
    return ".".join(["base_model", "model", *words])


def _say_renamed(names: Mapping[str, str], place: str) -> None:
    """Say which words were taken out of the names, unless it is the `model.` of a bare WhisperModel."""
    dropped = []
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


def _misfit(header: Header, required, accepted, *, place: str, cause) -> str:
    """Count what does not fit, and name the likely cause."""
    shapes = header.shapes
    missing = [name for name in required if name not in shapes]
    left_over = [name for name in shapes if name not in accepted]
    reshaped = [name for name in shapes if name in accepted and accepted[name] != shapes[name]]
    n_fit = sum(shapes.get(name) == shape for name, shape in required.items())
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing ({_named(missing)})")
    if left_over:
        parts.append(f"{len(left_over)} left over ({_named(left_over)})")
    if reshaped:
        first = reshaped[0]
        parts.append(
            f"{len(reshaped)} of another shape ({printable(first)} is {_shown(shapes[first])}, the model has "
            f"{_shown(accepted[first])})"
        )
    likely = cause(header, missing, left_over, reshaped, accepted)
    return f"{place}: {n_fit} of {len(required)} tensors fit: {'; '.join(parts)}. {likely}."


def _base_cause(header, missing, left_over, reshaped, accepted) -> str:
    if _is_emptied(header.shapes):
        return EMPTIED
    foreign = foreign_tensors(left_over)
    if foreign:
        return f"Likely {foreign}"
    if reshaped and not missing and not left_over:
        return "Likely config.json belongs to a Whisper of another size; copy the one of these weights"
    if missing and not left_over and not reshaped:
        return "Likely a part of the weights was not saved or not copied; copy the model again"
    if left_over and not missing:
        return "Likely it has layers of its own, or config.json names fewer layers; only a plain Whisper can be used"
    return "Likely the weights belong to another model than config.json, or were saved under other names"


def _adapter_cause(header, missing, left_over, reshaped, accepted) -> str:
    if not header.shapes:
        return "The file holds no tensors"
    if _is_emptied(header.shapes):
        return EMPTIED
    for name in reshaped:
        if _is_rank_changed(name, header.shapes[name], accepted[name]):
            return "Likely the rank (r) in adapter_config.json is not that of the weights; copy the adapter again"
    known = [name for name in left_over if "lora_" in name]
    if reshaped or any(name.startswith("base_model.model.model.") for name in known):
        return (
            "Likely the adapter was trained on a Whisper of another size, or adapter_config.json is another "
            "adapter's; name the right base with --base MODEL"
        )
    if missing and not left_over:
        return "Likely a part of the adapter was not saved or not copied; copy it again"
    return "Likely the adapter belongs to another kind of model, or was saved by another program"


def _is_emptied(shapes: Mapping[str, Shape]) -> bool:
    """Whether most tensors are without a single number."""
    n_empty = sum(0 in shape for shape in shapes.values())
    return 2 * n_empty > len(shapes)


def _is_rank_changed(name: str, found: Shape, wanted: Shape) -> bool:
    """Whether the two shapes of a factor differ in the rank only: the rows of A (rank, n_in), the columns of B."""
    if len(found) != 2 or len(wanted) != 2:
        return False
    if ".lora_A." in name:
        return found[0] != wanted[0] and found[1] == wanted[1]
    return ".lora_B." in name and found[1] != wanted[1] and found[0] == wanted[0]


def _named(names: Sequence[str]) -> str:
    shown = [printable(name)[:100] for name in names[:MOST_NAMED]]
    if len(names) > MOST_NAMED:
        shown.append("…")
    return ", ".join(shown)


def _shown(shape: Shape) -> str:
    return " × ".join(map(str, shape)) or "a single number"


def _one_line(error: BaseException) -> str:
    return printable(" ".join(str(error).split()))[:120]


def tensors_of(files: Sequence[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of safetensors files one at a time."""
    from safetensors import safe_open

    for file in files:
        with safe_open(str(file), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open has no __iter__
                yield name, tensors.get_tensor(name)


def refuse_own_head(files: Sequence[Path], names: Mapping[str, str], *, place: str) -> None:
    """Refuse an output layer that is not the token embedding: Whisper has one weight for both, and drops the other.

    Args:
        files: The safetensors files.
        names: The model's name of each tensor in them.
        place: The folder or Hub id, for the message.

    Raises:
        UserError: The files hold both, and they differ.
    """
    if HEAD not in names.values():
        return
    head, embedding = (
        next(tensor for name, tensor in tensors_of(files) if names[name] == wanted) for wanted in (HEAD, EMBEDDING)
    )
    if not head.equal(embedding):
        raise UserError(
            f"{place}: {HEAD} differs from {EMBEDDING}; in Whisper they are one weight, and one of them would be lost."
        )


def refuse_not_finite(tensors: Iterable[tuple[str, torch.Tensor]], *, place: str, remedy: str) -> None:
    """Refuse weights that are not finite numbers.

    Args:
        tensors: Names and weights. Integers, as of a quantised layer, are passed over.
        place: The folder or Hub id, for the message.
        remedy: What to do, as the end of the message.

    Raises:
        UserError: A tensor holds NaN or an infinity.
    """
    broken = [name for name, tensor in tensors if tensor.is_floating_point() and not _is_finite(tensor)]
    if broken:
        raise UserError(
            f"{place}: weights that are not finite numbers (NaN or infinity) in {len(broken)} tensors "
            f"({_named(broken)}); {remedy}."
        )


def refuse_zeros(tensors: Iterable[tuple[str, torch.Tensor]], *, place: str, remedy: str) -> None:
    """Refuse a model whose token embedding holds only zeros; say so of other weights.

    With such an embedding all tokens are alike. It is what a download leaves that reserved its space and broke off.

    Args:
        tensors: Names and weights of a whole Whisper. Vectors are passed over: a bias may be zero.
        place: The folder or Hub id, for the message.
        remedy: What to do, as the end of the message.

    Raises:
        UserError: The token embedding holds only zeros.
    """
    zeros = [name for name, weight in tensors if weight.ndim > 1 and not weight.any()]
    if EMBEDDING in zeros:
        raise UserError(f"{place}: {len(zeros)} tensors hold only zeros ({_named(zeros)}); {remedy}.")
    if zeros:
        warnings.warn(f"{place}: {len(zeros)} tensors hold only zeros ({_named(zeros)}).", Notice, stacklevel=2)


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether all numbers are finite. A NaN or an infinity never leaves a sum, and one sum is quick."""
    import torch

    tensor = tensor.detach()
    if tensor.sum(dtype=torch.float32).isfinite():
        return True
    return bool(tensor.isfinite().all())  # a finite sum may be too large for float32
