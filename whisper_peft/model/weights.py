"""The tensors of safetensors files: read one by one, and refused where their numbers cannot be right."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_peft.errors import Notice, UserError
from whisper_peft.files import UnusableFileError, printable
from whisper_peft.model.foreign import foreign_file

if TYPE_CHECKING:
    import torch

# Tensors that a message names at most.
MOST_NAMED = 3
# In Whisper these two names mean one weight.
HEAD_WEIGHT = "proj_out.weight"
EMBEDDING_WEIGHT = "model.decoder.embed_tokens.weight"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorHeader:
    """The tensors of safetensors files, without their numbers.

    Args:
        shapes: The shape of each tensor, by its name.
        types: The type of each tensor, as safetensors calls it.
        file_of: The file that holds each tensor.
    """

    shapes: dict[str, Shape]
    types: dict[str, str]
    file_of: dict[str, Path]


def read_header(files: Sequence[Path]) -> TensorHeader:
    """Read names, shapes and types of the tensors in safetensors files, but none of their numbers.

    Args:
        files: One file, or all shards of a model.

    Raises:
        UnusableFileError: A file is something else, is cut off or is damaged, or two files hold one tensor.
    """
    from safetensors import SafetensorError

    header = TensorHeader({}, {}, {})
    for file in files:
        description = foreign_file(file)
        if description:
            raise UnusableFileError(file, description)
        try:
            _read_file_header(file, header)
        except (SafetensorError, OSError, ValueError, OverflowError) as error:
            raise UnusableFileError(
                file, f"cut off, damaged or no safetensors file ({_one_line(error)}); copy or download it again"
            ) from None
    return header


def _read_file_header(file: Path, header: TensorHeader) -> None:
    """Add the tensors of one file to a header.

    Raises:
        UnusableFileError: Another file holds a tensor of the same name.
    """
    from safetensors import safe_open

    with safe_open(str(file), framework="np") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - safe_open has no __iter__
            if name in header.file_of:
                raise UnusableFileError(
                    file,
                    f"{printable(name)[:100]} is in {header.file_of[name].name}, too, so these shards were not saved "
                    "together; copy or download the model again",
                )
            tensor = tensors.get_slice(name)
            header.shapes[name] = tuple(tensor.get_shape())
            header.types[name] = tensor.get_dtype()
            header.file_of[name] = file


def weight_shapes(files: Iterable[Path]) -> dict[str, Shape]:
    """Read the shapes of all tensors in safetensors files, to compare a config with them.

    Returns:
        The shape of each tensor, by its name. It is empty if a file is missing or damaged: loading will say so.
    """
    try:
        return read_header(list(files)).shapes
    except UnusableFileError:
        return {}


def list_names(names: Sequence[str]) -> str:
    """Return the first names, for a message."""
    shown = [printable(name)[:100] for name in names[:MOST_NAMED]]
    if len(names) > MOST_NAMED:
        shown.append("…")
    return ", ".join(shown)


def _one_line(error: BaseException) -> str:
    """Return the message of an error on one line."""
    return printable(" ".join(str(error).split()))[:120]


def tensors_of(files: Sequence[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of safetensors files, each with its name, one at a time."""
    from safetensors import safe_open

    for file in files:
        with safe_open(str(file), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open has no __iter__
                yield name, tensors.get_tensor(name)


def refuse_own_head(files: Sequence[Path], names: Mapping[str, str], *, place: str) -> None:
    """Refuse an output layer that differs from the token embedding.

    Whisper has one weight for both, so transformers would drop one of the two.

    Args:
        files: The safetensors files.
        names: The model's name for each tensor in them.
        place: The folder or Hub id, for the message.

    Raises:
        UserError: The files hold both, and they differ.
    """
    if HEAD_WEIGHT not in names.values():
        return
    head = _read_tensor(files, names, HEAD_WEIGHT)
    embedding = _read_tensor(files, names, EMBEDDING_WEIGHT)
    if not head.equal(embedding):
        raise UserError(
            f"{place}: {HEAD_WEIGHT} differs from {EMBEDDING_WEIGHT}; in Whisper they are one weight, and one of them "
            "would be lost."
        )


def _read_tensor(files: Sequence[Path], names: Mapping[str, str], wanted: str) -> torch.Tensor:
    """Read the tensor that has a name in the model."""
    return next(tensor for name, tensor in tensors_of(files) if names[name] == wanted)


def refuse_not_finite(tensors: Iterable[tuple[str, torch.Tensor]], *, place: str, remedy: str) -> None:
    """Refuse weights that are not finite numbers.

    Args:
        tensors: Names and weights. Integers, which a quantised layer has, are passed over.
        place: The folder or Hub id, for the message.
        remedy: What to do, as the end of the message.

    Raises:
        UserError: A tensor holds NaN or an infinity.
    """
    broken = [name for name, tensor in tensors if tensor.is_floating_point() and not _is_finite(tensor)]
    if broken:
        raise UserError(
            f"{place}: weights that are not finite numbers (NaN or infinity) in {len(broken)} tensors "
            f"({list_names(broken)}); {remedy}."
        )


def refuse_zeros(tensors: Iterable[tuple[str, torch.Tensor]], *, place: str, remedy: str) -> None:
    """Refuse a model whose token embedding holds only zeros, and warn of other weights that do.

    With such an embedding all tokens are alike. A download leaves it that reserved its space and broke off.

    Args:
        tensors: Names and weights of a whole Whisper. Vectors are passed over, because a bias may be zero.
        place: The folder or Hub id, for the message.
        remedy: What to do, as the end of the message.

    Raises:
        UserError: The token embedding holds only zeros.
    """
    zeros = [name for name, weight in tensors if weight.ndim > 1 and not weight.any()]
    if EMBEDDING_WEIGHT in zeros:
        raise UserError(f"{place}: {len(zeros)} tensors hold only zeros ({list_names(zeros)}); {remedy}.")
    if zeros:
        warnings.warn(f"{place}: {len(zeros)} tensors hold only zeros ({list_names(zeros)}).", Notice, stacklevel=2)


def _is_finite(tensor: torch.Tensor) -> bool:
    """Tell whether all numbers are finite.

    A sum with NaN or an infinity in it is not finite, and one sum is quicker than a look at each number.
    """
    import torch

    tensor = tensor.detach()
    if tensor.sum(dtype=torch.float32).isfinite():
        return True
    # The sum of finite numbers may be too large for float32.
    return bool(tensor.isfinite().all())
