"""The names of splits: their synonyms, and the choice among the values of a column "split"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from whisper_peft.errors import UserError
from whisper_peft.files import printable

# The usual names of splits; those in one group mean the same.
_SPLIT_NAMES = (
    ("train", "training"),
    ("validation", "valid", "val", "dev"),
    ("test", "testing", "eval", "evaluation"),
)
# A column "split" with more values, none of them train, dev or test, is about something else.
_MOST_SPLITS = 50
# A message shows this number of characters of a split's name.
_LONGEST_NAME = 60


def find_split(wanted: str, names: Iterable[str]) -> str | None:
    """Find a split by its own name, else by a synonym.

    Args:
        wanted: The split that the user names.
        names: The splits that there are.

    Returns:
        The name that the split has there; None if it is not there.

    Example:
        >>> find_split("dev", ["train", "validation"])
        'validation'
    """
    by_lower = {name.lower(): name for name in names}
    for name in list_split_names(wanted):
        if name in by_lower:
            return by_lower[name]
    return None


def list_split_names(wanted: str) -> tuple[str, ...]:
    """List the names that a split may have, in small letters: its own name first, then the synonyms.

    Example:
        >>> list_split_names("Train"), list_split_names("other")
        (('train', 'train', 'training'), ('other',))
    """
    for group in _SPLIT_NAMES:
        if wanted.lower() in group:
            return (wanted.lower(), *group)
    return (wanted.lower(),)


def is_name_of_split(value: str) -> bool:
    """Tell whether a value is a usual name of a split: train, dev, test and their synonyms."""
    return len(list_split_names(value)) > 1


def choose_splits(name: str, counts: dict[str, int], wanted: Sequence[str]) -> tuple[str, ...]:
    """Choose among the values of a column "split".

    Args:
        name: The source, as the user wrote it without splits.
        counts: Number of rows for each value; empty if there is no such column.
        wanted: The splits that the user names. If there are none, the table may have only one split.

    Returns:
        The values whose rows are meant; empty for all rows.

    Raises:
        UserError: A split is not there, or no split is named and the table has several. A model must not learn from
            test clips.

    Example:
        >>> choose_splits("m.csv", {"train": 5, "validation": 3}, ["dev"])
        ('validation',)
    """
    if not wanted:
        if len(counts) < 2 or not _are_splits(counts):
            return ()
        choices = ", ".join(f"{name}:{split}" for split in _describe_splits(counts))
        raise UserError(f"{name}: its column 'split' has several splits; name one, or join them with +: {choices}.")
    if not counts:
        raise UserError(
            f"{name}: no column 'split' in it, and otherwise only folders have splits; leave ':{'+'.join(wanted)}' out."
        )
    chosen = []
    for wanted_split in wanted:
        split = find_split(wanted_split, counts)
        if split is None:
            splits = ", ".join(_describe_splits(counts))
            raise UserError(f"{name}: no split {wanted_split!r} in its column 'split'; it has {splits}.")
        chosen.append(split)
    return tuple(dict.fromkeys(chosen))


def _describe_splits(counts: dict[str, int]) -> list[str]:
    """Write the first splits with their numbers of rows.

    Example:
        >>> _describe_splits({"train": 5000, "test": 1})
        ['train (5,000 rows)', 'test (1 row)']
    """
    described = []
    for split, count in list(counts.items())[:_MOST_SPLITS]:
        rows = "1 row" if count == 1 else f"{count:,} rows"
        described.append(f"{printable(split)[:_LONGEST_NAME]} ({rows})")
    return described


def _are_splits(counts: dict[str, int]) -> bool:
    """Tell whether the values of a column "split" look like splits, and not like numbers of pieces or the like."""
    is_known = any(is_name_of_split(value) for value in counts)
    return is_known or len(counts) <= _MOST_SPLITS
