"""What run.json says of a run: with what, on what, from what it was made."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import math
import os
import platform
import random
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from whisper_peft import __version__
from whisper_peft.data.dataset import SpeechDataset
from whisper_peft.data.decoding import AudioError
from whisper_peft.data.rows import Row, fingerprint, split_fingerprint
from whisper_peft.errors import UserError
from whisper_peft.files import open_file, printable
from whisper_peft.model.identity import adapter_sha256, base_identity
from whisper_peft.model.locating import Located
from whisper_peft.recipe import Recipe
from whisper_peft.training.splits import Speech

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "jiwer")
MOST_SOUNDS = 64  # of a split, spread over it, whose content is known again when the run is gone on with
SOUND_BYTES = 1 << 19  # at either end of a file; another recording differs there
MOST_HEADERS = 10_000  # read to know the hours of a corpus; of a larger one, a sample
MOST_TIMED = 500  # clips whose length tells whether the windows are full of speech
FULL_WINDOW_S = 20.0  # a clip this long fills its window of 30 s, so that the model has to go on
ENOUGH_FULL = 0.1  # the share of full windows from which a model keeps the habit


def first_facts(recipe: Recipe, speech: Speech, located: Located, full_windows: float) -> dict:
    """Collect what is known before the first step; `full_windows` as `share_of_full_windows` gives it."""
    import torch

    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    cuda = torch.cuda.is_available()
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "mode": recipe.train.mode,
        "versions": {"python": platform.python_version(), "whisper-peft": __version__, **versions},
        "device": torch.cuda.get_device_name(0) if cuda else f"CPU ({platform.machine()})",
        "base": {**base_identity(located.base, revision=located.commit), "quantize": recipe.train.quantize},
        "adapter_sha256": adapter_sha256(located.adapter) if located.adapter else None,  # that is trained further
        "data": {
            "fingerprints": fingerprints(speech),
            "sounds": {name: _sounds(data.rows) for name, data in _splits(speech).items()},
            "train_clips": None if speech.stream else len(speech.train),
            "full_windows": full_windows,
            "eval_clips": len(speech.eval),
            "eval_held_out": speech.held_out,
            "test_clips": None if speech.test is None else len(speech.test),
        },
    }


def fingerprints(speech: Speech) -> dict[str, str]:
    """Of each split, and of the files that noise and rooms are taken from; none depends on where the data lies."""
    parts = {
        "train": [count for count, _ in speech.parts] or [len(speech.train)],
        "eval": speech.eval_parts or [len(speech.eval)],
    }
    found = {name: split_fingerprint(data.rows, parts.get(name, [len(data)])) for name, data in _splits(speech).items()}
    if speech.stream is not None:
        found["train"] = speech.stream.fingerprint()
    if speech.train.augmentation is not None:
        found["augment"] = speech.train.augmentation.fingerprint()
    return found


def _sounds(rows: Sequence[Row]) -> dict[str, str]:
    """Compute what the sound of some rows is known by.

    Args:
        rows: Of a split. Of a long one, 64 rows are taken, spread evenly over it.

    Returns:
        A part of a SHA-256 for the number of each row. Files that cannot be read are left out: loading names them.
    """
    step = max(1, math.ceil(len(rows) / MOST_SOUNDS))
    found = {}
    for number in range(0, len(rows), step):
        with contextlib.suppress(UserError, AudioError, OSError):
            found[str(number)] = _sound(rows[number])
    return found


def _sound(row: Row) -> str:
    """Compute the SHA-256 of the length and both ends of a sound file; where it lies plays no part."""
    sound = row.sound()
    if isinstance(sound, bytes):
        size, ends = len(sound), sound[:SOUND_BYTES] + sound[-SOUND_BYTES:]
    else:
        with open_file(sound) as file:
            size = os.fstat(file.fileno()).st_size
            ends = file.read(SOUND_BYTES)
            file.seek(max(0, size - SOUND_BYTES))
            ends += file.read(SOUND_BYTES)
    return hashlib.sha256(f"{size}\0".encode() + ends).hexdigest()[:16]


def _old_fingerprint(name: str, speech: Speech) -> str | None:
    """A split's fingerprint as earlier versions wrote it, with the places of its files."""
    if name == "train" and speech.stream is not None:
        return speech.stream.fingerprint(with_places=True)
    data = _splits(speech).get(name)
    return None if data is None else fingerprint(data.rows, with_places=True)


def _splits(speech: Speech) -> dict[str, SpeechDataset]:
    splits = {"train": speech.train, "eval": speech.eval, "test": speech.test}
    return {name: data for name, data in splits.items() if data is not None}


def peak_memory_bytes() -> int:
    """Peak of the GPU's allocator, or of this process's resident memory on the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def padding_share(trainer) -> float | None:
    """How much of the windows trained on was silence behind clips; of this process, if the run was resumed."""
    return round(1 - trainer.speech_s / trainer.window_s, 4) if trainer.window_s else None


def hours(dataset: SpeechDataset, left_out: set[int]) -> float:
    """Hours of the usable clips by their headers; of more than 10,000 clips, estimated from so many of them."""
    rows = [row for row in range(len(dataset)) if row not in left_out]
    read = rows if len(rows) <= MOST_HEADERS else random.Random(0).sample(rows, MOST_HEADERS)
    return round(sum(map(dataset.duration_s, read)) * len(rows) / max(1, len(read)) / 3600, 3)


def share_of_full_windows(dataset: SpeechDataset) -> float:
    """Return the share of clips that are at least 20 s long, by the headers of at most 500 of them."""
    rows = range(len(dataset))
    if len(rows) > MOST_TIMED:
        rows = random.Random(0).sample(rows, MOST_TIMED)
    full = sum(dataset.duration_s(row) >= FULL_WINDOW_S for row in rows)
    return round(full / max(1, len(rows)), 3)


def warn_of_recordings(recipe: dict, full_windows: float | None) -> str | None:
    """Warn of a model that was not trained for recordings that are longer than a sentence.

    Args:
        recipe: The recipe of its run, as a dictionary; {} where it is not known.
        full_windows: The share of training clips that fill their window; None where it is not known.

    Returns:
        One line; None where it saw times and windows full of speech, or where its training is not known.
    """
    features = recipe.get("features") or {}
    lacking = []
    settings = []
    if features.get("timestamps") == 0:
        lacking.append("without times")
        settings.append("--set features.timestamps=0.5")
    if features.get("stitch", 0) == 0 and full_windows is not None and full_windows < ENOUGH_FULL:
        lacking.append("without windows full of speech")
        settings.append("--set features.stitch=0.2")
    if not lacking:
        return None
    return (
        f"Trained {' and '.join(lacking)}: on recordings longer than a sentence the model may stop early or repeat "
        f"itself, here and in other programs. Train with {' '.join(settings)} (docs/recordings.md)."
    )


def check_unchanged(run: Path, facts: dict, speech: Speech, located: Located) -> None:
    """Refuses to go on with a run whose data or base are not those it began with.

    Raises:
        UserError: a split has other rows, or the base other weights.
    """
    for name, found in fingerprints(speech).items():
        known = facts["data"]["fingerprints"].get(name)
        if known not in (found, _old_fingerprint(name, speech)):
            what = "a folder of augment" if name == "augment" else f"data.{name}"
            raise UserError(f"{run}: {what} has changed since the run began; start a new run.")
    known_sounds = facts["data"].get("sounds", {})  # runs of earlier versions do not know them
    for name, data in _splits(speech).items():
        known = known_sounds.get(name, {})
        for number, found in _sounds(data.rows).items():
            if known.get(number, found) != found:
                row = data.rows[int(number)]
                raise UserError(
                    f"{run}: data.{name}: {printable(row.name)} ({printable(row.place)}) is another recording than "
                    "when the run began; bring it back, or start a new run."
                )
    known = facts.get("adapter_sha256")
    if known is not None and (located.adapter is None or adapter_sha256(located.adapter) != known):
        raise UserError(
            f"{run}: the adapter that the run began with is not that at {located.name}; name the right one."
        )
    commit = commit_of(facts["base"], located)
    if facts["base"]["sha256"] != base_identity(located.base, revision=commit)["sha256"]:
        raise UserError(
            f"{run}: the weights of {located.base} have changed since the run began, or are others; name the right "
            "ones with --base MODEL, or start a new run."
        )


def commit_of(base: dict, located: Located) -> str | None:
    """The commit of a run's base on the Hub; None where the base is looked for in another place now.

    Args:
        base: What the run's facts say of its base.
        located: Where the base is now.
    """
    return base.get("commit") if base.get("hub_id") == located.base else None
