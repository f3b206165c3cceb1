"""How the cost of training grows with clip length, batch size and corpus size, and how much time reading takes.

    python benchmarks/scaling.py            every part
    python benchmarks/scaling.py corpus     one of: length, batch, corpus, features

`length` and `batch` fine-tune all weights of the real Whisper base on made audio, with bf16 autocast if the CPU has it
and without gradient checkpointing. `corpus` needs only the quickstart, and `features` reads real Malayalam. Needs the
shared folder (WHISPER_PEFT_SHARED, default ../shared). Writes scaling.json beside itself after each part.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from notebook_vs_whisper_peft import Clock

HERE = Path(__file__).parent
RESULTS = HERE / "scaling.json"
QUICKSTART = HERE.parent / "whisper_peft" / "quickstart"
LENGTHS_S = (2.0, 4.0, 8.0, 15.0, 29.0)
BATCHES = (2, 4, 8, 16)
# 9,000 clips of 4 s are ten hours.
ROWS = (8, 9_000, 800_000)
FIRST_STEP = """
import sys, time
from transformers import TrainerCallback
import whisper_peft

class First(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        print("FIRST", time.time() - float(sys.argv[1]), flush=True)

model, train, evaluation, output = sys.argv[2:]
whisper_peft.train(output=output, callbacks=[First()], changes={
    "model.name": model, "model.language": "hindi", "data.train": [train], "data.eval": evaluation, "train.steps": 1,
    "train.batch_size": 16, "train.precision": "fp32", "evaluate.compare_clips": 0, "evaluate.max_clips": 4,
})
"""


def made_speech(folder: Path, seconds: float, count: int) -> str:
    """Write clips of noise of one length, with texts of two words per second, and return their manifest."""
    import numpy as np
    import soundfile

    lines = []
    for number in range(count):
        wave = 0.1 * np.random.default_rng(number).standard_normal(int(16_000 * seconds))
        soundfile.write(folder / f"{seconds}-{number}.wav", wave, 16_000)
        lines.append(json.dumps({"audio": f"{seconds}-{number}.wav", "text": "word " * max(1, int(2 * seconds))}))
    (folder / f"{seconds}.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder / f"{seconds}.jsonl")


def steps_of(model: Path, speech: str, folder: Path, *, window: str, batch_size: int, steps: int = 4) -> dict:
    """Return the mean seconds of a step, and how many of them wait for data, without the first step."""
    import whisper_peft

    clock = Clock()
    changes = {
        "model.name": str(model),
        "model.language": "ml",
        "train.mode": "full",
        "data.train": [speech],
        "data.eval": speech,
        "train.steps": steps,
        "train.batch_size": batch_size,
        "features.window": window,
        "evaluate.compare_clips": 0,
        "evaluate.max_clips": 1,
        "evaluate.best_metric": "loss",
        # The only evaluation comes after the last step, so that none lies between the steps.
        "evaluate.every_steps": steps,
    }
    with tempfile.TemporaryDirectory(dir=folder) as run:
        whisper_peft.train(changes=changes, output=Path(run) / "run", callbacks=[clock])
    waited = sum(start - end for start, end in zip(clock.begun[1:], clock.ended, strict=False))
    return {"step_s": clock.step_s, "waiting_s": waited / (steps - 1)}


def length(shared: Path, folder: Path) -> list[dict]:
    rows = []
    for seconds in LENGTHS_S:
        speech = made_speech(folder, seconds, 32)
        for window in ("full", "condensed", "tight"):
            found = steps_of(shared / "models" / "whisper-base", speech, folder, window=window, batch_size=8)
            rows.append({"clip_s": seconds, "window": window, "batch_size": 8, **found})
            print(rows[-1], flush=True)
    return rows


def batch(shared: Path, folder: Path) -> list[dict]:
    speech, rows = made_speech(folder, 4.0, 64), []
    for size in BATCHES:
        found = steps_of(shared / "models" / "whisper-base", speech, folder, window="condensed", batch_size=size)
        rows.append({"clip_s": 4.0, "window": "condensed", "batch_size": size, **found})
        print(rows[-1], flush=True)
    return rows


def corpus(shared: Path, folder: Path) -> list[dict]:
    """Measure the seconds from the start of the process, with its imports, to the end of the first step."""
    import whisper_peft

    clips = whisper_peft.load_source(str(QUICKSTART / "speech" / "train"))
    rows = []
    for count in ROWS:
        manifest = folder / f"{count}.jsonl"
        with manifest.open("w", encoding="utf-8") as file:
            for number in range(count):
                clip = clips[number % len(clips)]
                row = {"audio": clip.audio, "text": f"{clip.text} {number}"}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        evaluation = QUICKSTART / "speech" / "validation"
        arguments = [QUICKSTART / "model", manifest, evaluation, folder / f"run-{count}"]
        done = subprocess.run(
            [sys.executable, "-c", FIRST_STEP, str(time.time()), *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        first = float(done.stdout.partition("FIRST ")[2].split()[0])
        rows.append({"rows": count, "first_step_after_s": first})
        print(rows[-1], flush=True)
    return rows


def features(shared: Path, folder: Path) -> list[dict]:
    """Time our log-mels beside the extractor of transformers in one thread, and reading and decoding separately."""
    import numpy as np
    import torch

    import whisper_peft

    torch.set_num_threads(1)
    rows = whisper_peft.load_source(str(shared / "data" / "malayalam" / "train"))[:64]
    preparation = whisper_peft.load_preparation(str(shared / "models" / "whisper-base"))
    extractor = preparation.processor.feature_extractor
    began = time.perf_counter()
    waves = [whisper_peft.load_audio(row.audio) for row in rows]
    read_s = time.perf_counter() - began
    ours_s, theirs_s, difference = [], [], 0.0
    for wave in [waves[0], *waves]:
        began = time.perf_counter()
        ours, floor = preparation.encode_audio(wave)
        ours_s.append(time.perf_counter() - began)
        began = time.perf_counter()
        theirs = extractor(wave, sampling_rate=16_000, return_tensors="np").input_features[0]
        theirs_s.append(time.perf_counter() - began)
        padded = np.full_like(theirs, floor)
        padded[:, : ours.shape[1]] = ours
        difference = max(difference, float(np.abs(padded - theirs).max()))
    clips = len(waves)
    return [
        {
            "clips": clips,
            "speech_s": sum(map(len, waves)) / 16_000,
            "read_ms": 1e3 * read_s / clips,
            "ours_ms": 1e3 * sum(ours_s[1:]) / clips,
            "transformers_ms": 1e3 * sum(theirs_s[1:]) / clips,
            "largest_difference": difference,
        }
    ]


PARTS = {"length": length, "batch": batch, "corpus": corpus, "features": features}


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)))
def main(parts: tuple[str, ...]) -> None:
    import torch

    shared = Path(os.environ.get("WHISPER_PEFT_SHARED", HERE.parent.parent / "shared")).resolve()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            found = PARTS[part](shared, Path(folder))
        results[part] = {"threads": torch.get_num_threads(), "torch": torch.__version__, "rows": found}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(f"\n{part}")
        for row in found:
            shown = (f"{key} {f'{value:.4g}' if isinstance(value, float) else value}" for key, value in row.items())
            print("  " + "  ".join(shown))


if __name__ == "__main__":
    main()
