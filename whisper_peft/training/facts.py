"""The facts in run.json: what a run was made with, on what machine, and from what data."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import math
import os
import platform
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_peft import __version__
from whisper_peft.data.dataset import SpeechDataset
from whisper_peft.data.decoded_clip import AudioError
from whisper_peft.data.rows import Row, fingerprint, split_fingerprint
from whisper_peft.errors import UserError
from whisper_peft.files import open_file, printable
from whisper_peft.model.identity import adapter_sha256, base_identity
from whisper_peft.model.locating import Located
from whisper_peft.training.resolved import ResolvedRecipe
from whisper_peft.training.splits import Speech

if TYPE_CHECKING:
    from whisper_peft.training.trainer import SpeechTrainer

# The libraries whose versions are written down.
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "jiwer")
# Sounds of a split, spread over it, whose content must be the same when the run is resumed.
MOST_SOUNDS = 64
# Bytes at either end of a file that its content is known by; another recording differs there.
SOUND_BYTES = 1 << 19
# Headers that are read to know the hours of a corpus; for a larger one the hours are estimated.
MOST_HEADERS = 10_000
# Clips whose lengths tell whether the windows are full of speech.
MOST_TIMED = 500
# Seconds from which a clip fills its window of 30 s, so that the model has to go on to the next one.
FULL_WINDOW_S = 20.0
# Share of full windows from which a model keeps the habit.
ENOUGH_FULL = 0.1


def first_facts(recipe: ResolvedRecipe, speech: Speech, located: Located, full_windows: float) -> dict:
    """Collect what is known before the first step.

    Args:
        recipe: Settings of the run.
        speech: Its splits.
        located: The base of the model, and the adapter that is trained further.
        full_windows: Share of training clips that fill their window, see `share_of_full_windows`.
    """
    import torch

    versions = {"python": platform.python_version(), "whisper-peft": __version__}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    device = f"CPU ({platform.machine()})"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name(0)
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "mode": recipe.train.mode,
        "versions": versions,
        "device": device,
        "base": {**base_identity(located.base, revision=located.commit), "quantize": recipe.train.quantize},
        # The adapter that is trained further.
        "adapter_sha256": adapter_sha256(located.adapter) if located.adapter else None,
        "data": _data_facts(speech, full_windows),
    }


def _data_facts(speech: Speech, full_windows: float) -> dict:
    """Collect what the data is known by, and how much there is. Nobody knows how many clips a stream has."""
    splits = _splits(speech)
    n_clips: dict[str, int | None] = {name: len(dataset) for name, dataset in splits.items()}
    if speech.stream is not None:
        n_clips["train"] = None
    return {
        "fingerprints": fingerprints(speech),
        "sounds": {name: _sounds(dataset.rows) for name, dataset in splits.items()},
        "train_clips": n_clips["train"],
        "full_windows": full_windows,
        "eval_clips": n_clips["eval"],
        "eval_held_out": speech.held_out,
        "test_clips": n_clips.get("test"),
    }


def fingerprints(speech: Speech) -> dict[str, str]:
    """Compute the fingerprint of each split, and of the files that noise and rooms are taken from.

    No fingerprint depends on where the data lies.
    """
    n_rows_of_sources = {
        "train": [n_rows for n_rows, _ in speech.parts] or [len(speech.train)],
        "eval": speech.eval_parts or [len(speech.eval)],
    }
    prints = {}
    for name, dataset in _splits(speech).items():
        prints[name] = split_fingerprint(dataset.rows, n_rows_of_sources.get(name, [len(dataset)]))
    if speech.stream is not None:
        prints["train"] = speech.stream.fingerprint()
    if speech.train.augmentation is not None:
        prints["augment"] = speech.train.augmentation.fingerprint()
    return prints


def _sounds(rows: Sequence[Row]) -> dict[str, str]:
    """Compute what the sound of some rows is known by.

    Args:
        rows: The rows of a split. Of a long one, 64 rows are taken, spread evenly over it.

    Returns:
        A part of a SHA-256 for the number of each row. Files that cannot be read are left out: loading names them.
    """
    step = max(1, math.ceil(len(rows) / MOST_SOUNDS))
    sounds = {}
    for number in range(0, len(rows), step):
        with contextlib.suppress(UserError, AudioError, OSError):
            sounds[str(number)] = _sound(rows[number])
    return sounds


def _sound(row: Row) -> str:
    """Compute the SHA-256 of the length and both ends of a sound file; where it lies plays no part."""
    sound = row.sound()
    if isinstance(sound, bytes):
        size = len(sound)
        ends = sound[:SOUND_BYTES] + sound[-SOUND_BYTES:]
    else:
        with open_file(sound) as file:
            size = os.fstat(file.fileno()).st_size
            ends = file.read(SOUND_BYTES)
            file.seek(max(0, size - SOUND_BYTES))
            ends += file.read(SOUND_BYTES)
    return hashlib.sha256(f"{size}\0".encode() + ends).hexdigest()[:16]


def _old_fingerprint(name: str, speech: Speech) -> str | None:
    """Compute the fingerprint of a split as earlier versions wrote it, with the places of its files."""
    if name == "train" and speech.stream is not None:
        return speech.stream.fingerprint(with_places=True)
    dataset = _splits(speech).get(name)
    return None if dataset is None else fingerprint(dataset.rows, with_places=True)


def _splits(speech: Speech) -> dict[str, SpeechDataset]:
    """Return the splits that there are, by name."""
    splits = {"train": speech.train, "eval": speech.eval}
    if speech.test is not None:
        splits["test"] = speech.test
    return splits


def peak_memory_bytes() -> int:
    """Return the peak of the GPU's allocator; on a CPU, the peak of this process's resident memory.

    Windows has no module `resource`; there the current resident memory stands for the peak.
    """
    import psutil
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:
        return psutil.Process().memory_info().rss
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts in bytes, other systems in KiB.
    return peak if sys.platform == "darwin" else peak * 1024


def padding_share(trainer: SpeechTrainer) -> float | None:
    """Return the share of silence after clips in the windows that this process trained on; None if there were none."""
    if not trainer.window_s:
        return None
    return round(1 - trainer.speech_s / trainer.window_s, 4)


def hours(dataset: SpeechDataset, left_out: set[int]) -> float:
    """Return the hours of the usable clips by their headers; above 10,000 clips, an estimate from so many of them.

    Args:
        dataset: The clips.
        left_out: Numbers of the rows that cannot be used.
    """
    rows = [row for row in range(len(dataset)) if row not in left_out]
    sample = rows
    if len(rows) > MOST_HEADERS:
        sample = random.Random(0).sample(rows, MOST_HEADERS)
    seconds = sum(map(dataset.duration_s, sample))
    return round(seconds * len(rows) / max(1, len(sample)) / 3600, 3)


def share_of_full_windows(dataset: SpeechDataset) -> float:
    """Return the share of clips that are at least 20 s long, by the headers of at most 500 of them."""
    rows = list(range(len(dataset)))
    if len(rows) > MOST_TIMED:
        rows = random.Random(0).sample(rows, MOST_TIMED)
    full = sum(dataset.duration_s(row) >= FULL_WINDOW_S for row in rows)
    return round(full / max(1, len(rows)), 3)


def warn_of_recordings(recipe: dict, full_windows: float | None) -> str | None:
    """Warn of a model that was not trained for recordings that are longer than a sentence.

    Args:
        recipe: The recipe of its run, as a dictionary; empty where it is not known.
        full_windows: The share of training clips that fill their window; None where it is not known.

    Returns:
        One line; None where it saw times and windows full of speech, or where its training is not known.

    Example:
        >>> warn_of_recordings({"features": {"timestamps": 0.5, "stitch": 0.2}}, 0.0)
        >>> warn_of_recordings({"features": {"timestamps": 0, "stitch": 0.2}}, 0.0)[:22]
        'Trained without times:'
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
    """Refuse to go on with a run whose data, adapter or base are not those that it began with.

    Args:
        run: The run folder.
        facts: What its run.json holds.
        speech: The splits as they are now.
        located: The base and the adapter as they are found now.

    Raises:
        UserError: A split has other rows, or the adapter or the base has other weights.
    """
    known_prints = facts["data"]["fingerprints"]
    for name, print_now in fingerprints(speech).items():
        if known_prints.get(name) not in (print_now, _old_fingerprint(name, speech)):
            changed = "a folder of augment" if name == "augment" else f"data.{name}"
            raise UserError(f"{run}: {changed} has changed since the run began; start a new run.")
    # Runs of earlier versions do not know their sounds.
    known_sounds = facts["data"].get("sounds", {})
    for name, dataset in _splits(speech).items():
        _refuse_other_sounds(run, name, dataset, known_sounds.get(name, {}))
    known_adapter = facts.get("adapter_sha256")
    if known_adapter is not None and (located.adapter is None or adapter_sha256(located.adapter) != known_adapter):
        raise UserError(
            f"{run}: the adapter that the run began with is not that at {located.name}; name the right one."
        )
    commit = commit_of(facts["base"], located)
    if facts["base"]["sha256"] != base_identity(located.base, revision=commit)["sha256"]:
        raise UserError(
            f"{run}: the weights of {located.base} have changed since the run began, or are others; name the right "
            "ones with --base MODEL, or start a new run."
        )


def _refuse_other_sounds(run: Path, name: str, dataset: SpeechDataset, known: dict[str, str]) -> None:
    """Refuse a split in which a file is another recording than when the run began.

    Args:
        run: The run folder.
        name: The split, train, eval or test.
        dataset: Its clips.
        known: What the sounds were known by, see `_sounds`.

    Raises:
        UserError: There is such a file.
    """
    for number, sound in _sounds(dataset.rows).items():
        if known.get(number, sound) == sound:
            continue
        row = dataset.rows[int(number)]
        raise UserError(
            f"{run}: data.{name}: {printable(row.name)} ({printable(row.place)}) is another recording than when the "
            "run began; bring it back, or start a new run."
        )


def commit_of(base: dict, located: Located) -> str | None:
    """Return the commit of a run's base on the Hub; None where the base is looked for in another place now.

    Args:
        base: What the run's facts say of its base.
        located: Where the base is now.
    """
    return base.get("commit") if base.get("hub_id") == located.base else None
