"""How often `check` finds 20 texts that moved by one row, without a model, and how often it gives a false alarm.

    python benchmarks/check_shifts.py [--tries 30]

Each split of the shared folder is tried with the file lengths of its headers and with the speech lengths of its decoded
clips, each with and without its speakers. In each try, the texts of 20 successive rows, drawn at random, move by +1 or
-1 row. For false alarms, no text moves: the rows are put in a random order that keeps the clips of a speaker together.
Writes check_shifts.json beside itself.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import click
import numpy as np

from whisper_peft import load_preparation, load_source
from whisper_peft.checking.shifted_texts import find_mispairings, find_name_orders
from whisper_peft.checking.sound_measures import measure_clip
from whisper_peft.checking.speech_rate import text_sizes
from whisper_peft.checking.threads import map_in_threads
from whisper_peft.data.dataset import SpeechDataset

HERE = Path(__file__).parent
SOURCES = (
    "malayalam:train",
    "malayalam:validation",
    "malayalam:test",
    "hindi_tts:train",
    "hindi_tts:test",
    "common_voice_te/te:other",
)
MOVED = 20


def found_of(seconds, sizes, speakers, names, generator) -> dict:
    """Return for one try whether the shift was found, how many texts would be put back right, and how many wrong."""
    first, shift = int(generator.integers(0, len(seconds) - MOVED)), int(generator.choice([1, -1]))
    moved = sizes.copy()
    moved[first : first + MOVED] = np.roll(sizes[first : first + MOVED], -shift, axis=0)
    row_of = np.arange(len(seconds))
    row_of[first : first + MOVED] = np.roll(row_of[first : first + MOVED], -shift)
    right = wrong = 0
    hit = False
    for mispairing in find_mispairings(seconds, moved, speakers, list(find_name_orders(names))):
        hit |= mispairing.shift == shift and len(set(mispairing.rows) & set(range(first, first + MOVED))) >= MOVED // 2
        sure = [sound for sound, text in mispairing.text_of.items() if not {sound, text} & mispairing.doubtful]
        right += sum(row_of[mispairing.text_of[sound]] == sound for sound in sure)
        wrong += sum(row_of[mispairing.text_of[sound]] != sound for sound in sure)
    return {"found": bool(hit), "right": int(right), "wrong": int(wrong)}


def false_alarms(seconds, sizes, speakers, names, tries: int) -> int:
    """Count the tries in which something is found although no text has moved."""
    count = 0
    for seed in range(tries):
        draw = random.Random(seed)
        groups: dict = {}
        for row, speaker in enumerate(speakers):
            groups.setdefault(speaker if speaker is not None else row, []).append(row)
        blocks = list(groups.values())
        draw.shuffle(blocks)
        order = [row for block in blocks for row in draw.sample(block, len(block))]
        named = list(find_name_orders([names[row] for row in order]))
        in_order = (seconds[order], sizes[order], [speakers[row] for row in order], named)
        count += bool(find_mispairings(*in_order))
    return count


@click.command(help=__doc__)
@click.option("--tries", default=30, show_default=True)
def main(tries: int) -> None:
    shared = Path(os.environ.get("WHISPER_PEFT_SHARED", HERE.parent.parent / "shared")).resolve()
    preparation = load_preparation(str(shared / "models" / "whisper-base"))
    page: dict[str, dict] = {}
    print(f"{'':26}{'lengths of':>12}{'speakers':>10}{'found':>12}{'put back':>10}{'wrongly':>9}{'false alarms':>15}")
    for name in SOURCES:
        rows = load_source(str(shared / "data" / name))
        sizes = text_sizes([row.text for row in rows], [preparation.n_tokens(row.text) for row in rows])
        header = np.array([SpeechDataset.seconds_of(row) for row in rows])
        heard = np.array(
            [
                measure.speech_s
                for measure in map_in_threads(lambda row: measure_clip(row, end_s=None), rows, name, False)
            ]
        )
        known = [row.speaker for row in rows]
        for what, seconds in (("files", header), ("speech", heard)):
            for speakers in (known, [None] * len(rows)):
                names, generator = [row.name for row in rows], np.random.default_rng(1)
                trials = [found_of(seconds, sizes, speakers, names, generator) for _ in range(tries)]
                result = {key: sum(trial[key] for trial in trials) for key in ("found", "right", "wrong")}
                result |= {"tries": tries, "false_alarms": false_alarms(seconds, sizes, speakers, names, 3 * tries)}
                who = "known" if speakers is known else "not"
                page[f"{name}, {what}, speakers {who}"] = result
                print(
                    f"{name:26}{what:>12}{who:>10}{result['found']:>6} of {tries}{result['right'] / tries:>10.1f}"
                    f"{result['wrong'] / tries:>9.2f}{result['false_alarms']:>9} of {3 * tries}",
                    flush=True,
                )
    (HERE / "check_shifts.json").write_text(json.dumps(page, indent=1) + "\n")


if __name__ == "__main__":
    main()
